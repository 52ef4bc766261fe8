//! Linear warm-up and cosine decay.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_linearly_and_falls_to_the_floor() {
        let schedule = Schedule { rate: 1.0, warmup: 4, begin: WarmUp::FromOneStep, total: 104, floor: 0.1 };
        assert_eq!(schedule.at(0), 0.25);
        assert_eq!(schedule.at(3), 1.0);
        assert_eq!(schedule.at(4), 1.0);
        assert!((schedule.at(54) - 0.55).abs() < 1e-12);
        assert!((schedule.at(104) - 0.1).abs() < 1e-12);
        let schedule = Schedule { begin: WarmUp::FromZero, ..schedule };
        assert_eq!([0, 1, 4].map(|step| schedule.at(step)), [0.0, 0.25, 1.0]);
    }
}
