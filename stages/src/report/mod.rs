//! `report`: one page for people, from everything that is given to it.
//!
//! Inputs are named freely; each becomes a heading. What an input is follows from its type: metrics and
//! explanation scores become tables and charts, answers of queries tables, training logs curves, saliency maps a gallery over the
//! images, masks and labels that are given beside them. The axes of a fan-in (`model=*`) become columns.
//!
//! The page says no time, host or path: equal inputs in equal studies give equal bytes.

mod answers_by_modality;
mod captions;
mod ceilings;
mod charts;
mod collect;
mod columns;
mod data;
mod facts;
mod figures;
mod gallery;
mod learning;
mod page;
mod picture;
mod pictures;
mod predicted;
mod printed;
mod provenance;
mod queries;
mod saliency;
mod samples;
mod scores;
mod seeds;
mod sheet;
mod strip;
mod tables;
#[cfg(test)]
mod tests;
mod vega_lite;
mod words;

use std::collections::{BTreeMap, BTreeSet};

use maud::{Markup, html};
use pipe_engine::{
    ArtifactType, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem,
    StageContext, StageError, StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::answers_by_modality::answers_by_modality;
use self::charts::{Axes, Curve, Scale, bars, chart};
use self::collect::{Collected, GivenTable};
use self::data::{Piece, consolidate, parquet};
use self::figures::{Group, group, headline};
use self::gallery::{Maps, gallery};
use self::page::{Section, page};
pub(crate) use self::picture::colour;
use self::pictures::Pictures;
use self::predicted::Charts;
pub(crate) use self::printed::sheets;
use self::scores::Cascade;
pub(crate) use self::sheet::Sheet;
use self::tables::{across_datasets, answers, table};
use self::words::{metric_name, title};
use crate::artifact;

/// Parameters of `report`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ReportParams {
    /// The heading of the page.
    pub(crate) title: String,
    /// A sentence or two below the heading: what was asked.
    pub(crate) description: String,
    /// The number of samples shown per input of saliency maps.
    #[schemars(range(min = 0, max = 200))]
    pub(crate) max_gallery: i64,
    /// The number of samples that can be browsed per input of predictions.
    #[schemars(range(min = 0, max = 5000))]
    pub(crate) max_samples: i64,
    /// Whether the pictures of saliency maps are also written as sheets for print, under `sheets/`: PNG files of at most
    /// eight samples each, and a table that says what stands where.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) sheets: bool,
    /// Pictures are embedded up to this number of bytes in total; the others lie beside the page.
    #[schemars(range(min = 0))]
    pub(crate) embed_limit_bytes: i64,
}

impl Default for ReportParams {
    fn default() -> Self {
        Self {
            title: "Report".to_owned(),
            description: String::new(),
            max_gallery: 8,
            max_samples: 200,
            sheets: false,
            embed_limit_bytes: 15_000_000,
        }
    }
}

/// The stage kind `report`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report;

const ACCEPTS: &[ArtifactType] = &[
    artifact::METRICS,
    artifact::PREDICTIONS,
    artifact::ATTRIBUTION_SCORES,
    artifact::SALIENCY,
    artifact::WORD_SALIENCY,
    artifact::IMAGES,
    artifact::VOLUMES,
    artifact::LABELS,
    artifact::MASKS,
    artifact::TRAINING_LOG,
    artifact::EXPECTED,
    artifact::CHECKPOINT,
    artifact::RANKS,
    artifact::CHECKS,
    artifact::QUERY,
];

impl StageKind for Report {
    type Params = ReportParams;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "report",
            summary: "Writes one page with tables, charts and maps of everything that is given to it",
            implementation: 10,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::One,
            inputs: Vec::new(),
            free_inputs: Some(InputPort::fan_in("", ACCEPTS, "Results to show; the name becomes a heading")),
        }
    }

    fn shows_ancestry(&self) -> bool {
        true
    }

    fn outputs(&self, _params: &ReportParams) -> Vec<OutputPort> {
        vec![OutputPort::new("page", artifact::REPORT, "`index.html` and the tables behind it under `data/`")]
    }

    fn check(&self, params: &ReportParams) -> Vec<ParameterProblem> {
        let problem = |path: &str, message: String, help: &str| ParameterProblem {
            path: path.to_owned(),
            message,
            help: Some(help.to_owned()),
        };
        let mut problems = Vec::new();
        if !(0..=200).contains(&params.max_gallery) {
            let message = format!("{} samples cannot be shown", params.max_gallery);
            problems.push(problem("max_gallery", message, "from 0 to 200; the default is 8"));
        }
        if params.embed_limit_bytes < 0 {
            let message = format!("{} bytes cannot be embedded", params.embed_limit_bytes);
            problems.push(problem("embed_limit_bytes", message, "0 embeds nothing; the default is 15000000"));
        }
        problems
    }

    fn run(&self, params: &ReportParams, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let mut collected = Collected::read(context)?;
        ceilings::set_ceilings(&mut collected);
        let mut pictures = Pictures::new(params.embed_limit_bytes.max(0) as u64).with_sheets(params.sheets);
        let charts = Charts::read(&collected)?;
        let files = data_files(&collected, &charts, context.provenance())?;
        let sections = sections(params, &collected, &charts, &files, &mut pictures, context)?;
        let html = page(&params.title, &params.description, &sections);
        context.check_cancelled()?;
        let output = context.output("page")?;
        let mut all = vec![("index.html".to_owned(), html.into_bytes())];
        all.extend(files.into_iter().map(|file| (file.path, file.bytes)));
        all.extend(pictures.into_files("sheets/"));
        for (path, bytes) in all {
            let path = output.path(&path)?;
            std::fs::write(&path, bytes)
                .map_err(|error| StageError::environment(format!("writing `{}`", path.display()), error))?;
        }
        Ok(())
    }
}

