//! What the tests of several readers need.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::source::{SourceFile, SourceFiles};
use crate::table::{Table, read};
use crate::testing::{Made, source, tree};

/// The counts of a check in a table of checks, by split, other split and value, as far as there are any.
pub(crate) fn checks(made: &Made, check: &str) -> BTreeMap<String, i64> {
    let table = read(&made["checks"]).unwrap();
    let column = |name: &str| table.strings(name).unwrap();
    let (names, splits, others, values) =
        (column("check"), column("split"), column("other"), column("value"));
    (0..table.rows())
        .filter(|row| names[*row] == check)
        .map(|row| {
            let parts = [splits[row], others[row], values[row]];
            let key: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
            (key.join(" "), table.int64("count").unwrap()[row].unwrap())
        })
        .collect()
}

/// A text column.
pub(crate) fn strings(table: &Table, column: &str) -> Vec<String> {
    table.strings(column).unwrap().into_iter().map(str::to_owned).collect()
}

/// The reasons in a table of rejects.
pub(crate) fn reasons(made: &Made) -> Vec<String> {
    strings(&read(&made["rejects"]).unwrap(), "reason")
}

/// The records of a published file, read by other means than the product's.
pub(crate) fn json_records(file: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(file).unwrap();
    serde_json::from_str(text.trim_start_matches('\u{feff}')).unwrap()
}

/// The lines of a file that are not empty; none if it is not there.
pub(crate) fn lines(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
}

/// How many rows a CSV file has below its header; none if it is not there. A field may hold the end of a line.
pub(crate) fn csv_rows(file: &Path) -> i64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let mut quoted = false;
    let ends = text.trim_end().bytes().filter(|byte| {
        quoted ^= *byte == b'"';
        *byte == b'\n' && !quoted
    });
    ends.count() as i64
}

/// Copies a folder and what is in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::write(&target, std::fs::read(&path).unwrap()).unwrap();
        }
    }
}

/// Packs the files of a folder, without those whose path a filter refuses.
pub(crate) fn zip_folder(folder: &Path, archive: &Path, keep: impl Fn(&str) -> bool) {
    let mut zip = zip::ZipWriter::new(std::fs::File::create(archive).unwrap());
    for file in &tree(folder, "file").files {
        if keep(&file.path) {
            zip.start_file(&file.path, zip::write::SimpleFileOptions::default()).unwrap();
            std::io::Write::write_all(&mut zip, &std::fs::read(&file.location).unwrap()).unwrap();
        }
    }
    zip.finish().unwrap();
}

/// A file, as a source of its own.
pub(crate) fn source_file(path: &Path) -> Arc<SourceFile> {
    let files = SourceFiles::of(&source(path), path.parent().unwrap()).unwrap();
    files.iter().next().unwrap().unwrap()
}
