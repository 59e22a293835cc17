//! What an SR's device-config, or the sm-config of a VDI, says of how guests are served. What they
//! leave open the configuration decides. Read off once, when an SR is attached.

use zerotap_rpc_schema::StorageError;
use zerotap_rpc_schema::error::number;
use zerotap_rpc_schema::smapi2::Pairs;
use zerotap_rpc_schema::space::NoSpace;
use zerotap_rpc_schema::worker::TransferRule;

/// The key of device-config and sm-config.
pub(super) const TRANSFER: &str = "transfer";
/// The key of device-config.
pub(super) const NO_SPACE: &str = "no_space";
/// The key of device-config and sm-config.
pub(super) const ALLOCATION: &str = "allocation";
/// Its value for a volume that has all its blocks from the first.
pub(super) const PREALLOCATED: &str = "preallocated";

/// Whether what `allocation` says is to preallocate.
///
/// # Errors
/// It is no word that is known.
pub(super) fn preallocates(allocation: &str) -> Result<bool, &'static str> {
    match allocation {
        "sparse" => Ok(false),
        PREALLOCATED => Ok(true),
        _ => Err("give sparse or preallocated"),
    }
}

/// The rules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rules {
    /// How guests' pages are reached.
    pub transfer: Option<TransferRule>,
    /// What becomes of writes that find no space.
    pub no_space: Option<NoSpace>,
    /// Whether new volumes that do not say otherwise are preallocated: SMAPIv3 tells of a volume's
    /// sm-config only when it is made already.
    pub preallocated: bool,
}

impl Rules {
    /// Of all VDIs of an SR.
    ///
    /// # Errors
    /// A rule that there is not.
    pub(super) fn of(config: &Pairs) -> Result<Rules, StorageError> {
        let allocation = config.get(ALLOCATION).map(|value| preallocates(value)).transpose();
        let preallocated = allocation.map_err(|why| wrong(config, ALLOCATION, why))?;
        Ok(Rules {
            transfer: rule(config, TRANSFER)?,
            no_space: rule(config, NO_SPACE)?,
            preallocated: preallocated.unwrap_or(false),
        })
    }

    /// Of a VDI with this sm-config, whose rules go before its SR's.
    pub(super) fn of_vdi(self, sm_config: &Pairs) -> Rules {
        let own = sm_config.get(TRANSFER).and_then(|rule| rule.parse().ok());
        Rules { transfer: own.or(self.transfer), ..self }
    }
}

fn rule<T>(config: &Pairs, key: &str) -> Result<Option<T>, StorageError>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let rule = config.get(key).map(|rule| rule.parse()).transpose();
    rule.map_err(|why: T::Err| wrong(config, key, why))
}

fn wrong(config: &Pairs, key: &str, why: impl std::fmt::Display) -> StorageError {
    let text = format!("device_config.{key}={}: {why}", config[key]);
    StorageError::backend(number::CONFIG_INVALID, text)
}