/// A table behind the page.
struct DataFile {
    path: String,
    what: &'static str,
    rows: usize,
    bytes: Vec<u8>,
}

fn data_files(collected: &Collected, charts: &Charts, provenance: &str) -> Result<Vec<DataFile>, StageError> {
    let mut files = Vec::new();
    for (path, what, tables) in [
        ("data/metrics.parquet", "all figures with their intervals", &collected.metric_tables),
        (
            "data/attribution_scores.parquet",
            "scores of explanations, a row per sample",
            &collected.score_tables,
        ),
        ("data/training_log.parquet", "learning curves", &collected.logs),
        ("data/expected.parquet", "planted truths", &collected.expected),
    ] {
        let pieces: Vec<Piece<'_>> = tables.iter().map(|table| piece(collected, table)).collect();
        if let Some(batch) = consolidate(&pieces)? {
            let bytes = parquet(&batch, provenance)?;
            files.push(DataFile { path: path.to_owned(), what, rows: batch.num_rows(), bytes });
        }
    }
    if let Some(points) = charts.table()? {
        let (path, what) =
            ("data/curves.parquet".to_owned(), "points of the curves of predictions and ranks");
        let bytes = parquet(&points, provenance)?;
        files.push(DataFile { path, what, rows: points.num_rows(), bytes });
    }
    Ok(files)
}

fn piece<'a>(collected: &'a Collected, table: &'a GivenTable) -> Piece<'a> {
    let given = &collected.given[table.given];
    Piece { input: &given.input, axes: &given.axes, batch: &table.batch }
}

fn sections(
    params: &ReportParams,
    collected: &Collected,
    charts: &Charts,
    files: &[DataFile],
    pictures: &mut Pictures,
    context: &StageContext<'_>,
) -> Result<Vec<Section>, StageError> {
    let groups = group(&collected.metrics, false);
    let classes = group(&collected.metrics, true);
    let (bias, performance): (Vec<Group>, Vec<Group>) = groups.into_iter().partition(Group::is_about_bias);
    let scores = group(&collected.scores, false);
    let mut transparency: Vec<Markup> = scores.iter().map(|group| table(group, false)).collect();
    if !transparency.is_empty() {
        transparency.insert(0, html! { p .note { (SCORES_NOTE) } });
    }
    transparency.extend(cascades(collected));
    if params.max_gallery > 0 {
        transparency.extend(galleries(params, collected, pictures, context)?);
        for given in collected.of_type(artifact::WORD_SALIENCY) {
            transparency.push(captions::captions(given, params.max_gallery as usize)?);
        }
    }
    let samples = samples::samples(collected, params.max_samples as usize, pictures)?;
    let section = |id, title, content| Section { id, title, content };
    Ok(vec![
        section("answer", "Answer", vec![answers(&performance, &bias, &scores, &collected.metrics)]),
        section("performance", "Performance", performance_section(&performance, &classes, charts)),
        section("learning", "Learning", learning::learning(collected)),
        section("bias", "Bias: what one modality alone reaches, and for whom", bias_section(&bias)),
        section("transparency", "Transparency: what the explanations point at", transparency),
        section("samples", "Samples: what each model said", samples),
        section("expected", "Planted truths", provenance::expected(collected)),
        section("queries", "Queries: what was asked of the tables", queries::queries(collected)?),
        section("facts", "Data sets: what there is, and what splits share", facts::facts(collected)?),
        section("data", "Data behind this page", vec![data_links(files)]),
        section("provenance", "Provenance", provenance::provenance(context.ancestry(), collected)),
        section("limits", "Limits", vec![limits()]),
    ])
}

const SCORES_NOTE: &str = "Means over the explained samples with 95 % intervals, of ratios with heavy tails medians; \
    where it is known, apart for the samples that the model classifies right. Read the pointing game and \
    the relevance mass beside their controls: a random map, a centre map and the same method on a model with random \
    weights. Only the distance from these says something about the model.";

