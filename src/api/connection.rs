//! Serves one connection: HTTP/1.1 or HTTP/2 over a socket.
//!
//! The connection is watched for clients that send a request head slowly, stay without a request,
//! or do not read their answers. [`Watched`] records in an [`Activity`] what passes through the
//! socket, [`answer::Unsent`] what becomes of each answer, and [`too_long`] ends the connection when the
//! activity has a deadline that passes.
//!
//! On HTTP/2 a client can keep a connection busy with PINGs and settings and take no byte of its
//! answers. So only data that leave count as progress, for each answer by itself.

mod answer;
mod crowd;
mod socket;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use poem::http::uri::{Authority, Scheme};
use poem::http::{self, HeaderMap, Version, header};
use poem::web::{LocalAddr, RemoteAddr};
use poem::{Addr, Endpoint, Request, Response};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::context::RefusedHead;
use crate::config::ConnectionLimits;
use answer::{Busy, PIECE};
pub(super) use crowd::Crowd;
use socket::Watched;

/// The most requests on one HTTP/2 connection at one time.
const MAX_STREAMS: u32 = 64;

/// The largest request head, in bytes: more than any client of this interface needs, and what
/// common proxies allow.
const MAX_HEAD: u32 = 16 * 1024;

/// The most fields of a request's head; the HTTP library has the same limit for HTTP/1.1. In memory a
/// field takes a hundred bytes, however short it is.
const MAX_FIELDS: usize = 100;

/// How many streams a client may open and reset at once before its connection is closed as an
/// attack (CVE-2023-44487).
const MAX_RESET_STREAMS: usize = 20;

/// How many bytes of request bodies a client may send ahead on one HTTP/2 stream and on one HTTP/2
/// connection. Bodies are read as they come, so this bounds the rate on links with a long delay: to
/// 2.5 MB/s for a stream at 100 ms.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 512 * 1024;

/// How long a connection that was told to end may take for its last bytes.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// How long a stopping server keeps a connection without a request, because one may be on its way.
/// Closing at once would reset requests that were sent before their client could know.
const LINGER: Duration = Duration::from_millis(300);

/// What a connection is doing.
#[derive(Debug)]
struct Activity {
    /// How many requests have no answer yet.
    requests: usize,
    /// When the connection entered its state, or when something was last written.
    since: Instant,
    /// Says that a request head has begun and has not ended.
    in_head: bool,
    /// Says that the connection is HTTP/2, where bytes between requests need not be a head.
    multiplexed: bool,
    /// The answers that have begun and have not left as a whole.
    answers: Vec<Unread>,
    /// The number of the next answer.
    next_answer: u64,
}

/// What the client has still to read of one answer.
#[derive(Debug)]
struct Unread {
    answer: u64,
    /// When a piece of it last left.
    since: Instant,
    /// How many bytes wait in memory.
    bytes: u64,
}

impl Activity {
    /// Returns the activity of a new connection. It begins as if in a request head, because a
    /// client that connects is expected to send one.
    fn new() -> Self {
        Self {
            requests: 0,
            since: Instant::now(),
            in_head: true,
            multiplexed: false,
            answers: Vec::new(),
            next_answer: 0,
        }
    }

    /// Returns when the connection will have been in its state for too long; `None` while it has
    /// only requests, which have time limits of their own.
    fn deadline(&self, limits: &ConnectionLimits) -> Option<Instant> {
        let oldest = self.answers.iter().map(|unread| unread.since).min();
        if let Some(since) = oldest {
            return Some(since + limits.header_timeout);
        }
        let patience = match self {
            Self { requests: 1.., .. } => return None,
            Self { in_head: true, .. } => limits.header_timeout,
            Self { in_head: false, .. } => limits.keep_alive_timeout,
        };
        Some(self.since + patience)
    }

    /// Returns how many bytes of answers wait for the client.
    fn unsent(&self) -> u64 {
        self.answers.iter().map(|unread| unread.bytes).sum()
    }
}

/// The activity of a connection, shared by its socket, its requests and the watch over them.
type Shared = Arc<watch::Sender<Activity>>;

/// What makes an answer. It is in a box, which is gone before the answer has left: the HTTP library
/// keeps the place of this future until then.
type Answering<B> =
    Pin<Box<dyn Future<Output = Result<http::Response<B>, std::convert::Infallible>> + Send>>;

