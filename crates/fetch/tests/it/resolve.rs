//! Fetches by name through an injected resolver, and what a caller is told.
//!
//! The resolver returns only loopback addresses, including forbidden ones, so that a fault dials no
//! real machine.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use imgclass_fetch::{
    BadAnswer, FetchConfig, FetchError, Fetcher, Resolve, SetupError, UnusableUrl, UrlRefusal,
};
use tokio::net::TcpListener;

use crate::server::{IMAGE, Server, raw};

/// A resolver that answers each look-up with the next entry, whatever the name. The last entry
/// stays.
struct Scripted {
    answers: Mutex<VecDeque<Vec<IpAddr>>>,
    asked: AtomicUsize,
}

impl Scripted {
    fn new(answers: &[&[&str]]) -> Arc<Self> {
        let parse = |answer: &&[&str]| answer.iter().map(|text| text.parse().unwrap()).collect();
        Arc::new(Self {
            answers: Mutex::new(answers.iter().map(parse).collect()),
            asked: AtomicUsize::new(0),
        })
    }
}

impl Resolve for Scripted {
    fn resolve<'a>(&'a self, _name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let mut answers = self.answers.lock().unwrap();
            let next = if answers.len() > 1 {
                answers.pop_front()
            } else {
                answers.front().cloned()
            };
            next.ok_or_else(|| io::Error::other("no such name"))
        })
    }
}

/// A fetcher for which only 127.0.0.1 is open, so that 127.0.0.2 is a forbidden address that a
/// fault may dial without harm.
fn only_localhost(port: u16, resolver: Arc<Scripted>) -> Fetcher {
    let config = FetchConfig {
        allow_cidrs: vec!["127.0.0.1/32".parse().unwrap()],
        allow_ports: vec![port],
        connect_timeout: Duration::from_secs(10),
        ..FetchConfig::default()
    };
    Fetcher::with_resolver(config, resolver).unwrap()
}

fn is_refused_address(result: Result<bytes::Bytes, FetchError>) -> bool {
    matches!(
        result,
        Err(FetchError::Unusable(UnusableUrl::Refused(
            UrlRefusal::Address { .. }
        )))
    )
}

#[tokio::test]
async fn a_name_that_resolves_to_vetted_addresses_is_fetched() {
    let server = Server::repeating(raw(IMAGE)).await;
    let port = server.port;
    let resolver = Scripted::new(&[&["127.0.0.1"]]);
    let fetcher = only_localhost(port, Arc::clone(&resolver));
    let body = fetcher
        .fetch(&format!("http://images.example:{port}/a.png"))
        .await;
    assert_eq!(body.unwrap(), "image");
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    assert_eq!(
        resolver.asked.load(Ordering::Relaxed),
        1,
        "vetted and dialled from one answer"
    );
}

#[tokio::test]
async fn a_name_with_one_forbidden_answer_is_never_dialled() {
    let server = Server::repeating(raw(IMAGE)).await;
    let port = server.port;
    for answers in [
        &["127.0.0.1", "127.0.0.2"],
        &["127.0.0.2", "127.0.0.1"],
        &["127.0.0.1", "::1"],
    ] {
        let fetcher = only_localhost(port, Scripted::new(&[answers]));
        let result = fetcher
            .fetch(&format!("http://mixed.example:{port}/"))
            .await;
        assert!(is_refused_address(result), "{answers:?}");
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_name_that_changes_its_answer_is_judged_at_every_fetch() {
    let server = Server::repeating(raw(IMAGE)).await;
    let port = server.port;
    let resolver = Scripted::new(&[&["127.0.0.1"], &["127.0.0.2"], &["127.0.0.1"]]);
    let fetcher = only_localhost(port, Arc::clone(&resolver));
    let url = format!("http://rebinding.example:{port}/");
    assert!(fetcher.fetch(&url).await.is_ok());
    assert!(is_refused_address(fetcher.fetch(&url).await));
    assert!(fetcher.fetch(&url).await.is_ok());
    assert_eq!(server.connections.load(Ordering::SeqCst), 2);
    assert_eq!(resolver.asked.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_name_that_changes_its_answer_between_redirects_is_refused() {
    let redirect = "HTTP/1.1 302 Found\r\nlocation: http://rebinding.example:PORT/next\r\n\
                    content-length: 0\r\n\r\n";
    let server = Server::repeating(raw(redirect)).await;
    let port = server.port;
    let fetcher = only_localhost(port, Scripted::new(&[&["127.0.0.1"], &["127.0.0.2"]]));
    let result = fetcher
        .fetch(&format!("http://rebinding.example:{port}/"))
        .await;
    assert!(is_refused_address(result));
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_systems_own_names_for_this_machine_are_refused() {
    let server = Server::repeating(raw(IMAGE)).await;
    let port = server.port;
    let config = FetchConfig {
        allow_ports: vec![port],
        ..FetchConfig::default()
    };
    let fetcher = Fetcher::new(config).unwrap();
    // A dot at the end would ask a name server instead of the machine's own table.
    for host in ["localhost", "LOCALHOST"] {
        let result = fetcher.fetch(&format!("http://{host}:{port}/")).await;
        assert!(
            matches!(result, Err(FetchError::Unusable(_))),
            "{host}: {result:?}"
        );
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn whatever_fails_before_a_connection_gives_one_and_the_same_text() {
    // Binding the port proves that nobody else listens on it; it is closed again at once.
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let urls = [
        "nonsense".to_owned(),
        "ftp://example.com/".to_owned(),
        "http://user@example.com/".to_owned(),
        "http://example.com:22/".to_owned(),
        "http://127.0.0.2/".to_owned(),
        format!("http://unknown.example:{closed}/"),
        format!("http://127.0.0.1:{closed}/"),
    ];
    let fetcher = only_localhost(closed, Scripted::new(&[]));
    let mut texts = Vec::new();
    for url in &urls {
        let error = fetcher.fetch(url).await.unwrap_err();
        assert!(matches!(error, FetchError::Unusable(_)), "{url}: {error}");
        texts.push(error.public_message());
    }
    let internal = only_localhost(closed, Scripted::new(&[&["127.0.0.2"]]));
    let error = internal
        .fetch(&format!("http://internal.example:{closed}/"))
        .await
        .unwrap_err();
    texts.push(error.public_message());
    texts.dedup();
    assert_eq!(texts.len(), 1, "{texts:?}");
}

#[test]
fn a_fetcher_without_slots_is_refused() {
    for slots in [0, usize::MAX] {
        let config = FetchConfig {
            max_concurrent: slots,
            ..FetchConfig::default()
        };
        assert!(
            matches!(Fetcher::new(config), Err(SetupError::Concurrency(refused)) if refused == slots)
        );
    }
}

#[test]
fn what_a_caller_is_told_repeats_nothing_that_a_server_or_a_network_chose() {
    let errors = [
        FetchError::Unusable(UnusableUrl::Connect("SECRET".to_owned())),
        FetchError::Unusable(UnusableUrl::Refused(UrlRefusal::Scheme(
            "SECRET".to_owned(),
        ))),
        FetchError::Answer(BadAnswer::ContentEncoding("SECRET".to_owned())),
        FetchError::Answer(BadAnswer::Broken("SECRET".to_owned())),
    ];
    for error in errors {
        assert!(error.to_string().contains("SECRET"));
        assert!(!error.public_message().contains("SECRET"));
    }
    let status = FetchError::Answer(BadAnswer::Status(404));
    assert_eq!(
        status.public_message(),
        "the image server answered with status 404"
    );
}
