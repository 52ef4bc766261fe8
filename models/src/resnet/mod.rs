//! Residual networks (He et al. 2016) as image towers: CLIP's modified one with attention pooling, and
//! torchvision's.

mod attention_pool;
mod conv_norm;
mod modified;
#[cfg(test)]
mod tests;
mod torchvision;
mod trunk;

pub use modified::ModifiedResNet;
pub use torchvision::ResNet;
pub use trunk::ResNetConfig;
