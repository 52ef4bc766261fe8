//! From the values of a pickle to tensors by name.

use std::collections::HashSet;

use super::pickle::{Id, Pickle, Value};
use super::stored::StoredTensor;
use super::torch::Listing;

/// Training programs put the weights under one of these names, beside optimiser and epoch.
const WRAPPERS: [&str; 4] = ["state_dict", "model_state_dict", "model", "net"];
/// What a distributed wrapper puts before every name.
const DISTRIBUTED: &str = "module.";
/// Modules are nested this deep at most, and a file holds this many values that could be tensors.
const DEPTH_LIMIT: usize = 64;
const VISIT_LIMIT: usize = 1 << 20;
/// Bytes of a tensor's name.
const NAME_LIMIT: usize = 1 << 10;

/// Collects the tensors under the root: of a dictionary by its keys, of a TorchScript module by its
/// attributes, nested names joined by dots; of a dictionary that a training program wrote, those of
/// its weights. A root that is itself a tensor has the empty name. `tensor` says what a value stands
/// for.
pub(super) fn collect(
    pickle: &Pickle<'_>,
    tensor: &dyn Fn(Id) -> Result<Option<StoredTensor>, String>,
) -> Result<Listing, String> {
    let mut walk = Walk { pickle, tensor, tensors: Vec::new(), visited: 0 };
    walk.visit(weights(pickle), &mut String::new(), 0)?;
    let mut tensors = walk.tensors;
    if tensors.iter().all(|(name, _)| name.starts_with(DISTRIBUTED)) {
        for (name, _) in &mut tensors {
            name.drain(..DISTRIBUTED.len());
        }
    }
    let mut names = HashSet::new();
    match tensors.iter().find(|(name, _)| !names.insert(name.as_str())) {
        Some((name, _)) => Err(format!("it has two tensors `{name}`")),
        None if tensors.is_empty() => Err("it holds no tensor".to_owned()),
        None => Ok(tensors),
    }
}

/// The value that holds the weights.
fn weights(pickle: &Pickle<'_>) -> Id {
    let Value::Dict(entries) = pickle.value(pickle.root) else { return pickle.root };
    WRAPPERS
        .iter()
        .find_map(|wrapper| {
            let (_, value) = entries.iter().find(|(key, _)| pickle.text(*key) == Some(wrapper))?;
            matches!(pickle.value(*value), Value::Dict(_)).then_some(*value)
        })
        .unwrap_or(pickle.root)
}

struct Walk<'w, 'a> {
    pickle: &'w Pickle<'a>,
    tensor: &'w dyn Fn(Id) -> Result<Option<StoredTensor>, String>,
    tensors: Listing,
    visited: usize,
}

impl Walk<'_, '_> {
    fn visit(&mut self, id: Id, name: &mut String, depth: usize) -> Result<(), String> {
        self.visited += 1;
        // A pickle may refer to itself, and to one value many times.
        if depth > DEPTH_LIMIT || self.visited > VISIT_LIMIT {
            return Err(format!("its values are nested too deep or repeated too often at `{name}`"));
        }
        match self.pickle.value(id) {
            Value::Dict(entries) => self.visit_entries(entries, name, depth),
            Value::List(items) | Value::Tuple(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.visit_part(*item, &index.to_string(), name, depth)?;
                }
                Ok(())
            }
            Value::Call { function, state, .. } => {
                let module = self.pickle.global(*function).map_or("", |(module, _)| module);
                if module == "__torch__" || module.starts_with("__torch__.") {
                    return match state.map(|state| self.pickle.value(state)) {
                        Some(Value::Dict(attributes)) => self.visit_entries(attributes, name, depth),
                        _ => Ok(()),
                    };
                }
                if let Some(tensor) =
                    (self.tensor)(id).map_err(|reason| format!("tensor `{name}`: {reason}"))?
                {
                    self.tensors.push((name.clone(), tensor));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn visit_entries(&mut self, entries: &[(Id, Id)], name: &mut String, depth: usize) -> Result<(), String> {
        for (key, value) in entries {
            match self.pickle.value(*key) {
                Value::Text(key) => self.visit_part(*value, key, name, depth)?,
                Value::Int(key) => self.visit_part(*value, &key.to_string(), name, depth)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn visit_part(&mut self, id: Id, part: &str, name: &mut String, depth: usize) -> Result<(), String> {
        let length = name.len();
        if length + part.len() > NAME_LIMIT {
            return Err(format!("a tensor has a name of more than {NAME_LIMIT} bytes"));
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(part);
        self.visit(id, name, depth + 1)?;
        name.truncate(length);
        Ok(())
    }
}
