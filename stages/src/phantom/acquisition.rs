//! From a noiseless picture to stored pixels: contrast, marker, speckle, blur, gain, noise, quantising.

use pipe_models::random::Key;

use super::canvas::Canvas;
use super::factors::Factors;
use super::medical::{Drawing, draw};
use super::stream::Stream;

const ACQUISITION: u64 = 3;
const SPECKLE: [u64; 2] = [11, 12];
const NOISE: u64 = 13;

/// The knobs of acquisition.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acquisition {
    pub(super) contrast: f64,
    pub(super) contrast_b: f64,
    pub(super) noise_b: f64,
    pub(super) blur_b: bool,
    /// Whether brightness varies from picture to picture: without it, noise is all that does.
    pub(super) gain: bool,
}

impl Acquisition {
    /// The contrast of lesions on device A or B.
    pub(super) fn contrast_on(&self, device_b: bool) -> f64 {
        self.contrast * if device_b { self.contrast_b } else { 1.0 }
    }
}

/// Stored pixels: interleaved channels, with the planted truths of the picture.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Picture {
    pub(super) size: usize,
    pub(super) channels: usize,
    pub(super) pixels: Vec<u8>,
    /// Whether a pixel lies inside an expert's outline: one mask for each finding, or one for all objects.
    pub(super) masks: Vec<Vec<bool>>,
    /// How much the lesion changed each pixel before noise, 255 being the whole range: an expert's
    /// outline need not hold all of it. Empty without a lesion.
    pub(super) effect: Vec<u8>,
    /// The boxes (x, y, width, height) of the lesions.
    pub(super) boxes: Vec<[i64; 4]>,
    /// Of each box, the place of its finding among the masks.
    pub(super) box_findings: Vec<usize>,
    /// The detectability of the lesion for an ideal observer; none where noise multiplies.
    pub(super) dprime: Option<f64>,
}

impl Picture {
    /// All masks together.
    pub(super) fn mask(&self) -> Vec<bool> {
        let mut all = vec![false; self.size * self.size];
        for mask in &self.masks {
            all.iter_mut().zip(mask).for_each(|(all, inside)| *all |= inside);
        }
        all
    }
}

/// Draws, acquires and quantises a medical row.
pub(super) fn acquire(factors: &Factors, size: usize, knobs: Acquisition) -> Picture {
    expose(factors, &draw(factors, size), size, knobs)
}

/// Acquires and quantises what was drawn.
pub(super) fn expose(factors: &Factors, drawing: &Drawing, size: usize, knobs: Acquisition) -> Picture {
    let base = &drawing.base;
    // Without its lesion a row is its own base.
    let mut canvas = if factors.lesion { drawing.canvas.clone() } else { base.clone() };
    let contrast = knobs.contrast_on(factors.device_b);
    let mut energy = 0.0;
    let changes = factors.shows_lesion();
    let mut effect = vec![0; if changes { size * size } else { 0 }];
    for (plane, base) in canvas.planes.iter_mut().zip(&base.planes) {
        for (index, (value, base)) in plane.iter_mut().zip(base).enumerate() {
            let difference = contrast * (*value - base);
            if changes {
                // Of several channels the most changed one counts.
                let change = (255.0 * difference.abs().min(1.0) + 0.5).floor() as u8;
                effect[index] = change.max(effect[index]);
            }
            energy += difference * difference;
            *value = base + difference;
        }
    }
    if factors.marker {
        marker(&mut canvas, factors.marker_right);
    }
    let modality = factors.site().modality;
    let mut stream = Stream::new(factors.image.sub(ACQUISITION));
    if modality == "ultrasound" {
        let strength = if factors.device_b { 0.7 } else { 0.45 };
        speckle(&mut canvas, strength, [factors.image.sub(SPECKLE[0]), factors.image.sub(SPECKLE[1])]);
    }
    if factors.device_b && knobs.blur_b {
        for plane in &mut canvas.planes {
            *plane = blur(plane, size);
        }
    }
    let (gain, offset) = if knobs.gain { (stream.f(0.9, 1.1), stream.f(-0.04, 0.04)) } else { (1.0, 0.0) };
    let sigma = if modality == "histology" { 0.02 } else { 0.03 }
        * if factors.device_b { knobs.noise_b } else { 1.0 };
    let noise = factors.image.sub(NOISE);
    let channels = canvas.planes.len();
    let pixels = quantise(&canvas, gain, offset, if modality == "ultrasound" { 0.0 } else { sigma }, noise);
    let mut masks = Vec::new();
    let (mut boxes, mut box_findings) = (Vec::new(), Vec::new());
    if factors.lesion {
        masks = vec![vec![false; size * size]; factors.subject.findings.len()];
        for (finding, lesion) in &drawing.lesions {
            let inside: Vec<usize> = (0..lesion.len()).filter(|index| lesion[*index] > 0.5).collect();
            inside.iter().for_each(|index| masks[*finding][*index] = true);
            boxes.extend(bounding_box(&inside, size));
            box_findings.resize(boxes.len(), *finding);
        }
    }
    Picture {
        size,
        channels,
        pixels,
        masks,
        effect,
        boxes,
        box_findings,
        dprime: (modality != "ultrasound" && sigma > 0.0).then(|| energy.sqrt() / sigma),
    }
}

