//! The states of a VDI and of its datapaths, and the moves between them. Pure: no I/O, no clock.
//!
//! Source: xen-api `ocaml/xapi-idl/storage/vdi_automaton.ml`; the tests hold its table. A VDI's
//! superstate is the most that any of its datapaths asks for; what has to be done for a call is the
//! path from the old superstate to the new one. Called by a VDI's actor.

use crate::state::Datapath;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::error::number;
use zerotap_rpc_schema::smapi2::{Mode, VdiState};

/// What a caller asks of one datapath.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// Reserve the VDI.
    Attach(Mode),
    /// Have it served.
    Activate,
    /// Stop to serve it.
    Deactivate,
    /// Give it up.
    Detach,
}

/// What is to be done for a VDI when its superstate changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Reserve the image.
    Attach(Mode),
    /// Start a worker.
    Activate(Mode),
    /// Stop the worker.
    Deactivate,
    /// Give the image up.
    Detach,
}

/// A datapath's next state.
///
/// # Errors
/// `Illegal_transition`, when there is no such move.
pub fn step(state: VdiState, asked: Move) -> Result<VdiState, StorageError> {
    use Mode::{ReadOnly, ReadWrite};
    use VdiState::{Activated, Attached, Detached};
    let illegal = |to| Err(StorageError::IllegalTransition((state, to)));
    match (state, asked) {
        (Detached, Move::Attach(mode)) => Ok(Attached(mode)),
        // Who may write may also read: asking for less changes nothing.
        (Attached(ReadWrite) | Activated(ReadWrite), Move::Attach(_))
        | (Attached(ReadOnly) | Activated(ReadOnly), Move::Attach(ReadOnly)) => Ok(state),
        (Attached(ReadOnly) | Activated(ReadOnly), Move::Attach(ReadWrite)) => {
            illegal(Attached(ReadWrite))
        }
        (Detached, Move::Activate) => illegal(Activated(ReadWrite)),
        (Attached(mode) | Activated(mode), Move::Activate) => Ok(Activated(mode)),
        (Detached | Attached(_), Move::Deactivate) => Ok(state),
        (Activated(mode), Move::Deactivate) => Ok(Attached(mode)),
        (Detached | Attached(_), Move::Detach) => Ok(Detached),
        (Activated(_), Move::Detach) => illegal(Detached),
    }
}

/// The most that any of these asks for.
pub fn superstate(states: impl IntoIterator<Item = VdiState>) -> VdiState {
    states.into_iter().fold(VdiState::Detached, |most, state| match (most, state) {
        (VdiState::Detached, other) | (other, VdiState::Detached) => other,
        (VdiState::Attached(a), VdiState::Attached(b)) => VdiState::Attached(wider(a, b)),
        (
            VdiState::Attached(a) | VdiState::Activated(a),
            VdiState::Attached(b) | VdiState::Activated(b),
        ) => VdiState::Activated(wider(a, b)),
    })
}

fn wider(a: Mode, b: Mode) -> Mode {
    if a == Mode::ReadWrite { a } else { b }
}

/// What leads from one superstate to another, in order; `None` where nothing does, because a VDI
/// in use never changes between read-only and read-write.
#[must_use]
pub fn path(from: VdiState, to: VdiState) -> Option<Vec<Effect>> {
    use VdiState::{Activated, Attached, Detached};
    let effects = match (from, to) {
        _ if from == to => vec![],
        (Detached, Attached(mode)) => vec![Effect::Attach(mode)],
        (Detached, Activated(mode)) => vec![Effect::Attach(mode), Effect::Activate(mode)],
        (Attached(_), Detached) => vec![Effect::Detach],
        (Activated(_), Detached) => vec![Effect::Deactivate, Effect::Detach],
        (Attached(a), Activated(b)) if a == b => vec![Effect::Activate(b)],
        (Activated(a), Attached(b)) if a == b => vec![Effect::Deactivate],
        _ => return None,
    };
    Some(effects)
}

