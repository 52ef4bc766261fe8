//! Compactness by minimum spanning trees (MST-C; Mesgari et al. 2026): do the greatest magnitudes lie
//! together, and in one piece?

use super::{Undefined, Value};

/// Magnitudes from this percentile on are looked at.
const PERCENTILE: f64 = 80.0;
/// Neighbours of a pixel in the graph.
const NEIGHBOURS: usize = 20;

type Point = (i64, i64);

/// 100 * diagonal * spread * cohesion. Spread: 1 over the root of the area of the convex hull of the
/// greatest magnitudes (over the image's diagonal if they lie on a line). Cohesion: their number over the
/// length of the minimum spanning tree of the graph of each with its twenty nearest. Higher is more
/// compact.
///
/// # Errors
/// If fewer than two pixels are left.
pub fn compactness(map: &[f64], width: usize) -> Value {
    let height = map.len() / width.max(1);
    let magnitudes: Vec<f64> = map.iter().map(|value| value.abs()).collect();
    let threshold = percentile(&magnitudes, PERCENTILE);
    let points: Vec<Point> = (0..magnitudes.len())
        .filter(|index| magnitudes[*index] >= threshold)
        .map(|index| ((index / width) as i64, (index % width) as i64))
        .collect();
    if points.len() < 2 {
        return Err(Undefined::NoMass);
    }
    let diagonal = ((height * height + width * width) as f64).sqrt();
    let area = hull_area(&points);
    let spread = if area > 0.0 { 1.0 / area.sqrt() } else { 1.0 / diagonal };
    let cohesion = points.len() as f64 / tree_length(&points);
    Ok(spread * cohesion * diagonal * 100.0)
}

/// By linear interpolation between the sorted values.
fn percentile(values: &[f64], percentage: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (sorted.len().saturating_sub(1)) as f64 * percentage / 100.0;
    let (low, share) = (place.floor() as usize, place.fract());
    match (sorted.get(low), sorted.get(low + 1)) {
        (Some(low), Some(high)) => low + (high - low) * share,
        (Some(low), None) => *low,
        _ => f64::NAN,
    }
}

/// The area of the convex hull (Andrew's monotone chain). `points` are sorted.
fn hull_area(points: &[Point]) -> f64 {
    let turn = |a: Point, b: Point, c: Point| (b.0 - a.0) * (c.1 - a.1) - (b.1 - a.1) * (c.0 - a.0);
    let half = |points: &mut dyn Iterator<Item = Point>| {
        let mut chain: Vec<Point> = Vec::new();
        for point in points {
            while chain.len() > 1 && turn(chain[chain.len() - 2], chain[chain.len() - 1], point) <= 0 {
                chain.pop();
            }
            chain.push(point);
        }
        chain.pop();
        chain
    };
    let mut hull = half(&mut points.iter().copied());
    hull.extend(half(&mut points.iter().rev().copied()));
    let twice: i64 = (0..hull.len())
        .map(|index| {
            let (a, b) = (hull[index], hull[(index + 1) % hull.len()]);
            a.0 * b.1 - a.1 * b.0
        })
        .sum();
    twice.abs() as f64 / 2.0
}

/// The length of the minimum spanning tree (a forest, where the graph has several parts), by Kruskal. `points` are
/// sorted.
fn tree_length(points: &[Point]) -> f64 {
    let field = Field::new(points);
    let mut edges: Vec<(i64, usize, usize)> = Vec::new();
    for from in 0..points.len() {
        let near = field.nearest(points, from).into_iter();
        edges.extend(near.map(|(distance, to)| (distance, from.min(to), from.max(to))));
    }
    edges.sort_unstable();
    let mut parents: Vec<usize> = (0..points.len()).collect();
    let mut length = 0.0;
    for (squared, a, b) in edges {
        let (a, b) = (root(&mut parents, a), root(&mut parents, b));
        if a != b {
            parents[a] = b;
            length += (squared as f64).sqrt();
        }
    }
    length
}

/// Which point stands at each place: a map with many equal values has as many points as pixels, of which only those
/// around each are looked at.
struct Field {
    first: Point,
    lengths: Point,
    at: Vec<Option<usize>>,
}

