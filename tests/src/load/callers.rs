//! Callers of the daemon while everything else happens: each call is answered, be it with an error,
//! unless the daemon was killed meanwhile.

use super::site::Site;
use crate::harness::{Rpc, RpcError};
use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Callers at a time.
const CALLERS: usize = 4;
/// Between two calls of one: operators and XAPI ask, they do not flood.
const PAUSE: Duration = Duration::from_millis(20);
const VDI_BYTES: i64 = 1 << 20;

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// How often the daemon was killed.
    deaths: AtomicU64,
    answered: AtomicU64,
    cut_off: AtomicU64,
}

/// The callers, each on a thread.
#[derive(Debug)]
pub(super) struct Callers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Callers {
    pub(super) fn start(site: &Site) -> anyhow::Result<Callers> {
        let shared = Arc::new(Shared::default());
        let one = |_| {
            let (shared, rpc, sr) = (Arc::clone(&shared), site.host.rpc(), site.sr.clone());
            let thread = std::thread::Builder::new().name("caller".into());
            thread.spawn(move || call(&shared, &rpc, &sr))
        };
        let threads = (0..CALLERS).map(one).collect::<Result<Vec<_>, _>>()?;
        Ok(Callers { shared, threads })
    }

    /// To be called before the daemon is killed: what is asked from here on may be cut off.
    pub(super) fn daemon_dies(&self) {
        self.shared.deaths.fetch_add(1, Ordering::SeqCst);
    }

    /// To be called once it serves again.
    pub(super) fn daemon_is_back(&self) {
        self.shared.deaths.fetch_add(1, Ordering::SeqCst);
    }

    /// Says whether one has met something that must not be.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if self.threads.iter().any(JoinHandle::is_finished) {
            bail!("a caller has given up: a call was not answered (end of the run says which)");
        }
        Ok(())
    }

    /// How many calls were answered, and how many were cut off.
    pub(super) fn end(self) -> anyhow::Result<(u64, u64)> {
        self.shared.stop.store(true, Ordering::Release);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow::anyhow!("a caller panicked"))??;
        }
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Ok((count(&self.shared.answered), count(&self.shared.cut_off)))
    }
}

fn call(shared: &Shared, rpc: &Rpc, sr: &str) -> anyhow::Result<()> {
    let info = json!({"name_label": "passing", "virtual_size": VDI_BYTES});
    let calls = [
        ("Host.status", json!({})),
        ("VBD.list", json!({})),
        ("VDI.create", json!({"sr": sr, "vdi_info": info})),
        ("Worker.list", json!({})),
        ("SR.stat", json!({"sr": sr})),
        ("SR.scan2", json!({"sr": sr})),
        ("DP.stat_vdi", json!({"sr": sr, "vdi": "none", "unit": null})),
    ];
    while !shared.stop.load(Ordering::Acquire) {
        for (method, params) in &calls {
            let made = one(shared, rpc, method, params)?;
            if let Some(vdi) = made.as_ref().and_then(|made| made["vdi"].as_str()) {
                one(shared, rpc, "VDI.destroy", &json!({"sr": sr, "vdi": vdi}))?;
            }
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// One call; its result, when it had one.
fn one(shared: &Shared, rpc: &Rpc, method: &str, params: &Value) -> anyhow::Result<Option<Value>> {
    let before = shared.deaths.load(Ordering::SeqCst);
    let answer = rpc.raw(method, params);
    // Odd while it is dead.
    let lived = before.is_multiple_of(2) && before == shared.deaths.load(Ordering::SeqCst);
    let error = match answer {
        Ok(result) => {
            shared.answered.fetch_add(1, Ordering::Relaxed);
            return Ok(Some(result));
        }
        Err(error) => error,
    };
    if error.downcast_ref::<RpcError>().is_some() {
        shared.answered.fetch_add(1, Ordering::Relaxed);
    } else if lived {
        return Err(error).with_context(|| format!("{method} was not answered"));
    } else {
        shared.cut_off.fetch_add(1, Ordering::Relaxed);
    }
    Ok(None)
}
