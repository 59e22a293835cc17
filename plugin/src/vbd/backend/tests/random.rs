//! Random lives of a VBD: whatever happens in whatever order, the rules hold and it comes to rest.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Move {
    Guest(Option<&'static str>),
    Keys(u32),
    Toolstack(&'static str, bool),
    ToolstackRemoves,
    ToolstackMakes,
    Medium(Medium),
    Worker,
    WorkerDies,
    WorkerLeaves,
    Broken,
    Domain(bool),
    Forced,
    Act(bool),
    See,
}

fn any_move() -> impl Strategy<Value = Move> {
    let states = prop::sample::select(vec!["0", "1", "2", "3", "4", "5", "6", "7", "x"]);
    prop_oneof![
        6 => prop::option::weighted(0.9, states.clone()).prop_map(Move::Guest),
        2 => (0..4u32).prop_map(Move::Keys),
        2 => (states, any::<bool>()).prop_map(|(state, online)| Move::Toolstack(state, online)),
        1 => Just(Move::ToolstackRemoves),
        1 => Just(Move::ToolstackMakes),
        1 => prop::sample::select(
            vec![Medium::Here, Medium::Here, Medium::Ejected, Medium::Another],
        ).prop_map(Move::Medium),
        2 => Just(Move::Worker),
        1 => Just(Move::WorkerDies),
        1 => Just(Move::WorkerLeaves),
        1 => Just(Move::Broken),
        1 => prop::bool::weighted(0.7).prop_map(Move::Domain),
        1 => Just(Move::Forced),
        8 => prop::bool::weighted(0.8).prop_map(Move::Act),
        8 => Just(Move::See),
    ]
}

impl World {
    fn play(&mut self, one: &Move) {
        match one {
            Move::Guest(state) => self.frontend = state.map(str::to_owned),
            Move::Keys(0) => self.keys = Err(Fault::Protocol),
            Move::Keys(port) => self.keys = Ok(ring(*port)),
            Move::Toolstack(state, online) => {
                if let Some(backend) = &mut self.backend {
                    (backend.state, backend.online) = (Some((*state).to_owned()), *online);
                }
            }
            Move::ToolstackRemoves => self.backend = None,
            Move::ToolstackMakes => {
                let state = Some("1".to_owned());
                let (sectors, medium) = (None, Medium::Here);
                self.backend =
                    Some(BackendSight { state, online: true, ready: true, sectors, medium });
            }
            Move::Medium(medium) => {
                if let Some(backend) = &mut self.backend {
                    backend.medium = *medium;
                }
            }
            Move::Worker => {
                self.sectors += 8;
                self.meet_worker();
            }
            Move::WorkerDies => {
                (self.worker_alive, self.served) = (false, None);
                self.tell(Event::WorkerDied(String::new()));
            }
            Move::WorkerLeaves => self.tell(Event::WorkerLeaves),
            Move::Broken => self.tell(Event::RingBroken),
            Move::Domain(alive) => self.alive = *alive,
            Move::Forced => self.tell(Event::Forced),
            Move::Act(well) => self.act(*well),
            Move::See => self.see(),
        }
    }

    /// What must hold once nothing moves any more.
    fn judge_rest(&self) {
        assert_eq!(self.served.as_ref(), self.machine().connected_ring(), "who serves what");
        let (false, Some(backend)) = (self.ended, &self.backend) else {
            // A directory that was made after the end is another machine's.
            assert!(self.ended && self.served.is_none());
            return;
        };
        let ours = backend.state.as_deref().and_then(State::parse).is_some_and(|state| {
            !matches!(state, State::Unknown | State::Reconfiguring | State::Reconfigured)
        });
        if ours && self.frontend.as_deref() == Some("6") {
            assert_eq!((self.state(), self.served.is_some()), ("6", false));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: 400,
        ..Default::default()
    })]
    #[test]
    fn random_lives_keep_the_rules_and_come_to_rest(
        moves in prop::collection::vec(any_move(), 1..60),
        ours in any::<bool>(),
    ) {
        let mut world = World::new();
        world.machine = Some(fresh(false, ours));
        for one in &moves {
            if world.ended {
                break;
            }
            world.play(one);
        }
        if !world.ended {
            world.settle();
            world.judge_rest();
        }
    }
}
