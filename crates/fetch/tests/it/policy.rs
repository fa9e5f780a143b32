//! The fetch policy in tables: its verdict on URLs, addresses, redirects and resolved names.
//!
//! Nothing here dials an address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use imgclass_fetch::{AddressPolicy, FetchConfig, UrlPolicy, UrlRefusal, redacted};
use proptest::prelude::*;
use url::Url;

/// Names the rule that refused, without its details.
fn rule(refusal: &UrlRefusal) -> &'static str {
    match refusal {
        UrlRefusal::TooLong { .. } => "length",
        UrlRefusal::Malformed(_) => "malformed",
        UrlRefusal::ControlCharacter => "control",
        UrlRefusal::Backslash => "backslash",
        UrlRefusal::UserInfo => "user info",
        UrlRefusal::Scheme(_) => "scheme",
        UrlRefusal::Downgrade => "downgrade",
        UrlRefusal::Port(_) => "port",
        UrlRefusal::Address { .. } => "address",
        UrlRefusal::NoAddress => "no address",
        UrlRefusal::UnknownPeer => "unknown peer",
    }
}

fn default_policy() -> UrlPolicy {
    UrlPolicy::new(&FetchConfig::default())
}

/// Each URL with the rule that must refuse it.
#[rustfmt::skip] // one row for each case
const REFUSED_URLS: &[(&str, &str)] = &[
    // Loopback and private addresses in every notation of IPv4.
    ("http://127.0.0.1/", "address"),
    ("https://127.0.0.1/", "address"),
    ("http://127.1/", "address"),
    ("http://127.0.1/", "address"),
    ("http://2130706433/", "address"),
    ("http://017700000001/", "address"),
    ("http://0x7f000001/", "address"),
    ("http://0x7f.0.0.1/", "address"),
    ("http://0X7F.0x0.0x0.0x1/", "address"),
    ("http://0177.0.0.1/", "address"),
    ("http://0177.0.0.01/", "address"),
    ("http://127.0.0.1./", "address"),
    ("http://127.000.000.001/", "address"),
    ("http://%31%32%37.0.0.1/", "address"),
    ("http://127%2e0%2e0%2e1/", "address"),
    ("http://127。0。0。1/", "address"),
    ("http://１２７.０.０.１/", "address"),
    ("http://①②⑦.⓪.⓪.①/", "address"),
    ("http:///127.0.0.1/", "address"),
    ("http:127.0.0.1/", "address"),
    ("http:/127.0.0.1/", "address"),
    ("http://0/", "address"),
    ("http://0.0.0.0/", "address"),
    ("http://10.0.0.1/", "address"),
    ("http://10.1/", "address"),
    ("http://100.64.0.1/", "address"),
    ("http://169.254.169.254/latest/meta-data/", "address"),
    ("http://2852039166/", "address"),
    ("http://0xa9fea9fe/", "address"),
    ("http://169.254.43518/", "address"),
    ("http://172.16.0.1/", "address"),
    ("http://172.31.255.255/", "address"),
    ("http://192.168.1.1/", "address"),
    ("http://192.168.257/", "address"),
    ("http://255.255.255.255/", "address"),
    ("http://4294967295/", "address"),
    ("HTTP://127.0.0.1/", "address"),
    // IPv6 literals.
    ("http://[::1]/", "address"),
    ("http://[::]/", "address"),
    ("http://[0:0:0:0:0:0:0:1]/", "address"),
    ("http://[::ffff:127.0.0.1]/", "address"),
    ("http://[::ffff:7f00:1]/", "address"),
    ("http://[0:0:0:0:0:ffff:a9fe:a9fe]/", "address"),
    ("http://[::127.0.0.1]/", "address"),
    ("http://[64:ff9b::10.0.0.1]/", "address"),
    ("http://[2002:7f00:1::]/", "address"),
    ("http://[fe80::1]/", "address"),
    ("http://[fd00:ec2::254]/", "address"),
    // IPv6 literals that are none.
    ("http://[fe80::1%25eth0]/", "malformed"),
    ("http://[fe80::1%eth0]/", "malformed"),
    ("http://[::1", "malformed"),
    ("http://[127.0.0.1]/", "malformed"),
    ("http://::1/", "malformed"),
    // IPv4 out of range.
    ("http://256.256.256.256/", "malformed"),
    ("http://4294967296/", "malformed"),
    ("http://1.2.3.4.5/", "malformed"),
    ("http://0x100000000/", "malformed"),
    // No host.
    ("", "malformed"),
    ("http://", "malformed"),
    ("http:", "malformed"),
    ("http://:80/", "malformed"),
    ("//example.com/a.png", "malformed"),
    ("/a.png", "malformed"),
    ("example.com/a.png", "malformed"),
    ("http://exa mple.com/", "malformed"),
    ("http://exa<mple.com/", "malformed"),
    ("http://a%00b.example/", "malformed"),
    ("http://example.com:65536/", "malformed"),
    ("http://example.com:-1/", "malformed"),
    ("http://example.com:80:80/", "malformed"),
    // User info.
    ("http://user@example.com/", "user info"),
    ("http://user:password@example.com/", "user info"),
    ("http://:password@example.com/", "user info"),
    ("http://@example.com/", "user info"),
    ("http://:@example.com/", "user info"),
    ("http://example.com@127.0.0.1/", "user info"),
    ("http://example.com:80@127.0.0.1/", "user info"),
    ("http://a@b@example.com/", "user info"),
    ("http:user@example.com/", "user info"),
    // Text that parsers disagree about.
    ("http://example.com\\@127.0.0.1/", "backslash"),
    ("http:\\\\example.com/", "backslash"),
    ("http://example.com/a\\b.png", "backslash"),
    ("http://exam\tple.com/", "control"),
    ("http://example.com/\n", "control"),
    ("\u{0}http://example.com/", "control"),
    ("http://example.com/\r\nHost: internal", "control"),
    ("http://example.com/\u{7f}", "control"),
    ("http://example.com/\u{85}", "control"),
    // Other schemes.
    ("file:///etc/passwd", "scheme"),
    ("file://example.com/etc/passwd", "scheme"),
    ("ftp://example.com/a.png", "scheme"),
    ("gopher://example.com:80/_GET", "scheme"),
    ("ws://example.com/", "scheme"),
    ("dict://example.com:80/", "scheme"),
    ("ldap://example.com:80/", "scheme"),
    ("jar:http://example.com!/", "scheme"),
    ("javascript:alert(1)", "scheme"),
    ("blob:https://example.com/1", "scheme"),
    ("about:blank", "scheme"),
    ("data:image/png;base64,AAAA", "scheme"),
    ("httpx://example.com:80/", "scheme"),
    ("c:/windows/win.ini", "scheme"),
    // Ports.
    ("http://example.com:0/", "port"),
    ("http://example.com:22/", "port"),
    ("http://example.com:81/", "port"),
    ("http://example.com:6379/", "port"),
    ("http://example.com:8000/", "port"),
    ("https://example.com:8443/", "port"),
    ("http://example.com:65535/", "port"),
];

