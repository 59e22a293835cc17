//! Times as people read them: latencies (`87 us`, `1.2 ms`) and ages (`3m 12s`).

use jiff::Timestamp;

/// A latency for people.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(crate) fn latency(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..10_000 => format!("{:.1} ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{} ms", us / 1_000),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

/// Whole seconds from an RFC 3339 time to `now`; `None` when it does not parse or is to come.
pub(crate) fn seconds_since(since: &str, now: Timestamp) -> Option<u64> {
    let since: Timestamp = since.parse().ok()?;
    u64::try_from(now.duration_since(since).as_secs()).ok()
}

/// A point in time with its distance: `2026-01-01T10:00:00Z (3m 12s ago)`.
pub(crate) fn since(since: &str, now: Timestamp) -> String {
    match seconds_since(since, now) {
        Some(seconds) => format!("{since} ({} ago)", age(seconds)),
        None => since.to_owned(),
    }
}

/// The same, short, for a column: `3m 12s`.
pub(crate) fn age_of(since: &str, now: Timestamp) -> String {
    seconds_since(since, now).map_or_else(|| since.to_owned(), age)
}

fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, ..) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_keep_two_or_three_digits() {
        assert_eq!(latency(0), "0 us");
        assert_eq!(latency(999), "999 us");
        assert_eq!(latency(1_250), "1.2 ms");
        assert_eq!(latency(57_300), "57 ms");
        assert_eq!(latency(2_500_000), "2.5 s");
    }

    #[test]
    fn an_age_has_two_units_and_a_bad_time_is_shown_as_it_is() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().expect("a time");
        assert_eq!(age_of("2026-01-01T23:59:30Z", now), "30s");
        assert_eq!(age_of("2026-01-01T23:56:48Z", now), "3m 12s");
        assert_eq!(age_of("2026-01-01T20:30:00Z", now), "3h 30m");
        assert_eq!(age_of("2025-12-30T22:00:00Z", now), "2d 2h");
        assert_eq!(age_of("yesterday", now), "yesterday");
        assert_eq!(since("2026-01-03T00:00:00Z", now), "2026-01-03T00:00:00Z");
    }
}
