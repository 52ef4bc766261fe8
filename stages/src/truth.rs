//! Planted truths are for judging results, never for making them.

use pipe_engine::ParameterProblem;

/// What the names of columns begin with that hold what a generator planted.
pub(crate) const PREFIX: &str = "truth_";

/// What is wrong with a parameter that names `column` as something that a model is trained on or shown.
pub(crate) fn refused(path: &str, column: &str) -> Option<ParameterProblem> {
    column.starts_with(PREFIX).then(|| ParameterProblem {
        path: path.to_owned(),
        message: format!("`{column}` holds a planted truth, which no model may see"),
        help: Some("it may only divide results: `subgroup`, `stratum`, and queries take it".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use pipe_engine::AnyKind;
    use serde_json::json;

    use crate::ingest::{IngestHuggingFace, IngestImages};
    use crate::tokenize::Tokenize;

    #[test]
    fn no_stage_that_feeds_a_model_reads_a_planted_truth() {
        let refused = |kind: &dyn AnyKind, params: serde_json::Value, path: &str| {
            let problems = kind.resolve(&params).err().unwrap_or_default();
            assert_eq!(problems.len(), 1, "{params}: {problems:?}");
            assert_eq!(problems[0].path, path);
            assert!(problems[0].message.contains("planted truth"), "{problems:?}");
        };
        refused(&Tokenize, json!({ "column": "truth_finding" }), "column");
        for (column, more) in
            [("label", json!({})), ("caption", json!({})), ("answer", json!({ "question": "q" }))]
        {
            let mut columns = more;
            columns[column] = json!("truth_x");
            refused(&IngestHuggingFace, json!({ "columns": columns }), &format!("columns.{column}"));
        }
        refused(&IngestImages, json!({ "columns": { "label": "truth_label" } }), "columns.label");
        assert!(Tokenize.resolve(&json!({ "column": "caption_of_truth" })).is_ok());
    }
}
