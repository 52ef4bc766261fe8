//! The state of every node, and which of them may be started, kept so that no step looks at all nodes.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::ops::Bound::{Excluded, Unbounded};
use std::ops::{Index, IndexMut};

use super::State;

/// A node among those that may be started: the most urgent first, then in the order of the file.
pub(super) type Place = (Reverse<u64>, usize);

/// The states by node.
#[derive(Debug)]
pub(super) struct States {
    all: Vec<State>,
    places: Vec<Place>,
    /// Nodes that are ready, now or at some time.
    open: BTreeSet<Place>,
    /// Nodes whose state may have changed since the set was made.
    touched: Vec<usize>,
}

impl States {
    /// The states of nodes whose longest ways to an end take so many seconds.
    pub(super) fn new(all: Vec<State>, urgency: &[f64]) -> Self {
        let touched = (0..all.len()).collect();
        // Milliseconds, so that urgencies have a total order.
        let place = |(index, seconds): (usize, &f64)| (Reverse((seconds * 1e3) as u64), index);
        let places = urgency.iter().enumerate().map(place).collect();
        Self { all, places, open: BTreeSet::new(), touched }
    }

    fn settle(&mut self) {
        for index in self.touched.drain(..) {
            let state = self.all[index];
            if matches!(state, State::Ready | State::Elsewhere(_) | State::Delayed(_) | State::Parts) {
                self.open.insert(self.places[index]);
            } else {
                self.open.remove(&self.places[index]);
            }
        }
    }

    /// The first node that is ready, now or at some time, and comes after `last`.
    pub(super) fn next_open(&mut self, last: Option<Place>) -> Option<Place> {
        self.settle();
        let from = last.map_or(Unbounded, Excluded);
        self.open.range((from, Unbounded)).next().copied()
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

    fn open(states: &mut States) -> Vec<usize> {
        let mut found = Vec::new();
        let mut last = None;
        while let Some(place) = states.next_open(last) {
            found.push(place.1);
            last = Some(place);
        }
        found
    }

    #[test]
    fn sets_follow_the_states() {
        let mut states = States::new(vec![State::Ready, State::Waiting, State::Done], &[1.0, 1.0, 1.0]);
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

    #[test]
    fn the_most_urgent_comes_first_then_the_first_in_the_file() {
        let mut states = States::new(vec![State::Ready; 4], &[1.0, 3.0, 1.0, 3.0]);
        assert_eq!(open(&mut states), [1, 3, 0, 2]);
    }
}
