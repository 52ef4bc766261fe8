//! An answer as a person, a spreadsheet, a program, a page or a paper reads it.
//!
//! Texts come from data and are hostile: none of them may steer a terminal, begin a formula, or end the cell
//! that it stands in.

use std::io::Write;
use std::path::Path;

use serde_json::{Value as Json, json};
use unicode_width::UnicodeWidthStr;

use super::arguments::{AnswerArguments, AnswerFormat, Arguments};
use super::{CliError, print};
use crate::answers::{Answer, Cell};
use crate::exit;

/// The format that was asked for: `--json` is one of them.
pub(crate) fn format(arguments: &Arguments, answer: &AnswerArguments) -> AnswerFormat {
    if arguments.global.json { AnswerFormat::Json } else { answer.format }
}

/// Writes an answer where it was asked for.
pub(crate) fn write(arguments: &Arguments, asked: &AnswerArguments, answer: &Answer) -> Result<u8, CliError> {
    let text = text(answer, format(arguments, asked), usize::from(asked.digits));
    match &asked.output {
        None => print(&text),
        Some(path) => {
            let doing = format!("writing `{}`", path.display());
            write_whole(path, text.as_bytes()).map_err(|error| CliError::environment(&doing, &error))?;
            Ok(exit::DONE)
        }
    }
}

/// Writes a file, whole or not at all.
pub(super) fn write_whole(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = folder.join(format!(".{}", uuid::Uuid::now_v7()));
    let written = std::fs::File::create_new(&temporary)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// An answer in a format. `digits` after the point are for people.
fn text(answer: &Answer, format: AnswerFormat, digits: usize) -> String {
    match format {
        AnswerFormat::Table => aligned(answer, digits),
        AnswerFormat::Csv => csv(answer),
        AnswerFormat::Json => format!("{:#}\n", as_json(answer)),
        AnswerFormat::Md => markdown(answer, digits),
        AnswerFormat::Latex => latex(answer, digits),
    }
}

/// A cell as a person reads it: numbers to so many digits, nothing as `none`.
fn shown(cell: &Cell, digits: usize, none: &str) -> String {
    match cell {
        Cell::Null => none.to_owned(),
        Cell::Bool(value) => value.to_string(),
        Cell::Integer(value) => value.to_string(),
        // A number that these digits would make a zero of keeps its size.
        Cell::Real(value) if *value != 0.0 && value.abs() < 0.5 * 10f64.powi(-(digits as i32)) => {
            format!("{value:.*e}", digits.min(2))
        }
        Cell::Real(value) => format!("{value:.digits$}"),
        Cell::Text(text) => plain(text),
    }
}

/// A text without anything that a terminal obeys, and on one line: control characters, and those that turn
/// the direction of what is read or hide it, are written as escapes.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => plain.push_str("\\n"),
            '\t' => plain.push_str("\\t"),
            '\r' => plain.push_str("\\r"),
            hidden if hidden.is_control() || is_invisible(hidden) => {
                plain.push_str(&format!("\\u{{{:x}}}", u32::from(hidden)));
            }
            other => plain.push(other),
        }
    }
    plain
}

/// Marks of direction, separators of lines, and what has no width.
fn is_invisible(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Whether all values of a column are numbers: these stand on the right.
fn is_numeric(answer: &Answer, column: usize) -> bool {
    let mut cells = answer.rows.iter().map(|row| &row[column]);
    cells.clone().any(|cell| *cell != Cell::Null)
        && cells.all(|cell| matches!(cell, Cell::Null | Cell::Integer(_) | Cell::Real(_)))
}

fn aligned(answer: &Answer, digits: usize) -> String {
    let head: Vec<String> = answer.columns.iter().map(|name| plain(name)).collect();
    let rows: Vec<Vec<String>> =
        answer.rows.iter().map(|row| row.iter().map(|cell| shown(cell, digits, "-")).collect()).collect();
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].width());
        widths.chain([head[column].width()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let cells = cells.iter().enumerate().map(|(column, cell)| {
            let space = " ".repeat(widths[column] - cell.width());
            if is_numeric(answer, column) { format!("{space}{cell}") } else { format!("{cell}{space}") }
        });
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    [line(&head), line(&rule)].into_iter().chain(rows.iter().map(|row| line(row))).collect()
}

/// As RFC 4180 has it, with line feeds. Nothing is an empty field, an empty text is `""`.
fn csv(answer: &Answer) -> String {
    let text = |text: &str| {
        // A spreadsheet computes what begins so; the apostrophe makes it a text there.
        let is_formula = text.starts_with([
            '=', '+', '-', '@', '\t', '\r', '\n', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}',
        ]);
        let text = if is_formula { format!("'{text}") } else { text.to_owned() };
        if text.is_empty() || text.contains(['"', ',', '\n', '\r']) || text.trim() != text {
            format!("\"{}\"", text.replace('"', "\"\""))
        } else {
            text
        }
    };
    let cell = |cell: &Cell| match cell {
        Cell::Null => String::new(),
        Cell::Bool(value) => value.to_string(),
        Cell::Integer(value) => value.to_string(),
        Cell::Real(value) => value.to_string(),
        Cell::Text(value) => text(value),
    };
    let line = |cells: Vec<String>| cells.join(",") + "\n";
    let head = line(answer.columns.iter().map(|name| text(name)).collect());
    head + &answer.rows.iter().map(|row| line(row.iter().map(cell).collect())).collect::<String>()
}

