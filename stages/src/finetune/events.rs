//! Learning curves as TensorBoard reads them: records of `Event` messages, each with its length and checksums
//! (TensorFlow's TFRecord).

use pipe_engine::{OutputWriter, StageError};

use super::TrainingLog;

/// Files are named by the second in which they begin; a result holds no time.
const FILE: &str = "events.out.tfevents.0.pipe";

/// Writes the curves as an event file, a tag per split and metric (`train/loss`), steps as they were counted.
///
/// # Errors
/// If the file cannot be written.
pub(super) fn write_events(log: &TrainingLog, output: &mut OutputWriter) -> Result<(), StageError> {
    let mut bytes = Vec::new();
    record(&mut bytes, &event(0, &[(3, Field::Bytes(b"brain.Event:2"))]));
    for (_, step, split, metric, value) in log.rows().filter(|row| row.4.is_finite()) {
        let tag = format!("{split}/{metric}");
        let value = message(&[(1, Field::Bytes(tag.as_bytes())), (2, Field::Float(value as f32))]);
        let summary = message(&[(1, Field::Bytes(&value))]);
        record(&mut bytes, &event(step, &[(5, Field::Bytes(&summary))]));
    }
    let path = output.path(FILE)?;
    std::fs::write(&path, bytes)
        .map_err(|error| StageError::environment(format!("writing `{}`", path.display()), error))
}

/// A field of a protobuf message.
enum Field<'a> {
    Varint(u64),
    Double(f64),
    Bytes(&'a [u8]),
    Float(f32),
}

/// An `Event` at time 0: wall_time 1, step 2, and what it tells.
fn event(step: i64, what: &[(u8, Field<'_>)]) -> Vec<u8> {
    let mut event = message(&[(1, Field::Double(0.0)), (2, Field::Varint(step.max(0) as u64))]);
    event.extend(message(what));
    event
}

/// Fields in protobuf's wire format.
fn message(fields: &[(u8, Field<'_>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, field) in fields {
        match field {
            Field::Varint(value) => {
                bytes.push(number << 3);
                varint(&mut bytes, *value);
            }
            Field::Double(value) => {
                bytes.push(number << 3 | 1);
                bytes.extend(value.to_le_bytes());
            }
            Field::Bytes(value) => {
                bytes.push(number << 3 | 2);
                varint(&mut bytes, value.len() as u64);
                bytes.extend(*value);
            }
            Field::Float(value) => {
                bytes.push(number << 3 | 5);
                bytes.extend(value.to_le_bytes());
            }
        }
    }
    bytes
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// Length, its checksum, the payload, its checksum.
fn record(bytes: &mut Vec<u8>, payload: &[u8]) {
    let length = (payload.len() as u64).to_le_bytes();
    bytes.extend(length);
    bytes.extend(masked_checksum(&length).to_le_bytes());
    bytes.extend(payload);
    bytes.extend(masked_checksum(payload).to_le_bytes());
}

/// CRC-32C, rotated and shifted, so that a checksum of checksums stays one.
fn masked_checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_what_tensorflow_writes() {
        // The first record of every event file of TensorFlow, but for its time.
        let mut bytes = Vec::new();
        record(&mut bytes, &event(0, &[(3, Field::Bytes(b"brain.Event:2"))]));
        assert_eq!(bytes[..8], 26u64.to_le_bytes());
        assert_eq!(bytes[12..21], [9, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[21..38], *b"\x10\x00\x1a\x0dbrain.Event:2");
        assert_eq!(bytes.len(), 8 + 4 + 26 + 4);
        // The check value of CRC-32C, masked.
        assert_eq!(masked_checksum(b"123456789"), 0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }

    #[test]
    fn numbers_of_any_size_are_written_in_sevens() {
        let mut bytes = Vec::new();
        varint(&mut bytes, 300);
        assert_eq!(bytes, [0xac, 0x02]);
        bytes.clear();
        varint(&mut bytes, u64::MAX);
        assert_eq!(bytes.len(), 10);
    }
}
