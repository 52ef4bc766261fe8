//! More steps where the sum of a map misses the difference of scores.

use super::*;
use crate::attribute::Quadrature;

#[test]
fn steps_are_doubled_where_maps_are_incomplete() {
    let study = Study::new();
    let coarse = Params {
        steps: 1,
        quadrature: Quadrature::RiemannLeft,
        ..params(Method::IntegratedGradients, Baseline::Zero)
    };
    let gaps = |params: &Params| -> Vec<f32> {
        let maps = study.maps(params);
        let [scores, baselines, gaps] =
            ["score", "score_baseline", "completeness_gap"].map(|name| maps.numbers(name));
        let share =
            |row: usize| gaps[row].unwrap().abs() / (scores[row].unwrap() - baselines[row].unwrap()).abs();
        (0..gaps.len()).map(share).collect()
    };
    let fine = Params { most_steps: Some(512), ..coarse.clone() };
    let (before, after) = (gaps(&coarse), gaps(&fine));
    assert!(before.iter().any(|gap| *gap > 0.05), "{before:?}");
    assert!(after.iter().all(|gap| *gap <= 0.05), "{after:?}");
    // What was complete enough stays as it was.
    let kept = before.iter().zip(&after).filter(|(before, _)| **before <= 0.05);
    assert!(kept.into_iter().all(|(before, after)| before == after), "{before:?} {after:?}");
    // Batches do not matter.
    let [all, one_by_one] = [fine.batch, 1].map(|batch| study.maps(&Params { batch, ..fine.clone() }));
    for (ours, theirs) in all.rows().concat().iter().zip(one_by_one.rows().concat()) {
        assert!((ours - theirs).abs() < 1e-4, "{ours} {theirs}");
    }
    assert!(
        !study.maps(&coarse).0.schema().metadata()["params"].contains("most_steps"),
        "keys stay as they were"
    );
}

#[test]
fn a_bound_below_the_steps_or_of_another_method_is_refused() {
    let paths = |method, most_steps| {
        let params = Params { most_steps: Some(most_steps), ..params(method, Baseline::Zero) };
        let problems = StageKind::check(&Attribute, &params).into_iter();
        problems.map(|problem| problem.path).collect::<Vec<_>>()
    };
    assert!(paths(Method::IntegratedGradients, 200).is_empty());
    assert_eq!(paths(Method::IntegratedGradients, 1), ["most_steps"]);
    assert_eq!(paths(Method::Occlusion, 200), ["most_steps"]);
}