/// Serves a connection to its end. When `stopping` becomes true, requests that have begun are
/// finished, and the connection closes.
pub(super) async fn serve<E>(
    stream: TcpStream,
    peer: SocketAddr,
    endpoint: Arc<E>,
    limits: ConnectionLimits,
    crowd: Crowd,
    mut stopping: watch::Receiver<bool>,
) where
    E: Endpoint<Output = Response> + 'static,
{
    // Answers are small: waiting to fill a packet would only delay them.
    let _ = stream.set_nodelay(true);
    let (local, remote) = addresses(&stream, peer);
    let (activity, mut changes) = watch::channel(Activity::new());
    let activity: Shared = Arc::new(activity);
    let service = hyper::service::service_fn({
        let activity = activity.clone();
        move |request: http::Request<Incoming>| -> Answering<_> {
            // Made here and not at the first poll, because the connection must not look idle in
            // between.
            let busy = Busy::new(activity.clone(), request.version(), crowd.clone());
            if busy.is_too_much() {
                let refusal = crowd.refusal();
                return Box::pin(async move { Ok(busy.answered(refusal)) });
            }
            let endpoint = endpoint.clone();
            let refused = refused_head(request.headers(), request.version());
            let mut request: Request =
                (request, local.clone(), remote.clone(), Scheme::HTTP).into();
            if let Some(refused) = refused {
                // The fields are not kept while the refusal is on its way.
                request.headers_mut().clear();
                request.set_data(refused);
            }
            Box::pin(async move {
                // A client may send many requests at once whose answers wait for nothing: others have
                // their turn between them.
                tokio::task::yield_now().await;
                busy.wait_for_the_client().await;
                let response = endpoint.get_response(request).await;
                Ok(busy.answered(response))
            })
        }
    });
    let socket = TokioIo::new(Watched::new(stream, activity.clone()));
    let builder = builder();
    let connection = builder.serve_connection(socket, service);
    tokio::pin!(connection);

    tokio::select! {
        // An error here is caused by the client: a broken request, or a connection that it closed.
        _ = connection.as_mut() => return,
        () = too_long(&mut changes, &limits) => {
            connection.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(LAST_BYTES, connection).await;
            return;
        }
        () = until(&mut stopping, |stopping| *stopping) => {}
    }
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = tokio::time::timeout(LINGER, until(&mut changes, |now| now.requests > 0)) => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        _ = connection.as_mut() => {}
        () = too_long(&mut changes, &STOPPING) => {}
    }
}

/// Returns both ends of a connection, in the framework's types.
fn addresses(stream: &TcpStream, peer: SocketAddr) -> (LocalAddr, RemoteAddr) {
    let local = stream.local_addr().map_or_else(
        |_| LocalAddr::default(),
        |address| LocalAddr(Addr::SocketAddr(address)),
    );
    (local, RemoteAddr(Addr::SocketAddr(peer)))
}

/// The limits of a stopping server: it waits for answers, and no longer than this for anything
/// else.
const STOPPING: ConnectionLimits = ConnectionLimits {
    max_connections: 0,
    header_timeout: LAST_BYTES,
    keep_alive_timeout: LAST_BYTES,
};

/// Returns the HTTP implementation with its limits.
fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // The watch has the time limits.
    builder
        .http1()
        .header_read_timeout(None)
        .max_buf_size(2 * MAX_HEAD as usize);
    builder
        .http2()
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(PIECE)
        .max_header_list_size(MAX_HEAD)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS);
    builder
}

/// Waits until the value fulfils the condition, or until nobody can change it any more.
async fn until<T>(value: &mut watch::Receiver<T>, condition: impl FnMut(&T) -> bool) {
    let _ = value.wait_for(condition).await;
}

/// Waits until the connection has been without progress for too long.
async fn too_long(changes: &mut watch::Receiver<Activity>, limits: &ConnectionLimits) {
    loop {
        let deadline = changes.borrow_and_update().deadline(limits);
        match deadline {
            Some(deadline) if deadline <= Instant::now() => return,
            Some(deadline) => {
                // Progress on an answer moves the deadline without a notice, so the deadline is
                // read again when it has come.
                let _ = tokio::time::timeout_at(deadline, changes.changed()).await;
            }
            None => {
                // An error means that nobody holds the other side, and the connection has ended.
                if changes.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Judges a request's head: the number of its fields, and its `Host` by RFC 9112, section 3.2, which
/// is one that is an authority, or empty, and none only in HTTP/1.0 and in HTTP/2, where the target
/// may have the authority.
pub(super) fn refused_head(headers: &HeaderMap, version: Version) -> Option<RefusedHead> {
    if headers.len() > MAX_FIELDS {
        return Some(RefusedHead::TooManyFields(MAX_FIELDS));
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if version == Version::HTTP_11 => Some(RefusedHead::NoHost),
        (None, _) => None,
        (Some(_), Some(_)) => Some(RefusedHead::SeveralHosts),
        (Some(host), None) => {
            let text = host.to_str().unwrap_or("@");
            let is_host = |authority: Authority| {
                let port = authority.as_str().strip_prefix(authority.host());
                let port = port.and_then(|port| port.strip_prefix(':').or(Some(port)));
                // Without digits it is the usual one.
                port.is_some_and(|port| port.is_empty() || port.parse::<u16>().is_ok())
            };
            let fits = text.is_empty() || text.parse().is_ok_and(is_host);
            (!fits).then_some(RefusedHead::MalformedHost)
        }
    }
}
