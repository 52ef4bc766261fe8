//! The pipelines that the published models were made and are used with.

use candle_core::{Device, Result, Tensor};

use super::picture::{Picture, Samples, to_grey};
use super::resize::{Filter, Part, Plane, Rounding, resize};
use super::slices::Slices;

/// OpenAI's channel means of CLIP.
pub const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// OpenAI's channel deviations of CLIP.
pub const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];
/// The window that shows all values of 16 bits.
const FULL_WINDOW: [f64; 2] = [0.0, 65_535.0];
/// The Hounsfield units that CT-CLIP sees: from air to dense bone.
const HOUNSFIELD: [f64; 2] = [-1000.0, 1000.0];
/// No image is resized to a longer side, whatever its proportions.
const SIDE_LIMIT: usize = 1 << 20;

/// The order of the steps, which differs between the libraries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pipeline {
    /// OpenAI's and open_clip's: resized in the mode of the file, cropped from the surplus's half rounded
    /// to even, then made RGB.
    OpenClip,
    /// torchvision's and timm's on images that are loaded as RGB: as `OpenClip`, but made RGB first.
    Torchvision,
    /// transformers with its Pillow backend: made RGB first, on white where it is transparent, cropped from the surplus's half rounded
    /// down.
    HuggingFace,
    /// transformers with its torchvision backend: as `HuggingFace`, with PyTorch's resizing of bytes.
    HuggingFaceTorch,
}

impl Pipeline {
    /// All pipelines with their names.
    pub const NAMES: [(&str, Self); 4] = [
        ("open_clip", Self::OpenClip),
        ("torchvision", Self::Torchvision),
        ("hugging_face", Self::HuggingFace),
        ("hugging_face_torch", Self::HuggingFaceTorch),
    ];

    /// Its name in files.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, pipeline)| *pipeline == self).map_or("", |(name, _)| name)
    }
}

/// How an image becomes as large as the model takes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fit {
    /// The shorter side becomes this long, and the centre is cut out.
    Shortest(usize),
    /// Both sides become the model's, whatever the proportions.
    Stretch,
}

/// What happens to an image before a model sees it.
#[derive(Clone, PartialEq, Debug)]
pub struct Preprocessor {
    /// Side of the square that the model takes.
    pub side: usize,
    /// The order of the steps.
    pub pipeline: Pipeline,
    /// How the image is brought to that side.
    pub fit: Fit,
    /// How it is resized.
    pub filter: Filter,
    /// Mean of each channel, in [0, 1].
    pub mean: [f64; 3],
    /// Deviation of each channel.
    pub std: [f64; 3],
    /// The values of a 16-bit image that become black and white.
    pub window: [f64; 2],
    /// What is seen of a volume.
    pub slices: Slices,
    /// The Hounsfield units that become black and white, where a slice of a scan is seen.
    pub hounsfield: [f64; 2],
}

/// An image of proportions that cannot be brought to a square.
#[derive(Debug, thiserror::Error)]
#[error("an image of {width} x {height} pixels is too narrow to be resized")]
pub struct ResizeError {
    width: usize,
    height: usize,
}

impl Preprocessor {
    /// The same for squares of another side.
    pub(crate) fn at(self, side: usize) -> Self {
        let fit = match self.fit {
            Fit::Shortest(length) => Fit::Shortest((length * side / self.side.max(1)).max(side)),
            Fit::Stretch => Fit::Stretch,
        };
        Self { side, fit, ..self }
    }

    /// CLIP's as its authors use it, for images of this side.
    pub fn clip(side: usize) -> Self {
        Self {
            side,
            pipeline: Pipeline::OpenClip,
            fit: Fit::Shortest(side),
            filter: Filter::Bicubic,
            mean: CLIP_MEAN,
            std: CLIP_STD,
            window: FULL_WINDOW,
            slices: Slices::default(),
            hounsfield: HOUNSFIELD,
        }
    }

    /// Resizes and crops an image: `side * side * 3` values, red, green and blue of each pixel.
    ///
    /// # Errors
    /// If the image is so narrow that its longer side would become very long.
    pub fn square(&self, picture: &Picture) -> std::result::Result<Vec<u8>, ResizeError> {
        let part = self.part(picture.width(), picture.height())?;
        if self.pipeline == Pipeline::OpenClip {
            return Ok(self.resize_in_mode(picture, &part));
        }
        let rounding =
            if self.pipeline == Pipeline::HuggingFaceTorch { Rounding::Torch } else { Rounding::Pillow };
        let pixels = match self.pipeline {
            Pipeline::OpenClip | Pipeline::Torchvision => picture.to_rgb(self.window),
            Pipeline::HuggingFace | Pipeline::HuggingFaceTorch => picture.to_rgb_on_white(self.window),
        };
        Ok(resize::<3>(&plane(picture, &pixels), &part, self.filter, rounding))
    }

