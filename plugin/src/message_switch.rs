//! The SMAPIv2 server on XAPI's message switch: takes calls from a queue, has the core answer them.
//!
//! It translates and never decides. Messages are begun in the order in which they were sent; each
//! is done once, though a switch or a daemon that is killed has it delivered again. A message is
//! acknowledged when its effect and the fact that it is done are durable. Three tasks: one
//! receives, one has calls done, one answers and acknowledges. Started by the daemon where the
//! configuration says so.

mod envelope;
mod link;
mod message;

use crate::fault;
use crate::rpc::methods::Calls;
use crate::state::{Handled, State};
use envelope::Call;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use link::Link;
use message::{Key, Message};
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zerotap_rpc_schema::StorageError;

/// The queue that XAPI derives from our SR type.
pub const QUEUE: &str = "org.xen.xapi.storage.zerotap";
/// Calls at work at a time; further ones wait, and beyond [`BACKLOG_MAX`] they wait in the switch.
const JOBS_MAX: usize = 256;
/// Messages that wait here.
const BACKLOG_MAX: usize = 1024;
/// The longest answer that is remembered, bytes. Longer ones are lists; they are made anew.
const ANSWER_KEPT_BYTES_MAX: usize = 16 * 1024;
/// Pauses before connecting again: doubled from the first to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How long a start waits for the switch.
const SERVED_DEADLINE: Duration = Duration::from_secs(5);
/// Calls that only look at memory, and are never made to wait for others.
const AT_ONCE: &[&str] = &["SR.list", "Query.query"];

/// Messages from a link.
struct Delivery {
    link: Arc<Link>,
    messages: Vec<Message>,
    /// The first of its link: only here is what an earlier one left.
    first: bool,
}

/// A message with its answer.
struct Done {
    link: Arc<Link>,
    message: Message,
    key: Key,
    answer: Arc<str>,
}

/// A message that is at work, or whose row is not durable yet.
struct Known {
    /// Where it was delivered last.
    link: Arc<Link>,
    answer: Option<Arc<str>>,
}

/// A message that waits for its turn.
struct Waiting {
    message: Message,
    key: Key,
    call: Result<Call, StorageError>,
}

type Job = BoxFuture<'static, (Message, Key, Arc<str>)>;

/// The queue's server while it runs.
#[derive(Debug)]
pub struct MessageSwitch {
    tasks: Vec<JoinHandle<()>>,
    served: watch::Receiver<bool>,
}

impl MessageSwitch {
    /// Begins to serve; the switch need not be there yet.
    #[must_use]
    pub fn start(socket: PathBuf, calls: Calls, state: State) -> MessageSwitch {
        let (deliver, deliveries) = mpsc::channel(1);
        let (finish, finished) = mpsc::channel(JOBS_MAX);
        let (settle, settled) = mpsc::channel(JOBS_MAX);
        let (forget, forgotten) = mpsc::unbounded_channel();
        let desk = Desk {
            calls,
            state: state.clone(),
            finish,
            known: HashMap::new(),
            backlog: VecDeque::new(),
            highest: i64::MIN,
        };
        let (serve, served) = watch::channel(false);
        let tasks = vec![
            tokio::spawn(receive(socket, deliver, serve)),
            tokio::spawn(desk.run(deliveries, forgotten)),
            tokio::spawn(answer(finished, settle)),
            tokio::spawn(acknowledge(settled, state, forget)),
        ];
        MessageSwitch { tasks, served }
    }

    /// Ends when calls are taken, or after [`SERVED_DEADLINE`]: XAPI looks for queues when it
    /// starts, and has no SR type for one that nobody takes calls from by then.
    pub fn served(&self) -> impl Future<Output = ()> + use<> {
        let mut served = self.served.clone();
        async move {
            // Late or stopped: whoever waits must go on.
            let _ = timeout(SERVED_DEADLINE, served.wait_for(|served| *served)).await;
        }
    }

