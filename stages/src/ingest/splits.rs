//! The names of splits, and splits for data that have none.

use pipe_models::random::Key;

/// The splits of the study, in the order of rows.
pub(crate) const SPLITS: [&str; 3] = ["train", "val", "test"];

/// The study's name of a published one.
pub(crate) fn canonical(name: &str) -> Option<&'static str> {
    match name.trim().to_lowercase().as_str() {
        "train" | "training" => Some("train"),
        "val" | "valid" | "validate" | "validation" | "dev" => Some("val"),
        "test" | "testing" => Some("test"),
        _ => None,
    }
}

/// The split that a file or a folder on the way to it is named after: `train-00000-of-00001.parquet`,
/// `validation/0000.parquet`. The name that stands last counts.
pub(crate) fn named_in(path: &str) -> Option<&'static str> {
    path.rsplit('/').find_map(|part| {
        let word = part.split(['-', '_', '.']).next().unwrap_or_default();
        canonical(word)
    })
}

/// The place of a split among [`SPLITS`].
pub(crate) fn place(split: &str) -> usize {
    SPLITS.iter().position(|known| *known == split).unwrap_or(SPLITS.len())
}

/// A split by chance: `val` and `test` are the shares of groups. What belongs to one group (a patient,
/// an image) stays together, and no other group moves when one is added.
pub(crate) fn drawn(seed: i64, group: &str, val: f64, test: f64) -> &'static str {
    let draw = Key::derive("pipe split/1", seed as u64, &[group.into()]).uniform(1);
    if draw < test {
        "test"
    } else if draw < test + val {
        "val"
    } else {
        "train"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_kept_and_groups_stay_where_they_are() {
        let draw = |group: usize| drawn(3, &format!("patient {group}"), 0.1, 0.2);
        let count = |split: &str| (0..5000).filter(|group| draw(*group) == split).count();
        assert!((400..600).contains(&count("val")), "{}", count("val"));
        assert!((900..1100).contains(&count("test")), "{}", count("test"));
        assert_eq!(drawn(3, "a", 0.0, 0.0), "train");
        assert_eq!(drawn(3, "a", 0.0, 1.0), "test");
    }

    #[test]
    fn paths_name_splits() {
        let found =
            ["data/train-00000-of-00002.parquet", "validation/0000.parquet", "test.parquet", "rows.parquet"];
        assert_eq!(found.map(named_in), [Some("train"), Some("val"), Some("test"), None]);
    }

    #[test]
    fn published_names_are_known() {
        assert_eq!(
            ["Validate", " valid ", "dev", "TEST"].map(canonical),
            [Some("val"), Some("val"), Some("val"), Some("test")]
        );
        assert_eq!(canonical("held out"), None);
    }
}
