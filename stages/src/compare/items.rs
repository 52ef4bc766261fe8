//! What several models answered, brought to the same items in the same order; or why that cannot be.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use pipe_engine::{Artifact, StageError};

use super::Params;
use crate::artifact::RANKS;
use crate::statistics::{ClassifierScores, Task};
use crate::table::{Column, Table, read};
use crate::{classification, retrieval, vqa};

/// The name of an item: its split and id, for ranks the direction, and its number among equal ones.
pub(super) type Item = (String, String, String, usize);

/// One model's answers, sorted by item.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    /// What the model is called: its input, its axes, and the condition of an ablation.
    pub(super) label: String,
    /// What it was asked to do, as metrics have it.
    pub(super) task: &'static str,
    pub(super) items: Vec<Item>,
    /// What may differ between two tables without being an answer: by item (protocol, what is right).
    terms: Vec<(String, String)>,
    /// How answers that are texts were compared.
    pub(super) matching: Option<String>,
    /// Columns whose values are compared by themselves too, with the value of each item.
    pub(super) subgroups: Vec<(String, Vec<Option<String>>)>,
    /// What is resampled as one.
    pub(super) groups: Vec<Option<String>>,
    pub(super) kind: Kind,
}

/// What an answer is.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// Right or not, with scores where the table has them.
    Predictions {
        right: Vec<bool>,
        /// For figures of whole classes.
        scores: Option<ClassifierScores>,
    },
    /// The place of the right candidate, from 0.
    Ranks { ranks: Vec<usize> },
}

/// Columns that samples may be grouped by, the widest first.
const GROUPS: [&str; 3] = ["patient", "article", "image"];

/// Reads a table of predictions or ranks of the model `name`; one of an ablation holds several models.
///
/// # Errors
/// If the table is damaged.
pub(super) fn read_answers(
    name: &str,
    artifact: &Artifact,
    params: &Params,
) -> Result<Vec<Answers>, StageError> {
    let table = read(artifact)?;
    let rows = match params.split.as_deref() {
        Some(split) if table.column("split").is_some() => table.rows_of_splits(&[split]),
        _ => (0..table.rows()).collect(),
    };
    let table = table.select(&rows);
    let Some(Column::Utf8(conditions)) = table.column("condition") else {
        return Ok(vec![answers(name, &table, &artifact.artifact_type, params)?]);
    };
    let draws = match table.column("draw") {
        Some(Column::Int64(draws)) => draws.clone(),
        _ => vec![None; table.rows()],
    };
    let mut rows_of: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (row, condition) in conditions.iter().enumerate() {
        // Of several draws the first stands for the condition: an item is answered once.
        if draws[row].is_none_or(|draw| draw == 0) {
            rows_of.entry(condition.as_deref().unwrap_or_default()).or_default().push(row);
        }
    }
    rows_of
        .into_iter()
        .map(|(condition, rows)| {
            let label = if name.is_empty() { condition.to_owned() } else { format!("{name}/{condition}") };
            answers(&label, &table.select(&rows), &artifact.artifact_type, params)
        })
        .collect()
}

/// What a table of predictions was asked to do, as its metadata say.
fn task(table: &Table) -> &'static str {
    match table.metadata.get("task").map(String::as_str) {
        Some(vqa::TASK) => vqa::TASK,
        Some(retrieval::TASK) => retrieval::TASK,
        _ => classification::TASK,
    }
}

