//! Fetches from servers on loopback that break the rules of HTTP or of good manners.
//!
//! Time limits are short only where a test waits for them to pass. No test measures a time.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::server::{IMAGE, Server, Step, raw};

use imgclass_fetch::{BadAnswer, FetchConfig, FetchError, Fetcher, UnusableUrl, UrlRefusal};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

const MAX_BYTES: u64 = 1000;
const LONG: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);
const SHORT: Duration = Duration::from_millis(150);

/// A fetcher that may fetch from `server`, with limits that no test waits for unless `change`
/// lowers them.
fn fetcher_for(server: &Server, change: impl FnOnce(&mut FetchConfig)) -> Fetcher {
    let mut config = FetchConfig {
        connect_timeout: LONG,
        idle_timeout: LONG,
        total_timeout: LONG,
        max_bytes: MAX_BYTES,
        allow_cidrs: vec!["127.0.0.1/32".parse().unwrap()],
        allow_ports: vec![server.port],
        ..FetchConfig::default()
    };
    change(&mut config);
    Fetcher::new(config).unwrap()
}

/// Describes an outcome in words, for tables.
fn words(result: &Result<bytes::Bytes, FetchError>) -> String {
    match result {
        Ok(body) => format!("{} bytes", body.len()),
        Err(FetchError::Unusable(UnusableUrl::Refused(refusal))) => match refusal {
            UrlRefusal::Address { .. } => "refused address".to_owned(),
            UrlRefusal::Scheme(scheme) => format!("refused scheme {scheme}"),
            other => format!("refused: {other}"),
        },
        Err(FetchError::Unusable(UnusableUrl::Connect(_))) => "cannot connect".to_owned(),
        Err(FetchError::Unusable(UnusableUrl::NoAnswer(_))) => "no answer".to_owned(),
        Err(FetchError::Answer(BadAnswer::Broken(_))) => "broken".to_owned(),
        Err(FetchError::Answer(BadAnswer::Stalled { .. })) => "stalled".to_owned(),
        Err(FetchError::Answer(BadAnswer::TooSlow { .. })) => "too slow".to_owned(),
        Err(FetchError::Answer(answer)) => answer.to_string(),
        Err(FetchError::TooLarge { limit }) => format!("over {limit}"),
        Err(FetchError::Busy { .. }) => "busy".to_owned(),
        Err(other) => other.to_string(),
    }
}

/// Waits for `work`, but not for ever: a fault may be an endless wait.
async fn bounded<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, work)
        .await
        .expect("still waiting after a minute")
}

/// A script that sends a status line, the fields (each with its line end) and a body.
fn answer(status: &str, fields: &str, body: &str) -> Vec<Step> {
    raw(&format!("HTTP/1.1 {status}\r\n{fields}\r\n{body}"))
}

fn ok(fields: &str, body: &str) -> Vec<Step> {
    answer("200 OK", fields, body)
}

fn chunks(body: &str) -> Vec<Step> {
    ok("transfer-encoding: chunked\r\n", body)
}

fn redirect(status: u16, location: &str) -> Vec<Step> {
    answer(
        &format!("{status} Moved"),
        &format!("location: {location}\r\ncontent-length: 0\r\n"),
        "",
    )
}

fn then(mut steps: Vec<Step>, step: Step) -> Vec<Step> {
    steps.push(step);
    steps
}

const HINT: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n";

type Row = (&'static str, Vec<Step>, &'static str);

/// Fetches from a server for each row of `table`, and compares the outcome in words.
async fn judge(table: Vec<Row>) {
    for (name, steps, expected) in table {
        let server = Server::repeating(steps).await;
        let result = bounded(fetcher_for(&server, |_| ()).fetch(&server.url())).await;
        assert_eq!(words(&result), expected, "{name}: {result:?}");
    }
}

