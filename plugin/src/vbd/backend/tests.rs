//! Whole lives of a VBD.

mod random;
mod world;

use super::judge::{LOST, NO_DOMAIN, NO_MEDIUM, NO_WORKER, NOT_READY};
use super::*;
use world::{World, fresh};
use zerotap_rpc_schema::worker::{Abi, ImageInfo, QueueParameters};

fn ring(port: u32) -> RingParameters {
    let queues = vec![QueueParameters { ring_refs: vec![8], port }];
    RingParameters { queues, protocol: Abi::X86_64, persistent: true }
}

fn worker() -> Worker {
    let image = ImageInfo {
        sectors: 2048,
        sector_bytes: 512,
        physical_sector_bytes: 4096,
        emulated_sector_bytes: None,
        memory_align_bytes: 512,
        discard: None,
    };
    Worker {
        pid: 77,
        image,
        read_only: false,
        indirect_segments_max: 256,
        ring_page_order_max: 4,
        queues_max: 4,
        transfer: None,
        ring: None,
        draining: false,
        answered_all: false,
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
    world.machine = Some(fresh(true, true));
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
fn a_medium_is_ejected_and_inserted_under_a_connected_guest() {
    let mut world = World::connected();
    let insert = |world: &mut World, medium| {
        world.backend.as_mut().unwrap().medium = medium;
        world.settle();
    };
    insert(&mut world, Medium::Ejected);
    assert_eq!((world.state(), world.served.is_some()), ("4", false));
    assert_eq!(world.backend.as_ref().unwrap().sectors, Some(0), "the guest is told");
    assert_eq!(world.machine().trouble(), Some(NO_MEDIUM));
    insert(&mut world, Medium::Here);
    assert_eq!(world.served.as_ref(), Some(&ring(5)), "the same ring");
    assert_eq!(world.backend.as_ref().unwrap().sectors, Some(2048));
    assert_eq!(world.machine().trouble(), None);
    // Another without an ejection: this machine's end, and a new one takes the ring up.
    insert(&mut world, Medium::Another);
    assert!(world.ended && world.served.is_none());
    assert_eq!(world.backend.as_ref().unwrap().sectors, Some(0));
    (world.machine, world.ended) = (Some(fresh(false, true)), false);
    world.backend.as_mut().unwrap().medium = Medium::Here;
    world.sectors = 512;
    world.worker();
    assert_eq!((world.state(), world.served.as_ref()), ("4", Some(&ring(5))));
    assert_eq!(world.backend.as_ref().unwrap().sectors, Some(512), "smaller than the last");
    world.guest("6");
    assert_eq!((world.state(), world.served.is_some()), ("6", false));
}

#[test]
fn an_empty_drive_is_not_offered_and_a_lost_ring_not_told_of() {
    let mut world = World::new();
    world.backend.as_mut().unwrap().medium = Medium::Ejected;
    world.worker();
    assert_eq!((world.state(), world.machine().trouble()), ("1", Some(NO_MEDIUM)));
    let mut world = World::connected();
    world.worker_dies();
    world.backend.as_mut().unwrap().medium = Medium::Ejected;
    world.settle();
    let sectors = world.backend.as_ref().unwrap().sectors;
    assert_eq!(sectors, Some(2048), "its requests were not answered: it must start anew");
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
    // A worker that serves nothing of a guest that believes itself connected: the journal tells.
    world.machine = Some(Backend::new(false, true));
    world.served = None;
    world.worker();
    assert_eq!(
        (world.served.as_ref(), &world.hows[1..]),
        (Some(&ring(5)), &[Journaled::Resume][..])
    );
    // There is none, or of another ring.
    world.machine = Some(Backend::new(false, true));
    (world.served, world.journal) = (None, None);
    world.worker();
    assert_eq!((world.state(), world.served.is_some(), world.connects), ("4", false, 3));
    assert!(world.machine().trouble().unwrap().starts_with(LOST));
}

#[test]
fn adoption_takes_a_ring_back_that_the_worker_was_letting_go_of() {
    let mut world = World::connected();
    world.machine = Some(Backend::new(false, true));
    let draining = Worker { ring: Some(ring(5)), draining: true, ..worker() };
    world.tell(Event::WorkerReady(draining));
    world.settle();
    assert_eq!((world.served.as_ref(), world.machine().trouble()), (Some(&ring(5)), None));
    assert_eq!(world.hows, [Journaled::Begin; 2], "waited for, then connected once more");
    // One that keeps no journals had finished when the daemon came; or it finishes later, untold.
    for known in [false, true] {
        let mut world = World::connected();
        (world.served, world.journal) = (None, None);
        if !known {
            world.machine = Some(Backend::new(false, true));
        }
        world.tell(Event::WorkerReady(Worker { answered_all: true, ..worker() }));
        world.settle();
        assert_eq!((world.served.as_ref(), world.machine().trouble()), (Some(&ring(5)), None));
        assert_eq!((&world.hows[..], world.states.len()), (&[Journaled::Begin; 2][..], 2));
    }
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
    // It was to close; nothing is said before it is known what the worker holds.
    let mut world = World::connected();
    world.machine = Some(Backend::new(false, true));
    world.frontend = Some("6".into());
    world.settle();
    assert_eq!((world.state(), world.served.is_some()), ("4", true));
    assert!(!world.machine().is_settled());
    world.worker();
    assert_eq!((world.state(), world.served.is_some()), ("6", false));
}

#[test]
fn a_guest_is_told_of_an_image_that_has_grown() {
    let mut world = World::connected();
    let told = |world: &World| (world.backend.as_ref().unwrap().sectors, world.states.len());
    assert_eq!(told(&world), (Some(2048), 2));
    world.sectors = 4096;
    world.worker();
    assert_eq!(told(&world), (Some(4096), 3));
    world.settle();
    assert_eq!((told(&world), world.state()), ((Some(4096), 3), "4"), "once, and state 4 again");
    // The daemon that grew it died before it could tell; the next one finds out.
    world.sectors = 8192;
    world.machine = Some(Backend::new(false, true));
    world.worker();
    assert_eq!((told(&world), world.connects), ((Some(8192), 4), 1));
    // What the guest was told of is never taken back.
    world.sectors = 1024;
    world.worker();
    assert_eq!(told(&world), (Some(8192), 4));
    // A guest that goes is not held up.
    world.sectors = 16384;
    world.backend.as_mut().unwrap().state = Some("5".into());
    world.worker();
    assert_eq!(told(&world), (Some(8192), 4));
}

#[test]
fn a_dead_worker_is_told_and_the_next_takes_its_ring_up() {
    let mut world = World::connected();
    world.worker_dies();
    assert_eq!((world.state(), world.machine().trouble()), ("4", Some(NO_WORKER)));
    world.tell(Event::WorkerDied("it died: another is started in 3 s".to_owned()));
    assert_eq!(world.machine().trouble(), Some("it died: another is started in 3 s"));
    // What it writes into its keys meanwhile means nothing.
    world.keys = Ok(ring(77));
    world.worker();
    assert_eq!((world.served.as_ref(), world.machine().trouble()), (Some(&ring(5)), None));
    assert_eq!(world.hows, [Journaled::Begin, Journaled::Resume]);
    assert_eq!(world.states.len(), 2, "the guest is told nothing");
    // It dies while it takes the ring up, and so on.
    world.worker_dies();
    world.meet_worker();
    world.worker_alive = false;
    assert!(matches!(world.pending[..], [Action::Connect(..)]));
    world.pending.clear();
    world.tell(Event::WorkerDied(String::new()));
    world.tell(Event::Connected(Err(ConnectError::Again)));
    world.worker();
    assert_eq!((world.served.as_ref(), world.machine().trouble()), (Some(&ring(5)), None));
    assert_eq!((world.hows.len(), world.complaint.as_str()), (3, ""));
}

#[test]
fn a_guest_that_starts_again_needs_no_journal() {
    let mut world = World::connected();
    world.worker_dies();
    world.journal = None;
    world.worker();
    assert!(world.machine().trouble().unwrap().starts_with(LOST));
    assert_eq!(world.complaint, "", "it is not the guest's fault");
    world.guest("1");
    world.guest("3");
    assert_eq!((world.state(), world.served.is_some()), ("4", true));
    assert_eq!((world.hows.last(), world.machine().trouble()), (Some(&Journaled::Begin), None));
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
    assert_eq!(world.hows, [Journaled::Begin; 2], "all was answered");
}

#[test]
fn a_domain_that_dies_leaves_nothing() {
    let mut world = World::connected();
    world.alive = false;
    world.settle();
    assert!(world.ended && world.served.is_none() && world.backend.is_none());
    // A toolstack's own kind is the toolstack's to remove.
    let mut world = World::connected();
    world.machine = Some(fresh(false, false));
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