fn answers(label: &str, table: &Table, artifact_type: &str, params: &Params) -> Result<Answers, StageError> {
    let texts = |name: &str| match table.column(name) {
        Some(_) => table.as_text(name),
        None => Ok(vec![None; table.rows()]),
    };
    let plain =
        |values: Vec<Option<String>>| values.into_iter().map(Option::unwrap_or_default).collect::<Vec<_>>();
    let (ids, splits) = (table.strings("id")?, plain(texts("split")?));
    let direction = plain(texts("direction")?);
    let mut seen: BTreeMap<(&str, &str, &str), usize> = BTreeMap::new();
    let mut order: Vec<(Item, usize)> = Vec::with_capacity(table.rows());
    for row in 0..table.rows() {
        let number = seen.entry((&splits[row], ids[row], &direction[row])).or_default();
        order.push(((splits[row].clone(), ids[row].to_owned(), direction[row].clone(), *number), row));
        *number += 1;
    }
    order.sort();
    let rows: Vec<usize> = order.iter().map(|(_, row)| *row).collect();
    let items = order.into_iter().map(|(item, _)| item).collect();
    let table = table.select(&rows);
    let task = if artifact_type == RANKS.0 { retrieval::TASK } else { task(&table) };
    // Open and closed questions are two tasks.
    let own = (task == vqa::TASK && table.column("answer_type").is_some()).then_some("answer_type");
    let mut columns: Vec<&str> = own.into_iter().chain(params.subgroup.as_deref()).collect();
    columns.dedup();
    let mut subgroups = columns
        .into_iter()
        .map(|column| Ok((column.to_owned(), table.as_text(column)?)))
        .collect::<Result<Vec<_>, StageError>>()
        .map_err(|error| StageError::because(format!("grouping the answers of `{label}`"), error))?;
    // So open questions of a subgroup are not lost among its closed ones.
    if let [(own, types), (column, values)] = &subgroups[..] {
        let both = |(value, kind): (&Option<String>, &Option<String>)| {
            Some(format!("{},{own}={}", value.as_ref()?, kind.as_ref()?))
        };
        subgroups.push((column.clone(), values.iter().zip(types).map(both).collect()));
    }
    if artifact_type == RANKS.0 {
        let ranks =
            table.int64("rank")?.iter().map(|rank| rank.unwrap_or_default().max(0) as usize).collect();
        let (pools, sizes) = (table.as_text("pool_hash")?, table.as_text("pool_size")?);
        let terms = pools.into_iter().zip(sizes);
        return Ok(Answers {
            label: label.to_owned(),
            task,
            matching: None,
            subgroups,
            items,
            terms: terms.map(|(pool, size)| (pool.unwrap_or_default(), size.unwrap_or_default())).collect(),
            groups: table.utf8("id")?.to_vec(),
            kind: Kind::Ranks { ranks },
        });
    }
    let targets = table.list_int32("target")?;
    let protocols: Vec<String> = match table.column("protocol") {
        Some(_) => plain(table.as_text("protocol")?),
        None => vec![String::new(); table.rows()],
    };
    // The number of an answer is its place in the list of one model; every list has its own order.
    let right_answers: Vec<String> = match task {
        vqa::TASK => plain(table.as_text("answer")?),
        _ => targets.iter().map(|target| format!("{target:?}")).collect(),
    };
    let terms = protocols.into_iter().zip(right_answers).collect();
    let right: Vec<bool> = table.bools("correct")?.iter().map(|right| right.unwrap_or_default()).collect();
    let scores = match task {
        classification::TASK => scores(&table, targets)?,
        _ => None,
    };
    let mut groups = vec![None; table.rows()];
    for name in GROUPS {
        if let Some(Column::Utf8(values)) = table.column(name)
            && values.iter().all(Option::is_some)
        {
            groups.clone_from(values);
            break;
        }
    }
    let matching = table.metadata.get(vqa::MATCHING).cloned();
    let (label, kind) = (label.to_owned(), Kind::Predictions { right, scores });
    Ok(Answers { label, task, items, terms, matching, subgroups, groups, kind })
}

