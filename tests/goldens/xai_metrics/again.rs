//! Metrics that explain again: changed images, changed models, another class.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use pipe_attribution::metrics::{
    Baseline, Explainer, Mode, Similarity, Value, average, by_largest_magnitude, by_second_moment,
    consistency, continuity, continuity_shifts, discrete_entropy, first_signs, flat_ssim, greatest,
    is_invariant, local_lipschitz, mean_over_layers, relative_change, relative_difference, relative_rise,
    relative_stability, similarities, translated,
};
use pipe_attribution::{Gradient, InputXGradient, Method, Result};
use serde_json::Value as Json;

use super::network::{Network, Space, TargetScore, softmax};
use super::quantus::{Outcome, count, golden, prepare};
use super::{Case, evaluator, rows, single};

/// Maps of `images` for `targets` by a method, channels summed.
fn explain(
    case: &Case,
    network: &Network,
    method: &dyn Method,
    targets: &[usize],
    images: &[Vec<f32>],
) -> Result<Vec<Vec<f64>>> {
    let score = TargetScore { network, targets, space: Space::Logit };
    let evaluator = evaluator(&score);
    let images: Vec<(usize, &[f32])> = images.iter().map(Vec::as_slice).enumerate().collect();
    Explainer::new(method, &evaluator, case.shape).maps(&images)
}

/// As [`explain`], Input x Gradient of the targets of the case.
fn input_x_gradient(case: &Case, network: &Network, images: &[Vec<f32>]) -> Result<Vec<Vec<f64>>> {
    explain(case, network, &InputXGradient::default(), &case.targets, images)
}

fn tensor(case: &Case, images: &[Vec<f32>]) -> Result<Tensor> {
    let shape = (images.len(), case.shape.channels, case.shape.height, case.shape.width);
    Ok(Tensor::from_vec(images.concat(), shape, &Device::Cpu)?)
}

/// The images of each draw, `[draws][samples]`.
fn drawn(case: &Case, id: &str, metric: &str) -> Vec<Vec<Vec<f32>>> {
    let own = format!("{id}.x_perturbed");
    // Some entries share the draws of another.
    let key = match metric {
        _ if case.draws.has(&own) => own,
        "AvgSensitivity" => "max_sensitivity.x_perturbed".to_owned(),
        _ => "ris.x_perturbed".to_owned(),
    };
    let split = |draw: Vec<f64>| draw.chunks(case.shape.features()).map(single).collect();
    rows(&case.draws.input(&key)).into_iter().map(split).collect()
}

/// Which samples are predicted as before.
fn kept(case: &Case, images: &[Vec<f32>]) -> Result<Vec<bool>> {
    let before = case.network.predicted(&tensor(case, &case.images)?)?;
    let after = case.network.predicted(&tensor(case, images)?)?;
    Ok(before.iter().zip(after).map(|(before, after)| *before == after).collect())
}

pub(super) fn scores(case: &Case, entry: &Json, maps: &[Vec<f64>]) -> Result<Option<Outcome>> {
    let metric = entry["metric"].as_str().expect("a metric");
    let id = entry["id"].as_str().expect("an id");
    Ok(Some(match metric {
        "LocalLipschitzEstimate"
        | "MaxSensitivity"
        | "AvgSensitivity"
        | "RelativeInputStability"
        | "RelativeOutputStability"
        | "RelativeRepresentationStability" => draws_of(case, entry, maps)?,
        "Continuity" => shifts_of(case, entry)?,
        "Consistency" => {
            let labels: Vec<Vec<i8>> = maps.iter().map(|map| first_signs(map)).collect();
            consistency(&labels, &case.network.predicted(&case.data.input("x"))?, Mode::Quantus)
        }
        "MPRT" => layers_of(case, entry, maps)?,
        "SmoothMPRT" => smooth_layers_of(case, entry, maps)?,
        "EfficientMPRT" => entropies_of(case, entry, maps)?,
        "RandomLogit" => {
            let targets: Vec<usize> = crate::harness::values(&case.draws.input("random_logit.y_off"))
                .into_iter()
                .map(|class| class as usize)
                .collect();
            let method = InputXGradient::default();
            let others = explain(case, &case.network, &method, &targets, &case.images)?;
            similarities(maps, &prepare(others, entry), similarity(entry, flat_ssim))
        }
        "InputInvariance" => {
            // Quantus leaves the first feature where it was.
            let values = match id.ends_with("grad") {
                true => invariance(case, &Gradient, 1)?,
                false => invariance(case, &InputXGradient::default(), 1)?,
            };
            values.into_iter().map(Ok).collect()
        }
        _ => return Ok(None),
    }))
}

