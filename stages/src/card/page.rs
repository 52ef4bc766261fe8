//! The page for people. It begins with what Hugging Face's `datasets` reads: which files are which split.

use std::collections::{BTreeMap, BTreeSet};

use super::{CardTable, Params};

/// `README.md`.
pub(super) fn page(params: &Params, tables: &[CardTable]) -> String {
    let mut text = String::from("---\n");
    text.push_str(&format!("pretty_name: {}\n", yaml(&params.name)));
    if !params.licence.is_empty() {
        text.push_str(&format!("license: {}\n", yaml(&params.licence.to_lowercase())));
    }
    text.push_str("configs:\n");
    for table in tables.iter().filter(|table| !table.files.is_empty()) {
        text.push_str(&format!("- config_name: {}\n  data_files:\n", yaml(&table.name)));
        for file in &table.files {
            text.push_str(&format!("  - split: {}\n    path: {}\n", yaml(&file.split), yaml(&file.path)));
        }
    }
    text.push_str(&format!("---\n\n# {}\n\n", line(&params.name)));
    for paragraph in [&params.description, &params.citation, &params.url] {
        if !paragraph.is_empty() {
            text.push_str(&format!("{paragraph}\n\n"));
        }
    }
    let splits: BTreeSet<&str> =
        tables.iter().flat_map(|table| table.files.iter().map(|file| file.split.as_str())).collect();
    text.push_str(&format!("| rows of | {} |\n", join(splits.iter().copied())));
    text.push_str(&format!("| --- | {} |\n", join(splits.iter().map(|_| "---:"))));
    for table in tables {
        let rows = splits.iter().map(|split| {
            let file = table.files.iter().find(|file| file.split == *split);
            file.map_or_else(|| "-".to_owned(), |file| file.rows.to_string())
        });
        text.push_str(&format!("| `{}` | {} |\n", table.name, join(rows)));
    }
    for table in tables.iter().filter(|table| !table.classes.is_empty()) {
        text.push_str(&format!("\n## Classes of `{}`\n\n", table.name));
        text.push_str(&format!("| class | {} |\n", join(splits.iter().copied())));
        text.push_str(&format!("| --- | {} |\n", join(splits.iter().map(|_| "---:"))));
        let mut classes: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
        for (split, class, rows) in &table.classes {
            classes.entry(class).or_default().insert(split, *rows);
        }
        for (class, rows) in classes {
            let rows = splits.iter().map(|split| rows.get(split).copied().unwrap_or(0).to_string());
            text.push_str(&format!("| {} | {} |\n", line(class), join(rows)));
        }
    }
    text.push_str("\n`croissant.json` describes the same for machines (Croissant 1.0).\n");
    text
}

fn join<T: AsRef<str>>(cells: impl Iterator<Item = T>) -> String {
    cells.map(|cell| cell.as_ref().to_owned()).collect::<Vec<_>>().join(" | ")
}

/// A text of one line that no table of the page is broken by.
pub(super) fn line(text: &str) -> String {
    text.replace(['\n', '\r'], " ").replace('|', "\\|")
}

/// A text as a YAML scalar: JSON's strings are YAML's.
pub(super) fn yaml(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
