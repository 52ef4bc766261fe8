//! Attribution methods and their metrics over any model of `pipe-models`: which parts of an input made
//! the model say what it says?
//!
//! Usable without the engine. A [`Score`] says what is explained (one number per sample), an
//! [`Evaluator`] computes it in batches of bounded size and counts the passes, and a [`Method`]
//! distributes it over the values of the input:
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use pipe_attribution::{Evaluator, Inputs, IntegratedGradients, Method, Score};
//! use pipe_models::MaybeProbe;
//!
//! /// The sum of squares: its attributions are the squares themselves.
//! struct Energy;
//! impl Score for Energy {
//!     fn score(&self, x: &Tensor, _: &[usize], _: MaybeProbe<'_>) -> candle_core::Result<Tensor> {
//!         x.sqr()?.flatten_from(1)?.sum(1)
//!     }
//! }
//!
//! let images = Tensor::new(&[[[1f32, 2.0], [3.0, 4.0]]], &Device::Cpu)?.unsqueeze(0)?;
//! let evaluator = Evaluator::new(&Energy, 16);
//! let attribution = IntegratedGradients::default().attribute(&evaluator, &Inputs::new(&images)?)?;
//! let squares: Vec<f32> = attribution.values.flatten_all()?.to_vec1()?;
//! assert!((squares[3] - 16.0).abs() < 1e-4);
//! assert_eq!(evaluator.passes().backward, 50);
//! # Ok::<(), pipe_attribution::AttributionError>(())
//! ```

mod attention;
mod attention_pool;
mod backward_rule;
mod baseline;
mod blur;
mod cam;
mod deep_lift;
mod drawing;
mod error;
mod evaluator;
mod excitation;
mod factorised;
mod features;
mod full_gradient;
mod gradient;
mod gradient_shap;
mod grid;
mod guided;
mod input_x_gradient;
mod integrated_gradients;
mod iterative_saliency;
mod joint;
mod mask_optimisation;
mod masker;
mod method;
pub mod metrics;
mod noise;
mod occlusion;
mod occlusion_density;
#[cfg(test)]
mod properties;
mod quadrature;
mod real_time_saliency;
mod refined;
mod resize;
mod rise;
mod score;
mod similarity;
#[cfg(test)]
mod testing;
mod words;

pub use attention::{
    AttentionMap, AttentionRelevance, AttentionRule, Relevance, attention_maps, cross_attention_update,
    gradient_weighted, self_attention_update, text_relevance, without_residual,
};
pub use attention_pool::PoolRelevance;
pub use baseline::{Baseline, BaselineRows};
pub use blur::{Border, gaussian_blur, gaussian_taps, smoothed};
pub use cam::{Ablated, Cam, CamParts, CamWeights, displayed};
pub use deep_lift::{DeepLift, MaximumRule};
pub use drawing::{OUTLIERS, Sign, drawing_scale, normalised};
pub use error::{AttributionError, Result};
pub use evaluator::{Evaluator, Observer, Passes};
pub use excitation::{ExcitationBackprop, ExcitationStart};
pub use factorised::{FactorisedBlocks, FactorisedRelevance};
pub use features::{Coalitions, FeatureAblation, Features, KernelShap, ShapleyValues};
pub use full_gradient::{BiasTerms, FullGradient, FullGradientScale, FullGradientTerms};
pub use gradient::Gradient;
pub use gradient_shap::{GradientShap, Places};
pub use grid::{
    AGGREGATE_BINS, AggregatedMaps, CutClassifier, GRID_LAYER, GridScore, GridSetting, GridTarget,
    aggregate_scale, aggregated, grid_evidence, localisation,
};
pub use guided::{GuidedGradient, Rule};
pub use input_x_gradient::InputXGradient;
pub use integrated_gradients::IntegratedGradients;
pub use iterative_saliency::IterativeSaliency;
pub use joint::Joint;
pub use mask_optimisation::{MaskStart, MeaningfulPerturbation, OptimisedMasks};
pub use masker::{Masker, MaskerLayer, MaskerProbe, MaskerSizes, TrainedSaliency};
pub use method::{Absolute, Attribution, Blurred, Inputs, Method, relative_gap};
pub use noise::{Average, Deviation, Noise, Smoothed};
pub use occlusion::Occlusion;
pub use occlusion_density::OcclusionDensity;
pub use quadrature::{Nodes, Quadrature};
pub use real_time_saliency::{
    Asked, MaskerPrices, Wanted, area_loss, enlarged, margin_loss, smoothness_loss, without,
};
pub use refined::Refined;
pub use resize::{Interpolation, resize};
pub use rise::{Rise, RiseMask, RiseMasks, RiseScale};
pub use score::Score;
pub use similarity::TextSimilarity;
pub use words::{Word, absent_ids, token_values, word_values, words};
