//! Every entry of `scores_reference.json` in reference mode.

use candle_core::{Device, Tensor};
use pipe_attribution::metrics::{
    Baseline, CompletenessGap, Curves, Distance, Drops, Engine, Groups, Mode, Order, Part, Prediction, Value,
    Weighting, area, area_over_curve, attribution_localisation, blur_weights, blurred, by_largest_magnitude,
    channel_means, compactness, completeness, deletion, effective_complexity, faithfulness_correlation,
    imputed, in_channels, infidelity_of_changes, infidelity_of_patches, insertion, irof, monotonicity,
    non_decreasing_share, patch_order, patches, pixel_flipping, pixels_of, region_perturbation, road,
    sufficiency, weighted_pointing_game,
};
use pipe_attribution::{Gradient, InputXGradient, Result};
use serde_json::Value as Json;

use super::network::Space;
use super::{Case, ROUNDING, again, evaluator, rows, single};
use crate::harness::{self, Golden, Ledger};

/// The samples of a case in reference mode, with the parameters and draws of the goldens.
struct Reference<'a> {
    case: &'a Case,
    draws: &'a Golden,
    params: &'a Json,
    entries: &'a Json,
    maps: Vec<Vec<f64>>,
    gradients: Vec<Vec<f64>>,
}

impl Reference<'_> {
    fn count(&self, key: &str) -> usize {
        self.params[key].as_u64().unwrap_or_else(|| panic!("params have no `{key}`")) as usize
    }

    fn ends(&self, baseline: Baseline) -> Vec<Vec<f32>> {
        self.case.images.iter().map(|image| baseline.image(image)).collect()
    }

    /// Pixels that change at once.
    fn pixels_in_step(&self, id: &str) -> usize {
        match self.entries[id]["step_pixels"].as_u64() {
            Some(pixels) => pixels as usize,
            None => self.count("features_in_step"),
        }
    }

    fn rise(&self, insert: bool) -> Result<Curves> {
        let score = self.case.score(Space::Probability);
        let evaluator = evaluator(&score);
        let engine = Engine::new(&evaluator, self.case.shape);
        let samples = self.case.samples(&self.maps);
        match insert {
            true => insertion(&engine, &samples, self.pixels_in_step("rise_insertion_curve")),
            false => {
                let ends = self.ends(Baseline::Constant(0.0));
                deletion(&engine, &samples, &ends, self.pixels_in_step("rise_deletion_curve"))
            }
        }
    }

    fn flipping(&self, order: Order) -> Result<Curves> {
        let score = self.case.score(Space::Probability);
        let evaluator = evaluator(&score);
        let engine = Engine::new(&evaluator, self.case.shape);
        let ends = self.ends(Baseline::Black);
        let step = self.pixels_in_step("pf_morf_curve");
        pixel_flipping(&engine, &self.case.samples(&self.maps), &ends, step, order)
    }

    fn flipping_areas(&self) -> Result<(Vec<f64>, Vec<f64>)> {
        let areas = |order| Ok::<_, pipe_attribution::AttributionError>(areas(&self.flipping(order)?));
        Ok((areas(Order::MostRelevantFirst)?, areas(Order::LeastRelevantFirst)?))
    }

    fn over_curve(&self, order: Order) -> Result<Vec<f64>> {
        let score = self.case.score(Space::Probability);
        let evaluator = evaluator(&score);
        let engine = Engine::new(&evaluator, self.case.shape);
        let patches = patches(self.case.shape, self.count("patch"));
        let orders: Vec<Vec<u32>> = self
            .maps
            .iter()
            .map(|map| {
                let mut order = patch_order(map, &patches, order);
                order.truncate(self.count("regions"));
                order
            })
            .collect();
        let samples = self.case.samples(&self.maps);
        let curves =
            region_perturbation(&engine, &samples, &patches, &orders, &Baseline::Black.images(&samples))?;
        Ok(curves.iter().map(|curve| area_over_curve(curve)).collect())
    }

    fn monotonicity(&self) -> Result<Curves> {
        let score = self.case.score(Space::Probability);
        let evaluator = evaluator(&score);
        let engine = Engine::new(&evaluator, self.case.shape);
        let samples = self.case.samples(&self.maps);
        monotonicity(&engine, &samples, &Baseline::Black.images(&samples), self.count("features_in_step"))
    }

    /// Rows are samples, columns sizes.
    fn sensitivity_n(&self) -> Result<Vec<Value>> {
        let score = self.case.score(Space::Logit);
        let evaluator = evaluator(&score);
        let engine = Engine::new(&evaluator, self.case.shape);
        let samples = self.case.samples(&self.maps);
        let sizes = self.entries["sensitivity_n_paper"]["n"].as_array().expect("a list of sizes");
        let mut columns = Vec::new();
        for size in sizes {
            let drawn = rows(&self.draws.input(&format!("sensitivity_n_paper.idx_{size}")));
            let size = size.as_u64().expect("a size") as usize;
            let subsets: Vec<Groups> = (0..samples.len())
                .map(|sample| {
                    Groups::new(drawn.iter().map(|subset| {
                        subset[sample * size..][..size].iter().map(|index| *index as u32).collect::<Vec<_>>()
                    }))
                })
                .collect();
            let zero = Baseline::Constant(0.0);
            let ends = zero.images(&samples);
            columns.push(faithfulness_correlation(&engine, &samples, &subsets, &ends)?);
        }
        Ok((0..samples.len())
            .flat_map(|sample| columns.iter().map(move |column| column[sample].clone()))
            .collect())
    }

    fn patch_drops(&self, maps: &[Vec<f64>], prediction: Prediction) -> Result<Vec<Drops>> {
        let score = self.case.score(Space::Logit);
        let evaluator = evaluator(&score);
        let engine = Engine::new(&evaluator, self.case.shape);
        let patches = patches(self.case.shape, self.count("patch"));
        let samples = self.case.samples(maps);
        infidelity_of_patches(&engine, &samples, &patches, &Baseline::Black.images(&samples), prediction)
    }

    fn gaussian_drops(&self) -> Result<Vec<Drops>> {
        let score = self.case.score(Space::Logit);
        let evaluator = evaluator(&score);
        let engine = Engine::new(&evaluator, self.case.shape);
        let samples = self.case.samples(&self.gradients);
        let draws: Vec<Vec<f32>> =
            rows(&self.draws.input("infidelity_gauss.x_minus_I")).iter().map(|row| single(row)).collect();
        let length = self.case.shape.features();
        let changed: Vec<Vec<&[f32]>> = (0..samples.len())
            .map(|sample| draws.iter().map(|draw| &draw[sample * length..][..length]).collect())
            .collect();
        infidelity_of_changes(&engine, &samples, &changed)
    }

    fn gaps(&self, baseline: Baseline) -> Result<Vec<CompletenessGap>> {
        let score = self.case.score(Space::Logit);
        let evaluator = evaluator(&score);
        let engine = Engine::new(&evaluator, self.case.shape);
        completeness(&engine, &self.case.samples(&self.maps), &self.ends(baseline))
    }

    fn irof(&self) -> Result<Vec<f64>> {
        let score = self.case.score(Space::Probability);
        let evaluator = evaluator(&score);
        let engine = Engine::new(&evaluator, self.case.shape);
        let segments: Vec<Groups> = rows(&self.case.draws.input("irof.segments"))
            .iter()
            .map(|labels| Groups::segments(&labels.iter().map(|label| *label as u32).collect::<Vec<_>>()))
            .collect();
        irof(&engine, &self.case.samples(&self.maps), &segments, &self.channel_means())
    }

    fn channel_means(&self) -> Vec<Vec<f32>> {
        self.case.images.iter().map(|image| channel_means(image, self.case.shape)).collect()
    }

    fn road(&self, order: Order, space: Space) -> Result<Curves> {
        let score = self.case.score(space);
        let evaluator = evaluator(&score);
        let engine = Engine::new(&evaluator, self.case.shape);
        let percentages = harness::numbers(&self.entries["road_morf_correct"]["percentages"]);
        let silent = |_, _, _, length| vec![0.0; length];
        road(&engine, &self.case.samples(&self.maps), &percentages, order, &silent)
    }

    fn road_gap(&self) -> Result<Vec<f64>> {
        let mean = |order| -> Result<Vec<f64>> {
            let curves = self.road(order, Space::Probability)?;
            Ok(curves.iter().map(|curve| curve.iter().sum::<f64>() / curve.len() as f64).collect())
        };
        Ok(differences(&mean(Order::LeastRelevantFirst)?, &mean(Order::MostRelevantFirst)?))
    }

    /// The entry of this name; `None` for metrics that are not written yet.
    fn scores(&self, id: &str) -> Result<Option<Vec<f64>>> {
        use Order::{LeastRelevantFirst as Least, MostRelevantFirst as Most};
        let (maps, masks) = (&self.maps, &self.case.masks);
        let defined =
            |values: Vec<Value>| values.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect();
        let infidelity =
            |drops: Vec<Drops>, scaled| drops.iter().map(|drops| drops.infidelity(scaled)).collect();
        Ok(Some(match id {
            "rise_deletion_curve" => self.rise(false)?.concat(),
            "rise_deletion_auc" => areas(&self.rise(false)?),
            "rise_insertion_curve" => self.rise(true)?.concat(),
            "rise_insertion_auc" => areas(&self.rise(true)?),
            "pf_morf_curve" => self.flipping(Most)?.concat(),
            "pf_lerf_curve" => self.flipping(Least)?.concat(),
            "pf_morf_auc" => self.flipping_areas()?.0,
            "pf_lerf_auc" => self.flipping_areas()?.1,
            "pf_abpc" => {
                let (most, least) = self.flipping_areas()?;
                differences(&least, &most)
            }
            "aopc_morf" => self.over_curve(Most)?,
            "aopc_lerf" => self.over_curve(Least)?,
            "aopc_gap" => differences(&self.over_curve(Most)?, &self.over_curve(Least)?),
            "monotonicity_curve" => self.monotonicity()?.concat(),
            "monotonicity_fraction" => {
                self.monotonicity()?.iter().map(|curve| non_decreasing_share(curve)).collect()
            }
            "monotonicity_paper" => {
                let all = |curve: &Vec<f64>| f64::from(u8::from(non_decreasing_share(curve) == 1.0));
                self.monotonicity()?.iter().map(all).collect()
            }
            "sensitivity_n_paper" => defined(self.sensitivity_n()?),
            "infidelity_patch_independent" => {
                infidelity(self.patch_drops(&self.gradients, Prediction::Local)?, false)
            }
            "infidelity_patch_global" => infidelity(self.patch_drops(maps, Prediction::Global)?, false),
            "infidelity_patch_global_scaled" => infidelity(self.patch_drops(maps, Prediction::Global)?, true),
            "infidelity_gauss" => infidelity(self.gaussian_drops()?, false),
            "infidelity_gauss_scaled" => infidelity(self.gaussian_drops()?, true),
            "completeness_gap_black" => self.gaps(Baseline::Black)?.iter().map(|gap| gap.absolute).collect(),
            "completeness_gap_zero" => {
                self.gaps(Baseline::Constant(0.0))?.iter().map(|gap| gap.absolute).collect()
            }
            "completeness_gap_zero_relative" => {
                self.gaps(Baseline::Constant(0.0))?.iter().map(|gap| gap.relative).collect()
            }
            "irof_per_sample" => self.irof()?,
            "road_morf_correct" => self.road(Most, Space::Agreement)?.concat(),
            "road_lerf_correct" => self.road(Least, Space::Agreement)?.concat(),
            "road_morf_prob" => self.road(Most, Space::Probability)?.concat(),
            "road_lerf_prob" => self.road(Least, Space::Probability)?.concat(),
            "road_gap_prob" => self.road_gap()?,
            "effective_complexity_per_sample" => {
                let epsilon = self.entries[id]["eps"].as_f64().expect("a threshold");
                maps.iter().map(|map| effective_complexity(&by_largest_magnitude(map), epsilon)).collect()
            }
            "pointing_game_weighted_intended" => {
                let value = |(map, mask)| weighted_pointing_game(map, mask, 0.0, Mode::Reference);
                defined(maps.iter().map(Vec::as_slice).zip(masks).map(value).collect())
            }
            "attribution_localisation_weighted_paper" => {
                let value = |(map, mask): (&Vec<f64>, _)| {
                    let map = Part::Absolute.of(map);
                    attribution_localisation(&map, mask, Weighting::Area, Mode::Reference)
                };
                defined(maps.iter().zip(masks).map(value).collect())
            }
            "mst_c" => defined(maps.iter().map(|map| compactness(map, self.case.shape.width)).collect()),
            "mprt_average_without_original" => defined(again::mean_over_layers(self.case, maps)?),
            "max_sensitivity_per_sample_norm" => defined(again::max_sensitivity_per_sample(self.case, maps)?),
            "input_invariance_ixg" => {
                again::invariance(self.case, &InputXGradient::default(), maps, Mode::Reference)?
            }
            "input_invariance_grad" => {
                again::invariance(self.case, &Gradient, &self.gradients, Mode::Reference)?
            }
            _ => return Ok(None),
        }))
    }

    /// The tensors beside the scores: the blur and the imputation.
    fn check_tensors(&self) {
        let shape = self.case.shape;
        let weights = blur_weights();
        let kernel: Vec<f64> = weights.iter().flat_map(|row| weights.map(|column| row * column)).collect();
        let side = weights.len();
        let kernel = Tensor::from_vec(kernel, (side, side), &Device::Cpu).unwrap();
        self.draws.compare("rise.blur_kernel", &kernel, 1e-6);
        let dims = (self.case.images.len(), shape.channels, shape.height, shape.width);
        let blurred: Vec<f32> = self.case.images.iter().flat_map(|image| blurred(image, shape)).collect();
        let blurred = Tensor::from_vec(blurred, dims, &Device::Cpu).unwrap();
        self.draws.compare("rise.blurred", &blurred, 1e-5);
        let name = |key: &&str| key.starts_with("road.imputed_");
        for key in self.draws.keys().filter(name) {
            let percentage: f64 = key["road.imputed_".len()..].parse().expect("a percentage");
            let filled: Vec<f32> = self
                .case
                .images
                .iter()
                .zip(&self.maps)
                .flat_map(|(image, map)| {
                    let order = Order::MostRelevantFirst.of(map);
                    imputed(image, shape, &order[..pixels_of(shape, percentage)], &[])
                })
                .collect();
            self.draws.compare(key, &Tensor::from_vec(filled, dims, &Device::Cpu).unwrap(), 1e-5);
        }
    }
}

