//! Pictures as SVG: the EV–L0 points, batch FVU during training, and the parts of each loss.

use anyhow::{Result, anyhow};
use artifact::tables::CurveRow;
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::figures::{Figures, Mode, Name};
use crate::inputs::{Run, TrainedSae};
use crate::markdown;

pub(crate) struct Plot {
    /// Relative to the report.
    pub(crate) path: String,
    pub(crate) title: String,
    pub(crate) svg: String,
}

/// Okabe and Ito's colours, which colour-blind readers can tell apart; yellow left out, since it is faint on white.
pub(crate) const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];
const SIZE: (u32, u32) = (760, 420);

/// Of a family only its first SAE is drawn.
///
/// Errors: none that data can cause; plotters' own are passed on.
pub(crate) fn draw(run: &Run, figures: &Figures) -> Result<Vec<Plot>> {
    let mut plots = Vec::new();
    plots.extend(ev_l0(run, figures)?);
    plots.extend(density(run)?);
    plots.extend(fvu(run)?);
    for sae in run.one_a_family() {
        plots.extend(loss(sae)?);
    }
    Ok(plots)
}

/// A point a mode, with its interval: filled where the threshold is native, hollow where it is the prior's; larger where
/// gated.
fn ev_l0(run: &Run, figures: &Figures) -> Result<Option<Plot>> {
    if run.one_a_family().count() < run.saes.len() {
        // The comparison draws families; a legend of every seed would hide all else.
        return Ok(None);
    }
    struct Point {
        mode: Mode,
        l0: f64,
        ev: f64,
        interval: (f64, f64),
    }
    let point = |mode: &Mode| {
        let ev = figures.get(mode, &Name::new("ev", "all"))?;
        let interval = (ev.ci_low.unwrap_or(ev.value), ev.ci_high.unwrap_or(ev.value));
        Some(Point { mode: mode.clone(), l0: figures.value(mode, "l0", "all")?, ev: ev.value, interval })
    };
    let points: Vec<_> = figures.modes.iter().filter_map(point).collect();
    let (Some(l0), Some(ev)) = (
        range(points.iter().map(|point| point.l0)),
        range(points.iter().flat_map(|point| [point.interval.0, point.interval.1])),
    ) else {
        return Ok(None);
    };
    let title = "Explained variance against L0";
    let svg = picture(SIZE, |area| {
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(60)
            // Room on the right for the legend, which would hide points elsewhere.
            .build_cartesian_2d(l0.0..l0.1 + 0.4 * (l0.1 - l0.0), ev.0..ev.1)?;
        chart
            .configure_mesh()
            .x_desc("L0, active latents per token")
            .y_desc("EV")
            .light_line_style(WHITE)
            .bold_line_style(BLACK.mix(0.1))
            .draw()?;
        for point in &points {
            let colour = colour_of(run, &point.mode.sae);
            let is_native = point.mode.threshold == "native";
            // Wide enough to be seen around a filled point in the same place.
            let size = if point.mode.view == "gated" { 7 } else { 4 } + if is_native { 0 } else { 2 };
            let style = if is_native { colour.filled() } else { colour.stroke_width(2) };
            let interval = vec![(point.l0, point.interval.0), (point.l0, point.interval.1)];
            chart.draw_series([PathElement::new(interval, colour.mix(0.5))])?;
            chart
                .draw_series([Circle::new((point.l0, point.ev), size, style)])?
                .label(format!("{}, {}", markdown::label(&point.mode), point.mode.threshold))
                .legend(move |(x, y)| Circle::new((x + 10, y), size, style));
        }
        legend(&mut chart, SeriesLabelPosition::UpperRight)
    })?;
    Ok(Some(Plot { path: "ev-l0.svg".into(), title: title.into(), svg }))
}

/// How many latents fire how often, of every SAE read flat with its native threshold.
fn density(run: &Run) -> Result<Option<Plot>> {
    let bins = |sae: &TrainedSae| -> Vec<(f64, f64)> {
        let mine = run.density.iter().filter(|bin| {
            bin.sae == sae.config.name && bin.view == "flat" && bin.threshold == "native" && bin.level == "all"
        });
        mine.flat_map(|bin| [bin.log10_low, bin.log10_high].map(|x| (x, bin.n_latents as f64))).collect()
    };
    let lines: Vec<_> =
        run.one_a_family().map(|sae| (&sae.config.name, bins(sae))).filter(|(_, l)| !l.is_empty()).collect();
    let points = lines.iter().flat_map(|(_, line)| line.iter().filter(|(_, n_latents)| *n_latents > 0.0));
    let (Some(rates), Some(counts)) = (range(points.clone().map(|(x, _)| *x)), range(points.map(|(_, y)| *y))) else {
        return Ok(None);
    };
    let title = "How often latents fire (flat, native threshold)";
    let svg = picture(SIZE, |area| {
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(rates.0..rates.1, 0.0..counts.1)?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc("log10 of the firing rate")
            .y_desc("latents")
            .light_line_style(WHITE)
            .bold_line_style(BLACK.mix(0.1))
            .draw()?;
        for (name, line) in &lines {
            let style = colour_of(run, name).stroke_width(2);
            let shown = line.iter().copied().filter(|(x, _)| (rates.0..=rates.1).contains(x));
            chart
                .draw_series(LineSeries::new(shown, style))?
                .label(name.as_str())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
        }
        legend(&mut chart, SeriesLabelPosition::UpperLeft)
    })?;
    Ok(Some(Plot { path: "density.svg".into(), title: title.into(), svg }))
}

