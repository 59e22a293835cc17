//! The watches of one connection.

use super::perms::{DOM0, Domains};
use super::store::is_at_or_below;
use super::view::Touched;
use super::wire::{Errno, Message, kind, terminated};

/// The most watches of a guest.
pub const WATCHES_PER_DOMAIN_MAX: usize = 128;

#[derive(Debug)]
struct Watch {
    path: String,
    token: String,
    /// What to take off the front of a path before it is told: the guest asked relatively.
    prefix: String,
}

impl Watch {
    fn event(&self, path: &str) -> Message {
        let shown = path.strip_prefix(&self.prefix).unwrap_or(path);
        let payload = terminated(&[shown, &self.token]);
        Message { kind: kind::WATCH_EVENT, request: 0, transaction: 0, payload }
    }
}

/// Watches in the order in which they were set.
#[derive(Debug, Default)]
pub(super) struct Watches(Vec<Watch>);

impl Watches {
    /// Sets one; the answer is the event that every watch starts with.
    pub(super) fn add(
        &mut self,
        domid: u16,
        path: &str,
        token: &str,
        prefix: &str,
    ) -> Result<Message, Errno> {
        if self.find(path, token).is_some() {
            return Err(Errno::EEXIST);
        }
        if domid != DOM0 && self.0.len() >= WATCHES_PER_DOMAIN_MAX {
            return Err(Errno::E2BIG);
        }
        let watch = Watch { path: path.into(), token: token.into(), prefix: prefix.into() };
        let event = watch.event(path);
        self.0.push(watch);
        Ok(event)
    }

    pub(super) fn remove(&mut self, path: &str, token: &str) -> Result<(), Errno> {
        let at = self.find(path, token).ok_or(Errno::ENOENT)?;
        self.0.remove(at);
        Ok(())
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    fn find(&self, path: &str, token: &str) -> Option<usize> {
        self.0.iter().position(|watch| watch.path == path && watch.token == token)
    }

    /// The events that a change of the tree makes for a domain that may read what changed.
    pub(super) fn fired(&self, domid: u16, touched: &Touched, domains: &Domains) -> Vec<Message> {
        let may = |(perms, at): &(super::perms::Perms, u64)| perms.access(domid, *at, domains).read;
        if !touched.perms.iter().any(may) {
            return Vec::new();
        }
        let concerned = |watch: &&Watch| match touched.exact {
            true => watch.path == touched.path,
            false => is_at_or_below(&touched.path, &watch.path),
        };
        self.0.iter().filter(concerned).map(|watch| watch.event(&touched.path)).collect()
    }

    /// The events of `@introduceDomain` and `@releaseDomain`.
    pub(super) fn special(&self, name: &str) -> Vec<Message> {
        self.0.iter().filter(|watch| watch.path == name).map(|watch| watch.event(name)).collect()
    }
}
