//! Kernels against their composed twins, and all gradients against finite differences.

use candle_core::{DType, Device, Result, Tensor, Var};

use super::*;
use crate::Activation;
use crate::random::Key;

fn random(shape: &[usize], seed: u64) -> Tensor {
    let count = shape.iter().product::<usize>() as u64;
    let values: Vec<f32> = (1..=count).map(|c| Key(seed).normal(c) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn relative(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (values(a).unwrap(), values(b).unwrap());
    let scale = b.iter().fold(1e-12f64, |max, value| max.max(f64::from(value.abs())));
    a.iter().zip(&b).fold(0.0f64, |max, (a, b)| max.max(f64::from((a - b).abs()))) / scale
}

/// Compares values and gradients of a kernel and its twin at random points, and the kernel's gradient
/// with central differences of the twin in f64.
fn check(
    shapes: &[&[usize]],
    kernel: impl Fn(&[Tensor]) -> Result<Tensor>,
    twin: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let variables: Vec<Var> = shapes
        .iter()
        .enumerate()
        .map(|(index, shape)| Var::from_tensor(&random(shape, index as u64 + 1)).unwrap())
        .collect();
    let arguments: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
    let (ours, theirs) = (kernel(&arguments).unwrap(), twin(&arguments).unwrap());
    assert_eq!(ours.dims(), theirs.dims());
    assert!(relative(&ours, &theirs) < 2e-6, "values differ by {}", relative(&ours, &theirs));

    let weights = random(ours.dims(), 99);
    let loss = |y: &Tensor, weights: &Tensor| (y * weights).and_then(|y| y.sum_all());
    let our_gradients = loss(&ours, &weights).unwrap().backward().unwrap();
    let their_gradients = loss(&theirs, &weights).unwrap().backward().unwrap();
    let doubles: Vec<Tensor> = arguments.iter().map(|x| x.detach().to_dtype(DType::F64).unwrap()).collect();
    let weights = weights.to_dtype(DType::F64).unwrap();
    for (index, variable) in variables.iter().enumerate() {
        let ours = our_gradients.get(variable).expect("the gradient reaches every variable");
        let theirs = their_gradients.get(variable).expect("the gradient reaches every variable");
        assert!(relative(ours, theirs) < 1e-5, "gradient {index} differs by {}", relative(ours, theirs));
        // Along a random direction: (f(x + h d) - f(x - h d)) / 2h against the gradient's product with d.
        let direction = random(shapes[index], 50 + index as u64).to_dtype(DType::F64).unwrap();
        let h = 1e-5;
        let at = |sign: f64| {
            let mut moved = doubles.clone();
            moved[index] = (&moved[index] + (&direction * (sign * h)).unwrap()).unwrap();
            loss(&twin(&moved).unwrap(), &weights).unwrap().to_scalar::<f64>().unwrap()
        };
        let numeric = (at(1.0) - at(-1.0)) / (2.0 * h);
        let analytic = (ours.to_dtype(DType::F64).unwrap() * direction)
            .unwrap()
            .sum_all()
            .unwrap()
            .to_scalar::<f64>()
            .unwrap();
        let error = (numeric - analytic).abs() / numeric.abs().max(1.0);
        assert!(error < 2e-5, "gradient {index}: {analytic} against {numeric} by differences");
    }
}

#[test]
fn linear_agrees_with_its_twin_and_differences() {
    check(
        &[&[3, 5, 7], &[4, 7], &[4]],
        |a| linear(&a[0], &a[1], Some(&a[2])),
        |a| composed::linear(&a[0], &a[1], Some(&a[2])),
    );
    check(&[&[6, 16], &[33, 16]], |a| linear(&a[0], &a[1], None), |a| composed::linear(&a[0], &a[1], None));
}

#[test]
fn layer_norm_agrees_with_its_twin_and_differences() {
    for width in [1, 5, 64, 67] {
        check(
            &[&[2, 3, width], &[width], &[width]],
            |a| layer_norm(&a[0], &a[1], &a[2], 1e-5),
            |a| composed::layer_norm(&a[0], &a[1], &a[2], 1e-5),
        );
    }
}

#[test]
fn activations_agree_with_their_twins_and_differences() {
    for kind in [Activation::QuickGelu, Activation::Gelu] {
        check(&[&[4, 37]], |a| activate(&a[0], kind), |a| composed::activate(&a[0], kind));
    }
}

#[test]
fn attention_agrees_with_its_twin_and_differences() {
    for causal in [false, true] {
        for (tokens, width, heads) in [(1, 4, 1), (5, 8, 2), (19, 24, 3)] {
            check(
                &[&[2, tokens, 3 * width]],
                |a| attention(&a[0], heads, causal),
                |a| Ok(composed::attention(&a[0], heads, causal)?.0),
            );
        }
    }
}

#[test]
fn frozen_weights_get_no_gradient() {
    let x = Var::from_tensor(&random(&[3, 7], 1)).unwrap();
    let (weight, bias) = (random(&[4, 7], 2), random(&[4], 3));
    let gradients = linear(&x, &weight, Some(&bias)).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(&x).is_some());
    assert!(gradients.get(&weight).is_none());
    assert!(gradients.get(&bias).is_none());
}

#[test]
fn the_exponential_is_exact_to_two_units_in_the_last_place() {
    for step in -8700..8800 {
        let x = step as f32 * 0.01;
        let exact = libm::exp(f64::from(x));
        let error = (f64::from(elementwise::exp(x)) - exact).abs() / exact;
        assert!(error < 2.4e-7, "exp({x}) is off by {error}");
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let packed = random(&[4, 19, 72], 7);
    let weight = random(&[31, 72], 8);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let attended = values(&attention(&packed, 3, true).unwrap()).unwrap();
            let projected = values(&linear(&packed, &weight, None).unwrap()).unwrap();
            (attended, projected)
        })
    };
    assert_eq!(run(1), run(3));
}
