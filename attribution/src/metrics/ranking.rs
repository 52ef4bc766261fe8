//! Do metrics rank maps as they must? On phantoms: bright discs (the lesion) beside a marker in a corner (the
//! shortcut), and models that use one of them only.

use candle_core::{Result, Tensor};
use pipe_models::MaybeProbe;
use pipe_models::random::Key;

use super::*;
use crate::{Evaluator, Score};

const SIDE: usize = 24;
const SHAPE: Shape = Shape::flat(1, SIDE, SIDE);
const SAMPLES: usize = 12;

/// The probability that what `weights[sample]` looks at is bright.
struct Detector {
    weights: Vec<Vec<f32>>,
    offset: f64,
}

impl Score for Detector {
    fn score(&self, input: &Tensor, samples: &[usize], _probe: MaybeProbe<'_>) -> Result<Tensor> {
        let weights: Vec<f32> = samples.iter().flat_map(|sample| self.weights[*sample].clone()).collect();
        let weights = Tensor::from_vec(weights, (samples.len(), SHAPE.features()), input.device())?;
        let logits = ((input.flatten_from(1)? * weights)?.sum(1)? - self.offset)?;
        (logits.neg()?.exp()? + 1.0)?.recip()
    }
}

/// The middle and radius of a sample's lesion: anywhere but in the marker's corner.
fn lesion(sample: usize, pixel: usize) -> bool {
    let key = Key(77).sub(sample as u64);
    let place = |draw: u64| 8.0 + 11.0 * key.uniform(draw);
    let (row, column) = ((pixel / SIDE) as f64 - place(1), (pixel % SIDE) as f64 - place(2));
    row * row + column * column <= 9.0
}

fn marker(pixel: usize) -> bool {
    (1..5).contains(&(pixel / SIDE)) && (1..5).contains(&(pixel % SIDE))
}

/// The map whose order is the reverse.
fn upside_down(map: &[f64]) -> Vec<f64> {
    let greatest = map.iter().copied().fold(0.0, f64::max);
    map.iter().map(|value| greatest - value).collect()
}

struct Phantoms {
    images: Vec<Vec<f32>>,
    masks: Vec<Mask>,
    /// Models that use the lesion and the marker.
    models: [Detector; 2],
    /// Maps of each sample: what the lesion adds, what the marker adds, noise, and the first upside down.
    maps: [Vec<Vec<f64>>; 4],
}

impl Phantoms {
    fn new() -> Self {
        let noise = |sample: usize, pixel: usize| Key(5).sub(sample as u64).normal(pixel as u64 + 1);
        let bright = |sample: usize, pixel: usize| lesion(sample, pixel) || marker(pixel);
        let value = |sample: usize, pixel: usize| {
            0.1 * noise(sample, pixel) + f64::from(u8::from(bright(sample, pixel)))
        };
        let of_all = |value: &dyn Fn(usize, usize) -> f64| -> Vec<Vec<f64>> {
            (0..SAMPLES)
                .map(|sample| (0..SHAPE.pixels()).map(|pixel| value(sample, pixel)).collect())
                .collect()
        };
        let images: Vec<Vec<f32>> = of_all(&value)
            .into_iter()
            .map(|image| image.into_iter().map(|value| value as f32).collect())
            .collect();
        // A logit of 4 while the object is there, and of -4 without it.
        let model = |uses: &dyn Fn(usize, usize) -> bool| Detector {
            weights: (0..SAMPLES)
                .map(|sample| {
                    let inside: Vec<bool> = (0..SHAPE.pixels()).map(|pixel| uses(sample, pixel)).collect();
                    let count = inside.iter().filter(|inside| **inside).count() as f32;
                    inside.iter().map(|inside| if *inside { 8.0 / count } else { 0.0 }).collect()
                })
                .collect(),
            offset: 4.0,
        };
        let models = [model(&lesion), model(&|_, pixel| marker(pixel))];
        let product = |model: &Detector| {
            of_all(&|sample, pixel| f64::from(model.weights[sample][pixel] * images[sample][pixel]))
        };
        let [of_lesion, of_marker] = [product(&models[0]), product(&models[1])];
        let random = of_all(&|sample, pixel| Key(9).sub(sample as u64).uniform(pixel as u64 + 1));
        let inverted = of_lesion.iter().map(|map| upside_down(map)).collect();
        let masks = (0..SAMPLES)
            .map(|sample| (0..SHAPE.pixels()).map(|pixel| lesion(sample, pixel)).collect())
            .map(|inside| Mask::new(inside, SIDE).unwrap())
            .collect();
        Self { images, masks, models, maps: [of_lesion, of_marker, random, inverted] }
    }

