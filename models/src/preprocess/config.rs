//! `preprocessor_config.json` of transformers, and `preprocess_cfg` of open_clip.

use serde_json::Value as Json;

use super::pipeline::{CLIP_MEAN, CLIP_STD, Fit, Pipeline, Preprocessor};
use super::resize::Filter;
use super::slices::{MOST_SLICES, Slices};
use crate::checkpoint::CheckpointError;

/// The key under which our own checkpoints keep what transformers' format does not say.
const OURS: &str = "pipe";

fn triple(json: &Json, key: &str, default: [f64; 3]) -> Result<[f64; 3], String> {
    match &json[key] {
        Json::Null => Ok(default),
        Json::Array(items) if items.len() == 3 && items.iter().all(Json::is_number) => {
            Ok([0, 1, 2].map(|index| items[index].as_f64().unwrap_or_default()))
        }
        other => Err(format!("`{key}` is {other}; three numbers are expected")),
    }
}

fn deviations(json: &Json, key: &str) -> Result<[f64; 3], String> {
    let std = triple(json, key, CLIP_STD)?;
    if std.iter().all(|std| *std > 0.0) {
        Ok(std)
    } else {
        Err(format!("`{key}` is {}; positive numbers are expected", json[key]))
    }
}

/// A side in pixels.
fn side(json: &Json, what: &str) -> Result<usize, String> {
    json.as_u64()
        .filter(|side| (1..=1 << 14).contains(side))
        .map(|side| side as usize)
        .ok_or_else(|| format!("`{what}` is {json}; a number of pixels is expected"))
}

/// `size` of transformers: a number, `{"shortest_edge": n}`, or both sides.
fn size(json: &Json, key: &str, default: Fit) -> Result<Fit, String> {
    match &json[key] {
        Json::Null => Ok(default),
        number @ Json::Number(_) => side(number, key).map(Fit::Shortest),
        Json::Object(sides) if sides.contains_key("shortest_edge") => {
            side(&sides["shortest_edge"], key).map(Fit::Shortest)
        }
        Json::Object(sides) if sides.contains_key("height") && sides.get("height") == sides.get("width") => {
            side(&sides["height"], key).map(|_| Fit::Stretch)
        }
        other => Err(format!("`{key}` is {other}; one length or a square is expected")),
    }
}

impl Preprocessor {
    /// Reads `preprocessor_config.json` of a model that takes squares of `side` pixels; what it leaves
    /// out is CLIP's. The pipeline is transformers' with its Pillow backend, or what our own checkpoints
    /// name.
    ///
    /// # Errors
    /// If it is no JSON, a value has another type, or it describes steps that are not known here.
    pub fn from_json(text: &str, side: usize) -> Result<Self, CheckpointError> {
        let error = |reason: String| CheckpointError::new("preprocessor_config.json", reason);
        let json: Json = serde_json::from_str(text).map_err(|problem| error(problem.to_string()))?;
        hugging_face(&json, side).map_err(error)
    }

    /// Reads `preprocess_cfg` of an `open_clip_config.json`.
    ///
    /// # Errors
    /// If a value has another type, or it describes steps that are not known here.
    pub fn from_open_clip(config: &Json, side: usize) -> Result<Self, CheckpointError> {
        open_clip(config, side).map_err(|reason| CheckpointError::new("open_clip_config.json", reason))
    }

    /// Reads `pretrained_cfg` of timm's `config.json`.
    ///
    /// # Errors
    /// If a value has another type, or it describes steps that are not known here.
    pub fn from_timm(config: &Json, side: usize) -> Result<Self, CheckpointError> {
        timm(config, side).map_err(|reason| CheckpointError::new("config.json", reason))
    }

    /// `preprocessor_config.json` in the layout of transformers, with what it does not say under a key
    /// of our own.
    pub fn to_json(&self) -> String {
        let resample = match self.filter {
            Filter::Nearest => 0,
            Filter::Bilinear => 2,
            Filter::Bicubic => 3,
        };
        let square = serde_json::json!({ "height": self.side, "width": self.side });
        let size = match self.fit {
            Fit::Shortest(length) => serde_json::json!({ "shortest_edge": length }),
            Fit::Stretch => square.clone(),
        };
        let mut json = serde_json::json!({
            "crop_size": square,
            "do_center_crop": true, "do_convert_rgb": true, "do_normalize": true, "do_rescale": true, "do_resize": true,
            "image_mean": self.mean, "image_std": self.std,
            "image_processor_type": "CLIPImageProcessor", "resample": resample, "rescale_factor": 1.0 / 255.0,
            "size": size,
            OURS: { "pipeline": self.pipeline.name(), "window": self.window },
        });
        let clip = Self::clip(self.side);
        if (self.slices, self.hounsfield) != (clip.slices, clip.hounsfield) {
            json[OURS]["slices"] = match self.slices {
                Slices::Central => "central".into(),
                Slices::Triplet => "triplet".into(),
                Slices::Mean(count) => count.into(),
            };
            json[OURS]["hounsfield"] = serde_json::json!(self.hounsfield);
        }
        format!("{json:#}\n")
    }
}

