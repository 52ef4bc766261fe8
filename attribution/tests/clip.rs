//! Every method on a vision transformer with random weights: what must hold of any model.

use candle_core::{Device, Result, Tensor, Var};
use pipe_attribution::{
    Absolute, Attribution, Baseline, Evaluator, Gradient, InputXGradient, Inputs, IntegratedGradients,
    Method, Occlusion, Score,
};
use pipe_models::ops::linear;
use pipe_models::random::Key;
use pipe_models::{ClipConfig, ClipModel, DualEncoder, MaybeProbe, Trainable};

const SIDE: usize = 16;

/// The embedding's entry of the sample's own number.
struct Entry(ClipModel);

impl Score for Entry {
    fn score(&self, input: &Tensor, samples: &[usize], probe: MaybeProbe<'_>) -> Result<Tensor> {
        let embeddings = self.0.image_tower().embed_images(input, probe)?;
        let entries: Vec<u32> = samples.iter().map(|sample| *sample as u32).collect();
        embeddings.gather(&Tensor::from_vec(entries, (samples.len(), 1), input.device())?, 1)?.squeeze(1)
    }
}

fn score(trainable: Trainable) -> Entry {
    let config = ClipConfig::from_json(
        r#"{"projection_dim": 12,
            "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "image_size": 16, "patch_size": 4},
            "text_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
                "num_attention_heads": 2, "vocab_size": 20, "max_position_embeddings": 6}}"#,
    )
    .unwrap();
    Entry(ClipModel::random(&config, 5, &Device::Cpu, trainable).unwrap())
}

fn images(key: u64, rows: usize) -> Tensor {
    let count = rows * 3 * SIDE * SIDE;
    let values: Vec<f32> = (1..=count).map(|draw| Key(key).normal(draw as u64) as f32).collect();
    Tensor::from_vec(values, (rows, 3, SIDE, SIDE), &Device::Cpu).unwrap()
}

fn methods() -> Vec<(&'static str, Box<dyn Method>)> {
    let own = Baseline::Tensor(images(2, 5));
    vec![
        ("gradient", Box::new(Absolute(Gradient))),
        ("input x gradient", Box::new(InputXGradient { baseline: own.clone() })),
        (
            "integrated gradients",
            Box::new(IntegratedGradients { steps: 9, baseline: own, ..Default::default() }),
        ),
        (
            "occlusion",
            Box::new(Occlusion {
                window: vec![3, 7, 5],
                strides: vec![3, 4, 5],
                baseline: Baseline::Blur(2.0),
            }),
        ),
        (
            "occlusion of single channels",
            Box::new(Occlusion { window: vec![1, 8, 8], strides: vec![1, 4, 8], baseline: Baseline::Zero }),
        ),
    ]
}

fn values(attribution: &Attribution) -> Vec<f32> {
    attribution.values.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(ours: &[f32], expected: &[f32], what: &str) {
    let scale = expected.iter().fold(0.0f32, |scale, value| scale.max(value.abs()));
    assert!(scale > 0.0, "{what}: the map is empty");
    for (ours, expected) in ours.iter().zip(expected) {
        assert!((ours - expected).abs() <= 1e-5 * scale, "{what}: {ours} {expected} of {scale}");
    }
}

#[test]
fn batch_sizes_change_nothing_but_rounding() {
    let (score, inputs) = (score(Trainable::Frozen), Inputs::new(&images(1, 5)).unwrap());
    for (name, method) in methods() {
        let whole = method.attribute(&Evaluator::new(&score, 512), &inputs).unwrap();
        for batch in [1, 3, 8, 37] {
            let evaluator = Evaluator::new(&score, batch);
            let parts = method.attribute(&evaluator, &inputs).unwrap();
            assert_close(&values(&parts), &values(&whole), &format!("{name}, batches of {batch}"));
            assert_close(&parts.scores, &whole.scores, name);
            let (passes, cost) = (evaluator.passes(), method.cost(inputs.row_shape()).unwrap());
            assert_eq!((passes.forward, passes.backward), (5 * cost.forward, 5 * cost.backward), "{name}");
        }
    }
}

#[test]
fn threads_change_not_a_bit() {
    let (score, inputs) = (score(Trainable::Frozen), Inputs::new(&images(1, 5)).unwrap());
    for (name, method) in methods() {
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| values(&method.attribute(&Evaluator::new(&score, 8), &inputs).unwrap()))
        };
        let one = with(1);
        assert_eq!(one, with(2), "{name}");
        assert_eq!(one, with(5), "{name}");
    }
}

