//! The vocabulary of shapes: signed distances in [0, 1] coordinates, soft coverage, noise lattices.

use std::ops::Range;

use pipe_models::random::Key;

/// Grey planes of a square picture, one or three.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Canvas {
    pub(super) size: usize,
    pub(super) planes: Vec<Vec<f64>>,
    /// The patient's frame: scale about the centre, shift.
    frame: (f64, f64, f64),
}

/// t t (3 - 2 t) of the clamped distance: 1 inside, 0 outside, soft over 2 w.
pub(super) fn coverage(distance: f64, w: f64) -> f64 {
    let t = (0.5 - distance / (2.0 * w)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// An ellipse: centre, half axes, and the tangent of half its turning angle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ellipse {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) a: f64,
    pub(super) b: f64,
    pub(super) turn: f64,
}

pub(super) const fn ellipse(x: f64, y: f64, a: f64, b: f64, turn: f64) -> Ellipse {
    Ellipse { x, y, a, b, turn }
}

impl Ellipse {
    /// Signed distance, negative inside; the angle is given in radians and small, so tan(t/2) = t/2.
    pub(super) fn distance(&self, x: f64, y: f64) -> f64 {
        let (mut u, mut v) = (x - self.x, y - self.y);
        if self.turn != 0.0 {
            (u, v) = rotate(u, v, self.turn);
        }
        let (s, t) = (u / self.a, v / self.b);
        ((s * s + t * t).sqrt() - 1.0) * self.a.min(self.b)
    }

    /// A radius around the centre beyond which the coverage with softness `w` is zero.
    pub(super) fn reach(&self, w: f64) -> f64 {
        self.a.max(self.b) * (1.0 + w / self.a.min(self.b)) * (1.0 + 1e-9)
    }
}

/// (u, v) turned by the angle whose half has the tangent `angle / 2`.
pub(super) fn rotate(u: f64, v: f64, angle: f64) -> (f64, f64) {
    let t = angle * 0.5;
    let scale = 1.0 / (1.0 + t * t);
    let (cos, sin) = ((1.0 - t * t) * scale, 2.0 * t * scale);
    (u * cos + v * sin, v * cos - u * sin)
}

/// Smooth noise in [0, 1): a lattice of (n + 2)^2 uniforms, blended.
#[derive(Clone, Debug)]
pub(super) struct Noise {
    n: usize,
    lattice: Vec<f64>,
}

impl Noise {
    pub(super) fn new(n: usize, key: Key) -> Self {
        let lattice = (1..=((n + 2) * (n + 2)) as u64).map(|counter| key.uniform(counter)).collect();
        Self { n, lattice }
    }

    pub(super) fn at(&self, x: f64, y: f64) -> f64 {
        let n = self.n as f64;
        let (x, y) = ((x * n).clamp(0.0, n), (y * n).clamp(0.0, n));
        let (column, row) = (x.floor(), y.floor());
        let (s, t) = (x - column, y - row);
        let (s, t) = (s * s * (3.0 - 2.0 * s), t * t * (3.0 - 2.0 * t));
        let width = self.n + 2;
        let place = row as usize * width + column as usize;
        let (a, b) = (self.lattice[place], self.lattice[place + 1]);
        let (c, d) = (self.lattice[place + width], self.lattice[place + width + 1]);
        (a + (b - a) * s) * (1.0 - t) + (c + (d - c) * s) * t
    }
}

impl Canvas {
    pub(super) fn new(size: usize, channels: usize, value: f64, frame: (f64, f64, f64)) -> Self {
        Self { size, planes: vec![vec![value; size * size]; channels], frame }
    }

    /// The softness of edges.
    pub(super) fn edge(&self) -> f64 {
        (0.6 / self.size as f64).max(0.008)
    }

    /// Pixel centres: image coordinates (x, y) and those of the patient's frame (X, Y).
    pub(super) fn points(&self) -> impl Iterator<Item = Point> + use<> {
        let size = self.size;
        let (scale, dx, dy) = self.frame;
        (0..size).flat_map(move |row| {
            let y = (row as f64 + 0.5) / size as f64;
            let fy = (y - 0.5 - dy) / scale + 0.5;
            (0..size).map(move |column| {
                let x = (column as f64 + 0.5) / size as f64;
                Point { index: row * size + column, x, y, fx: (x - 0.5 - dx) / scale + 0.5, fy }
            })
        })
    }

    /// The pixels whose centres may lie within `reach` of (x, y), in image coordinates: (columns, rows).
    fn near(&self, x: f64, y: f64, reach: f64) -> (Range<usize>, Range<usize>) {
        let range = |centre: f64| {
            let pixel = |at: f64| (at * self.size as f64).clamp(0.0, self.size as f64) as usize;
            pixel(centre - reach).saturating_sub(1)..(pixel(centre + reach) + 2).min(self.size)
        };
        (range(x), range(y))
    }

    /// Mixes `value` into an ellipse of the patient's frame, visiting only the pixels around it.
    pub(super) fn mix_ellipse(&mut self, value: f64, shape: Ellipse, w: f64) {
        let (scale, dx, dy) = self.frame;
        let (x, y) = ((shape.x - 0.5) * scale + 0.5 + dx, (shape.y - 0.5) * scale + 0.5 + dy);
        let (columns, rows) = self.near(x, y, shape.reach(w) * scale);
        let size = self.size as f64;
        for row in rows {
            let fy = ((row as f64 + 0.5) / size - 0.5 - dy) / scale + 0.5;
            for column in columns.clone() {
                let fx = ((column as f64 + 0.5) / size - 0.5 - dx) / scale + 0.5;
                let q = coverage(shape.distance(fx, fy), w);
                if q > 0.0 {
                    for plane in &mut self.planes {
                        let pixel = &mut plane[row * self.size + column];
                        *pixel = *pixel * (1.0 - q) + value * q;
                    }
                }
            }
        }
    }

    /// Mixes a colour into an ellipse of image coordinates, with coverage `q` of its distance, which is
    /// zero beyond `w`; visits only the pixels around it.
    pub(super) fn mix_colour_ellipse(
        &mut self,
        colour: [f64; 3],
        shape: Ellipse,
        w: f64,
        q: impl Fn(f64) -> f64,
    ) {
        let (columns, rows) = self.near(shape.x, shape.y, shape.reach(w));
        let size = self.size as f64;
        for row in rows {
            let y = (row as f64 + 0.5) / size;
            for column in columns.clone() {
                let q = q(shape.distance((column as f64 + 0.5) / size, y));
                if q > 0.0 {
                    for (plane, value) in self.planes.iter_mut().zip(colour) {
                        let pixel = &mut plane[row * self.size + column];
                        *pixel = *pixel * (1.0 - q) + value * q;
                    }
                }
            }
        }
    }

    /// Mixes `value` in with coverage `q`, in the patient's frame.
    pub(super) fn mix(&mut self, value: f64, q: impl Fn(f64, f64) -> f64) {
        for point in self.points() {
            let q = q(point.fx, point.fy);
            if q > 0.0 {
                for plane in &mut self.planes {
                    plane[point.index] = plane[point.index] * (1.0 - q) + value * q;
                }
            }
        }
    }

    /// Adds `amount(X, Y)` in the patient's frame.
    pub(super) fn add(&mut self, amount: impl Fn(f64, f64) -> f64) {
        for point in self.points() {
            let amount = amount(point.fx, point.fy);
            for plane in &mut self.planes {
                plane[point.index] += amount;
            }
        }
    }

    /// Mixes a colour in with coverage `q`, in image coordinates.
    pub(super) fn mix_colour(&mut self, colour: [f64; 3], q: impl Fn(f64, f64) -> f64) {
        for point in self.points() {
            let q = q(point.x, point.y);
            if q > 0.0 {
                for (plane, value) in self.planes.iter_mut().zip(colour) {
                    plane[point.index] = plane[point.index] * (1.0 - q) + value * q;
                }
            }
        }
    }
}

/// A pixel centre.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) index: usize,
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) fx: f64,
    pub(super) fy: f64,
}
