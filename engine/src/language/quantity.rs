//! Sizes and durations as people write them.

/// `16GiB`, `500MB`, `1000`.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let factor = match text[digits..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(factor)
}

/// `90s`, `10min`, `4h`, `2d`.
pub(crate) fn seconds(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let factor = match text[digits..].trim() {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::{bytes, seconds};

    #[test]
    fn quantities_have_units() {
        assert_eq!(bytes("16GiB"), Some(16 << 30));
        assert_eq!(bytes("500 MB"), Some(500_000_000));
        assert_eq!(bytes("12"), Some(12));
        assert_eq!(bytes("99999999999TiB"), None);
        assert_eq!(bytes("1.5GiB"), None);
        assert_eq!(seconds("4h"), Some(14_400));
        assert_eq!(seconds("10min"), Some(600));
        assert_eq!(seconds("4"), None);
    }
}
