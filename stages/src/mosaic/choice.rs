//! Which images stand together.

use std::collections::{BTreeMap, BTreeSet};

use pipe_engine::{StageContext, StageError};
use pipe_models::random::Key;

use super::{Cell, Params};
use crate::labels::Labels;
use crate::table::read_columns;

/// The images that all models of the input `predictions` classify correctly with at least this probability; nothing
/// where there are no predictions.
pub(crate) fn sure(
    confidence: f64,
    context: &StageContext<'_>,
) -> Result<Option<BTreeSet<String>>, StageError> {
    let mut sure: Option<BTreeSet<String>> = None;
    for input in context.inputs("predictions") {
        let table = read_columns(&input.artifact, &["id", "target", "scores", "correct"])?;
        let (ids, targets) = (table.strings("id")?, table.list_int32("target")?);
        let (scores, correct) = (table.list_float32("scores")?, table.bools("correct")?);
        // An image may have several rows, such as one per protocol.
        let (mut judged, mut doubtful) = (BTreeSet::new(), BTreeSet::new());
        for (row, id) in ids.iter().enumerate() {
            let class = targets[row].as_deref().and_then(|target| usize::try_from(*target.first()?).ok());
            let score = class.and_then(|class| scores[row].as_deref()?.get(class).copied());
            let is_sure = score.is_some_and(|score| f64::from(score) >= confidence);
            judged.insert((*id).to_owned());
            if !is_sure || correct[row] != Some(true) {
                doubtful.insert((*id).to_owned());
            }
        }
        let own: BTreeSet<String> = judged.difference(&doubtful).cloned().collect();
        sure = Some(match sure {
            None => own,
            Some(sure) => sure.intersection(&own).cloned().collect(),
        });
    }
    Ok(sure)
}

/// The images of each class that may stand in a mosaic, in a random order of their own.
pub(crate) struct Candidates {
    of_class: BTreeMap<usize, Vec<String>>,
}

impl Candidates {
    /// Images of the split, and among them those that are `sure`.
    pub(crate) fn new(params: &Params, labels: &Labels, sure: Option<&BTreeSet<String>>) -> Self {
        let may_stand = |id: &String| sure.is_none_or(|sure| sure.contains(id));
        let mut of_class: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for (id, split, label) in &labels.rows {
            if *split == params.split && may_stand(id) {
                of_class.entry(label[0] as usize).or_default().push(id.clone());
            }
        }
        // The order of the table does not matter.
        let order = |id: &String| {
            (Key::derive("pipe mosaic/1", params.seed as u64, &[id.as_str().into()]).0, id.clone())
        };
        for ids in of_class.values_mut() {
            ids.sort_by_cached_key(order);
        }
        Self { of_class }
    }
}

/// The cells of each mosaic, row by row; no image stands in two.
///
/// # Errors
/// If there are fewer classes than cells.
pub(crate) fn choose(
    params: &Params,
    candidates: &Candidates,
    names: &[String],
) -> Result<Vec<Vec<Cell>>, StageError> {
    let cells = (params.side * params.side) as usize;
    if candidates.of_class.len() < cells {
        let known: Vec<&str> = candidates.of_class.keys().map(|class| names[*class].as_str()).collect();
        return Err(StageError::failed(format!(
            "a mosaic of {side} x {side} takes images of {cells} classes; split `{split}` has images that may be \
             used of {count}{list}{known}: take a smaller `side` or a lower `confidence`",
            side = params.side,
            split = params.split,
            count = known.len(),
            list = if known.is_empty() { "" } else { ": " },
            known = known.join(", "),
        )));
    }
    let mut left: BTreeMap<usize, std::slice::Iter<'_, String>> =
        candidates.of_class.iter().map(|(class, ids)| (*class, ids.iter())).collect();
    let mut mosaics = Vec::new();
    while mosaics.len() < params.count as usize {
        let classes: Vec<usize> =
            left.iter().filter(|(_, ids)| ids.len() > 0).map(|(class, _)| *class).collect();
        if classes.len() < cells {
            break;
        }
        let key = Key::derive("pipe mosaic cells/1", params.seed as u64, &[(mosaics.len() as u64).into()]);
        let drawn = key.permutation(classes.len()).into_iter().take(cells).map(|place| classes[place]);
        let cell = |class: usize| Some(Cell { id: left.get_mut(&class)?.next()?.clone(), class });
        mosaics.push(drawn.filter_map(cell).collect());
    }
    Ok(mosaics)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(counts: &[usize]) -> Candidates {
        let ids = |class: usize, count: usize| (0..count).map(|id| format!("{class}-{id}")).collect();
        Candidates {
            of_class: counts.iter().enumerate().map(|(class, count)| (class, ids(class, *count))).collect(),
        }
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|class| format!("class {class}")).collect()
    }

    #[test]
    fn cells_are_of_distinct_classes_and_no_image_stands_twice() {
        let params = Params { count: 50, ..Params::default() };
        let mosaics = choose(&params, &candidates(&[9, 9, 9, 9, 9]), &names(5)).unwrap();
        assert!(mosaics.len() >= 9, "{}", mosaics.len());
        let mut seen = BTreeSet::new();
        for mosaic in &mosaics {
            assert_eq!(mosaic.len(), 4);
            assert_eq!(mosaic.iter().map(|cell| cell.class).collect::<BTreeSet<_>>().len(), 4);
            assert!(mosaic.iter().all(|cell| seen.insert(cell.id.clone())));
        }
        let again = choose(&params, &candidates(&[9, 9, 9, 9, 9]), &names(5)).unwrap();
        assert_eq!(again, mosaics);
        let fewer = choose(&Params { count: 2, ..params }, &candidates(&[9, 9, 9, 9, 9]), &names(5)).unwrap();
        assert_eq!(fewer, mosaics[..2]);
    }

    #[test]
    fn too_few_classes_are_refused_with_what_there_is() {
        let error = choose(&Params::default(), &candidates(&[3, 3]), &names(2)).unwrap_err().to_string();
        assert!(error.contains("images of 4 classes") && error.contains("of 2: class 0, class 1"), "{error}");
    }
}