#[rustfmt::skip] // one row for each case
#[tokio::test]
async fn every_body_gives_its_bytes_or_its_error() {
    let x = Step::Endless(b"xxxxxxxxxxxxxxxx");
    let kilobyte = "x".repeat(1000);
    judge(vec![
        ("plain", ok("content-length: 5\r\n", "image"), "5 bytes"),
        ("exactly the limit", ok("content-length: 1000\r\n", &kilobyte), "1000 bytes"),
        ("chunked", chunks("2\r\nim\r\n3\r\nage\r\n0\r\n\r\n"), "5 bytes"),
        ("HTTP/1.0 up to the end", raw("HTTP/1.0 200 OK\r\n\r\nimage"), "5 bytes"),
        ("HTTP/1.1 up to the end", ok("connection: close\r\n", "image"), "5 bytes"),
        ("a lie about the type", ok("content-type: text/html\r\ncontent-length: 5\r\n", "image"), "5 bytes"),
        ("length too long", ok("content-length: 9\r\n", "image"), "broken"),
        ("length too short", ok("content-length: 2\r\n", "image"), "2 bytes"),
        ("length over the limit", ok("content-length: 1001\r\n", ""), "over 1000"),
        ("length of 4 EiB", ok("content-length: 4611686018427387904\r\n", ""), "over 1000"),
        ("length of 16 EiB", ok("content-length: 18446744073709551615\r\n", ""), "broken"),
        ("length beyond 64 bits", ok("content-length: 18446744073709551616\r\n", ""), "broken"),
        ("negative length", ok("content-length: -1\r\n", ""), "broken"),
        ("two lengths", ok("content-length: 5\r\ncontent-length: 6\r\n", "image!"), "broken"),
        ("no body", ok("content-length: 0\r\n", ""), "empty body"),
        ("no body up to the end", raw("HTTP/1.0 200 OK\r\n\r\n"), "empty body"),
        ("endless body", then(ok("", ""), x.clone()), "over 1000"),
        ("endless chunks", then(chunks(""), Step::Endless(b"4\r\nxxxx\r\n")), "over 1000"),
        ("chunk of 16 EiB", then(chunks("fffffffffffffff0\r\n"), x.clone()), "over 1000"),
        ("chunk beyond 64 bits", chunks("10000000000000000\r\nx"), "broken"),
        ("chunk that is no number", chunks("zz\r\nimage\r\n0\r\n\r\n"), "broken"),
        ("endless chunk extension", then(chunks("5;"), x), "broken"),
        ("endless trailers", then(chunks("5\r\nimage\r\n0\r\n"), Step::Endless(b"a: b\r\n")), "broken"),
        ("closed inside a chunk", chunks("9\r\nimage"), "broken"),
        ("closed between chunks", chunks("5\r\nimage\r\n"), "broken"),
        ("identity encoding", ok("content-encoding: Identity\r\ncontent-length: 5\r\n", "image"), "5 bytes"),
        ("non-authoritative", answer("203 Transformed", "content-length: 5\r\n", "image"), "5 bytes"),
        ("plain as S3 says it", ok("content-encoding: aws-chunked\r\ncontent-length: 5\r\n", "image"), "5 bytes"),
        ("a character set as encoding", ok("content-encoding: UTF-8\r\ncontent-length: 5\r\n", "image"), "5 bytes"),
        ("no encoding, in words", ok("content-encoding: none, binary\r\ncontent-length: 5\r\n", "image"), "5 bytes"),
        ("S3's word before a real one", ok("content-encoding: aws-chunked,gzip\r\n", ""), "content encoding \"aws-chunked,gzip\""),
        // Compressed: refused by its name, before a bomb could expand.
        ("gzip", ok("content-encoding: gzip\r\ncontent-length: 5\r\n", "image"), "content encoding \"gzip\""),
        ("brotli", ok("content-encoding: br\r\n", ""), "content encoding \"br\""),
        ("stacked", ok("content-encoding: identity, gzip\r\n", ""), "content encoding \"identity, gzip\""),
        ("second field", ok("content-encoding: identity\r\ncontent-encoding: zstd\r\n", ""), "content encoding \"zstd\""),
    ])
    .await;
}

