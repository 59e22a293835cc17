//! A strict stand-in of xapi-storage-script: finds, runs and judges SMAPIv3 executables as it does.
//!
//! Written from xen-api `ocaml/xapi-storage-script/{main,lib}.ml`: files are found whatever their
//! case, run with `--json` and the bare argument object on stdin, and answer a bare result, or the
//! error object with a failed exit. Unlike it, every run has a deadline here.

pub mod shape;

use crate::harness::Host;
use crate::programs::program;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long an executable may run.
const RUN_SECONDS_MAX: u64 = 60;
const VOLUME: &str = "volume/org.xen.xapi.storage.zerotap";
const DATAPATH: &str = "datapath/zerotap";

/// The features that an executable gives, whatever Plugin.query says.
const OF_EXECUTABLES: &[(&str, &str)] = &[
    ("SR.attach", "SR_ATTACH"),
    ("SR.create", "SR_CREATE"),
    ("SR.destroy", "SR_DELETE"),
    ("SR.detach", "SR_DETACH"),
    ("SR.ls", "SR_SCAN"),
    ("SR.stat", "SR_UPDATE"),
    ("SR.probe", "SR_PROBE"),
    ("Volume.create", "VDI_CREATE"),
    ("Volume.clone", "VDI_CLONE"),
    ("Volume.snapshot", "VDI_SNAPSHOT"),
    ("Volume.resize", "VDI_RESIZE"),
    ("Volume.destroy", "VDI_DELETE"),
    ("Volume.stat", "VDI_UPDATE"),
];

/// A failure as XAPI gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptError {
    /// For example SR_BACKEND_FAILURE_46.
    pub code: String,
    /// Its parameters.
    pub params: Vec<String>,
}

impl std::fmt::Display for ScriptError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.code, self.params)
    }
}

impl std::error::Error for ScriptError {}

/// xapi-storage-script over one root.
#[derive(Debug, Clone)]
pub struct StorageScript {
    root: PathBuf,
    socket: PathBuf,
}

impl StorageScript {
    /// Installs the executables in a directory of the host and serves them.
    ///
    /// # Errors
    /// When they are not installed.
    pub fn install(host: &Host) -> Result<StorageScript> {
        let root = host.data().join("storage-scripts");
        smapi("install", &root)?;
        Ok(StorageScript { root, socket: host.rpc().socket().to_owned() })
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The executable of a method.
    ///
    /// # Errors
    /// SCRIPT_MISSING, SCRIPT_NOT_EXECUTABLE.
    pub fn find(&self, method: &str) -> Result<PathBuf> {
        let dir = if method.starts_with("Data") { DATAPATH } else { VOLUME };
        self.find_in(dir, method)
    }

    fn find_in(&self, dir: &str, method: &str) -> Result<PathBuf> {
        let entries = std::fs::read_dir(self.root.join(dir))?.flatten();
        let mut paths = entries.map(|entry| entry.path());
        let same =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.eq_ignore_ascii_case(method));
        let path = paths.find(same).with_context(|| format!("SCRIPT_MISSING {method}"))?;
        let mode = std::fs::metadata(&path)?.permissions().mode();
        ensure!(mode & 0o111 != 0, "SCRIPT_NOT_EXECUTABLE {method}");
        Ok(path)
    }

