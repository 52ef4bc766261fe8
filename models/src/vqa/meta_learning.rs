//! Model-agnostic meta-learning (Finn, Abbeel and Levine 2017) of the small convolutional network: weights from
//! which a few steps learn a new task.
//!
//! The network always takes the statistics of the batch. Of second order, the gradient goes through the inner
//! steps by products with Hessians, which are differences of gradients: those want double precision.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor, Var, bail};

use super::images::channels_last;
use super::meta_cnn::{HALVE, KERNEL, spatial_mean};
use crate::Activation;
use crate::initial::{Initial, Start};
use crate::layers::EPSILON;
use crate::ops::{activate, batch_norm_of_batch, conv2d, linear};
use crate::random::Key;
use crate::train::loss::cross_entropy;

/// A network that is meta-learned: blocks of a convolution (3 x 3, stride 2), a rectifier and a batch norm, and a
/// linear layer over the classes of a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MetaNetwork {
    /// Channels of every block.
    pub filters: usize,
    /// Blocks.
    pub blocks: usize,
    /// Rows and columns of an image.
    pub image: usize,
    /// Classes of a task.
    pub ways: usize,
    /// What the linear layer sees of the last map.
    pub head: MetaHead,
}

/// What a linear layer sees of a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MetaHead {
    /// Every value, channel by channel.
    Flattened,
    /// The mean of each channel, as the models do that take the network over.
    Mean,
}

/// Images of a few classes, to learn from and to be judged by.
#[derive(Clone, Debug)]
pub struct MetaTask {
    /// `[images, 1, rows, columns]`.
    pub support: Tensor,
    /// The class of each, `[images]` (u32).
    pub support_classes: Tensor,
    /// `[images, 1, rows, columns]`.
    pub query: Tensor,
    /// The class of each, `[images]` (u32).
    pub query_classes: Tensor,
}

/// The steps of gradient descent within a task.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct InnerSteps {
    /// The learning rate.
    pub rate: f64,
    /// How many.
    pub steps: usize,
}

impl Default for InnerSteps {
    fn default() -> Self {
        Self { rate: 0.05, steps: 5 }
    }
}

/// Whether the gradient goes through the inner steps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// No: the gradient at the adapted weights is taken for that at the first ones.
    First,
    /// Yes. The weights have to be of double precision.
    Second,
}

/// What a task says of weights.
#[derive(Clone, Debug)]
pub struct Adapted {
    /// The loss on the support images before each inner step.
    pub support_losses: Vec<f64>,
    /// The weights before each inner step and after the last.
    pub path: Vec<Vec<Tensor>>,
    /// The logits of the query images with the last weights, `[images, ways]`.
    pub query_logits: Tensor,
    /// Their loss.
    pub query_loss: f64,
    /// The gradient of that loss at the first weights.
    pub gradient: Vec<Tensor>,
}

