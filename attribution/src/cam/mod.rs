//! The class activation mapping family: activations of one layer, weighted by what they do to the score.
//!
//! Zhou et al. 2016 (CAM), Selvaraju et al. 2017 (Grad-CAM), Chattopadhay et al. 2018 (Grad-CAM++), Jiang
//! et al. 2021 (LayerCAM), Wang et al. 2020 (Score-CAM), Ramaswamy et al. 2020 (Ablation-CAM), with the
//! conventions of pytorch-grad-cam where papers leave them open.

mod layout;
mod map;
#[cfg(test)]
mod testing;
mod weights;

pub use map::{Cam, CamParts, displayed};
pub use weights::{Ablated, CamWeights};
