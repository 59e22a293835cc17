//! What becomes of a guest's write that finds no space in the SR.

use serde::{Deserialize, Serialize};

/// What becomes of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum NoSpace {
    /// It waits for space, and the guest with it, as a virtual machine of QEMU's does
    /// (`werror=enospc`): a guest that is told of an error keeps a file system that lost a write.
    #[default]
    Pause,
    /// The guest is told of an error.
    Error,
}

/// Not the name of a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotPauseOrError;

impl std::fmt::Display for NotPauseOrError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no_space is pause or error")
    }
}

impl std::error::Error for NotPauseOrError {}

impl std::str::FromStr for NoSpace {
    type Err = NotPauseOrError;

    fn from_str(word: &str) -> Result<Self, NotPauseOrError> {
        let all = [NoSpace::Pause, NoSpace::Error];
        all.into_iter().find(|way| way.to_string() == word).ok_or(NotPauseOrError)
    }
}

impl std::fmt::Display for NoSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NoSpace::Pause => "pause",
            NoSpace::Error => "error",
        })
    }
}
