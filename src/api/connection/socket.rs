//! The socket of a connection, which tells the activity what passes through it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::{LAST_BYTES, Shared};

/// The socket of a connection. It records in the activity what passes through it, and it closes in
/// such a way that the last answer arrives.
pub(super) struct Watched {
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
    /// Watches an open socket.
    pub(super) fn new(stream: TcpStream, activity: Shared) -> Self {
        Self {
            stream,
            activity,
            closing: Closing::No,
        }
    }

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

    /// Records that bytes of an answer were written. On HTTP/2 bytes need not be of an answer.
    fn wrote(&self, progress: &Poll<io::Result<usize>>) {
        if matches!(progress, Poll::Ready(Ok(1..))) {
            self.activity.send_if_modified(|now| {
                if !now.in_head && !now.multiplexed {
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
