//! What is known of data sets before any model has seen them: how much there is, and what splits share.

use maud::{Markup, html};
use pipe_engine::StageError;

use super::collect::Collected;
use super::words::title;
use crate::artifact;
use crate::table::{Table, read};

/// Longer tables are folded.
const SHORT: usize = 40;

/// A table of facts for every table of checks that was given.
///
/// # Errors
/// If one is damaged.
pub(super) fn facts(collected: &Collected) -> Result<Vec<Markup>, StageError> {
    let of = |given: &super::collect::Given| {
        let axes: Vec<String> = given.axes.iter().map(|(axis, value)| format!("{axis}={value}")).collect();
        let heading = [title(&given.input), axes.join(", ")].join(" ");
        table(heading.trim(), &read(&given.artifact)?)
    };
    collected.of_type(artifact::CHECKS).map(of).collect()
}

fn table(heading: &str, checks: &Table) -> Result<Markup, StageError> {
    let [names, splits, others, values] = [
        checks.strings("check")?,
        checks.strings("split")?,
        checks.strings("other")?,
        checks.strings("value")?,
    ];
    let counts = checks.int64("count")?;
    let place = |row: usize| match (splits[row], others[row]) {
        ("", _) => "\u{2013}".to_owned(),
        (split, "") => split.to_owned(),
        (split, other) => format!("{split} and {other}"),
    };
    let rows = html! {
        div .scroll tabindex="0" role="region" aria-label=(heading) {
            table {
                caption { (heading) ": facts of the data, counted before any model has seen them" }
                thead {
                    tr {
                        @for name in ["Fact", "Split", "Of"] { th scope="col" { (name) } }
                        th scope="col" .number { "Count" }
                    }
                }
                tbody {
                    @for row in 0..checks.rows() {
                        tr {
                            th scope="row" { (names[row]) }
                            td { (place(row)) }
                            td { (if values[row].is_empty() { "\u{2013}" } else { values[row] }) }
                            td .number { (counts[row].unwrap_or_default()) }
                        }
                    }
                }
            }
        }
    };
    Ok(match checks.rows() > SHORT {
        true => html! { details { summary { (heading) ": " (checks.rows()) " facts" } (rows) } },
        false => rows,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Column;

    fn checks(rows: usize) -> Table {
        let texts = |text: &str| Column::Utf8(vec![Some(text.to_owned()); rows]);
        Table::new()
            .with("check", texts("same image <and> question"))
            .with("split", texts("test"))
            .with("other", texts("train"))
            .with("value", Column::Utf8(vec![None; rows]))
            .with("count", Column::Int64((0..rows as i64).map(|row| Some(row + 1)).collect()))
    }

    #[test]
    fn facts_name_both_splits_and_their_count() {
        let page = table("Checks protocol=p", &checks(2)).unwrap().into_string();
        assert!(
            page.contains("same image &lt;and&gt; question") && page.contains("test and train"),
            "{page}"
        );
        assert!(page.contains(">2</td>") && !page.contains("<details>"), "{page}");
        assert!(table("Checks", &checks(SHORT + 1)).unwrap().into_string().starts_with("<details>"));
    }
}
