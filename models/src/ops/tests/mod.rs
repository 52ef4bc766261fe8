//! Kernels against their composed twins, and all gradients against finite differences.

mod attention;
mod block;
mod convolution;
mod quantise;
mod recurrent;

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
fn projections_agree_with_their_twin_and_differences() {
    check(&[&[3, 5, 7], &[7, 4]], |a| project(&a[0], &a[1]), |a| a[0].broadcast_matmul(&a[1]));
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
    for kind in [Activation::QuickGelu, Activation::Gelu, Activation::Relu] {
        check(&[&[4, 37]], |a| activate(&a[0], kind), |a| composed::activate(&a[0], kind));
    }
}

#[test]
fn the_normal_distribution_is_exact_to_single_precision() {
    for step in -900..900 {
        let x = step as f32 * 0.01;
        let exact = 0.5 * libm::erfc(-f64::from(x) / std::f64::consts::SQRT_2);
        let error = (f64::from(elementwise::normal_cdf(x)) - exact).abs() / exact;
        // Far out the rounding of the exponent's argument adds to the fit's error.
        assert!(error < 3e-7 + 2e-7 * f64::from(x * x), "Phi({x}) is off by {error}");
    }
}

#[test]
fn the_rectifier_has_no_slope_at_zero() {
    let x = Var::new(&[-1.0f32, 0.0, 2.0], &Device::Cpu).unwrap();
    let y = activate(&x, Activation::Relu).unwrap();
    assert_eq!(y.to_vec1::<f32>().unwrap(), [0.0, 0.0, 2.0]);
    let gradients = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(gradients.get(&x).unwrap().to_vec1::<f32>().unwrap(), [0.0, 0.0, 1.0]);
}

/// Products of a backward pass through `kernel`, with the arguments of `shapes` that `tracked` names
/// as variables; the others must be left without a gradient.
fn backward_products(
    shapes: &[&[usize]],
    tracked: &[usize],
    kernel: impl Fn(&[Tensor]) -> Result<Tensor> + Sync,
) -> usize {
    let arguments: Vec<Tensor> = shapes
        .iter()
        .enumerate()
        .map(|(index, shape)| {
            let tensor = random(shape, index as u64 + 1);
            if tracked.contains(&index) {
                Var::from_tensor(&tensor).unwrap().as_tensor().clone()
            } else {
                tensor
            }
        })
        .collect();
    let loss = kernel(&arguments).unwrap().sqr().unwrap().sum_all().unwrap();
    product::count_products(|| {
        let gradients = loss.backward().unwrap();
        for (index, argument) in arguments.iter().enumerate() {
            assert_eq!(gradients.get(argument).is_some(), tracked.contains(&index), "argument {index}");
        }
    })
}

#[test]
fn frozen_weights_cost_no_products() {
    let shapes: &[&[usize]] = &[&[3, 7], &[4, 7], &[4]];
    let layer = |a: &[Tensor]| linear(&a[0], &a[1], Some(&a[2]));
    assert_eq!(backward_products(shapes, &[0, 1, 2], layer), 2);
    assert_eq!(backward_products(shapes, &[0], layer), 1);
    assert_eq!(backward_products(shapes, &[1], layer), 1);
    assert_eq!(backward_products(shapes, &[2], layer), 0);
    let shapes: &[&[usize]] = &[&[3, 7], &[7, 4]];
    assert_eq!(backward_products(shapes, &[0], |a| project(&a[0], &a[1])), 1);
    assert_eq!(backward_products(shapes, &[1], |a| project(&a[0], &a[1])), 1);
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
fn the_hyperbolic_tangent_is_exact_to_single_precision() {
    for step in -20_000..20_000 {
        let x = step as f32 * 0.001;
        let exact = libm::tanh(f64::from(x));
        let error = (f64::from(elementwise::tanh(x)) - exact).abs() / exact.abs().max(1e-30);
        assert!(error < 2.5e-7, "tanh({x}) is off by {error}");
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let packed = random(&[4, 19, 72], 7);
    let weight = random(&[31, 72], 8);
    let (images, kernel) = (random(&[3, 20, 30, 24], 9), random(&[17, 3, 3, 24], 10));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let scores = Scores { causal: true, ..Scores::new(3) };
            let attended = values(&attention(&packed, &scores).unwrap()).unwrap();
            let projected = values(&linear(&packed, &weight, None).unwrap()).unwrap();
            let (x, kernel) = (Var::from_tensor(&images).unwrap(), Var::from_tensor(&kernel).unwrap());
            let convolved = conv2d(&x, &kernel, None, Window { stride: 1, padding: 1 }).unwrap();
            let gradients = convolved.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let gradients = [&x, &kernel].map(|of| values(gradients.get(of).unwrap()).unwrap());
            (attended, projected, values(&convolved).unwrap(), gradients)
        })
    };
    let single = run(1);
    assert!(single == run(3) && single == run(8));
}

#[test]
fn images_that_share_patches_give_the_values_of_a_linear_layer() {
    let (weight, bias) = (random(&[9, 6], 2), random(&[9], 3));
    let image = random(&[1, 20, 6], 1);
    let hidden = |from: usize| {
        let parts = [
            image.narrow(1, 0, from),
            image.narrow(1, from, 3).and_then(|part| part * 0.0),
            image.narrow(1, from + 3, 17 - from),
        ];
        Tensor::cat(&parts.map(Result::unwrap), 1).unwrap()
    };
    let images = Tensor::cat(&[hidden(0), hidden(4), image.clone(), hidden(17)], 0).unwrap();
    for bias in [None, Some(&bias)] {
        let bits = |y: Tensor| y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(
            bits(linear_of_images(&images, &weight, bias).unwrap()),
            bits(linear(&images, &weight, bias).unwrap())
        );
    }
    check(
        &[&[3, 5, 7], &[4, 7], &[4]],
        |a| linear_of_images(&a[0], &a[1], Some(&a[2])),
        |a| composed::linear(&a[0], &a[1], Some(&a[2])),
    );
}
