//! RISE with the masks of the goldens.

use candle_core::{DType, Tensor};
use pipe_attribution::{Baseline, Evaluator, Inputs, Rise, RiseMask, RiseMasks, RiseScale, Score};

use super::gradients::cnn;
use super::networks::{Probability, size};
use super::{BATCH, GRADIENT, attribute, open};
use crate::harness::Golden;

#[test]
fn rise() {
    let Some((folder, config)) = open() else { return };
    let (network, x, _) = cnn(&folder, &config);
    let golden = Golden::open(&folder, "rise.safetensors");
    let settings = &config["rise"];
    let cells =
        golden.input("grid").to_dtype(DType::U8).unwrap().flatten(1, 2).unwrap().to_vec2::<u8>().unwrap();
    let shifts = golden.input("shift_yx").to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap();
    let masks: Vec<RiseMask> = cells
        .iter()
        .zip(&shifts)
        .map(|(cells, shift)| RiseMask {
            cells: cells.iter().map(|cell| *cell == 1).collect(),
            shift: shift.iter().map(|offset| *offset as usize).collect(),
        })
        .collect();
    let method = |scale| Rise {
        grid: size(&settings["grid"]),
        keep: settings["p1"].as_f64().unwrap(),
        masks: RiseMasks::Given(masks.clone()),
        scale,
        baseline: Baseline::Zero,
    };
    let places = &x.dims()[2..];
    let drawn: Vec<f32> =
        (0..masks.len()).flat_map(|index| method(RiseScale::Expected).mask(index, places).unwrap()).collect();
    let shape = (masks.len(), places[0], places[1]);
    golden.compare("masks", &Tensor::from_vec(drawn, shape, x.device()).unwrap(), 1e-6);
    let classes = size(&config["classes"]) as u32;
    let images = x.dims()[0];
    for (key, scale, sigmoid) in
        [("saliency_all", RiseScale::Expected, false), ("torchray_sigmoid_saliency", RiseScale::Count, true)]
    {
        let maps: Vec<Tensor> = (0..classes)
            .map(|class| {
                let score = Probability { network: &network, targets: vec![class; images], sigmoid };
                attribute(&score as &dyn Score, &method(scale), &x).values
            })
            .collect();
        golden.compare(key, &Tensor::cat(&maps, 1).unwrap(), GRADIENT);
    }
    let evaluate = |class| {
        let score = Probability { network: &network, targets: vec![class; images], sigmoid: false };
        let inputs = Inputs::new(&x).unwrap();
        let scores =
            method(RiseScale::Expected).masked_scores(&Evaluator::new(&score, BATCH), &inputs).unwrap();
        Tensor::from_vec(scores, (images, masks.len()), x.device()).unwrap()
    };
    let probabilities: Vec<Tensor> = (0..classes).map(evaluate).collect();
    golden.compare("probs_masked", &Tensor::stack(&probabilities, 2).unwrap(), GRADIENT);
    golden.finish();
}