#[rustfmt::skip] // one row for each case
#[tokio::test]
async fn every_head_is_understood_or_gives_its_error() {
    let found = "200 OK\r\ncontent-length: 5";
    judge(vec![
        ("early hints first", answer("103 Early Hints", "", &format!("HTTP/1.1 {found}\r\n\r\nimage")), "5 bytes"),
        ("a few interim answers", raw(&format!("{}HTTP/1.1 {found}\r\n\r\nimage", HINT.repeat(8))), "5 bytes"),
        ("one more", raw(&format!("{}HTTP/1.1 {found}\r\n\r\nimage", HINT.repeat(9))), "broken"),
        ("endless interim answers", vec![Step::Endless(HINT.as_bytes())], "broken"),
        ("closed at once", vec![], "broken"),
        ("closed inside the head", raw("HTTP/1.1 200 OK\r\ncontent-le"), "broken"),
        ("no HTTP", raw("220 mail.example ESMTP\r\n"), "broken"),
        ("HTTP/0.9", raw("<html>hello</html>"), "broken"),
        ("status of four digits", answer("2000 OK", "", ""), "broken"),
        ("NUL in a field", ok("a: b\0c\r\n", ""), "broken"),
        ("one endless field", then(raw("HTTP/1.1 200 OK\r\na: "), Step::Endless(b"xxxxxxxxxxxxxxxx")), "broken"),
        ("endless fields", then(raw("HTTP/1.1 200 OK\r\n"), Step::Endless(b"a: b\r\n")), "broken"),
        ("switching protocols", answer("101 Switching Protocols", "upgrade: x\r\nconnection: upgrade\r\n", ""), "status 101"),
        ("accepted", answer("202 Accepted", "", "image"), "status 202"),
        ("no content", answer("204 No Content", "", ""), "status 204"),
        ("partial", answer("206 Partial Content", "", "image"), "status 206"),
        ("choices", answer("300 Multiple Choices", "location: /\r\n", ""), "status 300"),
        ("not modified", answer("304 Not Modified", "", ""), "status 304"),
        ("unauthorised", answer("401 Unauthorized", "www-authenticate: Basic realm=x\r\n", ""), "status 401"),
        ("not found", answer("404 Not Found", "", "image"), "status 404"),
        ("proxy wants a password", answer("407 Proxy Authentication Required", "", ""), "status 407"),
        ("server error", answer("500 Internal Server Error", "", "image"), "status 500"),
        ("out of range", answer("999 Odd", "", ""), "status 999"),
    ])
    .await;
}

#[rustfmt::skip] // one row for each case
#[tokio::test]
async fn every_redirect_leads_nowhere_that_the_policy_forbids() {
    judge(vec![
        ("to itself", redirect(302, "/again"), "more than 5 redirects"),
        ("nowhere", answer("302 Found", "content-length: 0\r\n", ""), "redirect 302 without a readable Location"),
        ("to a file", redirect(302, "file:///etc/passwd"), "refused scheme file"),
        ("to data", redirect(302, "data:image/png;base64,AAAA"), "refused scheme data"),
        ("to another loopback address", redirect(302, "http://127.0.0.2:PORT/"), "refused address"),
        ("to loopback in disguise", redirect(307, "http://0x7f000002:PORT/"), "refused address"),
        ("to loopback as IPv6", redirect(308, "//[::1]:PORT/"), "refused address"),
        ("to another port", redirect(301, "http://localhost:1/"), "refused: port 1 is not open (--fetch-allow-port opens it)"),
        ("to user info", redirect(303, "http://user@127.0.0.1:PORT/"), "refused: user info in URL"),
        ("to a backslash", redirect(302, "\\\\127.0.0.1:PORT\\"), "refused: backslash in URL"),
    ])
    .await;
}

#[rustfmt::skip] // one row for each case
#[tokio::test]
async fn every_wait_ends_at_the_limit_that_governs_it() {
    type Change = fn(&mut FetchConfig);
    // A second is enough to connect and to read a head on a busy machine.
    let head: Change = |config| (config.connect_timeout, config.idle_timeout) = (SECOND, SHORT);
    let body: Change = |config| config.idle_timeout = SHORT;
    let total: Change = |config| config.total_timeout = SECOND;
    let table: Vec<(&str, Change, Vec<Step>, &str)> = vec![
        ("silence before the head", head, vec![Step::Silence], "no answer"),
        ("silence inside the head", head, then(raw("HTTP/1.1 200"), Step::Silence), "no answer"),
        ("a head in drips", head, then(raw("HTTP/1.1 200 OK\r\na: "), Step::Drip(b"x")), "no answer"),
        ("early hints now and then", head, vec![Step::Drip(b"HTTP/1.1 103 Early Hints\r\na: ")], "no answer"),
        ("silence before the body", body, then(ok("content-length: 5\r\n", ""), Step::Silence), "stalled"),
        ("silence inside the body", body, then(ok("content-length: 5\r\n", "im"), Step::Silence), "stalled"),
        ("a body in drips", total, then(ok("content-length: 900\r\n", ""), Step::Drip(b"x")), "too slow"),
        ("silence and a total limit", total, then(ok("", ""), Step::Silence), "too slow"),
        ("no head and a total limit", total, vec![Step::Silence], "no answer"),
    ];
    let cases = table.into_iter().map(|(name, change, steps, expected)| async move {
        let server = Server::repeating(steps).await;
        let result = bounded(fetcher_for(&server, change).fetch(&server.url())).await;
        assert_eq!(words(&result), expected, "{name}: {result:?}");
    });
    futures_util::future::join_all(cases).await;
}