/// The box around pixel indices.
pub(super) fn bounding_box(inside: &[usize], size: usize) -> Option<[i64; 4]> {
    let x0 = inside.iter().map(|index| index % size).min()?;
    let x1 = inside.iter().map(|index| index % size).max()?;
    let (y0, y1) = (inside.first()? / size, inside.last()? / size);
    Some([x0 as i64, y0 as i64, (x1 - x0 + 1) as i64, (y1 - y0 + 1) as i64])
}

/// Half the side of the marker.
const MARKER: f64 = 0.06;

fn marker_centre(right: bool) -> (f64, f64) {
    (if right { 0.925 } else { 0.075 }, 0.075)
}

/// The pixels of the marker.
pub(super) fn marker_mask(size: usize, right: bool) -> Vec<bool> {
    let (cx, cy) = marker_centre(right);
    let centre = |index: usize| (index as f64 + 0.5) / size as f64;
    (0..size * size)
        .map(|index| (centre(index % size) - cx).abs().max((centre(index / size) - cy).abs()) < MARKER)
        .collect()
}

/// A bright square with a dark core in an upper corner, as radiographers place one. It carries no
/// medical meaning.
fn marker(canvas: &mut Canvas, right: bool) {
    let (cx, cy) = marker_centre(right);
    for point in canvas.points() {
        let distance = (point.x - cx).abs().max((point.y - cy).abs());
        if distance < MARKER {
            let value = if distance < 0.024 { 0.10 } else { 0.95 };
            for plane in &mut canvas.planes {
                plane[point.index] = value;
            }
        }
    }
}

/// Multiplies by Rayleigh-like noise: the length of two blurred normal planes.
fn speckle(canvas: &mut Canvas, strength: f64, keys: [Key; 2]) {
    let size = canvas.size;
    let plane = |key: Key| -> Vec<f64> {
        let normals: Vec<f64> = (1..=(size * size) as u64).map(|counter| key.irwin_hall(counter)).collect();
        blur(&normals, size)
    };
    let (a, b) = (plane(keys[0]), plane(keys[1]));
    for ((value, a), b) in canvas.planes[0].iter_mut().zip(a).zip(b) {
        let m = (a * a + b * b).sqrt() / 0.47;
        *value *= 1.0 + strength * (m - 1.0);
    }
}

/// [1 2 1] / 4 both ways, edges repeated.
fn blur(plane: &[f64], size: usize) -> Vec<f64> {
    let pass = |plane: &[f64], step: usize, place: &dyn Fn(usize) -> usize| -> Vec<f64> {
        (0..plane.len())
            .map(|index| {
                let position = place(index);
                let before = if position == 0 { index } else { index - step };
                let after = if position == size - 1 { index } else { index + step };
                (plane[before] + 2.0 * plane[index] + plane[after]) / 4.0
            })
            .collect()
    };
    let rows = pass(plane, 1, &|index| index % size);
    pass(&rows, size, &|index| index / size)
}

/// u8 = floor(255 clamp(v) + 0.5), channels interleaved.
pub(super) fn quantise(canvas: &Canvas, gain: f64, offset: f64, sigma: f64, noise: Key) -> Vec<u8> {
    let channels = canvas.planes.len();
    let mut pixels = vec![0; canvas.size * canvas.size * channels];
    for (channel, plane) in canvas.planes.iter().enumerate() {
        for (index, value) in plane.iter().enumerate() {
            let draw = noise.irwin_hall((channel * plane.len() + index) as u64 + 1);
            let value = (value * gain + offset + sigma * draw).clamp(0.0, 1.0);
            pixels[index * channels + channel] = (255.0 * value + 0.5).floor() as u8;
        }
    }
    pixels
}
