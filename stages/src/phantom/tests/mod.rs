//! What the specification of phantoms promises.

mod export;
mod language;
mod pictures;
mod stage;
mod volumes;

use super::Params;
use super::places::places;
use super::rows::{Drawn, Row, World};
use super::{Domain, Task};

/// All rows of these parameters.
fn draw_all(params: &Params) -> Vec<(Row, Drawn)> {
    assert_eq!(params.contradictions(), []);
    let places = places(params);
    let world = World::new(params, &places);
    places.iter().map(|place| world.draw(place).expect("a phantom is drawn")).collect()
}

fn rows(params: &Params) -> Vec<Row> {
    draw_all(params).into_iter().map(|(row, _)| row).collect()
}
