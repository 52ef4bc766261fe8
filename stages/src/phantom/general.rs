//! The general domain: coloured shapes on a muted background.

use pipe_models::random::Key;

use super::acquisition::{Picture, bounding_box, quantise};
use super::canvas::{Canvas, Noise, coverage};
use super::stream::{Stream, key};

pub(super) const SHAPES: [&str; 6] = ["circle", "square", "triangle", "ring", "cross", "diamond"];
pub(super) const COLOURS: [&str; 6] = ["red", "green", "blue", "yellow", "purple", "white"];
const RGB: [[f64; 3]; 6] = [
    [0.85, 0.12, 0.12],
    [0.12, 0.70, 0.20],
    [0.15, 0.25, 0.90],
    [0.92, 0.85, 0.15],
    [0.60, 0.15, 0.75],
    [0.97, 0.97, 0.97],
];
pub(super) const ROWS: [&str; 3] = ["top", "middle", "bottom"];
pub(super) const COLUMNS: [&str; 3] = ["left", "centre", "right"];

/// One object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Object {
    pub(super) shape: usize,
    pub(super) colour: usize,
    pub(super) large: bool,
    pub(super) row: usize,
    pub(super) column: usize,
    radius: f64,
    x: f64,
    y: f64,
}

/// One row of the general domain.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scene {
    pub(super) objects: Vec<Object>,
    background: [[f64; 3]; 2],
    image: Key,
}

impl Scene {
    /// The scene of a number.
    pub(super) fn draw(seed: u64, number: u64, image: u64) -> Self {
        let image = key(seed, "general", "image", &[number, image]);
        let mut stream = Stream::new(image);
        let count = 1 + stream.below(2) as usize;
        let mut cells: Vec<usize> = (0..9).collect();
        let mut objects = Vec::new();
        // Always two, so that the stream's order is fixed; the second may stay unused.
        for _ in 0..2 {
            let cell = cells.remove(stream.below(cells.len() as u64) as usize);
            let (row, column) = (cell / 3, cell % 3);
            let shape = stream.below(6) as usize;
            let colour = stream.below(6) as usize;
            let large = stream.chance(0.5);
            let small_radius = stream.f(0.065, 0.08);
            let large_radius = stream.f(0.125, 0.15);
            objects.push(Object {
                shape,
                colour,
                large,
                row,
                column,
                radius: if large { large_radius } else { small_radius },
                x: (column as f64 + 0.5) / 3.0 + stream.j(0.03),
                y: (row as f64 + 0.5) / 3.0 + stream.j(0.03),
            });
        }
        objects.truncate(count);
        let mut muted = || [stream.f(0.25, 0.6), stream.f(0.25, 0.6), stream.f(0.25, 0.6)];
        let background = [muted(), muted()];
        Self { objects, background, image }
    }

    /// The largest object, the first of equals: what labels speak of.
    pub(super) fn main_object(&self) -> Object {
        let mut main = self.objects[0];
        for object in &self.objects[1..] {
            if object.large && !main.large {
                main = *object;
            }
        }
        main
    }

    /// Draws and quantises the scene.
    pub(super) fn picture(&self, size: usize) -> Picture {
        let mut canvas = Canvas::new(size, 3, 0.0, (1.0, 0.0, 0.0));
        let blend = Noise::new(4, self.image.sub(5));
        for point in canvas.points() {
            let s = blend.at(point.x, point.y);
            for channel in 0..3 {
                canvas.planes[channel][point.index] =
                    self.background[0][channel] * (1.0 - s) + self.background[1][channel] * s;
            }
        }
        let e = canvas.edge();
        let mut mask = vec![false; size * size];
        let mut boxes = Vec::new();
        for object in &self.objects {
            canvas.mix_colour(RGB[object.colour], |x, y| coverage(object.distance(x, y), e));
            let inside: Vec<usize> = canvas
                .points()
                .filter(|point| object.distance(point.x, point.y) < 0.0)
                .map(|point| point.index)
                .collect();
            inside.iter().for_each(|index| mask[*index] = true);
            boxes.extend(bounding_box(&inside, size));
        }
        let mut stream = Stream::new(self.image.sub(3));
        let (gain, offset) = (stream.f(0.9, 1.1), stream.f(-0.04, 0.04));
        let pixels = quantise(&canvas, gain, offset, 0.03, self.image.sub(13));
        Picture {
            size,
            channels: 3,
            pixels,
            masks: vec![mask],
            effect: Vec::new(),
            box_findings: vec![0; boxes.len()],
            boxes,
            dprime: None,
        }
    }
}

impl Object {
    /// Signed distance, negative inside.
    fn distance(&self, x: f64, y: f64) -> f64 {
        let (u, v, r) = (x - self.x, y - self.y, self.radius);
        match SHAPES[self.shape] {
            "circle" => (u * u + v * v).sqrt() - r,
            "square" => u.abs().max(v.abs()) - 0.85 * r,
            // Upright, its base at the bottom.
            "triangle" => (v - 0.7 * r).max(0.5 * u.abs() * 1.732 + 0.5 * -v - 0.55 * r),
            "ring" => ((u * u + v * v).sqrt() - 0.75 * r).abs() - 0.25 * r,
            "cross" => {
                let bar = |a: f64, b: f64| (a.abs() - r).max(b.abs() - 0.3 * r);
                bar(u, v).min(bar(v, u))
            }
            _ => (u.abs() + v.abs() - r) * 0.707,
        }
    }
}
