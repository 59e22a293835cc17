use anyhow::{Result, bail};
#[derive(clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    quick: bool,
}
pub(crate) fn run(options: &Options) -> Result<bool> {
    let _ = options.quick;
    bail!("")
}
