//! Frozen blocks against their parts.

use candle_core::{Result, Tensor, Var};

use super::super::*;
use super::{check, random, values};
use crate::Activation;

/// Random parameters, small enough that softmax does not saturate.
fn block(width: usize, hidden: usize, activation: Activation) -> BlockWeights {
    let random = |shape: &[usize], seed: u64| {
        let scale = if shape.len() == 2 { (shape[1] as f64).powf(-0.5) } else { 1.0 };
        (random(shape, seed) * scale).unwrap()
    };
    BlockWeights {
        norm1: [random(&[width], 1), random(&[width], 2)],
        qkv: [random(&[3 * width, width], 3), random(&[3 * width], 4)],
        out: [random(&[width, width], 5), random(&[width], 6)],
        norm2: [random(&[width], 7), random(&[width], 8)],
        fc1: [random(&[hidden, width], 9), random(&[hidden], 10)],
        fc2: [random(&[width, hidden], 11), random(&[width], 12)],
        activation,
        epsilon: 1e-5,
    }
}

/// The block by the separate operations.
fn parts(x: &Tensor, block: &BlockWeights, scores: &Scores<'_>) -> Result<Tensor> {
    let norm = |x: &Tensor, [gamma, beta]: &[Tensor; 2]| layer_norm(x, gamma, beta, block.epsilon);
    let layer = |x: &Tensor, [weight, bias]: &[Tensor; 2]| linear(x, weight, Some(bias));
    let packed = layer(&norm(x, &block.norm1)?, &block.qkv)?;
    let x = (x + layer(&attention(&packed, scores)?, &block.out)?)?;
    let hidden = activate(&layer(&norm(&x, &block.norm2)?, &block.fc1)?, block.activation)?;
    &x + layer(&hidden, &block.fc2)?
}

/// The block by candle's own operations, in the precision of its input.
fn twin(x: &Tensor, block: &BlockWeights, scores: &Scores<'_>) -> Result<Tensor> {
    let norm = |x: &Tensor, [gamma, beta]: &[Tensor; 2]| {
        composed::layer_norm(x, &gamma.to_dtype(x.dtype())?, &beta.to_dtype(x.dtype())?, block.epsilon)
    };
    let layer = |x: &Tensor, [weight, bias]: &[Tensor; 2]| composed::linear(x, weight, Some(bias));
    let packed = layer(&norm(x, &block.norm1)?, &block.qkv)?;
    let x = (x + layer(&composed::attention(&packed, scores)?.0, &block.out)?)?;
    let hidden = composed::activate(&layer(&norm(&x, &block.norm2)?, &block.fc1)?, block.activation)?;
    &x + layer(&hidden, &block.fc2)?
}

#[test]
fn frozen_blocks_agree_with_their_twin_and_differences() {
    for (activation, causal) in [(Activation::QuickGelu, true), (Activation::Gelu, false)] {
        let block = block(12, 20, activation);
        let scores = Scores { causal, ..Scores::new(3) };
        check(&[&[2, 7, 12]], |a| frozen_block(&a[0], &block, &scores), |a| twin(&a[0], &block, &scores));
    }
}

/// Values and gradient of the input, of a sum that weights all values differently.
fn pass(x: &Tensor, block: impl Fn(&Tensor) -> Result<Tensor>) -> (Vec<f32>, Vec<f32>) {
    let x = Var::from_tensor(x).unwrap();
    let y = block(&x).unwrap();
    let gradients =
        (&y * random(y.dims(), 40)).and_then(|y| y.sum_all()).and_then(|sum| sum.backward()).unwrap();
    (values(&y).unwrap(), values(gradients.get(&x).unwrap()).unwrap())
}

