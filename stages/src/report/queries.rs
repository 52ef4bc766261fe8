//! Answers of `query`, as the tables that they are.

use maud::{Markup, html};
use pipe_engine::StageError;

use super::collect::{Collected, Given};
use super::words::{number, title};
use crate::artifact;
use crate::table::{Column, Table, read};

/// Longer tables are folded.
const SHORT: usize = 40;
/// Rows that are shown at most.
const LONGEST: usize = 1000;

/// A table for every answer of a query that was given.
///
/// # Errors
/// If one is damaged.
pub(super) fn queries(collected: &Collected) -> Result<Vec<Markup>, StageError> {
    let of = |given: &Given| {
        let axes: Vec<String> = given.axes.iter().map(|(axis, value)| format!("{axis}={value}")).collect();
        let heading = [title(&given.input), axes.join(", ")].join(" ");
        Ok(table(heading.trim(), &read(&given.artifact)?))
    };
    collected.of_type(artifact::QUERY).map(of).collect()
}

/// A cell and whether it is a number; nothing where there is no value.
fn cell(column: &Column, row: usize) -> (Option<String>, bool) {
    match column {
        Column::Utf8(values) => (values[row].clone(), false),
        Column::Bool(values) => (values[row].map(|value| value.to_string()), false),
        Column::Int32(values) => (values[row].map(|value| value.to_string()), true),
        Column::Int64(values) => (values[row].map(|value| value.to_string()), true),
        Column::Float64(values) => (values[row].map(number), true),
        _ => (None, false),
    }
}

fn table(heading: &str, answer: &Table) -> Markup {
    let shown = answer.rows().min(LONGEST);
    let rows = html! {
        div .scroll tabindex="0" role="region" aria-label=(heading) {
            table {
                caption { (heading) }
                thead {
                    tr {
                        @for (name, _) in answer.columns() { th scope="col" { (title(name)) } }
                    }
                }
                tbody {
                    @for row in 0..shown {
                        tr {
                            @for (_, column) in answer.columns() {
                                @let (text, is_number) = cell(column, row);
                                td .number[is_number] { (text.as_deref().unwrap_or("\u{2013}")) }
                            }
                        }
                    }
                }
            }
            @if shown < answer.rows() {
                p .note { "The first " (shown) " of " (answer.rows()) " rows." }
            }
        }
    };
    match answer.rows() > SHORT {
        true => html! { details { summary { (heading) ": " (answer.rows()) " rows" } (rows) } },
        false => rows,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_shown_as_it_is() {
        let answer = |rows: usize| {
            Table::new()
                .with("method", Column::Utf8(vec![Some("<mevf>".to_owned()); rows]))
                .with("open_questions", Column::Int64(vec![Some(109); rows]))
                .with("lost", Column::Float64((0..rows).map(|row| (row > 0).then_some(0.25)).collect()))
        };
        let page = table("Leak", &answer(2)).into_string();
        for expected in ["&lt;mevf&gt;", "Open questions", ">109</td>", "0.25", "\u{2013}</td>"] {
            assert!(page.contains(expected), "{expected}: {page}");
        }
        assert!(!page.contains("<details>"));
        let page = table("Leak", &answer(LONGEST + 1)).into_string();
        assert!(page.starts_with("<details>") && page.contains("The first 1000 of 1001 rows."));
    }
}
