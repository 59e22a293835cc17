//! Whole lives of a VBD, and random ones.

use super::*;
use proptest::prelude::*;
use zerotap_rpc_schema::worker::Abi;

fn ring(port: u32) -> RingParameters {
    RingParameters { ring_refs: vec![8], port, protocol: Abi::X86_64, persistent: true }
}

fn worker() -> Worker {
    let image = ImageInfo {
        sectors: 2048,
        sector_bytes: 512,
        physical_sector_bytes: 4096,
        memory_align_bytes: 512,
    };
    Worker {
        pid: 77,
        image,
        read_only: false,
        indirect_segments_max: 256,
        ring_page_order_max: 4,
        ring: None,
    }
}

/// xenstore, the guest and the worker around a machine; acts at once unless told to hold back.
struct World {
    machine: Option<Backend>,
    backend: Option<BackendSight>,
    frontend: Option<String>,
    keys: Result<RingParameters, Fault>,
    /// What the worker serves.
    served: Option<RingParameters>,
    alive: bool,
    worker_alive: bool,
    pending: Vec<Action>,
    complaint: String,
    ended: bool,
    connects: u32,
    states: Vec<String>,
}

impl World {
    fn new() -> Self {
        World {
            machine: Some(Backend::new(false, true)),
            backend: Some(BackendSight { state: Some("1".into()), online: true, ready: true }),
            frontend: Some("1".into()),
            keys: Ok(ring(5)),
            served: None,
            alive: true,
            worker_alive: false,
            pending: Vec::new(),
            complaint: String::new(),
            ended: false,
            connects: 0,
            states: Vec::new(),
        }
    }

    fn machine(&self) -> &Backend {
        self.machine.as_ref().unwrap()
    }

    fn state(&self) -> &str {
        self.backend.as_ref().and_then(|backend| backend.state.as_deref()).unwrap_or("gone")
    }

    fn tell(&mut self, event: Event) {
        let (machine, actions) = self.machine.take().unwrap().step(event);
        self.machine = Some(machine);
        assert!(actions.len() <= 2, "{actions:?}");
        for action in actions {
            self.check(&action);
            self.pending.push(action);
        }
    }

    /// What must hold of every action, whatever came before.
    fn check(&self, action: &Action) {
        let pending = |wanted: fn(&Action) -> bool| self.pending.iter().any(wanted);
        assert!(!self.ended, "{action:?} after the end");
        match action {
            Action::Connect(_) => {
                assert!(self.served.is_none(), "a ring is connected over another");
                assert!(!pending(|a| matches!(a, Action::Connect(_) | Action::Disconnect)));
                let offline = self.machine().sight().unwrap().backend.is_none();
                assert!(!offline, "a ring is connected for a device that is gone");
            }
            Action::Disconnect => {
                assert!(!pending(|a| matches!(a, Action::Connect(_) | Action::Disconnect)));
            }
            Action::Publish { from, what } => {
                assert!(!pending(|a| matches!(a, Action::Publish { .. })));
                let seen = self.machine().sight().unwrap().backend.as_ref().unwrap();
                assert_eq!(seen.state.as_ref(), Some(from));
                match what.state() {
                    State::Connected => assert!(self.machine().connected_ring().is_some()),
                    State::Closed | State::InitWait => assert!(!self.machine().holds_guest()),
                    _ => {}
                }
            }
            Action::End => assert!(!self.machine().holds_guest()),
            Action::Complain(_) | Action::RemoveDirectories => {}
        }
    }

    fn see(&mut self) {
        let wants = self.machine().wants_ring(self.frontend.as_deref());
        let sight = Sight {
            backend: self.backend.clone(),
            alive: self.alive,
            frontend_state: self.frontend.clone(),
            ring: wants.then(|| self.keys.clone()),
        };
        self.tell(Event::Seen(sight));
    }

    /// Does the oldest action that waits.
    fn act(&mut self, well: bool) {
        if self.pending.is_empty() {
            return;
        }
        match self.pending.remove(0) {
            Action::Connect(ring) => {
                self.connects += 1;
                let well = well && self.worker_alive;
                self.served = well.then_some(ring);
                let outcome = if well { Ok(()) } else { Err("no such grant".to_owned()) };
                self.tell(Event::Connected(outcome));
            }
            Action::Disconnect => {
                self.served = None;
                self.tell(Event::Disconnected { drained: self.worker_alive });
            }
            Action::Publish { from, what } => {
                let outcome = match &mut self.backend {
                    _ if !well => Err(PublishError::Failed("xenstored is away".to_owned())),
                    Some(backend) if backend.state.as_ref() == Some(&from) => {
                        backend.state = Some(what.state().to_string());
                        self.states.push(what.state().to_string());
                        Ok(())
                    }
                    _ => Err(PublishError::Changed),
                };
                self.tell(Event::Published(outcome));
            }
            Action::Complain(text) => self.complaint = text,
            Action::RemoveDirectories => (self.backend, self.frontend) = (None, None),
            Action::End => self.ended = true,
        }
    }