/// Each URL with the URL that will be fetched.
#[rustfmt::skip] // one row for each case
const ACCEPTED_URLS: &[(&str, &str)] = &[
    ("http://example.com", "http://example.com/"),
    ("https://example.com/a.png?x=1", "https://example.com/a.png?x=1"),
    ("HTTPS://EXAMPLE.COM/A.png", "https://example.com/A.png"),
    ("http://example.com:80/", "http://example.com/"),
    ("http://example.com:443/", "http://example.com:443/"),
    ("https://example.com:80/", "https://example.com:80/"),
    ("https://example.com:0443/", "https://example.com/"),
    ("http://example.com./a.png", "http://example.com./a.png"),
    ("http://example.com/a b.png", "http://example.com/a%20b.png"),
    ("http://example.com/@user/a.png", "http://example.com/@user/a.png"),
    ("http://example.com/?u=a@b:c", "http://example.com/?u=a@b:c"),
    ("http://example.com/../../a.png", "http://example.com/a.png"),
    ("https://bücher.example/ü.png", "https://xn--bcher-kva.example/%C3%BC.png"),
    ("http://8.8.8.8/", "http://8.8.8.8/"),
    ("http://134744072/", "http://8.8.8.8/"),
    ("http://010.8.8.8/", "http://8.8.8.8/"),
    ("http://[2606:4700::1111]/", "http://[2606:4700::1111]/"),
    ("http://[::ffff:8.8.8.8]/", "http://[::ffff:808:808]/"),
    // Names are judged by what they resolve to.
    ("http://localhost/", "http://localhost/"),
    ("http://localhost./", "http://localhost./"),
    ("http://metadata.google.internal/", "http://metadata.google.internal/"),
    ("http://127.0.0.1.example/", "http://127.0.0.1.example/"),
];

