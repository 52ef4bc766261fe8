//! The stage kind `compare.saliency`: what one set of saliency maps shows that another does not. Between models,
//! before and after fine-tuning, between methods, or under corruption.

mod similarity;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pipe_engine::{
    Artifact, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, PortAxes, StageContext,
    StageError, StageKind,
};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::similarity::{Measure, common_grid, share};
use crate::artifact;
use crate::attribute::saliency::{About, SaliencyFile, SaliencyMap};
use crate::framing::Framing;
use crate::metrics::{Metric, write_metrics};
use crate::score::maps::{Maps, Subject};
use crate::statistics::{Estimate, Groups, bootstrap, mean};
use crate::table::{Column, Table, TableSchema, WriteOptions, read_columns, write};

/// Parameters of `compare.saliency`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Whether maps are compared by their absolute values: where they point, not whether it speaks for or against
    /// the class.
    pub absolute: bool,
    /// Decides the bootstrap.
    pub seed: i64,
}

/// Compares maps.
pub struct CompareSaliency;

impl StageKind for CompareSaliency {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "compare.saliency",
            summary: "how alike two sets of saliency maps are, and where they differ",
            implementation: 2,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::All,
            inputs: vec![
                // Their axes name what is compared.
                InputPort {
                    axes: PortAxes::Always,
                    ..InputPort::required("first", &[artifact::SALIENCY], "maps")
                },
                InputPort {
                    axes: PortAxes::Always,
                    ..InputPort::required("second", &[artifact::SALIENCY], "maps of the same images")
                },
                InputPort::optional(
                    "images",
                    &[artifact::IMAGES, artifact::VOLUMES],
                    "the images or volumes, for their groups",
                ),
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![
            OutputPort::new("metrics", artifact::METRICS, "mean similarities with their intervals"),
            OutputPort::new("similarities", artifact::SIMILARITIES, "the similarities of each image's maps"),
            OutputPort::new(
                "differences",
                artifact::SALIENCY,
                "first minus second, each divided by its absolute sum",
            ),
        ]
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let (first, second) = (maps(context, "first")?, maps(context, "second")?);
        let pairs = pairs(&first, &second)?;
        if first.of_volumes != second.of_volumes {
            let reason =
                "its maps are of volumes and those of `first` of flat images, or the other way round";
            return Err(StageError::input("second", reason));
        }
        let grid = common_grid(first.shape, second.shape);
        context.check_cancelled()?;
        let compared: Vec<Compared<'_>> = pairs
            .par_iter()
            .map(|pair| Compared::new(*pair, [first.shape, second.shape, grid], params))
            .collect();
        let groups = match context.optional_input("images") {
            Some(images) => groups(images, &compared)?,
            None => Groups::singles(compared.len()),
        };
        let provenance = context.provenance().to_owned();
        let names = Names::new(&first, &second);
        write_metrics(
            context.output("metrics")?,
            &metrics(&compared, &groups, &names, [&first, &second], params),
            &provenance,
        )?;
        let table = similarities(&compared);
        write(
            context.output("similarities")?,
            &TableSchema::similarities(),
            &table,
            WriteOptions::text(&provenance),
        )?;
        // Maps that lie elsewhere on their images have no common place there.
        let framing = first.framing.filter(|_| first.framing == second.framing);
        let slices = first.slices.clone().filter(|_| first.slices == second.slices);
        let seen = framing.into_iter().flat_map(Framing::entries);
        let seen = seen.chain(slices.map(|slices| ("volumes".to_owned(), slices))).collect();
        let shape = if first.of_volumes { &grid[..] } else { &grid[1..] };
        differences(&compared, shape, &names, seen, &provenance, params, context)
    }
}

fn maps(context: &StageContext<'_>, port: &str) -> Result<Maps, StageError> {
    Maps::read(context.inputs(port).first().ok_or_else(|| StageError::input(port, "it is missing"))?)
}

/// What both inputs are called.
struct Names {
    /// The method, or both.
    method: String,
    /// What tells the inputs apart.
    sides: [String; 2],
}

impl Names {
    fn new(first: &Maps, second: &Maps) -> Self {
        if first.method != second.method {
            let sides = [first.method.clone(), second.method.clone()];
            return Self { method: sides.join(" / "), sides };
        }
        let own = |one: &Maps, other: &Maps| -> Vec<String> {
            let differs = |(axis, value): &(&String, &String)| other.axes.get(*axis) != Some(*value);
            one.axes.iter().filter(differs).map(|(_, value)| value.clone()).collect()
        };
        let side =
            |axes: Vec<String>, name: &str| if axes.is_empty() { name.to_owned() } else { axes.join(" ") };
        let sides = [side(own(first, second), "first"), side(own(second, first), "second")];
        Self { method: first.method.clone(), sides }
    }
}

