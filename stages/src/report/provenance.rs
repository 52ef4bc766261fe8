//! What the page was made from, and the truths that a generator planted.

use std::collections::BTreeSet;

use maud::{Markup, PreEscaped, html};
use pipe_engine::Ancestor;
use pipe_engine::drawing::{Colours, Drawn, svg};

use super::collect::Collected;
use super::columns::{numbers, texts};
use super::words::{number, title};

/// How the page came about: the stages above it as a picture and as a table, and its inputs.
pub(super) fn provenance(ancestry: &[Ancestor], collected: &Collected) -> Vec<Markup> {
    let mut parts = Vec::new();
    if !ancestry.is_empty() {
        parts.push(picture(ancestry));
        parts.push(stages(ancestry));
    }
    parts.push(inputs(collected));
    parts.push(html! {
        p .note {
            "What each stage did when, on which machine, and the keys of its results stand in the study's store: "
            code { "pipe graph --status" } " draws how they stand, " code { "pipe show" } " tells of one result, "
            code { "pipe run" } " makes the page again from the study's file, and " code { "pipe export" }
            " packs results with how they came about."
        }
    });
    parts
}

/// Colours of the page, light or dark.
const COLOURS: Colours = Colours {
    paper: "none",
    fill: "var(--fill)",
    frame: "var(--line)",
    line: "var(--soft)",
    ink: "var(--ink)",
};

fn picture(ancestry: &[Ancestor]) -> Markup {
    let drawn = |one: &Ancestor| Drawn { name: one.stage.clone(), words: Some(words(one)), fill: None };
    let boxes: Vec<Drawn> = ancestry.iter().map(drawn).collect();
    let edges: BTreeSet<(usize, usize)> = (ancestry.iter().enumerate())
        .flat_map(|(place, one)| one.reads.iter().map(move |from| (*from, place)))
        .collect();
    // Inside of a page it needs no name space, and the page no address.
    let svg = svg(&boxes, &edges, COLOURS).replace(" xmlns=\"http://www.w3.org/2000/svg\"", "");
    html! {
        figure .scroll tabindex="0" role="group" aria-label="The stages that this page came about by" {
            div role="img" aria-label="Each stage as a box, behind the stages that it reads; the table below says the same" {
                (PreEscaped(svg))
            }
            figcaption { "The stages that this page came about by: each reads those that lines come from." }
        }
    }
}

/// Its kind, and how often it stands there.
fn words(one: &Ancestor) -> String {
    if one.nodes == 1 { one.kind.clone() } else { format!("{} \u{d7} {}", one.kind, one.nodes) }
}

fn stages(ancestry: &[Ancestor]) -> Markup {
    let reads = |one: &Ancestor| -> Vec<&str> {
        one.reads.iter().filter_map(|place| Some(ancestry.get(*place)?.stage.as_str())).collect()
    };
    html! {
        details {
            summary { "The same as a table" }
            div .scroll tabindex="0" role="region" aria-label="Stages" {
                table {
                    caption { "Stages" }
                    thead {
                        tr {
                            @for name in ["Stage", "Kind", "Nodes", "Reads"] { th scope="col" { (name) } }
                        }
                    }
                    tbody {
                        @for one in ancestry {
                            tr {
                                th scope="row" { (one.stage) }
                                td { (one.kind) }
                                td .number { (one.nodes) }
                                td { (reads(one).join(", ")) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// All inputs with type, kind and digest.
fn inputs(collected: &Collected) -> Markup {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_drawn_behind_what_they_read_and_told_as_a_table() {
        let stage = |name: &str, nodes, reads: &[usize]| Ancestor {
            stage: name.to_owned(),
            kind: "kind".to_owned(),
            nodes,
            reads: reads.iter().copied().collect(),
        };
        let ancestry = [stage("first", 1, &[]), stage("second", 3, &[0]), stage("<b>", 1, &[0, 1])];
        let picture = picture(&ancestry).into_string();
        assert_eq!((picture.matches("<rect").count(), picture.matches("<path").count()), (4, 3));
        assert!(!picture.contains("http"));
        assert!(picture.contains(">kind \u{d7} 3</text>") && picture.contains(">&lt;b&gt;</text>"));
        assert!(!picture.contains("<b>"), "names are text");
        let left = |name: &str| -> f64 {
            let before = picture.split(&format!(">{name}</text>")).next().unwrap();
            before.rsplit("x=\"").next().unwrap().split('"').next().unwrap().parse().unwrap()
        };
        assert!(left("first") < left("second") && left("second") < left("&lt;b&gt;"));
        assert!(stages(&ancestry).into_string().contains("<td>first, second</td>"));
    }
}
