//! The charts of the page as Vega-Lite, with their data: to restyle, to put into a paper, to look at in any tool that
//! reads it. Each stands beside its chart as a file to save; the page itself draws none of them.

use maud::{Markup, html};
use serde_json::{Value as Json, json};

use super::charts::{Axes, Curve, Scale};
use super::picture::base64;
use crate::statistics::Confusion;

const SCHEMA: &str = "https://vega.github.io/schema/vega-lite/v6.json";

/// A bar: what it is of, its value, and the ends of its interval.
pub(super) type Bar = (String, f64, Option<(f64, f64)>);

/// Horizontal bars with their intervals, in the order of the rows.
pub(super) fn bars(title: &str, metric: &str, bars: &[Bar]) -> Json {
    let values: Vec<Json> = bars
        .iter()
        .map(|(label, value, interval)| {
            let (low, high) = interval.unzip();
            json!({ "row": label, "value": value, "low": low, "high": high })
        })
        .collect();
    let y = json!({ "field": "row", "type": "nominal", "sort": null, "title": null });
    let x = |field: &str| json!({ "field": field, "type": "quantitative", "title": metric });
    json!({
        "$schema": SCHEMA,
        "title": title,
        "data": { "values": values },
        "layer": [
            { "mark": "bar", "encoding": { "y": y, "x": x("value") } },
            {
                "transform": [{ "filter": "isValid(datum.low)" }],
                "mark": { "type": "errorbar", "ticks": true },
                "encoding": { "y": y, "x": x("low"), "x2": { "field": "high" } },
            },
        ],
    })
}

/// Curves over a common axis.
pub(super) fn curves(axes: &Axes, curves: &[Curve]) -> Json {
    let points = |curve: &Curve| -> Vec<Json> {
        let points = curve.points.iter().enumerate();
        points
            .map(|(place, (x, y))| json!({ "x": x, "y": y, "curve": curve.label, "place": place }))
            .collect()
    };
    let values: Vec<Json> = curves.iter().flat_map(points).collect();
    let scale = match axes.scale {
        Scale::Unit => json!({ "domain": [0, 1] }),
        Scale::Free | Scale::FreeToTheEnd => json!({ "zero": false }),
    };
    json!({
        "$schema": SCHEMA,
        "title": axes.title,
        "data": { "values": values },
        "mark": "line",
        "encoding": {
            "x": { "field": "x", "type": "quantitative", "title": axes.x, "scale": scale },
            "y": { "field": "y", "type": "quantitative", "title": null, "scale": scale },
            "color": { "field": "curve", "type": "nominal", "title": null },
            // Points of a curve may go back in x, as those of precision and recall do.
            "order": { "field": "place", "type": "ordinal" },
        },
    })
}

/// Counts of true and predicted classes.
pub(super) fn matrix(title: &str, names: &[String], confusion: &Confusion) -> Json {
    let cells = (0..names.len()).flat_map(|truth| (0..names.len()).map(move |class| (truth, class)));
    let values: Vec<Json> = cells
        .map(|(truth, class)| json!({ "truth": names[truth], "prediction": names[class], "count": confusion.count(truth, class) }))
        .collect();
    let axis = |field: &str| json!({ "field": field, "type": "nominal", "sort": names });
    json!({
        "$schema": SCHEMA,
        "title": title,
        "data": { "values": values },
        "mark": "rect",
        "encoding": {
            "y": axis("truth"),
            "x": axis("prediction"),
            "color": { "field": "count", "type": "quantitative" },
        },
    })
}

/// A link that saves a chart.
pub(super) fn link(title: &str, chart: &Json) -> Markup {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' };
    let name: String = title.chars().map(plain).take(60).collect();
    let data = base64(chart.to_string().as_bytes());
    html! {
        a .chart-data download=(format!("{}.vl.json", name.trim_matches('-')))
            href=(format!("data:application/json;base64,{data}"))
            aria-label=(format!("Save the chart `{title}` with its data as Vega-Lite")) { "Vega-Lite" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charts_keep_their_numbers_and_names() {
        let chart = bars(
            "AUROC by model",
            "AUROC",
            &[("general".to_owned(), 0.5, None), ("medical \"<b>\"".to_owned(), 0.75, Some((0.7, 0.8)))],
        );
        let values = &chart["data"]["values"];
        assert_eq!(values[1], json!({ "row": "medical \"<b>\"", "value": 0.75, "low": 0.7, "high": 0.8 }));
        assert!(values[0]["low"].is_null());
        let curve = Curve { label: "a".to_owned(), points: vec![(1.0, 0.5), (2.0, 0.25)] };
        let axes = Axes { title: "loss".to_owned(), x: "epoch", scale: Scale::Free };
        assert_eq!(
            curves(&axes, &[curve])["data"]["values"][1],
            json!({ "x": 2.0, "y": 0.25, "curve": "a", "place": 1 })
        );
        let saved = link("A & \"B\"", &chart).into_string();
        assert!(saved.contains("download=\"a----b.vl.json\"") && !saved.contains("<b>"), "{saved}");
    }
}
