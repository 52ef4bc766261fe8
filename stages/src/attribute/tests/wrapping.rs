//! Class activation maps by a classifier's weights, and what is wrapped around methods.

use pipe_models::Activation;
use pipe_models::clip::{EotRule, OpenAiClipConfig, OpenAiImage, TextConfig};

use super::*;
use crate::attribute::Wrapper;

fn residual() -> Study {
    let config = ResNetConfig { width: 4, blocks: [1, 1, 1, 1], image: 64 };
    Study::new().with_network(&ModelConfig::ResNet(config.into()), 64, 4 * 8 * 4)
}

/// Behind a mean and a linear classifier the mean of the map is the logit without its bias; of a margin the
/// difference of both.
#[test]
fn a_class_activation_map_adds_up_to_the_logit() {
    let study = residual();
    let bias: Vec<f32> = (1..=5).map(|draw| Key(6).normal(draw) as f32).collect();
    let labels = crate::table::metadata(&study.artifacts["labels"]).unwrap();
    let classes: Vec<String> = serde_json::from_str(&labels["label_names"]).unwrap();
    for against in [None, Some(1)] {
        let named = against.map(|class: usize| classes[class].clone());
        let maps = study.maps(&Params { against: named, ..params(Method::Cam, Baseline::Zero) });
        assert_eq!(maps.0.schema().metadata()["layer"], "vision.layer4");
        let (scores, statuses) = (maps.numbers("score"), maps.text("status"));
        let targets = maps.0.column_by_name("target_index").unwrap();
        let targets = targets.as_primitive::<arrow_array::types::Int32Type>();
        let mut compared = 0;
        for (row, map) in maps.rows().into_iter().enumerate() {
            if statuses[row].as_deref() != Some("ok") {
                assert_eq!(against, Some(targets.value(row) as usize), "{:?}", statuses[row]);
                continue;
            }
            let mean = map.iter().map(|value| f64::from(*value)).sum::<f64>() / (64.0 * 64.0);
            let own = bias[targets.value(row) as usize] - against.map_or(0.0, |class| bias[class]);
            let expected = f64::from(scores[row].unwrap() - own);
            assert!((mean - expected).abs() < 1e-4 * expected.abs().max(1.0), "{mean} {expected}");
            compared += 1;
        }
        assert!(compared > 0);
    }
}

#[test]
fn a_network_that_pools_by_attention_has_no_class_activation_map() {
    let maps = Study::new().maps(&params(Method::Cam, Baseline::Zero));
    for status in maps.text("status") {
        assert!(status.unwrap().starts_with("not_applicable: a class activation map is that of a linear"));
    }
}

/// The only attention of CLIP's residual network is that of its pool, and its embedding is no mean.
#[test]
fn a_pool_of_attention_has_relevance() {
    let trunk = ResNetConfig { width: 4, blocks: [1, 1, 1, 1], image: 64 };
    let text = TextConfig {
        vocabulary: 20,
        width: 8,
        hidden: 16,
        layers: 1,
        heads: 2,
        positions: 6,
        activation: Activation::QuickGelu,
        epsilon: 1e-5,
        eot: EotRule::Greatest,
        bos: 18,
        pad: 0,
    };
    let config =
        OpenAiClipConfig { image: OpenAiImage::ResNet { trunk, pool_heads: 2 }, text, projection: 8 };
    let study = Study::new().with_network(&ModelConfig::OpenAiClip(config), 64, 8);
    let maps = study.maps(&params(Method::AttentionPool, Baseline::Zero));
    assert!(maps.text("status").iter().all(|status| status.as_deref() == Some("ok")));
    assert!(maps.numbers("min").iter().all(|least| least.unwrap() >= 0.0));
    assert!(maps.rows().iter().all(|map| map.len() == 64 * 64));
    let none = study.maps(&params(Method::Cam, Baseline::Zero));
    assert!(none.text("status").iter().flatten().all(|status| status.starts_with("not_applicable: ")));
}

