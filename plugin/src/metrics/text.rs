//! OpenMetrics' text format, version 1.0: families, samples, escaped labels, `# EOF`.
//!
//! Knows no metric. A family without samples is left out. Source: the OpenMetrics specification,
//! "Text Format". prometheus-client would write it too, but does not escape labels' values.

use std::fmt::{Display, Write};
use zerotap_rpc_schema::Histogram;

/// What is told to be the content type.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Latencies are told by powers of two: from 2^3 us ...
const FIRST_POWER: u32 = 3;
/// ... to 2^23 us, which is 8 s.
const LAST_POWER: u32 = 23;

/// A series' labels, written and escaped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(String);

impl Labels {
    /// Of these names and values.
    #[must_use]
    pub fn of(pairs: &[(&str, &str)]) -> Labels {
        let mut labels = Labels::default();
        pairs.iter().for_each(|(name, value)| labels.push(name, value));
        labels
    }

    /// The same with one more.
    #[must_use]
    pub fn with(&self, name: &str, value: &str) -> Labels {
        let mut labels = self.clone();
        labels.push(name, value);
        labels
    }

    fn push(&mut self, name: &str, value: &str) {
        let separator = if self.0.is_empty() { "" } else { "," };
        // Writing to a String cannot fail; so below.
        let _ = write!(self.0, "{separator}{name}=\"");
        for c in value.chars() {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                c => self.0.push(c),
            }
        }
        self.0.push('"');
    }
}

/// A text being written.
#[derive(Debug, Default)]
pub struct Text(String);

impl Text {
    /// A family of counters; `name` is without `_total`.
    pub fn counters<V: Display>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels, V)>,
    ) {
        self.simple(name, help, ("counter", "_total"), series);
    }

    /// A family of gauges.
    pub fn gauges<V: Display>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels, V)>,
    ) {
        self.simple(name, help, ("gauge", ""), series);
    }

    /// A family of histograms, in seconds; `name` ends in `_seconds`.
    pub fn histograms<'a>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels, &'a Histogram)>,
    ) {
        let mut series = series.into_iter().peekable();
        if series.peek().is_none() {
            return;
        }
        self.head(name, help, "histogram");
        for (labels, histogram) in series {
            for power in FIRST_POWER..=LAST_POWER {
                let bound = labels.with("le", &seconds(1 << power));
                self.sample(name, "_bucket", &bound, histogram.below_power(power));
            }
            let count = histogram.count();
            self.sample(name, "_bucket", &labels.with("le", "+Inf"), count);
            self.sample(name, "_count", &labels, count);
            self.sample(name, "_sum", &labels, seconds(histogram.sum_us));
        }
    }

    /// The whole text.
    #[must_use]
    pub fn end(mut self) -> String {
        self.0.push_str("# EOF\n");
        self.0
    }

    fn simple<V: Display>(
        &mut self,
        name: &str,
        help: &str,
        (kind, suffix): (&str, &str),
        series: impl IntoIterator<Item = (Labels, V)>,
    ) {
        let mut series = series.into_iter().peekable();
        if series.peek().is_none() {
            return;
        }
        self.head(name, help, kind);
        series.for_each(|(labels, value)| self.sample(name, suffix, &labels, value));
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.0, "# TYPE {name} {kind}");
        if let Some(unit) = ["seconds", "bytes"].iter().find(|unit| name.ends_with(*unit)) {
            let _ = writeln!(self.0, "# UNIT {name} {unit}");
        }
        let _ = writeln!(self.0, "# HELP {name} {help}");
    }

    fn sample(&mut self, name: &str, suffix: &str, Labels(labels): &Labels, value: impl Display) {
        let _ = if labels.is_empty() {
            writeln!(self.0, "{name}{suffix} {value}")
        } else {
            writeln!(self.0, "{name}{suffix}{{{labels}}} {value}")
        };
    }
}

/// Microseconds as seconds, with no digit lost.
#[must_use]
pub fn seconds(us: u64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_as_the_specification_has_them() {
        let mut text = Text::default();
        let odd = Labels::of(&[("a", "b"), ("odd", "x\"\\\ny")]);
        text.counters("zt_reads", "Reads.", [(odd, 7u64)]);
        text.gauges("zt_free_bytes", "Free.", [(Labels::default(), 5)]);
        text.gauges::<u64>("zt_none", "Nothing.", []);
        let wanted = "# TYPE zt_reads counter\n# HELP zt_reads Reads.\n\
                      zt_reads_total{a=\"b\",odd=\"x\\\"\\\\\\ny\"} 7\n\
                      # TYPE zt_free_bytes gauge\n# UNIT zt_free_bytes bytes\n\
                      # HELP zt_free_bytes Free.\nzt_free_bytes 5\n# EOF\n";
        assert_eq!(text.end(), wanted);
    }

    #[test]
    fn histograms_add_up() {
        let mut histogram = Histogram::default();
        [5, 9, 1 << 40].into_iter().for_each(|us| histogram.record(us));
        let mut text = Text::default();
        text.histograms("zt_seconds", "How long.", [(Labels::of(&[("op", "r")]), &histogram)]);
        let text = text.end();
        for line in [
            "zt_seconds_bucket{op=\"r\",le=\"0.000008\"} 1\n",
            "zt_seconds_bucket{op=\"r\",le=\"0.000016\"} 2\n",
            "zt_seconds_bucket{op=\"r\",le=\"8.388608\"} 2\n",
            "zt_seconds_bucket{op=\"r\",le=\"+Inf\"} 3\n",
            "zt_seconds_count{op=\"r\"} 3\n",
            "zt_seconds_sum{op=\"r\"} 1099511.627790\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }
}
