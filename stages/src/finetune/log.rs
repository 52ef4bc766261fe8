//! Learning curves.

use pipe_engine::{StageContext, StageError};

use super::events::write_events;
use crate::table::{Column, Table, TableSchema, WriteOptions, write};

/// Collects figures while a model trains.
#[derive(Debug, Default)]
pub(crate) struct TrainingLog {
    rows: Vec<(i64, i64, String, String, f64)>,
}

impl TrainingLog {
    pub(crate) fn add(&mut self, epoch: i64, step: i64, split: &str, metric: &str, value: f64) {
        self.rows.push((epoch, step, split.to_owned(), metric.to_owned(), value));
    }

    /// Epoch, step, split, metric and value of each row so far.
    pub(super) fn rows(&self) -> impl Iterator<Item = (i64, i64, &str, &str, f64)> {
        self.rows.iter().map(|(epoch, step, split, metric, value)| {
            (*epoch, *step, split.as_str(), metric.as_str(), *value)
        })
    }

    /// Writes the outputs `log` and `tensorboard` of a training.
    pub(crate) fn write(&self, context: &mut StageContext<'_>) -> Result<(), StageError> {
        write_events(self, context.output("tensorboard")?)?;
        let provenance = context.provenance().to_owned();
        let table = Table::new()
            .with("epoch", Column::Int64(self.rows.iter().map(|row| Some(row.0)).collect()))
            .with("step", Column::Int64(self.rows.iter().map(|row| Some(row.1)).collect()))
            .with("split", Column::texts(self.rows.iter().map(|row| row.2.as_str())))
            .with("metric", Column::texts(self.rows.iter().map(|row| row.3.as_str())))
            .with(
                "value",
                Column::Float64(self.rows.iter().map(|row| row.4.is_finite().then_some(row.4)).collect()),
            );
        write(context.output("log")?, &TableSchema::training_log(), &table, WriteOptions::text(&provenance))
    }
}
