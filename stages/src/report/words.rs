//! Numbers and names as a reader expects them.

/// A number with as many decimals as its size makes sensible.
pub(super) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 1000.0 => 0,
        size if size >= 100.0 => 1,
        size if size >= 10.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    if text.trim_start_matches('-').chars().all(|digit| digit == '0' || digit == '.') {
        return if value == 0.0 { "0".to_owned() } else { format!("{value:.1e}") };
    }
    text
}

/// A metric's name for people: `auroc_macro` becomes "AUROC macro".
pub(super) fn metric_name(metric: &str) -> String {
    let spaced = metric.replace('_', " ");
    let words: Vec<String> = spaced
        .split(' ')
        .map(|word| match word {
            "auroc" | "auc" | "auprc" | "ece" | "f1" | "iou" | "mae" | "mrr" | "ssim" | "nll" => {
                word.to_uppercase()
            }
            "n" => "n".to_owned(),
            "mcnemar" => "McNemar".to_owned(),
            "delong" => "DeLong".to_owned(),
            "wilcoxon" => "Wilcoxon".to_owned(),
            "holm" => "Holm".to_owned(),
            "brier" => "Brier".to_owned(),
            _ => word.to_owned(),
        })
        .collect();
    words.join(" ")
}

/// The name of an input or a column for people.
pub(super) fn title(name: &str) -> String {
    let spaced = name.replace(['_', '.'], " ");
    let mut letters = spaced.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_places_or_say_how_small_they_are() {
        for (value, text) in [
            (0.87654, "0.877"),
            (0.0, "0"),
            (-0.5, "-0.500"),
            (23.456, "23.46"),
            (1234.5, "1234"),
            (0.00001, "1.0e-5"),
            (-0.00001, "-1.0e-5"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
