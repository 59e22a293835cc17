//! `zerotap call`: any method, known to this program or not; the result as indented JSON.

use super::context::{Context, write};
use super::failure::Failure;
use super::{client::patience_seconds, context::json};
use serde_json::Value;
use std::io::Read;

const EXAMPLES: &str = "\
Examples:
  zerotap call SR.list
  zerotap call VDI.stat '{\"sr\": \"3c4f…\", \"vdi\": \"9a1b…\"}'
  zerotap call VDI.create - < params.json
  zerotap call rpc.discover > openrpc.json

A method's parameters are an object of named parameters; unknown ones are refused.";

/// The longest parameters that are read from standard input, bytes.
const PARAMS_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The method's name, for example SR.list
    method: String,
    /// Its parameters, a JSON object; `-` reads them from standard input
    #[arg(default_value = "{}", value_name = "JSON")]
    params: String,
    /// How long to wait for the answer, seconds [default: as long as the daemon may take]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let text = if args.params == "-" { standard_input()? } else { args.params.clone() };
    let params = object(&text)?;
    let seconds = args.timeout.unwrap_or_else(|| patience_seconds(&args.method));
    let result = context.client.call_any(&args.method, &params, seconds).await?;
    write(&json(&result))
}

fn standard_input() -> Result<String, Failure> {
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(PARAMS_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|error| Failure::plain(format!("cannot read standard input: {error}")))?;
    Ok(text)
}

fn object(text: &str) -> Result<Value, Failure> {
    let remedy = "write an object of named parameters, for example '{\"sr\": \"UUID\"}'";
    match serde_json::from_str(text) {
        Ok(params @ Value::Object(_)) => Ok(params),
        Ok(_) => Err(Failure::usage("the parameters are JSON but not an object", remedy)),
        Err(error) => Err(Failure::usage(format!("the parameters are not JSON: {error}"), remedy)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_an_object() {
        assert!(object("{}").is_ok());
        for text in ["", "[]", "null", "{sr: 1}"] {
            assert_eq!(object(text).expect_err(text).code, 2);
        }
    }
}
