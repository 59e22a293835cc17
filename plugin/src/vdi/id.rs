//! What names a VDI on this host: its SR and its key there.

/// SR uuid and VDI key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VdiId {
    /// The SR's uuid.
    pub sr: String,
    /// The volume's key in it, XenAPI's `VDI.location`.
    pub vdi: String,
}

/// What a backend directory's `params` begins with when it means one of our VDIs.
const PARAMS_SCHEME: &str = "zerotap:";
/// What SMAPIv3's URI of one of our VDIs begins with.
const URI_SCHEME: &str = "zerotap://";

impl VdiId {
    /// From its two parts.
    pub fn new(sr: impl Into<String>, vdi: impl Into<String>) -> Self {
        VdiId { sr: sr.into(), vdi: vdi.into() }
    }

    /// Reads a backend directory's `params`: `zerotap:<sr>/<vdi>`. xenopsd puts a `/` before it
    /// when it inserts the CD that was in the drive before, so that the value changes.
    #[must_use]
    pub fn from_params(params: &str) -> Option<Self> {
        let params = params.strip_prefix('/').unwrap_or(params);
        let (sr, vdi) = params.strip_prefix(PARAMS_SCHEME)?.split_once('/')?;
        let named = !sr.is_empty() && !vdi.is_empty() && !vdi.contains('/');
        named.then(|| VdiId::new(sr, vdi))
    }

    /// Reads a URI of SMAPIv3's: `zerotap://<sr>/<vdi>`.
    #[must_use]
    pub fn from_uri(uri: &str) -> Option<Self> {
        let (sr, vdi) = uri.strip_prefix(URI_SCHEME)?.split_once('/')?;
        let named = !sr.is_empty() && !vdi.is_empty() && !vdi.contains('/');
        named.then(|| VdiId::new(sr, vdi))
    }

    /// Its URI. Neither part has a character that a URI would escape.
    #[must_use]
    pub fn to_uri(&self) -> String {
        format!("{URI_SCHEME}{self}")
    }

    /// What a toolstack writes into a backend directory's `params`.
    #[must_use]
    pub fn to_params(&self) -> String {
        format!("{PARAMS_SCHEME}{self}")
    }
}

impl std::fmt::Display for VdiId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.sr, self.vdi)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn params_lead_back_to_the_vdi() {
        let id = VdiId::new("sr", "vdi");
        assert_eq!(VdiId::from_params(&format!("/{}", id.to_params())), Some(id.clone()));
        assert_eq!(VdiId::from_params(&id.to_params()), Some(id));
        for foreign in [
            "",
            "/",
            "//zerotap:sr/vdi",
            "zerotap:",
            "zerotap:sr",
            "zerotap:sr/",
            "zerotap:/vdi",
            "aio:/x/y",
        ] {
            assert_eq!(VdiId::from_params(foreign), None, "{foreign}");
        }
        assert_eq!(VdiId::from_params("zerotap:a/b/c"), None);
    }

    #[test]
    fn a_uri_leads_back_to_the_vdi() {
        let id = VdiId::new("sr", "vdi");
        assert_eq!(VdiId::from_uri(&id.to_uri()), Some(id));
        for foreign in ["", "zerotap:sr/vdi", "zerotap://sr", "zerotap:///vdi", "file://a/b"] {
            assert_eq!(VdiId::from_uri(foreign), None, "{foreign}");
        }
    }
}