fn areas(curves: &Curves) -> Vec<f64> {
    curves.iter().map(|curve| area(curve)).collect()
}

fn differences(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

#[test]
fn reference_mode_equals_the_definitions() {
    let Some(folder) = harness::topic("xai-metrics") else { return };
    let config = harness::json(&folder.join("config.json"));
    let case = Case::open(&folder, "", &config["network"]);
    let golden = harness::json(&folder.join("scores_reference.json"));
    let entries = &golden["scores"];
    let draws = Golden::open(&folder, "draws_reference.safetensors");
    let reference = Reference {
        case: &case,
        draws: &draws,
        params: &config["params"],
        entries,
        maps: case.maps("attr_ixg"),
        gradients: case.maps("attr_grad"),
    };
    reference.check_tensors();
    let names: Vec<String> = entries.as_object().expect("scores by id").keys().cloned().collect();
    let ledger = Ledger::new(&folder, "scores_reference.json", names.iter().cloned());
    for id in &names {
        let ours = reference.scores(id).unwrap_or_else(|error| panic!("{id}: {error}"));
        let Some(ours) = ours else { continue };
        let golden = harness::numbers(&entries[id]["score_f64"]);
        let error = harness::difference(&golden, &ours, |golden| 1.0 + golden.abs());
        ledger.record(id, error, ROUNDING);
    }
    draws.finish();
    ledger.finish_without(&[]);
}

/// Entries that Quantus cannot run, of both files: reference mode has numbers for all their samples.
#[test]
fn reference_mode_has_a_number_where_quantus_fails() {
    let Some(folder) = harness::topic("xai-metrics") else { return };
    let description = harness::json(&folder.join("config.json"));
    for (prefix, config) in [("", &description), ("rgb_", &description["rgb"])] {
        let case = Case::open(&folder, prefix, &config["network"]);
        let entries = harness::json(&folder.join(format!("{prefix}scores.json")));
        for id in config["expected_errors_quantus_mode"].as_array().expect("a list of ids") {
            let entries = entries["scores"].as_array().expect("a list of scores");
            let entry = entries.iter().find(|entry| entry["id"] == *id).expect("an entry of this id");
            let values = without_quantus(&case, entry).unwrap_or_else(|error| panic!("{id}: {error}"));
            let finite = values.iter().filter(|value| value.is_finite()).count();
            println!("reference mode: {prefix}{id} has {finite} of {} values", values.len());
            assert_eq!((finite, values.len()), (case.images.len(), case.images.len()), "{prefix}{id}");
        }
    }
}

/// The definition that an entry asks for, one value per sample.
fn without_quantus(case: &Case, entry: &Json) -> Result<Vec<f64>> {
    let params = &entry["params"];
    let maps = case.maps(entry["attributions"].as_str().expect("a tensor"));
    let samples = case.samples(&maps);
    let score = case.score(Space::of(entry));
    let evaluator = evaluator(&score);
    let engine = Engine::new(&evaluator, case.shape);
    let defined = |values: Vec<Value>| values.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect();
    Ok(match entry["metric"].as_str().expect("a metric") {
        "Infidelity" => {
            let side = params["perturb_patch_sizes"][0].as_u64().expect("a side") as usize;
            let ends = Baseline::Black.images(&samples);
            let patches = patches(case.shape, side);
            let drops = infidelity_of_patches(&engine, &samples, &patches, &ends, Prediction::Local)?;
            drops.iter().map(|drops| drops.infidelity(false)).collect()
        }
        "Sufficiency" => {
            let magnitudes: Vec<Vec<f64>> = maps
                .iter()
                .map(|map| by_largest_magnitude(&in_channels(&Part::Absolute.of(map), case.shape.channels)))
                .collect();
            let predicted = case.network.predicted(&case.data.input("x"))?;
            let threshold = params["threshold"].as_f64().unwrap_or(0.6);
            defined(sufficiency(&magnitudes, &predicted, threshold, Distance::Euclidean, Mode::Reference))
        }
        "PointingGame" => defined(
            maps.iter()
                .zip(&case.masks)
                .map(|(map, mask)| weighted_pointing_game(map, mask, 0.0, Mode::Reference))
                .collect(),
        ),
        "IROF" => {
            let segments = vec![patches(case.shape, 4); samples.len()];
            let ends: Vec<Vec<f32>> =
                case.images.iter().map(|image| channel_means(image, case.shape)).collect();
            irof(&engine, &samples, &segments, &ends)?
        }
        "ROAD" => {
            let percentages = harness::numbers(&params["percentages"]);
            let silent = |_, _, _, length| vec![0.0; length];
            let curves = road(&engine, &samples, &percentages, Order::MostRelevantFirst, &silent)?;
            curves.iter().map(|curve| curve.iter().sum::<f64>() / curve.len() as f64).collect()
        }
        other => panic!("{other} is not known to fail"),
    })
}
