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

/// The length of the minimum spanning tree (a forest, where the graph has several parts), by Kruskal.
fn tree_length(points: &[Point]) -> f64 {
    let mut edges: Vec<(i64, usize, usize)> = Vec::new();
    for (from, a) in points.iter().enumerate() {
        let distance = |b: &Point| (a.0 - b.0).pow(2) + (a.1 - b.1).pow(2);
        let mut near: Vec<(i64, usize)> = points
            .iter()
            .enumerate()
            .filter(|(to, _)| *to != from)
            .map(|(to, point)| (distance(point), to))
            .collect();
        if near.len() > NEIGHBOURS {
            near.select_nth_unstable(NEIGHBOURS - 1);
            near.truncate(NEIGHBOURS);
        }
        edges.extend(near.into_iter().map(|(distance, to)| (distance, from.min(to), from.max(to))));
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
    fn areas_and_lengths() {
        let square: Vec<Point> = vec![(0, 0), (0, 2), (1, 1), (2, 0), (2, 2)];
        assert_eq!(hull_area(&square), 4.0);
        assert!((tree_length(&square) - 4.0 * 2f64.sqrt()).abs() < 1e-12);
        assert_eq!(hull_area(&[(0, 0), (0, 1), (0, 5)]), 0.0);
        assert_eq!(percentile(&[3.0, 1.0, 2.0], 80.0), 2.6);
        assert!(compactness(&[1.0], 1).is_err());
    }
}
