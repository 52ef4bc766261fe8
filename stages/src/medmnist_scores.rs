//! Scores as MedMNIST's own evaluator reads them (`Evaluator.parse_and_evaluate` of the package): a file of each split, with
//! its figures in the name.

use std::fmt::Write as _;

use pipe_engine::{Artifact, OutputWriter, ParameterProblem, StageError};

use crate::classification::Classified;
use crate::model::{HeadDescription, write_text};
use crate::table::metadata;

/// What is wrong with the name of a run: the evaluator takes it for what stands between `@` and the next point.
pub(crate) fn check_run(path: &str, run: &str) -> Option<ParameterProblem> {
    let may = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
    (run.is_empty() || run.len() > 64 || !run.chars().all(may)).then(|| ParameterProblem {
        path: path.to_owned(),
        message: "it becomes part of a file's name".to_owned(),
        help: Some("write letters, digits, `-` and `_`, such as `3`".to_owned()),
    })
}

/// Writes `FLAG[_SIZE]_SPLIT_[AUC]x_[ACC]x@RUN.csv` of each split: no header, the number of each sample in the published
/// file, and its scores.
///
/// # Errors
/// If the labels are not those of a set of MedMNIST, or a file cannot be written.
pub(crate) fn write_scores(
    output: &OutputWriter,
    labels: &Artifact,
    classified: &Classified,
    description: &HeadDescription,
    splits: &[String],
    run: &str,
) -> Result<(), StageError> {
    let facts = metadata(labels)?;
    let fact = |name: &str| facts.get(name).map_or("", String::as_str);
    if !fact("dataset_version").starts_with("medmnist") {
        let reason = "they are not of a set of MedMNIST, whose evaluator is to read the scores: leave out `medmnist_run`";
        return Err(StageError::input("labels", reason));
    }
    let size = match fact("size") {
        "28" => String::new(),
        other => format!("_{other}"),
    };
    for split in splits {
        let mut rows: Vec<(u64, usize)> = Vec::new();
        for row in classified.rows(split) {
            let id = &classified.ids[row];
            let number = id.rsplit('/').next().and_then(|number| number.parse().ok());
            let number = number.ok_or_else(|| {
                StageError::input(
                    "images",
                    format!("the id `{id}` does not end with a number, as MedMNIST's do"),
                )
            })?;
            rows.push((number, row));
        }
        rows.sort_unstable();
        let places: Vec<usize> = rows.iter().map(|(_, row)| *row).collect();
        let scores = classified.scores(description, &places);
        let mut text = String::new();
        for (place, (number, _)) in rows.iter().enumerate() {
            text.push_str(&number.to_string());
            for score in scores.row(place) {
                // Of a string nothing can fail.
                let _ = write!(text, ",{score}");
            }
            text.push('\n');
        }
        let weights = vec![1.0; rows.len()];
        let figure = |value: Option<f64>| value.map_or("nan".to_owned(), |value| format!("{value:.3}"));
        let [auc, acc] = [scores.auroc(&weights), scores.accuracy(&weights)].map(figure);
        let name = format!("{}{size}_{split}_[AUC]{auc}_[ACC]{acc}@{run}.csv", fact("dataset"));
        write_text(&output.path(&name)?, &text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::table::{Column, Table, TableSchema, WriteOptions, write};
    use crate::testing::tree;

    /// Labels of a set, as an ingest writes them.
    fn labels(folder: &TempDir, facts: &[(&str, &str)]) -> Artifact {
        let mut output = OutputWriter::new(folder.path().to_owned());
        let mut table = Table::new()
            .with("image_id", Column::texts(["a"]))
            .with("split", Column::texts(["test"]))
            .with("label", Column::ListInt64(vec![Some(vec![0])]));
        for (name, value) in facts {
            table = table.with_metadata(name, *value);
        }
        write(&mut output, &TableSchema::labels(), &table, WriteOptions::text("{}")).unwrap();
        tree(folder.path(), crate::artifact::LABELS.0)
    }

    #[test]
    fn a_split_is_a_file_in_the_order_of_the_published_one() {
        let ids = ["octmnist/test/10", "octmnist/test/2", "octmnist/val/0"];
        let classified = Classified {
            ids: ids.map(str::to_owned).to_vec(),
            splits: ["test", "test", "val"].map(str::to_owned).to_vec(),
            groups: vec![None; 3],
            targets: vec![vec![0], vec![1], vec![0]],
            logits: vec![vec![0.0, 0.0], vec![-1.0, 1.0], vec![1.0, 0.0]],
        };
        let classes = ["a", "b"].map(str::to_owned).to_vec();
        let description = HeadDescription { classes, task: "multi-class".to_owned() };
        let (given, made) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let facts = [("dataset", "octmnist"), ("size", "64"), ("dataset_version", "medmnist 3.0.2")];
        let artifact = labels(&given, &facts);
        let output = OutputWriter::new(made.path().to_owned());
        let splits = ["test", "val"].map(str::to_owned);
        write_scores(&output, &artifact, &classified, &description, &splits, "3").unwrap();
        let file = made.path().join("octmnist_64_test_[AUC]1.000_[ACC]1.000@3.csv");
        let text = std::fs::read_to_string(file).unwrap();
        let (first, second) = text.trim_end().split_once('\n').unwrap();
        assert_eq!(second, "10,0.5,0.5");
        let numbers: Vec<f64> = first.split(',').map(|value| value.parse().unwrap()).collect();
        assert!(numbers[0] == 2.0 && (numbers[2] - 1.0 / (1.0 + (-2.0f64).exp())).abs() < 1e-12, "{first}");
        assert!(made.path().join("octmnist_64_val_[AUC]nan_[ACC]1.000@3.csv").exists());

        let other = TempDir::new().unwrap();
        let error = write_scores(&output, &labels(&other, &[]), &classified, &description, &splits, "3");
        assert!(error.unwrap_err().to_string().contains("not of a set of MedMNIST"));
    }

    #[test]
    fn a_run_has_a_name_that_the_evaluator_finds_again() {
        assert!(check_run("medmnist_run", "seed-1_a").is_none());
        for wrong in ["", "1.5", "a/b", "a@b"] {
            assert!(check_run("medmnist_run", wrong).is_some(), "{wrong}");
        }
    }
}
