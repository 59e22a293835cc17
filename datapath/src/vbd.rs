//! A connected VBD: its queues, started, asked and ended together. Called by the worker.

use crate::copy::{ImageCopy, Moving};
use crate::device::Ring;
use crate::elder;
use crate::image::Image;
use crate::queue::{Looks, Queue};
use crate::xen::Host;
use crate::xen::budget::Budget;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use zerotap_rpc_schema::engine::EngineKind;
use zerotap_rpc_schema::space::NoSpace;
use zerotap_rpc_schema::worker::{
    Bounds, Connected, Journaled, PROTOCOL, QUEUES_MAX, RingParameters, TransferRule, VbdCounters,
    VbdId,
};

/// What all VBDs of a worker have in common.
#[derive(Debug)]
pub struct Common {
    /// Which host this is.
    pub host: Host,
    /// The image is reached over a network.
    pub network: bool,
    /// What becomes of writes that find no space.
    pub no_space: NoSpace,
    /// What this host lets its workers map.
    pub budget: Arc<Budget>,
    /// How long a guest's page stays mapped that no request uses.
    pub unused_max: Duration,
    /// What tells how idle the host is, when queues shall look for work before they sleep.
    pub stat: Option<Arc<OwnedFd>>,
    /// The grant device.
    pub gntdev: Arc<OwnedFd>,
    /// The image.
    pub image: Arc<Image>,
    /// By what each queue does its I/O.
    pub engine: EngineKind,
    /// Becomes readable when a queue, or a copy, has ended, or an NBD client's write may be tried
    /// again.
    pub ended: Arc<OwnedFd>,
    /// The copy of the image that is being made.
    pub copy: Option<Arc<ImageCopy>>,
}

/// How a VBD is to be served.
#[derive(Debug)]
pub struct Order {
    /// The frontend's rings.
    pub parameters: RingParameters,
    /// Refuse writes.
    pub read_only: bool,
    /// Take discards.
    pub discard: bool,
    /// What else was offered.
    pub bounds: Bounds,
    /// How the guest's pages are reached.
    pub rule: TransferRule,
    /// What its journals are for, where it has some.
    pub journaled: Option<Journaled>,
    /// An event channel device a queue, then a journal a queue, if it has some.
    pub descriptors: Vec<OwnedFd>,
}

/// A VBD.
#[derive(Debug)]
pub struct Vbd {
    id: VbdId,
    parameters: RingParameters,
    queues: Vec<Queue>,
    /// What earlier connections, and queues that have ended, counted.
    past: VbdCounters,
    /// A queue has left something to the next worker.
    left: bool,
    /// No more requests are taken.
    draining: bool,
}

impl Vbd {
    /// Connects all queues, or none; then they take requests. `past`: what an earlier connection
    /// counted.
    ///
    /// # Errors
    /// When the frontend's parameters do not lead to rings.
    pub fn connect(
        common: &Common,
        id: VbdId,
        order: Order,
        past: Option<VbdCounters>,
    ) -> Result<Self, String> {
        let Order { parameters, read_only, discard, bounds, rule, journaled, descriptors } = order;
        let wanted = parameters.queues.len();
        if !(1..=QUEUES_MAX).contains(&wanted) {
            return Err(format!("a VBD has 1 to {QUEUES_MAX} queues, not {wanted}"));
        }
        let (given, due) = (descriptors.len(), wanted * (1 + usize::from(journaled.is_some())));
        if given != due {
            return Err(format!("{given} descriptors came for {wanted} queues, not {due}"));
        }
        let mut evtchns = descriptors;
        let mut journals = evtchns.split_off(wanted).into_iter();
        let mut queues: Vec<Queue> = Vec::with_capacity(wanted);
        for (number, (queue, evtchn)) in parameters.queues.iter().zip(evtchns).enumerate() {
            let ring = Ring {
                host: common.host,
                gntdev: Arc::clone(&common.gntdev),
                evtchn,
                refs: queue.ring_refs.clone(),
                port: queue.port,
                protocol: parameters.protocol,
                persistent: parameters.persistent,
                read_only,
                discard,
                bounds,
                rule,
                network: common.network,
                no_space: common.no_space,
                budget: Arc::clone(&common.budget),
                unused_max: common.unused_max,
                journal: journaled.zip(journals.next()),
            };
            let looks = common.stat.as_ref().map(|stat| Looks::new(wanted, stat));
            let Common { image, engine, ended, .. } = common;
            match Queue::connect(id, ring, image, *engine, ended, looks) {
                Ok(queue) => queues.push(queue),
                Err(problem) => {
                    queues.into_iter().for_each(Queue::abandon);
                    return Err(format!("queue {number}: {problem}"));
                }
            }
        }
        queues.iter().for_each(|queue| queue.serve(common.copy.as_ref()));
        let mut past = past.unwrap_or_else(|| VbdCounters::new(id));
        past.broken = false;
        Ok(Vbd { id, parameters, queues, past, left: false, draining: false })
    }

    /// Which it is.
    #[must_use]
    pub fn id(&self) -> VbdId {
        self.id
    }

    /// Takes no more requests on any queue; with `leave`, what waits for space is left in the
    /// journals.
    pub fn drain(&mut self, leave: bool) {
        self.draining = true;
        self.queues.iter().for_each(|queue| queue.drain(leave));
    }

    /// Changes nothing any more that is not copied yet. `moving` is dropped once that is so.
    pub fn copy(&self, copy: &Arc<ImageCopy>, moving: &Moving) {
        self.queues.iter().for_each(|queue| queue.copy(copy, moving.clone()));
    }

    /// The copy is over.
    pub fn copied(&self) {
        self.queues.iter().for_each(Queue::copied);
    }

    /// Takes note of queues that have ended; true when all have, and nothing of the guest is held.
    #[must_use]
    pub fn reap(&mut self) -> bool {
        for queue in self.queues.extract_if(.., |queue| queue.ended()) {
            let ended = queue.last_words();
            self.past.merge(&ended.counters);
            self.left |= ended.left;
        }
        self.queues.is_empty()
    }

    /// Whether its journals have what the next worker must answer.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.left
    }

    /// What was counted over all queues and connections.
    #[must_use]
    pub fn counters(&mut self) -> VbdCounters {
        let mut sum = self.past.clone();
        let asked: Vec<_> = self.queues.iter().map(Queue::ask_counters).collect();
        for (queue, told) in self.queues.iter_mut().zip(asked) {
            sum.merge(queue.counters(&told));
        }
        sum
    }

    /// For a daemon that came back.
    #[must_use]
    pub fn connected(&mut self) -> Connected {
        let broken = self.counters().broken;
        let draining = self.draining && elder::newest() == PROTOCOL;
        Connected { vbd: self.id, ring: self.parameters.clone(), broken, draining }
    }
}
