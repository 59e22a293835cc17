//! Who may do what with a node: an owner and exceptions.
//!
//! The first entry names the owner (who may do anything) and what everybody else may do; each
//! further entry says so for one domain. Domain 0 may always do anything.

use super::wire::Errno;
use std::collections::BTreeMap;

/// The privileged domain.
pub const DOM0: u16 = 0;
/// The most entries of a node.
const ENTRIES_MAX: usize = 16;

/// The introduced domains, and the store's generation when each was.
pub(super) type Domains = BTreeMap<u16, u64>;

/// What may be done with a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) owner: bool,
}

const ALL: Access = Access { read: true, write: true, owner: true };

/// A node's permissions; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Perms(Vec<(char, u16)>);

impl Perms {
    /// Nobody but domain 0.
    pub(super) fn root() -> Perms {
        Perms(vec![('n', DOM0)])
    }

    /// Parses `n0`, `r5` ...
    pub(super) fn parse(entries: &[String]) -> Result<Perms, Errno> {
        if entries.is_empty() || entries.len() > ENTRIES_MAX {
            return Err(Errno::EINVAL);
        }
        let entry = |text: &String| {
            let letter = text.chars().next().filter(|c| "nrwb".contains(*c))?;
            Some((letter, text[1..].parse().ok()?))
        };
        entries.iter().map(entry).collect::<Option<_>>().map(Perms).ok_or(Errno::EINVAL)
    }

    /// As on the wire.
    pub(super) fn texts(&self) -> Vec<String> {
        self.0.iter().map(|(letter, domid)| format!("{letter}{domid}")).collect()
    }

    pub(super) fn owner(&self) -> u16 {
        self.0[0].1
    }

    /// What a node below starts with: a guest owns what it makes.
    pub(super) fn inherited(&self, by: u16) -> Perms {
        let mut perms = self.clone();
        if by != DOM0 {
            perms.0[0].1 = by;
        }
        perms
    }

    /// What `domid` may do. An entry for a domain that was introduced after the node was last
    /// written means an earlier domain of that number, and is void (XSA-322).
    pub(super) fn access(&self, domid: u16, written: u64, domains: &Domains) -> Access {
        let valid = |(_, id): &&(char, u16)| {
            *id == DOM0 || domains.get(id).is_some_and(|&introduced| introduced <= written)
        };
        if domid == DOM0 || self.0.first().filter(valid).is_some_and(|first| first.1 == domid) {
            return ALL;
        }
        let own = self.0[1..].iter().filter(valid).find(|(_, id)| *id == domid);
        let letter = own.unwrap_or(&self.0[0]).0;
        Access { read: "rb".contains(letter), write: "wb".contains(letter), owner: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_an_earlier_domain_is_void() {
        let perms = Perms::parse(&["n0".into(), "r5".into()]).unwrap();
        let now = Domains::from([(5, 10)]);
        assert!(perms.access(5, 10, &now).read);
        assert!(!perms.access(5, 9, &now).read);
        assert!(!perms.access(5, 10, &now).write);
        assert!(!perms.access(6, 10, &now).read);
    }

    #[test]
    fn letters_and_numbers_are_checked() {
        for bad in ["", "x0", "r", "r-1", "r70000"] {
            assert_eq!(Perms::parse(&[bad.into()]), Err(Errno::EINVAL), "{bad}");
        }
    }
}
