//! Metrics that explain again: changed images, changed models, another class.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor};
use pipe_attribution::metrics::{
    Baseline, Draws, LayerOrder, LayerSimilarities, Mode, OfImages, Part, Preparation, Randomisation,
    Robustness, Scale, Shifted, Similarity, Value, consistency, explained, first_signs, flat_ssim,
    input_invariance, random_logit, translated, translations,
};
use pipe_attribution::{Evaluator, Gradient, InputXGradient, Method, Result};
use serde_json::Value as Json;

use super::network::{Network, Space, TargetScore, softmax};
use super::quantus::{Outcome, count, golden, preparation};
use super::{Case, evaluator, rows, single};
use crate::harness::values;

type Images<'a> = [(usize, &'a [f32])];

/// Maps of `images` by a method, for a network and targets.
fn explain(
    case: &Case,
    network: &Network,
    method: &dyn Method,
    targets: &[usize],
    images: &Images<'_>,
) -> Result<Vec<Vec<f64>>> {
    let score = TargetScore { network, targets, space: Space::Logit };
    explained(method, &evaluator(&score), case.shape, images)
}

/// As [`explain`], Input x Gradient of the targets of the case.
fn input_x_gradient(case: &Case, network: &Network, images: &Images<'_>) -> Result<Vec<Vec<f64>>> {
    explain(case, network, &InputXGradient::default(), &case.targets, images)
}

