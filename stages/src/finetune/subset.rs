//! Which training images are learned from where labels are scarce.

use pipe_engine::ParameterProblem;
use pipe_models::random::Key;

use crate::model::HeadDescription;

/// How many labels there are to learn from.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Scarcity {
    /// All.
    None,
    /// So many images of each class.
    Shots(usize),
    /// This share of the images of each class.
    Share(f64),
}

impl Scarcity {
    /// What the parameters `shots` and `share` say.
    pub(super) fn of(shots: Option<i64>, share: Option<f64>) -> Self {
        match (shots, share) {
            (Some(shots), _) => Self::Shots(shots as usize),
            (None, Some(share)) => Self::Share(share),
            (None, None) => Self::None,
        }
    }

    /// What is wrong with the two together.
    pub(super) fn check(shots: Option<i64>, share: Option<f64>) -> Option<ParameterProblem> {
        (shots.is_some() && share.is_some()).then(|| ParameterProblem {
            path: "share".to_owned(),
            message: "`shots` says already how many images are learned from".to_owned(),
            help: Some("leave out one of them".to_owned()),
        })
    }

    /// The rows that are learned from, in their order. They are drawn by seed and image id, so that fewer
    /// shots (a smaller share) are among more of them, and other images change nothing. Of independent labels
    /// an image counts for each that it has, one without any for a class of its own; a share is then one of
    /// all images.
    pub(super) fn select(
        self,
        seed: i64,
        rows: &[usize],
        ids: &[String],
        targets: &[Vec<i64>],
        description: &HeadDescription,
    ) -> Vec<usize> {
        let classes_of = |row: usize| -> Vec<usize> {
            let target = &targets[row];
            if !description.is_multi_label() {
                return vec![target[0] as usize];
            }
            let positive: Vec<usize> = (0..target.len()).filter(|class| target[*class] == 1).collect();
            if positive.is_empty() { vec![target.len()] } else { positive }
        };
        let mut ranked = rows.to_vec();
        ranked.sort_by_cached_key(|row| {
            let id = ids[*row].as_str();
            (Key::derive("pipe scarce labels/1", seed as u64, &[id.into()]).0, id.to_owned())
        });
        let places = description.classes.len() + 1;
        let mut chosen: Vec<usize> = match self {
            Self::None => return rows.to_vec(),
            Self::Shots(shots) => {
                let mut counts = vec![0; places];
                let mut wanted = |row: &usize| {
                    let classes = classes_of(*row);
                    let is_short = classes.iter().any(|class| counts[*class] < shots);
                    if is_short {
                        classes.iter().for_each(|class| counts[*class] += 1);
                    }
                    is_short
                };
                ranked.into_iter().filter(|row| wanted(row)).collect()
            }
            Self::Share(share) => {
                let stratum = |row: usize| if description.is_multi_label() { 0 } else { classes_of(row)[0] };
                let mut left = vec![0usize; places];
                ranked.iter().for_each(|row| left[stratum(*row)] += 1);
                left.iter_mut().for_each(|count| *count = (share * *count as f64).ceil() as usize);
                let wanted = |row: &usize| {
                    let left = &mut left[stratum(*row)];
                    *left = left.checked_sub(1)?;
                    Some(*row)
                };
                ranked.iter().filter_map(wanted).collect()
            }
        };
        chosen.sort_unstable();
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description(task: &str) -> HeadDescription {
        let classes = ["a", "b", "c"].map(str::to_owned).to_vec();
        HeadDescription { classes, task: task.to_owned() }
    }

    fn ids(count: usize) -> Vec<String> {
        (0..count).map(|row| format!("image {row}")).collect()
    }

    #[test]
    fn shots_count_for_each_class_and_fewer_are_among_more() {
        let (ids, rows): (_, Vec<usize>) = (ids(90), (0..90).collect());
        let targets: Vec<Vec<i64>> = (0..90).map(|row| vec![[0, 0, 1, 2, 2, 2][row % 6]]).collect();
        let select = |shots, seed| {
            Scarcity::Shots(shots).select(seed, &rows, &ids, &targets, &description("multi-class"))
        };
        for shots in [1, 2, 16] {
            let chosen = select(shots, 3);
            for class in 0..3 {
                let count = chosen.iter().filter(|row| targets[**row][0] == class).count();
                assert_eq!(count, shots.min([30, 15, 45][class as usize]));
            }
            assert!(chosen.is_sorted() && chosen.iter().all(|row| select(32, 3).contains(row)));
        }
        assert_ne!(select(2, 3), select(2, 4));
        // An image that is not there changes nothing among the others.
        let gone = select(2, 3)[0];
        let fewer: Vec<usize> = rows.iter().copied().filter(|row| *row != gone).collect();
        let others = Scarcity::Shots(2).select(3, &fewer, &ids, &targets, &description("multi-class"));
        assert_eq!(others.iter().filter(|row| select(2, 3).contains(row)).count(), 5);
    }

    #[test]
    fn a_share_is_taken_of_each_class_and_never_none() {
        let (ids, rows): (_, Vec<usize>) = (ids(200), (0..200).collect());
        let targets: Vec<Vec<i64>> = (0..200).map(|row| vec![i64::from(row % 20 == 0)]).collect();
        let select =
            |share| Scarcity::Share(share).select(1, &rows, &ids, &targets, &description("multi-class"));
        let positive = |chosen: &[usize]| chosen.iter().filter(|row| targets[**row][0] == 1).count();
        assert_eq!((select(0.1).len(), positive(&select(0.1))), (20, 1));
        assert_eq!((select(0.01).len(), positive(&select(0.01))), (3, 1));
        assert_eq!(select(1.0), rows);
        assert!(select(0.1).iter().all(|row| select(0.5).contains(row)));
    }

    #[test]
    fn an_image_counts_for_each_of_its_labels() {
        let (ids, rows): (_, Vec<usize>) = (ids(60), (0..60).collect());
        let targets: Vec<Vec<i64>> =
            (0..60i64).map(|row| vec![row % 2, i64::from(row % 3 == 0), 0]).collect();
        let chosen =
            Scarcity::Shots(4).select(1, &rows, &ids, &targets, &description("multi-label, binary-class"));
        let with = |label: usize| chosen.iter().filter(|row| targets[**row][label] == 1).count();
        let without = chosen.iter().filter(|row| targets[**row].iter().all(|bit| *bit == 0)).count();
        assert!(with(0) >= 4 && with(1) >= 4 && without == 4, "{chosen:?}");
        assert!(chosen.len() <= 12);
        let share =
            Scarcity::Share(0.25).select(1, &rows, &ids, &targets, &description("multi-label, binary-class"));
        assert_eq!(share.len(), 15);
    }
}