/// Refuses the attach that no path leads to: to write, where all other uses only read. Several may
/// be attached to write, as when a guest migrates within its host; [`admit_active`] has one of them
/// active.
///
/// # Errors
/// SR_BACKEND_FAILURE_24, with who holds the VDI and how to make it let go.
pub fn admit(held: &[Datapath], dp: &str, mode: Mode, name: &str) -> Result<(), StorageError> {
    let others = || held.iter().filter(|held| held.dp != dp);
    let writes = |held: &Datapath| mode_of(held.state) == Some(Mode::ReadWrite);
    if mode == Mode::ReadOnly || others().any(writes) {
        return Ok(());
    }
    others().next().map_or(Ok(()), |reader| Err(in_use("attach", name, dp, mode, reader)))
}

/// Refuses a second use that writes: what two guests write at once no file system survives. On a
/// sharable VDI, where they know of each other, this is not asked.
///
/// # Errors
/// As [`admit`].
pub fn admit_active(
    held: &[Datapath],
    dp: &str,
    mode: Mode,
    name: &str,
) -> Result<(), StorageError> {
    let writes = VdiState::Activated(Mode::ReadWrite);
    match held.iter().find(|held| held.dp != dp && held.state == writes) {
        Some(writer) if mode == Mode::ReadWrite => Err(in_use("activate", name, dp, mode, writer)),
        _ => Ok(()),
    }
}

fn in_use(verb: &str, name: &str, dp: &str, mode: Mode, holder: &Datapath) -> StorageError {
    let Datapath { dp: other, domain, state, since, .. } = holder;
    let text = format!(
        "cannot {verb} VDI {name} {mode} for datapath {dp}: it is {state} for datapath {other} of \
         domain {domain} since {since}. End that use first (VDI.deactivate and VDI.detach, or \
         DP.destroy2)"
    );
    StorageError::backend(number::VDI_IN_USE, text)
}

