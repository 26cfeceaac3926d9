//! What the SAEs of a run have recovered, on the held-out split: reconstruction, planted features where there are any,
//! and the edges of every tree (science.md §6 and §7).
//!
//! Each SAE is measured by a task of its own, under `recover/NAME`, so that another SAE in the run costs one SAE and a run
//! that was stopped goes on where it was. The tables of all of them are then put together.

mod assignment;
mod concepts;
mod controls;
mod cosine;
mod documents;
mod edges;
mod evaluate;
mod firing;
mod glosses;
#[cfg(test)]
mod golden;
mod hedging;
mod heldout;
mod hierarchy;
mod independence;
mod information;
mod magnitude;
mod matching;
mod measure;
mod oracle;
#[cfg(test)]
mod planted;
mod reconstruction;
mod resampling;
mod rows;
mod significance;
mod stability;
mod summary;
#[cfg(test)]
mod tests;
mod tree;
mod true_tree;
mod truth;

use std::cell::OnceCell;
use std::process::ExitCode;

use anyhow::{Context, Result};
use artifact::config::TextSource;
use artifact::stage::{Input, Stage, Task, main_of};
use artifact::tables::{
    DensityBin, Edge, Latent, MeasuredTreeNode, Metric, Row, Stability, TableWriter, read_rows, write_rows,
};
use hsae::TrainedSae;
use serde_json::{Value, json};

use evaluate::Setting;
use glosses::Glosses;
use heldout::Heldout;
use rows::Tables;
use truth::Truth;

/// Rises when this stage computes something else from the same inputs and configuration.
const RECIPE: u32 = 5;

fn main() -> ExitCode {
    main_of("recover", "Measures what SAEs have recovered: reconstruction, planted features, trees", run)
}

fn run(stage: &Stage) -> Result<()> {
    let harvest = stage.input("harvest")?;
    let train = stage.input("train")?;
    let names = sae_names(&train)?;
    let wordnet = wordnet(stage)?;
    let setting = OnceCell::new();
    let mut failure = None;
    let mut progress = stage.log.progress(names.len() as u64, "SAEs");
    for (i, name) in names.iter().enumerate() {
        progress.set(i as u64, || name.clone());
        // An SAE that cannot be measured does not stop the others; the first failure is the stage's error.
        if let Err(error) = measure(stage, &harvest, wordnet.as_ref(), name, &setting) {
            stage.log.line(format!("{name}: not measured, other SAEs go on: {error:#}"));
            failure.get_or_insert(error);
        }
    }
    if let Some(error) = failure {
        return Err(error);
    }
    // Without a setting nothing was measured, and there is no speed to tell of.
    setting.get().map(|_| progress.finish(names.len() as u64));
    let pairs = compare_seeds(stage, &names)?;
    merge(stage, &harvest, &names, &pairs)
}

/// `recover/NAME`: one SAE in all its modes. What all SAEs share is read when it is first needed.
fn measure(
    stage: &Stage,
    harvest: &Input,
    wordnet: Option<&Input>,
    name: &str,
    setting: &OnceCell<Setting>,
) -> Result<()> {
    let input = stage.input(&format!("train/{name}"))?;
    let config = json!({"recover": stage.pipeline.recover});
    let inputs: Vec<&Input> = [harvest, &input].into_iter().chain(wordnet).collect();
    let Some(mut task) = stage.task(&format!("recover/{name}"), RECIPE, config, &inputs)? else {
        return Ok(());
    };
    let setting = match setting.get() {
        Some(setting) => setting,
        None => {
            let heldout = Heldout::read(harvest)?;
            let truth = Truth::read(harvest, &heldout)?;
            let (config, seed) = (&stage.pipeline.recover, stage.pipeline.seed);
            let glosses = match wordnet {
                Some(wordnet) => Glosses::read(harvest, wordnet, config.wordnet_min_glosses, seed)?,
                None => None,
            };
            let new = Setting::new(config, seed, heldout, truth, glosses)?;
            setting.get_or_init(|| new)
        }
    };
    let sae = TrainedSae::load(&input)?;
    let tables = setting.measure(&sae, &sae.modes())?;
    publish(&mut task, &tables)?;
    task.finish()?;
    stage.log.line(format!("{name}: {} edges in {} modes measured", tables.edges.len(), sae.modes().len()));
    Ok(())
}

/// WordNet's own tree, where its glosses are among the texts and are to be looked at.
fn wordnet(stage: &Stage) -> Result<Option<Input>> {
    let Some(model) = &stage.pipeline.source.model else { return Ok(None) };
    let is_read = model.texts.iter().any(|text| text.from == TextSource::Wordnet);
    let is_wanted = is_read && stage.pipeline.recover.wordnet_min_glosses > 0;
    is_wanted.then(|| stage.source_input(wordnet::SOURCE)).transpose()
}

fn publish(task: &mut Task, tables: &Tables) -> Result<()> {
    task.write("recovery.parquet", |file| write_rows(file, &tables.metrics))?;
    task.write("edges.parquet", |file| write_rows(file, &tables.edges))?;
    task.write("latents.parquet", |file| write_rows(file, &tables.latents))?;
    task.write("trees.parquet", |file| write_rows(file, &tables.trees))?;
    task.write("density.parquet", |file| write_rows(file, &tables.density))?;
    task.write_json("summary.json", &json!({"notes": summary::notes(), "trees": tables.summary}))
}

