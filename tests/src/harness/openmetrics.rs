//! `GET /metrics` as Prometheus reads it: its own strict parser, of Debian's
//! python3-prometheus-client, is the judge.

use super::{Host, http};
use anyhow::{Context as _, ensure};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};

const PARSER: &str = include_str!("openmetrics.py");

/// One sample.
#[derive(Debug, Clone, Deserialize)]
pub struct Sample {
    /// With its suffix.
    pub name: String,
    /// By name.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

/// A family of samples.
#[derive(Debug, Clone, Deserialize)]
pub struct Family {
    /// `counter`, `gauge`, `histogram`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The unit, or nothing.
    pub unit: String,
    /// All its samples.
    pub samples: Vec<Sample>,
}

/// All that was told at some moment.
#[derive(Debug)]
pub struct Metrics(pub BTreeMap<String, Family>);

impl Host {
    /// Asks for the metrics and has them read.
    ///
    /// # Errors
    /// They are not served, not as what they are, or are no OpenMetrics.
    pub fn metrics(&self) -> anyhow::Result<Metrics> {
        let answer = http::get(self.rpc().socket(), "/metrics")?;
        ensure!(answer.status == 200, "{answer:?}");
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        ensure!(answer.content_type == kind, "{}", answer.content_type);
        parse(&answer.body)
    }
}

/// Reads OpenMetrics.
///
/// # Errors
/// It is none: the parser's words.
pub fn parse(text: &str) -> anyhow::Result<Metrics> {
    // Debian's own: the packages of another Python are others.
    let mut python = Command::new("/usr/bin/python3")
        .args(["-c", PARSER])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("/usr/bin/python3")?;
    // It reads all before it writes.
    python.stdin.take().context("a pipe")?.write_all(text.as_bytes())?;
    let output = python.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "(with python3-prometheus-client installed?) {said}\nof:\n{text}"
    );
    Ok(Metrics(serde_json::from_slice(&output.stdout)?))
}

impl Metrics {
    /// The samples of this name that have these labels, whatever others they have.
    #[must_use]
    pub fn samples(&self, name: &str, labels: &[(&str, &str)]) -> Vec<&Sample> {
        let wanted = |sample: &&Sample| {
            let has =
                |(key, value): &(&str, &str)| sample.labels.get(*key).is_some_and(|it| it == value);
            sample.name == name && labels.iter().all(has)
        };
        self.0.values().flat_map(|family| &family.samples).filter(wanted).collect()
    }

    /// The value of the one sample that [`Metrics::samples`] finds.
    ///
    /// # Errors
    /// There is none, or more.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<f64> {
        match self.samples(name, labels)[..] {
            [one] => Ok(one.value),
            ref found => anyhow::bail!("{name} {labels:?} is not one sample: {found:?}"),
        }
    }

    /// All values of a label.
    #[must_use]
    pub fn values_of(&self, label: &str) -> BTreeSet<String> {
        let samples = self.0.values().flat_map(|family| &family.samples);
        samples.filter_map(|sample| sample.labels.get(label).cloned()).collect()
    }
}
