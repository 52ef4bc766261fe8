//! Attributions judged on grids of images, in the settings of Rao, Boehle and Schiele.

use candle_core::{DType, Device, Result, Tensor};
use pipe_attribution::{
    Ablated, Absolute, Baseline, Cam, CamWeights, CutClassifier, Evaluator, GRID_LAYER, Gradient, GridScore,
    GridSetting, GridTarget, InputXGradient, Inputs, IntegratedGradients, Method, OcclusionDensity,
    Quadrature, aggregate_scale, aggregated, grid_evidence, localisation,
};
use pipe_models::MaybeProbe;
use pipe_models::model::{ActivationLayout, CamHook};
use serde_json::Value as Json;

use super::networks::{Cnn, size, sizes};
use super::{BATCH, GRADIENT, OCCLUSION, open};
use crate::harness::Golden;

/// Shares of sums of positive parts.
const SHARE: f64 = 1e-4;

/// The tiny CNN cut behind one of its layers.
struct Cut<'a> {
    network: &'a Cnn,
    /// Layers in front of the cut, and in front of the pooling.
    ends: [usize; 2],
}

impl<'a> Cut<'a> {
    fn new(network: &'a Cnn, layer: &str) -> Self {
        let place = |name: &str| network.layers().iter().position(|layer| layer == name);
        let cut = if layer == "input" { 0 } else { place(layer).unwrap() + 1 };
        Self { network, ends: [cut, place("gap").unwrap()] }
    }
}

impl CutClassifier for Cut<'_> {
    fn until_layer(&self, images: &Tensor) -> Result<Tensor> {
        self.network.through(&self.network.layers()[..self.ends[0]], images, None)
    }

    fn to_last_map(&self, activations: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        self.network.through(&self.network.layers()[self.ends[0]..self.ends[1]], activations, probe)
    }

    fn classify(&self, map: &Tensor) -> Result<Tensor> {
        self.network.through(&self.network.layers()[self.ends[1]..], map, None)
    }
}

fn setting(name: &str) -> GridSetting {
    match name {
        "GridPG" => GridSetting::Whole,
        "DiFull" => GridSetting::CellOfImage,
        "DiPart" => GridSetting::CellOfMap,
        other => panic!("unknown setting `{other}`"),
    }
}

/// The grids of a setting, one sample for each grid and head.
struct Case {
    grids: Tensor,
    heads: Vec<usize>,
    targets: Vec<GridTarget>,
    scale: usize,
}

impl Case {
    fn new(golden: &Golden, config: &Json, setting: GridSetting) -> Self {
        let grids = golden.input("grid_input");
        let labels: Vec<Vec<u32>> =
            golden.input("grid_labels").to_dtype(DType::U32).unwrap().to_vec2().unwrap();
        let scale = size(&config["scale"]);
        let heads = match setting {
            GridSetting::Whole => (0..scale * scale).collect(),
            _ => sizes(&config["heads_difull_dipart"]),
        };
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for (grid, labels) in labels.iter().enumerate() {
            for cell in &heads {
                rows.push(grid as u32);
                targets.push(GridTarget { cell: *cell, class: labels[*cell] as usize });
            }
        }
        let rows = Tensor::new(rows, grids.device()).unwrap();
        Self { grids: grids.index_select(&rows, 0).unwrap(), heads, targets, scale }
    }

    fn images(&self) -> usize {
        self.targets.len() / self.heads.len()
    }

    /// Maps with one channel, `[samples, 1, rows, columns]`.
    fn maps(&self, score: &GridScore<'_>, inputs: &Inputs, name: &str, config: &Json) -> Tensor {
        let evaluator = Evaluator::new(score, BATCH);
        let of = |method: &dyn Method| method.attribute(&evaluator, inputs).unwrap().values;
        let summed = |method: &dyn Method| of(method).sum_keepdim(1).unwrap();
        let cam = |weights: CamWeights| {
            let hook = CamHook { name: GRID_LAYER.to_owned(), layout: ActivationLayout::Map };
            let method =
                Cam { hook, grid: inputs.row_shape()[1..].to_vec(), prefix: 0, weights, channels: None };
            of(&method).relu().unwrap()
        };
        match name {
            "Grad" => summed(&Absolute(Gradient)),
            "IxG" => summed(&InputXGradient::default()),
            "IntGrad" => summed(&IntegratedGradients {
                steps: size(&config["int_grad_steps"]),
                quadrature: Quadrature::GaussLegendre,
                ..IntegratedGradients::default()
            }),
            "Occlusion" => of(&OcclusionDensity {
                side: size(&config["occlusion_kernel"]),
                stride: size(&config["occlusion_stride"]),
                baseline: Baseline::Zero,
            }),
            "GradCam" => cam(CamWeights::Gradient),
            "GradCamPlusPlus" => cam(CamWeights::ExponentialPlusPlus),
            "LayerCam" => cam(CamWeights::Layer),
            "AblationCam" => cam(CamWeights::Ablation(Ablated::Zero)),
            other => panic!("unknown method `{other}`"),
        }
    }
}

