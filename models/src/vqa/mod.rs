//! Models that answer questions about medical images by classification over the answers of a training set:
//! MEVF (Nguyen et al. 2019) with bilinear or stacked attention, QCR (Zhan et al. 2020), and a cross-modal
//! transformer over the tokens of two towers. In each, any image encoder may stand beside or in the place of the
//! published small networks: it gives [`Images::features`].
//!
//! A model is made of a configuration and of tensors by the names of the authors' code, or begins at random
//! ([`Mevf::random`], ...). All of them are an [`AnswerModel`]: a [`Batch`] becomes logits, or a loss whose
//! gradients reach the parameters, the features of the image, its pixels and the vectors of the words.

mod answer_model;
mod autoencoder;
mod batch;
mod bilinear;
mod classifier;
mod conditioned;
mod cross_modal;
mod image;
mod images;
mod joint_attention;
mod layers;
mod loss;
mod meta_cnn;
mod meta_learning;
mod mevf;
mod mode;
mod on_device;
pub mod published;
mod qcr;
mod question;
mod recurrent;
mod stacked_attention;
#[cfg(test)]
mod tests;
mod weight_norm;
mod words;

pub use answer_model::AnswerModel;
pub use autoencoder::{Autoencoder, AutoencoderConfig, with_noise};
pub use batch::{AutoencoderInput, Batch, Images, QuestionType, Questions, TextStates, Words};
pub use bilinear::{Bilinear, BilinearSizes, Fused};
pub use classifier::AnswerClassifier;
pub use conditioned::{QuestionAttention, QuestionConditioning, QuestionTypeClassifier, QuestionTypeConfig};
pub use cross_modal::{CrossModal, CrossModalConfig};
pub use image::ImageConfig;
pub use joint_attention::JointAttention;
pub use loss::{AnswerLoss, soft_cross_entropy_mean, soft_cross_entropy_sum};
pub use meta_cnn::{MetaCnn, MetaCnnConfig};
pub use meta_learning::{Adapted, InnerSteps, MetaHead, MetaNetwork, MetaTask, Order, TaskImages, draw_task};
pub use mevf::{Fusion, Mevf, MevfConfig};
pub use mode::Mode;
pub use on_device::OnDevice;
pub use qcr::{BranchAnswers, Qcr, QcrConfig};
pub use question::{QuestionConfig, QuestionEncoder, QuestionStates, Reader};
pub use recurrent::{Cell, Recurrent};
pub use stacked_attention::{StackedAttention, StackedSizes};
pub use weight_norm::WeightNormLinear;
pub use words::{SecondTable, WordTables, WordsConfig};
