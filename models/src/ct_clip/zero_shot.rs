//! Zero-shot detection of pathologies: each is one question with two answers.

use candle_core::{Result, Tensor, bail};

use crate::ops::composed::softmax;

/// The findings of CT-RATE, in the order of its labels.
pub const PATHOLOGIES: [&str; 18] = [
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
];

/// The prompts of a finding: that it is there, and that it is not.
pub fn prompts(pathology: &str) -> [String; 2] {
    [format!("{pathology} is present."), format!("{pathology} is not present.")]
}

/// The probability that a finding is there, `[volumes]`, from the logits of both prompts
/// `[volumes, 2]`.
///
/// # Errors
/// If there are not two logits.
pub fn pathology_probability(logits: &Tensor) -> Result<Tensor> {
    let (_, answers) = logits.dims2()?;
    if answers != 2 {
        bail!("a finding has two prompts, not {answers}");
    }
    softmax(logits)?.narrow(1, 0, 1)?.squeeze(1)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_first_prompt_is_the_finding() {
        assert_eq!(prompts(PATHOLOGIES[2]), ["Cardiomegaly is present.", "Cardiomegaly is not present."]);
        let logits = Tensor::new(&[[3f32.ln(), 0.0], [0.0, 0.0]], &Device::Cpu).unwrap();
        let probabilities = pathology_probability(&logits).unwrap().to_vec1::<f32>().unwrap();
        assert!((probabilities[0] - 0.75).abs() < 1e-6 && (probabilities[1] - 0.5).abs() < 1e-6);
    }
}
