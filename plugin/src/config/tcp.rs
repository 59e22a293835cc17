//! `[tcp]`: whether, where and for whom the daemon listens on the network; off by default.
//!
//! There is no half of it: an address needs certificate, key and token, and secrets that others
//! can read are refused.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The shortest token that is accepted, bytes: 128 bits in hexadecimal.
const TOKEN_BYTES_MIN: usize = 32;
const TOKEN_BYTES_MAX: u64 = 4096;

/// `[tcp]` as it stands in the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TcpTable {
    listen: Option<SocketAddr>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    token_file: Option<PathBuf>,
    #[serde(default)]
    hosts: Vec<String>,
}

/// Where to listen on the network.
#[derive(Clone)]
pub struct Tcp {
    /// The address.
    pub listen: SocketAddr,
    /// The chain of certificates, PEM.
    pub certificate: PathBuf,
    /// The private key, PEM.
    pub key: PathBuf,
    /// What callers must show.
    pub token: String,
    /// What callers may call us, the port left out.
    pub hosts: Vec<String>,
}

impl std::fmt::Debug for Tcp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tcp").field("listen", &self.listen).finish_non_exhaustive()
    }
}

impl TcpTable {
    /// What is to be served, if anything.
    pub(super) fn checked(self) -> Result<Option<Tcp>> {
        let TcpTable { listen, certificate, key, token_file, hosts } = self;
        let Some(listen) = listen else {
            ensure!(
                certificate.is_none() && key.is_none() && token_file.is_none() && hosts.is_empty(),
                "[tcp] says how to listen but not where: give `listen`, or none of its keys"
            );
            return Ok(None);
        };
        let (Some(certificate), Some(key), Some(token_file)) = (certificate, key, token_file)
        else {
            bail!(
                "[tcp] listen = \"{listen}\" needs `certificate`, `key` and `token_file`: nothing \
                 is served on the network without TLS and a token"
            )
        };
        let hosts = match (hosts.is_empty(), listen.ip().is_unspecified()) {
            (false, _) => hosts,
            (true, false) => vec![listen.ip().to_string()],
            (true, true) => bail!(
                "[tcp] listen = \"{listen}\" needs `hosts`: the names by which clients know this \
                 host"
            ),
        };
        secret(&key)?;
        Ok(Some(Tcp { listen, certificate, key, token: token(&token_file)?, hosts }))
    }
}

/// Refuses a file that somebody else can read, or put there.
fn secret(path: &Path) -> Result<()> {
    let file = std::fs::metadata(path);
    let file = file.with_context(|| format!("cannot look at {}", path.display()))?;
    let ours = file.uid() == 0 || file.uid() == rustix::process::geteuid().as_raw();
    ensure!(
        ours && file.mode() & 0o077 == 0,
        "{} can be read by others (mode {:03o}, uid {}): chown it to the daemon's user and \
         chmod 600",
        path.display(),
        file.mode() & 0o777,
        file.uid()
    );
    Ok(())
}

fn token(path: &Path) -> Result<String> {
    use std::io::Read;
    secret(path)?;
    let mut text = String::new();
    let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
    file.take(TOKEN_BYTES_MAX)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let token = text.trim_end();
    let plain = token.bytes().all(|byte| byte.is_ascii_graphic());
    ensure!(
        plain && token.len() >= TOKEN_BYTES_MIN,
        "{} needs one line of {TOKEN_BYTES_MIN} or more printable characters without blanks; \
         for example: openssl rand -hex 32",
        path.display()
    );
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(path: &Path, text: &str, mode: u32) {
        std::fs::write(path, text).expect("writable");
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(path, mode).expect("ours");
    }

    #[test]
    fn nothing_is_served_without_every_secret_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let (key, token) = (dir.path().join("key"), dir.path().join("token"));
        let good = "0123456789abcdef0123456789abcdef\n";
        let load = |lines: &str| -> Result<Option<Tcp>> {
            toml::from_str::<TcpTable>(lines).expect("keys").checked()
        };
        let whole = |listen: &str, more: &str| {
            format!(
                "listen = '{listen}'\ncertificate = '/c'\nkey = {key:?}\ntoken_file = {token:?}\n\
                 {more}"
            )
        };
        file(&key, "key", 0o600);
        file(&token, good, 0o600);
        assert!(load("").expect("off").is_none());
        let tcp = load(&whole("127.0.0.1:1", "")).expect("whole").expect("on");
        assert_eq!(
            (tcp.token.as_str(), &tcp.hosts[..]),
            (good.trim_end(), &["127.0.0.1".into()][..])
        );
        assert!(!format!("{tcp:?}").contains(good.trim_end()), "no log has the token");
        let refused = |lines: &str, word: &str| {
            let error = load(lines).expect_err("refused").to_string();
            assert!(error.contains(word), "{error}");
        };
        refused("listen = '127.0.0.1:1'", "token_file");
        refused("key = '/k'", "`listen`");
        refused(&whole("0.0.0.0:1", ""), "`hosts`");
        assert!(load(&whole("0.0.0.0:1", "hosts = ['h']")).is_ok());
        file(&token, good, 0o640);
        refused(&whole("127.0.0.1:1", ""), "chmod 600");
        file(&token, "short", 0o600);
        refused(&whole("127.0.0.1:1", ""), "openssl rand");
        file(&token, good, 0o600);
        file(&key, "key", 0o604);
        refused(&whole("127.0.0.1:1", ""), "chmod 600");
    }
}
