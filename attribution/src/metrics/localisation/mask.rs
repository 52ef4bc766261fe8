//! The region that a map should point at.

/// A binary mask of an image, row by row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mask {
    inside: Vec<bool>,
    width: usize,
    pixels: usize,
}

impl Mask {
    /// A mask of rows of `width` pixels; `None` if the pixels are no whole rows.
    pub fn new(inside: Vec<bool>, width: usize) -> Option<Self> {
        let fits = width > 0 && inside.len().is_multiple_of(width);
        let pixels = inside.iter().filter(|inside| **inside).count();
        fits.then_some(Self { inside, width, pixels })
    }

    /// The number of pixels inside.
    pub fn pixels(&self) -> usize {
        self.pixels
    }

    /// The number of pixels of the image.
    pub fn area(&self) -> usize {
        self.inside.len()
    }

    /// The share of the image that lies inside.
    pub fn share(&self) -> f64 {
        self.pixels as f64 / self.area().max(1) as f64
    }

    /// Whether a pixel lies inside.
    pub fn contains(&self, index: usize) -> bool {
        self.inside.get(index).copied().unwrap_or(false)
    }

    /// Whether a pixel lies inside or within `tolerance` pixels of one that does (Euclidean, from
    /// centre to centre).
    pub fn is_near(&self, index: usize, tolerance: f64) -> bool {
        let (row, column) = ((index / self.width) as i64, (index % self.width) as i64);
        let (height, width) = ((self.area() / self.width) as i64, self.width as i64);
        let reach = tolerance.clamp(0.0, (height + width) as f64) as i64;
        let mut rows = (row - reach).max(0)..=(row + reach).min(height - 1);
        rows.any(|y| {
            let mut columns = (column - reach).max(0)..=(column + reach).min(width - 1);
            columns.any(|x| {
                let distance = ((y - row).pow(2) + (x - column).pow(2)) as f64;
                distance <= tolerance * tolerance && self.contains((y * width + x) as usize)
            })
        })
    }

    /// The sum of a map inside.
    pub(super) fn sum(&self, map: &[f64]) -> f64 {
        map.iter().zip(&self.inside).filter(|(_, inside)| **inside).map(|(value, _)| value).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_is_a_disc() {
        let mut inside = vec![false; 25];
        inside[12] = true;
        let mask = Mask::new(inside, 5).unwrap();
        let near = |tolerance| (0..25).filter(|index| mask.is_near(*index, tolerance)).count();
        assert_eq!([near(0.0), near(1.0), near(1.5), near(2.0), near(100.0)], [1, 5, 9, 13, 25]);
        assert_eq!(mask.share(), 0.04);
    }

    #[test]
    fn a_mask_has_whole_rows() {
        assert!(Mask::new(vec![true; 5], 2).is_none());
        assert!(Mask::new(vec![], 0).is_none());
    }
}
