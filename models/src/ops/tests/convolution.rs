//! Convolutions, batch norm and pooling.

use candle_core::{DType, Device, Tensor, Var};

use super::super::*;
use super::{backward_products, check, random};

#[test]
fn convolutions_agree_with_their_twin_and_differences() {
    // Batch, rows, columns, channels; outputs, kernel rows and columns; stride, padding: not square,
    // strided with a rest, kernels that lie wholly on padding, one with more than one strip.
    for ([b, r, c, i], [o, kr, kc], [stride, padding]) in [
        ([2, 5, 7, 3], [4, 3, 3], [1, 1]),
        ([1, 9, 6, 2], [3, 3, 3], [2, 1]),
        ([2, 11, 8, 3], [5, 7, 7], [2, 3]),
        ([2, 6, 5, 4], [3, 1, 1], [2, 0]),
        ([2, 4, 5, 3], [6, 1, 1], [1, 0]),
        ([1, 3, 4, 2], [2, 2, 3], [3, 2]),
        ([3, 20, 13, 1], [2, 3, 3], [1, 1]),
    ] {
        let window = Window { stride, padding };
        let shapes: &[&[usize]] = &[&[b, r, c, i], &[o, kr, kc, i], &[o]];
        check(
            shapes,
            |a| conv2d(&a[0], &a[1], Some(&a[2]), window),
            |a| composed::conv2d(&a[0], &a[1], Some(&a[2]), window),
        );
        check(
            &shapes[..2],
            |a| conv2d(&a[0], &a[1], None, window),
            |a| composed::conv2d(&a[0], &a[1], None, window),
        );
        let layer = |a: &[Tensor]| conv2d(&a[0], &a[1], Some(&a[2]), window);
        let strips = backward_products(shapes, &[1], layer);
        assert!(strips >= 1);
        assert!(backward_products(shapes, &[0], layer) >= 1);
        assert_eq!(backward_products(shapes, &[2], layer), 0);
        assert_eq!(
            backward_products(shapes, &[0, 1], layer),
            strips + backward_products(shapes, &[0], layer)
        );
    }
}

#[test]
fn convolutions_of_volumes_agree_with_their_twin_and_differences() {
    // Batch, steps, rows, columns, channels; outputs, kernel steps, rows and columns; stride, padding.
    for ([b, t, r, c, i], [o, kt, kr, kc], [stride, padding]) in [
        ([2, 4, 5, 3, 2], [3, 3, 3, 3], [1, 1]),
        ([1, 5, 4, 5, 3], [2, 3, 3, 3], [2, 1]),
        ([2, 5, 3, 3, 2], [4, 1, 1, 1], [2, 0]),
        ([1, 3, 4, 2, 2], [3, 1, 1, 1], [1, 0]),
        ([2, 1, 3, 3, 1], [2, 3, 3, 3], [2, 1]),
        ([1, 4, 6, 6, 2], [2, 2, 3, 3], [3, 2]),
    ] {
        let window = Window { stride, padding };
        let shapes: &[&[usize]] = &[&[b, t, r, c, i], &[o, kt, kr, kc, i], &[o]];
        // A volume's convolution is the sum over the kernel's steps of those of images.
        let twin = |a: &[Tensor]| {
            let steps = window.positions(t, kt)?;
            let padded = a[0].pad_with_zeros(1, padding, padding)?;
            let position = |position: usize| {
                let at = |tap: usize| {
                    let image = padded.narrow(1, position * stride + tap, 1)?.squeeze(1)?.contiguous()?;
                    let kernel = a[1].narrow(1, tap, 1)?.squeeze(1)?.contiguous()?;
                    composed::conv2d(&image, &kernel, None, window)
                };
                (1..kt).try_fold(at(0)?, |sum, tap| sum + at(tap)?)?.broadcast_add(&a[2])
            };
            Tensor::stack(&(0..steps).map(position).collect::<Result<Vec<_>>>()?, 1)
        };
        check(shapes, |a| conv3d(&a[0], &a[1], Some(&a[2]), window), twin);
        let stacked = |a: &[Tensor]| stack_steps(&a[0], kt, window);
        check(&shapes[..1], stacked, |a| composed::stack_steps(&a[0], kt, window));
        let layer = |a: &[Tensor]| conv3d(&a[0], &a[1], Some(&a[2]), window);
        assert_eq!(backward_products(shapes, &[2], layer), 0);
    }
    let (x, window) = (random(&[1, 2, 4, 4, 3], 1), Window { stride: 1, padding: 0 });
    assert!(conv3d(&x, &random(&[2, 3, 3, 3, 3], 2), None, window).is_err(), "more steps than there are");
    assert!(conv3d(&x, &random(&[2, 1, 3, 3, 2], 2), None, window).is_err(), "other channels");
}

#[test]
fn a_kernel_that_does_not_fit_is_refused() {
    let x = random(&[1, 4, 4, 2], 1);
    for (kernel, window) in [
        ([3, 3, 3, 3], Window { stride: 1, padding: 0 }),
        ([3, 5, 3, 2], Window { stride: 1, padding: 0 }),
        ([3, 3, 3, 2], Window { stride: 0, padding: 0 }),
    ] {
        assert!(conv2d(&x, &random(&kernel, 2), None, window).is_err(), "{kernel:?} {window:?}");
    }
    assert!(max_pool2d(&x, 3, Window { stride: 1, padding: 2 }).is_err());
    assert!(average_pool2d(&x, 5).is_err());
}