fn tensor(case: &Case, images: &Images<'_>) -> Result<Tensor> {
    let shape = (images.len(), case.shape.channels, case.shape.height, case.shape.width);
    let values = images.iter().flat_map(|(_, image)| image.iter().copied()).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

fn logits(case: &Case, images: &Images<'_>) -> Result<Vec<Vec<f64>>> {
    Ok(case.network.logits(&tensor(case, images)?)?.to_vec2()?)
}

/// The changed images of each draw, one row per draw. Some entries share the draws of another.
fn drawn(case: &Case, id: &str, metric: &str) -> Vec<Vec<f32>> {
    let own = format!("{id}.x_perturbed");
    let key = match metric {
        _ if case.draws.has(&own) => own,
        "AvgSensitivity" => "max_sensitivity.x_perturbed".to_owned(),
        _ => "ris.x_perturbed".to_owned(),
    };
    rows(&case.draws.input(&key)).iter().map(|draw| single(draw)).collect()
}

/// The metric of an entry; `None` if it is none of these.
pub(super) fn scores(case: &Case, entry: &Json) -> Result<Option<Outcome>> {
    let maps = case.maps(entry["attributions"].as_str().expect("a tensor"));
    let samples = case.samples(&maps);
    Ok(Some(match entry["metric"].as_str().expect("a metric") {
        "LocalLipschitzEstimate"
        | "MaxSensitivity"
        | "AvgSensitivity"
        | "RelativeInputStability"
        | "RelativeOutputStability"
        | "RelativeRepresentationStability"
        | "Continuity" => robustness(case, entry)?,
        "Consistency" => {
            let labels: Vec<Vec<i8>> =
                preparation(entry).of(&maps).iter().map(|map| first_signs(map)).collect();
            consistency(&labels, &case.network.predicted(&case.data.input("x"))?, Mode::Quantus)
        }
        "MPRT" | "SmoothMPRT" => {
            let order = layer_order(entry);
            let similarities = layers(case, entry, order)?;
            match () {
                () if entry["params"]["return_last_correlation"] == true => similarities.last().to_vec(),
                () if entry["params"]["return_average_correlation"] == true => {
                    similarities.average(Mode::Quantus)
                }
                () => by_layer(case, order, &similarities, golden(entry)),
            }
        }
        "EfficientMPRT" => entropies(case, entry)?,
        "RandomLogit" => {
            let targets: Vec<usize> = values(&case.draws.input("random_logit.y_off"))
                .into_iter()
                .map(|class| class as usize)
                .collect();
            let method = InputXGradient::default();
            let other = |images: &Images<'_>| explain(case, &case.network, &method, &targets, images);
            random_logit(&samples, &other, preparation(entry), &similarity(entry, flat_ssim))?
        }
        "InputInvariance" => {
            let invariant = match entry["attributions"] == "attr_grad" {
                true => invariance(case, &Gradient, &maps, Mode::Quantus)?,
                false => invariance(case, &InputXGradient::default(), &maps, Mode::Quantus)?,
            };
            invariant.into_iter().map(Ok).collect()
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
        Some("correlation_kendall_tau") => Similarity::Kendall.of(a, b),
        // The goldens pass SSIM as an anonymous function.
        Some(_) => flat_ssim(a, b),
    }
}

fn robustness(case: &Case, entry: &Json) -> Result<Outcome> {
    let metric = entry["metric"].as_str().expect("a metric");
    let id = entry["id"].as_str().expect("an id");
    let explain = |images: &Images<'_>| input_x_gradient(case, &case.network, images);
    let outputs = |images: &Images<'_>| logits(case, images);
    let representations = |images: &Images<'_>| Ok(case.network.representations(&tensor(case, images)?)?);
    let stability = metric.starts_with("Relative");
    let watches = entry["params"]["return_nan_when_prediction_changes"].as_bool().unwrap_or(stability);
    let watched: &OfImages<'_> = &outputs;
    let length = case.shape.features();
    let (maps, changed, shifts);
    let image: Box<dyn Fn(usize, usize) -> Vec<f32>>;
    let draws;
    if metric == "Continuity" {
        // Quantus explains the images again and does not look at the maps it is given.
        let images: Vec<(usize, &[f32])> = case.images.iter().map(Vec::as_slice).enumerate().collect();
        maps = explain(&images)?;
        shifts = translations(case.shape.width, count(&entry["params"], "nr_steps", 28), Mode::Quantus);
        draws = shifts.len();
        image = Box::new(|draw, place| {
            let image = &case.images[place];
            translated(image, case.shape, shifts[draw], Baseline::Black.value(image))
        });
    } else {
        maps = case.maps(entry["attributions"].as_str().expect("a tensor"));
        changed = drawn(case, id, metric);
        draws = changed.len();
        image = Box::new(|draw, place| changed[draw][place * length..][..length].to_vec());
    }
    let samples = case.samples(&maps);
    let robustness = Robustness {
        samples: &samples,
        draws: Draws { count: draws, image: &*image },
        explain: &explain,
        preparation: preparation(entry),
        outputs: watches.then_some(watched),
    };
    let mode = Mode::Quantus;
    Ok(match metric {
        "LocalLipschitzEstimate" => robustness.local_lipschitz()?.greatest(mode),
        "MaxSensitivity" => robustness.sensitivity()?.greatest(mode),
        "AvgSensitivity" => robustness.sensitivity()?.average(mode),
        "RelativeInputStability" => robustness.relative_input_stability(mode)?.greatest(mode),
        "RelativeOutputStability" => robustness.relative_output_stability(&outputs, mode)?.greatest(mode),
        "RelativeRepresentationStability" => {
            robustness.relative_representation_stability(&representations, mode)?.greatest(mode)
        }
        _ => robustness.continuity()?.greatest(mode),
    })
}

fn layer_order(entry: &Json) -> LayerOrder {
    let default = if entry["metric"] == "MPRT" { "top_down" } else { "bottom_up" };
    match entry["params"]["layer_order"].as_str().unwrap_or(default) {
        "top_down" => LayerOrder::TopDown,
        "independent" => LayerOrder::Independent,
        _ => LayerOrder::BottomUp,
    }
}

/// The network with these layers drawn anew.
fn randomised(case: &Case, layers: &[usize]) -> Network {
    let tensors = case.randomised.as_ref().expect("parameters drawn anew");
    layers.iter().fold(case.network.clone(), |network, layer| {
        network.with_layer(&case.layers[*layer], tensors, "reset.")
    })
}

/// The name of the key under which the maps of these layers are stored.
fn key(case: &Case, order: LayerOrder, layers: &[usize]) -> String {
    let order = match order {
        LayerOrder::BottomUp => "bottom_up",
        LayerOrder::TopDown => "top_down",
        LayerOrder::Independent => "independent",
    };
    let newest = layers.last().map_or("original", |layer| case.layers[*layer].as_str());
    format!("attr.{order}.{newest}")
}

/// Calls `compute` with the randomisation of an entry; maps are compared with the golden ones where those
/// are given.
fn with_randomisation<T>(
    case: &Case,
    order: LayerOrder,
    maps: &[Vec<f64>],
    preparation: Preparation,
    compute: impl FnOnce(&Randomisation<'_>) -> Result<T>,
) -> Result<T> {
    let tensors = case.randomised.as_ref().expect("parameters drawn anew");
    let explain = |layers: &[usize], images: &Images<'_>| {
        let maps = input_x_gradient(case, &randomised(case, layers), images)?;
        let is_clean = images.iter().zip(&case.images).all(|((_, image), own)| image == own);
        let key = key(case, order, layers);
        if is_clean && images.len() == case.images.len() && tensors.has(&key) {
            let shape = (maps.len(), 1, case.shape.height, case.shape.width);
            tensors.compare(&key, &Tensor::from_vec(maps.concat(), shape, &Device::Cpu)?, 1e-5);
        }
        Ok(maps)
    };
    compute(&Randomisation {
        samples: &case.samples(maps),
        layers: case.layers.len(),
        order,
        preparation,
        explain: &explain,
    })
}

fn layers(case: &Case, entry: &Json, order: LayerOrder) -> Result<LayerSimilarities> {
    let maps = case.maps(entry["attributions"].as_str().expect("a tensor"));
    let similarity = similarity(entry, |a, b| Similarity::Spearman.of(a, b));
    with_randomisation(case, order, &maps, preparation(entry), |randomisation| {
        if entry["metric"] == "MPRT" {
            return randomisation.similarities(&similarity);
        }
        let calls: Vec<Vec<f32>> =
            rows(&case.draws.input("smooth_mprt.x_noisy")).iter().map(|call| single(call)).collect();
        let length = case.shape.features();
        let noisy = |step: usize, draw: usize, place: usize| {
            calls[step][(draw * maps.len() + place) * length..][..length].to_vec()
        };
        let count = calls[0].len() / (length * maps.len());
        randomisation.smooth_similarities(count, &noisy, &similarity, Mode::Quantus)
    })
}

/// Values by name in the order of a golden dictionary.
fn in_order_of(golden: &Json, values: &BTreeMap<String, Outcome>) -> Outcome {
    let golden = golden.as_object().expect("scores by name");
    let known: BTreeSet<&String> = golden.keys().collect();
    assert_eq!(known, values.keys().collect(), "names of scores");
    golden.keys().flat_map(|key| values[key].clone()).collect()
}

fn by_layer(case: &Case, order: LayerOrder, all: &LayerSimilarities, golden: &Json) -> Outcome {
    let steps = order.steps(case.layers.len());
    let name = |layers: &Vec<usize>| case.layers[layers[layers.len() - 1]].clone();
    let mut values = BTreeMap::from([("original".to_owned(), all.original.clone())]);
    values.extend(steps.iter().map(name).zip(all.layers.iter().cloned()));
    in_order_of(golden, &values)
}

fn entropies(case: &Case, entry: &Json) -> Result<Outcome> {
    let params = &entry["params"];
    let maps = case.maps(entry["attributions"].as_str().expect("a tensor"));
    let bins = count(&params["complexity_func_kwargs"], "n_bins", 100);
    let order = layer_order(entry);
    with_randomisation(case, order, &maps, preparation(entry), |randomisation| {
        let rise = randomisation.entropy_rise(bins)?;
        if params["compute_extra_scores"] != true {
            return Ok(rise);
        }
        let outputs = |layers: &[usize], images: &Images<'_>| -> Result<Vec<Vec<f64>>> {
            let logits = randomised(case, layers).logits(&tensor(case, images)?)?;
            Ok(softmax(&logits)?.to_vec2()?)
        };
        let all = randomisation.entropies(bins, &outputs)?;
        let last = all.maps.len() - 1;
        let (first, end) = (&all.maps[0], &all.maps[last]);
        let (model_first, model_end) = (&all.outputs[0], &all.outputs[last]);
        let each = |value: &dyn Fn(usize) -> f64| {
            (0..maps.len()).map(|sample| Ok(value(sample))).collect::<Outcome>()
        };
        let named = |key: &str, steps: &[Vec<f64>]| {
            let names: Vec<String> = std::iter::once("orig".to_owned())
                .chain(
                    order
                        .steps(case.layers.len())
                        .iter()
                        .map(|layers| case.layers[layers[layers.len() - 1]].clone()),
                )
                .collect();
            let values = steps.iter().map(|row| row.iter().copied().map(Ok).collect::<Outcome>());
            in_order_of(&golden(entry)[key], &names.into_iter().zip(values).collect())
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
                    each(&|sample| all.maps[1..].iter().map(|row| row[sample]).sum::<f64>() / last as f64),
                ),
                ("scores_correlation_model_vs_explanation_complexity", all.correlations()),
                ("explanation_by_layer", named("explanation_by_layer", &all.maps)),
                ("model_by_layer", named("model_by_layer", &all.outputs)),
            ]
            .map(|(key, values)| (key.to_owned(), values)),
        );
        Ok(in_order_of(golden(entry), &values))
    })
}

/// The mean rank correlation of magnitudes over the layers of a bottom-up randomisation, the unchanged model
/// left out.
pub(super) fn mean_over_layers(case: &Case, maps: &[Vec<f64>]) -> Result<Outcome> {
    let preparation = Preparation { scale: Scale::None, part: Part::Absolute };
    with_randomisation(case, LayerOrder::BottomUp, maps, preparation, |randomisation| {
        let similarities = randomisation.similarities(&|a, b| Similarity::Spearman.of(a, b))?;
        Ok(similarities.average(Mode::Reference))
    })
}

/// Max-sensitivity of maps that are each divided by their own greatest magnitude.
pub(super) fn max_sensitivity_per_sample(case: &Case, maps: &[Vec<f64>]) -> Result<Outcome> {
    let (changed, length) = (drawn(case, "max_sensitivity", "MaxSensitivity"), case.shape.features());
    let image = |draw: usize, place: usize| changed[draw][place * length..][..length].to_vec();
    let robustness = Robustness {
        samples: &case.samples(maps),
        draws: Draws { count: changed.len(), image: &image },
        explain: &|images: &Images<'_>| input_x_gradient(case, &case.network, images),
        preparation: Preparation { scale: Scale::PerMap, part: Part::Signed },
        outputs: None,
    };
    Ok(robustness.sensitivity()?.greatest(Mode::Reference))
}

/// Whether maps survive a shift of the input by -1 that the model takes back.
pub(super) fn invariance(
    case: &Case,
    method: &dyn Method,
    maps: &[Vec<f64>],
    mode: Mode,
) -> Result<Vec<f64>> {
    const SHIFT: f32 = -1.0;
    let score = case.score(Space::Logit);
    let shifted = Shifted { score: &score, shift: f64::from(SHIFT) };
    let explain = |images: &Images<'_>| explained(method, &Evaluator::new(&shifted, 5), case.shape, images);
    input_invariance(&case.samples(maps), &explain, SHIFT, mode)
}
