//! The daemon's state behind its one lock, and what each request does to it.

use super::outbox::Outbox;
use super::perms::{DOM0, Domains, Perms};
use super::store::{Store, is_valid};
use super::transaction::Transaction;
use super::view::{Change, Touched, View};
use super::watch::Watches;
use super::wire::{Errno, Message, PAYLOAD_BYTES_MAX, kind, strings, terminated};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The most transactions that a guest may have open.
pub const TRANSACTIONS_PER_DOMAIN_MAX: usize = 10;
/// The longest relative path.
const RELATIVE_PATH_BYTES_MAX: usize = 2048;

/// One client.
#[derive(Debug)]
struct Connection {
    domid: u16,
    watches: Watches,
    transactions: BTreeMap<u32, Transaction>,
    outbox: Arc<Outbox>,
}

/// Everything.
#[derive(Debug)]
pub(super) struct State {
    store: Store,
    domains: Domains,
    connections: BTreeMap<u64, Connection>,
    last_connection: u64,
    last_transaction: u32,
}

/// What happened to a domain, for who keeps the sockets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Introduced(u16),
    Released(u16),
}

type Answer = Result<Vec<u8>, Errno>;

impl State {
    pub(super) fn new() -> State {
        State {
            store: Store::new(),
            domains: Domains::from([(DOM0, 0)]),
            connections: BTreeMap::new(),
            last_connection: 0,
            last_transaction: 0,
        }
    }

    pub(super) fn domids(&self) -> Vec<u16> {
        self.domains.keys().copied().collect()
    }

    pub(super) fn connect(&mut self, domid: u16, outbox: Arc<Outbox>) -> u64 {
        self.last_connection += 1;
        let (watches, transactions) = Default::default();
        let connection = Connection { domid, watches, transactions, outbox };
        self.connections.insert(self.last_connection, connection);
        self.last_connection
    }

    pub(super) fn disconnect(&mut self, id: u64) {
        self.connections.remove(&id);
    }

    /// Ends the connections of a domain.
    pub(super) fn hang_up(&self, domid: u16) {
        let wanted = |c: &&Connection| c.domid == domid;
        self.connections.values().filter(wanted).for_each(|c| c.outbox.close());
    }

    /// Serves one request: answers and fires watches. `act` is called before the answer is sent.
    pub(super) fn serve(&mut self, id: u64, message: &Message, act: impl FnOnce(&Effect)) {
        let Some(connection) = self.connections.get(&id) else { return };
        let outbox = Arc::clone(&connection.outbox);
        let mut after = After::default();
        let (kind, payload) = match self.dispatch(id, message, &mut after) {
            Ok(payload) if payload.len() <= PAYLOAD_BYTES_MAX => (message.kind, payload),
            Ok(_) => (kind::ERROR, terminated(&["E2BIG"])),
            Err(errno) => (kind::ERROR, terminated(&[&errno.to_string()])),
        };
        if let Some(effect) = &after.effect {
            act(effect);
        }
        outbox.push(&Message { kind, payload, ..message.clone() });
        self.fire(id, &after);
        if let Some(Effect::Released(domid)) = after.effect {
            self.hang_up(domid);
        }
    }

    fn fire(&self, id: u64, after: &After) {
        if let Some(connection) = self.connections.get(&id) {
            after.first.iter().for_each(|event| connection.outbox.push(event));
        }
        for connection in self.connections.values() {
            for touched in &after.touched {
                let events = connection.watches.fired(connection.domid, touched, &self.domains);
                events.iter().for_each(|event| connection.outbox.push(event));
            }
            if let Some(name) = after.special {
                let events = connection.watches.special(name);
                events.iter().for_each(|event| connection.outbox.push(event));
            }
        }
    }

    fn dispatch(&mut self, id: u64, message: &Message, after: &mut After) -> Answer {
        let payload = &message.payload;
        match message.kind {
            kind::READ => self.look(id, message, |view, path| Ok(view.read(path)?.value.clone())),
            kind::DIRECTORY => self.look(id, message, |view, path| {
                let node = view.read(path)?;
                Ok(node.children.iter().flat_map(|name| terminated(&[name])).collect())
            }),
            kind::DIRECTORY_PART => self.directory_part(id, message),
            kind::GET_PERMS => self.look(id, message, |view, path| {
                let texts = view.read(path)?.perms.texts();
                Ok(texts.iter().flat_map(|text| terminated(&[text])).collect())
            }),
            kind::WRITE | kind::MKDIR | kind::RM | kind::SET_PERMS => {
                let change = self.parse_change(id, message)?;
                after.touched = self.change(id, message.transaction, change)?;
                ok()
            }
            kind::WATCH | kind::UNWATCH => self.watch(id, message, after),
            kind::RESET_WATCHES => {
                let connection = self.connection(id);
                connection.watches.clear();
                connection.transactions.clear();
                ok()
            }
            kind::TRANSACTION_START => self.start(id, message.transaction),
            kind::TRANSACTION_END => self.end(id, message, after),
            kind::INTRODUCE | kind::RELEASE | kind::RESUME => self.domain(id, message, after),
            kind::IS_DOMAIN_INTRODUCED => {
                let known = self.domains.contains_key(&domid(payload)?);
                Ok(terminated(&[if known { "T" } else { "F" }]))
            }
            kind::GET_DOMAIN_PATH => Ok(terminated(&[&home(domid(payload)?)])),
            _ => Err(Errno::ENOSYS),
        }
    }

