//! The stage kind `overlap`: what several data sets share. A test set whose images another set trains on measures
//! memory, and sets that were made from one source often share them.

use std::collections::BTreeMap;
use std::path::Path;

use pipe_engine::{
    Artifact, ArtifactType, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem,
    StageContext, StageError, StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact;
use crate::ingest::checks::Checks;
use crate::ingest::exact;
use crate::ingest::seen::text_key;
use crate::ingest::splits::SPLITS;
use crate::table::{Table, read_each};
use pipe_engine::cache::Spill;

/// Parameters of `overlap`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {}

/// Compares data sets with each other.
pub struct Overlap;

const ACCEPTS: &[ArtifactType] =
    &[artifact::IMAGES, artifact::VOLUMES, artifact::CAPTIONS, artifact::QUESTIONS];
const PICTURES: &[ArtifactType] = &[artifact::IMAGES, artifact::VOLUMES];

/// What rows are compared by, in the order of the result.
const COMPARED: [Compared; 4] = [
    Compared { check: "same file", tables: PICTURES, id: "image_id", column: "sha" },
    Compared { check: "same group", tables: PICTURES, id: "image_id", column: "group_id" },
    Compared { check: "same caption", tables: &[artifact::CAPTIONS], id: "image_id", column: "caption" },
    Compared { check: "same question", tables: &[artifact::QUESTIONS], id: "qid", column: "question" },
];

struct Compared {
    check: &'static str,
    tables: &'static [ArtifactType],
    id: &'static str,
    column: &'static str,
}

impl StageKind for Overlap {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "overlap",
            summary: "counts which images, groups, captions and questions data sets share with each other",
            implementation: 1,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::One,
            inputs: Vec::new(),
            free_inputs: Some(InputPort {
                many: true,
                ..InputPort::required(
                    "",
                    ACCEPTS,
                    "The tables of a data set: its images, captions, questions; its name is the set's name in the result",
                )
            }),
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("checks", artifact::CHECKS, "how many rows of a set another set has too")]
    }

    fn check(&self, _params: &Params) -> Vec<ParameterProblem> {
        Vec::new()
    }

    fn run(&self, _params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let sets: Vec<(String, Vec<Artifact>)> = context
            .all_inputs()
            .map(|(name, given)| (name.to_owned(), given.iter().map(|one| one.artifact.clone()).collect()))
            .collect();
        if sets.len() < 2 {
            return Err(StageError::failed(
                "one data set is given; two or more are compared, each an input of its own".to_owned(),
            ));
        }
        let mut checks = Checks::default();
        for compared in &COMPARED {
            context.check_cancelled()?;
            let mut rows = Rows::new(context.scratch()?);
            for (set, (name, tables)) in sets.iter().enumerate() {
                let is_compared =
                    |table: &&Artifact| compared.tables.iter().any(|of| of.0 == table.artifact_type);
                for table in tables.iter().filter(is_compared) {
                    for file in table.files_ending(".parquet") {
                        rows.read(set, name, &file.location, compared)?;
                    }
                }
            }
            rows.compare(compared.check, &mut checks)?;
        }
        let provenance = context.provenance().to_owned();
        checks.write(context.output("checks")?, &provenance)
    }
}

/// A row of a table, sixteen bytes: what it is compared by, its number and its part.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Keyed {
    key: u64,
    row: u32,
    part: u16,
}

/// Rows of all data sets that are compared by one thing.
struct Rows {
    keyed: Vec<Keyed>,
    /// The ids of all rows, one after the other, and where each ends.
    ids: Spill,
    ends: Vec<u64>,
    /// Data sets and their splits, in the order in which they are told: place of the set, place of the split, name.
    parts: Vec<(usize, usize, String)>,
}

impl Rows {
    fn new(scratch: &Path) -> Self {
        Self {
            keyed: Vec::new(),
            ids: Spill::new(scratch, Spill::LIMIT),
            ends: Vec::new(),
            parts: Vec::new(),
        }
    }

