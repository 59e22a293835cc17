//! The worker's end of the control protocol: connections, lines, descriptors that come along.
//!
//! Decides nothing; [`crate::worker`] does. Everything is bounded: connections, a line's length,
//! descriptors waiting. A peer that breaks a bound, or does not read its answers, is hung up on.

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, accept_with,
    recvmsg, send,
};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use zerotap_rpc_schema::worker::{Answer, DESCRIPTORS_MAX, LINE_BYTES_MAX, Reply, Request};

/// Connections at a time: a daemon's, an old one's that lingers, an operator's.
pub const CONNECTIONS_MAX: usize = 4;
/// Bytes taken in one read.
const READ_BYTES: usize = 16 * 1024;

/// Hang up: the peer is gone or broke a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HangUp;

/// One connection.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    unread: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Connection {
    /// Takes the next waiting connection.
    ///
    /// # Errors
    /// When there is none, or too few resources for it.
    pub fn accept(listener: impl AsFd) -> rustix::io::Result<Self> {
        let socket = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        Ok(Connection { socket, unread: Vec::new(), descriptors: Vec::new() })
    }

    /// What becomes readable with the next request.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads what is there into the line buffer.
    ///
    /// # Errors
    /// When the peer hung up or sent more than a line may have.
    pub fn fill(&mut self) -> Result<(), HangUp> {
        let mut bytes = [0; READ_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = match recvmsg(&self.socket, &mut slices, &mut ancillary, flags) {
            Ok(message) => message.bytes,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(_) => return Err(HangUp),
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors = descriptors.collect();
            }
        }
        self.unread.extend_from_slice(&bytes[..received]);
        if received == 0 || self.unread.len() > LINE_BYTES_MAX { Err(HangUp) } else { Ok(()) }
    }

    /// Takes the next whole line, if there is one.
    ///
    /// # Errors
    /// When it is no request.
    pub fn next_request(&mut self) -> Result<Option<Request>, HangUp> {
        let Some(end) = self.unread.iter().position(|&byte| byte == b'\n') else { return Ok(None) };
        let line: Vec<u8> = self.unread.drain(..=end).collect();
        match serde_json::from_slice(&line) {
            Ok(request) => Ok(Some(request)),
            Err(error) => {
                tracing::warn!(%error, "a control connection sent no request; hung up on it");
                Err(HangUp)
            }
        }
    }

    /// Takes the descriptors that came with the request.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }

    /// Answers a request.
    ///
    /// # Errors
    /// When the peer is gone, or has so many answers unread that no more fit.
    pub fn reply(&self, id: u64, answer: Answer) -> Result<(), HangUp> {
        let mut line = serde_json::to_vec(&Reply { id, answer }).map_err(|_| HangUp)?;
        line.push(b'\n');
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match send(&self.socket, &line, flags) {
            Ok(sent) if sent == line.len() => Ok(()),
            _ => Err(HangUp),
        }
    }
}
