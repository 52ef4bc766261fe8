//! Every entry of `scores.json` and `rgb_scores.json` in Quantus mode.

use std::collections::BTreeSet;

use pipe_attribution::Result;
use pipe_attribution::metrics::{
    Baseline, Distance, Engine, Groups, Mode, Order, Part, Preparation, Scale, Similarity, Undefined, Value,
    Weighting, attribution_localisation, auc, check_step, completeness_quantus, complexity,
    effective_complexity, faithfulness_correlation, faithfulness_estimate, focus, in_channels,
    infidelity_quantus, irof_quantus, monotonicity_correlation, non_sensitivity, patch_order, patches,
    pixel_flipping_quantus, pixels_of, pointing_game, region_perturbation_quantus, relevance_mass_accuracy,
    relevance_rank_accuracy, road, sensitivity_n_quantus, sparseness, sufficiency, top_k_intersection,
    trapezoid, weighted_pointing_game,
};
use serde_json::Value as Json;

use super::network::Space;
use super::{Case, evaluator, rows, single, tolerance};
use crate::harness::{self, Ledger};

/// Values in the order of the golden's numbers.
pub(super) type Outcome = Vec<Value>;

/// Metrics that normalise, and that take magnitudes, unless their parameters say otherwise.
fn defaults(metric: &str) -> (bool, bool) {
    match metric {
        "Infidelity" | "MaxSensitivity" | "AvgSensitivity" | "EfficientMPRT" | "InputInvariance" => {
            (false, false)
        }
        "RelativeInputStability" | "RelativeOutputStability" | "RelativeRepresentationStability" => {
            (false, false)
        }
        "Continuity" | "Consistency" | "MPRT" | "SmoothMPRT" => (true, true),
        "Monotonicity" | "MonotonicityCorrelation" | "Sufficiency" | "NonSensitivity" => (true, true),
        "AttributionLocalisation" | "Sparseness" | "Complexity" | "EffectiveComplexity" => (true, true),
        _ => (true, false),
    }
}

/// The maps of an entry as the metric sees them.
fn prepared(case: &Case, entry: &Json) -> Vec<Vec<f64>> {
    preparation(entry).of(&case.maps(entry["attributions"].as_str().expect("a tensor")))
}

/// What the metric of an entry does to the maps of one call.
pub(super) fn preparation(entry: &Json) -> Preparation {
    let metric = entry["metric"].as_str().expect("a metric");
    let (normalise, absolute) = defaults(metric);
    let flag = |key: &str, default: bool| entry["params"][key].as_bool().unwrap_or(default);
    let scale = match metric {
        _ if !flag("normalise", normalise) => Scale::None,
        "SmoothMPRT" => Scale::SecondMoment,
        _ => Scale::Together,
    };
    Preparation { scale, part: if flag("abs", absolute) { Part::Absolute } else { Part::Signed } }
}

fn baseline(params: &Json, default: Baseline) -> Baseline {
    match &params["perturb_baseline"] {
        Json::Null => default,
        Json::String(name) => match name.as_str() {
            "black" => Baseline::Black,
            "white" => Baseline::White,
            "mean" => Baseline::Mean,
            other => panic!("the baseline `{other}` is not known here"),
        },
        number => Baseline::Constant(number.as_f64().expect("a number") as f32),
    }
}

fn number(params: &Json, key: &str, default: f64) -> f64 {
    params[key].as_f64().unwrap_or(default)
}

pub(super) fn count(params: &Json, key: &str, default: usize) -> usize {
    params[key].as_u64().map_or(default, |number| number as usize)
}

fn curves(curves: Vec<Vec<f64>>) -> Outcome {
    curves.into_iter().flatten().map(Ok).collect()
}

