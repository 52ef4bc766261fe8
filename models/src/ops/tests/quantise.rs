//! Gates, unit vectors, codes and recomputation: the parts of CT-ViT.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{Device, Tensor, Var};

use super::super::*;
use super::{backward_products, check, random, relative};

#[test]
fn gates_agree_with_their_twin_and_differences() {
    check(&[&[3, 5, 14]], |a| geglu(&a[0]), |a| composed::geglu(&a[0]));
    assert!(geglu(&random(&[2, 3], 1)).is_err());
}

#[test]
fn unit_vectors_agree_with_their_twin_and_differences() {
    for width in [2, 8, 33] {
        check(
            &[&[2, 7, width], &[width]],
            |a| scaled_unit(&a[0], &a[1]),
            |a| composed::scaled_unit(&a[0], &a[1]),
        );
    }
    let shapes: &[&[usize]] = &[&[4, 8], &[8]];
    let layer = |a: &[Tensor]| scaled_unit(&a[0], &a[1]);
    assert_eq!(backward_products(shapes, &[0], layer) + backward_products(shapes, &[1], layer), 0);
}

#[test]
fn the_vector_of_zeros_has_a_finite_gradient() {
    let x = Var::zeros((1, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
    let y = scaled_unit(&x, &random(&[4], 1)).unwrap();
    assert_eq!(values(&y).unwrap(), [0.0; 4]);
    let gradients = y.sum_all().unwrap().backward().unwrap();
    assert!(values(gradients.get(&x).unwrap()).unwrap().iter().all(|value| value.is_finite()));
}

#[test]
fn the_nearest_code_is_that_of_the_greatest_cosine() {
    // More vectors than are compared at a time.
    let (vectors, codes) = (random(&[600, 2, 9], 1), random(&[37, 9], 2));
    let nearest = nearest_codes(&vectors, &codes).unwrap();
    assert_eq!(nearest.dims(), [600, 2]);
    let nearest = nearest.flatten_all().unwrap().to_vec1::<u32>().unwrap();
    let (vectors, codes) = (vectors.reshape(((), 9)).unwrap(), codes.to_vec2::<f32>().unwrap());
    for (vector, nearest) in vectors.to_vec2::<f32>().unwrap().iter().zip(nearest) {
        let cosine = |code: &Vec<f32>| {
            let dot: f64 = vector.iter().zip(code).map(|(a, b)| f64::from(a * b)).sum();
            dot / code.iter().map(|value| f64::from(value * value)).sum::<f64>().sqrt()
        };
        let best = codes.iter().map(cosine).fold(f64::MIN, f64::max);
        assert!(cosine(&codes[nearest as usize]) > best - 1e-6);
    }
    let equal = Tensor::new(&[[0.0f32, 1.0], [2.0, 0.0], [1.0, 0.0]], &Device::Cpu).unwrap();
    let nearest = nearest_codes(&Tensor::new(&[3.0f32, 0.0], &Device::Cpu).unwrap(), &equal).unwrap();
    assert_eq!(nearest.to_scalar::<u32>().unwrap(), 1, "the first of equal ones");
    assert!(nearest_codes(&equal, &random(&[2, 3], 1)).is_err());
}

#[test]
fn straight_through_has_the_value_of_one_and_the_gradient_of_the_other() {
    let (x, value) = (Var::from_tensor(&random(&[2, 3], 1)).unwrap(), random(&[2, 3], 2));
    let y = straight_through(&x, &value).unwrap();
    assert_eq!(values(&y).unwrap(), values(&value).unwrap());
    let weights = random(&[2, 3], 3);
    let gradients = (y * &weights).unwrap().sum_all().unwrap().backward().unwrap();
    assert_eq!(values(gradients.get(&x).unwrap()).unwrap(), values(&weights).unwrap());
    assert!(straight_through(&x, &random(&[3, 2], 2)).is_err());
}

/// A small perceptron with an unused parameter.
fn perceptron(x: &Tensor, parameters: &[Tensor]) -> Result<Tensor> {
    let [first, second, bias, _unused] = parameters else { bail!("four parameters are expected") };
    linear(&activate(&linear(x, first, None)?, crate::Activation::Gelu)?, second, Some(bias))
}

#[test]
fn recomputation_changes_nothing_but_when_the_work_is_done() {
    let shapes: &[&[usize]] = &[&[5, 7], &[11, 7], &[3, 11], &[3], &[2]];
    for tracked in [vec![], vec![0], vec![1, 3], vec![0, 1, 2, 3, 4], vec![2, 4]] {
        let arguments: Vec<Tensor> = shapes
            .iter()
            .enumerate()
            .map(|(index, shape)| {
                let tensor = random(shape, index as u64);
                match tracked.contains(&index) {
                    true => Var::from_tensor(&tensor).unwrap().as_tensor().clone(),
                    false => tensor,
                }
            })
            .collect();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = {
            let calls = calls.clone();
            move |x: &Tensor, parameters: &[Tensor]| {
                calls.fetch_add(1, Ordering::Relaxed);
                perceptron(x, parameters)
            }
        };
        let plain = perceptron(&arguments[0], &arguments[1..]).unwrap();
        let again = recompute(&arguments[0], &arguments[1..], Arc::new(counted)).unwrap();
        assert_eq!(values(&plain).unwrap(), values(&again).unwrap());
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        if tracked.is_empty() {
            continue;
        }
        let weights = random(&[5, 3], 9);
        let gradients = |y: Tensor| (y * &weights).unwrap().sum_all().unwrap().backward().unwrap();
        let (plain, again) = (gradients(plain), gradients(again));
        assert_eq!(calls.load(Ordering::Relaxed), 2);
        for (index, argument) in arguments.iter().enumerate() {
            match (plain.get(argument), again.get(argument)) {
                (Some(plain), Some(again)) => assert!(relative(again, plain) < 1e-6, "argument {index}"),
                // An unused parameter has no gradient, or one of zeros.
                (None, Some(again)) => assert!(values(again).unwrap().iter().all(|value| *value == 0.0)),
                (plain, again) => {
                    assert_eq!(plain.is_some(), again.is_some(), "argument {index}");
                    assert!(!tracked.contains(&index) || index == 4, "argument {index}");
                }
            }
        }
    }
}