    /// Takes no more calls. What is at work is finished by the core, and what was not acknowledged
    /// comes again after the next start.
    pub fn stop(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn receive(socket: PathBuf, deliver: mpsc::Sender<Delivery>, serve: watch::Sender<bool>) {
    let mut pause = PAUSES.0;
    loop {
        let problem = match Link::open(&socket, QUEUE).await {
            Ok(link) => {
                tracing::info!(queue = QUEUE, switch = %socket.display(), "the queue is served");
                serve.send_replace(true);
                match drain(&Arc::new(link), &deliver, &mut pause).await {
                    Some(problem) => problem,
                    None => return,
                }
            }
            Err(problem) => problem,
        };
        if pause == PAUSES.0 {
            tracing::warn!(
                switch = %socket.display(),
                "the message switch is away, it is tried again until it is back: {problem}"
            );
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Until the link breaks, or nobody takes messages any more. Only one that brings something ends
/// the growth of `pause`.
async fn drain(
    link: &Arc<Link>,
    deliver: &mpsc::Sender<Delivery>,
    pause: &mut Duration,
) -> Option<String> {
    let mut from: Option<String> = None;
    loop {
        let (messages, next) = match link.transfer(from.as_deref()).await {
            Ok(transferred) => transferred,
            Err(problem) => return Some(problem),
        };
        *pause = PAUSES.0;
        let delivery = Delivery { link: Arc::clone(link), messages, first: from.is_none() };
        deliver.send(delivery).await.ok()?;
        from = Some(next);
    }
}

/// Where calls are begun, each once and in order.
struct Desk {
    calls: Calls,
    state: State,
    finish: mpsc::Sender<Done>,
    known: HashMap<Key, Known>,
    backlog: VecDeque<Waiting>,
    /// The highest id that the link has delivered.
    highest: i64,
}

impl Desk {
    async fn run(
        mut self,
        mut deliveries: mpsc::Receiver<Delivery>,
        mut forgotten: mpsc::UnboundedReceiver<Key>,
    ) {
        // In one task: what is polled first is begun first.
        let mut jobs: FuturesUnordered<Job> = FuturesUnordered::new();
        loop {
            while jobs.len() < JOBS_MAX
                && let Some(waiting) = self.backlog.pop_front()
            {
                jobs.push(self.begin(waiting));
            }
            tokio::select! {
                Some(delivery) = deliveries.recv(), if self.backlog.len() < BACKLOG_MAX => {
                    self.take(delivery, &mut jobs).await;
                }
                Some((message, key, answer)) = jobs.next() => {
                    let Some(known) = self.known.get_mut(&key) else { continue };
                    known.answer = Some(answer.clone());
                    let link = Arc::clone(&known.link);
                    self.finish(Done { link, message, key, answer }).await;
                }
                Some(key) = forgotten.recv() => {
                    self.known.remove(&key);
                }
                else => return,
            }
        }
    }

    async fn finish(&self, done: Done) {
        // It fails when the daemon stops.
        let _ = self.finish.send(done).await;
    }

    async fn take(&mut self, delivery: Delivery, jobs: &mut FuturesUnordered<Job>) {
        let Delivery { link, messages, first } = delivery;
        for message in messages {
            let key = message.key(self.state.boot_id());
            let again = first || message.id <= self.highest;
            self.highest = if first { message.id } else { self.highest.max(message.id) };
            if let Some(known) = self.known.get_mut(&key) {
                tracing::info!(message = message.id, "delivered again while it is at work");
                known.link = Arc::clone(&link);
                if let Some(answer) = known.answer.clone() {
                    self.finish(Done { link: Arc::clone(&link), message, key, answer }).await;
                }
                continue;
            }
            let handled = if again { self.handled(&key).await } else { None };
            // It may come once more before it is forgotten, and is answered each time.
            let known = Known { link: Arc::clone(&link), answer: handled.clone() };
            self.known.insert(key.clone(), known);
            if let Some(answer) = handled {
                tracing::info!(message = message.id, "delivered again, answered as before");
                self.finish(Done { link: Arc::clone(&link), message, key, answer }).await;
                continue;
            }
            let call = envelope::read(&message.payload);
            let at_once = call.as_ref().is_ok_and(|call| AT_ONCE.contains(&call.method.as_str()));
            let waiting = Waiting { message, key, call };
            if at_once {
                jobs.push(self.begin(waiting));
            } else {
                self.backlog.push_back(waiting);
            }
        }
    }

    async fn handled(&self, key: &Key) -> Option<Arc<str>> {
        match self.state.handled(key.0, &key.1).await {
            Ok(handled) => handled?.answer.map(Arc::from),
            Err(error) => {
                tracing::error!("whether message {} was done cannot be told: {error:#}", key.0);
                None
            }
        }
    }

    fn begin(&self, waiting: Waiting) -> Job {
        let Waiting { message, key, call } = waiting;
        let outcome = call.map(|call| {
            let names = message::volume_name(&key);
            self.calls.call(&call.method, names, call.params)
        });
        Box::pin(async move {
            let outcome = match outcome {
                Ok(work) => work.await,
                Err(error) => Err(error),
            };
            (message, key, envelope::write(&outcome).into())
        })
    }
}

/// Answers in the order in which calls were finished.
async fn answer(mut finished: mpsc::Receiver<Done>, settle: mpsc::Sender<Done>) {
    while let Some(done) = finished.recv().await {
        fault::point!("before a message is answered");
        done.link.answer(&done.message, &done.answer).await;
        fault::point!("a message is answered");
        // In this order, too: a message is remembered no later than one that its answer led to.
        let _ = settle.send(done).await;
    }
}

async fn acknowledge(
    mut settled: mpsc::Receiver<Done>,
    state: State,
    forget: mpsc::UnboundedSender<Key>,
) {
    let mut batch = Vec::new();
    while settled.recv_many(&mut batch, JOBS_MAX).await > 0 {
        let rows = batch.iter().map(|done: &Done| Handled {
            message: done.key.0,
            digest: done.key.1.clone(),
            answer: (done.answer.len() <= ANSWER_KEPT_BYTES_MAX).then(|| done.answer.to_string()),
        });
        let remembered = state.put_handled(rows.collect()).await;
        if let Err(error) = &remembered {
            tracing::error!("messages stay unacknowledged and will come again: {error:#}");
        }
        for done in batch.drain(..) {
            if remembered.is_ok() {
                done.link.acknowledge(done.message.id).await;
                fault::point!("a message is acknowledged");
            }
            // It fails when the daemon stops.
            let _ = forget.send(done.key);
        }
    }
}
