//! The region that a map should point at.

/// A binary mask of an image, row by row, or of a volume, slice by slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mask {
    inside: Vec<bool>,
    /// Rows of a slice; a flat image is one slice.
    height: usize,
    width: usize,
    pixels: usize,
}

impl Mask {
    /// A mask of rows of `width` pixels; `None` if the pixels are no whole rows.
    pub fn new(inside: Vec<bool>, width: usize) -> Option<Self> {
        let height = inside.len().checked_div(width)?;
        Self::of_volume(inside, [height.max(1), width])
    }

    /// A mask of slices of this height and width; `None` if the voxels are no whole slices.
    pub fn of_volume(inside: Vec<bool>, [height, width]: [usize; 2]) -> Option<Self> {
        let slice = height * width;
        let fits = slice > 0 && inside.len().is_multiple_of(slice);
        let pixels = inside.iter().filter(|inside| **inside).count();
        fits.then_some(Self { inside, height, width, pixels })
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
        let slice_size = self.height * self.width;
        let lengths = [self.area() / slice_size, self.height, self.width].map(|length| length as i64);
        let place = [index / slice_size, index / self.width % self.height, index % self.width];
        let place = place.map(|place| place as i64);
        let reach = tolerance.clamp(0.0, lengths.iter().sum::<i64>() as f64) as i64;
        let around =
            |axis: usize| (place[axis] - reach).max(0)..=(place[axis] + reach).min(lengths[axis] - 1);
        around(0).any(|z| {
            around(1).any(|y| {
                around(2).any(|x| {
                    let distance =
                        ((z - place[0]).pow(2) + (y - place[1]).pow(2) + (x - place[2]).pow(2)) as f64;
                    let at = (z * lengths[1] + y) * lengths[2] + x;
                    distance <= tolerance * tolerance && self.contains(at as usize)
                })
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
    fn near_is_a_ball_in_a_volume() {
        let mut inside = vec![false; 27];
        inside[13] = true;
        let mask = Mask::of_volume(inside, [3, 3]).unwrap();
        let near = |tolerance| (0..27).filter(|index| mask.is_near(*index, tolerance)).count();
        assert_eq!([near(0.0), near(1.0), near(1.5), near(1.8)], [1, 7, 19, 27]);
        assert!(Mask::of_volume(vec![true; 8], [3, 1]).is_none());
    }

    #[test]
    fn a_mask_has_whole_rows() {
        assert!(Mask::new(vec![true; 5], 2).is_none());
        assert!(Mask::new(vec![], 0).is_none());
    }
}