/// The scores as those of a classifier; nothing where they are not one per class.
fn scores(table: &Table, targets: &[Option<Vec<i32>>]) -> Result<Option<ClassifierScores>, StageError> {
    let Some(task) = table.metadata.get("task") else { return Ok(None) };
    let task = Task::parse(task);
    let scores: Vec<Vec<f64>> = table
        .list_float32("scores")?
        .iter()
        .map(|scores| scores.iter().flatten().map(|score| f64::from(*score)).collect())
        .collect();
    let classes = scores.first().map_or(0, Vec::len);
    let targets: Vec<Vec<i64>> = targets
        .iter()
        .map(|target| target.iter().flatten().map(|class| i64::from(*class)).collect())
        .collect();
    let fits = |(scores, target): (&Vec<f64>, &Vec<i64>)| {
        scores.len() == classes
            && match task {
                Task::MultiLabel => target.len() == classes,
                _ => target.len() == 1 && (0..classes as i64).contains(&target[0]),
            }
    };
    let whole = classes > 1 && scores.iter().zip(&targets).all(fits);
    Ok(whole.then(|| ClassifierScores::new(task, scores, targets)))
}

/// Two models' answers to the same items, in the same order.
pub(super) struct Together<'a> {
    pub(super) first: Cow<'a, Answers>,
    pub(super) second: Cow<'a, Answers>,
    /// The protocol of both; of two that are taken as equal both.
    pub(super) protocol: Option<String>,
    /// What was left out, in words.
    pub(super) left_out: Option<String>,
}