/// The scores of an entry; `None` for metrics that are not written yet.
fn scores(case: &Case, entry: &Json) -> Result<Option<Outcome>> {
    let params = &entry["params"];
    let id = entry["id"].as_str().expect("an id");
    let metric = entry["metric"].as_str().expect("a metric");
    let maps = prepared(case, entry);
    let samples = case.samples(&maps);
    let score = case.score(Space::of(entry));
    let evaluator = evaluator(&score);
    let engine = Engine::new(&evaluator, case.shape);
    let per_step = count(params, "features_in_step", 1);
    if !params["features_in_step"].is_null()
        && let Err(refused) = check_step(case.shape, per_step)
    {
        return Ok(Some(vec![Err(refused)]));
    }
    let black = baseline(params, Baseline::Black);
    let masks = &case.masks;
    // A metric of one map and its mask.
    let localised = |value: &dyn Fn(usize) -> Value| (0..maps.len()).map(value).collect::<Outcome>();
    let draw = |name: &str| case.draws.input(&format!("{id}.{name}"));
    Ok(Some(match metric {
        "FaithfulnessCorrelation" => {
            let runs = rows(&draw("indices"));
            let subsets: Vec<Groups> = (0..maps.len())
                .map(|sample| {
                    Groups::new(runs.iter().map(|run| {
                        let size = run.len() / maps.len();
                        run[sample * size..][..size].iter().map(|index| *index as u32).collect::<Vec<_>>()
                    }))
                })
                .collect();
            faithfulness_correlation(&engine, &samples, &subsets, &black.images(&samples))?
        }
        "FaithfulnessEstimate" => {
            let similarity = match params["similarity_func"].as_str() {
                Some("correlation_spearman") => Similarity::Spearman,
                _ => Similarity::Pearson,
            };
            faithfulness_estimate(&engine, &samples, &black.images(&samples), per_step, similarity)?
        }
        "PixelFlipping" => {
            let all = pixel_flipping_quantus(&engine, &samples, black, per_step)?;
            match params["return_auc_per_sample"] == true {
                true => all.iter().map(|curve| Ok(trapezoid(curve))).collect(),
                false => curves(all),
            }
        }
        "RegionPerturbation" | "Selectivity" => {
            let side = count(params, "patch_size", 8);
            let patches = patches(case.shape, side);
            let selectivity = metric == "Selectivity";
            let regions = if selectivity { usize::MAX } else { count(params, "regions_evaluation", 100) };
            let given = (params["order"] == "random").then(|| rows(&draw("order")));
            let orders: Vec<Vec<u32>> = maps
                .iter()
                .enumerate()
                .map(|(index, map)| {
                    let mut order = match (&given, params["order"].as_str()) {
                        (Some(orders), _) => orders[index].iter().map(|patch| *patch as u32).collect(),
                        (None, Some("lerf")) => patch_order(map, &patches, Order::LeastRelevantFirst),
                        _ => patch_order(map, &patches, Order::MostRelevantFirst),
                    };
                    order.truncate(regions);
                    order
                })
                .collect();
            let all = region_perturbation_quantus(&engine, &samples, side, &orders, black)?;
            let value = |start: f64, value: f64| if selectivity { value } else { start - value };
            all.iter().flat_map(|curve| curve[1..].iter().map(|after| Ok(value(curve[0], *after)))).collect()
        }
        "SensitivityN" => {
            let greatest = number(params, "n_max_percentage", 0.8);
            sensitivity_n_quantus(&engine, &samples, black, per_step, greatest)?
        }
        "IROF" => {
            let segments: Vec<Groups> = match case.draws.has("irof.segments") {
                true => rows(&case.draws.input("irof.segments"))
                    .iter()
                    .map(|labels| {
                        Groups::segments(&labels.iter().map(|label| *label as u32).collect::<Vec<_>>())
                    })
                    .collect(),
                // Refused before they are looked at.
                false => vec![Groups::default(); maps.len()],
            };
            irof_quantus(&engine, &samples, &segments, baseline(params, Baseline::Mean))?
        }
        "Infidelity" => {
            let sides: Vec<usize> = match params["perturb_patch_sizes"].as_array() {
                Some(sides) => sides.iter().map(|side| side.as_u64().expect("a side") as usize).collect(),
                None => vec![4],
            };
            infidelity_quantus(&engine, &samples, &sides, black)?
        }
        "Monotonicity" => vec![Ok(1.0); maps.len()],
        "MonotonicityCorrelation" => {
            let steps = case.shape.features().div_ceil(per_step);
            let values: Vec<Vec<Vec<f32>>> = match params["perturb_baseline"].is_null() {
                true => rows(&draw("values"))
                    .iter()
                    .map(|draws| draws.chunks(maps.len()).map(single).collect())
                    .collect(),
                false => {
                    let values = samples.iter().map(|sample| black.value(sample.image)).collect();
                    vec![vec![values]; steps]
                }
            };
            monotonicity_correlation(&engine, &samples, &values, per_step, number(params, "eps", 1e-5))?
        }
        "Sufficiency" => {
            let maps: Vec<Vec<f64>> = maps.iter().map(|map| in_channels(map, case.shape.channels)).collect();
            let distance = match params["distance_func"].as_str() {
                Some("euclidean") => Distance::Euclidean,
                _ => Distance::StandardisedEuclidean,
            };
            let predicted = case.network.predicted(&case.data.input("x"))?;
            sufficiency(&maps, &predicted, number(params, "threshold", 0.6), distance, Mode::Quantus)
        }
        "ROAD" => road_scores(case, entry, &maps)?,
        "PointingGame" if params["weighted"] == true => {
            localised(&|index| weighted_pointing_game(&maps[index], &masks[index], 0.0, Mode::Quantus))
        }
        "PointingGame" => localised(&|index| pointing_game(&maps[index], &masks[index], 0.0, Mode::Quantus)),
        "AttributionLocalisation" => {
            let weighting = match params["weighted"] == true {
                true => Weighting::Slice { features: maps.len().saturating_sub(2) * case.shape.features() },
                false => Weighting::None,
            };
            let positive = params["positive_attributions"] == true;
            localised(&|index| {
                let map = if positive { Part::Positive } else { Part::Signed }.of(&maps[index]);
                attribution_localisation(&map, &masks[index], weighting, Mode::Quantus)
            })
        }
        "TopKIntersection" => {
            let (k, influence) = (count(params, "k", 1000), params["concept_influence"] == true);
            localised(&|index| top_k_intersection(&maps[index], &masks[index], k, influence, Mode::Quantus))
        }
        "RelevanceRankAccuracy" => localised(&|index| relevance_rank_accuracy(&maps[index], &masks[index])),
        "RelevanceMassAccuracy" => localised(&|index| relevance_mass_accuracy(&maps[index], &masks[index])),
        "AUC" => localised(&|index| auc(&maps[index], &masks[index])),
        "Focus" => {
            let flags = rows(&case.data.input("focus_positions"));
            localised(&|index| {
                let shows = [0, 1, 2, 3].map(|quadrant| flags[index][quadrant] != 0.0);
                focus(&maps[index], case.shape.width, shows)
            })
        }
        "Sparseness" => maps.iter().map(|map| sparseness(map)).collect(),
        "Complexity" => maps.iter().map(|map| complexity(map)).collect(),
        "EffectiveComplexity" => {
            let epsilon = number(params, "eps", 1e-5);
            maps.iter().map(|map| Ok(effective_complexity(map, epsilon))).collect()
        }
        "Completeness" => completeness_quantus(&engine, &samples, black)?.into_iter().map(Ok).collect(),
        "NonSensitivity" => {
            let epsilon = number(params, "eps", 1e-5);
            let counts = non_sensitivity(&engine, &samples, black, epsilon, Mode::Quantus)?;
            counts.into_iter().map(Ok).collect()
        }
        _ => return super::again::scores(case, entry),
    }))
}