fn mode_of(state: VdiState) -> Option<Mode> {
    match state {
        VdiState::Detached => None,
        VdiState::Attached(mode) | VdiState::Activated(mode) => Some(mode),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Mode::{ReadOnly as RO, ReadWrite as RW};
    use VdiState::{Activated, Attached, Detached};
    use proptest::prelude::*;

    /// The table of upstream's automaton, row by row; `None` is an error.
    #[test]
    fn table_is_upstreams() {
        let moves =
            [Move::Attach(RO), Move::Attach(RW), Move::Activate, Move::Deactivate, Move::Detach];
        let [none, detached] = [None, Some(Detached)];
        let [a_ro, a_rw] = [Some(Attached(RO)), Some(Attached(RW))];
        let [s_ro, s_rw] = [Some(Activated(RO)), Some(Activated(RW))];
        let table = [
            (Detached, [a_ro, a_rw, none, detached, detached]),
            (Attached(RO), [a_ro, none, s_ro, a_ro, detached]),
            (Attached(RW), [a_rw, a_rw, s_rw, a_rw, detached]),
            (Activated(RO), [s_ro, none, s_ro, a_ro, none]),
            (Activated(RW), [s_rw, s_rw, s_rw, a_rw, none]),
        ];
        for (state, row) in table {
            for (asked, expected) in moves.into_iter().zip(row) {
                assert_eq!(step(state, asked).ok(), expected, "{state}, {asked:?}");
            }
        }
    }

    fn states() -> impl Strategy<Value = VdiState> {
        prop::sample::select(vec![
            Detached,
            Attached(RO),
            Attached(RW),
            Activated(RO),
            Activated(RW),
        ])
    }

    fn moves() -> impl Strategy<Value = Move> {
        prop::sample::select(vec![
            Move::Attach(RO),
            Move::Attach(RW),
            Move::Activate,
            Move::Deactivate,
            Move::Detach,
        ])
    }

    fn apply(state: VdiState, effect: Effect) -> VdiState {
        match effect {
            Effect::Attach(mode) => Attached(mode),
            Effect::Activate(mode) => Activated(mode),
            Effect::Deactivate => Attached(mode_of(state).expect("active before")),
            Effect::Detach => Detached,
        }
    }

    fn holder(dp: &str, state: VdiState) -> Datapath {
        Datapath {
            dp: dp.into(),
            domain: "5".into(),
            state,
            since: "2026-01-01T00:00:00Z".into(),
            leaked: false,
        }
    }

    proptest! {
        /// Doing what a path says ends where it should.
        #[test]
        fn path_leads_there(from in states(), to in states()) {
            match path(from, to) {
                Some(effects) => {
                    prop_assert_eq!(effects.into_iter().fold(from, apply), to);
                }
                None => prop_assert_ne!(mode_of(from), mode_of(to)),
            }
        }

        /// A move that was made may be asked for again: every call is idempotent.
        #[test]
        fn moves_are_idempotent(state in states(), asked in moves()) {
            if let Ok(next) = step(state, asked) {
                prop_assert_eq!(step(next, asked).ok(), Some(next));
            }
        }

        /// The superstate does not depend on the order, and no datapath asks for more.
        #[test]
        fn superstate_is_the_most(mut all in prop::collection::vec(states(), 0..6)) {
            let most = superstate(all.clone());
            all.reverse();
            prop_assert_eq!(superstate(all.clone()), most);
            let rank = |state| match state { Detached => 0, Attached(_) => 1, Activated(_) => 2 };
            prop_assert_eq!(all.iter().map(|&state| rank(state)).max().unwrap_or(0), rank(most));
            let writes = all.iter().any(|&state| mode_of(state) == Some(RW));
            prop_assert_eq!(mode_of(most) == Some(RW), writes);
        }

        /// Whatever callers try, a VDI that is not sharable has one active writer, and nobody who
        /// comes changes how the others have it open.
        #[test]
        fn one_active_writer(calls in prop::collection::vec((0..4usize, moves()), 0..40)) {
            let mut held: Vec<Datapath> = Vec::new();
            for (who, asked) in calls {
                let dp = format!("dp{who}");
                let at = held.iter().position(|held| held.dp == dp);
                let Ok(next) = step(at.map_or(Detached, |at| held[at].state), asked) else {
                    continue;
                };
                let admitted = match (asked, next) {
                    (Move::Attach(mode), _) => admit(&held, &dp, mode, "v"),
                    (Move::Activate, Activated(mode)) => admit_active(&held, &dp, mode, "v"),
                    _ => Ok(()),
                };
                if admitted.is_err() {
                    continue;
                }
                let before = superstate(held.iter().map(|held| held.state));
                match at {
                    Some(at) => held[at].state = next,
                    None => held.push(holder(&dp, next)),
                }
                held.retain(|held| held.state != Detached);
                let after = superstate(held.iter().map(|held| held.state));
                // Who leaves is never refused: what is open stays as it is for the others.
                let comes = matches!(asked, Move::Attach(_) | Move::Activate);
                prop_assert!(!comes || path(before, after).is_some(), "{before} to {after}");
                let writers = held.iter().filter(|held| held.state == Activated(RW)).count();
                prop_assert!(writers <= 1);
            }
        }
    }

    #[test]
    fn refusals_name_the_holder() {
        let writer = [holder("vbd/5/xvda", Activated(RW))];
        let reader = [holder("vbd/5/xvda", Attached(RO))];
        let refused = [
            admit_active(&writer, "vbd/6/xvda", RW, "disk"),
            admit(&reader, "vbd/6/xvda", RW, "disk"),
        ];
        for error in refused.map(|refused| refused.expect_err("in use")) {
            let text = error.to_string();
            assert!(text.contains("vbd/5/xvda") && text.contains("domain 5"), "{text}");
            assert_eq!(error.code(), 24);
        }
    }

    #[test]
    fn a_second_user_is_admitted() {
        let writer = [holder("vbd/5/xvda", Activated(RW))];
        for mode in [RO, RW] {
            assert!(admit(&writer, "vbd/6/xvda", mode, "disk").is_ok(), "it is not active yet");
        }
        assert!(admit_active(&writer, "vbd/5/xvda", RW, "disk").is_ok(), "the same again");
        assert!(admit_active(&writer, "vbd/6/xvda", RO, "disk").is_ok(), "dom0 has a look");
        let moving = [holder("vbd/5/xvda", Attached(RW))];
        assert!(admit_active(&moving, "vbd/6/xvda", RW, "disk").is_ok(), "a guest migrates");
        let reader = [holder("vbd/5/xvda", Attached(RO))];
        assert!(admit(&reader, "vbd/6/xvda", RO, "disk").is_ok(), "readers share");
    }
}