    /// Reads the rows of a file.
    fn read(&mut self, set: usize, name: &str, file: &Path, compared: &Compared) -> Result<(), StageError> {
        let wanted = |column: &str| [compared.id, "split", compared.column].contains(&column);
        read_each(file, &wanted, &mut |table: &Table| {
            if table.column(compared.column).is_none() {
                return Ok(());
            }
            let values = table.as_text(compared.column)?;
            let (ids, splits) = (table.as_text(compared.id)?, table.strings("split")?);
            for (row, value) in values.iter().enumerate() {
                // Nothing is not equal to nothing.
                let Some(value) = value.as_deref().filter(|value| !value.trim().is_empty()) else { continue };
                let number = u32::try_from(self.ends.len()).map_err(|_| {
                    StageError::failed("more than four billion rows are not compared".to_owned())
                })?;
                let part = self.part(set, name, splits[row])?;
                self.keyed.push(Keyed { key: text_key(&exact(value)), row: number, part });
                self.ids.append(ids[row].as_deref().unwrap_or_default().as_bytes())?;
                self.ends.push(self.ids.len());
            }
            Ok(())
        })
    }

    /// The place of a split of a data set.
    fn part(&mut self, set: usize, name: &str, split: &str) -> Result<u16, StageError> {
        let of = SPLITS.iter().position(|known| *known == split).unwrap_or(SPLITS.len());
        let label = format!("{name}/{split}");
        let place = match self.parts.iter().position(|(.., known)| *known == label) {
            Some(place) => place,
            None => {
                self.parts.push((set, of, label));
                self.parts.len() - 1
            }
        };
        u16::try_from(place).map_err(|_| StageError::failed("there are too many data sets".to_owned()))
    }

    /// For each split of a data set and each split of another one before it: how many rows have an equal row there.
    /// Zeros are rows too: they say that somebody looked. Nothing where fewer than two sets have such rows.
    fn compare(&mut self, check: &'static str, checks: &mut Checks) -> Result<(), StageError> {
        self.keyed.sort_unstable();
        let mut pairs: BTreeMap<(u16, u16), (u64, Vec<(u32, u32)>)> = BTreeMap::new();
        for equal in self.keyed.chunk_by(|one, other| one.key == other.key).filter(|equal| equal.len() > 1) {
            // The first row of each part.
            let mut firsts: BTreeMap<u16, u32> = BTreeMap::new();
            for one in equal {
                firsts.entry(one.part).or_insert(one.row);
            }
            for one in equal {
                for (part, first) in &firsts {
                    if self.parts[usize::from(*part)].0 >= self.parts[usize::from(one.part)].0 {
                        continue;
                    }
                    let (count, named) = pairs.entry((one.part, *part)).or_default();
                    *count += 1;
                    named.push((one.row, *first));
                    if named.len() >= 4 * checks.examples() {
                        named.sort_unstable();
                        named.truncate(checks.examples());
                    }
                }
            }
        }
        let mut order: Vec<u16> = (0..self.parts.len() as u16).collect();
        order.sort_by_key(|part| &self.parts[usize::from(*part)]);
        for (place, part) in order.iter().enumerate() {
            let (set, _, name) = &self.parts[usize::from(*part)];
            for other in &order[..place] {
                let (other_set, _, other_name) = &self.parts[usize::from(*other)];
                if set == other_set {
                    continue;
                }
                let (count, mut named) = pairs.remove(&(*part, *other)).unwrap_or_default();
                named.sort_unstable();
                named.truncate(checks.examples());
                let examples = named
                    .iter()
                    .map(|(row, first)| Ok(format!("{} = {}", self.id(*row)?, self.id(*first)?)))
                    .collect::<Result<Vec<_>, StageError>>()?;
                checks.counted(check, name, other_name, count, examples);
            }
        }
        Ok(())
    }

