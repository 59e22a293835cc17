//! zerotap as one of SMAPIv3's executables: called by a method's name, it asks the daemon and ends.
//!
//! xapi-storage-script runs `<dir>/Volume.stat --json` with the arguments on stdin; people and
//! static-vdis give them by position. On stdout stands the bare result, or the error object beside
//! a failed exit, and nothing else: XAPI logs all of it, so no argument is ever repeated there.
//! Never starts tokio, never touches the state: a blocking client of the daemon's socket. Source:
//! xen-api `ocaml/xapi-storage-script/main.ml` and `lib.ml`. Called by `main`.

mod client;
mod failure;
pub mod install;
mod trampoline;

use failure::Failed;
use serde_json::Value;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use zerotap_rpc_schema::error::number;
use zerotap_rpc_schema::smapi3::arguments::{from_object, from_words, usage};
use zerotap_rpc_schema::smapi3::table::Script;

/// Where the daemon listens, unless the environment's [`SOCKET`] says otherwise.
const DEFAULT_SOCKET: &str = "/run/zerotap/rpc.sock";
const SOCKET: &str = "ZEROTAP_SOCKET";
/// The longest arguments that are read, bytes.
const ARGUMENT_BYTES_MAX: u64 = 1 << 20;

/// The method that this process was started as, if any.
#[must_use]
pub fn called() -> Option<&'static Script> {
    let name = std::env::args_os().next()?;
    Script::called(Path::new(&name).file_name()?.to_str()?)
}

/// Does what the executable is for.
#[must_use]
pub fn run(script: &Script) -> ExitCode {
    let words: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let json = words == ["--json"];
    if !json && (words.is_empty() || words == ["--help"]) {
        eprintln!("usage: {} --json < ARGUMENTS, or", script.file());
        eprintln!("       {} {}", script.file(), usage(script.fields));
        return ExitCode::from(2);
    }
    let result = if json { of_stdin(script) } else { of_words(script, &words) };
    let (line, code) = match result.and_then(|arguments| ask(script, &arguments)) {
        Ok(result) => (result, ExitCode::SUCCESS),
        Err(failed) => {
            if !json {
                eprintln!("{}: {}", script.file(), failed.text());
            }
            (failed.object(), ExitCode::FAILURE)
        }
    };
    // Nobody is left to be told when stdout is closed.
    let _ = writeln!(std::io::stdout(), "{line}");
    code
}

fn of_stdin(script: &Script) -> Result<Value, Failed> {
    let mut text = Vec::new();
    let read = std::io::stdin().take(ARGUMENT_BYTES_MAX + 1).read_to_end(&mut text);
    read.map_err(|error| refused(script, &format!("stdin cannot be read: {error}")))?;
    if text.len() as u64 > ARGUMENT_BYTES_MAX {
        return Err(refused(script, &format!("stdin has over {ARGUMENT_BYTES_MAX} bytes")));
    }
    match serde_json::from_slice(&text) {
        Ok(Value::Object(given)) => {
            from_object(script.fields, given).map_err(|problem| refused(script, &problem))
        }
        _ => Err(refused(script, "stdin is not a JSON object")),
    }
}

fn of_words(script: &Script, words: &[String]) -> Result<Value, Failed> {
    from_words(script.fields, words)
        .map_err(|problem| refused(script, &format!("{problem}. Give {}", usage(script.fields))))
}

#[track_caller]
fn refused(script: &Script, problem: &str) -> Failed {
    Failed::backend(number::BAD_REQUEST, format!("cannot call {}: {problem}", script.name))
}

fn ask(script: &Script, arguments: &Value) -> Result<Value, Failed> {
    if script.name == "Plugin.query" {
        // xapi-storage-script asks a datapath plugin once, when it starts, and never again: the
        // answer, which is this program's own, must not depend on who has started first.
        let about = serde_json::to_value(crate::rpc::about_smapi3());
        return about.map_err(|error| Failed::backend(number::GENERAL, error.to_string()));
    }
    let socket = std::env::var_os(SOCKET).map_or_else(|| DEFAULT_SOCKET.into(), PathBuf::from);
    client::call(&socket, script.name, arguments)
}
