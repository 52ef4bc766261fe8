//! From encoded images and volumes to the values that a model sees, to the bit as the reference
//! implementations do it.

mod config;
mod formats;
mod grey;
mod picture;
mod pipeline;
mod resize;
mod slices;
pub mod volume;

pub use grey::grey_square;
pub use picture::{DecodeError, Picture, Samples};
pub use pipeline::{CLIP_MEAN, CLIP_STD, Fit, Pipeline, Preprocessor, ResizeError};
pub use resize::Filter;
pub(crate) use resize::real_weights;
pub use slices::{MOST_SLICES, Slices};