    fn id(&self, row: u32) -> Result<String, StageError> {
        let row = row as usize;
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
        let id = self.ids.read(start, (self.ends[row] - start) as usize)?;
        Ok(String::from_utf8_lossy(&id).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use pipe_engine::InputArtifact;
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;
    use crate::ingest::IngestImages;
    use crate::phantom::IngestPhantom;
    use crate::table::read;
    use crate::testing::{Made, run, run_with, tree};

    fn phantoms(seed: u64, test: u64) -> Made {
        let params = json!({
            "domain": "medical", "weights": "chest", "task": "finding-chest", "questions": 1, "seed": seed, "size": 32,
            "train": 6, "val": 0, "test": test,
        });
        run(&IngestPhantom, &params, &[]).unwrap()
    }

    /// Compares data sets by their tables.
    fn overlap(sets: &[(&str, Vec<&Artifact>)]) -> Result<Made, StageError> {
        let given = |artifact: &&Artifact| InputArtifact {
            axes: BTreeMap::new(),
            stage: String::new(),
            artifact: (*artifact).clone(),
        };
        let inputs = sets
            .iter()
            .map(|(name, tables)| ((*name).to_owned(), tables.iter().map(given).collect()))
            .collect();
        run_with(1, &Overlap, &json!({}), inputs)
    }

    fn rows(made: &Made, check: &str) -> Vec<(String, i64, Vec<String>)> {
        let table = read(&made["checks"]).unwrap();
        let [names, splits, others] = ["check", "split", "other"].map(|name| table.strings(name).unwrap());
        let Some(crate::table::Column::ListUtf8(examples)) = table.column("examples") else { panic!() };
        (0..table.rows())
            .filter(|row| names[*row] == check)
            .map(|row| {
                let count = table.int64("count").unwrap()[row].unwrap();
                (format!("{} {}", splits[row], others[row]), count, examples[row].clone().unwrap_or_default())
            })
            .collect()
    }

    #[test]
    fn sets_that_share_images_are_found() {
        let (one, other) = (phantoms(1, 4), phantoms(2, 2));
        // A third set: two test images of the first one, and one that no other set has.
        let folder = TempDir::new().unwrap();
        let images = read(&one["images"]).unwrap();
        let tests = images.rows_of_splits(&["test"]);
        for row in &tests[..2] {
            let (bytes, _) = images.images("image").unwrap()[*row].clone().unwrap();
            std::fs::write(folder.path().join(format!("copy {row}.png")), bytes).unwrap();
        }
        std::fs::write(folder.path().join("own.png"), crate::png::encode(&[7; 12], 4, 3, 1).unwrap())
            .unwrap();
        let copies = run(&IngestImages, &json!({}), &[("source", &tree(folder.path(), "file"))]).unwrap();
        let (a, b, c) = (&one, &other, &copies["images"]);
        let made = overlap(&[
            ("a", vec![&a["images"], &a["captions"], &a["questions"]]),
            ("b", vec![&b["images"], &b["captions"], &b["questions"]]),
            ("c", vec![c]),
        ])
        .unwrap();
        let found = rows(&made, "same file");
        let expected = [
            ("b/train a/train", 0),
            ("b/train a/test", 0),
            ("b/test a/train", 0),
            ("b/test a/test", 0),
            ("c/train a/train", 0),
            ("c/train a/test", 2),
            ("c/train b/train", 0),
            ("c/train b/test", 0),
        ];
        assert_eq!(
            found.iter().map(|(pair, count, _)| (pair.as_str(), *count)).collect::<Vec<_>>(),
            expected
        );
        let ids = images.strings("image_id").unwrap();
        let mut named: Vec<String> =
            tests[..2].iter().map(|row| format!("copy {row}.png = {}", ids[*row])).collect();
        named.sort();
        assert_eq!(found[5].2, named);
        // Drawn questions are asked in the same words of every image.
        assert!(rows(&made, "same question").iter().any(|(_, count, _)| *count > 0));
        assert!(rows(&made, "same caption").iter().all(|(pair, ..)| pair.starts_with("b/")));
    }

    #[test]
    fn a_set_shares_everything_with_itself() {
        let one = phantoms(1, 4);
        let made = overlap(&[("a", vec![&one["images"]]), ("b", vec![&one["images"]])]).unwrap();
        let count = |pair: &str| rows(&made, "same file").into_iter().find(|(of, ..)| of == pair).unwrap().1;
        assert_eq!((count("b/train a/train"), count("b/test a/test")), (6, 4));
        assert_eq!(count("b/train a/test"), count("b/test a/train"));
        let error = overlap(&[("a", vec![&one["images"]])]).err().unwrap().to_string();
        assert!(error.contains("two or more"), "{error}");
    }
}
