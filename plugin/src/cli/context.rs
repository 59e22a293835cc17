//! What every command is given: the way to the daemon and the way to the reader.

use super::client::{CallError, Client};
use super::failure::Failure;
use serde::Serialize;
use std::io::{ErrorKind, Write};
use zerotap_rpc_schema::Method;
use zerotap_rpc_schema::smapi2::NoParams;

/// What a person sees as the caller in the daemon's log.
pub(crate) const DBG: &str = "zerotap command line";

/// The daemon's client and the form of output.
#[derive(Debug)]
pub(crate) struct Context {
    /// The way to the daemon.
    pub(crate) client: Client,
    /// Print results as JSON.
    pub(crate) json: bool,
}

impl Context {
    /// Calls a method of the table.
    pub(crate) async fn call<M: Method>(&self, params: &M::Params) -> Result<M::Output, CallError> {
        self.client.call::<M>(params).await
    }

    /// Calls a method that takes nothing.
    pub(crate) async fn ask<M>(&self) -> Result<M::Output, CallError>
    where
        M: Method<Params = NoParams>,
    {
        self.call::<M>(&NoParams { dbg: DBG.into() }).await
    }

    /// Prints a result: as JSON when that is wanted, else the text that is made of it.
    pub(crate) fn show<T: Serialize>(
        &self,
        result: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        if self.json { write(&json(result)) } else { write(&text(result)) }
    }

    /// Prints the result of a call that answers nothing: nothing, or `null`.
    pub(crate) fn done(&self) -> Result<(), Failure> {
        self.show(&(), |()| String::new())
    }
}

/// A value as indented JSON with a line's end.
pub(crate) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string_pretty(value).expect("wire types have string keys") + "\n"
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no failure.
pub(crate) fn write(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::plain(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}
