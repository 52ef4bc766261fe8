//! The stage kind `tokenize`: texts of a table as token ids.

use pipe_engine::{
    Artifact, DefaultCpu, InputClass, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem,
    StageContext, StageError, StageKind,
};
use pipe_models::{Encoded, ModelConfig, Tokenizer};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact;
use crate::model::{checkpoint_error, files};
use crate::table::{Column, Table, TableSchema, TableWriter, WriteOptions, read};
use crate::texts::tokenizer_name;
use crate::truth;

/// Parameters of `tokenize`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The column of text; by default `caption` or `question`, whichever the table has.
    pub column: Option<String>,
    /// The splits whose texts are read; all if empty.
    pub splits: Vec<String>,
    /// Number of ids of a text, marks and padding included; by default the checkpoint's positions, or
    /// 77 for a tokeniser without a checkpoint.
    #[schemars(range(min = 2, max = 8192))]
    pub context: Option<i64>,
}

/// Turns texts into ids.
pub struct Tokenize;

/// CLIP's number of positions.
const CONTEXT: usize = 77;
/// Texts are encoded in blocks of this many, so that a run can be stopped between them.
const BLOCK: usize = 8192;

impl StageKind for Tokenize {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "tokenize",
            summary: "turns captions or questions into token ids",
            implementation: 2,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::One,
            inputs: vec![
                InputPort::required("text", &[artifact::CAPTIONS, artifact::QUESTIONS], "the table of texts")
                    .class(InputClass::Map),
                InputPort::required(
                    "tokenizer",
                    &[artifact::TOKENIZER, artifact::CHECKPOINT],
                    "a tokeniser, or a checkpoint that has one",
                ),
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("tokens", artifact::TOKENS, "ids of each text, padded")]
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        params.column.iter().filter_map(|column| truth::refused("column", column)).collect()
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let encoder = Encoder::read(context.input("tokenizer")?, params.context)?;
        let table = read(context.input("text")?)?;
        let splits: Vec<&str> = params.splits.iter().map(String::as_str).collect();
        let rows = table.rows_of_splits(&splits);
        let column = match &params.column {
            Some(column) => column.as_str(),
            None => {
                ["caption", "question"].into_iter().find(|column| table.column(column).is_some()).ok_or_else(
                    || StageError::input("text", "it has neither a column `caption` nor `question`"),
                )?
            }
        };
        let texts = table.strings(column)?;
        let provenance = context.provenance().to_owned();
        let schema = TableSchema::tokens();
        let options = WriteOptions::row_wise(context, &provenance);
        let mut writer = TableWriter::new(context.output("tokens")?, &schema, options);
        writer.push(encoder.table(&table, &[], Vec::new(), column)?)?;
        let mut done = 0;
        for block in rows.chunks(BLOCK) {
            context.check_cancelled()?;
            let encoded: Vec<Result<Encoded, StageError>> =
                block.par_iter().map(|row| encoder.encode(texts[*row])).collect();
            let encoded = encoded.into_iter().collect::<Result<Vec<_>, _>>()?;
            writer.push(encoder.table(&table, block, encoded, column)?)?;
            done += block.len() as u64;
            context.progress(done, rows.len() as u64, "texts", &[]);
        }
        writer.finish(context.output("tokens")?)
    }
}

/// A tokeniser with the length that it fills.
struct Encoder {
    tokenizer: Tokenizer,
    name: String,
    context: usize,
    pad: u32,
}

impl Encoder {
    fn read(artifact: &Artifact, context: Option<i64>) -> Result<Self, StageError> {
        let files = files(artifact);
        let missing = || StageError::input("tokenizer.json", "the input has no tokeniser");
        let tokenizer = Tokenizer::of_checkpoint(&files).map_err(checkpoint_error)?.ok_or_else(missing)?;
        let name = tokenizer_name(&tokenizer)?;
        // Padding with the end mark is invisible behind the first one.
        let (positions, pad) = match files.get("config.json") {
            None => (CONTEXT, tokenizer.end()),
            Some(_) => {
                let config = files.text("config.json").and_then(|json| ModelConfig::from_json(&json));
                let config = config.map_err(checkpoint_error)?;
                config.text_length().ok_or_else(|| {
                    StageError::input("config.json", format!("`{}` reads no text", config.name()))
                })?
            }
        };
        Ok(Self { tokenizer, name, context: context.map_or(positions, |context| context as usize), pad })
    }

    fn encode(&self, text: &str) -> Result<Encoded, StageError> {
        self.tokenizer.encode(text, self.context, self.pad).map_err(checkpoint_error)
    }