impl MetaNetwork {
    /// The names and shapes of the weights: per block the convolution and its bias, factor and offset of the batch
    /// norm, then the linear layer and its bias.
    pub fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let filters = self.filters;
        let mut shapes = Vec::with_capacity(4 * self.blocks + 2);
        let mut side = self.image;
        for block in 1..=self.blocks {
            let channels = if block == 1 { 1 } else { filters };
            shapes.push((format!("conv{block}.weight"), vec![filters, channels, KERNEL, KERNEL]));
            shapes.push((format!("conv{block}.bias"), vec![filters]));
            shapes.push((format!("conv{block}_bn.weight"), vec![filters]));
            shapes.push((format!("conv{block}_bn.bias"), vec![filters]));
            side = side.div_ceil(2);
        }
        let width = match self.head {
            MetaHead::Flattened => filters * side * side,
            MetaHead::Mean => filters,
        };
        shapes.push(("linear.weight".to_owned(), vec![self.ways, width]));
        shapes.push(("linear.bias".to_owned(), vec![self.ways]));
        shapes
    }

    /// Weights to begin with, in the order of [`Self::shapes`]: a function of the seed.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn random(&self, seed: u64) -> Result<Vec<Tensor>> {
        let initial = Initial { seed, device: candle_core::Device::Cpu };
        let mut inputs = 1;
        self.shapes()
            .into_iter()
            .map(|(name, shape)| {
                let start = match name.contains("_bn.") {
                    true => Start::Constant(if name.ends_with("weight") { 1.0 } else { 0.0 }),
                    false => {
                        if shape.len() > 1 {
                            inputs = shape[1..].iter().product();
                        }
                        Start::of_inputs(inputs)
                    }
                };
                initial.start(&name, &shape, start)
            })
            .collect()
    }

    /// The state dict of the network `name` of a model ([`super::MetaCnn`]) that takes learned weights over: all but
    /// the linear layer, whose classes are those of no other task. Names begin without a dot if `name` is empty.
    pub fn state_dict(&self, weights: &[Tensor], name: &str) -> BTreeMap<String, Tensor> {
        let dot = if name.is_empty() { "" } else { "." };
        self.shapes()
            .into_iter()
            .zip(weights)
            .filter(|((own, _), _)| !own.starts_with("linear."))
            .map(|((own, _), weight)| (format!("{name}{dot}{own}"), weight.clone()))
            .collect()
    }

    /// Logits of `images` `[images, 1, rows, columns]`, `[images, ways]`, with `weights` in the order of
    /// [`Self::shapes`].
    ///
    /// # Errors
    /// If the weights do not fit.
    pub fn forward(&self, weights: &[Tensor], images: &Tensor) -> Result<Tensor> {
        let (blocks, head) = weights.split_at(weights.len().min(4 * self.blocks));
        let (blocks, rest) = blocks.as_chunks::<4>();
        let ([weight, bias], []) = (head, rest) else {
            bail!("{} weights do not make a network of {} blocks", weights.len(), self.blocks);
        };
        let mut x = channels_last(images)?;
        for [kernel, bias, gamma, beta] in blocks {
            let convolved = conv2d(&x, &channels_last(kernel)?, Some(bias), HALVE)?;
            (x, _, _) = batch_norm_of_batch(&activate(&convolved, Activation::Relu)?, gamma, beta, EPSILON)?;
        }
        let features = match self.head {
            MetaHead::Flattened => x.permute((0, 3, 1, 2))?.contiguous()?.flatten_from(1)?,
            MetaHead::Mean => spatial_mean(&x)?,
        };
        linear(&features, weight, Some(bias))
    }

    /// The loss of images of these classes, its gradient and the logits.
    fn gradient(
        &self,
        weights: &[Tensor],
        images: &Tensor,
        classes: &Tensor,
    ) -> Result<(f64, Vec<Tensor>, Tensor)> {
        let variables = weights.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
        let tensors: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
        let logits = self.forward(&tensors, images)?;
        let loss = cross_entropy(&logits, classes)?;
        let gradients = loss.backward()?;
        let gradient = variables
            .iter()
            .map(|variable| match gradients.get(variable) {
                Some(gradient) => Ok(gradient.clone()),
                None => variable.zeros_like(),
            })
            .collect::<Result<_>>()?;
        Ok((loss.to_dtype(DType::F64)?.to_scalar()?, gradient, logits.detach()))
    }

    /// Learns a task from `weights` and says how they should change for that to go better.
    ///
    /// # Errors
    /// If the weights do not fit, or are not of double precision where the second order is asked for.
    pub fn adapt(
        &self,
        weights: &[Tensor],
        task: &MetaTask,
        inner: InnerSteps,
        order: Order,
    ) -> Result<Adapted> {
        if order == Order::Second && weights.iter().any(|weight| weight.dtype() != DType::F64) {
            bail!("the second order is a difference of gradients, which wants double precision");
        }
        let mut path = vec![weights.to_vec()];
        let mut support_losses = Vec::with_capacity(inner.steps);
        for step in 0..inner.steps {
            let (loss, gradient, _) = self.gradient(&path[step], &task.support, &task.support_classes)?;
            support_losses.push(loss);
            path.push(moved(&path[step], &gradient, -inner.rate)?);
        }
        let (query_loss, mut gradient, query_logits) =
            self.gradient(&path[inner.steps], &task.query, &task.query_classes)?;
        if order == Order::Second {
            // Each step took weights w to w - rate grad(w): its transposed Jacobian is 1 - rate H(w).
            for step in (0..inner.steps).rev() {
                let product = self.hessian_product(&path[step], &gradient, task)?;
                gradient = moved(&gradient, &product, -inner.rate)?;
            }
        }
        Ok(Adapted { support_losses, path, query_logits, query_loss, gradient })
    }

    /// The Hessian of the support loss at `weights`, times `direction`.
    fn hessian_product(
        &self,
        weights: &[Tensor],
        direction: &[Tensor],
        task: &MetaTask,
    ) -> Result<Vec<Tensor>> {
        let mut square = 0.0;
        for part in direction {
            square += part.sqr()?.sum_all()?.to_scalar::<f64>()?;
        }
        let length = square.sqrt();
        if length == 0.0 {
            return direction.iter().map(Tensor::zeros_like).collect();
        }
        // The steps are short: a rectifier that changes between them would be an error.
        let step = 1e-6 / length;
        let at = |step: f64| {
            let weights = moved(weights, direction, step)?;
            self.gradient(&weights, &task.support, &task.support_classes).map(|(_, gradient, _)| gradient)
        };
        let (ahead, behind) = (at(step)?, at(-step)?);
        ahead.iter().zip(&behind).map(|(ahead, behind)| (ahead - behind)? / (2.0 * step)).collect()
    }
}

/// Which images make a task, by their place among all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TaskImages {
    /// Images to learn from with their class in the task.
    pub support: Vec<(usize, u32)>,
    /// Images to be judged by.
    pub query: Vec<(usize, u32)>,
}

/// Draws a task of `ways` classes with `shots` images each to learn from and as many others to be judged by:
/// `classes` holds the images of each class. A function of the key; `None` if too few classes have that many images.
pub fn draw_task(classes: &[Vec<usize>], ways: usize, shots: usize, key: Key) -> Option<TaskImages> {
    let mut task = TaskImages { support: Vec::new(), query: Vec::new() };
    let large: Vec<&Vec<usize>> = classes.iter().filter(|images| images.len() >= 2 * shots).collect();
    if large.len() < ways {
        return None;
    }
    for (class, place) in key.permutation(large.len()).into_iter().take(ways).enumerate() {
        let images = large[place];
        let order = key.sub(place as u64 + 1).permutation(images.len());
        let mut drawn = order.into_iter().map(|image| (images[image], class as u32));
        task.support.extend(drawn.by_ref().take(shots));
        task.query.extend(drawn.take(shots));
    }
    Some(task)
}

/// a + step * b, tensor by tensor.
fn moved(a: &[Tensor], b: &[Tensor], step: f64) -> Result<Vec<Tensor>> {
    a.iter().zip(b).map(|(a, b)| a + (b * step)?).collect()
}