/// The similarity that an entry names, else its metric's own.
fn similarity(
    entry: &Json,
    default: fn(&[f64], &[f64]) -> Value,
) -> impl Fn(&[f64], &[f64]) -> Value + use<> {
    let name = entry["params"]["similarity_func"].as_str().map(str::to_owned);
    move |a, b| match name.as_deref() {
        None => default(a, b),
        Some("correlation_spearman") => Similarity::Spearman.of(a, b),
        Some("correlation_pearson") => Similarity::Pearson.of(a, b),
        // The goldens pass SSIM as an anonymous function.
        Some(_) => flat_ssim(a, b),
    }
}

fn draws_of(case: &Case, entry: &Json, maps: &[Vec<f64>]) -> Result<Outcome> {
    let metric = entry["metric"].as_str().expect("a metric");
    let stability = metric.starts_with("Relative");
    let watches = entry["params"]["return_nan_when_prediction_changes"].as_bool().unwrap_or(stability);
    let mut values = vec![Vec::new(); maps.len()];
    let mut same = vec![Vec::new(); maps.len()];
    let wide = |image: &[f32]| image.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
    let before = tensor(case, &case.images)?;
    for images in drawn(case, entry["id"].as_str().expect("an id"), metric) {
        let changed = prepare(input_x_gradient(case, &case.network, &images)?, entry);
        let kept = kept(case, &images)?;
        let after = tensor(case, &images)?;
        for sample in 0..maps.len() {
            let (map, other) = (&maps[sample], &changed[sample]);
            let (image, moved) = (&case.images[sample], &images[sample]);
            let rows = |all: Vec<Vec<f64>>| all[sample].clone();
            let value = match metric {
                "LocalLipschitzEstimate" => local_lipschitz(map, other, image, moved),
                "MaxSensitivity" | "AvgSensitivity" => relative_change(map, other),
                "RelativeInputStability" => {
                    let change = relative_difference(wide(image).into_iter(), wide(moved).into_iter());
                    relative_stability(map, other, change, Mode::Quantus)
                }
                "RelativeOutputStability" => {
                    let (a, b) = (
                        rows(case.network.logits(&before)?.to_vec2()?),
                        rows(case.network.logits(&after)?.to_vec2()?),
                    );
                    let change = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
                    relative_stability(map, other, change, Mode::Quantus)
                }
                _ => {
                    let (a, b) = (
                        rows(case.network.representations(&before)?),
                        rows(case.network.representations(&after)?),
                    );
                    let change = relative_difference(a.into_iter(), b.into_iter());
                    relative_stability(map, other, change, Mode::Quantus)
                }
            };
            values[sample].push(value);
            same[sample].push(kept[sample]);
        }
    }
    let gather = if metric == "AvgSensitivity" { average } else { greatest };
    Ok(values
        .iter()
        .zip(&same)
        .map(|(values, same)| gather(values, watches.then_some(same.as_slice()), Mode::Quantus))
        .collect())
}

fn shifts_of(case: &Case, entry: &Json) -> Result<Outcome> {
    let maps = prepare(input_x_gradient(case, &case.network, &case.images)?, entry);
    let steps = count(&entry["params"], "nr_steps", 28);
    let mut values = vec![Vec::new(); maps.len()];
    for shift in continuity_shifts(case.shape.width, steps) {
        let moved: Vec<Vec<f32>> = case
            .images
            .iter()
            .map(|image| translated(image, case.shape, shift, Baseline::Black.value(image)))
            .collect();
        let changed = prepare(input_x_gradient(case, &case.network, &moved)?, entry);
        for sample in 0..maps.len() {
            values[sample].push(continuity(
                &maps[sample],
                &changed[sample],
                &case.images[sample],
                &moved[sample],
            ));
        }
    }
    Ok(values.iter().map(|values| greatest(values, None, Mode::Quantus)).collect())
}

/// The networks of a randomisation, layer by layer in its order.
fn randomised(case: &Case, order: &str) -> Vec<(String, Network)> {
    let tensors = case.randomised.as_ref().expect("parameters drawn anew");
    let mut layers = case.layers.clone();
    if order == "top_down" {
        layers.reverse();
    }
    let mut network = case.network.clone();
    layers
        .into_iter()
        .map(|layer| {
            let base = if order == "independent" { &case.network } else { &network };
            network = base.with_layer(&layer, tensors, "reset.");
            (layer, network.clone())
        })
        .collect()
}