#[test]
fn samples_do_not_see_each_other() {
    let (score, x) = (score(Trainable::Frozen), images(1, 5));
    let order = [4usize, 2, 0, 3, 1];
    let places = Tensor::new(&[4u32, 2, 0, 3, 1], &Device::Cpu).unwrap();
    let permuted = Inputs::of_samples(&x.index_select(&places, 0).unwrap(), order.to_vec()).unwrap();
    for (name, method) in methods() {
        let straight =
            method.attribute(&Evaluator::new(&score, 8), &Inputs::new(&x).unwrap()).unwrap().values;
        let expected = straight.index_select(&places, 0).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let other = values(&method.attribute(&Evaluator::new(&score, 8), &permuted).unwrap());
        assert_close(&other, &expected, name);
    }
}

#[test]
fn integrated_gradients_are_complete() {
    let (score, inputs) = (score(Trainable::Frozen), Inputs::new(&images(1, 5)).unwrap());
    let method = IntegratedGradients { baseline: Baseline::Blur(1.5), ..Default::default() };
    let attribution = method.attribute(&Evaluator::new(&score, 64), &inputs).unwrap();
    let baselines = attribution.baseline_scores.unwrap();
    for (row, gap) in attribution.completeness_gaps.unwrap().iter().enumerate() {
        let way = attribution.scores[row] - baselines[row];
        assert!(gap.abs() < 1e-4 * way.abs().max(0.1), "row {row}: {gap} of {way}");
    }
}

#[test]
fn a_frozen_model_pays_for_no_gradient_of_a_weight() {
    let gradients_of_weights = |trainable| {
        let score = score(trainable);
        let pixels = Var::from_tensor(&images(1, 2)).unwrap();
        let gradients = score.score(&pixels, &[0, 1], None).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(gradients.get(&pixels).is_some());
        let weights = score.0.tensors();
        let variables = score.0.variables();
        weights
            .iter()
            .filter(|(name, weight)| {
                gradients.get(weight).is_some()
                    || variables.get(*name).is_some_and(|variable| gradients.get(variable).is_some())
            })
            .count()
    };
    assert_eq!(gradients_of_weights(Trainable::Frozen), 0);
    assert!(gradients_of_weights(Trainable::Image) > 30, "the count counts");
}

#[test]
fn the_gradient_agrees_with_finite_differences() {
    let (score, x) = (score(Trainable::Frozen), images(1, 1));
    let gradient =
        values(&Gradient.attribute(&Evaluator::new(&score, 1), &Inputs::new(&x).unwrap()).unwrap());
    // Along a direction all values take part, so the difference is far above the noise of f32.
    for key in 10..16 {
        let direction = images(key, 1);
        let h = 1e-3f64;
        let at = |step: f64| {
            let moved = (&x + (&direction * step).unwrap()).unwrap();
            f64::from(Evaluator::new(&score, 1).scores(&Inputs::new(&moved).unwrap()).unwrap()[0])
        };
        let difference = (at(h) - at(-h)) / (2.0 * h);
        let along: Vec<f32> = direction.flatten_all().unwrap().to_vec1().unwrap();
        let product: f64 =
            gradient.iter().zip(&along).map(|(gradient, along)| f64::from(gradient * along)).sum();
        assert!((difference - product).abs() < 2e-3 * product.abs().max(0.5), "{difference} {product}");
    }
}

#[test]
fn a_linear_head_is_attributed_by_its_weights() {
    struct Head(Tensor);
    impl Score for Head {
        fn score(&self, input: &Tensor, _: &[usize], _: MaybeProbe<'_>) -> Result<Tensor> {
            linear(&input.flatten_from(1)?, &self.0, None)?.squeeze(1)
        }
    }
    let weight = images(3, 1).reshape((1, 3 * SIDE * SIDE)).unwrap();
    let (score, x) = (Head(weight.clone()), images(1, 4));
    let expected: Vec<f32> = x
        .broadcast_mul(&weight.reshape((1, 3, SIDE, SIDE)).unwrap())
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap();
    let pixel = Occlusion { window: vec![1, 1, 1], strides: vec![1, 1, 1], baseline: Baseline::Zero };
    let methods: [Box<dyn Method>; 2] =
        [Box::new(InputXGradient::default()), Box::new(IntegratedGradients::default())];
    for method in methods {
        let ours = method.attribute(&Evaluator::new(&score, 32), &Inputs::new(&x).unwrap()).unwrap();
        assert_close(&values(&ours), &expected, "linear");
    }
    let one = Inputs::new(&x.narrow(0, 0, 1).unwrap()).unwrap();
    let ours = values(&pixel.attribute(&Evaluator::new(&score, 64), &one).unwrap());
    let scale = expected.iter().fold(0.0f32, |scale, value| scale.max(value.abs()));
    for (ours, expected) in ours.iter().zip(&expected) {
        // A difference of two sums of 768 terms each.
        assert!((ours - expected).abs() < 1e-4 * scale.max(10.0));
    }
}