impl Field {
    fn new(points: &[Point]) -> Self {
        let least = |of: fn(&Point) -> i64| points.iter().map(of).min().unwrap_or(0);
        let most = |of: fn(&Point) -> i64| points.iter().map(of).max().unwrap_or(0);
        let first = (least(|point| point.0), least(|point| point.1));
        let lengths = (most(|point| point.0) - first.0 + 1, most(|point| point.1) - first.1 + 1);
        let mut at = vec![None; (lengths.0 * lengths.1) as usize];
        for (index, point) in points.iter().enumerate() {
            at[((point.0 - first.0) * lengths.1 + point.1 - first.1) as usize] = Some(index);
        }
        Self { first, lengths, at }
    }

    fn point(&self, row: i64, column: i64) -> Option<usize> {
        let (row, column) = (row - self.first.0, column - self.first.1);
        let is_inside = (0..self.lengths.0).contains(&row) && (0..self.lengths.1).contains(&column);
        is_inside.then(|| self.at[(row * self.lengths.1 + column) as usize]).flatten()
    }

    /// The nearest points of one of them with their squared distances, of equal ones the first: square rings around it
    /// until no point further out can be nearer.
    fn nearest(&self, points: &[Point], from: usize) -> Vec<(i64, usize)> {
        let (row, column) = points[from];
        let mut near: Vec<(i64, usize)> = Vec::new();
        for reach in 1..self.lengths.0.max(self.lengths.1) {
            let sides = (-reach..=reach).flat_map(|step| [(-reach, step), (reach, step)]);
            let rest = (1 - reach..reach).flat_map(|step| [(step, -reach), (step, reach)]);
            near.extend(sides.chain(rest).filter_map(|(down, right)| {
                Some((down * down + right * right, self.point(row + down, column + right)?))
            }));
            if near.iter().filter(|(distance, _)| *distance <= reach * reach).count() >= NEIGHBOURS {
                break;
            }
        }
        near.sort_unstable();
        near.truncate(NEIGHBOURS);
        near
    }
}

fn root(parents: &mut [usize], mut place: usize) -> usize {
    while parents[place] != place {
        parents[place] = parents[parents[place]];
        place = parents[place];
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_more_compact_than_corners() {
        let map = |chosen: &[usize]| -> Vec<f64> {
            (0..100).map(|index| f64::from(u8::from(chosen.contains(&index))) + index as f64 * 1e-6).collect()
        };
        let block: Vec<usize> = (0..20).map(|index| 33 + index / 5 * 10 + index % 5).collect();
        let corners: Vec<usize> = (0..20).map(|index| [0, 5, 50, 55][index / 5] + index % 5).collect();
        assert!(compactness(&map(&block), 10).unwrap() > 1.5 * compactness(&map(&corners), 10).unwrap());
    }

    #[test]
    fn the_nearest_are_those_of_all() {
        let key = pipe_models::random::Key(3);
        let points: Vec<Point> = (0..600)
            .filter(|place| key.below(place + 1, 9) == 0)
            .map(|place| (place as i64 / 30, place as i64 % 30))
            .collect();
        let field = Field::new(&points);
        for from in 0..points.len() {
            let distance =
                |to: usize| (points[from].0 - points[to].0).pow(2) + (points[from].1 - points[to].1).pow(2);
            let mut all: Vec<(i64, usize)> =
                (0..points.len()).filter(|to| *to != from).map(|to| (distance(to), to)).collect();
            all.sort_unstable();
            assert_eq!(field.nearest(&points, from), all[..NEIGHBOURS]);
        }
    }

    #[test]
    fn areas_and_lengths() {
        let square: Vec<Point> = vec![(0, 0), (0, 2), (1, 1), (2, 0), (2, 2)];
        assert_eq!(hull_area(&square), 4.0);
        assert!((tree_length(&square) - 4.0 * 2f64.sqrt()).abs() < 1e-12);
        assert_eq!(hull_area(&[(0, 0), (0, 1), (0, 5)]), 0.0);
        assert_eq!(percentile(&[3.0, 1.0, 2.0], 80.0), 2.6);
        assert!(compactness(&[1.0], 1).is_err());
    }
}