#[test]
fn every_refused_url_is_refused_by_its_rule() {
    let policy = default_policy();
    for (url, expected) in REFUSED_URLS {
        match policy.check(url) {
            Err(refusal) => assert_eq!(rule(&refusal), *expected, "{url:?}: {refusal}"),
            Ok(parsed) => panic!("{url:?} was accepted as {parsed}"),
        }
    }
}

#[test]
fn every_accepted_url_is_fetched_as_parsed() {
    let policy = default_policy();
    for (url, expected) in ACCEPTED_URLS {
        match policy.check(url) {
            Ok(parsed) => assert_eq!(parsed.as_str(), *expected, "{url:?}"),
            Err(refusal) => panic!("{url:?} was refused: {refusal}"),
        }
    }
}

#[test]
fn the_length_limit_counts_the_url_as_given_and_as_normalised() {
    let policy = UrlPolicy::new(&FetchConfig {
        max_url_length: 30,
        ..FetchConfig::default()
    });
    let fits = format!("http://example.com/{}", "a".repeat(11));
    assert!(policy.check(&fits).is_ok());
    let long = format!("{fits}a");
    assert_eq!(policy.check(&long), Err(UrlRefusal::TooLong { limit: 30 }));
    // Five two-byte letters: 29 bytes as given, 49 percent-encoded.
    assert_eq!(
        policy.check("http://example.com/üüüüü"),
        Err(UrlRefusal::TooLong { limit: 30 })
    );
}

