//! Where and how precisely a stage computes: the parameters `device` and `precision` of every kind that runs
//! a model.

use candle_core::{Device, Tensor};
use pipe_engine::{ParameterProblem, StageError};
use pipe_models::DeviceName;
use pipe_models::device::{DEVICE_NAMES, numerics_class};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The data type of a model's weights and activations. Norms and softmax sum in f32 in any case, and what a
/// stage writes is f32.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with the range of f32 and three decimal digits less.
    Bf16,
    /// 16 bits with a range up to 65,504.
    F16,
}

/// The parameters that the numerics class stands for in the key.
pub(crate) const OUTSIDE_KEY: [&str; 2] = ["device", "precision"];

/// Parameters as a file may tell them: those that are outside the key may differ between two equal results.
pub(crate) fn keyed(params: &impl Serialize) -> String {
    let mut params = serde_json::to_value(params).unwrap_or_default();
    if let Some(table) = params.as_object_mut() {
        table.retain(|name, _| !OUTSIDE_KEY.contains(&name.as_str()));
    }
    params.to_string()
}

/// The default of `device`.
pub(crate) fn auto() -> String {
    DeviceName::Auto.to_string()
}

/// A name of a device that is none.
pub(crate) fn check(device: &str) -> Option<ParameterProblem> {
    device.parse::<DeviceName>().err()?;
    let message = format!("`{device}` is no device");
    Some(ParameterProblem { path: "device".to_owned(), message, help: Some(DEVICE_NAMES.to_owned()) })
}

/// A data type in which no tower learns.
pub(crate) fn check_mixed(precision: Precision) -> Option<ParameterProblem> {
    (precision == Precision::F16).then(|| ParameterProblem {
        path: "precision".to_owned(),
        message: "gradients vanish in f16, whose least numbers are too large for them".to_owned(),
        help: Some("`bf16` has the range of f32".to_owned()),
    })
}

/// Lets `auto` stand for the first GPU that an action was given, where it stands for one at all.
pub(crate) fn take_gpu(device: &mut String, gpus: &[usize]) {
    let Some(slot) = gpus.first() else { return };
    let is_auto = device.parse() == Ok(DeviceName::Auto);
    if is_auto && numerics_class(DeviceName::Auto, pipe_models::Precision::F32).starts_with("cuda") {
        *device = DeviceName::Cuda(*slot).to_string();
    }
}

/// Where and how precisely a model computes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Compute {
    device: DeviceName,
    pub(crate) precision: pipe_models::Precision,
}

impl Compute {
    /// Of both parameters; `device` has passed [`check`].
    pub(crate) fn new(device: &str, precision: Precision) -> Self {
        let precision = match precision {
            Precision::F32 => pipe_models::Precision::F32,
            Precision::Bf16 => pipe_models::Precision::Bf16,
            Precision::F16 => pipe_models::Precision::F16,
        };
        Self { device: device.parse().unwrap_or_default(), precision }
    }

    /// In f32 on the CPU.
    pub(crate) fn exact() -> Self {
        Self { device: DeviceName::Cpu, precision: pipe_models::Precision::F32 }
    }

    /// The numerics class of its results.
    pub(crate) fn numerics(self) -> Option<String> {
        Some(numerics_class(self.device, self.precision))
    }

    /// What a tower that learns is given, in the type in which it computes; its weights keep all their digits (mixed
    /// precision).
    ///
    /// # Errors
    /// Whatever the device reports.
    pub(crate) fn mixed(self, x: &Tensor) -> candle_core::Result<Tensor> {
        x.to_dtype(self.precision.dtype())
    }

    /// Opens the device.
    ///
    /// # Errors
    /// If it is not there: another attempt, elsewhere, may find it.
    pub(crate) fn open(self) -> Result<Device, StageError> {
        self.device.open().map_err(|error| {
            let doing = format!("opening the device `{}`", error.name);
            StageError::environment(doing, std::io::Error::new(std::io::ErrorKind::NotFound, error))
        })
    }
}

#[cfg(test)]
mod tests {
    use pipe_engine::AnyKind;
    use serde_json::{Value as Json, json};

    use crate::{ablate, attribute, embed, evaluate_classify, finetune, score};

    /// Every kind that runs a model.
    fn kinds() -> Vec<Box<dyn AnyKind>> {
        vec![
            Box::new(ablate::Ablate),
            Box::new(attribute::Attribute),
            Box::new(embed::Embed),
            Box::new(evaluate_classify::EvaluateClassify),
            Box::new(finetune::FinetuneClassify),
            Box::new(finetune::FinetuneContrastive),
            Box::new(score::Score),
        ]
    }

    #[test]
    fn a_gpu_that_was_given_is_taken_by_what_leaves_the_choice() {
        for (device, expected) in [("cpu", "cpu"), ("cuda:2", "cuda:2"), ("auto", "auto")] {
            let mut taken = device.to_owned();
            super::take_gpu(&mut taken, &[1]);
            let has_gpus = pipe_models::device::found().iter().any(|found| found.starts_with("cuda"));
            let expected = if device == "auto" && has_gpus { "cuda:1" } else { expected };
            assert_eq!(taken, expected);
        }
    }

    #[test]
    fn a_key_knows_what_is_computed_on_not_how_it_is_spelled() {
        for kind in kinds() {
            let name = kind.describe().name;
            let resolve = |params: Json| kind.resolve(&params).unwrap();
            let default = resolve(json!({}));
            let class = default.numerics.clone().unwrap();
            if pipe_models::device::found() == ["cpu"] {
                let cpu = resolve(json!({ "device": "cpu" }));
                assert_eq!(
                    (&cpu.canonical, &cpu.numerics),
                    (&default.canonical, &default.numerics),
                    "{name}"
                );
            }
            let (first, second) =
                (resolve(json!({ "device": "cuda:0" })), resolve(json!({ "device": "cuda:1" })));
            assert_eq!(first.canonical, second.canonical, "{name}: the number of a GPU is in no key");
            assert_eq!(first.canonical, default.canonical, "{name}");
            assert_ne!(first.json, second.json, "{name}: but people see it");
            // No tower learns under a linear probe, which is the default of classifiers.
            let whole = if name == "finetune.classify" { json!({ "mode": "full" }) } else { json!({}) };
            let in_half = |half: &str| {
                let mut params = whole.clone();
                params["precision"] = json!(half);
                kind.resolve(&params)
            };
            let half = in_half("bf16").unwrap();
            assert_eq!(half.canonical, resolve(whole.clone()).canonical, "{name}");
            assert_ne!(half.numerics.unwrap(), class, "{name}");
            let is_refused = in_half("f16").is_err_and(|problems| problems[0].path == "precision");
            assert_eq!(is_refused, name.starts_with("finetune."), "{name}");
            let problems = kind.resolve(&json!({ "device": "gpu" })).unwrap_err();
            assert_eq!(problems[0].path, "device", "{name}");
            assert!(problems[0].message.contains("`gpu`") && problems[0].help.is_some(), "{name}");
        }
    }
}
