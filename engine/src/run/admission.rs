//! Which ready action may take what it asks for: nothing is given twice, and nobody waits for ever.
//!
//! Actions are asked for in the order of their urgency, and one that does not fit lets later ones pass:
//! cores do not idle for the sake of order. But a stream of small actions could keep a large one waiting
//! without end. So an action that was passed over for a while gets a *reservation*: from then on others take
//! only what it does not need, until it fits. One reservation stands at a time, that of whoever waits longest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::pipeline::{Limits, NodeId};

/// What an action takes while it runs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Demand {
    /// Cores.
    pub(super) cpu: usize,
    /// Bytes.
    pub(super) memory: u64,
    /// Devices of the kind GPU.
    pub(super) gpu: usize,
    /// Tokens of the study.
    pub(super) tokens: BTreeMap<String, usize>,
}

/// What an action was given.
#[derive(Debug)]
pub(super) struct Grant {
    demand: Demand,
    /// The slots of its GPUs, in rising order.
    pub(super) gpus: Vec<usize>,
}

/// What is free, and who waits for it.
#[derive(Debug)]
pub(super) struct Admission {
    cpu: usize,
    memory: u64,
    gpus: BTreeSet<usize>,
    tokens: BTreeMap<String, usize>,
    /// Since when nodes are passed over.
    waiting: BTreeMap<NodeId, (Instant, Demand)>,
    patience: Duration,
}

impl Admission {
    /// All of `limits` is free; after `patience` who waits gets a reservation.
    pub(super) fn new(limits: &Limits, patience: Duration) -> Self {
        Self {
            cpu: limits.cpu,
            memory: limits.memory.unwrap_or(u64::MAX),
            gpus: (0..limits.gpu).collect(),
            tokens: limits.tokens.clone(),
            waiting: BTreeMap::new(),
            patience,
        }
    }

    /// Whether there is nothing that any action could take.
    pub(super) fn is_exhausted(&self) -> bool {
        self.cpu == 0
    }

    /// Whether a node may take now what it asks for; if not, it is passed over.
    pub(super) fn admits(&mut self, id: NodeId, demand: &Demand, now: Instant) -> bool {
        let reserved = self.reservation(now).filter(|(holder, _)| *holder != id);
        let admits = self.fits(demand, reserved.map(|(_, reserved)| reserved));
        if admits {
            self.waiting.remove(&id);
        } else {
            self.waiting.entry(id).or_insert_with(|| (now, demand.clone()));
        }
        admits
    }

    /// Takes what was admitted.
    pub(super) fn take(&mut self, demand: &Demand) -> Grant {
        self.cpu -= demand.cpu;
        self.memory -= demand.memory;
        for (name, count) in &demand.tokens {
            if let Some(free) = self.tokens.get_mut(name) {
                *free -= count;
            }
        }
        let gpus = (0..demand.gpu).filter_map(|_| self.gpus.pop_first()).collect();
        Grant { demand: demand.clone(), gpus }
    }

    pub(super) fn give_back(&mut self, grant: Grant) {
        let Grant { demand, gpus } = grant;
        self.cpu += demand.cpu;
        self.memory += demand.memory;
        self.gpus.extend(gpus);
        for (name, count) in demand.tokens {
            *self.tokens.entry(name).or_insert(0) += count;
        }
    }

    /// A node does not wait any more.
    pub(super) fn forget(&mut self, id: NodeId) {
        self.waiting.remove(&id);
    }

    /// Who was passed over longest, if that is long enough.
    fn reservation(&self, now: Instant) -> Option<(NodeId, &Demand)> {
        let (id, (since, demand)) = self.waiting.iter().min_by_key(|(_, (since, _))| *since)?;
        (now.saturating_duration_since(*since) >= self.patience).then_some((*id, demand))
    }

