//! What the page was made from, and the truths that a generator planted.

use maud::{Markup, html};

use super::collect::Collected;
use super::columns::{numbers, texts};
use super::words::{number, title};

/// All inputs with type, kind and digest.
pub(super) fn inputs(collected: &Collected) -> Markup {
    html! {
        p .note {
            "Each digest names the content of one input; the same inputs and parameters give this very page."
        }
        div .scroll tabindex="0" role="region" aria-label="Inputs of this report" {
            table {
                caption { "Inputs of this report" }
                thead {
                    tr {
                        th scope="col" { "Input" }
                        th scope="col" { "Axes" }
                        th scope="col" { "Type" }
                        th scope="col" { "Made by" }
                        th scope="col" { "Digest" }
                    }
                }
                tbody {
                    @for given in &collected.given {
                        @let axes: Vec<String> =
                            given.axes.iter().map(|(axis, value)| format!("{axis}={value}")).collect();
                        @let kind = given.provenance.as_ref().and_then(|json| json.get("kind")?.as_str());
                        tr {
                            th scope="row" { (given.input) }
                            td { (if axes.is_empty() { "\u{2013}".to_owned() } else { axes.join(", ") }) }
                            td { (given.artifact.artifact_type) }
                            td { (kind.unwrap_or("\u{2013}")) }
                            td .digest title=(given.artifact.digest.to_hex()) { (given.artifact.digest.to_short()) }
                        }
                    }
                }
            }
        }
    }
}

/// The figures that follow from what a generator planted.
pub(super) fn expected(collected: &Collected) -> Vec<Markup> {
    let mut parts = Vec::new();
    for given in &collected.expected {
        let (batch, source) = (&given.batch, &collected.given[given.given]);
        let columns = ["quantity", "split", "subset", "formula"].map(|name| texts(batch, name));
        let values = ["value", "lower", "upper"].map(|name| numbers(batch, name));
        let value = |column: usize, row: usize| values[column][row].map_or("\u{2013}".to_owned(), number);
        parts.push(html! {
            div .scroll tabindex="0" role="region" aria-label=(title(&source.input)) {
                table {
                    caption {
                        (title(&source.input))
                        ": computed from the generator's probabilities and rows, never from a model"
                    }
                    thead {
                        tr {
                            @for name in ["Quantity", "Split", "Subset"] { th scope="col" { (name) } }
                            @for name in ["Value", "Lower", "Upper"] { th scope="col" .number { (name) } }
                            th scope="col" { "From" }
                        }
                    }
                    tbody {
                        @for row in 0..batch.num_rows() {
                            tr {
                                th scope="row" { (columns[0][row].as_deref().unwrap_or("\u{2013}")) }
                                td { (columns[1][row].as_deref().unwrap_or("\u{2013}")) }
                                td { (columns[2][row].as_deref().unwrap_or("\u{2013}")) }
                                @for column in 0..3 { td .number { (value(column, row)) } }
                                td { (columns[3][row].as_deref().unwrap_or("")) }
                            }
                        }
                    }
                }
            }
        });
    }
    parts
}
