//! Topological order without recursion, for variables, matrices and nodes alike.

use std::collections::BTreeMap;

/// An order in which everything comes after what it needs, as far as there is one.
pub(crate) struct Order {
    /// What is in no cycle and needs nothing in one.
    pub(crate) sorted: Vec<usize>,
    /// A cycle, if there is any: each needs the next, the last needs the first.
    pub(crate) cycle: Vec<usize>,
}

/// Orders `0..needs.len()`; `needs[i]` is what `i` needs, repetitions allowed. Linear.
pub(crate) fn order(needs: &[Vec<usize>]) -> Order {
    let mut waiting: Vec<usize> = needs.iter().map(Vec::len).collect();
    let mut needed_by: Vec<Vec<usize>> = vec![Vec::new(); needs.len()];
    for (index, needed) in needs.iter().enumerate() {
        for other in needed {
            needed_by[*other].push(index);
        }
    }
    let mut ready: Vec<usize> = (0..needs.len()).filter(|index| waiting[*index] == 0).collect();
    let mut sorted = Vec::with_capacity(needs.len());
    while let Some(index) = ready.pop() {
        sorted.push(index);
        for other in &needed_by[index] {
            waiting[*other] -= 1;
            if waiting[*other] == 0 {
                ready.push(*other);
            }
        }
    }
    // Whatever still waits needs something that waits, so this walk comes back to where it was.
    let mut way: Vec<usize> = Vec::new();
    let mut place: BTreeMap<usize, usize> = BTreeMap::new();
    let mut current = (0..needs.len()).find(|index| waiting[*index] > 0);
    while let Some(index) = current {
        if let Some(start) = place.get(&index) {
            return Order { sorted, cycle: way.split_off(*start) };
        }
        place.insert(index, way.len());
        way.push(index);
        current = needs[index].iter().copied().find(|other| waiting[*other] > 0);
    }
    Order { sorted, cycle: Vec::new() }
}
