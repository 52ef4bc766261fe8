//! The stage kind `corrupt`: images of lower quality, by which robustness is measured.

mod pixels;

use pipe_engine::cache::Digest;
use pipe_engine::{
    DefaultCpu, InputClass, InputPort, KindDescription, Numerics, OutputPort, StageContext, StageError,
    StageKind,
};
use pipe_models::preprocess::Picture;
use pipe_models::random::Key;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::pixels::Corruption;
use self::pixels::corrupted;
use crate::artifact;
use crate::table::{Column, Table, TableSchema, WriteOptions, read, write};

/// Parameters of `corrupt`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// What happens to the images.
    pub corruption: Corruption,
    /// How much of it: 1 to 5, the levels of ImageNet-C; 0 leaves every image as it is, for a condition to compare
    /// with.
    #[schemars(range(min = 0, max = 5))]
    pub level: i64,
    /// The splits whose images are corrupted; all if empty. Images of other splits stay as they are.
    #[serde(default)]
    pub splits: Vec<String>,
    /// Decides the noise of each image, together with the image's id.
    #[serde(default)]
    pub seed: i64,
}

/// Lowers the quality of images.
pub struct Corrupt;

impl StageKind for Corrupt {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "corrupt",
            summary: "lowers the quality of images: noise, blur, contrast, brightness, JPEG",
            implementation: 1,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::One,
            inputs: vec![
                InputPort::required("images", &[artifact::IMAGES], "the images").class(InputClass::Map),
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("images", artifact::IMAGES, "the images as they are then, under their ids")]
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let table = read(context.input("images")?)?;
        let splits: Vec<&str> = params.splits.iter().map(String::as_str).collect();
        let rows = if params.level == 0 { Vec::new() } else { table.rows_of_splits(&splits) };
        context.check_cancelled()?;
        let changed: Result<Vec<Changed>, StageError> =
            rows.par_iter().map(|row| changed(&table, *row, params)).collect();
        let table = replaced(table, &rows, changed?)?;
        let provenance = context.provenance().to_owned();
        let options = WriteOptions::row_wise(context, &provenance);
        write(context.output("images")?, &TableSchema::images(), &table, options)
    }
}

/// The new file of an image.
struct Changed {
    bytes: Vec<u8>,
    channels: usize,
}

fn changed(table: &Table, row: usize, params: &Params) -> Result<Changed, StageError> {
    let id = table.strings("image_id")?[row];
    let (bytes, path) =
        table.images("image")?[row].as_ref().ok_or_else(|| StageError::input(id, "the row has no image"))?;
    let problem = |error: &dyn std::fmt::Display| StageError::input(path, format!("{error} (row {id})"));
    let picture = Picture::decode(bytes).map_err(|error| problem(&error))?;
    let key = Key::derive("pipe corrupt/1", params.seed as u64, &[id.into()]);
    let (bytes, channels) = corrupted(&picture, params.corruption, params.level as usize, key)
        .map_err(|error| problem(&error))?;
    Ok(Changed { bytes, channels })
}

/// The table with the new files at `rows`; all else as it was.
fn replaced(table: Table, rows: &[usize], changed: Vec<Changed>) -> Result<Table, StageError> {
    let mut images = table.images("image")?.to_vec();
    let mut digests = table.utf8("sha")?.to_vec();
    let Some(Column::Int32(channels)) = table.column("channels") else {
        return Err(StageError::input("images", "its column `channels` is not of integers"));
    };
    let mut channels = channels.clone();
    for (row, changed) in rows.iter().zip(changed) {
        digests[*row] = Some(Digest::of(&changed.bytes).to_hex());
        channels[*row] = Some(changed.channels as i32);
        if let Some((bytes, _)) = &mut images[*row] {
            *bytes = changed.bytes;
        }
    }
    Ok(table
        .replacing("image", Column::Image(images))
        .replacing("sha", Column::Utf8(digests))
        .replacing("channels", Column::Int32(channels)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::phantom::IngestPhantom;
    use crate::testing::{Made, run};

    fn images(made: &Made) -> Table {
        read(&made["images"]).unwrap()
    }

    #[test]
    fn only_images_of_the_chosen_splits_change() {
        let params = json!({ "domain": "medical", "size": 28, "seed": 4, "train": 6, "test": 5 });
        let data = run(&IngestPhantom, &params, &[]).unwrap();
        let params = json!({ "corruption": "noise", "level": 2, "splits": ["test"] });
        let inputs = [("images", &data["images"])];
        let made = run(&Corrupt, &params, &inputs).unwrap();
        let (before, after) = (images(&data), images(&made));
        let splits = before.strings("split").unwrap();
        assert_eq!(before.metadata.get("task"), after.metadata.get("task"));
        for name in ["image_id", "split", "width", "height", "modality", "group_id"] {
            assert_eq!(before.column(name), after.column(name), "{name}");
        }
        for (row, split) in splits.iter().enumerate() {
            let [before, after] =
                [&before, &after].map(|table| table.images("image").unwrap()[row].clone().unwrap());
            assert_eq!(before.0 == after.0, *split != "test");
            assert_eq!(after.1, before.1);
            let sha = images(&made).strings("sha").unwrap()[row].to_owned();
            assert_eq!(sha, Digest::of(&after.0).to_hex());
        }
        let again = run(&Corrupt, &params, &inputs).unwrap();
        assert_eq!(images(&again).columns(), images(&made).columns());
        let other = json!({ "corruption": "noise", "level": 2, "splits": ["test"], "seed": 1 });
        assert_ne!(images(&run(&Corrupt, &other, &inputs).unwrap()).column("sha"), after.column("sha"));
    }

    #[test]
    fn level_0_changes_nothing() {
        let data =
            run(&IngestPhantom, &json!({ "domain": "medical", "size": 28, "train": 3, "test": 0 }), &[]);
        let data = data.unwrap();
        let params = json!({ "corruption": "blur", "level": 0 });
        let made = run(&Corrupt, &params, &[("images", &data["images"])]).unwrap();
        assert_eq!(images(&made).columns(), images(&data).columns());
    }
}
