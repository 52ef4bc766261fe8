//! BERT (Devlin et al. 2019) as a text tower: PubMedBERT, CXR-BERT, and BERT by itself.

mod config;
mod encoder;
mod model;
mod tower;

pub use config::BertConfig;
pub use encoder::Bert;
pub use model::BertModel;
pub use tower::{BertPooling, BertTower};
pub(crate) use tower::{BertProjection, Padding};