const REDIRECT: &str =
    "HTTP/1.1 302 Found\r\nset-cookie: a=b\r\nlocation: /next?q#f\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn three_redirects_are_followed_and_a_fourth_is_not() {
    let hops = |count| [vec![raw(REDIRECT); count], vec![raw(IMAGE)]].concat();
    for (count, limit, expected) in [
        (0, 3, "5 bytes"),
        (3, 3, "5 bytes"),
        (4, 3, "more than 3 redirects"),
        (0, 0, "5 bytes"),
        (1, 0, "more than 0 redirects"),
    ] {
        let server = Server::start(hops(count)).await;
        let fetcher = fetcher_for(&server, |config| config.max_redirects = limit);
        let result = bounded(fetcher.fetch(&server.url())).await;
        assert_eq!(
            words(&result),
            expected,
            "{count} redirects, {limit} allowed"
        );
        assert_eq!(
            server.connections.load(Ordering::SeqCst),
            count.min(limit) + 1
        );
    }
}

#[tokio::test]
async fn a_request_tells_a_server_no_more_than_it_must() {
    let server = Server::start(vec![raw(REDIRECT), raw(IMAGE)]).await;
    bounded(fetcher_for(&server, |_| ()).fetch(&format!("{}?first#fragment", server.url())))
        .await
        .unwrap();
    let expected = |target: &str| {
        let agent = concat!("user-agent: imgclass/", env!("CARGO_PKG_VERSION"));
        let host = format!("host: 127.0.0.1:{}", server.port);
        let line = format!("GET {target} HTTP/1.1");
        let accepted = if cfg!(feature = "avif") {
            "accept: image/jpeg, image/png, image/webp, image/avif, image/gif, image/bmp, image/tiff, \
             */*;q=0.1"
        } else {
            "accept: image/jpeg, image/png, image/webp, image/gif, image/bmp, image/tiff, */*;q=0.1"
        };
        [&line, "accept-encoding: identity", accepted, &host, agent].map(str::to_owned)
    };
    let requests = server.requests.lock().unwrap();
    for (request, target) in requests.iter().zip(["/image.png?first", "/next?q"]) {
        let mut lines: Vec<&str> = request.trim_end().split("\r\n").collect();
        lines[1..].sort_unstable();
        assert_eq!(lines, expected(target));
    }
    assert_eq!(requests.len(), 2);
}

#[tokio::test]
async fn a_fetch_never_shares_a_connection_with_an_earlier_one() {
    // Two servers keep their connection open. One answers a second request on it; the other sends
    // the second answer without waiting for a request.
    let evil = Step::Send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil".to_owned());
    let patient = then(then(raw(IMAGE), Step::Silence), evil.clone());
    let hasty = then(then(raw(IMAGE), evil), Step::Silence);
    let broken = ok("content-length: 9\r\n", "image");
    let scripts = vec![patient, hasty, broken, raw("garbage"), raw(IMAGE)];
    let server = Server::start(scripts).await;
    let fetcher = fetcher_for(&server, |_| ());
    for expected in ["5 bytes", "5 bytes", "broken", "broken", "5 bytes"] {
        let result = bounded(fetcher.fetch(&server.url())).await;
        assert_eq!(words(&result), expected, "{result:?}");
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn a_server_that_speaks_no_tls_cannot_be_connected_to_by_https() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(IMAGE.as_bytes()).await;
        }
    });
    let config = FetchConfig {
        allow_cidrs: vec!["127.0.0.1/32".parse().unwrap()],
        allow_ports: vec![port],
        ..FetchConfig::default()
    };
    let fetcher = Fetcher::new(config).unwrap();
    let result = bounded(fetcher.fetch(&format!("https://127.0.0.1:{port}/"))).await;
    assert_eq!(words(&result), "cannot connect", "{result:?}");
}