#[test]
fn frozen_blocks_have_the_bits_of_their_parts() {
    // More rows than a block of them, more hidden values than a slice.
    for (width, hidden) in [(24, 40), (32, 800)] {
        let block = block(width, hidden, Activation::Gelu);
        let x = random(&[3, 70, width], 20);
        let mask = random(&[3, 70], 21).ge(-0.5f32).unwrap().to_dtype(DType::F32).unwrap();
        for scores in [Scores::new(4), Scores { mask: Some(&mask), ..Scores::new(4) }] {
            let wanted = pass(&x, |x| parts(x, &block, &scores));
            assert!(pass(&x, |x| frozen_block(x, &block, &scores)) == wanted);
            let inference = frozen_block(&x, &block, &scores).unwrap();
            assert!(values(&inference).unwrap() == wanted.0, "nothing is kept without a gradient");
        }
    }
}

#[test]
fn a_token_alone_has_the_bits_that_it_has_among_others() {
    // More rows than a block of them, more hidden values than a slice; the last width is longer than a partial sum.
    for (width, hidden) in [(24, 40), (32, 800), (776, 30)] {
        let block = block(width, hidden, Activation::QuickGelu);
        let x = random(&[3, 70, width], 20);
        let mask = random(&[3, 70], 21).ge(-0.5f32).unwrap().to_dtype(DType::F32).unwrap();
        let kinds = [
            Scores::new(4),
            Scores { causal: true, ..Scores::new(4) },
            Scores { mask: Some(&mask), ..Scores::new(4) },
        ];
        for scores in kinds {
            let asked = [0, 69, 31];
            let alone = |x: &Tensor| frozen_block_at(x, &block, &scores, &asked);
            let among = |x: &Tensor| {
                let y = frozen_block(x, &block, &scores)?;
                let rows: Vec<u32> =
                    (0u32..).zip(asked).map(|(row, token)| row * 70 + token as u32).collect();
                y.reshape(((), width))?.index_select(&Tensor::new(rows, x.device())?, 0)
            };
            let (found, wanted) = (pass(&x, alone), pass(&x, among));
            assert!(found.0 == wanted.0, "{width}: values");
            let (gradient, scale) =
                (found.1, wanted.1.iter().fold(0.0f32, |max, value| max.max(value.abs())));
            let worst = gradient.iter().zip(&wanted.1).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst == 0.0, "{width}: gradients differ by {worst} of {scale}");
            assert!(values(&alone(&x).unwrap()).unwrap() == wanted.0, "nothing is kept without a gradient");
        }
        assert!(frozen_block_at(&x, &block, &Scores::new(4), &[0, 1]).is_err(), "a token for each sample");
        assert!(frozen_block_at(&x, &block, &Scores::new(4), &[0, 70, 0]).is_err(), "a token that is there");
    }
}

#[test]
fn neither_threads_nor_the_batch_change_a_bit_of_frozen_blocks() {
    let (block, scores) = (block(24, 40, Activation::QuickGelu), Scores::new(2));
    let x = random(&[5, 50, 24], 20);
    let run = |threads: usize, x: &Tensor| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| values(&frozen_block(x, &block, &scores).unwrap()).unwrap())
    };
    let all = run(1, &x);
    assert!(all == run(3, &x));
    let one = run(2, &x.narrow(0, 3, 1).unwrap().contiguous().unwrap());
    assert!(all[3 * 50 * 24..4 * 50 * 24] == one);
}

#[test]
fn blocks_that_do_not_fit_or_are_trained_are_refused() {
    let (frozen, scores, x) = (block(12, 20, Activation::Gelu), Scores::new(3), random(&[1, 2, 12], 1));
    assert!(takes_block(&x, &frozen));
    let mut trained = frozen.clone();
    trained.fc1[0] = Var::from_tensor(&trained.fc1[0]).unwrap().into_inner();
    assert!(!takes_block(&x, &trained) && frozen_block(&x, &trained, &scores).is_err());
    let mut narrow = frozen.clone();
    narrow.out[0] = random(&[12, 11], 1);
    assert!(frozen_block(&x, &narrow, &scores).is_err());
    assert!(frozen_block(&random(&[1, 2, 13], 1), &frozen, &scores).is_err());
}