/// `recover/A+B` for every two SAEs that differ in their seed alone. Returns the names of these folders.
fn compare_seeds(stage: &Stage, names: &[String]) -> Result<Vec<String>> {
    let mut saes = Vec::new();
    for name in names {
        let config = stage.pipeline.train.saes.iter().find(|sae| sae.name == *name);
        let config = config.with_context(|| format!("train/saes.json: the pipeline has no SAE {name}"))?;
        saes.push((config.clone(), config.seed.unwrap_or(stage.pipeline.seed)));
    }
    let mut folders = Vec::new();
    for (a, b) in stability::pairs(&saes)? {
        let pair = [&names[a], &names[b]];
        let folder = format!("{}+{}", pair[0], pair[1]);
        let trained = all_there(stage, pair.map(|name| format!("train/{name}")))?;
        let measured = all_there(stage, pair.map(|name| format!("recover/{name}")))?;
        let inputs: Vec<&Input> = trained.iter().chain(&measured).collect();
        let config = json!({"match_cosine": stage.pipeline.recover.match_cosine});
        let task = stage.task(&format!("recover/{folder}"), RECIPE, config, &inputs)?;
        folders.push(folder);
        let (Some(mut task), [train_a, train_b], [a, b]) = (task, trained.as_slice(), measured.as_slice()) else {
            continue;
        };
        let (sae, other) = (TrainedSae::load(train_a)?, TrainedSae::load(train_b)?);
        let trees = |input: &Input| read_rows::<MeasuredTreeNode>(&input.file("trees.parquet")?);
        let (trees, of_other) = (trees(a)?, trees(b)?);
        let rows = stability::of_pair([&sae, &other], [&trees, &of_other], stage.pipeline.recover.match_cosine)?;
        task.write("stability.parquet", |file| write_rows(file, &rows))?;
        task.finish()?;
        stage.log.line(format!("{} and {}: latents and trees compared", pair[0], pair[1]));
    }
    Ok(folders)
}

/// Folders that have been published. Asked for the status, it may be that some are not there yet.
fn all_there(stage: &Stage, folders: impl IntoIterator<Item = String>) -> Result<Vec<Input>> {
    let inputs = folders.into_iter().map(|folder| stage.input(&folder));
    if stage.args.status { Ok(inputs.flatten().collect()) } else { inputs.collect() }
}

/// The tables of all SAEs, and of all pairs of them, one after another in the order of the pipeline.
fn merge(stage: &Stage, harvest: &Input, names: &[String], pairs: &[String]) -> Result<()> {
    let parts = all_there(stage, names.iter().map(|name| format!("recover/{name}")))?;
    let pairs = all_there(stage, pairs.iter().map(|pair| format!("recover/{pair}")))?;
    let inputs: Vec<&Input> = [harvest].into_iter().chain(&parts).chain(&pairs).collect();
    // Of the list of SAEs, what is read: their families are the report's business.
    let config = json!({"recover": stage.pipeline.recover, "saes": names});
    let Some(mut task) = stage.task("recover", RECIPE, config, &inputs)? else { return Ok(()) };
    append::<Metric>(&mut task, "recovery.parquet", &parts)?;
    append::<Edge>(&mut task, "edges.parquet", &parts)?;
    append::<Latent>(&mut task, "latents.parquet", &parts)?;
    append::<MeasuredTreeNode>(&mut task, "trees.parquet", &parts)?;
    append::<DensityBin>(&mut task, "density.parquet", &parts)?;
    append::<Stability>(&mut task, "stability.parquet", &pairs)?;
    let mut trees = Vec::new();
    for part in &parts {
        let path = part.file("summary.json")?;
        let mut summary = json_of(&path)?;
        let of_part = summary["trees"].as_array_mut();
        trees.append(of_part.with_context(|| format!("{}: has no list `trees`", path.display()))?);
    }
    task.write_json("summary.json", &json!({"notes": summary::notes(), "trees": trees}))?;
    task.finish()?;
    stage.log.line(format!("the tables of {} SAEs put together", parts.len()));
    Ok(())
}

fn append<R: Row>(task: &mut Task, name: &str, parts: &[Input]) -> Result<()> {
    task.write(name, |file| {
        let mut table = TableWriter::<_, R>::new(file)?;
        for part in parts {
            table.write(&read_rows(&part.file(name)?)?)?;
        }
        table.finish()
    })
}

/// The names of all SAEs, in the order of the pipeline.
fn sae_names(train: &Input) -> Result<Vec<String>> {
    let path = train.file("saes.json")?;
    let saes = json_of(&path)?;
    let saes = saes.as_array().with_context(|| format!("{}: is no list", path.display()))?;
    let name = |sae: &Value| sae["name"].as_str().map(str::to_owned);
    saes.iter().map(|sae| name(sae).with_context(|| format!("{}: an SAE has no `name`", path.display()))).collect()
}

fn json_of(path: &std::path::Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}