/// The share of samples that keep their class, for each percentage in the order of the golden's keys.
fn road_scores(case: &Case, entry: &Json, maps: &[Vec<f64>]) -> Result<Outcome> {
    if case.shape.channels > 1 {
        let refused = Undefined::Refused("its indices run over all channels, its imputation over one");
        return Ok(vec![Err(refused)]);
    }
    let params = &entry["params"];
    let percentages: Vec<f64> = params["percentages"].as_array().map_or_else(
        || (1..100).step_by(2).map(f64::from).collect(),
        |list| list.iter().map(|percentage| percentage.as_f64().expect("a percentage")).collect(),
    );
    let factor = number(params, "noise", 0.01);
    let mut offsets = Vec::new();
    let mut noise = Vec::new();
    if factor > 0.0 {
        noise = harness::values(&case.draws.input("road.noise"));
        let mut offset = 0;
        for (percentage, lengths) in rows(&case.draws.input("road.lengths")).iter().enumerate() {
            for length in lengths {
                assert_eq!(*length as usize, pixels_of(case.shape, percentages[percentage]));
                offsets.push(offset);
                offset += *length as usize;
            }
        }
        assert_eq!(offset, noise.len(), "all noise is used");
    }
    let samples = case.samples(maps);
    let added = |percentage: usize, sample: usize, _channel: usize, length: usize| match offsets.is_empty() {
        true => vec![0.0; length],
        false => {
            let start = offsets[percentage * maps.len() + sample];
            noise[start..start + length].iter().map(|value| factor * value).collect()
        }
    };
    let score = case.score(Space::Agreement);
    let evaluator = evaluator(&score);
    let engine = Engine::new(&evaluator, case.shape);
    let kept = road(&engine, &samples, &percentages, Order::MostRelevantFirst, &added)?;
    let golden = golden(entry).as_object().expect("one value per percentage");
    Ok(golden
        .keys()
        .map(|key| {
            let wanted: f64 = key.parse().expect("a percentage");
            let place =
                percentages.iter().position(|percentage| *percentage == wanted).expect("it was asked for");
            Ok(kept.iter().map(|curve| curve[place]).sum::<f64>() / kept.len() as f64)
        })
        .collect())
}