#[test]
fn batch_norm_agrees_with_its_twin_and_differences() {
    let statistics = |dtype| RunningStatistics {
        mean: random(&[5], 31).to_dtype(dtype).unwrap(),
        variance: random(&[5], 32).sqr().unwrap().to_dtype(dtype).unwrap(),
        epsilon: 1e-5,
    };
    check(
        &[&[2, 30, 20, 5], &[5], &[5]],
        |a| batch_norm(&a[0], &a[1], &a[2], &statistics(DType::F32)),
        |a| composed::batch_norm(&a[0], &a[1], &a[2], &statistics(a[0].dtype())),
    );
}

#[test]
fn pools_agree_with_their_twins_and_differences() {
    for (shape, side) in
        [([2, 4, 6, 3], 2), ([1, 7, 5, 2], 2), ([2, 7, 9, 1], 3), ([1, 3, 3, 2], 1), ([1, 5, 4, 31], 2)]
    {
        check(&[&shape], |a| average_pool2d(&a[0], side), |a| composed::average_pool2d(&a[0], side));
    }
    for (shape, side, stride, padding) in
        [([2, 8, 6, 3], 3, 2, 1), ([1, 7, 5, 2], 2, 2, 0), ([2, 5, 5, 1], 3, 1, 1)]
    {
        let window = Window { stride, padding };
        check(&[&shape], |a| max_pool2d(&a[0], side, window), |a| composed::max_pool2d(&a[0], side, window));
    }
}

/// To the bit: values are copied, and a gradient is the sum of those of its windows in their order.
#[test]
fn max_pools_are_what_loops_give() {
    for (sizes, side, stride, padding) in
        [([2, 8, 6, 19], 2, 2, 0), ([1, 7, 5, 33], 3, 2, 1), ([2, 5, 5, 3], 3, 1, 1)]
    {
        let [batch, rows, columns, channels] = sizes;
        // Few values, so that many are equal.
        let x = Var::from_tensor(&(random(&sizes, 5) * 2.0).unwrap().round().unwrap()).unwrap();
        let values = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let y = max_pool2d(&x, side, Window { stride, padding }).unwrap();
        let [_, out_rows, out_columns, _] = y.dims()[..] else { panic!("four axes") };
        let given = random(y.dims(), 6);
        let gradients = (&y * &given).unwrap().sum_all().unwrap().backward().unwrap();
        let (given, y) =
            (given.flatten_all().unwrap().to_vec1::<f32>(), y.flatten_all().unwrap().to_vec1::<f32>());
        let (given, y) = (given.unwrap(), y.unwrap());
        let mut expected = vec![0.0f32; values.len()];
        for place in 0..y.len() {
            let (channel, cell) = (place % channels, place / channels);
            let (image, row, column) =
                (cell / out_columns / out_rows, cell / out_columns % out_rows, cell % out_columns);
            let mut found: Option<usize> = None;
            for row in
                (row * stride..row * stride + side).filter(|row| (padding..rows + padding).contains(row))
            {
                for column in column * stride..column * stride + side {
                    if !(padding..columns + padding).contains(&column) {
                        continue;
                    }
                    let pixel = (image * rows + row - padding) * columns + column - padding;
                    let at = pixel * channels + channel;
                    if found.is_none_or(|before| values[at] > values[before]) {
                        found = Some(at);
                    }
                }
            }
            let found = found.unwrap();
            assert_eq!(y[place], values[found]);
            expected[found] += given[place];
        }
        let gradient = gradients.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(gradient, expected);
        assert_eq!(batch * rows * columns * channels, gradient.len());
    }
}

#[test]
fn the_first_of_equal_values_gets_the_gradient() {
    let x = Var::ones((1, 2, 2, 1), DType::F32, &Device::Cpu).unwrap();
    let y = max_pool2d(&x, 2, Window { stride: 2, padding: 0 }).unwrap();
    let gradients = y.sum_all().unwrap().backward().unwrap();
    let gradient = gradients.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(gradient, [1.0, 0.0, 0.0, 0.0]);
}

#[test]
fn depthwise_convolutions_agree_with_their_twin_and_differences() {
    for ([b, t, h, w, c], [kt, kh, kw], padding) in [
        ([2, 3, 4, 5, 6], [3, 3, 3], [[2, 0], [1, 1], [1, 1]]),
        ([1, 1, 4, 4, 3], [3, 3, 3], [[2, 0], [1, 1], [1, 1]]),
        ([1, 4, 3, 2, 20], [2, 1, 2], [[0, 0], [0, 0], [0, 1]]),
    ] {
        let shapes: &[&[usize]] = &[&[b, t, h, w, c], &[c, 1, kt, kh, kw], &[c]];
        let layer = |a: &[Tensor]| depthwise_conv3d(&a[0], &a[1], &a[2], padding);
        check(shapes, layer, |a| composed::depthwise_conv3d(&a[0], &a[1], &a[2], padding));
        for tracked in [vec![0], vec![1], vec![2], vec![0, 2]] {
            assert_eq!(backward_products(shapes, &tracked, layer), 0);
        }
    }
    let (x, kernel) = (random(&[1, 2, 2, 2, 3], 1), random(&[3, 1, 3, 3, 3], 2));
    assert!(depthwise_conv3d(&x, &kernel, &random(&[3], 3), [[0, 0]; 3]).is_err());
}