    /// Whether a demand fits, and leaves room for the reserved one where both want the same.
    fn fits(&self, demand: &Demand, reserved: Option<&Demand>) -> bool {
        let fits = |free: u64, asked: u64, kept: Option<u64>| {
            asked == 0
                || free
                    .checked_sub(asked)
                    .is_some_and(|rest| kept.is_none_or(|kept| kept == 0 || rest >= kept))
        };
        let kept = |of: fn(&Demand) -> usize| reserved.map(|reserved| of(reserved) as u64);
        fits(self.cpu as u64, demand.cpu as u64, kept(|one| one.cpu))
            && fits(self.memory, demand.memory, reserved.map(|one| one.memory))
            && fits(self.gpus.len() as u64, demand.gpu as u64, kept(|one| one.gpu))
            && demand.tokens.iter().all(|(name, asked)| {
                let of = |tokens: &BTreeMap<String, usize>| tokens.get(name).copied().unwrap_or(0) as u64;
                fits(of(&self.tokens), *asked as u64, reserved.map(|one| of(&one.tokens)))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(cpu: usize, memory: u64, gpu: usize, licences: usize) -> Demand {
        let tokens = (licences > 0).then(|| ("licence".to_owned(), licences)).into_iter().collect();
        Demand { cpu, memory, gpu, tokens }
    }

    fn admission() -> Admission {
        let limits = Limits { cpu: 4, gpu: 2, memory: Some(100), tokens: [("licence".to_owned(), 1)].into() };
        Admission::new(&limits, Duration::from_secs(60))
    }

    #[test]
    fn nothing_is_given_twice() {
        let mut admission = admission();
        let now = Instant::now();
        let first = demand(1, 60, 1, 1);
        assert!(admission.admits(NodeId(0), &first, now));
        let held = admission.take(&first);
        assert_eq!(held.gpus, [0]);
        for (name, other, admitted) in [
            ("cores", demand(4, 0, 0, 0), false),
            ("memory", demand(1, 41, 0, 0), false),
            ("devices", demand(1, 0, 2, 0), false),
            ("tokens", demand(1, 0, 0, 1), false),
            ("the rest", demand(3, 40, 1, 0), true),
        ] {
            assert_eq!(admission.admits(NodeId(1), &other, now), admitted, "{name}");
        }
        let rest = admission.take(&demand(3, 40, 1, 0));
        assert_eq!(rest.gpus, [1]);
        assert!(admission.is_exhausted());
        admission.give_back(held);
        let again = admission.take(&first);
        assert_eq!(again.gpus, [0], "the least free slot");
        admission.give_back(rest);
        admission.give_back(again);
        assert!(admission.admits(NodeId(2), &demand(4, 100, 2, 1), now));
    }

    #[test]
    fn who_is_passed_over_too_long_gets_a_reservation() {
        let mut admission = admission();
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let (large, small) = (demand(4, 0, 0, 0), demand(1, 0, 0, 0));
        let first = admission.take(&small);
        assert!(!admission.admits(NodeId(0), &large, at(0)));
        // Until its time has come others pass.
        assert!(admission.admits(NodeId(1), &small, at(59)));
        let second = admission.take(&small);
        assert!(!admission.admits(NodeId(2), &small, at(60)));
        assert!(!admission.admits(NodeId(0), &large, at(60)));
        admission.give_back(first);
        assert!(!admission.admits(NodeId(2), &small, at(61)));
        admission.give_back(second);
        assert!(admission.admits(NodeId(0), &large, at(62)));
        let whole = admission.take(&large);
        admission.give_back(whole);
        // Its reservation is gone with its start.
        assert!(admission.admits(NodeId(2), &small, at(63)));
    }

    #[test]
    fn a_reservation_keeps_only_what_is_needed() {
        let mut admission = admission();
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let licence = admission.take(&demand(1, 0, 0, 1));
        assert!(!admission.admits(NodeId(0), &demand(1, 0, 0, 1), at(0)));
        // Two of the three free cores may be taken, the third is kept.
        assert!(admission.admits(NodeId(1), &demand(2, 50, 2, 0), at(100)));
        assert!(!admission.admits(NodeId(2), &demand(3, 0, 0, 0), at(100)));
        // A node that waits no more keeps nothing.
        admission.forget(NodeId(0));
        admission.forget(NodeId(2));
        assert!(admission.admits(NodeId(2), &demand(3, 0, 0, 0), at(100)));
        admission.give_back(licence);
    }
}