/// Each address, and whether it may be dialled when nothing is opened.
#[rustfmt::skip] // one row for each case
const ADDRESSES: &[(&str, bool)] = &[
    // Each range of the table at both ends, and its neighbours outside.
    ("0.0.0.0", false),
    ("0.255.255.255", false),
    ("1.0.0.0", true),
    ("9.255.255.255", true),
    ("10.0.0.0", false),
    ("10.255.255.255", false),
    ("11.0.0.0", true),
    ("100.63.255.255", true),
    ("100.64.0.0", false),
    ("100.100.100.200", false),
    ("100.127.255.255", false),
    ("100.128.0.0", true),
    ("126.255.255.255", true),
    ("127.0.0.0", false),
    ("127.255.255.255", false),
    ("128.0.0.0", true),
    ("168.63.129.15", true),
    ("168.63.129.16", false),
    ("168.63.129.17", true),
    ("169.253.255.255", true),
    ("169.254.0.0", false),
    ("169.254.169.254", false),
    ("169.254.255.255", false),
    ("169.255.0.0", true),
    ("172.15.255.255", true),
    ("172.16.0.0", false),
    ("172.31.255.255", false),
    ("172.32.0.0", true),
    ("191.255.255.255", true),
    ("192.0.0.0", false),
    ("192.0.0.192", false),
    ("192.0.0.255", false),
    ("192.0.1.0", true),
    ("192.0.2.0", false),
    ("192.0.2.255", false),
    ("192.0.3.0", true),
    ("192.88.98.255", true),
    ("192.88.99.0", false),
    ("192.88.99.255", false),
    ("192.88.100.0", true),
    ("192.167.255.255", true),
    ("192.168.0.0", false),
    ("192.168.255.255", false),
    ("192.169.0.0", true),
    ("198.17.255.255", true),
    ("198.18.0.0", false),
    ("198.19.255.255", false),
    ("198.20.0.0", true),
    ("198.51.99.255", true),
    ("198.51.100.0", false),
    ("198.51.100.255", false),
    ("198.51.101.0", true),
    ("203.0.112.255", true),
    ("203.0.113.0", false),
    ("203.0.113.255", false),
    ("203.0.114.0", true),
    ("223.255.255.255", true),
    ("224.0.0.0", false),
    ("239.255.255.255", false),
    ("240.0.0.0", false),
    ("255.255.255.255", false),
    // IPv6 by itself.
    ("::", false),
    ("::1", false),
    ("100::1", false),
    ("1fff:ffff::1", false),
    ("2000::1", true),
    ("2001::1", false),
    ("2001:1ff:ffff::1", false),
    ("2001:200::1", true),
    ("2001:db7:ffff::1", true),
    ("2001:db8::1", false),
    ("2001:db8:ffff:ffff::1", false),
    ("2001:db9::1", true),
    ("2606:4700:4700::1111", true),
    ("3ffe:ffff::1", true),
    ("3fff::1", false),
    ("3fff:fff:ffff::1", false),
    ("3fff:1000::1", true),
    ("4000::1", false),
    ("5f00::1", false),
    ("fc00::1", false),
    ("fd00:ec2::254", false),
    ("fd20:ce::254", false),
    ("fe80::1", false),
    ("fec0::1", false),
    ("ff02::1", false),
    // IPv4-mapped and IPv4-compatible.
    ("::ffff:8.8.8.8", true),
    ("::ffff:10.0.0.1", false),
    ("::ffff:169.254.169.254", false),
    ("::8.8.8.8", true),
    ("::10.0.0.1", false),
    // IPv4-translated (RFC 2765) is outside 2000::/3 whatever it holds.
    ("::ffff:0:8.8.8.8", false),
    // 6to4, also with ISATAP behind it.
    ("2002:808:808::1", true),
    ("2002:7f00:1::1", false),
    ("2002:a9fe:a9fe::", false),
    ("2002:808:808::5efe:10.0.0.1", false),
    // Teredo: server 65.54.227.120; client 192.0.2.45, then 8.8.8.8, then 10.0.0.1, inverted.
    ("2001:0:4136:e378:8000:63bf:3fff:fdd2", false),
    ("2001:0:4136:e378:8000:63bf:f7f7:f7f7", true),
    ("2001:0:4136:e378:8000:63bf:f5ff:fffe", false),
    ("2001:0:a00:1:8000:63bf:f7f7:f7f7", false),
    // ISATAP under a global and a link-local prefix, universal bit clear and set.
    ("2606:4700::5efe:8.8.8.8", true),
    ("2606:4700::5efe:10.0.0.1", false),
    ("2606:4700::200:5efe:10.0.0.1", false),
    ("2606:4700::300:5efe:127.0.0.1", false),
    ("fe80::5efe:8.8.8.8", false),
    // Not ISATAP: another organisation's identifier.
    ("2606:4700::400:5efe:10.0.0.1", true),
    // NAT64, well-known prefix.
    ("64:ff9b::8.8.8.8", true),
    ("64:ff9b::10.0.0.1", false),
    ("64:ff9b::169.254.169.254", false),
    ("64:ff9b::1:808:808", false),
    // NAT64, local-use prefix, every length: /96, /48, /56, /64.
    ("64:ff9b:1::8.8.8.8", true),
    ("64:ff9b:1::10.0.0.1", false),
    ("64:ff9b:1:808:8:800::", true),
    ("64:ff9b:1:a00:0:100::", false),
    ("64:ff9b:1:a00:0:100:808:808", false),
    ("64:ff9b:1:a:0:1::", false),
    ("64:ff9b:1:0:a:0:100:0", false),
    ("64:ff9b:1::", false),
    ("64:ff9b:2::8.8.8.8", false),
];

#[test]
fn every_address_gets_its_verdict() {
    let policy = AddressPolicy::new(&[]);
    for (text, expected) in ADDRESSES {
        let address: IpAddr = text.parse().unwrap();
        let verdict = policy.check(address);
        assert_eq!(verdict.is_ok(), *expected, "{text}: {verdict:?}");
    }
}

#[test]
fn an_opened_range_opens_exactly_itself_and_where_it_is_embedded() {
    let policy = AddressPolicy::new(&[
        "10.1.0.0/16".parse().unwrap(),
        "fd00:1::/32".parse().unwrap(),
    ]);
    #[rustfmt::skip] // one row for each case
    let table = [
        ("10.1.0.1", true),
        ("10.2.0.1", false),
        ("127.0.0.1", false),
        ("::ffff:10.1.0.1", true),
        ("::ffff:10.2.0.1", false),
        ("64:ff9b::10.1.0.1", true),
        ("64:ff9b::10.2.0.1", false),
        ("2002:a01:1::", true),
        ("fd00:1::1", true),
        ("fd00:2::1", false),
        ("8.8.8.8", true),
    ];
    for (text, expected) in table {
        let verdict = policy.check(text.parse().unwrap());
        assert_eq!(verdict.is_ok(), expected, "{text}: {verdict:?}");
    }
}

#[test]
fn an_ipv6_range_that_is_opened_does_not_open_mapped_ipv4() {
    let policy = AddressPolicy::new(&["::/0".parse().unwrap()]);
    assert!(policy.check("::1".parse().unwrap()).is_ok());
    assert!(policy.check("::ffff:127.0.0.1".parse().unwrap()).is_err());
}

