//! Relevance along the attention of image towers.

use pipe_attribution::{
    AttentionRelevance, AttentionRule, Attribution, Evaluator, FactorisedRelevance, Inputs, Passes,
};
use pipe_models::ImageTower;
use pipe_models::model::AttentionScope;

use super::explanation::Applicable;

/// Relevance along a tower's attention, all of it or that of its last layers, or why it has none.
pub(super) fn relevance(tower: &dyn ImageTower, rule: AttentionRule, last: Option<i64>) -> Applicable {
    let (mut hooks, geometry) = (tower.attention_hooks(), tower.geometry());
    if hooks.iter().all(|hook| hook.scope == AttentionScope::Tokens) {
        hooks.drain(..first_layer(hooks.len(), last));
    } else if last.is_some() {
        return Err("`last_layers` counts layers whose tokens all see each other, which this model has not"
            .to_owned());
    }
    let names = |scope: AttentionScope| -> Vec<String> {
        hooks.iter().filter(|hook| hook.scope == scope).map(|hook| hook.name.clone()).collect()
    };
    let [tokens, spatial, temporal] =
        [AttentionScope::Tokens, AttentionScope::Step, AttentionScope::Cell].map(names);
    let [rows, columns] = geometry.grid();
    if !hooks.is_empty() && tokens.len() == hooks.len() {
        return Ok(Box::new(AttentionRelevance {
            rule,
            layers: tokens,
            pooled: 0,
            prefix: geometry.prefix_tokens,
            grid: vec![rows, columns],
        }));
    }
    if !spatial.is_empty() && spatial.len() + temporal.len() == hooks.len() {
        let method = FactorisedRelevance { rule, spatial, temporal, grid: [geometry.steps(), rows, columns] };
        return Ok(match geometry.depth {
            Some(_) => Box::new(method),
            // A flat image is a volume of one step.
            None => Box::new(Flat(method)),
        });
    }
    Err("the tokens of the model do not all attend each other in every layer".to_owned())
}

/// The only step of a volume as an image.
struct Flat(FactorisedRelevance);

impl pipe_attribution::Method for Flat {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> pipe_attribution::Result<Attribution> {
        let attribution = self.0.attribute(evaluator, inputs)?;
        Ok(Attribution { values: attribution.values.squeeze(2)?, ..attribution })
    }

    fn cost(&self, row_shape: &[usize]) -> pipe_attribution::Result<Passes> {
        self.0.cost(row_shape)
    }
}

/// Of `layers` the first one that is taken where only the `last` are.
pub(crate) fn first_layer(layers: usize, last: Option<i64>) -> usize {
    last.map_or(0, |last| layers.saturating_sub(last.max(1) as usize))
}