fn fvu(run: &Run) -> Result<Option<Plot>> {
    let lines = run.one_a_family().map(|sae| {
        let points = sae.curve.iter().map(|row| (row.tokens as f64, row.fvu)).collect();
        (sae.config.name.clone(), colour_of(run, &sae.config.name), points)
    });
    lines_over_tokens("fvu.svg", "FVU of the batch during training", "FVU, log scale", lines.collect())
}

/// A part of the loss: its name and its value in a row of the curve.
type Part = (&'static str, fn(&CurveRow) -> f64);

const PARTS: [Part; 8] = [
    ("loss", |row| row.loss),
    ("mse", |row| row.mse),
    ("mse of prefixes", |row| row.mse_prefixes),
    ("l1", |row| row.l1),
    ("aux", |row| row.aux),
    ("mi", |row| row.mi),
    ("coverage", |row| row.coverage),
    ("geometry", |row| row.geometry),
];

/// The parts that were ever positive: a logarithmic axis has no place for the others.
fn loss(sae: &TrainedSae) -> Result<Option<Plot>> {
    let lines = PARTS.iter().zip(COLOURS.iter().cycle()).map(|((name, part), colour)| {
        let points = sae.curve.iter().map(|row| (row.tokens as f64, part(row))).collect();
        ((*name).to_owned(), *colour, points)
    });
    let name = &sae.config.name;
    let title = format!("Loss of {name} and its parts");
    lines_over_tokens(&format!("loss-{name}.svg"), &title, "mean per token, log scale", lines.collect())
}

type Line = (String, RGBColor, Vec<(f64, f64)>);

/// Lines over tokens, y logarithmic. `None` where no line has a positive point.
fn lines_over_tokens(path: &str, title: &str, y: &str, lines: Vec<Line>) -> Result<Option<Plot>> {
    let positive = |(name, colour, points): Line| {
        let points: Vec<_> = points.into_iter().filter(|(_, y)| *y > 0.0 && y.is_finite()).collect();
        (!points.is_empty()).then_some((name, colour, points))
    };
    let lines: Vec<Line> = lines.into_iter().filter_map(positive).collect();
    let tokens = range(lines.iter().flat_map(|(_, _, points)| points.iter().map(|(x, _)| *x)));
    let exponents = range(lines.iter().flat_map(|(_, _, points)| points.iter().map(|(_, y)| y.log10())));
    let (Some((_, last)), Some((low, high))) = (tokens, exponents) else { return Ok(None) };
    let svg = picture(SIZE, |area| {
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..last, (10f64.powf(low)..10f64.powf(high)).log_scale())?;
        chart
            .configure_mesh()
            .x_desc("tokens")
            .y_desc(y)
            .light_line_style(WHITE)
            .bold_line_style(BLACK.mix(0.1))
            .x_label_formatter(&tokens_in_words)
            .y_label_formatter(&short)
            .draw()?;
        for (name, colour, points) in &lines {
            let style = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(points.iter().copied(), style))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
        }
        legend(&mut chart, SeriesLabelPosition::UpperRight)
    })?;
    Ok(Some(Plot { path: path.into(), title: title.into(), svg }))
}

pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub(crate) type DrawResult<T> = std::result::Result<T, Box<dyn std::error::Error>>;

pub(crate) fn picture(size: (u32, u32), draw: impl FnOnce(&Area) -> DrawResult<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let drawn = area.fill(&WHITE).map_err(Into::into).and_then(|()| draw(&area));
        drawn.and_then(|()| Ok(area.present()?)).map_err(|error| anyhow!("cannot draw: {error}"))?;
    }
    Ok(svg)
}

pub(crate) fn legend<'a, C>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, C>,
    place: SeriesLabelPosition,
) -> DrawResult<()>
where
    C: CoordTranslate,
{
    let mut labels = chart.configure_series_labels();
    labels.position(place).background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.2)).draw()?;
    Ok(())
}

fn colour_of(run: &Run, sae: &str) -> RGBColor {
    let family = run.sae(sae).map(|sae| sae.config.family());
    let place = run.one_a_family().position(|candidate| Some(candidate.config.family()) == family).unwrap_or(0);
    COLOURS[place % COLOURS.len()]
}

/// The least and the largest value, with a margin so that no point lies on the frame. `None` for no values.
pub(crate) fn range(values: impl Iterator<Item = f64> + Clone) -> Option<(f64, f64)> {
    let low = values.clone().reduce(f64::min)?;
    let high = values.reduce(f64::max)?;
    let margin = ((high - low) * 0.08).max(1e-3 * high.abs().max(1e-6));
    Some((low - margin, high + margin))
}

/// At most four significant digits: a logarithmic axis computes its marks, and 0.3 comes out as 0.30000000000000004.
fn short(value: &f64) -> String {
    let digits = (3 - value.abs().log10().floor() as i32).clamp(0, 9) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
}

fn tokens_in_words(tokens: &f64) -> String {
    match *tokens {
        t if t >= 1e6 => format!("{:.1} M", t / 1e6),
        t if t >= 1e3 => format!("{:.0} k", t / 1e3),
        t => format!("{t:.0}"),
    }
}
