//! Fuzzes the judging of URLs, of redirects and of data URLs, and base64.

#![no_main]

use std::net::IpAddr;

use imgclass_fetch::{FetchConfig, UrlPolicy, decode_base64, decode_data_url, redacted};

/// The largest picture of a data URL.
const LIMIT: u64 = 1024;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(bytes) = decode_base64(text.as_bytes()) {
        assert!(bytes.len() <= text.len());
    }
    if let Ok(bytes) = decode_data_url(text, LIMIT) {
        assert!((1..=LIMIT).contains(&(bytes.len() as u64)));
    }
    assert!(!redacted(text).contains(char::is_control));
    let config = FetchConfig::default();
    let policy = UrlPolicy::new(&config);
    let (first, location) = text.split_once('\n').unwrap_or((text, ""));
    let Ok(url) = policy.check(first) else {
        return;
    };
    check(&url, &policy, &config);
    if let Ok(target) = policy.check_redirect(&url, location) {
        check(&target, &policy, &config);
        assert!(url.scheme() == "http" || target.scheme() == "https");
    }
});

/// Asserts what the client relies on: a host that may be dialled, no user, and a port that is open.
fn check(url: &url::Url, policy: &UrlPolicy, config: &FetchConfig) {
    assert!(matches!(url.scheme(), "http" | "https"));
    assert!(url.username().is_empty() && url.password().is_none());
    assert!(matches!(url.port_or_known_default(), Some(80 | 443)));
    assert!(url.as_str().len() <= config.max_url_length);
    let host = url.host_str().unwrap_or_default();
    assert!(!host.is_empty());
    if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        assert!(policy.addresses().check(address).is_ok());
        assert!(!address.is_loopback());
    }
    // What is dialled is what was judged: the text is read the same way again.
    assert_eq!(policy.check(url.as_str()).ok().as_ref(), Some(url));
}
