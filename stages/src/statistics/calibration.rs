//! Whether probabilities are what they say: expected and maximal calibration error.

/// Equal-width bins of the top probability.
pub const BINS: usize = 15;

/// The samples whose top probability lies in one bin.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct CalibrationBin {
    /// Their number (sum of weights).
    pub count: f64,
    /// Their mean top probability; `None` if there are none.
    pub confidence: Option<f64>,
    /// Their share of right answers.
    pub accuracy: Option<f64>,
}

/// Calibration in [`BINS`] bins; bin b holds (b/15, (b+1)/15], 0 belongs to the first.
#[derive(Clone, PartialEq, Debug)]
pub struct Calibration {
    /// The bins in ascending order.
    pub bins: Vec<CalibrationBin>,
}

impl Calibration {
    /// Sorts samples (top probability, right or not, weight) into bins.
    pub fn new(samples: impl IntoIterator<Item = (f64, bool, f64)>) -> Self {
        let mut sums = [(0.0, 0.0, 0.0); BINS];
        for (confidence, right, weight) in samples {
            let bin = ((BINS as f64 * confidence).ceil() as usize).clamp(1, BINS) - 1;
            let (count, confidences, rights) = &mut sums[bin];
            *count += weight;
            *confidences += weight * confidence;
            *rights += weight * f64::from(u8::from(right));
        }
        let bin = |(count, confidences, rights): (f64, f64, f64)| CalibrationBin {
            count,
            confidence: (count > 0.0).then(|| confidences / count),
            accuracy: (count > 0.0).then(|| rights / count),
        };
        Self { bins: sums.into_iter().map(bin).collect() }
    }

    fn gaps(&self) -> impl Iterator<Item = (f64, f64)> {
        self.bins.iter().filter_map(|bin| Some((bin.count, (bin.accuracy? - bin.confidence?).abs())))
    }

    /// Expected calibration error: |accuracy - confidence|, weighted by the bins' counts.
    pub fn expected_error(&self) -> Option<f64> {
        let (sum, total) =
            self.gaps().fold((0.0, 0.0), |(sum, total), (count, gap)| (sum + count * gap, total + count));
        (total > 0.0).then(|| sum / total)
    }

    /// The largest gap of a bin that holds samples.
    pub fn greatest_error(&self) -> Option<f64> {
        self.gaps().map(|(_, gap)| gap).reduce(f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_belong_to_the_bin_below() {
        let calibration = Calibration::new([(0.4, true, 1.0), (0.0, false, 1.0), (1.0, true, 2.0)]);
        let counts: Vec<f64> = calibration.bins.iter().map(|bin| bin.count).collect();
        // 0.4 is 6/15, the upper edge of bin 5.
        assert_eq!((counts[0], counts[5], counts[14]), (1.0, 1.0, 2.0));
        assert_eq!(calibration.expected_error(), Some(0.6 / 4.0));
        assert_eq!(calibration.greatest_error(), Some(0.6));
        assert_eq!(Calibration::new([]).expected_error(), None);
    }
}