    /// The token table of `rows` of a table of texts.
    fn table(
        &self,
        texts: &Table,
        rows: &[usize],
        encoded: Vec<Encoded>,
        column: &str,
    ) -> Result<Table, StageError> {
        let texts = texts.select(rows);
        let ids = match (texts.column("caption_id"), texts.column("qid")) {
            (Some(_), _) => texts.int64("caption_id")?,
            _ => texts.int64("qid")?,
        };
        let offsets =
            encoded.iter().map(|one| Some(one.offsets.iter().flatten().map(|at| *at as i32).collect()));
        Ok(Table::new()
            .with("id", Column::Utf8(ids.iter().map(|id| id.map(|id| id.to_string())).collect()))
            .with("split", Column::Utf8(texts.utf8("split")?.to_vec()))
            .with(
                "ids",
                Column::ListInt32(
                    encoded.iter().map(|one| Some(one.ids.iter().map(|id| *id as i32).collect())).collect(),
                ),
            )
            .with("length", Column::Int32(encoded.iter().map(|one| Some(one.length as i32)).collect()))
            .with("truncated", Column::Bool(encoded.iter().map(|one| Some(one.truncated)).collect()))
            .with("image_id", Column::Utf8(texts.utf8("image_id")?.to_vec()))
            .with("offsets", Column::ListInt32(offsets.collect()))
            .with_metadata("column", column)
            .with_metadata("context", self.context.to_string())
            .with_metadata("vocabulary", self.tokenizer.vocabulary().to_string())
            .with_metadata("tokenizer", self.name.clone()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::embed::Embed;
    use crate::finetune::FinetuneContrastive;
    use crate::phantom::IngestPhantom;
    use crate::testing::{Made, run};
    use crate::tokenizer::TrainTokenizer;

    fn phantoms() -> Made {
        run(&IngestPhantom, &json!({ "size": 28, "train": 24, "test": 6 }), &[]).unwrap()
    }

    fn tokenizer(phantoms: &Made, vocabulary: i64) -> Made {
        run(&TrainTokenizer, &json!({ "vocab_size": vocabulary }), &[("text", &phantoms["captions"])])
            .unwrap()
    }

    fn checkpoint(tokenizer: &Made) -> Made {
        let tower = json!({ "width": 16, "layers": 1, "heads": 2 });
        let params = json!({ "init": "random", "image_size": 28, "patch": 14, "vision": tower, "text": tower, "context": 20, "projection": 16 });
        run(&Checkpoint, &params, &[("tokenizer", &tokenizer["tokenizer"])]).unwrap()
    }

    #[test]
    fn ids_are_the_tokenisers_and_offsets_name_the_pieces() {
        let phantoms = phantoms();
        let trained = tokenizer(&phantoms, 600);
        let params = json!({ "splits": ["test"], "context": 20 });
        let inputs = [("text", &phantoms["captions"]), ("tokenizer", &trained["tokenizer"])];
        let made = run(&Tokenize, &params, &inputs).unwrap();
        let tokens = read(&made["tokens"]).unwrap();
        let captions = read(&phantoms["captions"]).unwrap();
        let captions = captions.select(&captions.rows_of_splits(&["test"]));
        let reference = Tokenizer::of_checkpoint(&files(&trained["tokenizer"])).unwrap().unwrap();
        assert_eq!(tokens.rows(), 6);
        for row in 0..tokens.rows() {
            let text = captions.strings("caption").unwrap()[row];
            let encoded = reference.encode(text, 20, reference.end()).unwrap();
            let ids = tokens.list_int32("ids").unwrap()[row].clone().unwrap();
            assert_eq!(ids, encoded.ids.iter().map(|id| *id as i32).collect::<Vec<_>>());
            let offsets = tokens.list_int32("offsets").unwrap()[row].clone().unwrap();
            assert_eq!(offsets.len(), 2 * encoded.length);
            for (id, at) in encoded.ids.iter().zip(offsets.chunks_exact(2)).skip(1).take(encoded.length - 2) {
                assert_eq!(text[at[0] as usize..at[1] as usize], reference.token(*id), "of `{text}`");
            }
        }
    }

    #[test]
    fn tokens_stand_for_captions_to_the_bit() {
        let phantoms = phantoms();
        let trained = tokenizer(&phantoms, 600);
        let start = checkpoint(&trained);
        let inputs = [("text", &phantoms["captions"]), ("tokenizer", &start["checkpoint"])];
        let tokens = run(&Tokenize, &json!({}), &inputs).unwrap();
        let train = |texts: &Artifact| {
            let inputs =
                [("images", &phantoms["images"]), ("captions", texts), ("checkpoint", &start["checkpoint"])];
            run(&FinetuneContrastive, &json!({ "epochs": 1, "batch": 8 }), &inputs).unwrap()
        };
        let (by_captions, by_tokens) = (train(&phantoms["captions"]), train(&tokens["tokens"]));
        assert_eq!(by_captions["checkpoint"].digest, by_tokens["checkpoint"].digest);
        let embed = |texts: &Artifact| {
            let inputs =
                [("images", &phantoms["images"]), ("captions", texts), ("checkpoint", &start["checkpoint"])];
            run(&Embed, &json!({ "splits": ["test"] }), &inputs).unwrap()
        };
        let (by_captions, by_tokens) = (embed(&phantoms["captions"]), embed(&tokens["tokens"]));
        assert_eq!(by_captions["texts"].digest, by_tokens["texts"].digest);
    }

    #[test]
    fn tokens_of_another_tokeniser_or_length_are_refused() {
        let phantoms = phantoms();
        let (small, large) = (tokenizer(&phantoms, 560), tokenizer(&phantoms, 600));
        let start = checkpoint(&large);
        for (trained, context, reason) in
            [(&small, 20, "another tokeniser"), (&large, 12, "has 12 ids, the model has 20 positions")]
        {
            let inputs = [("text", &phantoms["captions"]), ("tokenizer", &trained["tokenizer"])];
            let tokens = run(&Tokenize, &json!({ "context": context }), &inputs).unwrap();
            let inputs = [
                ("images", &phantoms["images"]),
                ("captions", &tokens["tokens"]),
                ("checkpoint", &start["checkpoint"]),
            ];
            let error = run(&Embed, &json!({}), &inputs).err().unwrap();
            assert!(matches!(error, StageError::InputData { .. }), "{error:?}");
            assert!(error.to_string().contains(reason), "{error}");
        }
    }
}