/// What is stored of an image in both inputs.
type MapOfSubject<'a> = (&'a Subject, &'a Result<Vec<f64>, String>);

/// The rows of the first input with those of the second of the same image; if images have several targets, of
/// the same target too.
///
/// # Errors
/// If the inputs share no image, or the second has two maps for one target.
fn pairs<'a>(first: &'a Maps, second: &'a Maps) -> Result<Vec<[MapOfSubject<'a>; 2]>, StageError> {
    let ids =
        |maps: &'a Maps| maps.rows.iter().map(|(subject, _)| subject.id.as_str()).collect::<BTreeSet<_>>();
    let (of_first, of_second) = (ids(first), ids(second));
    let by_target = of_first.len() < first.rows.len() || of_second.len() < second.rows.len();
    fn key(subject: &Subject, by_target: bool) -> (&str, Option<&str>) {
        (subject.id.as_str(), subject.target.as_deref().filter(|_| by_target))
    }
    let mut by_key = BTreeMap::new();
    for (subject, map) in &second.rows {
        if by_key.insert(key(subject, by_target), (subject, map)).is_some() {
            let reason = format!("it has two maps of `{}` for one target", subject.id);
            return Err(StageError::input("second", reason));
        }
    }
    let pair = |(subject, map): &'a (Subject, Result<Vec<f64>, String>)| {
        by_key.get(&key(subject, by_target)).map(|other| [(subject, map), *other])
    };
    let pairs: Vec<_> = first.rows.iter().filter_map(pair).collect();
    let example = |ids: &BTreeSet<&str>| ids.first().map_or("none".to_owned(), |id| format!("`{id}`"));
    if pairs.is_empty() {
        let reason = format!(
            "it shares no image with `first`: it explains {} of them, such as {}, and `first` {}, such as {}",
            of_second.len(),
            example(&of_second),
            of_first.len(),
            example(&of_first)
        );
        return Err(StageError::input("second", reason));
    }
    Ok(pairs)
}

/// Two maps, compared.
struct Compared<'a> {
    subjects: [&'a Subject; 2],
    /// One per measure.
    values: Vec<Result<f64, String>>,
    difference: Result<Vec<f32>, String>,
}

impl<'a> Compared<'a> {
    /// `shapes` are those of the two maps and the one that they are compared at.
    fn new(pair: [MapOfSubject<'a>; 2], shapes: [[usize; 3]; 3], params: &Params) -> Self {
        let [first, second, grid] = shapes;
        let prepared = |(_, map): MapOfSubject<'a>, from: [usize; 3]| {
            let map = map.as_ref().map_err(Clone::clone)?;
            let map: Vec<f64> =
                map.iter().map(|value| if params.absolute { value.abs() } else { *value }).collect();
            share(&map, from, grid)
        };
        let both = prepared(pair[0], first)
            .map_err(|reason| format!("first: {reason}"))
            .and_then(|a| Ok((a, prepared(pair[1], second).map_err(|reason| format!("second: {reason}"))?)));
        let value = |measure: Measure| match &both {
            Ok((a, b)) => measure.of(a, b, grid),
            Err(reason) => Err(reason.clone()),
        };
        let values = Measure::ALL.map(value).to_vec();
        let difference = both.map(|(a, b)| a.iter().zip(&b).map(|(a, b)| (a - b) as f32).collect());
        Self { subjects: pair.map(|(subject, _)| subject), values, difference }
    }

    fn has_one_target(&self) -> bool {
        self.subjects[0].target == self.subjects[1].target
    }
}

