//! A table of labels, joined to images.

use pipe_engine::{Artifact, StageError};

use crate::model::HeadDescription;
use crate::table::read;

/// Labels by image, with what the table says of its classes.
pub(crate) struct Labels {
    /// Image id, split, label: one class, or a bit per class.
    pub(crate) rows: Vec<(String, String, Vec<i64>)>,
    pub(crate) description: HeadDescription,
}

impl Labels {
    /// Reads a labels table; every label has to be a class.
    pub(crate) fn read(artifact: &Artifact) -> Result<Self, StageError> {
        // Planted truths are columns of the table too; nothing here reads them.
        let table = read(artifact)?;
        let task = table.metadata.get("task").cloned().unwrap_or_else(|| "multi-class".to_owned());
        let (ids, splits, labels) =
            (table.strings("image_id")?, table.strings("split")?, table.list_int64("label")?);
        let names =
            table.metadata.get("label_names").and_then(|text| serde_json::from_str::<Vec<String>>(text).ok());
        let greatest = labels.iter().flatten().flatten().max().copied().unwrap_or(0);
        let classes = names.unwrap_or_else(|| (0..=greatest).map(|class| class.to_string()).collect());
        let description = HeadDescription { classes, task };
        let mut rows = Vec::with_capacity(ids.len());
        for (row, label) in labels.iter().enumerate() {
            let label = label.clone().unwrap_or_default();
            let fits = if description.is_multi_label() {
                label.len() == description.classes.len() && label.iter().all(|bit| (0..=1).contains(bit))
            } else {
                label.len() == 1 && (0..description.classes.len() as i64).contains(&label[0])
            };
            if !fits {
                let reason = format!(
                    "row {row} (`{}`) has the label {label:?}; {} classes are known",
                    ids[row],
                    description.classes.len()
                );
                return Err(StageError::input("labels", reason));
            }
            rows.push((ids[row].to_owned(), splits[row].to_owned(), label));
        }
        Ok(Self { rows, description })
    }

    /// The commonest class of a split, the first of equals; `None` without rows of it, or where labels are
    /// independent.
    pub(crate) fn majority(&self, split: &str) -> Option<i64> {
        if self.description.is_multi_label() {
            return None;
        }
        let of_split = || self.rows.iter().filter(|(_, of, _)| of == split);
        let count = |class: i64| of_split().filter(|(.., label)| label[0] == class).count();
        let classes = 0..self.description.classes.len() as i64;
        let commonest =
            classes.reduce(|best, class| if count(class) > count(best) { class } else { best })?;
        (count(commonest) > 0).then_some(commonest)
    }

    /// The labels of images in their order; an image without one is an error.
    pub(crate) fn of(&self, ids: &[String]) -> Result<Vec<Vec<i64>>, StageError> {
        let by_id: std::collections::BTreeMap<&str, &Vec<i64>> =
            self.rows.iter().map(|(id, _, label)| (id.as_str(), label)).collect();
        ids.iter()
            .map(|id| {
                by_id
                    .get(id.as_str())
                    .map(|label| (*label).clone())
                    .ok_or_else(|| StageError::input("labels", format!("the image `{id}` has no label")))
            })
            .collect()
    }
}
