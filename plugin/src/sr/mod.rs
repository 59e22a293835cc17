//! Storage repositories: what one can do, whichever kind it is. There is one kind yet, `file`.
//!
//! A file system may hang for ever (NFS). [`Sr::run`] therefore works on another thread and stops
//! to wait after [`FILE_DEADLINE`]; the thread finishes when the file system does, and what it then
//! has done is told by the intent that stays unsettled.

pub mod attached;
pub mod catalog;
pub mod copy;
pub mod file;
mod grow;
pub mod image;
mod keys;
mod lock;
pub mod owner;
pub mod publish;
pub mod record;
mod reserve;
pub mod revert;
pub mod rules;
pub mod transport;
mod volume;

pub use attached::Srs;

use file::FileSr;
use owner::Identity;
use rules::Rules;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::error::number;
use zerotap_rpc_schema::smapi2::{Pairs, Probe};

/// How long an answer waits for the file system.
pub const FILE_DEADLINE: Duration = Duration::from_secs(30);
/// The same for a volume's data that is copied.
pub const COPY_DEADLINE: Duration = Duration::from_secs(24 * 3600);
/// The most calls that work on one SR's files at a time: one that hangs takes no more threads.
const FILE_WORK_MAX: usize = 16;
/// device-config's key; [`Rules`] has more.
const PATH: &str = "path";

/// An attached SR. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sr {
    file: Arc<FileSr>,
    places: Arc<Semaphore>,
}

impl Sr {
    /// The SR `uuid` as `device_config` leads to it, used by `us`; looks at nothing yet.
    ///
    /// # Errors
    /// `uuid` is none, or `device_config` names no absolute `path`.
    pub fn new(
        uuid: &str,
        config: &Pairs,
        overcommit: bool,
        us: Identity,
    ) -> Result<Sr, StorageError> {
        if uuid::Uuid::try_parse(uuid).is_err() || uuid.len() != 36 {
            let text = format!(
                "`{uuid}` cannot be an SR's uuid: give one like \
                8a6b0f4e-0d0c-4f0f-9a31-1f6d0b5a2c77"
            );
            return Err(StorageError::backend(number::BAD_REQUEST, text));
        }
        let (dir, rules) = (dir_of(config)?, Rules::of(config)?);
        Ok(Sr::over(FileSr::new(uuid.into(), dir, overcommit).on(us).ruled(rules)))
    }

    fn over(file: FileSr) -> Sr {
        Sr { file: Arc::new(file), places: Arc::new(Semaphore::new(FILE_WORK_MAX)) }
    }

    /// Where it lies.
    #[must_use]
    pub fn dir(&self) -> &std::path::Path {
        self.file.dir()
    }

    /// Does file work on another thread, and waits for it no longer than [`FILE_DEADLINE`].
    ///
    /// # Errors
    /// The work's own; SR_BACKEND_FAILURE_47 when the file system does not answer.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&FileSr) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        self.run_for(FILE_DEADLINE, work).await
    }

    /// The same for work that moves a volume's data, which lasts as long as there is data.
    ///
    /// # Errors
    /// As [`Sr::run`].
    pub async fn run_for<T: Send + 'static>(
        &self,
        deadline: Duration,
        work: impl FnOnce(&FileSr) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let (file, places) = (Arc::clone(&self.file), Arc::clone(&self.places));
        let at_work = async {
            let place = places.acquire_owned().await;
            let work = move || {
                // Given back when the work ends, which may be long after we have stopped to wait.
                let _place = place;
                work(&file)
            };
            tokio::task::spawn_blocking(work).await
        };
        match tokio::time::timeout(deadline, at_work).await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(StorageError::Internal(format!("file work failed: {panic}"))),
            Err(_) => {
                let text = format!(
                    "the file system of {} has not answered for {} s. See that it does (a network \
                     file system's server?), then try again",
                    self.file.dir().display(),
                    deadline.as_secs()
                );
                Err(StorageError::backend(number::SR_UNAVAILABLE, text))
            }
        }
    }
}

/// SR.probe: what is in the directory that `config` leads to.
///
/// # Errors
/// No absolute `path` in `config`; the file system does not answer.
pub async fn probe(config: &Pairs) -> Result<Vec<Probe>, StorageError> {
    let dir = dir_of(config)?;
    // No SR is meant yet; this one is never attached and only lends its threads and its deadline.
    let nobody = Sr::over(FileSr::new(String::new(), dir.clone(), false));
    let configuration = config.clone();
    nobody
        .run(move |_| {
            if !dir.is_dir() {
                return Ok(vec![]);
            }
            let sr = match file::uuid_in(&dir)? {
                Some(uuid) => Some(FileSr::new(uuid, dir, false).stat()?),
                None => None,
            };
            Ok(vec![Probe { configuration, complete: true, sr, extra_info: Pairs::new() }])
        })
        .await
}

/// The uuid of the SR that `config` leads to.
///
/// # Errors
/// No absolute `path` in `config`, no SR there; the file system does not answer.
pub async fn uuid_at(config: &Pairs) -> Result<String, StorageError> {
    let dir = dir_of(config)?.display().to_string();
    let found = probe(config).await?.into_iter().find_map(|found| found.sr?.sr_uuid);
    found.ok_or_else(|| {
        let text = format!(
            "cannot attach the SR in {dir}: there is none. Is its file system mounted? SR.create \
             makes a new one"
        );
        StorageError::backend(number::SR_UNAVAILABLE, text)
    })
}

fn dir_of(config: &Pairs) -> Result<PathBuf, StorageError> {
    let known = [PATH, rules::TRANSFER, rules::NO_SPACE, rules::ALLOCATION];
    if let Some(unknown) = config.keys().find(|key| !known.contains(&key.as_str())) {
        let text = format!(
            "device_config.{unknown} is not known: a file SR takes path=DIR, and if need be \
             transfer=RULE, no_space=pause or error, allocation=sparse or preallocated"
        );
        return Err(StorageError::backend(number::CONFIG_INVALID, text));
    }
    let path = config.get(PATH).ok_or_else(|| {
        let text = "device_config has no path: a file SR takes path=DIR, a directory";
        StorageError::backend(number::CONFIG_MISSING, text)
    })?;
    if !path.starts_with('/') {
        let text = format!("device_config.path={path} is relative: give an absolute directory");
        return Err(StorageError::backend(number::CONFIG_INVALID, text));
    }
    Ok(PathBuf::from(path))
}
