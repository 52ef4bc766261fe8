//! What several models answered, brought to the same items in the same order; or why that cannot be.

use std::collections::BTreeMap;

use pipe_engine::{Artifact, StageError};

use crate::artifact::RANKS;
use crate::statistics::{ClassifierScores, Task};
use crate::table::{Column, Table, read};

/// The name of an item: its split and id, for ranks the direction, and its number among equal ones.
pub(super) type Item = (String, String, String, usize);

/// One model's answers, sorted by item.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    /// What the model is called: its input, its axes, and the condition of an ablation.
    pub(super) label: String,
    pub(super) items: Vec<Item>,
    /// What may differ between two tables without being an answer: by item (protocol, what is right).
    terms: Vec<(String, String)>,
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
    split: Option<&str>,
) -> Result<Vec<Answers>, StageError> {
    let table = read(artifact)?;
    let rows = match split {
        Some(split) if table.column("split").is_some() => table.rows_of_splits(&[split]),
        _ => (0..table.rows()).collect(),
    };
    let table = table.select(&rows);
    let Some(Column::Utf8(conditions)) = table.column("condition") else {
        return Ok(vec![answers(name, &table, &artifact.artifact_type)?]);
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
            answers(&label, &table.select(&rows), &artifact.artifact_type)
        })
        .collect()
}

fn answers(label: &str, table: &Table, artifact_type: &str) -> Result<Answers, StageError> {
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
    if artifact_type == RANKS.0 {
        let ranks =
            table.int64("rank")?.iter().map(|rank| rank.unwrap_or_default().max(0) as usize).collect();
        let (pools, sizes) = (table.as_text("pool_hash")?, table.as_text("pool_size")?);
        let terms = pools.into_iter().zip(sizes);
        return Ok(Answers {
            label: label.to_owned(),
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
    let terms = protocols.into_iter().zip(targets.iter().map(|target| format!("{target:?}"))).collect();
    let right: Vec<bool> = table.bools("correct")?.iter().map(|right| right.unwrap_or_default()).collect();
    let scores = scores(&table, targets)?;
    let mut groups = vec![None; table.rows()];
    for name in GROUPS {
        if let Some(Column::Utf8(values)) = table.column(name)
            && values.iter().all(Option::is_some)
        {
            groups.clone_from(values);
            break;
        }
    }
    Ok(Answers { label: label.to_owned(), items, terms, groups, kind: Kind::Predictions { right, scores } })
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

impl Answers {
    /// Whether both answer the same items under the same terms.
    ///
    /// # Errors
    /// With what differs, and an example.
    pub(super) fn check(&self, other: &Self) -> Result<(), StageError> {
        let refuse = |reason: String| {
            let message = format!("`{}` and `{}` cannot be compared: {reason}", self.label, other.label);
            Err(StageError::failed(message))
        };
        let name = |item: &Item| [&item.0, &item.1, &item.2].map(String::as_str).join(" ").trim().to_owned();
        let missing = |a: &Self, b: &Self| {
            let other: std::collections::BTreeSet<&Item> = b.items.iter().collect();
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
            if own.0 != others.0 {
                let what = if ranked { "pool" } else { "protocol" };
                return refuse(format!("the {what} of `{item}` is `{}` and `{}`", own.0, others.0));
            }
            if own.1 != others.1 {
                let what = if ranked { "pool size" } else { "target" };
                return refuse(format!("the {what} of `{item}` is {} and {}", own.1, others.1));
            }
        }
        Ok(())
    }
}
