//! The page: its frame, its style and the order of its sections.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest as _, Sha256};

use super::picture::base64;

/// A section of the page; left out where it has no content.
pub(super) struct Section {
    /// The anchor.
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    pub(super) content: Vec<Markup>,
}

/// Sorts tables, filters samples, and unfolds what is folded for print.
const SCRIPT: &str = include_str!("script.js");

/// The whole page, self-contained: no request, and of scripts only [`SCRIPT`], which the policy names by its digest, so that
/// nothing that comes from data can run.
pub(super) fn page(title: &str, description: &str, sections: &[Section]) -> String {
    let sections: Vec<&Section> = sections.iter().filter(|section| !section.content.is_empty()).collect();
    let digest = base64(&Sha256::digest(SCRIPT));
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                meta http-equiv="Content-Security-Policy"
                    content=(format!("default-src 'none'; img-src data: 'self' file:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"));
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                a .skip href="#content" { "To the results" }
                header {
                    h1 { (title) }
                    @if !description.is_empty() { p { (description) } }
                    p .notice {
                        "Research results, not a medical device: nothing here may guide the care of a patient."
                    }
                    nav aria-label="Sections" {
                        ul {
                            @for section in &sections {
                                li { a href=(format!("#{}", section.id)) { (section.title) } }
                            }
                        }
                    }
                }
                main id="content" {
                    @for section in &sections {
                        section id=(section.id) {
                            h2 { (section.title) }
                            @for part in &section.content { (part) }
                        }
                    }
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    page.into_string()
}

const STYLE: &str = "
:root{--paper:#fff;--ink:#1b1f24;--soft:#57606a;--line:#d0d7de;--fill:#f3f5f7;--bar:#7a9cc6;--best:#0b5cad;
--c0:#0b5cad;--c1:#b3501e;--c2:#2e7d32;--c3:#7b3fa0;--c4:#8a6d00;--c5:#b0185a}
@media (prefers-color-scheme:dark){:root{--paper:#14171b;--ink:#e6e9ed;--soft:#a3acb6;--line:#3a424c;--fill:#1e2329;
--bar:#4d6f99;--best:#6db3ff;--c0:#6db3ff;--c1:#ff9d5c;--c2:#7fd184;--c3:#cf9cf0;--c4:#e3c04b;--c5:#ff85b5}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1rem 4rem;max-width:64rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .5rem}
h2{font-size:1.35rem;margin:2.5rem 0 .75rem;padding-bottom:.25rem;border-bottom:2px solid var(--line)}
h3{font-size:1.1rem;margin:1.75rem 0 .5rem}h4{font-size:.95rem;margin:1.25rem 0 .25rem}
a{color:var(--best)}a:focus-visible,.scroll:focus-visible{outline:3px solid var(--best);outline-offset:2px}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;background:var(--paper);padding:.5rem}
.notice{border-left:4px solid var(--c1);padding:.35rem .75rem;background:var(--fill);margin:.75rem 0}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;padding:0;margin:.5rem 0}
.answers{padding-left:1.2rem}.answers li{margin:.35rem 0}
.note,figcaption,.reason{color:var(--soft);font-size:.875rem}
.scroll{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;font-size:.9rem;min-width:100%}
caption{text-align:left;color:var(--soft);padding-bottom:.35rem;font-size:.875rem}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top;overflow-wrap:normal}
thead th{border-bottom:2px solid var(--line);background:var(--fill)}
th[scope=row]{font-weight:600}.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.best{color:var(--best)}.digest{font-family:ui-monospace,monospace;font-size:.8rem}
td .reason{white-space:normal}
.sort{all:unset;cursor:pointer;font-weight:inherit}.sort:focus-visible{outline:3px solid var(--best)}
.sort::after{content:' \\2195';color:var(--soft)}th[aria-sort=ascending] .sort::after{content:' \\2191';color:var(--ink)}
th[aria-sort=descending] .sort::after{content:' \\2193';color:var(--ink)}
.filter{display:flex;flex-wrap:wrap;gap:.5rem 1rem;align-items:center;margin:.75rem 0}.filter[hidden]{display:none}
.filter select,.filter input{font:inherit;color:inherit;background:var(--paper);border:1px solid var(--line);padding:.2rem;max-width:100%}
.tall{max-height:36rem;overflow:auto}.tall thead th{position:sticky;top:0}.thumbnail{width:64px;image-rendering:pixelated}
.chart{margin:1rem 0}.chart>svg{width:100%;height:auto;max-width:48rem;display:block}
svg text{font:12px system-ui,sans-serif;fill:var(--ink)}svg .tick{fill:var(--soft);font-size:11px}
.grid{stroke:var(--line)}.bar{fill:var(--bar)}.bar.best{fill:var(--best)}.value.best{font-weight:700}
.charts{display:flex;flex-wrap:wrap;gap:0 1.5rem;align-items:flex-start}.charts .chart{flex:1 1 20rem}
.charts .chart:not(.square){flex-basis:100%}.square{max-width:26rem}
.cell{fill:var(--best);stroke:var(--line)}svg .count.dark{fill:var(--paper)}
.interval{stroke:var(--ink);stroke-width:1.5;fill:none}
.curve{fill:none;stroke-width:2}.c0{stroke:var(--c0)}.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}
.c3{stroke:var(--c3)}.c4{stroke:var(--c4)}.c5{stroke:var(--c5)}
.legend{list-style:none;padding:0;margin:.25rem 0;display:flex;flex-wrap:wrap;gap:.1rem 1.25rem;font-size:.85rem}
.chart-data{white-space:nowrap}.swatch{width:30px;height:8px}
.case{border-top:1px solid var(--line)}.strip{display:flex;flex-wrap:wrap;gap:.75rem;align-items:flex-start}
.strip figure{margin:0;width:112px}.strip .pair{width:226px}
.strip img{image-rendering:pixelated;width:112px;height:auto;background:var(--fill)}
.strip .slices{width:100%;max-width:60rem}.strip .slices img{width:100%}.pair img+img{margin-left:2px}.scale{white-space:nowrap;margin-right:1rem}.scale img{image-rendering:auto;vertical-align:middle}
details{margin:1rem 0}summary{cursor:pointer;color:var(--best)}
@media(max-width:30rem){.scale{white-space:normal}}
@media print{.filter,.chart-data{display:none}.tall{max-height:none}.sort::after{content:''}body{max-width:none;padding:0;font-size:10pt}nav,.skip{display:none}
.case,.chart,tr{break-inside:avoid}.scroll{overflow:visible}}
";
