//! What metrics ask of a model, and that it does not matter how their questions are cut into batches.

use pipe_models::random::Key;

use super::*;
use crate::testing::Smooth;
use crate::{Evaluator, Result};

const SHAPE: Shape = Shape::flat(2, 4, 4);

/// A metric: values of the samples, whose ends are given too.
type Metric = fn(&Engine<'_>, &[Sample<'_>], &[Vec<f32>]) -> Result<Vec<f64>>;

fn numbers(values: Vec<Value>) -> Vec<f64> {
    values.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect()
}

fn areas(curves: Curves) -> Vec<f64> {
    curves.iter().map(|curve| area(curve)).collect()
}

fn quarters() -> Groups {
    patches(SHAPE, 2)
}

fn orders(samples: &[Sample<'_>]) -> Vec<Vec<u32>> {
    samples.iter().map(|sample| patch_order(sample.map, &quarters(), Order::MostRelevantFirst)).collect()
}

/// Each metric with the forward passes that it makes for one sample: 16 pixels in steps of 4, 32 features in
/// steps of 4, 4 patches.
const METRICS: [(&str, u64, Metric); 19] = [
    ("deletion", 5, |engine, samples, ends| Ok(areas(deletion(engine, samples, ends, 4)?))),
    ("insertion", 5, |engine, samples, _| Ok(areas(insertion(engine, samples, 4)?))),
    ("pixel flipping", 5, |engine, samples, ends| {
        Ok(areas(pixel_flipping(engine, samples, ends, 4, Order::LeastRelevantFirst)?))
    }),
    ("pixel flipping, Quantus", 8, |engine, samples, _| {
        Ok(areas(pixel_flipping_quantus(engine, samples, Baseline::Mean, 4)?))
    }),
    ("region perturbation", 5, |engine, samples, ends| {
        let curves = region_perturbation(engine, samples, &quarters(), &orders(samples), ends)?;
        Ok(curves.iter().map(|curve| area_over_curve(curve)).collect())
    }),
    ("region perturbation, Quantus", 5, |engine, samples, _| {
        let orders = orders(samples);
        Ok(areas(region_perturbation_quantus(engine, samples, 2, &orders, Baseline::Mean)?))
    }),
    ("faithfulness correlation", 7, |engine, samples, ends| {
        let subsets = vec![random_subsets(Key(1), 6, 5, SHAPE.features()); samples.len()];
        Ok(numbers(faithfulness_correlation(engine, samples, &subsets, ends)?))
    }),
    ("faithfulness estimate", 9, |engine, samples, ends| {
        Ok(numbers(faithfulness_estimate(engine, samples, ends, 4, Similarity::Pearson)?))
    }),
    ("sensitivity-n, Quantus", 4, |engine, samples, _| {
        let values = sensitivity_n_quantus(engine, samples, Baseline::Black, 4, 0.8)?;
        Ok(numbers(values))
    }),
    ("iterative removal of features", 5, |engine, samples, ends| {
        irof(engine, samples, &vec![quarters(); samples.len()], ends)
    }),
    ("infidelity", 5, |engine, samples, ends| {
        let drops = infidelity_of_patches(engine, samples, &quarters(), ends, Prediction::Global)?;
        Ok(drops.iter().map(|drops| drops.infidelity(true)).collect())
    }),
    ("infidelity, Quantus", 5, |engine, samples, _| {
        Ok(numbers(infidelity_quantus(engine, samples, &[2], Baseline::Black)?))
    }),
    ("monotonicity", 9, |engine, samples, ends| {
        let curves = monotonicity(engine, samples, ends, 4)?;
        Ok(curves.iter().map(|curve| non_decreasing_share(curve)).collect())
    }),
    ("monotonicity correlation", 9, |engine, samples, ends| {
        Ok(numbers(monotonicity_correlation_of_ends(engine, samples, ends, 4, 1e-5)?))
    }),
    ("monotonicity correlation, three draws", 25, |engine, samples, _| {
        let draws = |group: u64| (0..3).map(|draw| vec![Key(group).uniform(draw + 1) as f32; 3]).collect();
        let values: Vec<Vec<Vec<f32>>> = (0..8).map(draws).collect();
        Ok(numbers(monotonicity_correlation(engine, samples, &values, 4, 1e-5)?))
    }),
    ("remove and debias", 3, |engine, samples, _| {
        let silent = |_, _, _, length| vec![0.0; length];
        Ok(areas(road(engine, samples, &[10.0, 50.0, 90.0], Order::MostRelevantFirst, &silent)?))
    }),
    ("completeness", 2, |engine, samples, ends| {
        Ok(completeness(engine, samples, ends)?.iter().map(|gap| gap.absolute).collect())
    }),
    ("non-sensitivity", 17, |engine, samples, _| {
        non_sensitivity(engine, samples, Baseline::Black, 0.1, Mode::Reference)
    }),
    ("non-sensitivity by patches", 5, |engine, samples, ends| {
        Ok(numbers(non_sensitivity_of_patches(engine, samples, &quarters(), ends, [0.2, 0.1])?))
    }),
];

#[test]
fn forward_passes_are_those_of_the_definition_and_batches_do_not_matter() {
    let score = Smooth::new(3, &[SHAPE.channels, SHAPE.height, SHAPE.width]);
    let draws = |key: u64, count: usize| (1..=count as u64).map(move |draw| Key(key).normal(draw));
    let images: Vec<Vec<f32>> =
        (0..3).map(|key| draws(key, SHAPE.features()).map(|value| value as f32).collect()).collect();
    let maps: Vec<Vec<f64>> = (10..13).map(|key| draws(key, SHAPE.pixels()).collect()).collect();
    let ends: Vec<Vec<f32>> =
        (20..23).map(|key| draws(key, SHAPE.features()).map(|value| value as f32).collect()).collect();
    let samples: Vec<Sample<'_>> = images
        .iter()
        .zip(&maps)
        .enumerate()
        .map(|(index, (image, map))| Sample { index, image, map })
        .collect();
    for (name, passes, metric) in METRICS {
        let mut first: Option<Vec<f64>> = None;
        for batch in [64, 1, 5] {
            let evaluator = Evaluator::new(&score, batch);
            let values = metric(&Engine::new(&evaluator, SHAPE), &samples, &ends).unwrap();
            assert_eq!(evaluator.passes().forward, 3 * passes, "{name}");
            assert_eq!(evaluator.passes().backward, 0, "{name}");
            assert!(values.iter().all(|value| value.is_finite()), "{name}: {values:?}");
            let first = first.get_or_insert_with(|| values.clone());
            for (value, first) in values.iter().zip(first) {
                assert!((value - *first).abs() < 1e-4 * (1.0 + first.abs()), "{name}: {value} {first}");
            }
        }
    }
}
