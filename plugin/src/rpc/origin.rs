//! Web pages that reach for the socket through an operator's browser, by a port that is forwarded
//! to it: only our own page may.
//!
//! A browser names the page's origin in whatever a page could do harm with: posts and WebSockets.
//! Other clients name none. A name that is not this machine's own may be anybody's, pointed here
//! (DNS rebinding).

use hyper::HeaderMap;
use hyper::header::{HOST, ORIGIN};

/// Names of the machine itself.
const OURSELVES: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// Whether a request may be answered.
#[must_use]
pub fn admits(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return true };
    let (Ok(origin), Some(Ok(host))) =
        (origin.to_str(), headers.get(HOST).map(|host| host.to_str()))
    else {
        return false;
    };
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let name = match host.rsplit_once(':') {
        Some((name, port)) if digits(port) => name,
        _ => host,
    };
    authority == Some(host) && OURSELVES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_page_on_this_machine_may() {
        let of = |origin: Option<&str>, host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().expect("a value"));
            if let Some(origin) = origin {
                headers.insert(ORIGIN, origin.parse().expect("a value"));
            }
            admits(&headers)
        };
        assert!(of(None, "localhost") && of(None, "anything"));
        assert!(of(Some("http://localhost:8080"), "localhost:8080"));
        assert!(of(Some("http://[::1]:8080"), "[::1]:8080"));
        assert!(!of(Some("http://evil.example"), "localhost:8080"));
        assert!(!of(Some("http://localhost:9090"), "localhost:8080"), "another page's port");
        assert!(!of(Some("http://evil.example:8080"), "evil.example:8080"), "rebinding");
        assert!(!of(Some("null"), "localhost"), "a sandboxed frame");
    }
}