    /// Until nothing moves any more.
    fn settle(&mut self) {
        for _ in 0..64 {
            while !self.pending.is_empty() {
                self.act(true);
            }
            let before = (self.state().to_owned(), self.machine().clone());
            self.see();
            if self.pending.is_empty()
                && before == (self.state().to_owned(), self.machine().clone())
            {
                return;
            }
        }
        panic!("it does not come to rest: {:?}", self.machine());
    }

    fn worker(&mut self) {
        self.worker_alive = true;
        let ring = self.served.clone();
        self.tell(Event::WorkerReady(Worker { ring, ..worker() }));
        self.settle();
    }

    fn worker_dies(&mut self) {
        (self.worker_alive, self.served) = (false, None);
        self.tell(Event::WorkerDied);
        self.settle();
    }

    fn guest(&mut self, state: &str) {
        self.frontend = Some(state.to_owned());
        self.settle();
    }

    fn toolstack(&mut self, state: &str, online: bool) {
        let backend = self.backend.as_mut().unwrap();
        (backend.state, backend.online) = (Some(state.to_owned()), online);
        self.settle();
    }

    fn connected() -> Self {
        let mut world = World::new();
        world.worker();
        world.guest("3");
        world.guest("4");
        assert_eq!((world.state(), world.served.as_ref()), ("4", Some(&ring(5))));
        assert_eq!(world.machine().trouble(), None);
        world
    }
}

#[test]
fn a_life_from_plug_to_unplug() {
    let mut world = World::new();
    world.settle();
    assert_eq!((world.state(), world.machine().trouble()), ("1", Some(NO_WORKER)));
    world.worker();
    assert_eq!((world.state(), world.machine().trouble()), ("2", None));
    world.guest("3");
    world.guest("4");
    // The toolstack takes it away: the guest keeps its disk until it lets go.
    world.toolstack("5", false);
    assert_eq!((world.state(), world.served.is_some()), ("5", true));
    world.guest("5");
    assert_eq!((world.state(), world.served.is_some()), ("5", true));
    world.guest("6");
    assert_eq!((world.state(), world.served.is_some()), ("6", false));
    (world.backend, world.frontend) = (None, None);
    world.settle();
    assert!(world.ended);
    assert_eq!(world.states, ["2", "4", "6"]);
}

#[test]
fn nothing_is_offered_before_the_toolstacks_script_is_done() {
    let mut world = World::new();
    world.backend.as_mut().unwrap().ready = false;
    world.worker();
    assert_eq!((world.state(), world.machine().trouble()), ("1", Some(NOT_READY)));
    world.backend.as_mut().unwrap().ready = true;
    world.settle();
    assert_eq!(world.state(), "2");
}

#[test]
fn a_read_write_vbd_of_a_read_only_worker_is_not_offered() {
    let mut world = World::new();
    world.tell(Event::WorkerReady(Worker { read_only: true, ..worker() }));
    world.settle();
    assert_eq!(world.state(), "1");
    assert!(world.machine().trouble().unwrap().contains("read-only"));
    world.machine = Some(Backend::new(true, true));
    world.tell(Event::WorkerReady(Worker { read_only: true, ..worker() }));
    world.settle();
    assert_eq!(world.state(), "2");
}

#[test]
fn a_front_that_jumps_to_connected_is_served() {
    for state in ["3", "4"] {
        let mut world = World::new();
        world.worker();
        world.guest(state);
        assert_eq!((world.state(), world.connects), ("4", 1));
        world.guest("4");
        assert_eq!((world.state(), world.connects), ("4", 1));
    }
}

#[test]
fn a_guest_that_closes_and_comes_again_is_served_again() {
    let mut world = World::connected();
    for port in 6..9 {
        world.guest("5");
        assert_eq!(world.state(), "5");
        world.guest("6");
        assert_eq!((world.state(), world.served.is_some()), ("6", false));
        world.keys = Ok(ring(port));
        world.guest("1");
        assert_eq!(world.state(), "2");
        world.guest("3");
        assert_eq!((world.state(), world.served.as_ref()), ("4", Some(&ring(port))));
    }
}