#[test]
fn an_opened_port_opens_no_address_and_an_opened_address_no_port() {
    let port = UrlPolicy::new(&FetchConfig {
        allow_ports: vec![9001],
        ..FetchConfig::default()
    });
    assert!(port.check("http://example.com:9001/").is_ok());
    assert!(port.check("http://127.0.0.1:9001/").is_err());
    let range = UrlPolicy::new(&FetchConfig {
        allow_cidrs: vec!["127.0.0.0/8".parse().unwrap()],
        ..FetchConfig::default()
    });
    assert!(range.check("http://127.0.0.1/").is_ok());
    assert_eq!(
        range.check("http://127.0.0.1:9001/"),
        Err(UrlRefusal::Port(9001))
    );
}

#[test]
fn a_name_is_refused_when_any_of_its_answers_is() {
    let policy = AddressPolicy::new(&[]);
    #[rustfmt::skip] // one row for each case
    let table: [(&[&str], Option<&str>); 7] = [
        (&["8.8.8.8"], None),
        (&["8.8.8.8", "2606:4700::1111"], None),
        (&["8.8.8.8", "10.0.0.1"], Some("address")),
        (&["10.0.0.1", "8.8.8.8"], Some("address")),
        (
            &["2606:4700::1111", "8.8.8.8", "::ffff:169.254.169.254"],
            Some("address"),
        ),
        (&["2606:4700::1111", "fe80::1"], Some("address")),
        (&[], Some("no address")),
    ];
    for (answers, expected) in table {
        let answers: Vec<IpAddr> = answers.iter().map(|text| text.parse().unwrap()).collect();
        let verdict = policy.check_all(&answers);
        assert_eq!(verdict.as_ref().err().map(rule), expected, "{answers:?}");
    }
}

#[test]
fn every_redirect_is_judged_anew() {
    let policy = default_policy();
    // From, Location, Ok(target) or Err(rule).
    #[rustfmt::skip] // one row for each case
    let table: [(&str, &str, Result<&str, &str>); 25] = [
        ("http://example.com/a/b", "c.png", Ok("http://example.com/a/c.png")),
        ("http://example.com/a/b", "/c.png", Ok("http://example.com/c.png")),
        ("http://example.com/a/b", "?q", Ok("http://example.com/a/b?q")),
        ("http://example.com/", "https://example.org/x", Ok("https://example.org/x")),
        ("https://example.com/", "//example.org/x", Ok("https://example.org/x")),
        ("http://example.com/", "//example.org/x@2x.png", Ok("http://example.org/x@2x.png")),
        ("https://example.com/", "http://example.com/", Err("downgrade")),
        ("http://example.com/", "http://127.0.0.1/", Err("address")),
        ("http://example.com/", "//127.0.0.1/", Err("address")),
        ("http://example.com/", "http://169.254.169.254/latest/meta-data/", Err("address")),
        ("https://example.com/", "https://[::ffff:a9fe:a9fe]/", Err("address")),
        ("http://example.com/", "http://2130706433/", Err("address")),
        ("http://example.com/", "http://[64:ff9b::7f00:1]/", Err("address")),
        ("http://example.com/", "///127.0.0.1/", Err("malformed")),
        ("http://example.com/", "file:///etc/passwd", Err("scheme")),
        ("http://example.com/", "data:image/png;base64,AAAA", Err("scheme")),
        ("http://example.com/", "ftp://example.com/", Err("scheme")),
        ("http://example.com/", "http://user@example.com/", Err("user info")),
        ("http://example.com/", "//user:word@example.com/", Err("user info")),
        ("http://example.com/", "http://example.com:22/", Err("port")),
        ("http://example.com/", "//example.com:6379/", Err("port")),
        ("http://example.com/", "\\\\127.0.0.1\\", Err("backslash")),
        ("http://example.com/", "/\t/127.0.0.1/", Err("control")),
        ("http://example.com/", "http://[::1", Err("malformed")),
        ("http://example.com/", "http://", Err("malformed")),
    ];
    for (from, location, expected) in table {
        let verdict = policy.check_redirect(&Url::parse(from).unwrap(), location);
        let verdict = verdict.as_ref().map(Url::as_str).map_err(rule);
        assert_eq!(verdict, expected, "{from} -> {location:?}");
    }
}