#[test]
fn grid_eval() {
    let Some((folder, config)) = open() else { return };
    let golden = Golden::open(&folder, "grid_eval.safetensors");
    let network = Cnn::open(&folder, &config);
    let config = &config["grid_eval"];
    for key in golden.keys().map(str::to_owned).collect::<Vec<_>>() {
        let parts: Vec<&str> = key.split('_').collect();
        match parts.as_slice() {
            ["aggatt" | "grid", ..] => {}
            [name, "logits", head] => {
                let case = Case::new(&golden, config, setting(name));
                let cut = Cut::new(&network, "input");
                let score = GridScore::new(&cut, setting(name), case.scale, case.targets.clone()).unwrap();
                let inputs = score.inputs(&case.grids).unwrap();
                let logits = score.logits(inputs.values(), inputs.samples(), None).unwrap();
                // Every head of the whole grid sees the same.
                let head: usize = head.strip_prefix("head").unwrap().parse().unwrap();
                let head = case.heads.iter().position(|cell| *cell == head).unwrap();
                let rows: Vec<u32> =
                    (0..case.images()).map(|image| (image * case.heads.len() + head) as u32).collect();
                let rows = Tensor::new(rows, logits.device()).unwrap();
                golden.compare(&key, &logits.index_select(&rows, 0).unwrap(), GRADIENT);
            }
            [name, method, layer] => compare_setting(&golden, config, &network, &key, [name, method, layer]),
            [_, _, _, "localization"] => {}
            _ => panic!("unknown key `{key}`"),
        }
    }
    aggregates(&golden, config);
    golden.finish();
}

fn compare_setting(
    golden: &Golden,
    config: &Json,
    network: &Cnn,
    key: &str,
    [name, method, layer]: [&str; 3],
) {
    let case = Case::new(golden, config, setting(name));
    let cut = Cut::new(network, config["layers"][layer].as_str().unwrap());
    let score = GridScore::new(&cut, setting(name), case.scale, case.targets.clone()).unwrap();
    let inputs = score.inputs(&case.grids).unwrap();
    let maps = case.maps(&score, &inputs, method, config);
    let (samples, _, rows, columns) = maps.dims4().unwrap();
    let shaped = maps.reshape((case.images(), case.heads.len(), 1, rows, columns)).unwrap();
    if method == "Occlusion" {
        // Sums of differences of scores.
        golden.compare(key, &shaped, 10.0 * OCCLUSION);
    } else {
        golden.compare(key, &shaped, GRADIENT);
    }
    let size = [case.grids.dims()[2], case.grids.dims()[3]];
    let values: Vec<f32> = maps.flatten_all().unwrap().to_vec1().unwrap();
    let found: Vec<f32> = values
        .chunks_exact(rows * columns)
        .zip(&case.targets)
        .map(|(map, target)| {
            localisation(&grid_evidence(map, [rows, columns], size), size, case.scale, target.cell)
        })
        .collect();
    assert_eq!(found.len(), samples);
    let found = Tensor::from_vec(found, (case.images(), case.heads.len()), maps.device()).unwrap();
    golden.compare(&format!("{key}_localization"), &found.t().unwrap(), SHARE);
}

fn aggregates(golden: &Golden, config: &Json) {
    let maps = golden.input("aggatt_attributions");
    let count = size(&config["aggatt_maps"]);
    assert_eq!(maps.dims()[0], count);
    let from = [maps.dims()[3], maps.dims()[4]];
    let to = sizes(&config["aggatt_upsample"]);
    let to = [to[0], to[1]];
    let values: Vec<f32> = maps.flatten_all().unwrap().to_vec1().unwrap();
    let evidence: Vec<Vec<f32>> =
        values.chunks_exact(from[0] * from[1]).map(|map| grid_evidence(map, from, to)).collect();
    let scores: Vec<f32> =
        evidence.iter().map(|map| localisation(map, to, size(&config["scale"]), 0)).collect();
    golden.compare("aggatt_scores", &super::row(&scores), SHARE);
    let bins: Vec<f64> =
        config["aggatt_bins"].as_array().unwrap().iter().map(|share| share.as_f64().unwrap()).collect();
    let found = aggregated(&evidence, &scores, &bins);
    let order: Vec<u32> = found.order.iter().map(|map| *map as u32).collect();
    golden.compare("aggatt_order", &Tensor::new(order, &Device::Cpu).unwrap(), 0.0);
    // The reference divides by a count that it rounds down: `int(N * (0.95 - 0.5))` is 44 of 45 maps.
    let quirk = |bin: usize| {
        let width = bins[bin + 1] - bins[bin];
        found.counts[bin] as f32 / (count as f64 * width).floor() as f32
    };
    let means: Vec<f32> = found
        .means
        .iter()
        .enumerate()
        .flat_map(|(bin, mean)| mean.iter().map(move |value| (bin, *value)))
        .map(|(bin, value)| value * quirk(bin))
        .collect();
    let scale = aggregate_scale(&means, config["aggatt_percentile"].as_f64().unwrap());
    golden.compare("aggatt_scale", &Tensor::new(scale, &Device::Cpu).unwrap(), GRADIENT);
    let shape = (bins.len() - 1, 1, to[0], to[1]);
    golden.compare("aggatt_bins", &Tensor::from_vec(means, shape, &Device::Cpu).unwrap(), GRADIENT);
}
