//! Drawing the medical sites: anatomy, then the lesion, noiseless.

use pipe_models::random::Key;

use super::canvas::{Canvas, Ellipse, Noise, coverage, ellipse, rotate};
use super::factors::Factors;
use super::sites::{CT_AXIAL, CT_CHEST, CT_CORONAL, ULTRASOUND, XRAY_CHEST, XRAY_LIMB};
use super::stream::Stream;

const ANATOMY: u64 = 1;
const LESION: u64 = 2;
const TEXTURE: u64 = 5;
const OUTLINE: u64 = 7;
const LESION_TEXTURE: u64 = 8;
const BONE: u64 = 9;

/// A noiseless picture and where an expert would outline its lesion.
pub(super) struct Drawing {
    pub(super) canvas: Canvas,
    /// The same picture without its lesion.
    pub(super) base: Canvas,
    /// Coverage of each lesion, one plane each, with the place of its finding among the subject's.
    pub(super) lesions: Vec<(usize, Vec<f64>)>,
}

/// Draws the anatomy and, if `factors.lesion`, the lesion; and the same without it.
pub(super) fn draw(factors: &Factors, size: usize) -> Drawing {
    let Drawn { canvas, anatomy, lesions } = draw_once(factors, size);
    let base = if factors.shows_lesion() {
        // Where the lesion changes the anatomy itself, the picture without it is drawn anew.
        anatomy.unwrap_or_else(|| draw_once(&Factors { lesion: false, ..factors.clone() }, size).canvas)
    } else {
        canvas.clone()
    };
    Drawing { canvas, base, lesions }
}

struct Drawn {
    canvas: Canvas,
    anatomy: Option<Canvas>,
    lesions: Vec<(usize, Vec<f64>)>,
}

fn draw_once(factors: &Factors, size: usize) -> Drawn {
    let channels = if factors.site().modality == "histology" { 3 } else { 1 };
    let mut pen = Pen {
        factors,
        canvas: Canvas::new(size, channels, 0.0, factors.frame),
        anatomy: Stream::new(factors.image.sub(ANATOMY)),
        current: 0,
        lesion: Stream::new(factors.image.sub(LESION)),
        lesions: Vec::new(),
        complete: None,
    };
    match factors.subject.site {
        XRAY_CHEST => pen.xray_chest(),
        XRAY_LIMB => pen.xray_limb(),
        CT_CHEST => pen.ct_chest(),
        CT_AXIAL => pen.ct_abdomen_axial(),
        CT_CORONAL => pen.ct_abdomen_coronal(),
        ULTRASOUND => pen.ultrasound(),
        _ => pen.histology(),
    }
    Drawn { canvas: pen.canvas, anatomy: pen.complete, lesions: pen.lesions }
}

struct Pen<'a> {
    factors: &'a Factors,
    canvas: Canvas,
    anatomy: Stream,
    /// The finding that is drawn now, by its place among the subject's, and its stream.
    current: usize,
    lesion: Stream,
    lesions: Vec<(usize, Vec<f64>)>,
    /// The complete anatomy, where the lesion is drawn onto it.
    complete: Option<Canvas>,
}

/// An irregular outline: the ellipse's distance minus noise.
struct Blob {
    ellipse: Ellipse,
    strength: f64,
    noise: Noise,
}

impl Blob {
    fn new(x: f64, y: f64, r: f64, strength: f64, key: Key) -> Self {
        Self { ellipse: ellipse(x, y, r, r, 0.0), strength, noise: Noise::new(9, key) }
    }

    fn distance(&self, x: f64, y: f64) -> f64 {
        self.ellipse.distance(x, y) - self.strength * self.ellipse.a * (self.noise.at(x, y) - 0.5)
    }
}