impl Answers {
    /// Both models' answers, to the items that both have where their protocols differ and are among those that are
    /// taken as `equal`.
    ///
    /// # Errors
    /// If they answer other items, or under other terms: with what differs, and an example.
    pub(super) fn together<'a>(
        &'a self,
        other: &'a Self,
        equal: &[String],
    ) -> Result<Together<'a>, StageError> {
        let (own, others) = (self.protocols(), other.protocols());
        let is_taken = |protocol: &&str| equal.iter().any(|name| name == protocol);
        let name = |protocols: &BTreeSet<&str>| protocols.iter().copied().collect::<Vec<_>>().join("+");
        if own == others || !own.union(&others).all(is_taken) {
            self.check(other, equal)?;
            let protocol = Some(name(&own)).filter(|name| !name.is_empty());
            let (first, second) = (Cow::Borrowed(self), Cow::Borrowed(other));
            return Ok(Together { first, second, protocol, left_out: None });
        }
        let both = common(&[self, other])?;
        let [first, second] = [self, other].map(|one| one.only(&both));
        first.check(&second, equal)?;
        let missing = [self, other].map(|one| one.items.len() - both.len());
        let left_out = (missing != [0, 0]).then(|| {
            let [a, b] = missing;
            format!("{a} items of the first and {b} of the second, which the other lacks, are left out")
        });
        let protocol = Some(format!("{} = {}", name(&own), name(&others)));
        let (first, second) = (Cow::Owned(first), Cow::Owned(second));
        Ok(Together { first, second, protocol, left_out })
    }

    /// The names of the protocols of predictions.
    fn protocols(&self) -> BTreeSet<&str> {
        match self.kind {
            Kind::Ranks { .. } => BTreeSet::new(),
            Kind::Predictions { .. } => self.terms.iter().map(|(protocol, _)| protocol.as_str()).collect(),
        }
    }

    /// The answers to some of the items.
    pub(super) fn only(&self, items: &BTreeSet<&Item>) -> Self {
        let places = (0..self.items.len()).filter(|place| items.contains(&self.items[*place]));
        self.select(&places.collect::<Vec<_>>())
    }

    /// The answers at some places.
    pub(super) fn select(&self, places: &[usize]) -> Self {
        fn pick<T: Clone>(values: &[T], places: &[usize]) -> Vec<T> {
            places.iter().map(|place| values[*place].clone()).collect()
        }
        let subgroups = self.subgroups.iter();
        Self {
            label: self.label.clone(),
            task: self.task,
            items: pick(&self.items, places),
            terms: pick(&self.terms, places),
            matching: self.matching.clone(),
            subgroups: subgroups.map(|(column, values)| (column.clone(), pick(values, places))).collect(),
            groups: pick(&self.groups, places),
            kind: match &self.kind {
                Kind::Ranks { ranks } => Kind::Ranks { ranks: pick(ranks, places) },
                Kind::Predictions { right, scores } => Kind::Predictions {
                    right: pick(right, places),
                    scores: scores
                        .as_ref()
                        .filter(|_| !places.is_empty())
                        .map(|scores| scores.select(places)),
                },
            },
        }
    }

    /// Whether both answer the same items under the same terms.
    ///
    /// # Errors
    /// With what differs, and an example.
    fn check(&self, other: &Self, equal: &[String]) -> Result<(), StageError> {
        let refuse = |reason: String| {
            let message = format!("`{}` and `{}` cannot be compared: {reason}", self.label, other.label);
            Err(StageError::failed(message))
        };
        let name = |item: &Item| [&item.0, &item.1, &item.2].map(String::as_str).join(" ").trim().to_owned();
        if self.task != other.task {
            return refuse(format!("the task of one is `{}`, that of the other `{}`", self.task, other.task));
        }
        if self.matching != other.matching {
            let name = |of: &Self| of.matching.clone().unwrap_or_else(|| "unknown".to_owned());
            return refuse(format!(
                "their answers were matched in other ways, `{}` and `{}`",
                name(self),
                name(other)
            ));
        }
        let missing = |a: &Self, b: &Self| {
            let other: BTreeSet<&Item> = b.items.iter().collect();
            let missing: Vec<&Item> = a.items.iter().filter(|item| !other.contains(item)).collect();
            missing.first().map(|first| (missing.len(), name(first)))
        };
        for (a, b) in [(self, other), (other, self)] {
            if let Some((count, first)) = missing(a, b) {
                return refuse(format!(
                    "{count} items of `{}` are missing from `{}`, among them `{first}`",
                    a.label, b.label
                ));
            }
        }
        let ranked = matches!(self.kind, Kind::Ranks { .. });
        for (place, (own, others)) in self.terms.iter().zip(&other.terms).enumerate() {
            let item = name(&self.items[place]);
            let are_taken_as_one = !ranked && [&own.0, &others.0].iter().all(|name| equal.contains(name));
            if own.0 != others.0 && !are_taken_as_one {
                let (what, help) = match ranked {
                    true => ("pool", ""),
                    false => ("protocol", "; `equal_protocols` names protocols that are taken as equal"),
                };
                return refuse(format!("the {what} of `{item}` is `{}` and `{}`{help}", own.0, others.0));
            }
            if own.1 != others.1 {
                let what = if ranked { "pool size" } else { "target" };
                return refuse(format!("the {what} of `{item}` is {} and {}", own.1, others.1));
            }
        }
        for ((column, own), (_, others)) in self.subgroups.iter().zip(&other.subgroups) {
            if let Some(place) = (0..own.len()).find(|place| own[*place] != others[*place]) {
                let item = name(&self.items[place]);
                return refuse(format!(
                    "the `{column}` of `{item}` is {:?} and {:?}",
                    own[place], others[place]
                ));
            }
        }
        Ok(())
    }
}

/// The items that all models have.
///
/// # Errors
/// If there are none.
pub(super) fn common<'a>(models: &[&'a Answers]) -> Result<BTreeSet<&'a Item>, StageError> {
    let mut sets = models.iter().map(|model| model.items.iter().collect::<BTreeSet<&Item>>());
    let first = sets.next().unwrap_or_default();
    let all = sets.fold(first, |all, own| all.intersection(&own).copied().collect());
    if all.is_empty() {
        let labels: Vec<&str> = models.iter().map(|model| model.label.as_str()).collect();
        return Err(StageError::failed(format!("{labels:?} have no item in common")));
    }
    Ok(all)
}
