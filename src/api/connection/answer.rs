//! Requests and answers in the activity of their connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use poem::Response;
use poem::http::{self, Version};
use tokio::time::Instant;

use super::crowd::Crowd;
use super::{Shared, Unread, until};
use crate::api::context::AnswerMemory;

/// How much of an answer is handed to the connection at one time.
pub(super) const PIECE: usize = 16 * 1024;

/// How many bytes of answers may wait for one client. While more wait, its further requests wait
/// too.
const MAX_UNSENT: u64 = 256 * 1024;

/// Counts a request in the activity until it has its answer.
pub(super) struct Busy {
    activity: Shared,
    crowd: Crowd,
    is_too_much: bool,
}

impl Busy {
    /// Counts one more request.
    pub(super) fn new(activity: Shared, version: Version, crowd: Crowd) -> Self {
        let mut requests = 0;
        activity.send_modify(|now| {
            now.requests += 1;
            requests = now.requests;
            now.in_head = false;
            now.multiplexed = version == Version::HTTP_2;
        });
        Self {
            activity,
            is_too_much: !crowd.join(requests),
            crowd,
        }
    }

    /// Returns whether the connection has more requests than its share.
    pub(super) const fn is_too_much(&self) -> bool {
        self.is_too_much
    }

    /// Waits until the client has read enough of its earlier answers.
    pub(super) async fn wait_for_the_client(&self) {
        if self.activity.borrow().unsent() > MAX_UNSENT {
            until(&mut self.activity.subscribe(), |now| {
                now.unsent() <= MAX_UNSENT
            })
            .await;
        }
    }

    /// Makes an answer whose way to the client is watched.
    pub(super) fn answered(
        self,
        response: Response,
    ) -> http::Response<Unsent<impl Body<Data = Bytes, Error = io::Error> + Unpin + 'static>> {
        let mut response = response;
        let memory = response.extensions_mut().remove::<AnswerMemory>();
        let (parts, body) = http::Response::from(response).into_parts();
        let bytes = match memory {
            Some(_) => body.size_hint().lower(),
            None => 0,
        };
        let mut answer = 0;
        self.activity.send_modify(|now| {
            answer = now.next_answer;
            now.next_answer += 1;
            let since = Instant::now();
            now.answers.push(Unread {
                answer,
                since,
                bytes,
            });
        });
        let unsent = Unsent {
            body,
            piece: Bytes::new(),
            answer,
            activity: self.activity.clone(),
            _memory: memory,
        };
        http::Response::from_parts(parts, unsent)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut others = 0;
        self.activity.send_modify(|now| {
            now.requests = now.requests.saturating_sub(1);
            others = now.requests;
            now.since = Instant::now();
        });
        self.crowd.leave(others);
    }
}

/// The body of an answer, which leaves piece by piece.
///
/// The connection takes a piece when the one before it has left, or nearly so, because the client
/// has opened its window on HTTP/2 and because the socket has taken it on HTTP/1. So a piece that is
/// taken is progress.
pub(super) struct Unsent<B> {
    body: B,
    /// What is left of the last part of the body.
    piece: Bytes,
    answer: u64,
    activity: Shared,
    _memory: Option<AnswerMemory>,
}

impl<B: Body<Data = Bytes, Error = io::Error> + Unpin> Body for Unsent<B> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.piece.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.piece = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return Poll::Ready(other),
            }
        }
        let length = self.piece.len().min(PIECE);
        let piece = self.piece.split_to(length);
        let answer = self.answer;
        self.activity.send_if_modified(|now| {
            let unread = now
                .answers
                .iter_mut()
                .find(|unread| unread.answer == answer);
            if let Some(unread) = unread {
                unread.since = Instant::now();
                unread.bytes = unread.bytes.saturating_sub(length as u64);
            }
            // Requests may wait for this.
            now.requests > 0
        });
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.piece.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, piece) = (self.body.size_hint(), self.piece.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + piece);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + piece);
        }
        hint
    }
}

impl<B> Drop for Unsent<B> {
    fn drop(&mut self) {
        let answer = self.answer;
        self.activity.send_modify(|now| {
            now.answers.retain(|unread| unread.answer != answer);
            now.since = Instant::now();
        });
    }
}
