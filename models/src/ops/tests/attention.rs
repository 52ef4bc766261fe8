//! Attention.

use candle_core::{Device, Tensor};

use super::super::*;
use super::{check, random};

#[test]
fn attention_agrees_with_its_twin_and_differences() {
    for causal in [false, true] {
        for (tokens, width, heads) in [(1, 4, 1), (5, 8, 2), (19, 24, 3)] {
            let scores = Scores { causal, ..Scores::new(heads) };
            check(
                &[&[2, tokens, 3 * width]],
                |a| attention(&a[0], &scores),
                |a| Ok(composed::attention(&a[0], &scores)?.0),
            );
        }
    }
}

#[test]
fn masked_attention_agrees_with_its_twin_and_differences() {
    let mask = [[1.0f32; 5], [0.0, 1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]];
    let mask = Tensor::new(&mask, &Device::Cpu).unwrap();
    let scores = Scores { mask: Some(&mask), ..Scores::new(2) };
    check(&[&[3, 5, 24]], |a| attention(&a[0], &scores), |a| Ok(composed::attention(&a[0], &scores)?.0));
}

#[test]
fn a_sample_that_sees_nothing_weights_all_keys_alike() {
    let packed = random(&[1, 3, 12], 1);
    let mask = Tensor::zeros((1, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    let scores = Scores { mask: Some(&mask), ..Scores::new(2) };
    let mean = packed.narrow(2, 8, 4).unwrap().mean_keepdim(1).unwrap().broadcast_as((1, 3, 4)).unwrap();
    assert!(super::relative(&attention(&packed, &scores).unwrap(), &mean) < 1e-6);
    assert!(super::relative(&composed::attention(&packed, &scores).unwrap().0, &mean) < 1e-6);
}

#[test]
fn biased_attention_agrees_with_its_twin_and_differences() {
    // More samples than are reduced at a time.
    for (batch, tokens) in [(1, 3), (11, 6)] {
        fn scores(bias: &Tensor) -> Scores<'_> {
            Scores { bias: Some(bias), scale: Some(0.7), ..Scores::new(2) }
        }
        check(
            &[&[batch, tokens, 24], &[2, tokens, tokens]],
            |a| attention(&a[0], &scores(&a[1])),
            |a| Ok(composed::attention(&a[0], &scores(&a[1]))?.0),
        );
    }
}

/// By the kernel of a CPU, and by operations composed as elsewhere, which f64 goes through.
#[test]
fn a_token_is_attended_alone_as_among_others() {
    let packed = random(&[3, 5, 24], 1);
    let rows = Tensor::new(&[4u32, 5, 12], &Device::Cpu).unwrap();
    let mask =
        Tensor::new(&[[1.0f32; 5], [1.0, 0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 1.0]], &Device::Cpu)
            .unwrap();
    for kind in [candle_core::DType::F32, candle_core::DType::F64] {
        let (packed, mask) = (packed.to_dtype(kind).unwrap(), mask.to_dtype(kind).unwrap());
        for scores in
            [Scores { causal: true, ..Scores::new(2) }, Scores { mask: Some(&mask), ..Scores::new(2) }]
        {
            let alone = attention_at(&packed, &scores, &[4, 0, 2]).unwrap();
            let all = attention(&packed, &scores).unwrap().reshape(((), 8)).unwrap();
            let difference = (alone - all.index_select(&rows, 0).unwrap()).unwrap().abs().unwrap();
            let most = difference.max_all().unwrap().to_dtype(candle_core::DType::F64).unwrap();
            assert!(most.to_scalar::<f64>().unwrap() == 0.0, "{kind:?}: {most}");
            assert!(attention_at(&packed, &scores, &[4, 0, 5]).is_err(), "a token that is there");
        }
    }
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let packed = random(&[2, 5, 24], 1);
    let (mask, bias) = (random(&[2, 4], 2), random(&[2, 5, 4], 3));
    let fitting = Tensor::ones((2, 5), candle_core::DType::F32, &Device::Cpu).unwrap();
    for scores in [
        Scores::new(0),
        Scores::new(5),
        Scores { mask: Some(&mask), ..Scores::new(2) },
        Scores { bias: Some(&bias), ..Scores::new(2) },
        Scores { mask: Some(&fitting), causal: true, ..Scores::new(2) },
    ] {
        assert!(attention(&packed, &scores).is_err(), "{scores:?}");
    }
}

#[test]
fn what_a_mask_hides_changes_nothing() {
    let packed = random(&[1, 4, 12], 1);
    let other = random(&[1, 2, 12], 2);
    let changed = Tensor::cat(&[&packed.narrow(1, 0, 2).unwrap(), &other], 1).unwrap();
    let mask = Tensor::new(&[[1.0f32, 1.0, 0.0, 0.0]], &Device::Cpu).unwrap();
    let scores = Scores { mask: Some(&mask), ..Scores::new(2) };
    let seen = |packed: &Tensor| {
        values(&attention(packed, &scores).unwrap().narrow(1, 0, 2).unwrap().contiguous().unwrap()).unwrap()
    };
    assert_eq!(seen(&packed), seen(&changed));
}
