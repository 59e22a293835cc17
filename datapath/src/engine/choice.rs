//! Which engine a worker uses, and why. Decided once, when it starts.

use super::aio::Aio;
use super::uring::Uring;
use std::os::fd::BorrowedFd;
use zerotap_rpc_schema::engine::{EngineChoice, EngineKind, EngineSetting};

/// Why an engine cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} will not do: {problem}")]
pub struct Unavailable {
    /// Which engine.
    pub kind: EngineKind,
    /// What the kernel lacks or forbids, for people.
    pub problem: String,
}

/// Why no engine can be had that the configuration allows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoEngine {
    /// The configuration names one, and that is not there.
    #[error("{0}. The configuration allows no other engine: set it to \"auto\"")]
    Named(Unavailable),
    /// There is none at all.
    #[error("this kernel has no I/O engine for a worker: {0}; {1}")]
    Neither(Unavailable, Unavailable),
}

/// Tries what the configuration allows, the best first; AIO by making `file` durable.
///
/// # Errors
/// When none of it will do.
pub fn choose(setting: EngineSetting, file: BorrowedFd<'_>) -> Result<EngineChoice, NoEngine> {
    decide(setting, |kind| match kind {
        EngineKind::IoUring => Uring::probe(),
        EngineKind::Aio => Aio::probe(file),
    })
}

fn decide(
    setting: EngineSetting,
    probe: impl Fn(EngineKind) -> Result<(), Unavailable>,
) -> Result<EngineChoice, NoEngine> {
    let only = |kind| match probe(kind) {
        Ok(()) => Ok(EngineChoice { kind, why: "the configuration asks for it".into() }),
        Err(lacking) => Err(NoEngine::Named(lacking)),
    };
    match setting {
        EngineSetting::IoUring => only(EngineKind::IoUring),
        EngineSetting::Aio => only(EngineKind::Aio),
        EngineSetting::Auto => {
            let Err(lacking) = probe(EngineKind::IoUring) else {
                let why = "the kernel has all of it that a worker needs".into();
                return Ok(EngineChoice { kind: EngineKind::IoUring, why });
            };
            match probe(EngineKind::Aio) {
                Ok(()) => Ok(EngineChoice { kind: EngineKind::Aio, why: lacking.to_string() }),
                Err(other) => Err(NoEngine::Neither(lacking, other)),
            }
        }
    }
}

#[cfg(test)]
mod tests;
