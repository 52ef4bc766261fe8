//! Residual networks (He et al. 2016) as image towers: CLIP's modified one with attention pooling, and
//! those of torchvision and of MedMNIST's experiments.

mod attention_pool;
mod conv_norm;
mod form;
mod modified;
#[cfg(test)]
mod tests;
mod torchvision;
mod trunk;

pub use form::{BlockForm, Form, PlainResNetConfig, StemForm};
pub use modified::ModifiedResNet;
pub use torchvision::ResNet;
pub use trunk::ResNetConfig;
