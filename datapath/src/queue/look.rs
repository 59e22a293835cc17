//! A queue looks for something to do before it sleeps: for a moment, after waits that were short,
//! and while the host has processors to spare. While it looks the guest is not asked for events.

use super::Server;
use crate::device::Swept;
use crate::engine::Completion;
use crate::idle::Idle;
use crate::patience::{Patience, of_guest, of_storage};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// By what a queue decides whether to look. Two patiences, for a guest may be quick to ask again
/// while its storage is slow, and the other way about.
#[derive(Debug)]
pub struct Looks {
    guest: Patience,
    storage: Patience,
    idle: Idle,
    looked_us: u64,
}

impl Looks {
    /// For one of a VBD's `queues`; `stat` tells how idle the host is.
    #[must_use]
    pub fn new(queues: usize, stat: &Arc<OwnedFd>) -> Looks {
        let (guest, storage) = (Patience::new(of_guest(queues)), Patience::new(of_storage(queues)));
        Looks { guest, storage, idle: Idle::new(Arc::clone(stat)), looked_us: 0 }
    }

    fn of(&mut self, running: bool) -> &mut Patience {
        if running { &mut self.storage } else { &mut self.guest }
    }
}

impl Server {
    /// Waits for something to do.
    pub(super) fn look_and_sleep(
        &mut self,
        swept: Swept,
        completions: &mut Vec<Completion>,
    ) -> std::io::Result<()> {
        let (running, from_us) = (self.device.running(), self.device.clock_us());
        if !self.look(running, from_us, swept, completions)? {
            self.sleep(swept, completions)?;
        }
        let waited_us = self.device.clock_us() - from_us;
        if let Some(looks) = &mut self.looks {
            looks.of(running).waited(waited_us);
        }
        Ok(())
    }

    /// True when it has found something: completions, or requests in the ring.
    fn look(
        &mut self,
        running: bool,
        from_us: u64,
        swept: Swept,
        completions: &mut Vec<Completion>,
    ) -> std::io::Result<bool> {
        let Some(looks) = &mut self.looks else { return Ok(false) };
        let look_us = looks.of(running).look_us(from_us);
        // An engine that only the kernel can ask would cost a call for each look.
        let seen = !running || self.engine.has_news().is_some();
        if look_us == 0 || !seen || !looks.idle.enough(from_us, looks.looked_us) {
            return Ok(false);
        }
        if self.engine.has_queued() {
            self.engine.submit_and_wait(0, completions)?;
        }
        let (mut news, mut found) = (false, !completions.is_empty());
        let mut looked_us = 0;
        while !found && looked_us < look_us {
            std::hint::spin_loop();
            news = self.engine.has_news() == Some(true);
            found = news || (swept == Swept::Empty && self.device.has_requests());
            looked_us = self.device.clock_us() - from_us;
        }
        if let Some(looks) = &mut self.looks {
            looks.looked_us += looked_us;
            looks.of(running).looked(looked_us, found);
        }
        self.device.count_look(looked_us, found);
        if news {
            self.engine.submit_and_wait(0, completions)?;
        }
        Ok(found)
    }
}
