//! Learning curves.

use pipe_engine::{OutputWriter, StageError};

use crate::table::{Column, Table, TableSchema, WriteOptions, write};

/// Collects figures while a model trains.
#[derive(Debug, Default)]
pub(crate) struct TrainingLog {
    rows: Vec<(i64, i64, &'static str, &'static str, f64)>,
}

impl TrainingLog {
    pub(crate) fn add(
        &mut self,
        epoch: i64,
        step: i64,
        split: &'static str,
        metric: &'static str,
        value: f64,
    ) {
        self.rows.push((epoch, step, split, metric, value));
    }

    pub(crate) fn write(&self, output: &mut OutputWriter, provenance: &str) -> Result<(), StageError> {
        let table = Table::new()
            .with("epoch", Column::Int64(self.rows.iter().map(|row| Some(row.0)).collect()))
            .with("step", Column::Int64(self.rows.iter().map(|row| Some(row.1)).collect()))
            .with("split", Column::texts(self.rows.iter().map(|row| row.2)))
            .with("metric", Column::texts(self.rows.iter().map(|row| row.3)))
            .with(
                "value",
                Column::Float64(self.rows.iter().map(|row| row.4.is_finite().then_some(row.4)).collect()),
            );
        write(output, &TableSchema::training_log(), &table, WriteOptions::text(provenance))
    }
}