#[tokio::test]
async fn a_fetch_without_a_slot_waits_for_one_before_it_connects() {
    let server = Server::start(vec![vec![Step::Silence], raw(IMAGE)]).await;
    let fetcher = Arc::new(fetcher_for(&server, |config| config.max_concurrent = 1));
    let url = server.url();
    let (holder, held) = (Arc::clone(&fetcher), url.clone());
    let holding = tokio::spawn(async move { holder.fetch(&held).await });
    bounded(async {
        while server.requests.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let waiting = tokio::time::timeout(SHORT, fetcher.fetch(&url));
    assert!(waiting.await.is_err());
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    // A fetch that is dropped gives its slot back.
    holding.abort();
    assert_eq!(
        words(&bounded(fetcher.fetch(&server.url())).await),
        "5 bytes"
    );
}

#[tokio::test]
async fn a_fetch_that_gets_no_slot_in_its_time_blames_our_load() {
    let server = Server::repeating(vec![Step::Silence]).await;
    let fetcher = fetcher_for(&server, |config| {
        config.max_concurrent = 1;
        config.total_timeout = SHORT;
    });
    let url = server.url();
    let results = bounded(futures_util::future::join_all(
        (0..4).map(|_| fetcher.fetch(&url)),
    ))
    .await;
    let outcomes: Vec<String> = results.iter().map(words).collect();
    assert_eq!(outcomes[0], "no answer");
    assert!(
        outcomes.iter().any(|outcome| outcome == "busy"),
        "{outcomes:?}"
    );
}

/// The test process runs itself again with proxies in the environment, because environment
/// variables belong to a whole process.
#[tokio::test]
async fn a_proxy_in_the_environment_is_ignored() {
    const CHILD: &str = "IMGCLASS_TEST_FETCHES_PAST_PROXY";
    if let Ok(url) = std::env::var(CHILD) {
        let address: SocketAddr = url["http://".len()..]
            .trim_end_matches("/image.png")
            .parse()
            .unwrap();
        let config = FetchConfig {
            allow_cidrs: vec!["127.0.0.1/32".parse().unwrap()],
            allow_ports: vec![address.port()],
            ..FetchConfig::default()
        };
        let body = bounded(Fetcher::new(config).unwrap().fetch(&url)).await;
        assert_eq!(body.unwrap(), "image");
        return;
    }
    let server = Server::repeating(raw(IMAGE)).await;
    let proxy = Server::repeating(raw("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nproxy")).await;
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", "hostile::a_proxy_in_the_environment_is_ignored"])
        .env(CHILD, server.url());
    for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        child.env(name, format!("http://127.0.0.1:{}", proxy.port));
    }
    child.env_remove("NO_PROXY").env_remove("no_proxy");
    let output = tokio::task::spawn_blocking(move || child.output())
        .await
        .unwrap()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    assert_eq!(proxy.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn bodies_hold_their_memory_until_they_are_dropped() {
    let large = ok("content-length: 1600000\r\n", &"x".repeat(1_600_000));
    let small = ok("content-length: 5\r\n", "image");
    let server = Server::start(vec![large.clone(), large, small]).await;
    let fetcher = fetcher_for(&server, |config| {
        config.max_bytes = 2_000_000;
        // One body, and what a second takes at its start.
        config.max_held_bytes = 1_600_000 + 1_100_000;
        config.idle_timeout = SECOND;
    });
    let fetch = async || bounded(fetcher.fetch(&server.url())).await;
    let first = fetch().await.unwrap();
    let copy = first.clone();
    drop(first);
    let second = fetch().await;
    assert!(matches!(second, Err(FetchError::MemoryFull)), "{second:?}");
    assert_eq!(words(&fetch().await), "5 bytes", "a small one still fits");
    drop(copy);
    assert_eq!(words(&fetch().await), "5 bytes");
}

#[tokio::test]
async fn a_newline_behind_a_url_is_ignored_and_the_user_agent_can_be_chosen() {
    let server = Server::repeating(raw(IMAGE)).await;
    let agent = "example/1.0 (mail@example.com)";
    let fetcher = fetcher_for(&server, |config| config.user_agent = agent.to_owned());
    let url = format!("{} \r\n", server.url());
    assert_eq!(words(&bounded(fetcher.fetch(&url)).await), "5 bytes");
    let request = server.requests.lock().unwrap()[0].clone();
    let line = format!("user-agent: {agent}\r\n");
    assert!(request.contains(&line), "{request}");
    let inside = server.url().replace("image", "im\nage");
    let result = bounded(fetcher.fetch(&inside)).await;
    assert!(words(&result).contains("control character"), "{result:?}");
}