    /// The mean over the samples of a metric of map and mask, for each kind of map.
    fn localised(&self, metric: &dyn Fn(&[f64], &Mask) -> Value) -> [f64; 4] {
        std::array::from_fn(|kind| {
            let values =
                self.maps[kind].iter().zip(&self.masks).map(|(map, mask)| metric(map, mask).unwrap());
            values.sum::<f64>() / SAMPLES as f64
        })
    }

    /// The mean focus over mosaics of four samples, for each kind of map. Lesions stand in the first and the last quarter
    /// only, markers everywhere.
    fn focused(&self) -> [f64; 4] {
        let shows = [true, false, false, true];
        let mosaic = |kind: usize, first: usize| -> Vec<f64> {
            let pixel = |pixel: usize| {
                let (row, column) = (pixel / (2 * SIDE), pixel % (2 * SIDE));
                let quarter = 2 * (row / SIDE) + column / SIDE;
                let map = &self.maps[kind][(first + quarter) % SAMPLES];
                if kind == 0 && !shows[quarter] { 0.0 } else { map[row % SIDE * SIDE + column % SIDE] }
            };
            (0..4 * SHAPE.pixels()).map(pixel).collect()
        };
        std::array::from_fn(|kind| {
            let of = |first: usize| {
                let map = match kind {
                    3 => upside_down(&mosaic(0, first)),
                    kind => mosaic(kind, first),
                };
                focus(&map, 2 * SIDE, shows).unwrap()
            };
            (0..SAMPLES).map(of).sum::<f64>() / SAMPLES as f64
        })
    }

    /// The mean over the samples of a metric that asks a model, for each kind of map.
    fn asked(&self, model: usize, metric: &Asking) -> [f64; 4] {
        std::array::from_fn(|kind| {
            let evaluator = Evaluator::new(&self.models[model], 256);
            let engine = Engine::new(&evaluator, SHAPE);
            let samples: Vec<Sample<'_>> = self
                .images
                .iter()
                .zip(&self.maps[kind])
                .enumerate()
                .map(|(index, (image, map))| Sample { index, image, map })
                .collect();
            let ends = Baseline::Constant(0.0).images(&samples);
            metric(&engine, &samples, &ends).iter().sum::<f64>() / SAMPLES as f64
        })
    }
}

/// Values of the samples by asking a model.
type Asking = fn(&Engine<'_>, &[Sample<'_>], &[Vec<f32>]) -> Vec<f64>;

fn numbers(values: Vec<Value>) -> Vec<f64> {
    values.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect()
}

fn areas(curves: Curves) -> Vec<f64> {
    curves.iter().map(|curve| area(curve)).collect()
}

fn over_curves(curves: Curves) -> Vec<f64> {
    curves.iter().map(|curve| area_over_curve(curve)).collect()
}

/// By how much the least-relevant-first value exceeds the other.
fn gap(of: impl Fn(Order) -> Vec<f64>) -> Vec<f64> {
    let (least, most) = (of(Order::LeastRelevantFirst), of(Order::MostRelevantFirst));
    least.iter().zip(most).map(|(least, most)| least - most).collect()
}

