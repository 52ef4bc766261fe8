//! Learning rates: linear warm-up and cosine decay by steps, or warm-up and decay by epochs.

/// With which rate warm-up begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WarmUp {
    /// Of n steps: 1/n, 2/n, ..., 1; the way of open_clip.
    FromOneStep,
    /// Of n steps: 0, 1/n, ..., (n - 1)/n; the way of transformers.
    FromZero,
}

/// The learning rate of each step.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Schedule {
    /// The highest rate.
    pub rate: f64,
    /// Steps of warm-up.
    pub warmup: u64,
    /// How it begins.
    pub begin: WarmUp,
    /// All steps.
    pub total: u64,
    /// The last rate as a share of the highest.
    pub floor: f64,
}

impl Schedule {
    /// The rate of step `step`, from 0, that warms up and then stays.
    pub fn warmed(&self, step: u64) -> f64 {
        if step < self.warmup { self.at(step) } else { self.rate }
    }

    /// The rate of step `step`, from 0: after warm-up half a cosine falls from `rate` to
    /// `rate * floor`.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            let done = match self.begin {
                WarmUp::FromOneStep => step + 1,
                WarmUp::FromZero => step,
            };
            return self.rate * done as f64 / self.warmup as f64;
        }
        let span = self.total.saturating_sub(self.warmup).max(1);
        let progress = ((step - self.warmup) as f64 / span as f64).min(1.0);
        let cosine = 0.5 * (1.0 + libm::cos(std::f64::consts::PI * progress));
        self.rate * (self.floor + (1.0 - self.floor) * cosine)
    }
}

/// The learning rate of each epoch: factors of a warm-up, the last of which stays, and a decay at the beginning
/// of certain epochs.
#[derive(Clone, PartialEq, Debug)]
pub struct EpochSchedule {
    /// What the factors multiply.
    pub base: f64,
    /// The factors of the first epochs; without any, it is 1.
    pub warm_up: Vec<f64>,
    /// What the rate is multiplied by at the beginning of each of `decay_epochs`.
    pub decay: f64,
    /// Epochs, counted from 0.
    pub decay_epochs: Vec<usize>,
}

impl EpochSchedule {
    /// MEVF's (Nguyen et al. 2019): up to twice the base in four epochs, and three quarters of the rate after
    /// every other epoch from the tenth to the eighteenth.
    pub fn mevf(base: f64) -> Self {
        Self { base, warm_up: vec![0.5, 1.0, 1.5, 2.0], decay: 0.75, decay_epochs: vec![10, 12, 14, 16, 18] }
    }

    /// One rate for all epochs.
    pub fn constant(base: f64) -> Self {
        Self { base, warm_up: Vec::new(), decay: 1.0, decay_epochs: Vec::new() }
    }

    /// The rate of epoch `epoch`, from 0.
    pub fn at(&self, epoch: usize) -> f64 {
        let factor = self.warm_up.get(epoch).or(self.warm_up.last()).copied().unwrap_or(1.0);
        let decays = self.decay_epochs.iter().filter(|first| **first <= epoch).count();
        (0..decays).fold(self.base * factor, |rate, _| rate * self.decay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_rates_of_mevf() {
        let schedule = EpochSchedule::mevf(0.005);
        let rates: Vec<f64> = [0, 1, 2, 3, 9, 10, 11, 12, 19].map(|epoch| schedule.at(epoch)).into();
        for (rate, expected) in
            rates.iter().zip([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.0075, 0.0075, 0.005_625, 0.002_373])
        {
            assert!((rate - expected).abs() < 1e-6, "{rates:?}");
        }
        assert_eq!(EpochSchedule::constant(0.002).at(150), 0.002);
    }

    #[test]
    fn warms_up_linearly_and_falls_to_the_floor() {
        let schedule = Schedule { rate: 1.0, warmup: 4, begin: WarmUp::FromOneStep, total: 104, floor: 0.1 };
        assert_eq!(schedule.at(0), 0.25);
        assert_eq!(schedule.at(3), 1.0);
        assert_eq!(schedule.at(4), 1.0);
        assert!((schedule.at(54) - 0.55).abs() < 1e-12);
        assert!((schedule.at(104) - 0.1).abs() < 1e-12);
        assert_eq!([0, 3, 4, 104].map(|step| schedule.warmed(step)), [0.25, 1.0, 1.0, 1.0]);
        let schedule = Schedule { begin: WarmUp::FromZero, ..schedule };
        assert_eq!([0, 1, 4].map(|step| schedule.at(step)), [0.0, 0.25, 1.0]);
    }
}
