//! Functions that SQLite lacks and that figures are computed with.

use rusqlite::functions::{Aggregate, Context, FunctionFlags};
use rusqlite::{Connection, Error, Result};

/// Adds them to a connection: `sqrt`, `exp`, `ln`, `power`, and the aggregates `median`, `stddev` (of a
/// sample) and `quantile(value, share)` (linear between the closest ranks).
pub(super) fn register(connection: &Connection) -> Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    // `libm` gives the same bits on every platform.
    let plain: [(&str, fn(f64) -> f64); 3] = [("sqrt", f64::sqrt), ("exp", libm::exp), ("ln", libm::log)];
    for (name, function) in plain {
        connection.create_scalar_function(name, 1, flags, move |context| {
            Ok(context.get::<Option<f64>>(0)?.map(function))
        })?;
    }
    connection.create_scalar_function("power", 2, flags, |context| {
        let (base, exponent) = (context.get::<Option<f64>>(0)?, context.get::<Option<f64>>(1)?);
        Ok(base.zip(exponent).map(|(base, exponent)| libm::pow(base, exponent)))
    })?;
    connection.create_aggregate_function("median", 1, flags, Collect(|values, _| quantile(values, 0.5)))?;
    connection.create_aggregate_function("stddev", 1, flags, Collect(|values, _| deviation(&values)))?;
    connection.create_aggregate_function("quantile", 2, flags, Collect(quantile))
}

/// The numbers of a group, and the second argument of its last row.
#[derive(Default)]
struct Group {
    values: Vec<f64>,
    share: f64,
}

/// An aggregate over all numbers of a group; nulls are left out, and no number gives null.
struct Collect(fn(Vec<f64>, f64) -> Option<f64>);

impl Aggregate<Group, Option<f64>> for Collect {
    fn init(&self, _: &mut Context<'_>) -> Result<Group> {
        Ok(Group::default())
    }

    fn step(&self, context: &mut Context<'_>, group: &mut Group) -> Result<()> {
        group.values.extend(context.get::<Option<f64>>(0)?);
        if context.len() > 1 {
            group.share = context.get(1)?;
            if !(0.0..=1.0).contains(&group.share) {
                let text = format!("the share {} of a quantile is not from 0 to 1", group.share);
                return Err(Error::UserFunctionError(text.into()));
            }
        }
        Ok(())
    }

    fn finalize(&self, _: &mut Context<'_>, group: Option<Group>) -> Result<Option<f64>> {
        let Some(group) = group.filter(|group| !group.values.is_empty()) else { return Ok(None) };
        Ok((self.0)(group.values, group.share))
    }
}

fn quantile(mut values: Vec<f64>, share: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let place = share * (values.len() - 1) as f64;
    let (low, high) = (values[place.floor() as usize], values[place.ceil() as usize]);
    Some(low + (high - low) * (place - place.floor()))
}

/// With n - 1; none of a single number.
fn deviation(values: &[f64]) -> Option<f64> {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt())
}