/// The columns in their order, and each row as a list. A number that JSON does not have is a text.
fn as_json(answer: &Answer) -> Json {
    let cell = |cell: &Cell| match cell {
        Cell::Null => Json::Null,
        Cell::Bool(value) => json!(value),
        Cell::Integer(value) => json!(value),
        Cell::Real(value) if value.is_finite() => json!(value),
        Cell::Real(value) => json!(value.to_string()),
        Cell::Text(value) => json!(value),
    };
    let rows: Vec<Json> = answer.rows.iter().map(|row| row.iter().map(cell).collect()).collect();
    json!({ "version": 1, "columns": answer.columns, "rows": rows })
}

fn markdown(answer: &Answer, digits: usize) -> String {
    let escaped = |text: &str| {
        let mut escaped = String::with_capacity(text.len());
        for character in text.chars() {
            match character {
                '&' => escaped.push_str("&amp;"),
                '<' => escaped.push_str("&lt;"),
                '>' => escaped.push_str("&gt;"),
                '\\' | '`' | '*' | '_' | '{' | '}' | '[' | ']' | '|' | '~' | '#' | '!' | '$' => {
                    escaped.extend(['\\', character]);
                }
                other => escaped.push(other),
            }
        }
        escaped
    };
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let cell = |cell: &Cell| match cell {
        Cell::Text(text) => escaped(&plain(text)),
        other => shown(other, digits, ""),
    };
    let head = line(answer.columns.iter().map(|name| escaped(&plain(name))).collect());
    let side = |column| if is_numeric(answer, column) { "---:" } else { "---" }.to_owned();
    let rule = line((0..answer.columns.len()).map(side).collect());
    head + &rule + &answer.rows.iter().map(|row| line(row.iter().map(cell).collect())).collect::<String>()
}

