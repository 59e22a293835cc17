//! Stages of a test run: each is timed, counted, and told about at the end.

use std::time::{Duration, Instant};

use anyhow::Result;

/// How many checks passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
}

impl Count {
    /// A stage that is one check.
    pub(crate) const ONE: Self = Self { passed: 1, failed: 0 };

    /// Reads nextest's summary ("Summary [ 1.2s] 4 tests run: 3 passed, 1 failed, 0 skipped"), or
    /// else adds up `cargo test`'s ("test result: ok. 3 passed; 0 failed; ..."). Never both:
    /// nextest shows what a failed test printed, and that ends in a result of its own.
    pub(crate) fn of_tests(said: &str) -> Self {
        let of = |start: &str| -> Vec<&str> {
            said.lines().map(str::trim_start).filter(|line| line.starts_with(start)).collect()
        };
        let mut summaries = of("Summary [");
        if summaries.is_empty() {
            summaries = of("test result:");
        }
        let mut count = Self::default();
        for line in summaries {
            let words: Vec<&str> =
                line.split([' ', ',', ';', '(']).filter(|w| !w.is_empty()).collect();
            for pair in words.windows(2) {
                let Ok(number) = pair[0].parse::<usize>() else { continue };
                match pair[1] {
                    "passed" => count.passed += number,
                    "failed" | "timed" | "exec" => count.failed += number,
                    _ => {}
                }
            }
        }
        count
    }
}

struct Stage {
    name: &'static str,
    verdict: Result<Count>,
    took: Duration,
}

/// What has run so far, in order.
#[derive(Default)]
pub(crate) struct Stages {
    done: Vec<Stage>,
}

impl Stages {
    pub(crate) fn run(&mut self, name: &'static str, work: impl FnOnce() -> Result<Count>) {
        println!("== {name}");
        let started = Instant::now();
        let verdict = work();
        if let Err(error) = &verdict {
            eprintln!("{name}: {error:#}");
        }
        self.done.push(Stage { name, verdict, took: started.elapsed() });
    }

    /// Prints a line for each stage and the closing line; returns whether all is well.
    pub(crate) fn conclude(self) -> bool {
        println!();
        for stage in &self.done {
            println!("{}", stage.line());
        }
        let total = self.total();
        println!("{} passed, {} failed", total.passed, total.failed);
        total.failed == 0
    }

    /// A stage that could not run counts as one failure.
    fn total(&self) -> Count {
        self.done.iter().fold(Count::default(), |sum, stage| {
            let count =
                stage.verdict.as_ref().map_or(Count { passed: 0, failed: 1 }, |&count| count);
            Count { passed: sum.passed + count.passed, failed: sum.failed + count.failed }
        })
    }
}

impl Stage {
    fn line(&self) -> String {
        let Self { name, verdict, took } = self;
        let verdict = match verdict {
            Ok(Count { passed, failed: 0 }) if *passed > 1 => format!("ok, {passed} checks"),
            Ok(Count { failed: 0, .. }) => "ok".to_owned(),
            Ok(Count { passed, failed }) => {
                format!("FAILED, {failed} of {} checks", passed + failed)
            }
            // The first line of the reason; all of it was printed when it happened.
            Err(error) => {
                format!("FAILED: {}", format!("{error:#}").lines().next().unwrap_or_default())
            }
        };
        format!("{name:<14} {:>7.1} s  {verdict}", took.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    #[test]
    fn both_runners_are_understood() {
        let cargo = "test result: ok. 3 passed; 0 failed; 1 ignored\n\
                     test result: FAILED. 2 passed; 1 failed; 0 ignored\n";
        assert_eq!(Count::of_tests(cargo), Count { passed: 5, failed: 1 });
        let nextest = "    test result: FAILED. 0 passed; 1 failed; 0 ignored\n     \
                       Summary [   1.207s] 40/42 tests run: 38 passed (1 slow), 2 failed, \
                       3 skipped\n";
        assert_eq!(Count::of_tests(nextest), Count { passed: 38, failed: 2 });
        let timed_out = "     Summary [  61.0s] 2 tests run: 1 passed, 1 timed out, 0 skipped\n";
        assert_eq!(Count::of_tests(timed_out), Count { passed: 1, failed: 1 });
    }

    #[test]
    fn a_stage_that_cannot_run_is_a_failure() {
        let mut stages = Stages::default();
        stages.run("good", || Ok(Count { passed: 7, failed: 0 }));
        stages.run("broken", || bail!("no such program"));
        assert_eq!(stages.total(), Count { passed: 7, failed: 1 });
        assert!(stages.done[1].line().contains("FAILED: no such program"));
        assert!(!stages.conclude());
    }
}