/// The group of each compared image.
fn groups(images: &Artifact, compared: &[Compared<'_>]) -> Result<Groups, StageError> {
    let table = read_columns(images, &["image_id", "group_id"])?;
    let known: HashMap<&str, Option<String>> = match table.column("group_id") {
        Some(_) => {
            table.strings("image_id")?.into_iter().zip(table.utf8("group_id")?.iter().cloned()).collect()
        }
        None => HashMap::new(),
    };
    let group = |one: &Compared<'_>| known.get(one.subjects[0].image.as_str()).cloned().flatten();
    Ok(Groups::new(&compared.iter().map(group).collect::<Vec<_>>()))
}

fn metrics(
    compared: &[Compared<'_>],
    groups: &Groups,
    names: &Names,
    inputs: [&Maps; 2],
    params: &Params,
) -> Vec<Metric> {
    // Every image is drawn in each resample, so that resamples are those of other comparisons; it counts where it
    // has a value.
    let estimate = |value: &(dyn Fn(&Compared<'_>) -> Option<f64> + Sync)| -> (Option<Estimate>, usize) {
        let values: Vec<Option<f64>> = compared.iter().map(value).collect();
        let n = values.iter().flatten().count();
        let figure = |weights: &[f64]| {
            let known = values.iter().zip(weights).filter_map(|(value, weight)| Some(((*value)?, *weight)));
            let (values, weights): (Vec<f64>, Vec<f64>) = known.unzip();
            mean(&values, &weights)
        };
        (bootstrap(groups, params.seed as u64, figure), n)
    };
    let row = |name: &str, (value, n): (Option<Estimate>, usize)| {
        let mut metric = Metric::new("attribution", "all", name, value, n);
        metric.method = Some(names.method.clone());
        metric.protocol = Some(names.sides.join(" / "));
        metric
    };
    let measured = Measure::ALL.iter().enumerate().map(|(place, measure)| {
        row(measure.name(), estimate(&|one: &Compared<'_>| one.values[place].as_ref().ok().copied()))
    });
    let mut rows: Vec<Metric> = measured.collect();
    rows.push(row(
        "same_target",
        estimate(&|one: &Compared<'_>| Some(f64::from(u8::from(one.has_one_target())))),
    ));
    let left_out = inputs.map(|maps| maps.rows.len() - compared.len());
    rows.push(row("left_out", (Some(Estimate::exact((left_out[0] + left_out[1]) as f64)), compared.len())));
    rows
}

/// A row per pair of maps and measure.
fn similarities(compared: &[Compared<'_>]) -> Table {
    let rows = || {
        compared.iter().flat_map(|one| Measure::ALL.into_iter().zip(&one.values).map(move |row| (one, row)))
    };
    let target =
        |place: usize| Column::Utf8(rows().map(|(one, _)| one.subjects[place].target.clone()).collect());
    Table::new()
        .with("id", Column::texts(rows().map(|(one, _)| one.subjects[0].id.as_str())))
        .with("first_target", target(0))
        .with("second_target", target(1))
        .with("metric", Column::texts(rows().map(|(_, (measure, _))| measure.name())))
        .with("value", Column::Float64(rows().map(|(_, (_, value))| value.as_ref().ok().copied()).collect()))
        .with("reason", Column::Utf8(rows().map(|(_, (_, value))| value.as_ref().err().cloned()).collect()))
}

fn differences(
    compared: &[Compared<'_>],
    shape: &[usize],
    names: &Names,
    seen: Vec<(String, String)>,
    provenance: &str,
    params: &Params,
    context: &mut StageContext<'_>,
) -> Result<(), StageError> {
    let targets: BTreeSet<&str> =
        compared.iter().filter_map(|one| one.subjects[0].target.as_deref()).collect();
    let targets: Vec<String> = targets.into_iter().map(str::to_owned).collect();
    let [first, second] = names.sides.clone();
    let mut metadata = HashMap::from([
        ("method".to_owned(), "difference".to_owned()),
        ("of".to_owned(), names.method.clone()),
        ("first".to_owned(), first),
        ("second".to_owned(), second),
        ("baseline".to_owned(), "none".to_owned()),
        ("absolute".to_owned(), params.absolute.to_string()),
        ("pipe".to_owned(), provenance.to_owned()),
    ]);
    metadata.extend(seen);
    let mut file =
        SaliencyFile::new(context.output("differences")?, shape, "difference", &targets, metadata)?;
    if compared.iter().any(|one| one.subjects[0].question.is_some()) {
        file = file.of_questions();
    } else if compared.iter().any(|one| one.subjects[0].image != one.subjects[0].id) {
        file = file.of_pairs();
    }
    for one in compared {
        let target = one.subjects[0].target.as_ref().filter(|_| one.has_one_target());
        let class = target.and_then(|target| targets.binary_search(target).ok());
        let subject = one.subjects[0];
        let map = one.difference.clone().map(SaliencyMap::of_values);
        let about = About { image: subject.image.clone(), question: subject.question.clone() };
        file.add(&subject.id, about, class, None, map)?;
    }
    file.finish(context.output("differences")?)
}