#[test]
fn a_logged_url_has_no_user_info_query_fragment_or_data() {
    let long = format!("http://example.com/{}", "a".repeat(4000));
    #[rustfmt::skip] // one row for each case
    let table = [
        ("https://u:p@example.com:8443/a.png?token=1#f", "https://example.com:8443/a.png"),
        ("http://example.com", "http://example.com/"),
        ("http://exa\nmple.com/x", "http://example.com/x"),
        ("data:image/png;base64,AAAA", "(data URL of 26 bytes)"),
        ("mailto:someone", "(no web URL, 14 bytes)"),
        ("secret words", "(no web URL, 12 bytes)"),
        (long.as_str(), "(URL of 4019 bytes)"),
    ];
    for (raw, expected) in table {
        assert_eq!(redacted(raw), expected, "{raw:?}");
    }
}

/// Lists every way to carry `v4` in IPv6 under prefixes that are public themselves.
fn embeddings(v4: Ipv4Addr) -> Vec<(&'static str, Ipv6Addr)> {
    let [a, b, c, d] = v4.octets();
    let high = u16::from_be_bytes([a, b]);
    let low = u16::from_be_bytes([c, d]);
    vec![
        ("mapped", v4.to_ipv6_mapped()),
        ("compatible", Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low)),
        ("6to4", Ipv6Addr::new(0x2002, high, low, 1, 0, 0, 0, 1)),
        (
            "Teredo client",
            Ipv6Addr::new(0x2001, 0, 0x4136, 0xe378, 0x8000, 0x63bf, !high, !low),
        ),
        (
            "Teredo server",
            Ipv6Addr::new(0x2001, 0, high, low, 0x8000, 0x63bf, 0xf7f7, 0xf7f7),
        ),
        (
            "ISATAP",
            Ipv6Addr::new(0x2606, 0x4700, 0, 1, 0, 0x5efe, high, low),
        ),
        (
            "ISATAP, universal",
            Ipv6Addr::new(0x2606, 0x4700, 0, 1, 0x200, 0x5efe, high, low),
        ),
        ("NAT64", Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low)),
        (
            "local NAT64",
            Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low),
        ),
    ]
}

proptest! {
    #[test]
    fn an_ipv4_address_gets_the_same_verdict_however_it_is_embedded(bits: u32) {
        let policy = AddressPolicy::new(&["10.0.0.0/9".parse().unwrap()]);
        let v4 = Ipv4Addr::from_bits(bits);
        let expected = policy.check(v4.into()).is_ok();
        for (kind, v6) in embeddings(v4) {
            prop_assert_eq!(policy.check(v6.into()).is_ok(), expected, "{} as {} {}", v4, kind, v6);
        }
    }

    #[test]
    fn local_nat64_hides_no_forbidden_address_at_any_prefix_length(
        bits in prop_oneof![Just(0x0a00_0001_u32), Just(0x7f00_0001), Just(0xa9fe_a9fe), Just(0xc0a8_0101)],
        filler: [u8; 16],
        at in prop_oneof![
            Just([6, 7, 9, 10]), Just([7, 9, 10, 11]), Just([9, 10, 11, 12]), Just([12, 13, 14, 15]),
        ],
    ) {
        let mut octets = filler;
        octets[..6].copy_from_slice(&[0, 0x64, 0xff, 0x9b, 0, 1]);
        for (index, octet) in at.into_iter().zip(bits.to_be_bytes()) {
            octets[index] = octet;
        }
        let policy = AddressPolicy::new(&[]);
        prop_assert!(policy.check(Ipv6Addr::from(octets).into()).is_err());
    }

    #[test]
    fn no_text_makes_the_policy_panic(text in ".*", location in ".*") {
        let policy = default_policy();
        let _ = policy.check(&text);
        let _ = policy.check(&format!("http://{text}/"));
        let _ = redacted(&text);
        let from = Url::parse("https://example.com/").unwrap();
        let _ = policy.check_redirect(&from, &location);
    }

    #[test]
    fn an_accepted_url_is_accepted_again_as_it_was_parsed(host in "[a-zA-Z0-9.%@:\\[\\]xX_-]{0,24}", path in "[ -~]{0,12}") {
        let policy = default_policy();
        if let Ok(url) = policy.check(&format!("http://{host}/{path}")) {
            prop_assert_eq!(policy.check(url.as_str()), Ok(url));
        }
    }
}