    /// The resized size, and what of it is needed.
    fn part(&self, width: usize, height: usize) -> std::result::Result<Part, ResizeError> {
        let side = self.side;
        let (new_width, new_height) = match self.fit {
            Fit::Stretch => (side, side),
            // torchvision's rounding: the longer side is cut to an integer.
            Fit::Shortest(short) if width <= height => (short, short * height / width),
            Fit::Shortest(short) => (short * width / height, short),
        };
        if new_width.max(new_height) > SIDE_LIMIT {
            return Err(ResizeError { width, height });
        }
        let crop = |length: usize| {
            let surplus = length.saturating_sub(side);
            let start = match self.pipeline {
                Pipeline::OpenClip | Pipeline::Torchvision => {
                    (surplus as f64 / 2.0).round_ties_even() as usize
                }
                Pipeline::HuggingFace | Pipeline::HuggingFaceTorch => surplus / 2,
            };
            start..start + side
        };
        Ok(Part { width: new_width, height: new_height, columns: crop(new_width), rows: crop(new_height) })
    }

    /// Pillow's resizing of each mode, then the conversion to RGB.
    fn resize_in_mode(&self, picture: &Picture, part: &Part) -> Vec<u8> {
        let filter = self.filter;
        let unchanged = (picture.width(), picture.height()) == (part.width, part.height);
        let samples = match picture.samples() {
            Samples::Grey(pixels) => {
                Samples::Grey(resize::<1>(&plane(picture, pixels), part, filter, Rounding::Pillow))
            }
            Samples::Rgb(pixels) => {
                Samples::Rgb(resize::<3>(&plane(picture, pixels), part, filter, Rounding::Pillow))
            }
            Samples::Grey16(values) => {
                let pixels = to_grey(values, self.window);
                Samples::Grey(resize::<1>(&plane(picture, &pixels), part, filter, Rounding::Pillow))
            }
            // Images of few colours are not interpolated.
            Samples::Bilevel(pixels) => Samples::Bilevel(resize::<1>(
                &plane(picture, pixels),
                part,
                Filter::Nearest,
                Rounding::Pillow,
            )),
            Samples::Palette(pixels, colours) => Samples::Palette(
                resize::<1>(&plane(picture, pixels), part, Filter::Nearest, Rounding::Pillow),
                colours.clone(),
            ),
            Samples::GreyAlpha(pixels) => {
                Samples::GreyAlpha(transparent::<2>(picture, pixels, part, filter, unchanged))
            }
            Samples::Rgba(pixels) => {
                Samples::Rgba(transparent::<4>(picture, pixels, part, filter, unchanged))
            }
        };
        Picture::new(self.side, self.side, samples)
            .map(|square| square.to_rgb(self.window))
            .expect("the part is a square of the model's side")
    }

    /// Eight-bit squares, one after another, as a normalised tensor `[batch, 3, side, side]`.
    ///
    /// # Errors
    /// If the number of values does not fit.
    pub fn tensor(&self, squares: &[u8], device: &Device) -> Result<Tensor> {
        let plane = self.side * self.side;
        let tables = [0, 1, 2].map(|channel| self.table(channel));
        let mut values = vec![0.0f32; squares.len()];
        for (square, out) in squares.chunks_exact(plane * 3).zip(values.chunks_exact_mut(plane * 3)) {
            for (channel, (table, out)) in tables.iter().zip(out.chunks_exact_mut(plane)).enumerate() {
                for (pixel, out) in square.as_chunks::<3>().0.iter().zip(out) {
                    *out = table[usize::from(pixel[channel])];
                }
            }
        }
        Tensor::from_vec(values, (squares.len() / (plane * 3), 3, self.side, self.side), device)
    }

    /// What each byte becomes in a channel, with the roundings of the library.
    fn table(&self, channel: usize) -> [f32; 256] {
        let (mean, std) = (self.mean[channel] as f32, self.std[channel] as f32);
        std::array::from_fn(|value| match self.pipeline {
            Pipeline::OpenClip | Pipeline::Torchvision => (value as f32 / 255.0 - mean) / std,
            Pipeline::HuggingFace => ((value as f64 * (1.0 / 255.0)) as f32 - mean) / std,
            Pipeline::HuggingFaceTorch => (value as f32 - mean * 255.0) / (std * 255.0),
        })
    }

