//! What the command line says when it cannot do what was asked: one line, what to do, an exit code.

use super::client::CallError;
use std::io::ErrorKind;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::smapi2::VdiState;

/// The call failed.
const FAILED: u8 = 1;
/// The command line made no sense; clap's own errors exit with the same.
const USAGE: u8 = 2;

/// A failed command.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Failure {
    /// What was asked and what is wrong.
    pub(crate) problem: String,
    /// What to do; absent where the problem says it already.
    pub(crate) remedy: Option<String>,
    /// The exit code.
    pub(crate) code: u8,
}

impl Failure {
    /// A failure with a remedy.
    pub(crate) fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Failure { problem: problem.into(), remedy: Some(remedy.into()), code: FAILED }
    }

    /// A failure that its problem explains in full.
    pub(crate) fn plain(problem: impl Into<String>) -> Self {
        Failure { problem: problem.into(), remedy: None, code: FAILED }
    }

    /// A command line that makes no sense in a way that clap cannot see.
    pub(crate) fn usage(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Failure { code: USAGE, ..Failure::new(problem, remedy) }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "zerotap: {}", self.problem)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n  remedy: {remedy}"),
            None => Ok(()),
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Failure { remedy: remedy(&error), problem: error.to_string(), code: FAILED }
    }
}

/// What a person can do about a failed call. A backend failure's text says it itself.
fn remedy(error: &CallError) -> Option<String> {
    let text = match error {
        CallError::Connect { source, .. } => match source.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                "start the daemon with `zerotap serve`, or name the socket of one that runs with \
                 --socket PATH or ZEROTAP_SOCKET"
            }
            ErrorKind::PermissionDenied => {
                "only the socket's owner and group may connect: run as root or join that group"
            }
            _ => "check --socket and ZEROTAP_SOCKET",
        },
        CallError::Broken { .. } | CallError::Late { .. } => {
            "it may or may not have taken effect; asking again is safe. The daemon's log and \
             `zerotap status` say more"
        }
        CallError::Garbled { .. } => {
            "check that the socket is a zerotap daemon's and that both are of the same version \
             (`zerotap status`)"
        }
        CallError::Rpc { code: -32601, .. } => "`zerotap call rpc.discover` lists the methods",
        CallError::Rpc { code: -32602, .. } => {
            "`zerotap call rpc.discover` lists each method's parameters"
        }
        CallError::Rpc { .. } => return None,
        CallError::Storage { error, .. } => return storage_remedy(error).map(str::to_owned),
    };
    Some(text.to_owned())
}

fn storage_remedy(error: &StorageError) -> Option<&'static str> {
    match error {
        StorageError::SrNotAttached(_) => Some(
            "`zerotap sr ls` lists the attached SRs; `zerotap sr attach UUID --device-config \
             path=DIR` attaches one",
        ),
        StorageError::VdiDoesNotExist(_) => Some("`zerotap vdi ls` lists the VDIs"),
        StorageError::IllegalTransition(moved) => Some(match moved {
            (VdiState::Detached, VdiState::Activated(_)) => {
                "attach it first: `zerotap vdi attach`, with the same --dp, or --domid and --device"
            }
            (VdiState::Activated(_), VdiState::Detached) => {
                "deactivate it first: `zerotap vdi deactivate`"
            }
            _ => "`zerotap vdi show UUID` says which datapath holds the VDI and in which state",
        }),
        StorageError::Internal(_) => Some("the daemon's log says more"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    fn connect(kind: ErrorKind) -> Failure {
        let socket = "/run/zerotap/rpc.sock".into();
        CallError::Connect { socket, source: io::Error::from(kind) }.into()
    }

    #[test]
    fn a_missing_socket_says_what_to_start() {
        for kind in [ErrorKind::NotFound, ErrorKind::ConnectionRefused] {
            let text = connect(kind).to_string();
            assert!(
                text.starts_with("zerotap: cannot connect to /run/zerotap/rpc.sock: "),
                "{text}"
            );
            assert!(text.contains("remedy: start the daemon with `zerotap serve`"), "{text}");
            assert!(text.contains("ZEROTAP_SOCKET"), "{text}");
        }
    }

    #[test]
    fn a_forbidden_socket_says_who_may() {
        assert!(connect(ErrorKind::PermissionDenied).to_string().contains("owner and group"));
    }

    #[test]
    fn a_backend_failure_speaks_for_itself() {
        let error = StorageError::backend(44, "no room: remove a VDI");
        let failure = Failure::from(CallError::Storage { method: "VDI.create".into(), error });
        let text = failure.to_string();
        assert_eq!(text, "zerotap: VDI.create: no room: remove a VDI [SR_BACKEND_FAILURE_44]");
        assert_eq!(failure.code, 1);
    }

    #[test]
    fn usage_errors_exit_with_2() {
        assert_eq!(Failure::usage("a", "b").code, 2);
    }
}
