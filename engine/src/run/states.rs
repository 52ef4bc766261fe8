//! The state of every node, and which of them may be started, kept so that no step looks at all nodes.

use std::collections::BTreeSet;
use std::ops::{Index, IndexMut};

use super::State;

/// The states by node.
#[derive(Debug)]
pub(super) struct States {
    all: Vec<State>,
    /// Nodes that are ready, now or at some time.
    open: BTreeSet<usize>,
    /// Nodes whose state may have changed since the set was made.
    touched: Vec<usize>,
}

impl States {
    pub(super) fn new(all: Vec<State>) -> Self {
        let touched = (0..all.len()).collect();
        Self { all, open: BTreeSet::new(), touched }
    }

    fn settle(&mut self) {
        for index in self.touched.drain(..) {
            let state = self.all[index];
            if matches!(state, State::Ready | State::Elsewhere(_) | State::Delayed(_) | State::Parts) {
                self.open.insert(index);
            } else {
                self.open.remove(&index);
            }
        }
    }

    /// The nodes that are ready, now or at some time, with their states, in node order.
    pub(super) fn open(&mut self) -> impl Iterator<Item = (usize, State)> {
        self.settle();
        self.open.iter().map(|index| (*index, self.all[*index]))
    }
}

impl Index<usize> for States {
    type Output = State;

    fn index(&self, node: usize) -> &State {
        &self.all[node]
    }
}

impl IndexMut<usize> for States {
    fn index_mut(&mut self, node: usize) -> &mut State {
        self.touched.push(node);
        &mut self.all[node]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn sets_follow_the_states() {
        let mut states = States::new(vec![State::Ready, State::Waiting, State::Done]);
        let open = |states: &mut States| states.open().map(|(index, _)| index).collect::<Vec<_>>();
        assert_eq!(open(&mut states), [0]);
        states[0] = State::Running;
        states[1] = State::Delayed(Instant::now());
        assert_eq!(open(&mut states), [1]);
        states[0] = State::Done;
        states[1] = State::Ready;
        states[1] = State::Blocked;
        states[2] = State::Parts;
        assert_eq!(open(&mut states), [2]);
    }
}
