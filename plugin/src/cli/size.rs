//! Sizes as people write and read them: `10G`, `512KiB`, `256 MiB`. Binary units only.
//!
//! Never guesses: `MB`, fractions and negative numbers are refused with the text that was given.

const UNITS: [(&str, u32); 6] =
    [("EiB", 60), ("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

/// Reads a size, in bytes: a whole number, then nothing, `B`, or one of `K M G T P E` alone or with
/// `iB` (1K = 1KiB = 1024). The number that reaches the daemon is an `i64`, and never 0.
pub(crate) fn parse(text: &str) -> Result<i64, String> {
    let given = text.trim();
    let digits = given.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = given.split_at(digits);
    if number.is_empty() {
        return Err(format!("`{text}` is not a size: write a whole number and a unit, like 10G"));
    }
    let shift = shift_of(unit.trim_start()).map_err(|why| format!("`{text}` {why}"))?;
    let too_large = || format!("`{text}` is too large: a size stays below 8 EiB");
    let number: i64 = number.parse().map_err(|_| too_large())?;
    match number.checked_mul(1 << shift) {
        None => Err(too_large()),
        Some(0) => Err(format!("`{text}` is no size for a disk: it must be above 0")),
        Some(bytes) => Ok(bytes),
    }
}

fn shift_of(unit: &str) -> Result<u32, String> {
    let lower = unit.to_ascii_lowercase();
    if lower.is_empty() || lower == "b" {
        return Ok(0);
    }
    let found = UNITS.iter().find(|(name, _)| {
        let name = name.to_ascii_lowercase();
        lower == name || lower == name[..1]
    });
    match (found, lower.as_bytes()) {
        (Some((_, shift)), _) => Ok(*shift),
        (None, [b'k' | b'm' | b'g' | b't' | b'p' | b'e', b'b']) => {
            let letter = unit[..1].to_ascii_uppercase();
            Err(format!("is ambiguous: write {letter}iB (powers of 1024) or the number of bytes"))
        }
        (None, [b'.' | b',', ..]) => {
            Err("is not a whole number: take a smaller unit, like 1536M for 1.5G".into())
        }
        _ => Err(format!("has an unknown unit `{unit}`: use K, M, G, T, KiB, MiB, GiB or TiB")),
    }
}

/// Writes a number of bytes for people: `0 B`, `512 B`, `256 MiB`, `1.5 GiB`.
#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
pub(crate) fn human(bytes: u64) -> String {
    let Some((name, shift)) = UNITS.iter().find(|(_, shift)| bytes >> shift > 0) else {
        return format!("{bytes} B");
    };
    if bytes.trailing_zeros() >= *shift {
        return format!("{} {name}", bytes >> shift);
    }
    format!("{:.1} {name}", bytes as f64 / (1u64 << shift) as f64)
}

/// Bytes a second for people: `12.5 MiB/s`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rates are positive")]
pub(crate) fn rate(bytes: f64) -> String {
    human(bytes as u64) + "/s"
}

/// The same as [`human`] for the signed sizes of SMAPIv2, where a negative one means nothing.
pub(crate) fn human_signed(bytes: i64) -> String {
    u64::try_from(bytes).map_or_else(|_| "?".into(), human)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("1", 1),
            ("512B", 512),
            ("4k", 4096),
            ("64M", 64 << 20),
            ("512KiB", 512 << 10),
            (" 10 G ", 10 << 30),
            ("2tib", 2 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn a_bad_size_is_named_in_its_error() {
        for text in ["", "G", "-1G", "0", "1.5G", "10GB", "10X", "8E", "99999999999999999999"] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
        assert!(parse("10GB").unwrap_err().contains("GiB"));
        assert!(parse("1.5G").unwrap_err().contains("1536M"));
    }

    #[test]
    fn whole_sizes_are_written_without_a_fraction() {
        assert_eq!(human(0), "0 B");
        assert_eq!(human(1023), "1023 B");
        assert_eq!(human(256 << 20), "256 MiB");
        assert_eq!(human((3 << 29) + 1), "1.5 GiB");
        assert_eq!(human_signed(-1), "?");
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_whole_reads_back(number in 1u64..1024, unit in 0usize..6) {
            let fits = |bytes: &u64| i64::try_from(*bytes).is_ok();
            let bytes = number.checked_shl(UNITS[unit].1).filter(fits);
            if let Some(bytes) = bytes.filter(|bytes| bytes >> UNITS[unit].1 == number) {
                proptest::prop_assert_eq!(parse(&human(bytes)).map(i64::cast_unsigned), Ok(bytes));
            }
        }

        #[test]
        fn any_text_is_a_size_or_an_error(text in ".*") {
            let _ = parse(&text);
        }
    }
}