/// Input x Gradient of each network of a randomisation; compared with the golden maps where they are given.
fn randomised_maps(case: &Case, order: &str) -> Result<Vec<(String, Vec<Vec<f64>>)>> {
    let tensors = case.randomised.as_ref().expect("parameters drawn anew");
    randomised(case, order)
        .into_iter()
        .map(|(layer, network)| {
            let maps = input_x_gradient(case, &network, &case.images)?;
            let key = format!("attr.{order}.{layer}");
            if tensors.has(&key) {
                let shape = (maps.len(), 1, case.shape.height, case.shape.width);
                tensors.compare(&key, &Tensor::from_vec(maps.concat(), shape, &Device::Cpu)?, 1e-5);
            }
            Ok((layer, maps))
        })
        .collect()
}

/// The values of a dictionary in the order of the golden one.
fn in_order_of(golden: &Json, values: &BTreeMap<String, Outcome>) -> Outcome {
    let golden = golden.as_object().expect("scores by name");
    golden.keys().filter_map(|key| values.get(key)).flatten().cloned().collect()
}

fn layers_of(case: &Case, entry: &Json, maps: &[Vec<f64>]) -> Result<Outcome> {
    let params = &entry["params"];
    let order = params["layer_order"].as_str().unwrap_or("top_down");
    let similarity = similarity(entry, |a, b| Similarity::Spearman.of(a, b));
    let mut values = BTreeMap::from([("original".to_owned(), similarities(maps, maps, &similarity))]);
    let mut last = Vec::new();
    for (layer, changed) in randomised_maps(case, order)? {
        last = similarities(maps, &prepare(changed, entry), &similarity);
        values.insert(layer, last.clone());
    }
    if params["return_last_correlation"] == true {
        return Ok(last);
    }
    if params["return_average_correlation"] == true {
        let mean = |sample: usize| {
            mean_over_layers(&values.values().map(|layer| layer[sample].clone()).collect::<Vec<_>>())
        };
        return Ok((0..maps.len()).map(mean).collect());
    }
    Ok(in_order_of(golden(entry), &values))
}

fn smooth_layers_of(case: &Case, entry: &Json, maps: &[Vec<f64>]) -> Result<Outcome> {
    let noisy: Vec<Vec<f32>> =
        rows(&case.draws.input("smooth_mprt.x_noisy")).iter().map(|call| single(call)).collect();
    let similarity = similarity(entry, |a, b| Similarity::Spearman.of(a, b));
    let order = entry["params"]["layer_order"].as_str().unwrap_or("bottom_up");
    let mut networks = vec![("original".to_owned(), case.network.clone())];
    networks.extend(randomised(case, order));
    let mut values = BTreeMap::new();
    for ((layer, network), call) in networks.into_iter().zip(&noisy) {
        let mut sums = input_x_gradient(case, &network, &case.images)?;
        let length = case.shape.features();
        for draw in call.chunks(length * maps.len()) {
            let images: Vec<Vec<f32>> = draw.chunks(length).map(<[f32]>::to_vec).collect();
            for (sum, map) in sums.iter_mut().zip(input_x_gradient(case, &network, &images)?) {
                sum.iter_mut().zip(map).for_each(|(sum, value)| *sum += value);
            }
        }
        let smooth: Vec<Vec<f64>> =
            by_second_moment(&sums).into_iter().map(|map| map.into_iter().map(f64::abs).collect()).collect();
        values.insert(layer, similarities(maps, &smooth, &similarity));
    }
    Ok(in_order_of(golden(entry), &values))
}

