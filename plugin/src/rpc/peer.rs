//! Who is at the other end of the socket, and whether they may be.
//!
//! The file's mode says it already; asking the kernel again guards against a mode that someone
//! changed, and gives the log a name for whoever changes something. Called once a connection.

use std::io;
use tokio::net::UnixStream;
use uuid::Uuid;

/// A client's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// Its first group.
    pub gid: u32,
    /// Its process id, 0 where it is in a pid namespace that we can't see.
    pub pid: i32,
    /// For a call that may come twice: what a volume is named that it makes, made again the same.
    pub names: Option<Uuid>,
}

/// Who may connect, besides root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// The socket's owner.
    pub uid: u32,
    /// The socket's group.
    pub gid: u32,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "uid={} pid={}", self.uid, self.pid)
    }
}

impl Peer {
    /// The process at the other end when it connected.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of(stream: &UnixStream) -> io::Result<Peer> {
        let credentials = stream.peer_cred()?;
        Ok(Peer {
            uid: credentials.uid(),
            gid: credentials.gid(),
            pid: credentials.pid().unwrap_or(0),
            names: None,
        })
    }

    /// Whether it may speak to us.
    #[must_use]
    pub fn is_allowed(&self, allowed: Allowed) -> bool {
        self.uid == 0
            || self.uid == allowed.uid
            || self.gid == allowed.gid
            || self.further_groups().contains(&allowed.gid)
    }

    /// The kernel tells only the first group with the connection; the others stand in /proc.
    fn further_groups(&self) -> Vec<u32> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid));
        parse_groups(&status.unwrap_or_default())
    }
}

fn parse_groups(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    line.split_ascii_whitespace().filter_map(|group| group.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_owner_and_group_may_and_nobody_else() {
        let allowed = Allowed { uid: 7, gid: 8 };
        let peer = |uid, gid| Peer { uid, gid, pid: 0, names: None };
        assert!(peer(0, 1).is_allowed(allowed));
        assert!(peer(7, 1).is_allowed(allowed));
        assert!(peer(1, 8).is_allowed(allowed));
        assert!(!peer(1, 1).is_allowed(allowed));
        assert_eq!(parse_groups("Uid:\t1\nGroups:\t4 24 8 \nNStgid:\t1"), [4, 24, 8]);
        assert!(parse_groups("").is_empty());
    }
}
