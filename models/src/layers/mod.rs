//! Layers that several architectures share.

mod attention;
mod batch_norm;
mod block;
mod linear;
mod norm;

pub(crate) use attention::{Qkv, observed_attention, pooling_attention};
pub(crate) use batch_norm::{BatchNorm, EPSILON};
pub(crate) use block::{Block, BlockLayout, BlockShape};
pub(crate) use linear::{Linear, Projection};
pub(crate) use norm::LayerNorm;
