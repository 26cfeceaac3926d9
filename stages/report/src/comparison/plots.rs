//! Pictures of the comparison: each headline figure against the L0 that was measured, a line a family.

use anyhow::Result;
use plotters::prelude::*;

use super::{Comparison, Group};
use crate::figures::Name;
use crate::plots::{COLOURS, Plot, legend, picture, range};

const PICTURES: [(&str, &str); 4] =
    [("f1", "F1"), ("edge_f1", "Edge F1"), ("absorption", "Absorption"), ("ev", "Explained variance")];

const SIZE: (u32, u32) = (860, 480);
/// Of a line in the legend, and of what stands above and below it.
const LEGEND: (u32, u32) = (20, 120);

/// A family in one view: a point each k, in order of L0.
struct Line {
    label: String,
    colour: RGBColor,
    is_gated: bool,
    /// Families beyond the last colour are told apart by their marks.
    mark: usize,
    /// L0, the mean and its interval.
    points: Vec<(f64, f64, (f64, f64))>,
}

/// Errors: none that data can cause; plotters' own are passed on.
pub(crate) fn draw(comparison: &Comparison) -> Result<Vec<Plot>> {
    let mut thresholds: Vec<String> = comparison.settings().into_iter().map(|(_, threshold)| threshold).collect();
    thresholds.sort();
    thresholds.dedup();
    let mut plots = Vec::new();
    for (metric, title) in PICTURES {
        for threshold in &thresholds {
            plots.extend(against_l0(comparison, metric, title, threshold)?);
        }
    }
    Ok(plots)
}

/// `None` where nothing has been measured.
fn against_l0(comparison: &Comparison, metric: &str, title: &str, threshold: &str) -> Result<Option<Plot>> {
    let lines = lines(comparison, metric, threshold);
    let points = || lines.iter().flat_map(|line| &line.points);
    let (Some(l0), Some(values)) =
        (range(points().map(|(l0, ..)| *l0)), range(points().flat_map(|(_, _, (low, high))| [*low, *high])))
    else {
        return Ok(None);
    };
    let caption = format!("{title} against L0 ({threshold} threshold)");
    let height = SIZE.1.max(LEGEND.0 * lines.len() as u32 + LEGEND.1);
    let svg = picture((SIZE.0, height), |area| {
        let mut chart = ChartBuilder::on(area)
            .caption(&caption, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(60)
            // Room on the right for the legend, which would hide points elsewhere.
            .build_cartesian_2d(l0.0..l0.1 + 0.5 * (l0.1 - l0.0), values.0..values.1)?;
        chart
            .configure_mesh()
            .x_desc("L0, active latents per token")
            .y_desc(title)
            .light_line_style(WHITE)
            .bold_line_style(BLACK.mix(0.1))
            .draw()?;
        for line in &lines {
            let Line { colour, is_gated, mark, .. } = *line;
            for &(l0, _, (low, high)) in &line.points {
                chart.draw_series([PathElement::new([(l0, low), (l0, high)], colour.mix(0.5))])?;
            }
            let means: Vec<(f64, f64)> = line.points.iter().map(|&(l0, mean, _)| (l0, mean)).collect();
            chart.draw_series([PathElement::new(means.clone(), colour.stroke_width(2))])?;
            // Larger, and hollow, where gated; another mark in the second and third round of colours.
            let size = if is_gated { 7 } else { 4 };
            let style = if is_gated { colour.stroke_width(2) } else { colour.filled() };
            macro_rules! draw_marks {
                ($mark:ident, $style:expr) => {
                    chart
                        .draw_series(means.into_iter().map(|at| $mark::new(at, size, $style)))?
                        .label(line.label.as_str())
                        .legend(move |(x, y)| $mark::new((x + 10, y), size, $style))
                };
            }
            match mark {
                0 => draw_marks!(Circle, style),
                1 => draw_marks!(TriangleMarker, style),
                _ => draw_marks!(Cross, colour.stroke_width(2)),
            };
        }
        legend(&mut chart, SeriesLabelPosition::UpperRight)
    })?;
    Ok(Some(Plot { path: format!("compare-{}-{threshold}.svg", metric.replace('_', "-")), title: caption, svg }))
}

fn lines(comparison: &Comparison, metric: &str, threshold: &str) -> Vec<Line> {
    let mut families: Vec<&str> = Vec::new();
    let mut lines: Vec<Line> = Vec::new();
    for group in comparison.groups.iter().filter(|group| group.threshold == threshold) {
        if !families.contains(&group.family.as_str()) {
            families.push(&group.family);
        }
        let place = families.iter().position(|family| *family == group.family).unwrap_or_default();
        let Some(point) = point(group, metric) else { continue };
        let label = group.label();
        match lines.iter_mut().find(|line| line.label == label) {
            Some(line) => line.points.push(point),
            None => lines.push(Line {
                label,
                colour: COLOURS[place % COLOURS.len()],
                is_gated: group.view == "gated",
                mark: place / COLOURS.len(),
                points: vec![point],
            }),
        }
    }
    lines.iter_mut().for_each(|line| line.points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    lines
}

fn point(group: &Group, metric: &str) -> Option<(f64, f64, (f64, f64))> {
    let l0 = group.get(&Name::new("l0", "all"))?.estimate.mean;
    let figure = group.get(&Name::new(metric, "all"))?.estimate;
    Some((l0, figure.mean, (figure.ci_low.unwrap_or(figure.mean), figure.ci_high.unwrap_or(figure.mean))))
}
