//! Serves one connection: HTTP/1.1 or HTTP/2 over a socket.
//!
//! The connection is watched for clients that send a request head slowly, stay without a request,
//! or do not read their answers. [`Watched`] records in an [`Activity`] what passes through the
//! socket, and [`too_long`] ends the connection when the activity has a deadline that passes.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use poem::http::uri::Scheme;
use poem::http::{self, Version};
use poem::web::{LocalAddr, RemoteAddr};
use poem::{Addr, Endpoint, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use crate::config::ConnectionLimits;

/// The most requests on one HTTP/2 connection at one time.
const MAX_STREAMS: u32 = 64;

/// The largest request head, in bytes: more than any client of this interface needs, and what
/// common proxies allow.
const MAX_HEAD: u32 = 16 * 1024;

/// How many streams a client may open and reset at once before its connection is closed as an
/// attack (CVE-2023-44487).
const MAX_RESET_STREAMS: usize = 20;

/// How long a connection that was told to end may take for its last bytes.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// How long a stopping server keeps a connection without a request, because one may be on its way.
/// Closing at once would reset requests that were sent before their client could know.
const LINGER: Duration = Duration::from_millis(300);

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Activity {
    /// How many requests have no answer yet.
    requests: usize,
    /// When the connection entered its state, or when something was last written.
    since: Instant,
    /// Says that a request head has begun and has not ended.
    in_head: bool,
    /// Says that the connection is HTTP/2, where bytes between requests need not be a head.
    multiplexed: bool,
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
        }
    }

    /// Returns when the connection will have been in its state for too long; `None` while it has
    /// requests, which have time limits of their own.
    fn deadline(&self, limits: &ConnectionLimits) -> Option<Instant> {
        let patience = match self {
            Self { requests: 1.., .. } => return None,
            Self { in_head: true, .. } => limits.header_timeout,
            Self { in_head: false, .. } => limits.keep_alive_timeout,
        };
        Some(self.since + patience)
    }
}

/// The activity of a connection, shared by its socket, its requests and the watch over them.
type Shared = Arc<watch::Sender<Activity>>;

/// Serves a connection to its end. When `stopping` becomes true, requests that have begun are
/// finished, and the connection closes.
pub(super) async fn serve<E>(
    stream: TcpStream,
    peer: SocketAddr,
    endpoint: Arc<E>,
    limits: ConnectionLimits,
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
        move |request: http::Request<Incoming>| {
            // Made here and not at the first poll, because the connection must not look idle in
            // between.
            let busy = Busy::new(activity.clone(), request.version());
            let endpoint = endpoint.clone();
            let request = (request, local.clone(), remote.clone(), Scheme::HTTP).into();
            async move {
                let response = endpoint.get_response(request).await;
                drop(busy);
                Ok::<_, std::convert::Infallible>(http::Response::from(response))
            }
        }
    });
    let socket = TokioIo::new(Watched {
        stream,
        activity: activity.clone(),
        closing: Closing::No,
    });
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

/// Counts a request in the activity until it has its answer.
struct Busy(Shared);

impl Busy {
    fn new(activity: Shared, version: Version) -> Self {
        activity.send_modify(|now| {
            now.requests += 1;
            now.in_head = false;
            now.multiplexed = version == Version::HTTP_2;
        });
        Self(activity)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.send_modify(|now| {
            now.requests = now.requests.saturating_sub(1);
            now.since = Instant::now();
        });
    }
}

/// The socket of a connection. It records in the activity what passes through it, and it closes in
/// such a way that the last answer arrives.
struct Watched {
    stream: TcpStream,
    activity: Shared,
    closing: Closing,
}

/// How far the closing of a socket has come.
enum Closing {
    /// The socket is open.
    No,
    /// Our side is closed.
    Sent,
    /// Our side is closed and the client was still sending; what comes is thrown away until this
    /// time is up.
    Discarding(Pin<Box<Sleep>>),
}

impl Watched {
    /// Reads and discards what a client still sends although it has its answer, for example after
    /// its body was refused. Ends at once where nothing is unread.
    ///
    /// A socket that is closed with unread bytes is reset, and the client can lose the answer by
    /// that.
    fn discard(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut unread = [0; 16 * 1024];
        loop {
            if let Closing::Discarding(time) = &mut self.closing
                && time.as_mut().poll(context).is_ready()
            {
                return Poll::Ready(());
            }
            let mut buffer = ReadBuf::new(&mut unread);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    if matches!(self.closing, Closing::Sent) {
                        let time = Box::pin(tokio::time::sleep(LAST_BYTES));
                        self.closing = Closing::Discarding(time);
                    }
                }
                // The client has closed its side too, in one way or another.
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending if matches!(self.closing, Closing::Sent) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Records that bytes of an answer were written.
    fn wrote(&self, progress: &Poll<io::Result<usize>>) {
        if matches!(progress, Poll::Ready(Ok(1..))) {
            self.activity.send_if_modified(|now| {
                if !now.in_head {
                    now.since = Instant::now();
                }
                false
            });
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.activity.send_if_modified(|now| {
                let begins = now.requests == 0 && !now.in_head && !now.multiplexed;
                if begins {
                    now.in_head = true;
                    now.since = Instant::now();
                }
                begins
            });
        }
        outcome
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(&progress);
        progress
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if matches!(self.closing, Closing::No) {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            self.closing = Closing::Sent;
        }
        self.discard(context).map(Ok)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.wrote(&progress);
        progress
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