/// The scores of an entry; some exist for a float32 network only.
pub(super) fn golden(entry: &Json) -> &Json {
    if entry["score_f64"].is_null() { &entry["score_f32"] } else { &entry["score_f64"] }
}

fn compare(case: &Case, ledger: &Ledger, entry: &Json, refused: &BTreeSet<&str>) {
    let id = entry["id"].as_str().expect("an id");
    let golden = golden(entry);
    let expects_error = refused.contains(id) || !entry["error_f64"].is_null();
    let Some(ours) = scores(case, entry).unwrap_or_else(|error| panic!("{id}: {error}")) else { return };
    if expects_error {
        match ours.iter().all(|value| matches!(value, Err(Undefined::Refused(_)))) {
            true => ledger.record(id, 0.0, 0.0),
            false => ledger.fail(id, "Quantus raises an error, and this gave a value"),
        }
        return;
    }
    let ours: Vec<f64> = ours.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect();
    let golden = harness::numbers(golden);
    if golden.len() != ours.len() {
        ledger.fail(id, &format!("{} values, golden {}", ours.len(), golden.len()));
        return;
    }
    let exact = matches!(entry["metric"].as_str(), Some("NonSensitivity"));
    let error = harness::difference(&golden, &ours, |golden| if exact { 1.0 } else { 1.0 + golden.abs() });
    ledger.record(id, error, tolerance(entry));
}

fn compare_file(prefix: &str, config: impl Fn(&Json) -> &Json) {
    let Some(folder) = harness::topic("xai-metrics") else { return };
    let description = harness::json(&folder.join("config.json"));
    let config = config(&description);
    let case = Case::open(&folder, prefix, &config["network"]);
    case.check_outputs();
    let file = format!("{prefix}scores.json");
    let golden = harness::json(&folder.join(&file));
    let entries = golden["scores"].as_array().expect("a list of scores");
    let ids = entries.iter().map(|entry| entry["id"].as_str().expect("an id").to_owned());
    let ledger = Ledger::new(&folder, &file, ids);
    let refused: BTreeSet<&str> = config["expected_errors_quantus_mode"]
        .as_array()
        .expect("a list of ids")
        .iter()
        .filter_map(Json::as_str)
        .collect();
    for entry in entries {
        compare(&case, &ledger, entry, &refused);
    }
    case.data.finish();
    case.model.finish();
    case.draws.finish();
    if let Some(randomised) = &case.randomised {
        randomised.finish();
    }
    ledger.finish_without(&[]);
}

#[test]
fn quantus_mode_equals_quantus() {
    compare_file("", |config| config);
}

#[test]
fn quantus_mode_equals_quantus_with_three_channels() {
    compare_file("rgb_", |config| &config["rgb"]);
}
