//! `cargo xtask campaign`: the durability campaigns, long. The same ones, short, are among the
//! tests; docs/reliability.md says what they are and what they found.

use anyhow::Result;

use crate::{process, workspace};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Histories of the datapath, each of its own seed.
    #[arg(long, default_value_t = 10_000)]
    runs: u64,
    /// Seeds of the whole stack, with four power cuts each. Takes root, for its loop device.
    #[arg(long, default_value_t = 100)]
    power_cuts: u64,
    /// The first seed of both.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Optimised, with all assertions.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let campaign = |arguments: &[&str], runs: u64| {
        let mut cargo = workspace::cargo(arguments);
        cargo.env("CARGO_TARGET_DIR", workspace::target_dir().join("campaign"));
        cargo.env("CARGO_PROFILE_DEV_OPT_LEVEL", "2").env("CARGO_PROFILE_TEST_OPT_LEVEL", "2");
        cargo.env("ZEROTAP_CAMPAIGN_SEED", options.seed.to_string());
        process::run(cargo.env("ZEROTAP_CAMPAIGN_RUNS", runs.to_string()))
    };
    let datapath = ["test", "-p", "zerotap-datapath", "--lib", "campaign", "--", "--nocapture"];
    campaign(&datapath, options.runs)?;
    if options.power_cuts > 0 {
        campaign(&["build", "-p", "zerotap", "-p", "zerotap-datapath", "--bins"], 0)?;
        let stack = ["test", "-p", "zerotap-tests", "--test", "power_cuts", "--", "--nocapture"];
        campaign(&stack, options.power_cuts)?;
    }
    Ok(true)
}
