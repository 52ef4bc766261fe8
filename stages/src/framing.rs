//! Which part of an image a model sees, as files of maps say it: a map drawn onto the image, or held against a
//! mask of it, has to lie there.

use pipe_models::Preprocessor;
use pipe_models::preprocess::Fit;

/// How images became the squares that maps are of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Framing {
    /// The whole image, whatever its proportions.
    Whole,
    /// The shorter side became `shorter` pixels long, and a square of `side` was cut out of the middle.
    Centre {
        /// The shorter side of the resized image, in pixels.
        shorter: usize,
        /// The side of the square, in the same pixels.
        side: usize,
    },
}

/// A rectangle in pixels of an image, from its top left; edges may lie between pixels.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Part {
    pub(crate) left: f64,
    pub(crate) top: f64,
    pub(crate) width: f64,
    pub(crate) height: f64,
}

impl Framing {
    /// That of a model's preprocessing.
    pub(crate) fn of(preprocessor: &Preprocessor) -> Self {
        match preprocessor.fit {
            Fit::Stretch => Self::Whole,
            Fit::Shortest(shorter) => Self::Centre { shorter, side: preprocessor.side },
        }
    }

    /// The preprocessing that brings masks into this frame.
    pub(crate) fn fit(self) -> Fit {
        match self {
            Self::Whole => Fit::Stretch,
            Self::Centre { shorter, .. } => Fit::Shortest(shorter),
        }
    }

    /// What a file says of it.
    pub(crate) fn entries(self) -> Vec<(String, String)> {
        let entry = |key: &str, value: String| (key.to_owned(), value);
        match self {
            Self::Whole => vec![entry("fit", "stretch".to_owned())],
            Self::Centre { shorter, side } => vec![
                entry("fit", "shortest".to_owned()),
                entry("fit_shorter", shorter.to_string()),
                entry("fit_side", side.to_string()),
            ],
        }
    }

    /// What the metadata of a file say; nothing if they do not, or say nonsense.
    pub(crate) fn read<'a>(metadata: impl Fn(&str) -> Option<&'a String>) -> Option<Self> {
        let number =
            |key: &str| metadata(key)?.parse::<usize>().ok().filter(|side| (1..=1 << 20).contains(side));
        match metadata("fit")?.as_str() {
            "stretch" => Some(Self::Whole),
            "shortest" => {
                let (shorter, side) = (number("fit_shorter")?, number("fit_side")?);
                (side <= shorter).then_some(Self::Centre { shorter, side })
            }
            _ => None,
        }
    }

    /// Where the square lies on an image of this size. Libraries round the surplus up or down: half a pixel of
    /// the resized image is not told here.
    pub(crate) fn part(self, width: u32, height: u32) -> Part {
        let (width, height) = (f64::from(width), f64::from(height));
        match self {
            Self::Whole => Part { left: 0.0, top: 0.0, width, height },
            Self::Centre { shorter, side } => {
                let side = width.min(height) * side as f64 / shorter as f64;
                Part { left: (width - side) / 2.0, top: (height - side) / 2.0, width: side, height: side }
            }
        }
    }
}

impl Part {
    /// The cell of a grid over the rectangle that the middle of a pixel lies in; nothing beside it.
    pub(crate) fn cell(self, [x, y]: [u32; 2], columns: usize, rows: usize) -> Option<[usize; 2]> {
        let place = |pixel: u32, start: f64, length: f64, cells: usize| {
            let share = (f64::from(pixel) + 0.5 - start) / length;
            (0.0..1.0)
                .contains(&share)
                .then(|| ((share * cells as f64) as usize).min(cells.saturating_sub(1)))
        };
        Some([place(x, self.left, self.width, columns)?, place(y, self.top, self.height, rows)?])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for framing in [Framing::Whole, Framing::Centre { shorter: 256, side: 224 }] {
            let entries: BTreeMap<String, String> = framing.entries().into_iter().collect();
            assert_eq!(Framing::read(|key| entries.get(key)), Some(framing));
        }
        let clip = Framing::of(&Preprocessor::clip(224));
        assert_eq!(clip, Framing::Centre { shorter: 224, side: 224 });
        assert_eq!(clip.fit(), Fit::Shortest(224));
        let said = |fit: &str, shorter: &str| {
            let entries: BTreeMap<&str, String> = [("fit", fit), ("fit_shorter", shorter), ("fit_side", "9")]
                .map(|(key, value)| (key, value.to_owned()))
                .into();
            Framing::read(|key| entries.get(key))
        };
        assert_eq!(said("shortest", "9"), Some(Framing::Centre { shorter: 9, side: 9 }));
        for (fit, shorter) in [("shortest", "8"), ("shortest", "-1"), ("shortest", "0"), ("longest", "9")] {
            assert_eq!(said(fit, shorter), None, "{fit} {shorter}");
        }
    }

    #[test]
    fn the_square_lies_in_the_middle() {
        let part = Framing::Centre { shorter: 8, side: 4 }.part(30, 20);
        assert_eq!(part, Part { left: 10.0, top: 5.0, width: 10.0, height: 10.0 });
        assert_eq!(part.cell([10, 5], 5, 5), Some([0, 0]));
        assert_eq!(part.cell([19, 14], 5, 5), Some([4, 4]));
        for beside in [[9, 5], [20, 5], [10, 4], [10, 15]] {
            assert_eq!(part.cell(beside, 5, 5), None, "{beside:?}");
        }
        assert_eq!(Framing::Whole.part(30, 20).cell([29, 0], 3, 2), Some([2, 0]));
    }
}