fn hugging_face(json: &Json, model_side: usize) -> Result<Preprocessor, String> {
    if !json.is_object() {
        return Err("it is no table of settings".to_owned());
    }
    for step in ["do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"] {
        match &json[step] {
            // `do_center_crop` may be left out where the image is stretched.
            Json::Null | Json::Bool(true) => {}
            Json::Bool(false) if matches!(step, "do_convert_rgb" | "do_center_crop") => {}
            other => return Err(format!("`{step}` is {other}; only `true` is known here")),
        }
    }
    if let Some(factor) = json["rescale_factor"].as_f64()
        && (factor * 255.0 - 1.0).abs() > 1e-6
    {
        return Err(format!("`rescale_factor` is {factor}; 1/255 is expected"));
    }
    let filter = match &json["resample"] {
        Json::Null => Filter::Bicubic,
        code => match code.as_u64() {
            Some(0) => Filter::Nearest,
            Some(2) => Filter::Bilinear,
            Some(3) => Filter::Bicubic,
            _ => return Err(format!("`resample` is {code}; 0, 2 or 3 is expected")),
        },
    };
    let fit = size(json, "size", Fit::Shortest(model_side))?;
    match (fit, &json["crop_size"]) {
        (Fit::Shortest(length), _) if length < model_side => {
            return Err(format!("`size` is {length}, less than the {model_side} that the model takes"));
        }
        (Fit::Shortest(_), _) if json["do_center_crop"] == false => {
            return Err("`do_center_crop` is false, and `size` makes no square".to_owned());
        }
        (Fit::Stretch, _) if json["size"]["height"] != model_side => {
            return Err(format!("`size` is {}; the model takes {model_side} pixels", json["size"]));
        }
        (Fit::Shortest(_), crop) if !crop.is_null() => {
            let length = if crop.is_number() { crop } else { &crop["height"] };
            if *length != model_side || crop.get("width").is_some_and(|width| *width != model_side) {
                return Err(format!("`crop_size` is {crop}; the model takes {model_side} pixels"));
            }
        }
        _ => {}
    }
    let pipeline = match &json[OURS]["pipeline"] {
        Json::Null => Pipeline::HuggingFace,
        name => {
            let known = Pipeline::NAMES.iter().find(|(known, _)| Some(*known) == name.as_str());
            known.ok_or_else(|| format!("`{OURS}.pipeline` is {name}; it is not known here"))?.1
        }
    };
    let clip = Preprocessor::clip(1);
    let slices = match &json[OURS]["slices"] {
        Json::Null => clip.slices,
        other => match (other.as_str(), other.as_u64()) {
            (Some("central"), _) => Slices::Central,
            (Some("triplet"), _) => Slices::Triplet,
            (_, Some(count)) if (1..=MOST_SLICES as u64).contains(&count) => Slices::Mean(count as usize),
            _ => {
                let reason = "`central`, `triplet` or a number of slices is expected";
                return Err(format!("`{OURS}.slices` is {other}; {reason}"));
            }
        },
    };
    Ok(Preprocessor {
        side: model_side,
        pipeline,
        fit,
        filter,
        mean: triple(json, "image_mean", CLIP_MEAN)?,
        std: deviations(json, "image_std")?,
        window: window(json, "window", clip.window)?,
        slices,
        hounsfield: window(json, "hounsfield", clip.hounsfield)?,
    })
}

/// A window of our own, the value of black first.
fn window(json: &Json, key: &str, default: [f64; 2]) -> Result<[f64; 2], String> {
    let found = &json[OURS][key];
    if found.is_null() {
        return Ok(default);
    }
    let ends = found.as_array().and_then(|ends| match ends.as_slice() {
        [low, high] => Some([low.as_f64()?, high.as_f64()?]),
        _ => None,
    });
    ends.filter(|[low, high]| low < high)
        .ok_or_else(|| format!("`{OURS}.{key}` is {found}; two growing numbers are expected"))
}

/// The filter by the name that open_clip and timm give it.
fn interpolation(json: &Json) -> Result<Filter, String> {
    match (&json["interpolation"], json["interpolation"].as_str()) {
        (Json::Null, _) | (_, Some("bicubic")) => Ok(Filter::Bicubic),
        (_, Some("bilinear")) => Ok(Filter::Bilinear),
        (_, Some("nearest")) => Ok(Filter::Nearest),
        (name, _) => {
            Err(format!("`interpolation` is {name}; `bicubic`, `bilinear` or `nearest` is expected"))
        }
    }
}