#[test]
fn a_kexeced_or_resumed_guest_is_served_anew() {
    let mut world = World::connected();
    world.guest("1");
    assert_eq!((world.state(), world.served.is_some()), ("2", false));
    world.keys = Ok(ring(9));
    world.guest("3");
    assert_eq!((world.state(), world.served.as_ref()), ("4", Some(&ring(9))));
    // Resumed without a word: a new ring at once.
    world.guest("4");
    world.keys = Ok(ring(10));
    world.guest("3");
    assert_eq!((world.state(), world.served.as_ref()), ("4", Some(&ring(10))));
    assert_eq!(world.states, ["2", "4", "2", "4"]);
}

#[test]
fn keys_that_change_while_connected_are_ignored() {
    let mut world = World::connected();
    world.keys = Ok(ring(99));
    world.settle();
    assert_eq!((world.served.as_ref(), world.connects), (Some(&ring(5)), 1));
}

#[test]
fn unplug_before_the_guest_has_connected_ends_at_once() {
    let mut world = World::new();
    world.worker();
    world.toolstack("5", false);
    assert_eq!(world.state(), "6");
}

#[test]
fn a_bad_ring_is_told_once_and_the_next_one_is_served() {
    let mut world = World::new();
    world.worker();
    world.keys = Err(Fault::Protocol);
    world.guest("3");
    assert_eq!(world.state(), "2");
    assert!(world.complaint.contains("protocol"), "{}", world.complaint);
    assert!(world.machine().trouble().is_some());
    world.complaint = "read".to_owned();
    world.settle();
    assert_eq!(world.complaint, "read");
    world.keys = Ok(ring(4));
    world.settle();
    assert_eq!((world.state(), world.complaint.as_str()), ("4", ""));
    assert_eq!(world.machine().trouble(), None);
}

#[test]
fn a_ring_that_cannot_be_mapped_is_not_tried_for_ever() {
    let mut world = World::new();
    world.worker();
    world.worker_alive = false;
    world.guest("3");
    assert_eq!((world.state(), world.connects), ("2", 1));
    assert!(world.complaint.contains("no such grant"));
    world.worker_alive = true;
    world.settle();
    assert_eq!(world.connects, 1);
    world.guest("1");
    world.guest("3");
    assert_eq!((world.state(), world.connects), ("4", 2));
}

#[test]
fn garbage_from_the_guest_changes_nothing() {
    for garbage in ["7", "8", "9", "", "four", "-1", "44"] {
        let mut world = World::connected();
        world.guest(garbage);
        assert_eq!((world.state(), world.served.is_some()), ("4", true), "{garbage}");
        assert!(world.machine().trouble().is_some());
        world.guest("4");
        assert_eq!(world.machine().trouble(), None);
    }
}

#[test]
fn a_frontend_that_vanishes_is_closed() {
    for gone in [None, Some("0".to_owned())] {
        let mut world = World::connected();
        world.frontend = gone;
        world.settle();
        assert_eq!((world.state(), world.served.is_some()), ("6", false));
    }
    let mut early = World::new();
    early.frontend = None;
    early.worker();
    assert_eq!(early.state(), "1");
}

#[test]
fn adoption_leaves_a_live_guest_alone() {
    let mut world = World::connected();
    world.machine = Some(Backend::new(false, true));
    world.worker();
    assert_eq!((world.served.as_ref(), world.connects), (Some(&ring(5)), 1));
    assert_eq!((world.states.len(), world.machine().trouble()), (2, None));
    // A worker that serves nothing of a guest that believes itself connected.
    world.machine = Some(Backend::new(false, true));
    world.served = None;
    world.worker();
    assert_eq!((world.state(), world.connects, world.machine().trouble()), ("4", 1, Some(LOST)));
}

#[test]
fn adoption_goes_on_where_the_last_daemon_stopped() {
    // It had connected the ring and not said so.
    let mut world = World::connected();
    world.backend.as_mut().unwrap().state = Some("2".into());
    world.machine = Some(Backend::new(false, true));
    world.worker();
    assert_eq!((world.state(), world.connects), ("4", 1));
    // It had offered, and the guest came meanwhile.
    let mut world = World::new();
    world.backend.as_mut().unwrap().state = Some("2".into());
    world.frontend = Some("3".into());
    world.worker();
    assert_eq!((world.state(), world.connects), ("4", 1));
    // It was to close.
    let mut world = World::connected();
    world.machine = Some(Backend::new(false, true));
    world.frontend = Some("6".into());
    world.worker();
    assert_eq!((world.state(), world.served.is_some()), ("6", false));
}

#[test]
fn a_dead_worker_is_told_and_never_papered_over() {
    let mut world = World::connected();
    world.worker_dies();
    assert_eq!((world.state(), world.machine().trouble()), ("4", Some(LOST)));
    world.worker();
    assert_eq!((world.connects, world.machine().trouble()), (1, Some(LOST)));
    // The guest starts again: all is well.
    world.guest("1");
    world.guest("3");
    assert_eq!((world.state(), world.connects, world.machine().trouble()), ("4", 2, None));
}

