//! `KEY=VALUE` arguments: device-config.

use zerotap_rpc_schema::smapi2::Pairs;

/// Reads one `KEY=VALUE`.
pub(crate) fn parse(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not KEY=VALUE, for example path=/srv/disks")),
    }
}

/// The pairs as the wire has them; of a key given twice the last one counts.
pub(crate) fn collect(pairs: Vec<(String, String)>) -> Pairs {
    pairs.into_iter().collect()
}

/// The pairs for people: `path=/srv/disks`.
pub(crate) fn join(pairs: &Pairs) -> String {
    let texts: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
    texts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_equals_sign_divides() {
        assert_eq!(parse("path=/a=b"), Ok(("path".into(), "/a=b".into())));
        assert!(parse("=x").unwrap_err().contains("`=x`"));
        assert!(parse("path").unwrap_err().contains("KEY=VALUE"));
    }
}
