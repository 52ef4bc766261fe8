//! Intervals hold the truth as often as they say: sets of predictions are simulated, whose true figures are known.

use pipe_models::random::Key;

use super::{Groups, Ranking, bootstrap_all, mean};

/// Normal distribution function at 1 / sqrt 2: the area under the ROC curve of normal scores one deviation apart.
const AUROC: f64 = 0.760_249_938_906_523_4;
/// Normal distribution function at 1 / 2: their accuracy at the threshold between the means.
const ACCURACY: f64 = 0.691_462_461_274_013_1;
/// Simulated sets.
const SETS: u64 = 1000;
/// Patients of a set, each with `IMAGES` images of one class whose scores are correlated by one half.
const PATIENTS: u64 = 120;
const IMAGES: u64 = 2;

/// Scores, classes and patients of a set.
fn simulated(set: u64) -> (Vec<f64>, Vec<bool>, Vec<Option<String>>) {
    let key = Key::derive("coverage", set, &[]);
    let (mut scores, mut positive, mut patients) = (Vec::new(), Vec::new(), Vec::new());
    for patient in 0..PATIENTS {
        let of_patient = key.normal(patient * (IMAGES + 1) + 1);
        for image in 0..IMAGES {
            let own = key.normal(patient * (IMAGES + 1) + image + 2);
            let is_positive = patient % 2 == 0;
            scores.push((of_patient + own) * 0.5f64.sqrt() + if is_positive { 1.0 } else { 0.0 });
            positive.push(is_positive);
            patients.push(Some(patient.to_string()));
        }
    }
    (scores, positive, patients)
}

/// The share of sets whose intervals hold the true area and the true accuracy.
fn coverage(groups: impl Fn(&[Option<String>]) -> Groups) -> [f64; 2] {
    let mut held = [0.0; 2];
    for set in 0..SETS {
        let (scores, positive, patients) = simulated(set);
        let ranking = Ranking::new(&scores, &positive);
        let correct: Vec<f64> = scores
            .iter()
            .zip(&positive)
            .map(|(score, is)| f64::from(u8::from((*score > 0.5) == *is)))
            .collect();
        let figures = |weights: &[f64]| vec![ranking.auroc(weights), mean(&correct, weights)];
        let estimates = bootstrap_all(&groups(&patients), set, figures);
        for ((held, truth), estimate) in held.iter_mut().zip([AUROC, ACCURACY]).zip(estimates) {
            let estimate = estimate.unwrap();
            *held += f64::from(u8::from(estimate.low.unwrap() <= truth && truth <= estimate.high.unwrap()));
        }
    }
    held.map(|held| held / SETS as f64)
}

#[test]
fn intervals_over_patients_hold_the_truth_in_95_of_100_sets() {
    let [area, accuracy] = coverage(Groups::new);
    println!("held: area {area}, accuracy {accuracy}");
    assert!((0.93..=0.97).contains(&area) && (0.93..=0.97).contains(&accuracy), "{area} {accuracy}");
    // Images of one patient are no independent samples: intervals over images are too narrow.
    let [area, accuracy] = coverage(|patients| Groups::singles(patients.len()));
    println!("over images: area {area}, accuracy {accuracy}");
    assert!(area < 0.93, "{area}");
}