fn perturbed(engine: &Engine<'_>, samples: &[Sample<'_>], ends: &[Vec<f32>], order: Order) -> Curves {
    let patches = patches(SHAPE, 3);
    let orders: Vec<Vec<u32>> =
        samples.iter().map(|sample| patch_order(sample.map, &patches, order)).collect();
    region_perturbation(engine, samples, &patches, &orders, ends).unwrap()
}

/// Faithfulness: names, whether higher is better, and how.
const FAITHFULNESS: [(&str, bool, Asking); 19] = [
    ("deletion", false, |engine, samples, ends| areas(deletion(engine, samples, ends, 12).unwrap())),
    ("insertion", true, |engine, samples, _| areas(insertion(engine, samples, 12).unwrap())),
    ("pixel_flipping", false, |engine, samples, ends| {
        areas(pixel_flipping(engine, samples, ends, 12, Order::MostRelevantFirst).unwrap())
    }),
    ("pixel_flipping_gap", true, |engine, samples, ends| {
        gap(|order| areas(pixel_flipping(engine, samples, ends, 12, order).unwrap()))
    }),
    ("pixel_flipping_least_first", true, |engine, samples, ends| {
        areas(pixel_flipping(engine, samples, ends, 12, Order::LeastRelevantFirst).unwrap())
    }),
    ("region_perturbation", true, |engine, samples, ends| {
        over_curves(perturbed(engine, samples, ends, Order::MostRelevantFirst))
    }),
    ("region_perturbation_least_first", false, |engine, samples, ends| {
        over_curves(perturbed(engine, samples, ends, Order::LeastRelevantFirst))
    }),
    ("region_perturbation_gap", true, |engine, samples, ends| {
        let gap = gap(|order| over_curves(perturbed(engine, samples, ends, order)));
        gap.into_iter().map(|gap| -gap).collect()
    }),
    ("selectivity", false, |engine, samples, ends| {
        areas(perturbed(engine, samples, ends, Order::MostRelevantFirst))
    }),
    ("faithfulness_correlation", true, |engine, samples, ends| {
        let subsets: Vec<Groups> = (0..samples.len())
            .map(|sample| random_subsets(Key(3).sub(sample as u64), 100, 72, SHAPE.features()))
            .collect();
        numbers(faithfulness_correlation(engine, samples, &subsets, ends).unwrap())
    }),
    ("sensitivity_n", true, |engine, samples, ends| {
        let of_size = |size: usize| {
            let subsets: Vec<Groups> = (0..samples.len())
                .map(|sample| random_subsets(Key(4).sub(sample as u64), 40, size, SHAPE.features()))
                .collect();
            numbers(faithfulness_correlation(engine, samples, &subsets, ends).unwrap())
        };
        let by_size = [72, 144, 288].map(of_size);
        (0..samples.len())
            .map(|sample| by_size.iter().map(|values| values[sample]).sum::<f64>() / 3.0)
            .collect()
    }),
    ("faithfulness_estimate", true, |engine, samples, ends| {
        numbers(faithfulness_estimate(engine, samples, ends, 12, Similarity::Pearson).unwrap())
    }),
    ("irof", true, |engine, samples, ends| {
        let segments: Vec<Groups> =
            samples.iter().map(|sample| superpixels(sample.image, SHAPE, 64, 10.0)).collect();
        irof(engine, samples, &segments, ends).unwrap()
    }),
    ("infidelity", false, |engine, samples, ends| {
        let drops = infidelity_of_patches(engine, samples, &patches(SHAPE, 3), ends, Prediction::Global);
        drops.unwrap().iter().map(|drops| drops.infidelity(true)).collect()
    }),
    ("monotonicity_correlation", true, |engine, samples, ends| {
        numbers(monotonicity_correlation_of_ends(engine, samples, ends, 12, 1e-5).unwrap())
    }),
    ("non_sensitivity", false, |engine, samples, ends| {
        let share = [0.001, 0.001];
        numbers(non_sensitivity_of_patches(engine, samples, &patches(SHAPE, 3), ends, share).unwrap())
    }),
    ("road", false, |engine, samples, _| imputed_means(engine, samples, Order::MostRelevantFirst)),
    ("road_least_first", true, |engine, samples, _| {
        imputed_means(engine, samples, Order::LeastRelevantFirst)
    }),
    ("road_gap", true, |engine, samples, _| gap(|order| imputed_means(engine, samples, order))),
];

