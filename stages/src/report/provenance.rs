//! What the page was made from, and the truths that a generator planted.

use std::collections::{BTreeMap, BTreeSet};

use maud::{Markup, PreEscaped, html};
use pipe_engine::Ancestor;
use pipe_engine::cache::Digest;
use pipe_engine::drawing::{Colours, Drawn, svg};

use super::collect::Collected;
use super::columns::{numbers, texts};
use super::words::{number, title};

/// How the page came about: the stages above it as a picture and as a table, what each of them gave, and the inputs.
pub(super) fn provenance(ancestry: &[Ancestor], collected: &Collected) -> Vec<Markup> {
    let mut parts = Vec::new();
    if !ancestry.is_empty() {
        parts.push(picture(ancestry));
        parts.push(stages(ancestry));
        parts.push(results(ancestry));
        parts.push(environment(ancestry));
    }
    parts.push(inputs(collected));
    parts.push(html! {
        p .note {
            "To make this page again: " code { "pipe run" } " with the study's file; " code { "pipe run --reproduce" }
            " computes every result once more and compares the digests, and " code { "pipe export" }
            " packs results with how they came about. " code { "pipe show" }
            " tells of a result, by its node, when and on which machine it was made."
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
            figcaption {
                "The stages that this page came about by: each reads those that lines come from, and each was complete when "
                "the page was made."
            }
        }
    }
}

/// Its kind, and how often it stands there.
fn words(one: &Ancestor) -> String {
    match one.results.len() {
        0 | 1 => one.kind.clone(),
        count => format!("{} \u{d7} {count}", one.kind),
    }
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
                            @for name in ["Stage", "Kind", "Version", "Results", "Reads"] { th scope="col" { (name) } }
                        }
                    }
                    tbody {
                        @for one in ancestry {
                            tr {
                                th scope="row" { (one.stage) }
                                td { (one.kind) }
                                td .number { (one.implementation) }
                                td .number { (one.results.len()) }
                                td { (reads(one).join(", ")) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What each node above gave, under which key.
fn results(ancestry: &[Ancestor]) -> Markup {
    let digest = |digest: &Digest| html! { span .digest title=(digest.to_hex()) { (digest.to_short()) } };
    html! {
        details {
            summary { "Keys and digests of all results above" }
            p .note {
                "A key names an action: its kind with version, its parameters, the digests of what it read, and the "
                "arithmetic. A digest names the content of what came out."
            }
            div .scroll tabindex="0" role="region" aria-label="Results above" {
                table {
                    caption { "Results above" }
                    thead {
                        tr {
                            @for name in ["Node", "Key", "Output", "Digest"] { th scope="col" { (name) } }
                        }
                    }
                    tbody {
                        @for one in ancestry.iter().flat_map(|stage| &stage.results) {
                            @for (port, content) in &one.outputs {
                                tr {
                                    th scope="row" { (one.node) }
                                    td { (digest(&one.key)) }
                                    td { (port) }
                                    td { (digest(content)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The arithmetic that results above were computed with: equal on all machines of one class.
fn environment(ancestry: &[Ancestor]) -> Markup {
    let mut classes: BTreeMap<&str, usize> = BTreeMap::new();
    for class in ancestry.iter().flat_map(|stage| &stage.results).filter_map(|one| one.numerics.as_deref()) {
        *classes.entry(class).or_insert(0) += 1;
    }
    let words: Vec<Markup> = (classes.iter())
        .map(|(class, count)| html! { code { (class) } " (" (count) @if *count == 1 { " result" } @else { " results" } ")" })
        .collect();
    html! {
        p .note {
            @if words.is_empty() {
                "Nothing above was computed with floating-point arithmetic that differs between machines."
            } @else {
                "Arithmetic of what was computed: "
                @for (place, class) in words.iter().enumerate() {
                    @if place > 0 { ", " }
                    (class)
                }
                ". Machines of one class give the same bits."
            }
        }
    }
}

/// All inputs with type, kind and digest.
fn inputs(collected: &Collected) -> Markup {
    html! {
        p .note {
            "Each digest names the content of one input; equal inputs, parameters and results above give this very page."
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
    use pipe_engine::AncestorResult;

    use super::*;

    #[test]
    fn stages_are_drawn_behind_what_they_read_and_told_as_a_table() {
        let result = |name: &str| AncestorResult {
            node: name.to_owned(),
            key: Digest::of(name.as_bytes()),
            numerics: (name != "first").then(|| "cpu;v2".to_owned()),
            outputs: [("out".to_owned(), Digest::of(b"content"))].into(),
        };
        let stage = |name: &str, nodes: &[&str], reads: &[usize]| Ancestor {
            stage: name.to_owned(),
            kind: "kind".to_owned(),
            implementation: 7,
            reads: reads.iter().copied().collect(),
            results: nodes.iter().map(|node| result(node)).collect(),
        };
        let ancestry = [
            stage("first", &["first"], &[]),
            stage("second", &["second[a=1]", "second[a=2]", "second[a=<b>]"], &[0]),
            stage("<b>", &[], &[0, 1]),
        ];
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
        let results = results(&ancestry).into_string();
        assert_eq!(results.matches("<tr>").count(), 1 + 4);
        assert!(results.contains(&Digest::of(b"second[a=1]").to_hex()));
        assert!(results.contains(&Digest::of(b"content").to_hex()) && !results.contains("<b>"));
        let environment = environment(&ancestry).into_string();
        assert!(environment.contains("<code>cpu;v2</code> (3 results)"), "{environment}");
    }
}
