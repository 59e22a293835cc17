//! Which host has a volume active: the record says so to every host that sees the SR.
//!
//! A host owns a volume that it may write to, from before its worker starts until after it has
//! ended. Another boot of the same host owned nothing that still runs, and is taken over. Another
//! host is believed: who says that it died is an operator (`force`). The owner tells hosts apart;
//! what keeps two writers apart at any instant is the lock on the image. Rules on a record, pure,
//! then the file SR's calls, which replace records under the catalog's lock.

use crate::sr::file::FileSr;
use crate::sr::record::{Owner, Record};
use std::collections::BTreeSet;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::admin::Unlocked;
use zerotap_rpc_schema::error::number;

/// A host, in one of its boots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The host's uuid: XAPI's where XAPI is.
    pub host: String,
    /// The kernel's id of the boot.
    pub boot_id: String,
}

impl Record {
    /// Refuses while another host than `host` has the volume active.
    ///
    /// # Errors
    /// `Activated_on_another_host`, with that host.
    pub fn check_owner(&self, host: &str) -> Result<(), StorageError> {
        match &self.owner {
            Some(owner) if owner.host != host => {
                Err(StorageError::ActivatedOnAnotherHost(owner.host.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Makes `us` the owner, from `since` on (RFC 3339).
    ///
    /// # Errors
    /// `Activated_on_another_host`.
    pub fn own(&mut self, us: &Identity, since: String) -> Result<(), StorageError> {
        self.check_owner(&us.host)?;
        self.epoch += 1;
        let Identity { host, boot_id } = us.clone();
        self.owner = Some(Owner { host, boot_id, epoch: self.epoch, since });
        Ok(())
    }

    /// Nobody owns it any more, if it was `host`; another's is left alone.
    pub fn disown(&mut self, host: &str) {
        self.owner.take_if(|owner| owner.host == host);
    }

    /// The same against the will of the host that owns it: only of the activation that was seen.
    ///
    /// # Errors
    /// SR_BACKEND_FAILURE_24: somebody else owns it meanwhile.
    pub fn force(&mut self, seen: &Owner) -> Result<(), StorageError> {
        if self.owner.as_ref() == Some(seen) {
            self.owner = None;
            return Ok(());
        }
        let now = match &self.owner {
            Some(owner) => format!("it is active on host {} since {}", owner.host, owner.since),
            None => "it is active nowhere".into(),
        };
        let text = format!("cannot unlock VDI {}: meanwhile {now}. Look again", self.key);
        Err(StorageError::backend(number::VDI_IN_USE, text))
    }
}

impl FileSr {
    /// The record of a volume that no other host has active.
    ///
    /// # Errors
    /// `Activated_on_another_host`; as [`FileSr::volume`].
    pub fn volume_here(&self, key: &str) -> Result<Record, StorageError> {
        let record = self.volume(key)?;
        record.check_owner(&self.us.host)?;
        Ok(record)
    }

    /// Takes a volume for this host, durably. The image's lock is held by then.
    ///
    /// # Errors
    /// `Activated_on_another_host`; as [`FileSr::volume`]; a full disk.
    pub fn own(&self, key: &str, since: String) -> Result<(), StorageError> {
        self.change_volume(key, |record| record.own(&self.us, since))
    }

    /// Gives it back, durably. Succeeds when this host does not have it, or it is gone.
    ///
    /// # Errors
    /// A damaged record; a full disk; SR_BACKEND_FAILURE_47.
    pub fn disown(&self, key: &str) -> Result<(), StorageError> {
        let disowned = self.change_volume(key, |record| {
            record.disown(&self.us.host);
            Ok(())
        });
        match disowned {
            Err(StorageError::VdiDoesNotExist(_)) => Ok(()),
            other => other,
        }
    }

    /// Takes a volume from the host `from`, which is said to be dead; the answer is what was seen.
    ///
    /// # Errors
    /// SR_BACKEND_FAILURE_24: another host has it, this one, or none; its data is locked, so
    /// whoever has it lives; as [`FileSr::disown`].
    pub fn unlock(&self, key: &str, from: &str) -> Result<Unlocked, StorageError> {
        let record = self.volume(key)?;
        let refuse = |problem: String| {
            let text = format!("cannot unlock VDI {key} from host {from}: {problem}");
            Err(StorageError::backend(number::VDI_IN_USE, text))
        };
        let Some(seen) = record.owner.clone() else {
            return refuse("no host has it active. Activate it as usual".into());
        };
        let Owner { host, boot_id, epoch, since } = seen.clone();
        if host == self.us.host {
            return refuse("this host has it, so nothing is locked. Deactivate it".into());
        }
        if host != from {
            return refuse(format!(
                "host {host} has it (boot {boot_id}, activation {epoch}, since {since}). If that \
                 one is dead, name it"
            ));
        }
        let data = match self.open_image(&record, false) {
            Ok(image) if image.try_fence()? => Some(image),
            Ok(image) => {
                return refuse(format!(
                    "{} is locked, so somebody uses it: on host {host}, or here (lslocks names \
                     who). End that first",
                    image.path().display()
                ));
            }
            // Without its data it can be destroyed, and nothing else: that must be possible.
            Err(_) if record.device.is_none() && !self.has_data(key) => None,
            Err(problem) => return Err(problem),
        };
        self.change_volume(key, |record| record.force(&seen))?;
        let data = match (&data, &record.device) {
            (None, _) => "its data has vanished",
            (_, Some(_)) => "a block device's lock is not seen by other hosts",
            _ => "its data was not locked",
        };
        Ok(Unlocked { host, boot_id, epoch, since, data: data.into() })
    }

    /// Gives back whatever this host has and nothing here uses: what a crash left, found when the
    /// SR is attached. An image that is locked is in use after all, whatever the database knows,
    /// unless it was another boot's.
    ///
    /// # Errors
    /// The directory can't be read; what is wrong with a single volume is logged.
    pub fn disown_leftovers(&self, in_use: &BTreeSet<String>) -> Result<(), StorageError> {
        for key in self.catalog.contents()?.keys {
            let Ok(record) = self.catalog.read(&key) else { continue };
            let Some(owner) = record.owner.as_ref().filter(|owner| owner.host == self.us.host)
            else {
                continue;
            };
            if in_use.contains(&key) {
                continue;
            }
            let locked = owner.boot_id == self.us.boot_id
                && self.open_image(&record, true).is_ok_and(|image| !is_free(&image));
            let left = if locked { Ok(()) } else { self.disown(&key) };
            let sr = &self.uuid;
            match left {
                Ok(()) if locked => tracing::warn!(
                    sr,
                    vdi = key,
                    ?owner,
                    "its image is locked: it stays this host's"
                ),
                Ok(()) => tracing::info!(sr, vdi = key, ?owner, "given back: a crash left it"),
                Err(error) => tracing::error!(sr, vdi = key, "cannot be given back: {error}"),
            }
        }
        Ok(())
    }
}

fn is_free(image: &crate::sr::image::Image) -> bool {
    image.try_fence().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerotap_rpc_schema::smapi2::VdiInfo;

    fn record() -> Record {
        Record::new("k".into(), 4096, None, VdiInfo::new("disk", 4096))
    }

    fn identity(host: u8, boot: u8) -> Identity {
        Identity { host: format!("host{host}"), boot_id: format!("boot{boot}") }
    }

    #[derive(Debug, Clone)]
    enum Event {
        Own,
        Disown,
        Reboot,
        Force,
    }

    fn events() -> impl Strategy<Value = (u8, Event)> {
        let event = prop_oneof![
            4 => Just(Event::Own),
            3 => Just(Event::Disown),
            1 => Just(Event::Reboot),
            1 => Just(Event::Force),
        ];
        (0..3u8, event)
    }

    proptest! {
        /// Whatever hosts do, a volume goes from one to another only by being given back or by
        /// force, and no two activations are of the same epoch.
        #[test]
        fn a_volume_has_one_owner(events in prop::collection::vec(events(), 0..60)) {
            let (mut record, mut boots) = (record(), [0u8; 3]);
            let mut owner: Option<u8> = None;
            for (host, event) in events {
                let us = identity(host, boots[usize::from(host)]);
                let (before, epoch) = (record.owner.clone(), record.epoch);
                match event {
                    Event::Own => {
                        let owned = record.own(&us, "now".into());
                        match owner.filter(|other| *other != host) {
                            Some(other) => {
                                let other = identity(other, 0).host;
                                let elsewhere = StorageError::ActivatedOnAnotherHost(other);
                                prop_assert_eq!(owned, Err(elsewhere));
                                prop_assert_eq!((&record.owner, record.epoch), (&before, epoch));
                            }
                            None => {
                                prop_assert_eq!(owned, Ok(()));
                                owner = Some(host);
                                prop_assert_eq!(record.epoch, epoch + 1);
                                let told = record.owner.clone().expect("owned");
                                prop_assert_eq!((told.host, told.boot_id), (us.host, us.boot_id));
                            }
                        }
                    }
                    Event::Disown => {
                        record.disown(&us.host);
                        owner = owner.filter(|other| *other != host);
                    }
                    Event::Reboot => boots[usize::from(host)] += 1,
                    Event::Force => {
                        if let Some(seen) = &before {
                            prop_assert_eq!(record.force(seen), Ok(()));
                            prop_assert!(record.force(seen).is_err(), "it was another's by then");
                            owner = None;
                        }
                    }
                }
                let told = record.owner.as_ref().map(|owner| owner.host.clone());
                prop_assert_eq!(told, owner.map(|host| identity(host, 0).host));
                prop_assert!(record.epoch >= epoch);
            }
        }
    }
}