/// The gradient's mean over noise is SmoothGrad, with the same noise; absolute values have no sign, and a blur keeps
/// the sum, whatever the batch.
#[test]
fn methods_are_wrapped_from_the_inside_out() {
    let study = Study::new();
    let with = |method, wrap: &[Wrapper], batch| {
        let wrapped = Params { wrap: wrap.to_vec(), draws: 3, batch, ..params(method, Baseline::Zero) };
        study.maps(&wrapped)
    };
    let plain = with(Method::SmoothGrad, &[], 5);
    let wrapped = with(Method::Gradient, &[Wrapper::NoiseMean], 5);
    assert_eq!(plain.rows(), wrapped.rows());
    assert_eq!(wrapped.0.schema().metadata()["wrap"], "noise_mean");
    assert!(!plain.0.schema().metadata().contains_key("wrap"));
    assert!(!plain.0.schema().metadata()["params"].contains("wrap"), "keys of others stay as they were");

    let plain = with(Method::IntegratedGradients, &[], 5);
    let smooth = with(Method::IntegratedGradients, &[Wrapper::Smoothing], 5);
    let (sums, gaps) = (plain.numbers("sum"), plain.numbers("completeness_gap"));
    for (row, sum) in smooth.numbers("sum").into_iter().enumerate() {
        assert!((sum.unwrap() - sums[row].unwrap()).abs() < 1e-3, "{row}");
    }
    assert_eq!(smooth.numbers("completeness_gap"), gaps);
    assert_ne!(smooth.rows(), plain.rows());

    let around = [Wrapper::NoiseMean, Wrapper::Absolute, Wrapper::Smoothing];
    for method in [Method::InputXGradient, Method::GradCam, Method::AttentionRelevance] {
        let maps = with(method, &around, 5);
        assert!(maps.numbers("min").iter().all(|least| least.unwrap() >= 0.0), "{method:?}");
        let single = with(method, &around, 1);
        for (map, again) in maps.rows().iter().zip(single.rows()) {
            let scale = map.iter().fold(0.0f32, |scale, value| scale.max(*value));
            assert!(scale > 0.0 && map.iter().zip(again).all(|(a, b)| (a - b).abs() <= 1e-3 * scale));
        }
    }
}

#[test]
fn noise_is_not_averaged_twice() {
    let problems = |method, wrap: &[Wrapper]| {
        Attribute.check(&Params { method, wrap: wrap.to_vec(), ..Params::default() }).len()
    };
    assert_eq!(problems(Method::VarGrad, &[Wrapper::NoiseMean]), 1);
    assert_eq!(problems(Method::Occlusion, &[Wrapper::NoiseMean, Wrapper::NoiseVariance]), 1);
    assert_eq!(problems(Method::VarGrad, &[Wrapper::Smoothing, Wrapper::Absolute]), 0);
}

/// The last layer alone is another map than all, and as many as there are, or more, are all.
#[test]
fn relevance_begins_at_the_layer_that_is_asked_for() {
    let study = Study::new();
    for method in [Method::AttentionRelevance, Method::AttentionRollout] {
        let of = |last_layers| study.maps(&Params { last_layers, ..params(method, Baseline::Zero) });
        let [all, one, two, many] = [None, Some(1), Some(2), Some(9)].map(of);
        assert_ne!(one.rows(), all.rows());
        assert_eq!(two.rows(), all.rows());
        assert_eq!(many.rows(), all.rows());
    }
    let layer = |last_layers| {
        let maps = study.maps(&Params { last_layers, ..params(Method::AttentionRollout, Baseline::Zero) });
        maps.0.schema().metadata()["layer"].clone()
    };
    assert!(layer(None).contains(" to ") && !layer(Some(1)).contains(" to "));
}

/// Three windows at every place, one in each channel: a map of as many falls.
#[test]
fn occlusion_goes_channel_by_channel() {
    let study = Study::new();
    let window = |per_channel| Params {
        per_channel,
        window: Some(14),
        stride: Some(14),
        limit: Some(2),
        ..params(Method::Occlusion, Baseline::Zero)
    };
    let host = Host::default();
    study.attribute(&window(true), &host).unwrap();
    let lines = host.lines.lock().unwrap().join("\n");
    assert!(lines.contains("2 maps of 2 images, 26 forward"), "{lines}");
    let [together, apart] = [false, true].map(|per_channel| study.maps(&window(per_channel)));
    assert_eq!(apart.0.schema().metadata()["channels"], "sum");
    let most = |maps: &Maps| maps.rows().concat().iter().fold(0.0f32, |most, value| most.max(value.abs()));
    assert!(most(&apart) > 0.0);
    assert_ne!(apart.rows(), together.rows(), "the score is no sum over channels");
    let refused = StageKind::check(&Attribute, &Params { method: Method::Rise, ..window(true) });
    assert!(refused.iter().any(|problem| problem.path == "per_channel"), "{refused:?}");
}