fn entropies_of(case: &Case, entry: &Json, maps: &[Vec<f64>]) -> Result<Outcome> {
    let params = &entry["params"];
    let bins = count(&params["complexity_func_kwargs"], "n_bins", 100);
    let order = params["layer_order"].as_str().unwrap_or("bottom_up");
    let of_maps = |maps: &[Vec<f64>]| maps.iter().map(|map| discrete_entropy(map, bins)).collect::<Vec<_>>();
    let images = tensor(case, &case.images)?;
    let of_model = |network: &Network| -> Result<Vec<f64>> {
        let probabilities: Vec<Vec<f64>> = softmax(&network.logits(&images)?)?.to_vec2()?;
        let entropy = |row: &Vec<f64>| row.iter().map(|share| -share * share.ln()).sum();
        Ok(probabilities.iter().map(entropy).collect())
    };
    let mut maps_by_layer = vec![("orig".to_owned(), of_maps(maps))];
    let mut model_by_layer = vec![("orig".to_owned(), of_model(&case.network)?)];
    let networks = randomised(case, order);
    for ((layer, changed), (_, network)) in randomised_maps(case, order)?.into_iter().zip(&networks) {
        maps_by_layer.push((layer.clone(), of_maps(&prepare(changed, entry))));
        model_by_layer.push((layer, of_model(network)?));
    }
    let last = maps_by_layer.len() - 1;
    let (first, end) = (&maps_by_layer[0].1, &maps_by_layer[last].1);
    let (model_first, model_end) = (&model_by_layer[0].1, &model_by_layer[last].1);
    let each =
        |value: &dyn Fn(usize) -> f64| (0..maps.len()).map(|sample| Ok(value(sample))).collect::<Outcome>();
    let rise = each(&|sample| relative_rise(first[sample], end[sample]));
    if params["compute_extra_scores"] != true {
        return Ok(rise);
    }
    let by_key = |key: &str, layers: &[(String, Vec<f64>)]| {
        let defined = |values: &Vec<f64>| values.iter().copied().map(Ok).collect::<Outcome>();
        let values = layers.iter().map(|(name, values)| (name.clone(), defined(values))).collect();
        in_order_of(&golden(entry)[key], &values)
    };
    let correlation = |sample: usize| -> Value {
        let column = |layers: &[(String, Vec<f64>)]| {
            layers.iter().map(|(_, values)| values[sample]).collect::<Vec<_>>()
        };
        Similarity::Spearman.of(&column(&model_by_layer), &column(&maps_by_layer))
    };
    let values = BTreeMap::from(
        [
            ("scores", rise),
            ("scores_delta_explanation", each(&|sample| end[sample] - first[sample])),
            ("scores_fraction_explanation", each(&|sample| end[sample] / first[sample])),
            ("scores_delta_model", each(&|sample| model_end[sample] - model_first[sample])),
            ("scores_fraction_model", each(&|sample| model_end[sample] / model_first[sample])),
            (
                "scores_delta_explanation_vs_models",
                each(&|sample| end[sample] / first[sample] / (model_end[sample] / model_first[sample])),
            ),
            (
                "scores_average_complexity",
                each(&|sample| {
                    maps_by_layer[1..].iter().map(|(_, values)| values[sample]).sum::<f64>() / last as f64
                }),
            ),
            (
                "scores_correlation_model_vs_explanation_complexity",
                (0..maps.len()).map(correlation).collect(),
            ),
            ("explanation_by_layer", by_key("explanation_by_layer", &maps_by_layer)),
            ("model_by_layer", by_key("model_by_layer", &model_by_layer)),
        ]
        .map(|(key, values)| (key.to_owned(), values)),
    );
    Ok(in_order_of(golden(entry), &values))
}

/// The mean similarity over the layers of a bottom-up randomisation, the unchanged model left out.
pub(super) fn mean_over_randomised(case: &Case, maps: &[Vec<f64>]) -> Result<Vec<f64>> {
    let absolute = |maps: &[Vec<f64>]| -> Vec<Vec<f64>> {
        maps.iter().map(|map| map.iter().map(|value| value.abs()).collect()).collect()
    };
    let maps = absolute(maps);
    let layers: Vec<Outcome> = randomised_maps(case, "bottom_up")?
        .iter()
        .map(|(_, changed)| similarities(&maps, &absolute(changed), |a, b| Similarity::Spearman.of(a, b)))
        .collect();
    let mean = |sample: usize| {
        mean_over_layers(&layers.iter().map(|layer| layer[sample].clone()).collect::<Vec<_>>())
    };
    Ok((0..maps.len()).map(|sample| mean(sample).unwrap_or(f64::NAN)).collect())
}

/// Max-sensitivity of maps that are each divided by their own greatest magnitude.
pub(super) fn max_sensitivity_per_sample(case: &Case, maps: &[Vec<f64>]) -> Result<Vec<f64>> {
    let mut worst = vec![f64::NEG_INFINITY; maps.len()];
    for images in drawn(case, "max_sensitivity", "MaxSensitivity") {
        let changed = input_x_gradient(case, &case.network, &images)?;
        for (sample, worst) in worst.iter_mut().enumerate() {
            let (map, other) = (by_largest_magnitude(&maps[sample]), by_largest_magnitude(&changed[sample]));
            *worst = worst.max(relative_change(&map, &other));
        }
    }
    Ok(worst)
}

/// Whether maps survive a shift of the input by -1 that the first bias takes back; the first `skipped`
/// features are not shifted.
pub(super) fn invariance(case: &Case, method: &dyn Method, skipped: usize) -> Result<Vec<f64>> {
    const SHIFT: f32 = -1.0;
    let maps = explain(case, &case.network, method, &case.targets, &case.images)?;
    let network = case.network.undoing_shift(f64::from(SHIFT))?;
    let moved: Vec<Vec<f32>> = case
        .images
        .iter()
        .map(|image| {
            let shift = |(index, value): (usize, &f32)| if index < skipped { *value } else { value + SHIFT };
            image.iter().enumerate().map(shift).collect()
        })
        .collect();
    let changed = explain(case, &network, method, &case.targets, &moved)?;
    Ok(maps.iter().zip(&changed).map(|(map, changed)| is_invariant(map, changed)).collect())
}