    /// A command that finds our daemon and knows nothing else of us.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("ZEROTAP_SOCKET", &self.socket);
        command.current_dir("/");
        command
    }

    /// Runs a method's executable and judges what it answers.
    ///
    /// # Errors
    /// A [`ScriptError`]; what XAPI would show as SCRIPT_FAILED.
    pub fn call(&self, method: &str, arguments: &Value) -> Result<Value> {
        let mut command = self.command(&self.find(method)?);
        let output = run(command.arg("--json"), arguments.to_string().as_bytes())?;
        judge(method, &output)
    }

    /// A call that must fail.
    ///
    /// # Panics
    /// When it succeeds, or fails as no script should.
    #[must_use]
    pub fn fails(&self, method: &str, arguments: &Value) -> ScriptError {
        let error = self.call(method, arguments).expect_err("it must fail");
        error.downcast().unwrap_or_else(|other| panic!("{method} {arguments}: {other:#}"))
    }

    /// What XAPI believes that the plugin can do: Plugin.query and what lies there.
    ///
    /// # Errors
    /// As [`StorageScript::call`].
    pub fn features(&self) -> Result<Vec<String>> {
        let query = self.call("Plugin.query", &json!({"dbg": "query"}))?;
        let mut features: Vec<String> = serde_json::from_value(query["features"].clone())?;
        let found = OF_EXECUTABLES.iter().filter(|(method, _)| self.find(method).is_ok());
        features.extend(found.map(|(_, feature)| (*feature).to_owned()));
        let always = ["VDI_ATTACH", "VDI_DETACH", "VDI_ACTIVATE", "VDI_DEACTIVATE"];
        features.extend(always.map(str::to_owned));
        features.sort_unstable();
        features.dedup();
        Ok(features)
    }

    /// Registers the datapath plugin, as it does at its start.
    ///
    /// # Errors
    /// It would not be registered.
    pub fn register_datapath(&self) -> Result<()> {
        let mut command = self.command(&self.find_in(DATAPATH, "Plugin.query")?);
        let output = run(command.arg("--json"), br#"{"dbg":"register"}"#)?;
        let query = judge("Plugin.query", &output)?;
        ensure!(query["required_api_version"] == "5.0", "unknown API version: {query}");
        Ok(())
    }

    /// What precedes every Datapath call: the URI of our scheme, of the volume or of its clone.
    ///
    /// # Errors
    /// MISSING_URI; as [`StorageScript::call`].
    pub fn uri(&self, sr: &str, key: &str) -> Result<String> {
        let volume = self.call("Volume.stat", &json!({"dbg": "uri", "sr": sr, "key": key}))?;
        let other = volume["keys"]["clone-on-boot"].as_str();
        let volume = match other {
            Some(key) => self.call("Volume.stat", &json!({"dbg": "uri", "sr": sr, "key": key}))?,
            None => volume,
        };
        let uris: Vec<String> = serde_json::from_value(volume["uri"].clone())?;
        let ours = uris.into_iter().find(|uri| uri.starts_with("zerotap://"));
        ours.context("MISSING_URI")
    }

    /// VDI.attach3 and its like: the volume's URI is looked up anew each time.
    ///
    /// # Errors
    /// As [`StorageScript::call`].
    pub fn datapath(&self, method: &str, sr: &str, key: &str, domain: &str) -> Result<Value> {
        let uri = self.uri(sr, key)?;
        self.call(method, &json!({"dbg": method, "uri": uri, "domain": domain}))
    }
}

/// `zerotap smapi install` or `remove`.
///
/// # Errors
/// What it says.
pub fn smapi(verb: &str, root: &Path) -> Result<()> {
    let mut command = Command::new(program("zerotap")?);
    let output = command.args(["smapi", verb, "--root"]).arg(root).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Runs a program to its end with something on stdin.
///
/// # Errors
/// It does not start, or does not end.
pub fn run(command: &mut Command, stdin: &[u8]) -> Result<Output> {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().context("SCRIPT_FAILED: it does not start")?;
    // It may end without reading all of it, or any.
    let _ = child.stdin.take().context("piped")?.write_all(stdin);
    let (mut out, mut err) = (child.stdout.take().context("piped")?, child.stderr.take());
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        out.read_to_end(&mut text).map(|_| text)
    });
    let deadline = Instant::now() + Duration::from_secs(RUN_SECONDS_MAX);
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() >= deadline => {
                child.kill()?;
                child.wait()?;
                bail!("it did not end within {RUN_SECONDS_MAX} s");
            }
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    let mut stderr = Vec::new();
    if let Some(err) = &mut err {
        err.read_to_end(&mut stderr)?;
    }
    let stdout = reader.join().expect("the reader does not panic")?;
    Ok(Output { status, stdout, stderr })
}

/// Result or failure, as XAPI gets it.
///
/// # Errors
/// A [`ScriptError`]; what XAPI would show as SCRIPT_FAILED.
pub fn judge(method: &str, output: &Output) -> Result<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    let signal = output.status.signal();
    ensure!(signal.is_none(), "SCRIPT_FAILED {method}: signalled {signal:?}");
    let value: Value = serde_json::from_str(&text)
        .with_context(|| format!("SCRIPT_FAILED {method}: bad json on stdout: {text:?}"))?;
    if output.status.success() {
        let shape = shape::answer(method).with_context(|| format!("nobody calls {method}"))?;
        shape.check(&value).with_context(|| format!("SCRIPT_FAILED {method}: {text}"))?;
        return Ok(value);
    }
    shape::FAILURE.check(&value).with_context(|| {
        format!("SCRIPT_FAILED {method}: non-zero exit and bad json on stdout: {text}")
    })?;
    let count = |key: &str| value["backtrace"][key].as_array().map(Vec::len);
    ensure!(count("files") == count("lines"), "a backtrace has a line for each file: {text}");
    let params = serde_json::from_value(value["params"].clone())?;
    let code = value["code"].as_str().unwrap_or_default().to_owned();
    Err(ScriptError { code, params }.into())
}
