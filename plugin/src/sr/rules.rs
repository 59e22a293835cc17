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

/// The rules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rules {
    /// How guests' pages are reached.
    pub transfer: Option<TransferRule>,
    /// What becomes of writes that find no space.
    pub no_space: Option<NoSpace>,
}

impl Rules {
    /// Of all VDIs of an SR.
    ///
    /// # Errors
    /// A rule that there is not.
    pub(super) fn of(config: &Pairs) -> Result<Rules, StorageError> {
        Ok(Rules { transfer: rule(config, TRANSFER)?, no_space: rule(config, NO_SPACE)? })
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
    config.get(key).map(|rule| rule.parse()).transpose().map_err(|why: T::Err| {
        let text = format!("device_config.{key}={}: {why}", config[key]);
        StorageError::backend(number::CONFIG_INVALID, text)
    })
}