    /// The normalised values of black: what a zero pixel becomes, per channel.
    pub fn black(&self) -> [f32; 3] {
        [0, 1, 2].map(|channel| self.table(channel)[0])
    }
}

pub(super) fn plane<'a>(picture: &Picture, pixels: &'a [u8]) -> Plane<'a> {
    Plane { width: picture.width(), height: picture.height(), pixels }
}

/// Pillow resizes colours multiplied by their alpha, the last of the `N` channels, and divides again.
fn transparent<const N: usize>(
    picture: &Picture,
    pixels: &[u8],
    part: &Part,
    filter: Filter,
    unchanged: bool,
) -> Vec<u8> {
    if unchanged || filter == Filter::Nearest {
        return resize::<N>(&plane(picture, pixels), part, filter, Rounding::Pillow);
    }
    let mut multiplied = pixels.to_vec();
    for pixel in multiplied.as_chunks_mut::<N>().0 {
        let alpha = u32::from(pixel[N - 1]);
        for colour in &mut pixel[..N - 1] {
            let product = u32::from(*colour) * alpha + 128;
            *colour = (((product >> 8) + product) >> 8) as u8;
        }
    }
    let mut resized = resize::<N>(&plane(picture, &multiplied), part, filter, Rounding::Pillow);
    for pixel in resized.as_chunks_mut::<N>().0 {
        let alpha = u32::from(pixel[N - 1]);
        if alpha != 0 && alpha != 255 {
            for colour in &mut pixel[..N - 1] {
                *colour = (255 * u32::from(*colour) / alpha).min(255) as u8;
            }
        }
    }
    resized
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rgb(width: usize, height: usize, pixels: Vec<u8>) -> Picture {
        Picture::new(width, height, Samples::Rgb(pixels)).unwrap()
    }

    #[test]
    fn a_square_of_the_right_size_is_left_alone() {
        let pixels: Vec<u8> = (0..48).collect();
        for (_, pipeline) in Pipeline::NAMES {
            let preprocessor = Preprocessor { pipeline, ..Preprocessor::clip(4) };
            assert_eq!(preprocessor.square(&rgb(4, 4, pixels.clone())).unwrap(), pixels);
        }
    }

    /// A surplus of 31 is cut 16 from the top by torchvision and 15 by transformers.
    #[test]
    fn an_odd_surplus_is_cut_as_each_library_does() {
        let rows: Vec<u8> = (0..35u8).flat_map(|row| [row; 12]).collect();
        for (pipeline, first) in [
            (Pipeline::OpenClip, 16),
            (Pipeline::Torchvision, 16),
            (Pipeline::HuggingFace, 15),
            (Pipeline::HuggingFaceTorch, 15),
        ] {
            let preprocessor = Preprocessor { pipeline, ..Preprocessor::clip(4) };
            assert_eq!(preprocessor.square(&rgb(4, 35, rows.clone())).unwrap()[0], first);
        }
    }

    #[test]
    fn stretching_keeps_the_whole_image() {
        let picture = rgb(2, 1, vec![0, 0, 0, 255, 255, 255]);
        let preprocessor = Preprocessor { fit: Fit::Stretch, ..Preprocessor::clip(8) };
        let square = preprocessor.square(&picture).unwrap();
        assert_eq!(square.len(), 8 * 8 * 3);
        assert_eq!((square[0], square[8 * 3 - 1]), (0, 255));
    }

    /// A line of one pixel's width becomes no line of millions.
    #[test]
    fn very_narrow_images_are_refused() {
        let picture = Picture::new(1, 30_000, Samples::Grey(vec![0; 30_000])).unwrap();
        let message = Preprocessor::clip(224).square(&picture).unwrap_err().to_string();
        assert!(message.contains("1 x 30000"), "{message}");
        assert!(Preprocessor { fit: Fit::Stretch, ..Preprocessor::clip(224) }.square(&picture).is_ok());
    }

    #[test]
    fn sixteen_bits_are_seen_through_the_window() {
        let picture = Picture::new(1, 1, Samples::Grey16(vec![1500])).unwrap();
        let grey = |window| Preprocessor { window, ..Preprocessor::clip(1) }.square(&picture).unwrap()[0];
        assert_eq!(grey([0.0, 65_535.0]), 6);
        assert_eq!(grey([1000.0, 2000.0]), 128);
    }
}