/// timm resizes so that the crop is a share of the image.
fn timm(json: &Json, model_side: usize) -> Result<Preprocessor, String> {
    let share = match &json["crop_pct"] {
        Json::Null => 0.875,
        share => share
            .as_f64()
            .filter(|share| *share > 0.01 && *share <= 1.0)
            .ok_or_else(|| format!("`crop_pct` is {share}; a share of at most 1 is expected"))?,
    };
    let length = (model_side as f64 / share).floor() as usize;
    let fit = match (&json["crop_mode"], json["crop_mode"].as_str()) {
        (Json::Null, _) | (_, Some("center")) => Fit::Shortest(length),
        (_, Some("squash")) if length == model_side => Fit::Stretch,
        (mode, _) => return Err(format!("`crop_mode` is {mode}; `center` is expected")),
    };
    let clip = Preprocessor::clip(model_side);
    Ok(Preprocessor {
        pipeline: Pipeline::Torchvision,
        fit,
        filter: interpolation(json)?,
        mean: triple(json, "mean", clip.mean)?,
        std: deviations(json, "std")?,
        ..clip
    })
}

fn open_clip(json: &Json, model_side: usize) -> Result<Preprocessor, String> {
    let fit = match &json["resize_mode"] {
        Json::Null => Fit::Shortest(model_side),
        name => match name.as_str() {
            Some("shortest") => Fit::Shortest(model_side),
            Some("squash") => Fit::Stretch,
            _ => return Err(format!("`resize_mode` is {name}; `shortest` or `squash` is expected")),
        },
    };
    Ok(Preprocessor {
        fit,
        filter: interpolation(json)?,
        mean: triple(json, "mean", CLIP_MEAN)?,
        std: deviations(json, "std")?,
        ..Preprocessor::clip(model_side)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_files_survive_a_round_trip() {
        for (_, pipeline) in Pipeline::NAMES {
            for (fit, filter) in [(Fit::Shortest(9), Filter::Bicubic), (Fit::Stretch, Filter::Bilinear)] {
                let written =
                    Preprocessor { pipeline, fit, filter, window: [5.0, 900.0], ..Preprocessor::clip(8) };
                assert_eq!(Preprocessor::from_json(&written.to_json(), 8).unwrap(), written);
                for slices in [Slices::Central, Slices::Triplet, Slices::Mean(12)] {
                    let written = Preprocessor { slices, hounsfield: [-150.0, 250.0], ..written.clone() };
                    assert_eq!(Preprocessor::from_json(&written.to_json(), 8).unwrap(), written);
                }
            }
        }
    }

    #[test]
    fn files_of_transformers_are_read_in_all_their_forms() {
        let plain = Preprocessor { pipeline: Pipeline::HuggingFace, ..Preprocessor::clip(224) };
        for text in [
            "{}",
            r#"{ "size": 224, "crop_size": 224, "resample": 3, "do_resize": true }"#,
            r#"{ "size": { "shortest_edge": 224 }, "crop_size": { "height": 224, "width": 224 } }"#,
        ] {
            assert_eq!(Preprocessor::from_json(text, 224).unwrap(), plain, "{text}");
        }
        let stretched =
            Preprocessor::from_json(r#"{ "size": { "height": 224, "width": 224 } }"#, 224).unwrap();
        assert_eq!(stretched.fit, Fit::Stretch);
        for text in [
            "[",
            r#"{ "do_resize": false }"#,
            r#"{ "size": { "height": 224, "width": 192 } }"#,
            r#"{ "size": 100 }"#,
            r#"{ "size": { "height": 192, "width": 192 } }"#,
            r#"{ "crop_size": 192 }"#,
            r#"{ "crop_size": { "height": 224, "width": 192 } }"#,
            r#"{ "do_center_crop": false }"#,
            r#"{ "resample": 1 }"#,
            r#"{ "image_std": [1, 0, 1] }"#,
            r#"{ "image_mean": [1, 2] }"#,
            r#"{ "rescale_factor": 1 }"#,
            r#"{ "pipe": { "window": [2, 1] } }"#,
            r#"{ "pipe": { "hounsfield": [1] } }"#,
            r#"{ "pipe": { "slices": 0 } }"#,
            r#"{ "pipe": { "slices": "all" } }"#,
        ] {
            assert!(Preprocessor::from_json(text, 224).is_err(), "{text}");
        }
    }

    #[test]
    fn files_of_open_clip() {
        let json =
            serde_json::json!({ "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "resize_mode": "squash" });
        let read = Preprocessor::from_open_clip(&json, 8).unwrap();
        assert_eq!((read.pipeline, read.fit, read.mean), (Pipeline::OpenClip, Fit::Stretch, [0.5; 3]));
        assert!(Preprocessor::from_open_clip(&serde_json::json!({ "resize_mode": "longest" }), 8).is_err());
        let plain = Preprocessor::from_open_clip(&serde_json::json!({}), 8).unwrap();
        assert_eq!(plain, Preprocessor::clip(8));
    }

    #[test]
    fn files_of_timm() {
        let json = serde_json::json!({
            "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
        });
        let read = Preprocessor::from_timm(&json, 224).unwrap();
        assert_eq!((read.pipeline, read.fit), (Pipeline::Torchvision, Fit::Shortest(248)));
        for bad in [
            serde_json::json!({ "crop_pct": 0 }),
            serde_json::json!({ "crop_mode": "border" }),
            serde_json::json!({ "interpolation": "lanczos" }),
        ] {
            assert!(Preprocessor::from_timm(&bad, 224).is_err(), "{bad}");
        }
    }
}
