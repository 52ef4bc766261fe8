//! Recurrent networks, transposed convolutions, norms of the batch and of tensors, factors.

use candle_core::{DType, Device, Tensor, Var};

use super::super::*;
use super::{backward_products, check, random};

#[test]
fn recurrent_networks_agree_with_their_twins_and_differences() {
    for (batch, length, hidden) in [(3, 5, 4), (1, 1, 3), (2, 12, 17)] {
        check(
            &[&[batch, length, 4 * hidden], &[4 * hidden, hidden], &[4 * hidden]],
            |a| lstm(&a[0], &a[1], &a[2]),
            |a| composed::lstm(&a[0], &a[1], &a[2]),
        );
        check(
            &[&[batch, length, 3 * hidden], &[3 * hidden, hidden], &[3 * hidden]],
            |a| gru(&a[0], &a[1], &a[2]),
            |a| composed::gru(&a[0], &a[1], &a[2]),
        );
    }
}

#[test]
fn the_weights_of_all_positions_get_one_product() {
    let shapes: &[&[usize]] = &[&[2, 6, 12], &[12, 3], &[12]];
    let network = |a: &[Tensor]| lstm(&a[0], &a[1], &a[2]);
    // One for each position but the first, and one for the weights.
    assert_eq!(backward_products(shapes, &[0, 1, 2], network), 6);
    assert_eq!(backward_products(shapes, &[0], network), 5);
    assert!(lstm(&random(&[2, 6, 9], 1), &random(&[12, 3], 2), &random(&[12], 3)).is_err());
    assert!(gru(&random(&[2, 0, 9], 1), &random(&[9, 3], 2), &random(&[9], 3)).is_err());
}

#[test]
fn transposed_convolutions_agree_with_their_twin_and_differences() {
    // Batch, rows, columns, channels; outputs, kernel rows and columns; stride, padding, extra.
    for ([b, r, c, i], [o, kr, kc], [stride, padding, extra]) in [
        ([2, 3, 4, 3], [2, 3, 3], [2, 1, 1]),
        ([1, 4, 3, 2], [3, 3, 3], [2, 1, 0]),
        ([2, 5, 5, 1], [2, 2, 3], [1, 0, 0]),
        ([1, 2, 3, 2], [2, 4, 5], [3, 2, 2]),
    ] {
        let window = Window { stride, padding };
        let sizes =
            [(r - 1) * stride + kr + extra - 2 * padding, (c - 1) * stride + kc + extra - 2 * padding];
        let shapes: &[&[usize]] = &[&[b, r, c, i], &[i, kr, kc, o], &[o]];
        check(
            shapes,
            |a| conv_transpose2d(&a[0], &a[1], &a[2], window, extra),
            |a| composed::conv_transpose2d(&a[0], &a[1], &a[2], window, sizes),
        );
        let layer = |a: &[Tensor]| conv_transpose2d(&a[0], &a[1], &a[2], window, extra);
        assert_eq!(backward_products(shapes, &[2], layer), 0);
    }
    let window = Window { stride: 2, padding: 1 };
    for (kernel, bias, extra) in [([4, 3, 3, 2], 2, 1), ([3, 3, 3, 2], 3, 1), ([3, 3, 3, 2], 2, 2)] {
        let (x, kernel, bias) = (random(&[1, 4, 4, 3], 1), random(&kernel, 2), random(&[bias], 3));
        assert!(conv_transpose2d(&x, &kernel, &bias, window, extra).is_err());
    }
}

#[test]
fn norms_of_a_batch_agree_with_their_twin_and_differences() {
    for shape in [[5, 7, 3, 4], [1, 2, 3, 1], [2, 20, 30, 17]] {
        let channels = shape[3];
        check(
            &[&shape, &[channels], &[channels]],
            |a| Ok(batch_norm_of_batch(&a[0], &a[1], &a[2], 1e-5)?.0),
            |a| Ok(composed::batch_norm_of_batch(&a[0], &a[1], &a[2], 1e-5)?.0),
        );
    }
    let x = (random(&[40, 3], 5) + 1000.0).unwrap();
    let (_, mean, variance) = batch_norm_of_batch(&x, &random(&[3], 6), &random(&[3], 7), 1e-5).unwrap();
    let exact = x.to_dtype(DType::F64).unwrap();
    let (_, means, variances) = composed::batch_norm_of_batch(
        &exact,
        &exact.narrow(0, 0, 1).unwrap().squeeze(0).unwrap(),
        &exact.narrow(0, 1, 1).unwrap().squeeze(0).unwrap(),
        1e-5,
    )
    .unwrap();
    assert!(super::relative(&mean, &means) < 1e-7 && super::relative(&variance, &variances) < 1e-6);
}

#[test]
fn lengths_agree_with_their_twin_and_have_no_slope_at_zero() {
    for shape in [&[3, 5][..], &[1], &[130, 257]] {
        check(&[shape], |a| frobenius_norm(&a[0]), |a| composed::frobenius_norm(&a[0]));
    }
    let zero = Var::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
    let gradients = frobenius_norm(&zero).unwrap().backward().unwrap();
    assert_eq!(values(gradients.get(&zero).unwrap()).unwrap(), [0.0; 4]);
}

#[test]
fn a_factor_agrees_with_its_twin_and_differences() {
    for shape in [&[3, 5][..], &[2, 4, 7], &[1, 1]] {
        check(&[shape, &[]], |a| scaled(&a[0], &a[1]), |a| composed::scaled(&a[0], &a[1]));
    }
    assert!(scaled(&random(&[2, 3], 1), &random(&[1], 2)).is_err());
}

#[test]
fn weight_normalised_layers_agree_with_their_twin_and_differences() {
    let twin = |a: &[Tensor]| {
        let scale = (&a[2] / composed::frobenius_norm(&a[1])?)?;
        composed::linear(&a[0], &composed::scaled(&a[1], &scale)?, Some(&a[3]))
    };
    for (x, [out, width]) in [(&[3, 5][..], [4, 5]), (&[2, 3, 17], [40, 17]), (&[1, 2], [1, 2])] {
        let shapes: &[&[usize]] = &[x, &[out, width], &[], &[out]];
        check(shapes, |a| weight_normed(&a[0], &a[1], &a[2], &a[3]), twin);
        // Frozen weights cost one product, and all gradients two.
        let layer = |a: &[Tensor]| weight_normed(&a[0], &a[1], &a[2], &a[3]);
        assert_eq!(backward_products(shapes, &[0], layer), 1);
        assert_eq!(backward_products(shapes, &[0, 1, 2, 3], layer), 2);
    }
    let layer =
        |x: &[usize]| weight_normed(&random(x, 1), &random(&[4, 3], 2), &random(&[], 3), &random(&[4], 4));
    assert!(layer(&[2, 3]).is_ok() && layer(&[2, 4]).is_err());
}

#[test]
fn constant_factors_agree_with_a_product_and_differences() {
    let factors: Vec<f32> = (0..30).map(|index| if index % 3 == 0 { 0.0 } else { 1.25 }).collect();
    let twin = Tensor::from_slice(&factors, (5, 6), &Device::Cpu).unwrap();
    check(&[&[5, 6]], |a| masked(&a[0], factors.clone()), |a| &a[0] * twin.to_dtype(a[0].dtype())?);
    assert!(masked(&random(&[2, 3], 1), factors).is_err());
}
