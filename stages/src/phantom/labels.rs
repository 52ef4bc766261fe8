//! What labels say of a row, and label noise.

use super::factors::{Knobs, Subject, subjects};
use super::general::{COLOURS, SHAPES, Scene};
use super::params::{Domain, Params, Task};
use super::places::Place;
use super::sites::{CHEST, FINDINGS, MODALITIES};
use super::stream::{Stream, key};
use crate::ingest::ABNORMALITIES;

/// Steps of severity: share of the image that is lesion, times its contrast. Fixed, so that a grade never
/// depends on the other rows; a quarter of the study's lesions lies between each two.
const SEVERITY: [f64; 3] = [0.0135, 0.030, 0.075];

/// The names of the classes, or of the bits.
pub(super) fn names(params: &Params) -> Vec<&'static str> {
    match (params.domain, params.task) {
        (Domain::General, Task::Colour) => COLOURS.to_vec(),
        (Domain::General, Task::Count) => vec!["one", "two"],
        (Domain::General, _) => SHAPES.to_vec(),
        (Domain::Medical, Task::FindingChest) => CHEST.to_vec(),
        (Domain::Medical, Task::Abnormal) => vec!["normal", "abnormal"],
        (Domain::Medical, Task::Findings) => {
            params.findings().into_iter().map(|finding| FINDINGS[finding]).collect()
        }
        (Domain::Medical, Task::Severity) => vec!["none", "slight", "moderate", "marked", "severe"],
        (Domain::Medical, Task::Modality) => MODALITIES.to_vec(),
        (Domain::Medical, _) => FINDINGS.to_vec(),
        (Domain::Volume, _) => ABNORMALITIES.to_vec(),
    }
}

/// Whether a label is a list of bits.
pub(super) fn is_multi_label(params: &Params) -> bool {
    params.task == Task::Findings
}

/// The kind of task in MedMNIST's words.
pub(super) fn task_name(params: &Params) -> &'static str {
    match params.task {
        Task::Findings => "multi-label, binary-class",
        Task::Severity => "ordinal-regression",
        _ if names(params).len() == 2 => "binary-class",
        _ => "multi-class",
    }
}

/// The class of a scene.
pub(super) fn of_scene(params: &Params, scene: &Scene) -> Vec<i64> {
    let class = match params.task {
        Task::Colour => scene.main_object().colour,
        Task::Count => scene.objects.len() - 1,
        _ => scene.main_object().shape,
    };
    vec![class as i64]
}

/// The class of a medical image, or its bits. `severity` is the share of the image that is lesion, times
/// its contrast.
pub(super) fn of_subject(params: &Params, subject: &Subject, severity: f64) -> Vec<i64> {
    let class = match params.task {
        Task::Findings => {
            let bit = |finding| i64::from(subject.has(finding));
            return params.findings().into_iter().map(bit).collect();
        }
        Task::Severity if subject.is_normal() => 0,
        Task::Severity => 1 + SEVERITY.iter().filter(|step| severity >= **step).count(),
        Task::Abnormal => usize::from(!subject.is_normal()),
        Task::Modality => modality(subject),
        // The chest findings are the first five of all.
        _ => subject.finding(),
    };
    vec![class as i64]
}

fn modality(subject: &Subject) -> usize {
    MODALITIES.iter().position(|name| *name == subject.site().modality).unwrap_or_default()
}

/// With label noise: a class is replaced by one of the others, a bit by its contrary.
pub(super) fn noisy(params: &Params, truth: &[i64], place: &Place) -> Vec<i64> {
    let numbers = [place.patient, place.image];
    let mut stream = Stream::new(key(params.seed as u64, params.domain.name(), "label", &numbers));
    let noise = if place.is_training() { params.label_noise } else { params.label_noise_test };
    if is_multi_label(params) {
        return truth.iter().map(|bit| if stream.chance(noise) { 1 - bit } else { *bit }).collect();
    }
    let classes = names(params).len() as i64;
    let flipped = stream.chance(noise);
    let other = stream.below(classes as u64 - 1) as i64;
    truth.iter().map(|class| if flipped { (class + 1 + other) % classes } else { *class }).collect()
}

/// The probability of each class under the generator, before label noise; of each bit, where there are
/// several. Nothing where it has no closed form.
pub(super) fn probabilities(params: &Params, knobs: &Knobs) -> Option<Vec<f64>> {
    let classes = names(params).len();
    if params.domain == Domain::General {
        return Some(vec![1.0 / classes as f64; classes]);
    }
    let mut sums = vec![0.0; classes];
    for (subject, probability) in subjects(knobs) {
        match params.task {
            Task::Severity => return None,
            Task::Findings => {
                for (sum, finding) in sums.iter_mut().zip(params.findings()) {
                    *sum += if subject.has(finding) { probability } else { 0.0 };
                }
            }
            Task::Abnormal => sums[usize::from(!subject.is_normal())] += probability,
            Task::Modality => sums[modality(&subject)] += probability,
            _ => sums[subject.finding()] += probability,
        }
    }
    Some(sums)
}