fn latex(answer: &Answer, digits: usize) -> String {
    let escaped = |text: &str| {
        let mut escaped = String::with_capacity(text.len());
        for character in text.chars() {
            match character {
                '\\' => escaped.push_str("\\textbackslash{}"),
                '~' => escaped.push_str("\\textasciitilde{}"),
                '^' => escaped.push_str("\\textasciicircum{}"),
                '<' => escaped.push_str("\\textless{}"),
                '>' => escaped.push_str("\\textgreater{}"),
                '|' => escaped.push_str("\\textbar{}"),
                '"' => escaped.push_str("\\textquotedbl{}"),
                '{' | '}' | '$' | '&' | '#' | '_' | '%' => escaped.extend(['\\', character]),
                // After the end of a row this would be its argument.
                '[' | ']' => escaped.extend(['{', character, '}']),
                '\u{2013}' => escaped.push_str("--"),
                '\u{b1}' => escaped.push_str("\\textpm{}"),
                other => escaped.push(other),
            }
        }
        escaped
    };
    let line = |cells: Vec<String>| format!("  {} \\\\\n", cells.join(" & "));
    let cell = |cell: &Cell| match cell {
        Cell::Text(text) => escaped(&plain(text)),
        Cell::Null => "--".to_owned(),
        other => format!("${}$", shown(other, digits, "").replace('e', "\\mathrm{e}")),
    };
    let cell = |one: &Cell| match one {
        Cell::Bool(value) => value.to_string(),
        other => cell(other),
    };
    let sides: String =
        (0..answer.columns.len()).map(|column| if is_numeric(answer, column) { 'r' } else { 'l' }).collect();
    let head = line(answer.columns.iter().map(|name| escaped(&plain(name))).collect());
    let rows: String = answer.rows.iter().map(|row| line(row.iter().map(cell).collect())).collect();
    format!(
        "% \\usepackage{{booktabs}}\n\\begin{{tabular}}{{{sides}}}\n  \\toprule\n{head}  \\midrule\n{rows}  \\bottomrule\n\\end{{tabular}}\n"
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(name: &str, cells: Vec<Cell>) -> Answer {
        Answer { columns: vec![name.to_owned()], rows: cells.into_iter().map(|cell| vec![cell]).collect() }
    }

    fn example() -> Answer {
        let row = |name: &str, value: Option<f64>, n: i64| {
            vec![Cell::Text(name.to_owned()), value.map_or(Cell::Null, Cell::Real), Cell::Integer(n)]
        };
        Answer {
            columns: ["model", "auroc", "n"].map(str::to_owned).to_vec(),
            rows: vec![row("general", Some(0.91234567), 7), row("wide 漢字", None, 1200)],
        }
    }

    #[test]
    fn people_read_aligned_columns() {
        let expected = "model      auroc     n\n---------  -----  ----\ngeneral    0.912     7\nwide 漢字      -  1200\n";
        assert_eq!(text(&example(), AnswerFormat::Table, 3), expected);
        // Small numbers do not become zeros.
        assert_eq!(shown(&Cell::Real(0.00012), 3, ""), "1.20e-4");
        assert_eq!(shown(&Cell::Real(0.0), 3, ""), "0.000");
    }

    #[test]
    fn spreadsheets_and_programs_get_every_digit() {
        assert_eq!(
            text(&example(), AnswerFormat::Csv, 1),
            "model,auroc,n\ngeneral,0.91234567,7\nwide 漢字,,1200\n"
        );
        let read: Json = serde_json::from_str(&text(&example(), AnswerFormat::Json, 1)).unwrap();
        assert_eq!(
            read,
            json!({ "version": 1, "columns": ["model", "auroc", "n"], "rows": [["general", 0.91234567, 7], ["wide 漢字", null, 1200]] })
        );
    }

    #[test]
    fn pages_and_papers() {
        assert_eq!(
            text(&example(), AnswerFormat::Md, 2),
            "| model | auroc | n |\n| --- | ---: | ---: |\n| general | 0.91 | 7 |\n| wide 漢字 |  | 1200 |\n"
        );
        assert_eq!(
            text(&example(), AnswerFormat::Latex, 2),
            "% \\usepackage{booktabs}\n\\begin{tabular}{lrr}\n  \\toprule\n  model & auroc & n \\\\\n  \\midrule\n  general & $0.91$ & $7$ \\\\\n  wide 漢字 & -- & $1200$ \\\\\n  \\bottomrule\n\\end{tabular}\n"
        );
    }

    #[test]
    fn hostile_texts_stay_texts() {
        let hostile = "a\u{1b}[2Jb\u{202e}|<script>\\end{tabular}%&_$#^~\r\nc";
        let answer = one("x", vec![Cell::Text(hostile.to_owned())]);
        let table = text(&answer, AnswerFormat::Table, 3);
        assert!(!table.contains(['\u{1b}', '\u{202e}', '\r']) && table.lines().count() == 3, "{table}");
        let page = text(&answer, AnswerFormat::Md, 3);
        assert!(
            page.contains("\\|&lt;script&gt;\\\\end\\{tabular\\}") && page.lines().count() == 3,
            "{page}"
        );
        let paper = text(&answer, AnswerFormat::Latex, 3);
        assert_eq!(paper.matches("\\end{tabular}").count(), 1, "{paper}");
        assert!(paper.contains(
            "\\textbackslash{}end\\{tabular\\}\\%\\&\\_\\$\\#\\textasciicircum{}\\textasciitilde{}"
        ));
        let spread = text(&one("x", vec![Cell::Text("1 \u{b1} 2".to_owned())]), AnswerFormat::Latex, 3);
        assert!(spread.contains("1 \\textpm{} 2"), "{spread}");
        for formula in ["=1+1", "+1", "-1", "@x", "\t=1", "=cmd|' /C calc'!A0"] {
            let line = text(&one("x", vec![Cell::Text(formula.to_owned())]), AnswerFormat::Csv, 3);
            assert!(line.trim_start_matches("x\n").trim_start_matches('"').starts_with('\''), "{line}");
        }
        // Numbers are not texts.
        assert_eq!(text(&one("x", vec![Cell::Real(-1.5)]), AnswerFormat::Csv, 3), "x\n-1.5\n");
        assert_eq!(text(&one("x", vec![Cell::Text(String::new())]), AnswerFormat::Csv, 3), "x\n\"\"\n");
    }

    proptest! {
        /// Whatever a text is, it stays in its cell.
        #[test]
        fn no_text_leaves_its_cell(hostile in any::<String>()) {
            let answer = one("x", vec![Cell::Text(hostile.clone()), Cell::Text("end".to_owned())]);
            for format in [AnswerFormat::Table, AnswerFormat::Md] {
                let written = text(&answer, format, 3);
                prop_assert_eq!(written.lines().count(), 4);
                prop_assert!(!written.chars().any(|one| one.is_control() && one != '\n'));
            }
            let paper = text(&answer, AnswerFormat::Latex, 3);
            prop_assert_eq!(paper.lines().count(), 9);
            let mut fields = Vec::new();
            let written = text(&answer, AnswerFormat::Csv, 3);
            let (mut field, mut quoted) = (String::new(), false);
            let mut characters = written.chars().peekable();
            while let Some(character) = characters.next() {
                match character {
                    '"' if quoted && characters.peek() == Some(&'"') => { characters.next(); field.push('"'); }
                    '"' => quoted = !quoted,
                    '\n' if !quoted => fields.push(std::mem::take(&mut field)),
                    other => field.push(other),
                }
            }
            prop_assert_eq!(fields.len(), 3);
            let guarded = format!("'{hostile}");
            prop_assert!(fields[1] == hostile || fields[1] == guarded);
        }
    }
}