impl Pen<'_> {
    /// Turns to a finding: its stream is drawn from its beginning.
    fn turn_to(&mut self, finding: usize) -> &'static str {
        self.current = finding;
        self.lesion = Stream::new(self.lesion_key().sub(LESION));
        self.finding()
    }

    fn lesion_key(&self) -> Key {
        self.factors.finding_key(self.current)
    }

    fn finding(&self) -> &'static str {
        self.factors.subject.findings[self.current].name()
    }

    /// The places of the findings.
    fn findings(&self) -> std::ops::Range<usize> {
        0..self.factors.subject.findings.len()
    }

    /// The place of the finding of this name.
    fn place(&self, name: &str) -> Option<usize> {
        self.factors.subject.findings.iter().position(|one| one.name() == name)
    }

    /// Keeps the anatomy as it is now: only the lesion is still to be drawn.
    fn anatomy_is_complete(&mut self) {
        if self.factors.shows_lesion() {
            self.complete = Some(self.canvas.clone());
        }
    }

    fn sub(&self, purpose: u64) -> Key {
        self.factors.image.sub(purpose)
    }

    /// The first number if the finding is on the patient's right, which is the image's left.
    fn side(&self, image_left: f64, image_right: f64) -> f64 {
        if self.factors.subject.left == Some(true) { image_right } else { image_left }
    }

    fn size(&mut self, small: (f64, f64), large: (f64, f64)) -> f64 {
        let is_large = self.factors.subject.is_large();
        let (a, b) = if is_large { large } else { small };
        let shrink = if is_large && self.count() > 1 { 0.8 } else { 1.0 };
        self.lesion.f(a, b) * shrink
    }

    /// Remembers the coverage of one lesion (frame coordinates) and whether it is to be drawn.
    fn outline(&mut self, q: impl Fn(f64, f64) -> f64) {
        let coverage = self.canvas.points().map(|point| q(point.fx, point.fy)).collect();
        self.lesions.push((self.current, coverage));
    }

    fn outline_image(&mut self, q: impl Fn(f64, f64) -> f64) {
        let coverage = self.canvas.points().map(|point| q(point.x, point.y)).collect();
        self.lesions.push((self.current, coverage));
    }

    /// Centres in a box, apart from each other: for each the best of twelve tries.
    fn centres(&mut self, centre: (f64, f64), half: (f64, f64), radii: &[f64]) -> Vec<(f64, f64)> {
        let mut placed: Vec<(f64, f64, f64)> = Vec::new();
        for radius in radii {
            let mut best: Option<(f64, f64, f64)> = None;
            for _ in 0..12 {
                let x = centre.0 + self.lesion.j(half.0);
                let y = centre.1 + self.lesion.j(half.1);
                let gap = placed
                    .iter()
                    .map(|(px, py, pr)| ((x - px) * (x - px) + (y - py) * (y - py)).sqrt() - pr - radius)
                    .fold(f64::INFINITY, f64::min);
                if best.is_none_or(|(best_gap, ..)| best_gap < 0.02 && gap > best_gap) {
                    best = Some((gap, x, y));
                }
            }
            if let Some((_, x, y)) = best {
                placed.push((x, y, *radius));
            }
        }
        placed.into_iter().map(|(x, y, _)| (x, y)).collect()
    }

    fn radii(&mut self, small: (f64, f64), large: (f64, f64)) -> Vec<f64> {
        (0..self.count()).map(|_| self.size(small, large)).collect()
    }

    fn count(&self) -> usize {
        self.factors.subject.findings[self.current].count
    }

    fn xray_chest(&mut self) {
        let e = self.canvas.edge();
        let body = ellipse(0.5, 0.66, 0.48, 0.66, 0.0);
        let mut side = |sign: f64| {
            ellipse(
                0.5 + sign * 0.195,
                0.47,
                0.150 + self.anatomy.j(0.012),
                0.335 + self.anatomy.j(0.02),
                sign * (0.07 + self.anatomy.j(0.03)),
            )
        };
        let lungs = [side(-1.0), side(1.0)];
        let diaphragm = 0.79 + self.anatomy.j(0.015);
        let depth = 0.36 + self.anatomy.j(0.03);
        let heart_x = 0.545 + self.anatomy.j(0.01);
        let normal_r = self.anatomy.f(0.115, 0.135);
        let lung = move |x: f64, y: f64| {
            let inside = lungs[0].distance(x, y).min(lungs[1].distance(x, y));
            let off = (x - 0.5).abs() - 0.18;
            coverage(inside, e).min(coverage(y - diaphragm - off * off, e))
        };
        self.canvas.add(|x, y| {
            let inside = coverage(body.distance(x, y), 0.02);
            let mut value = 0.05 + inside * (0.50 + 0.06 * (y - 0.5));
            value -= depth * lung(x, y);
            let off = (x - 0.5).abs();
            if off > 0.045 && inside > 0.0 {
                for rib in 0..7 {
                    let centre = 0.17 + 0.088 * f64::from(rib) + 1.1 * (off - 0.16) * (off - 0.16);
                    value += 0.075 * coverage((y - centre).abs() - 0.011, e) * inside;
                }
            }
            value + 0.06 * coverage((y - 0.155 - 0.25 * off).abs() - 0.014, e) * inside
        });
        let mut heart_r = normal_r;
        let cardiomegaly = self.place("cardiomegaly");
        if let Some(place) = cardiomegaly {
            self.turn_to(place);
            let enlarged = if self.factors.subject.is_large() { 0.245 } else { 0.215 } + self.lesion.j(0.01);
            if self.factors.lesion {
                heart_r = enlarged;
            }
        }
        let heart = ellipse(heart_x, 0.675, heart_r, 0.115 + 0.28 * (heart_r - 0.12), 0.12);
        for point in self.canvas.points() {
            let q = coverage(heart.distance(point.fx, point.fy), e);
            let value = &mut self.canvas.planes[0][point.index];
            *value = value.max(*value * (1.0 - q) + 0.60 * q);
        }
        self.canvas.add(|x, y| {
            let off = (x - 0.5).abs();
            let inside = coverage(body.distance(x, y), 0.02);
            inside * (0.10 * coverage(off - 0.06, 0.03) + 0.06 * coverage(off - 0.03, e))
        });
        if cardiomegaly.is_none() {
            self.anatomy_is_complete();
        }
        for finding in self.findings() {
            match self.turn_to(finding) {
                "cardiomegaly" => self.outline(|x, y| coverage(heart.distance(x, y), e)),
                "nodule" => {
                    let radii = self.radii((0.042, 0.052), (0.075, 0.095));
                    let brightness = self.lesion.f(0.30, 0.38);
                    let centres = self.centres((self.side(0.30, 0.70), 0.45), (0.085, 0.19), &radii);
                    for ((x, y), r) in centres.into_iter().zip(radii) {
                        let shape = ellipse(x, y, r, r * self.lesion.f(0.85, 1.0), self.lesion.j(0.5));
                        if self.factors.lesion {
                            self.canvas.add(|x, y| brightness * coverage(shape.distance(x, y), 1.5 * e));
                        }
                        self.outline(|x, y| coverage(shape.distance(x, y), 1.5 * e));
                    }
                }
                "effusion" => {
                    let level =
                        if self.factors.subject.is_large() { 0.52 } else { 0.665 } + self.lesion.j(0.025);
                    let lung = if self.side(0.0, 1.0) == 0.0 { lungs[0] } else { lungs[1] };
                    let q = move |x: f64, y: f64| {
                        let off = (x - lung.x) / 0.15;
                        coverage(lung.distance(x, y), e).min(coverage(level - 0.05 * off * off - y, e))
                    };
                    if self.factors.lesion {
                        self.canvas.mix(0.62, q);
                    }
                    self.outline(q);
                }
                "consolidation" => {
                    let x = self.side(0.30, 0.70) + self.lesion.f(-0.03, 0.03);
                    let y = 0.45 + self.lesion.f(-0.15, 0.14);
                    let r = self.size((0.07, 0.085), (0.10, 0.125));
                    let blob = Blob::new(x, y, r, 0.9, self.lesion_key().sub(OUTLINE));
                    let texture = Noise::new(13, self.lesion_key().sub(LESION_TEXTURE));
                    let inside = |x: f64, y: f64| coverage(blob.distance(x, y), 0.035) * lung(x, y);
                    if self.factors.lesion {
                        self.canvas.add(|x, y| 0.40 * inside(x, y) * (0.45 + 0.55 * texture.at(x, y)));
                    }
                    self.outline(inside);
                }
                _ => {}
            }
        }
    }

    fn xray_limb(&mut self) {
        let e = self.canvas.edge();
        let turn = self.anatomy.f(-0.28, 0.28);
        let grain = Noise::new(17, self.sub(BONE));
        let fracture = self.place("fracture");
        let line = fracture.filter(|_| self.factors.lesion).map(|place| {
            self.turn_to(place);
            self.fracture_line()
        });
        let axes = move |x: f64, y: f64| rotate(x - 0.5, y - 0.5, turn);
        let bone = move |u: f64, v: f64| u.abs() - 0.085 - 0.06 * sixth_power(2.0 * v);
        self.canvas.add(|x, y| {
            let (u, v) = axes(x, y);
            let shifted = match line {
                Some(line) if v > line.at + line.slope * u => u - line.shift,
                _ => u,
            };
            let cortex = bone(shifted, v);
            let mut value = 0.05 + 0.30 * coverage(u.abs() - 0.24 - 0.05 * v, 0.02);
            value += coverage(cortex, e) * (0.50 + 0.06 * (grain.at(x, y) - 0.5))
                - 0.22 * coverage(cortex + 0.035, e);
            if let Some(Fracture { at, slope, gap, .. }) = line {
                value -= 0.42 * coverage((v - at - slope * u).abs() - gap, e) * coverage(cortex, e);
            }
            value
        });
        if fracture.is_none() {
            self.anatomy_is_complete();
        }
        for finding in self.findings() {
            let name = self.turn_to(finding);
            // Every finding of a limb draws the line, so that its further numbers are always the same.
            let Fracture { at, slope, .. } = self.fracture_line();
            match name {
                "fracture" => self.outline(|x, y| {
                    let (u, v) = axes(x, y);
                    coverage((v - at - slope * u).abs() - 0.045, e).min(coverage(bone(u, v) - 0.03, e))
                }),
                "cyst" => {
                    let r = self.size((0.044, 0.054), (0.075, 0.09));
                    let v0 = self.lesion.f(-0.25, 0.25);
                    let disc = move |x: f64, y: f64| {
                        let (u, v) = axes(x, y);
                        (u * u + (v - v0) * (v - v0)).sqrt() - r
                    };
                    if self.factors.lesion {
                        self.canvas.mix(0.28, |x, y| coverage(disc(x, y), e));
                        self.canvas.add(|x, y| 0.20 * coverage(disc(x, y).abs() - 0.008, e));
                    }
                    self.outline(|x, y| coverage(disc(x, y), e));
                }
                _ => {}
            }
        }
    }

    fn fracture_line(&mut self) -> Fracture {
        Fracture {
            at: self.lesion.f(-0.22, 0.22),
            slope: self.lesion.f(-0.7, 0.7),
            shift: self.lesion.f(0.03, 0.055) * if self.lesion.chance(0.5) { 1.0 } else { -1.0 },
            gap: self.lesion.f(0.010, 0.018),
        }
    }

    /// Hounsfield units through the window [-160, 240] to [0, 1].
    fn window(&mut self) {
        for canvas in [Some(&mut self.canvas), self.complete.as_mut()].into_iter().flatten() {
            for value in &mut canvas.planes[0] {
                *value = ((*value + 160.0) / 400.0).clamp(0.0, 1.0);
            }
        }
    }

    fn fill(&mut self, hounsfield: f64, shape: Ellipse) {
        self.canvas.mix_ellipse(hounsfield, shape, self.canvas.edge());
    }

    fn ct_chest(&mut self) {
        let e = self.canvas.edge();
        self.canvas.planes[0].fill(-1000.0);
        self.fill(-90.0, ellipse(0.5, 0.5, 0.45, 0.33, 0.0));
        self.fill(45.0, ellipse(0.5, 0.5, 0.42, 0.30, 0.0));
        let lungs = [ellipse(0.29, 0.48, 0.145, 0.215, -0.05), ellipse(0.71, 0.48, 0.145, 0.215, 0.05)];
        self.fill(-820.0, lungs[0]);
        self.fill(-820.0, lungs[1]);
        for vessel in 0..12 {
            let centre = if vessel % 2 == 0 { 0.29 } else { 0.71 };
            let shape =
                ellipse(centre + self.anatomy.j(0.09), 0.48 + self.anatomy.j(0.15), 0.009, 0.009, 0.0);
            self.fill(-80.0, shape);
        }
        self.fill(50.0, ellipse(0.545, 0.44, 0.115, 0.12, 0.0));
        self.fill(420.0, ellipse(0.5, 0.72, 0.05, 0.05, 0.0));
        let aorta = self.anatomy.f(150.0, 160.0);
        self.fill(aorta, ellipse(0.455, 0.62, 0.028, 0.028, 0.0));
        self.anatomy_is_complete();
        let lung = if self.side(0.0, 1.0) == 0.0 { lungs[0] } else { lungs[1] };
        for finding in self.findings() {
            match self.turn_to(finding) {
                "nodule" => {
                    let radii = self.radii((0.042, 0.052), (0.075, 0.095));
                    let centres = self.centres((self.side(0.29, 0.71), 0.46), (0.075, 0.13), &radii);
                    for ((x, y), r) in centres.into_iter().zip(radii) {
                        let hounsfield = self.lesion.f(20.0, 90.0);
                        self.lesion_shape(hounsfield, ellipse(x, y, r, r, 0.0));
                    }
                }
                "effusion" => {
                    let level = if self.factors.subject.is_large() { 0.50 } else { 0.585 };
                    let q = move |x: f64, y: f64| {
                        coverage(lung.distance(x, y) + 2.0 * e, e).min(coverage(level - y, e))
                    };
                    if self.factors.lesion {
                        self.canvas.mix(10.0, q);
                    }
                    self.outline(q);
                }
                "consolidation" => {
                    let r = self.size((0.06, 0.07), (0.09, 0.11));
                    let blob = Blob::new(
                        self.side(0.29, 0.71) + self.lesion.j(0.03),
                        0.46 + self.lesion.j(0.1),
                        r,
                        0.9,
                        self.lesion_key().sub(OUTLINE),
                    );
                    let texture = Noise::new(15, self.lesion_key().sub(LESION_TEXTURE));
                    let q = |x: f64, y: f64| {
                        coverage(blob.distance(x, y), 0.02).min(coverage(lung.distance(x, y), e))
                    };
                    if self.factors.lesion {
                        self.canvas.mix(40.0, |x, y| q(x, y) * (0.80 + 0.20 * texture.at(x, y)));
                    }
                    self.outline(q);
                }
                _ => {}
            }
        }
        self.window();
    }

    fn lesion_shape(&mut self, hounsfield: f64, shape: Ellipse) {
        let e = self.canvas.edge();
        if self.factors.lesion {
            self.fill(hounsfield, shape);
        }
        self.outline(|x, y| coverage(shape.distance(x, y), e));
    }

    fn ct_abdomen_axial(&mut self) {
        self.canvas.planes[0].fill(-1000.0);
        self.fill(-90.0, ellipse(0.5, 0.5, 0.45, 0.35, 0.0));
        self.fill(40.0, ellipse(0.5, 0.5, 0.405, 0.305, 0.0));
        let (liver, spleen) = (62.0 + self.anatomy.j(6.0), 55.0 + self.anatomy.j(6.0));
        self.fill(liver, ellipse(0.33, 0.45, 0.185, 0.19, 0.2));
        self.fill(spleen, ellipse(0.71, 0.49, 0.085, 0.14, -0.15));
        for x in [0.37, 0.63] {
            self.fill(-90.0, ellipse(x, 0.625, 0.068, 0.055, 0.0));
            self.fill(30.0, ellipse(x, 0.625, 0.055, 0.042, 0.0));
        }
        self.fill(420.0, ellipse(0.5, 0.69, 0.058, 0.055, 0.0));
        self.fill(30.0, ellipse(0.5, 0.70, 0.018, 0.018, 0.0));
        let aorta = self.anatomy.f(150.0, 160.0);
        self.fill(aorta, ellipse(0.485, 0.575, 0.027, 0.027, 0.0));
        let gas = self.anatomy.f(-700.0, -300.0);
        self.fill(gas, ellipse(0.56, 0.33, 0.07, 0.045, 0.0));
        let (organ, half) = self.organ(((0.33, 0.45), (0.10, 0.10)), ((0.70, 0.50), (0.045, 0.085)));
        let kidney = (self.side(0.37, 0.63), 0.625);
        self.abdominal_lesion(organ, half, kidney, (0.03, 0.025));
        self.window();
    }

    fn ct_abdomen_coronal(&mut self) {
        let e = self.canvas.edge();
        self.canvas.planes[0].fill(-1000.0);
        let body = ellipse(0.5, 0.5, 0.40, 0.70, 0.0);
        let inside = move |x: f64, y: f64, inset: f64| {
            coverage(body.distance(x, y) + inset, e).min(coverage((y - 0.5).abs() - 0.47, e))
        };
        self.canvas.mix(-90.0, |x, y| inside(x, y, 0.0));
        self.canvas.mix(40.0, |x, y| inside(x, y, 0.035));
        for x in [0.33, 0.67] {
            self.fill(-820.0, ellipse(x, 0.06, 0.12, 0.13, 0.0));
        }
        let (liver, spleen) = (62.0 + self.anatomy.j(6.0), 55.0 + self.anatomy.j(6.0));
        self.fill(liver, ellipse(0.36, 0.33, 0.175, 0.135, -0.1));
        self.fill(spleen, ellipse(0.67, 0.34, 0.075, 0.11, 0.1));
        for x in [0.38, 0.62] {
            self.fill(-90.0, ellipse(x, 0.60, 0.058, 0.098, 0.0));
            self.fill(30.0, ellipse(x, 0.60, 0.045, 0.085, 0.0));
        }
        self.canvas.mix(420.0, |x, y| coverage((x - 0.5).abs() - 0.04, e).min(inside(x, y, 0.0)));
        self.fill(10.0, ellipse(0.5, 0.86, 0.16, 0.08, 0.0));
        let gas = self.anatomy.f(-700.0, -300.0);
        self.fill(gas, ellipse(0.60, 0.47, 0.05, 0.03, 0.0));
        let (organ, half) = self.organ(((0.36, 0.34), (0.09, 0.06)), ((0.66, 0.34), (0.045, 0.06)));
        let kidney = (self.side(0.38, 0.62), 0.60);
        self.abdominal_lesion(organ, half, kidney, (0.02, 0.05));
        self.window();
    }

    /// The liver's box on the patient's right, the spleen's on the left.
    fn organ(
        &self,
        right: ((f64, f64), (f64, f64)),
        left: ((f64, f64), (f64, f64)),
    ) -> ((f64, f64), (f64, f64)) {
        if self.factors.subject.left == Some(true) { left } else { right }
    }

    fn abdominal_lesion(
        &mut self,
        organ: (f64, f64),
        half: (f64, f64),
        kidney: (f64, f64),
        kidney_half: (f64, f64),
    ) {
        let e = self.canvas.edge();
        self.anatomy_is_complete();
        for finding in self.findings() {
            match self.turn_to(finding) {
                "cyst" => {
                    let radii = self.radii((0.044, 0.054), (0.078, 0.098));
                    for ((x, y), r) in self.centres(organ, half, &radii).into_iter().zip(radii) {
                        let hounsfield = -35.0 + self.lesion.j(10.0);
                        self.lesion_shape(hounsfield, ellipse(x, y, r, r, 0.0));
                    }
                }
                "mass" => {
                    let hounsfield = 165.0 + self.lesion.j(15.0);
                    let r = self.size((0.06, 0.075), (0.10, 0.125));
                    let (x, y) = (organ.0 + self.lesion.j(half.0), organ.1 + self.lesion.j(half.1));
                    let blob = Blob::new(x, y, r, 0.9, self.lesion_key().sub(OUTLINE));
                    if self.factors.lesion {
                        self.canvas.mix(hounsfield, |x, y| coverage(blob.distance(x, y), e));
                    }
                    self.outline(|x, y| coverage(blob.distance(x, y), e));
                }
                "stone" => {
                    let radii = self.radii((0.026, 0.031), (0.038, 0.046));
                    for ((x, y), r) in self.centres(kidney, kidney_half, &radii).into_iter().zip(radii) {
                        self.lesion_shape(650.0, ellipse(x, y, r, r, 0.0));
                    }
                }
                _ => {}
            }
        }
    }

    fn ultrasound(&mut self) {
        let e = self.canvas.edge();
        let texture = Noise::new(5, self.sub(TEXTURE));
        // Beams leave the apex above the picture.
        let polar = |x: f64, y: f64| {
            let (u, v) = (x - 0.5, y + 0.22);
            (u / v, (u * u + v * v).sqrt())
        };
        let fan = |x: f64, y: f64| {
            let (slope, radius) = polar(x, y);
            coverage(slope.abs() - 0.60, e).min(coverage(radius - 1.16, e)).min(coverage(0.28 - radius, e))
        };
        let mut echo = vec![0.0; self.canvas.size * self.canvas.size];
        for point in self.canvas.points() {
            let (_, radius) = polar(point.x, point.y);
            let mut value = 0.40 + 0.10 * (texture.at(point.x, point.y) - 0.5) - 0.12 * (radius - 0.6);
            value += 0.25 * coverage((radius - 0.36).abs() - 0.012, e);
            echo[point.index] = value;
        }
        let drawn = self.factors.lesion;
        for finding in self.findings() {
            let finding = self.turn_to(finding);
            let (small, large) = match finding {
                "cyst" => ((0.044, 0.054), (0.078, 0.098)),
                "mass" => ((0.06, 0.075), (0.10, 0.125)),
                _ => ((0.026, 0.031), (0.038, 0.046)),
            };
            let radii = self.radii(small, large);
            for ((cx, cy), r) in self.centres((0.5, 0.52), (0.17, 0.16), &radii).into_iter().zip(radii) {
                let shape = Blob::new(
                    cx,
                    cy,
                    r,
                    if finding == "mass" { 0.9 } else { 0.0 },
                    self.lesion_key().sub(OUTLINE),
                );
                let (beam, depth) = polar(cx, cy);
                let behind = move |x: f64, y: f64| {
                    let (slope, radius) = polar(x, y);
                    coverage((slope - beam).abs() * depth - r, e).min(coverage(depth - radius, e))
                };
                if drawn {
                    let factor = match finding {
                        "cyst" => 1.75,
                        "mass" => 0.65,
                        _ => 0.15,
                    };
                    for point in self.canvas.points() {
                        let value = &mut echo[point.index];
                        let q = behind(point.x, point.y);
                        *value *= 1.0 + (factor - 1.0) * q;
                        let inside = coverage(shape.distance(point.x, point.y), e);
                        let level = match finding {
                            "cyst" => 0.03,
                            "mass" => 0.19,
                            _ => 0.95,
                        };
                        *value = *value * (1.0 - inside) + level * inside;
                    }
                }
                self.outline_image(|x, y| coverage(shape.distance(x, y), e));
            }
        }
        for point in self.canvas.points() {
            self.canvas.planes[0][point.index] = echo[point.index] * fan(point.x, point.y);
        }
    }

    fn histology(&mut self) {
        let e = self.canvas.edge();
        let base = [0.93 + self.anatomy.j(0.03), 0.76 + self.anatomy.j(0.03), 0.86 + self.anatomy.j(0.03)];
        let stroma = Noise::new(7, self.sub(TEXTURE));
        for point in self.canvas.points() {
            let amount = 0.16 * stroma.at(point.x, point.y);
            for (channel, weight) in [0.6, 1.2, 0.7].into_iter().enumerate() {
                self.canvas.planes[channel][point.index] = base[channel] * (1.0 - amount * weight);
            }
        }
        let glands = self.anatomy.below(4) as usize;
        for quadrant in 0..glands {
            let x = if quadrant % 2 == 0 { 0.25 } else { 0.75 } + self.anatomy.j(0.08);
            let y = if quadrant < 2 { 0.25 } else { 0.75 } + self.anatomy.j(0.08);
            let r = self.anatomy.f(0.085, 0.115);
            let ring = ellipse(x, y, r, r, 0.0);
            self.canvas.mix_colour_ellipse([0.70, 0.42, 0.68], ring, e, |d| coverage(d, e));
            self.canvas.mix_colour_ellipse([0.97, 0.95, 0.97], ring, e, |d| coverage(d + 0.035, e));
        }
        let nuclei = 14 + self.anatomy.below(10);
        for _ in 0..nuclei {
            let shape = ellipse(
                self.anatomy.f(0.0, 1.0),
                self.anatomy.f(0.0, 1.0),
                self.anatomy.f(0.016, 0.024),
                self.anatomy.f(0.010, 0.016),
                self.anatomy.j(1.5),
            );
            let tint = self.anatomy.j(0.04);
            let colour = [0.38 + tint, 0.24 + tint, 0.55 + tint];
            self.canvas.mix_colour_ellipse(colour, shape, e, |d| coverage(d, e));
        }
        if self.factors.subject.is_normal() {
            return;
        }
        self.anatomy_is_complete();
        for finding in self.findings() {
            let finding = self.turn_to(finding);
            let r = self.size((0.14, 0.17), (0.22, 0.26));
            let (cx, cy) = (self.lesion.f(0.3, 0.7), self.lesion.f(0.3, 0.7));
            let disc = ellipse(cx, cy, r, r, 0.0);
            let (count, low, high) = match (finding, self.factors.subject.is_large()) {
                ("tumor", false) => (11, 0.036, 0.05),
                ("tumor", true) => (20, 0.036, 0.05),
                (_, false) => (22, 0.014, 0.018),
                (_, true) => (46, 0.014, 0.018),
            };
            let drawn = self.factors.lesion;
            if drawn {
                let tint = [0.62, 0.45, 0.72];
                self.canvas.mix_colour_ellipse(tint, disc, 0.03, |d| 0.25 * coverage(d, 0.03));
            }
            for _ in 0..count {
                // Uniform in the square around the disc, pulled in where it falls outside.
                let (mut u, mut v) = (self.lesion.j(1.0), self.lesion.j(1.0));
                let length = (u * u + v * v).sqrt();
                if length > 1.0 {
                    (u, v) = (u / (length * length), v / (length * length));
                }
                let radius = self.lesion.f(low, high);
                let tint = self.lesion.j(0.04);
                let shape = ellipse(
                    cx + 0.9 * r * u,
                    cy + 0.9 * r * v,
                    radius,
                    radius * self.lesion.f(0.8, 1.0),
                    self.lesion.j(1.5),
                );
                if drawn {
                    let colour = [0.34 + tint, 0.20 + tint, 0.50 + tint];
                    self.canvas.mix_colour_ellipse(colour, shape, e, |d| coverage(d, e));
                }
            }
            self.outline_image(|x, y| coverage(disc.distance(x, y), e));
        }
    }
}

/// Where a bone is broken: the line v = at + slope u, how far the far part is shifted across, and half
/// the width of the gap.
#[derive(Clone, Copy)]
struct Fracture {
    at: f64,
    slope: f64,
    shift: f64,
    gap: f64,
}

/// x^6 by multiplication: `powi` need not round alike everywhere.
fn sixth_power(x: f64) -> f64 {
    let square = x * x;
    square * square * square
}