fn imputed_means(engine: &Engine<'_>, samples: &[Sample<'_>], order: Order) -> Vec<f64> {
    let silent = |_, _, _, length| vec![0.0; length];
    let percentages = [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0];
    let curves = road(engine, samples, &percentages, order, &silent).unwrap();
    curves.iter().map(|curve| curve.iter().sum::<f64>() / curve.len() as f64).collect()
}

fn row(name: &str, model: &str, is_higher: bool, values: [f64; 4]) -> String {
    // Small errors have more digits.
    let digits = if values.iter().all(|value| value.abs() < 0.01) { 5 } else { 3 };
    let [lesion, marker, random, inverted] = values.map(|value| format!("{value:.digits$}"));
    let better = if is_higher { "higher" } else { "lower" };
    format!("| `{name}` | {model} | {better} | {lesion} | {marker} | {random} | {inverted} |")
}

/// `best` is better than all the other maps, and noise no worse than the lesion upside down, where that is the map of
/// what is looked for.
fn assert_ranked(name: &str, is_higher: bool, best: usize, values: [f64; 4]) {
    for (kind, value) in values.iter().enumerate().filter(|(kind, _)| *kind != best) {
        let better = if is_higher { values[best] > *value } else { values[best] < *value };
        assert!(better, "{name}: map {best} is not better than {kind} in {values:?}");
    }
    if best == 0 {
        let [_, _, random, inverted] = values;
        let holds = if is_higher { random >= inverted } else { random <= inverted };
        assert!(holds, "{name}: noise is worse than the inverted map in {values:?}");
    }
}

#[test]
fn maps_are_ranked_as_they_must_be() {
    let phantoms = Phantoms::new();
    let mode = Mode::Reference;
    let top = (SHAPE.pixels() as f64 * 0.05).ceil() as usize;
    type Localised<'a> = &'a dyn Fn(&[f64], &Mask) -> Value;
    let localised: [(&str, Localised<'_>); 8] = [
        ("pointing_game", &|map, mask| pointing_game(map, mask, 0.0, mode)),
        ("pointing_game_weighted", &|map, mask| weighted_pointing_game(map, mask, 0.0, mode)),
        ("relevance_mass", &|map, mask| relevance_mass_accuracy(&Part::Positive.of(map), mask)),
        ("relevance_rank", &relevance_rank_accuracy),
        ("top_k_intersection", &|map, mask| top_k_intersection(map, mask, top, false, mode)),
        ("attribution_localisation", &|map, mask| {
            attribution_localisation(&Part::Absolute.of(map), mask, Weighting::None, mode)
        }),
        ("attribution_localisation_weighted", &|map, mask| {
            attribution_localisation(&Part::Absolute.of(map), mask, Weighting::Area, mode)
        }),
        ("localisation_auc", &auc),
    ];
    let mut rows = Vec::new();
    for (name, metric) in localised {
        let values = phantoms.localised(metric);
        assert_ranked(name, true, 0, values);
        rows.push(row(name, "any", true, values));
    }
    let values = phantoms.focused();
    assert_ranked("focus", true, 0, values);
    rows.push(row("focus", "any", true, values));
    for (name, is_higher, metric) in FAITHFULNESS {
        for (model, used) in ["lesion", "marker"].into_iter().enumerate() {
            let values = phantoms.asked(model, &metric);
            // The map of what the model uses is the best, whatever a mask says.
            assert_ranked(name, is_higher, model, values);
            rows.push(row(name, used, is_higher, values));
        }
    }
    println!("{}", rows.join("\n"));
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/explanation-metrics.md");
    let page = std::fs::read_to_string(path).unwrap();
    for row in rows {
        assert!(page.contains(&row), "the table of the documentation has no row\n{row}");
    }
}