fn performance_section(groups: &[Group], classes: &[Group], charts: &Charts) -> Vec<Markup> {
    let mut parts = Vec::new();
    let mut by_input: BTreeMap<(&str, Option<&str>), Vec<&Group>> = BTreeMap::new();
    for group in groups {
        by_input.entry((&group.input, group.task.as_deref())).or_default().push(group);
    }
    for ((input, _), groups) in by_input {
        parts.push(html! { h3 { (title(input)) } });
        let figures = || groups.iter().flat_map(|group| &group.rows).flat_map(|row| row.figures.values());
        if groups.len() > 1
            && groups.iter().all(|group| group.dataset.is_some())
            && let Some(metric) = headline(figures())
        {
            parts.push(across_datasets(&groups, &metric));
        }
        for group in groups {
            if let Some(metric) = headline(group.rows.iter().flat_map(|row| row.figures.values())) {
                parts.push(bars(group, &metric));
            }
            parts.push(table(group, true));
        }
    }
    parts.extend(charts.markup());
    for group in classes {
        parts.push(html! {
            details {
                summary { "Per class: " (tables::heading(group)) }
                (table(group, false))
            }
        });
    }
    parts
}

/// What drawing layer after layer anew does to the maps, a chart per input and metric.
fn cascades(collected: &Collected) -> Vec<Markup> {
    let mut charts: BTreeMap<(&str, &str, &str), Vec<&Cascade>> = BTreeMap::new();
    for (input, cascade) in &collected.cascades {
        charts.entry((input, &cascade.metric, &cascade.order)).or_default().push(cascade);
    }
    let chart_of = |((input, metric, order), own): ((&str, &str, &str), Vec<&Cascade>)| {
        let (which, x) = match order {
            "bottom_up" => ("from the input on", "layers drawn anew"),
            "top_down" => ("from the output back", "layers drawn anew"),
            "independent" => ("one at a time, counted from the input", "the layer drawn anew"),
            _ => ("step by step", "steps"),
        };
        let title = format!(
            "{}: {}, the likeness of maps to those of the model as it is while layers are drawn anew, {which}",
            title(input),
            metric_name(metric)
        );
        let names: BTreeSet<&String> = own.iter().flat_map(|one| one.keys.keys()).collect();
        let differs =
            |name: &&String| own.iter().map(|one| one.keys.get(*name)).collect::<BTreeSet<_>>().len() > 1;
        let differing: Vec<&String> = names.into_iter().filter(differs).collect();
        let curve = |one: &&Cascade| {
            let values: Vec<&str> =
                differing.iter().filter_map(|name| one.keys.get(*name)).map(String::as_str).collect();
            let own_name = || one.keys.get("method").cloned().unwrap_or_else(|| metric_name(metric));
            one.curve(if values.is_empty() { own_name() } else { values.join(" \u{b7} ") })
        };
        let curves: Vec<Curve> = own.iter().map(curve).collect();
        chart(&Axes { title, x, scale: Scale::FreeToTheEnd }, &curves)
    };
    charts.into_iter().map(chart_of).collect()
}

fn bias_section(groups: &[Group]) -> Vec<Markup> {
    let mut parts = Vec::new();
    for group in groups {
        parts.push(html! { h3 { (tables::heading(group)) } });
        if let Some(metric) = headline(group.rows.iter().flat_map(|row| row.figures.values())) {
            parts.push(bars(group, &metric));
        }
        parts.extend(answers_by_modality(group));
        let all = table(group, false);
        parts.push(match group.rows.len() {
            rows if rows > LONG => html! {
                details {
                    summary { "All figures: " (tables::heading(group)) ", " (rows) " rows" }
                    (all)
                }
            },
            _ => all,
        });
    }
    parts
}

/// A table of more rows than this is folded where a chart says the most important.
const LONG: usize = 8;

fn galleries(
    params: &ReportParams,
    collected: &Collected,
    pictures: &mut Pictures,
    context: &StageContext<'_>,
) -> Result<Vec<Markup>, StageError> {
    let mut by_input: BTreeMap<&str, Vec<Maps<'_>>> = BTreeMap::new();
    for given in collected.of_type(artifact::SALIENCY) {
        let maps = Maps { input: &given.input, axes: &given.axes, artifact: &given.artifact };
        by_input.entry(&given.input).or_default().push(maps);
    }
    let total = by_input.len() as u64;
    let mut parts = Vec::new();
    for (done, maps) in (0..).zip(by_input.values()) {
        context.check_cancelled()?;
        context.progress(done, total, "galleries", &[]);
        parts.push(gallery(maps, collected, params.max_gallery as usize, pictures)?);
    }
    Ok(parts)
}

fn data_links(files: &[DataFile]) -> Markup {
    html! {
        @if files.is_empty() {
            p { "No tables were given." }
        } @else {
            ul {
                @for file in files {
                    li {
                        a href=(file.path) { (file.path) } ": " (file.what) ", " (file.rows)
                        @if file.rows == 1 { " row" } @else { " rows" }
                    }
                }
            }
        }
    }
}

fn limits() -> Markup {
    html! {
        ul {
            li { "Figures hold for the data sets, splits and seeds that they name, and for nothing else." }
            li {
                "Intervals cover the sampling of the test set, not the choice of seeds, hyper-parameters or \
                 training data. That two intervals overlap does not show that two models are equal."
            }
            li {
                "An explanation that points at the lesion shows where the score is sensitive, not that the model \
                 reasons as a physician does."
            }
            li { "The licences of the data sets hold for the pictures on this page too." }
        }
    }
}
