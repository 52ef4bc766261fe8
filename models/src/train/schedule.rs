//! Linear warm-up and cosine decay.

/// The learning rate of each step.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Schedule {
    /// The highest rate.
    pub rate: f64,
    /// Steps of warm-up.
    pub warmup: u64,
    /// All steps.
    pub total: u64,
    /// The last rate as a share of the highest.
    pub floor: f64,
}

impl Schedule {
    /// The rate of step `step`, from 0, in the convention of open_clip: warm-up goes
    /// rate/warmup, 2 rate/warmup, ..., then half a cosine falls from `rate` to `rate * floor`.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.rate * (step + 1) as f64 / self.warmup as f64;
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
        let schedule = Schedule { rate: 1.0, warmup: 4, total: 104, floor: 0.1 };
        assert_eq!(schedule.at(0), 0.25);
        assert_eq!(schedule.at(3), 1.0);
        assert_eq!(schedule.at(4), 1.0);
        assert!((schedule.at(54) - 0.55).abs() < 1e-12);
        assert!((schedule.at(104) - 0.1).abs() < 1e-12);
    }
}