    fn connection(&mut self, id: u64) -> &mut Connection {
        self.connections.get_mut(&id).expect("serve checked that it is there")
    }

    /// The absolute path that a client means.
    fn absolute(&self, id: u64, path: &str) -> Result<String, Errno> {
        let path = match path {
            _ if path.starts_with(['/', '@']) => path.to_owned(),
            _ if path.len() > RELATIVE_PATH_BYTES_MAX => return Err(Errno::EINVAL),
            _ => format!("{}/{path}", home(self.connections[&id].domid)),
        };
        if is_valid(&path) { Ok(path) } else { Err(Errno::EINVAL) }
    }

    /// Runs `body` on the tree that the transaction number means, and notes what it looked at.
    fn with_view<T>(
        &mut self,
        id: u64,
        transaction: u32,
        body: impl FnOnce(&mut View<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let connection = self.connections.get_mut(&id).expect("serve checked that it is there");
        let (caller, domains, seen) = (connection.domid, &self.domains, BTreeMap::new());
        if transaction == 0 {
            return body(&mut View { store: &mut self.store, domains, caller, seen });
        }
        let open = connection.transactions.get_mut(&transaction).ok_or(Errno::ENOENT)?;
        let mut view = View { store: &mut open.store, domains, caller, seen };
        let result = body(&mut view);
        let seen = view.seen;
        open.note(seen);
        result
    }

    fn look(
        &mut self,
        id: u64,
        message: &Message,
        body: impl FnOnce(&mut View<'_>, &str) -> Answer,
    ) -> Answer {
        // The genuine daemon looks for the node that no name names.
        let name = one(&message.payload).map_err(|_| Errno::ENOENT)?;
        let path = self.absolute(id, name)?;
        self.with_view(id, message.transaction, |view| body(view, &path))
    }

    /// `path offset` answers `generation` and children from that byte on; one more NUL at the end.
    fn directory_part(&mut self, id: u64, message: &Message) -> Answer {
        let [path, offset] =
            <[String; 2]>::try_from(strings(&message.payload)).map_err(|_| Errno::EINVAL)?;
        let path = self.absolute(id, &path)?;
        let offset: usize = offset.parse().map_err(|_| Errno::EINVAL)?;
        self.with_view(id, message.transaction, |view| {
            let node = view.read(&path)?;
            let mut answer = terminated(&[&node.generation.to_string()]);
            let room = PAYLOAD_BYTES_MAX - answer.len() - 1;
            let all: Vec<u8> = node.children.iter().flat_map(|name| terminated(&[name])).collect();
            let rest = all.get(offset..).ok_or(Errno::EINVAL)?;
            let end = if rest.len() <= room {
                rest.len()
            } else {
                rest[..room].iter().rposition(|&byte| byte == 0).map_or(0, |at| at + 1)
            };
            answer.extend(&rest[..end]);
            if end == rest.len() {
                answer.push(0);
            }
            Ok(answer)
        })
    }

    fn parse_change(&self, id: u64, message: &Message) -> Result<Change, Errno> {
        let payload = &message.payload;
        if matches!(message.kind, kind::MKDIR | kind::RM) {
            let path = self.absolute(id, one(payload)?)?;
            return Ok(match message.kind {
                kind::MKDIR => Change::Mkdir(path),
                _ => Change::Remove(path),
            });
        }
        let end = payload.iter().position(|&byte| byte == 0).ok_or(Errno::EINVAL)?;
        let path = std::str::from_utf8(&payload[..end]).map_err(|_| Errno::EINVAL)?;
        let path = self.absolute(id, path)?;
        let rest = &payload[end + 1..];
        match message.kind {
            kind::WRITE => Ok(Change::Write(path, rest.to_vec())),
            _ => Ok(Change::SetPerms(path, Perms::parse(&strings(rest))?)),
        }
    }

    fn change(&mut self, id: u64, transaction: u32, change: Change) -> Result<Vec<Touched>, Errno> {
        let touched = self.with_view(id, transaction, |view| view.apply(&change))?;
        let open = self.connection(id).transactions.get_mut(&transaction);
        Ok(match open {
            Some(open) => {
                open.changes.push(change);
                Vec::new()
            }
            None => touched,
        })
    }

    fn watch(&mut self, id: u64, message: &Message, after: &mut After) -> Answer {
        let [given, token] =
            <[String; 2]>::try_from(strings(&message.payload)).map_err(|_| Errno::EINVAL)?;
        let special = given.starts_with('@');
        let path = if special { given.clone() } else { self.absolute(id, &given)? };
        let connection = self.connection(id);
        let relative = !given.starts_with(['/', '@']);
        let prefix = if relative { home(connection.domid) + "/" } else { String::new() };
        if message.kind == kind::UNWATCH {
            connection.watches.remove(&path, &token)?;
        } else {
            let event = connection.watches.add(connection.domid, &path, &token, &prefix)?;
            after.first = Some(event);
        }
        ok()
    }

    fn start(&mut self, id: u64, within: u32) -> Answer {
        if within != 0 {
            return Err(Errno::EBUSY);
        }
        let number = self.last_transaction.wrapping_add(1).max(1);
        let transaction = Transaction::new(&self.store);
        let connection = self.connection(id);
        let open = connection.transactions.len();
        if connection.domid != DOM0 && open >= TRANSACTIONS_PER_DOMAIN_MAX {
            return Err(Errno::ENOSPC);
        }
        connection.transactions.insert(number, transaction);
        self.last_transaction = number;
        Ok(terminated(&[&number.to_string()]))
    }

    fn end(&mut self, id: u64, message: &Message, after: &mut After) -> Answer {
        let commit = match one(&message.payload)? {
            "T" => true,
            "F" => false,
            _ => return Err(Errno::EINVAL),
        };
        let open = self.connection(id).transactions.remove(&message.transaction);
        let open = open.ok_or(Errno::ENOENT)?;
        if !commit {
            return ok();
        }
        if open.conflicts(&self.store) {
            return Err(Errno::EAGAIN);
        }
        for change in &open.changes {
            for touched in self.with_view(id, 0, |view| view.apply(change))? {
                // Told once, however often it changed in between.
                if !after.touched.iter().any(|told| told.path == touched.path) {
                    after.touched.push(touched);
                }
            }
        }
        let passing = |path: &str| self.store.get(path).is_none() && open.was_absent(path);
        after.touched.retain(|touched| !passing(&touched.path));
        ok()
    }

    fn domain(&mut self, id: u64, message: &Message, after: &mut After) -> Answer {
        if self.connection(id).domid != DOM0 {
            return Err(Errno::EACCES);
        }
        let domid = domid(&message.payload)?;
        match message.kind {
            kind::INTRODUCE if domid != DOM0 => {
                let now = self.store.advance();
                self.domains.entry(domid).or_insert(now);
                (after.special, after.effect) =
                    (Some("@introduceDomain"), Some(Effect::Introduced(domid)));
            }
            kind::RELEASE if domid != DOM0 => {
                self.domains.remove(&domid).ok_or(Errno::ENOENT)?;
                // Its own nodes go without a word, as in the genuine daemon.
                self.store.owned_paths(domid).iter().for_each(|path| {
                    self.store.remove(path);
                });
                (after.special, after.effect) =
                    (Some("@releaseDomain"), Some(Effect::Released(domid)));
            }
            kind::RESUME => {}
            _ => return Err(Errno::EINVAL),
        }
        ok()
    }
}

/// What follows the answer.
#[derive(Debug, Default)]
struct After {
    /// The event that a new watch starts with.
    first: Option<Message>,
    touched: Vec<Touched>,
    special: Option<&'static str>,
    effect: Option<Effect>,
}

#[expect(clippy::unnecessary_wraps, reason = "it is one of many answers")]
fn ok() -> Answer {
    Ok(terminated(&["OK"]))
}

fn home(domid: u16) -> String {
    format!("/local/domain/{domid}")
}

/// The payload's one string.
fn one(payload: &[u8]) -> Result<&str, Errno> {
    let text = payload.strip_suffix(b"\0").ok_or(Errno::EINVAL)?;
    std::str::from_utf8(text).ok().filter(|text| !text.contains('\0')).ok_or(Errno::EINVAL)
}

/// The payload's first string as a domain.
fn domid(payload: &[u8]) -> Result<u16, Errno> {
    strings(payload)[0].parse().map_err(|_| Errno::EINVAL)
}
