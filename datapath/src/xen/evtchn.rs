//! `/dev/xen/evtchn`: bind a guest's event channel port, notify it.
//!
//! Source: Linux `include/uapi/xen/evtchn.h` and `drivers/xen/evtchn.c`. An event masks the port
//! until its number is written back to the device: that is what stops a guest's storm of events, so
//! the write comes only after the ring was found empty. Reading is the engine's business.
//! The descriptor is never registered with io_uring: a registered one is released some 30 ms after
//! the process's death, and until then nobody else can bind the port.

use rustix::io::Errno;
use rustix::ioctl::{Direction, Ioctl, IoctlOutput, Opcode, Setter, ioctl, opcode};
use std::ffi::c_void;
use std::os::fd::OwnedFd;

/// `ioctl_evtchn_bind_interdomain`.
#[repr(C)]
struct BindInterdomain {
    remote_domain: u32,
    remote_port: u32,
}

/// `ioctl_evtchn_notify`, `ioctl_evtchn_unbind`.
#[repr(C)]
struct Port {
    port: u32,
}

pub(crate) const BIND_INTERDOMAIN: Opcode = evtchn_opcode::<BindInterdomain>(1);
pub(crate) const NOTIFY: Opcode = evtchn_opcode::<Port>(4);
pub(crate) const RESTRICT_DOMID: Opcode = evtchn_opcode::<u16>(6);

/// The header's opcodes carry no direction, but a size.
const fn evtchn_opcode<T>(number: u8) -> Opcode {
    opcode::from_components(Direction::None, b'E', number, size_of::<T>())
}

// SAFETY: opcode and structure are the header's; the call only reads the structure and answers the
// local port as its result.
unsafe impl Ioctl for BindInterdomain {
    type Output = u32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        BIND_INTERDOMAIN
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self).cast()
    }

    unsafe fn output_from_ptr(
        result: IoctlOutput,
        _structure: *mut c_void,
    ) -> rustix::io::Result<u32> {
        u32::try_from(result).map_err(|_| Errno::INVAL)
    }
}

/// A bound port and the device it is bound by, which has no other.
#[derive(Debug)]
pub struct Evtchn {
    device: OwnedFd,
    local_port: u32,
}

impl Evtchn {
    /// Binds `remote_port` of domain `domid`; the device is good for no other domain's from then
    /// on.
    ///
    /// # Errors
    /// EINVAL when the port is not free to bind: another back end has it, or it is not for us.
    pub fn bind(device: OwnedFd, domid: u16, remote_port: u32) -> rustix::io::Result<Self> {
        // SAFETY: opcode and structure, a domain's number, are the header's; the kernel only reads.
        let restricted = unsafe { ioctl(&device, Setter::<RESTRICT_DOMID, _>::new(domid)) };
        match restricted {
            // An older kernel does not know it (drivers/xen/evtchn.c, `evtchn_ioctl`). One that
            // does restricts a device once: an earlier try to bind has.
            Ok(()) | Err(Errno::NOSYS | Errno::ACCESS) => {}
            Err(errno) => return Err(errno),
        }
        let call = BindInterdomain { remote_domain: u32::from(domid), remote_port };
        // SAFETY: see the implementation of `Ioctl`.
        let local_port = unsafe { ioctl(&device, call)? };
        Ok(Evtchn { device, local_port })
    }

    /// What becomes readable with an event.
    #[must_use]
    pub fn descriptor(&self) -> &OwnedFd {
        &self.device
    }

    /// Our end's number: what a read answers and what is written back.
    #[must_use]
    pub fn local_port(&self) -> u32 {
        self.local_port
    }

    /// Sends the guest an event.
    ///
    /// # Errors
    /// When the other end is gone.
    pub fn notify(&self) -> rustix::io::Result<()> {
        let call = Port { port: self.local_port };
        // SAFETY: opcode and structure are the header's; the kernel only reads it.
        unsafe { ioctl(&self.device, Setter::<NOTIFY, _>::new(call)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcodes_are_the_headers() {
        // As a C compiler computes them from linux/uapi/xen/evtchn.h on x86_64.
        assert_eq!(BIND_INTERDOMAIN, 0x0008_4501);
        assert_eq!(NOTIFY, 0x0004_4504);
        assert_eq!(RESTRICT_DOMID, 0x0002_4506);
    }
}
