//! One connection: HTTP/1.1 or HTTP/2 over a socket, watched for clients that send their heads slowly, stay without a request, or do not
//! read their answers. It knows nothing of routes.

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

/// Requests on one HTTP/2 connection at one time.
const MAX_STREAMS: u32 = 64;

/// Bytes of a request's head: more than any client of ours needs, and what common proxies allow.
const MAX_HEAD: u32 = 16 * 1024;

/// Streams that a client may open and reset at once before it is taken for an attack (CVE-2023-44487).
const MAX_RESET_STREAMS: usize = 20;

/// How long a connection that was told to end may take over its last bytes.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// While the server stops: how long a connection without a request is kept for one that may be on its way. Closing at once would reset
/// requests that were sent before their client could know.
const LINGER: Duration = Duration::from_millis(300);

/// What a connection does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Activity {
    /// Requests that have no answer yet.
    requests: usize,
    /// When the state below began, or something was last written.
    since: Instant,
    /// A request's head has begun and not ended.
    in_head: bool,
    /// HTTP/2, where bytes between requests need not be a head.
    multiplexed: bool,
}

impl Activity {
    /// A connection begins as if in a head: whoever connects is expected to speak.
    fn new() -> Self {
        Self {
            requests: 0,
            since: Instant::now(),
            in_head: true,
            multiplexed: false,
        }
    }

    /// When the connection has been in its state for too long; requests have time limits of their own.
    fn deadline(&self, limits: &ConnectionLimits) -> Option<Instant> {
        let patience = match self {
            Self { requests: 1.., .. } => return None,
            Self { in_head: true, .. } => limits.header_timeout,
            Self { in_head: false, .. } => limits.keep_alive_timeout,
        };
        Some(self.since + patience)
    }
}

/// Shared by the socket, the requests and the watch.
type Shared = Arc<watch::Sender<Activity>>;

/// Serves a connection to its end. When `stopping` turns true, what was begun is finished and the connection closes.
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
            // From here, not from the first poll: between the two the connection must not look idle.
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
        // An error here is the client's: a broken request, or a connection that it closed.
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

/// Both ends, as the framework names them.
fn addresses(stream: &TcpStream, peer: SocketAddr) -> (LocalAddr, RemoteAddr) {
    let local = stream.local_addr().map_or_else(
        |_| LocalAddr::default(),
        |address| LocalAddr(Addr::SocketAddr(address)),
    );
    (local, RemoteAddr(Addr::SocketAddr(peer)))
}

/// A stopping server waits for answers, and no longer than this for anything else.
const STOPPING: ConnectionLimits = ConnectionLimits {
    max_connections: 0,
    header_timeout: LAST_BYTES,
    keep_alive_timeout: LAST_BYTES,
};

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Time limits are the watch's.
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

/// Resolves when the value is as asked for, or nobody can change it any more.
async fn until<T>(value: &mut watch::Receiver<T>, condition: impl FnMut(&T) -> bool) {
    let _ = value.wait_for(condition).await;
}

/// Resolves when the connection has been without progress for too long.
async fn too_long(changes: &mut watch::Receiver<Activity>, limits: &ConnectionLimits) {
    loop {
        let deadline = changes.borrow_and_update().deadline(limits);
        match deadline {
            Some(deadline) if deadline <= Instant::now() => return,
            Some(deadline) => {
                // Progress on answers moves the deadline without a notice: looked at again when it is due.
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

/// A request that has no answer yet.
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

/// The socket, telling what passes through it, and closing so that the last answer arrives.
struct Watched {
    stream: TcpStream,
    activity: Shared,
    closing: Closing,
}

/// How far the end has come.
enum Closing {
    No,
    /// Our side is closed.
    Sent,
    /// The client was still sending: what comes is thrown away until this time is up.
    Discarding(Pin<Box<Sleep>>),
}

impl Watched {
    /// Reads what a client sends on although it has its answer, as after a refusal of its body: a socket that is closed over unread bytes
    /// is reset, and the answer can be lost with it. Ends at once where nothing is unread.
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