#[test]
fn a_worker_that_leaves_is_followed_by_another_on_the_same_ring() {
    let mut world = World::connected();
    world.tell(Event::WorkerLeaves);
    world.settle();
    assert_eq!((world.state(), world.served.is_some()), ("4", false));
    assert_eq!(world.machine().trouble(), Some(NO_WORKER));
    world.worker_dies();
    world.worker();
    assert_eq!((world.served.as_ref(), world.connects), (Some(&ring(5)), 2));
    assert_eq!((world.states.len(), world.machine().trouble()), (2, None));
}

#[test]
fn a_domain_that_dies_leaves_nothing() {
    let mut world = World::connected();
    world.alive = false;
    world.settle();
    assert!(world.ended && world.served.is_none() && world.backend.is_none());
    // A toolstack's own kind is the toolstack's to remove.
    let mut world = World::connected();
    world.machine = Some(Backend::new(false, false));
    world.worker();
    world.alive = false;
    world.settle();
    assert_eq!((world.state(), world.served.is_some(), world.ended), ("6", false, false));
}

#[test]
fn a_device_may_be_made_before_its_domain() {
    let mut world = World::new();
    world.alive = false;
    world.worker();
    assert_eq!((world.state(), world.machine().trouble()), ("1", Some(NO_DOMAIN)));
    world.alive = true;
    world.settle();
    assert_eq!((world.state(), world.machine().trouble()), ("2", None));
}

#[test]
fn force_lets_go_at_once_and_the_next_device_is_a_new_one() {
    let mut world = World::connected();
    world.tell(Event::Forced);
    world.settle();
    assert_eq!((world.state(), world.machine().holds_guest()), ("6", false));
    world.frontend = Some("1".into());
    world.toolstack("1", true);
    assert_eq!(world.state(), "2");
}

#[test]
fn a_broken_ring_is_told_until_the_guest_connects_anew() {
    let mut world = World::connected();
    world.tell(Event::RingBroken);
    world.settle();
    assert_eq!((world.state(), world.machine().trouble()), ("4", Some(BROKEN)));
    world.guest("6");
    world.guest("1");
    world.guest("3");
    assert_eq!((world.state(), world.machine().trouble()), ("4", None));
}

#[test]
fn what_the_toolstack_writes_meanwhile_is_not_overwritten() {
    let mut world = World::new();
    world.worker();
    world.frontend = Some("3".into());
    world.see();
    world.act(true);
    // Connected; the publication waits while the toolstack writes 5.
    let backend = world.backend.as_mut().unwrap();
    (backend.state, backend.online) = (Some("5".into()), false);
    world.settle();
    assert_eq!((world.state(), world.served.is_some()), ("5", true));
    world.guest("6");
    assert_eq!((world.state(), world.served.is_some()), ("6", false));
}

#[test]
fn a_state_that_flaps_thousands_of_times_leaves_a_working_device() {
    let mut world = World::connected();
    for n in 0..20_000u32 {
        world.frontend =
            Some(["1", "3", "4", "5", "6", "0", "7"][n as usize * 7919 % 7].to_owned());
        world.keys = if n % 11 == 0 { Err(Fault::Protocol) } else { Ok(ring(n)) };
        world.see();
        if n % 3 == 0 {
            world.act(true);
        }
        assert!(world.pending.len() < 8);
        world.pending.retain(|action| !matches!(action, Action::Complain(_)));
    }
    world.settle();
    world.guest("6");
    world.guest("1");
    world.keys = Ok(ring(1));
    world.guest("3");
    assert_eq!((world.state(), world.served.as_ref()), ("4", Some(&ring(1))));
}

#[derive(Debug, Clone)]
enum Move {
    Guest(Option<&'static str>),
    Keys(u32),
    Toolstack(&'static str, bool),
    ToolstackRemoves,
    ToolstackMakes,
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
                self.backend = Some(BackendSight { state, online: true, ready: true });
            }
            Move::Worker => {
                self.worker_alive = true;
                let ring = self.served.clone();
                self.tell(Event::WorkerReady(Worker { ring, ..worker() }));
            }
            Move::WorkerDies => {
                (self.worker_alive, self.served) = (false, None);
                self.tell(Event::WorkerDied);
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
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 400, ..Default::default() })]
    #[test]
    fn random_lives_keep_the_rules_and_come_to_rest(
        moves in prop::collection::vec(any_move(), 1..60),
        ours in any::<bool>(),
    ) {
        let mut world = World::new();
        world.machine = Some(Backend::new(false, ours));
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
