//! Reads request bodies within their limits; [`JsonBody`] parses them as JSON.
//!
//! The `Content-Type` of a JSON body does not matter, so that plain `curl -d`, which calls its body a
//! form, works.

use std::io::{self, Write};
use std::ops::Deref;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use flate2::write::{DeflateDecoder, GzDecoder, ZlibDecoder};
use futures_util::StreamExt;
use poem::http::{HeaderMap, HeaderValue, StatusCode, header};
use poem::{Body, Request, RequestBody};
use poem_openapi::payload::{Json, Payload};
use poem_openapi::registry::{MetaMediaType, MetaRequest, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::context::BodyMemory;
use super::json;
use super::problem::{Failure, RETRY_AFTER};
use super::state::{ApiState, BODY_UNIT, state_of};
use crate::lane::Place;

/// Extracts a JSON body from a request.
pub(super) struct JsonBody<T>(pub(super) T);

impl<'a, T: Type + DeserializeOwned> ApiExtractor<'a> for JsonBody<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        Some(MetaRequest {
            description: None,
            content: vec![MetaMediaType {
                content_type: Json::<T>::CONTENT_TYPE,
                schema: T::schema_ref(),
            }],
            required: true,
        })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let body = read(request, body).await?;
        let read = body.parse(|bytes| json::read_object(&bytes, "a JSON object"));
        Ok(Self(read.await.map_err(Failure::from)?))
    }
}

/// The body of a request, as a whole.
pub(super) struct Whole {
    bytes: Bytes,
    place: Place,
}

impl Whole {
    /// Returns the bytes of a body that is no work to read.
    pub(super) fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// Reads the bytes by `read`. For a large body that is done in a [lane](crate::lane).
    pub(super) async fn parse<T>(self, read: impl FnOnce(Bytes) -> T) -> T {
        let Self { bytes, mut place } = self;
        place.widen(bytes.len()).await;
        place.work(|| read(bytes))
    }
}

impl Deref for Whole {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// How many parts the time for a body has. A body that comes too slowly in one of them is refused
/// at its end, so that a client which only announces a body, or stops within it, is found out early.
const PARTS: u32 = 6;

/// The least number of bytes in each part of the time.
const LEAST: usize = 1024;

/// What has arrived, divided by this, must arrive again in each part of the time: who holds much
/// memory must be quick. It is less than half the pace of a body that comes evenly and just in time.
const LEAST_SHARE: usize = 16;

/// How much of an encoded body is undone at one time, in bytes. It becomes a megabyte at most.
const ENCODED_PIECE: usize = 1024;

/// After how many bytes, before or after the encoding is undone, others have their turn.
const TURN: usize = 64 * 1024;

/// The most members of a gzip file, which has one or, with the tools of genomics, one for each
/// 64 KiB. They may be empty, so that a body could have a million of them.
const MAX_MEMBERS: usize = 1024;

/// Reads a request's whole body and undoes its `Content-Encoding`. Its share of the memory for
/// bodies is held until the request is answered.
///
/// An encoded body is undone when all of it is there. A body that expands to megabytes and comes
/// slowly would else hold them for the whole time that a body may take.
///
/// # Errors
/// A [`Failure`] where the body is larger than the limit (before it is read, if its length was
/// announced), has an encoding that is not read here, comes too slowly, breaks off, or where the
/// memory for bodies is used up.
pub(super) async fn read(request: &Request, body: &mut RequestBody) -> Result<Whole, Failure> {
    let state = state_of(request)?;
    let limits = state.limits();
    let announced = request
        .header("content-length")
        .and_then(|text| text.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limits.payload_limit) {
        return Err(payload_too_large(limits.payload_limit));
    }
    let missing = || Failure::internal_because("the request has no share of the memory for bodies");
    let encoding = encoding(request.headers())?;
    let memory = request.data::<BodyMemory>().ok_or_else(missing)?;
    let body = body.take().map_err(Failure::internal_because)?;
    let received = Received::new(state, memory, announced);
    let collecting = collect(body, received, limits.body_timeout);
    let collected = tokio::time::timeout(limits.body_timeout, collecting).await;
    let bytes = collected.unwrap_or_else(|_| Err(too_slow(limits.body_timeout)))?;
    if encoding == Encoding::Identity {
        return Ok(Whole {
            bytes: bytes.into(),
            place: Place::none(),
        });
    }
    undo(encoding, &bytes, Received::new(state, memory, None)).await
}

/// Reads what comes, however many bytes were announced.
async fn collect(
    body: Body,
    mut received: Received<'_>,
    body_timeout: Duration,
) -> Result<Vec<u8>, Failure> {
    let mut pace = Pace::new(body_timeout / PARTS);
    let mut chunks = pin!(body.into_bytes_stream());
    loop {
        pace.judge()?;
        let Ok(chunk) = tokio::time::timeout_at(pace.end, chunks.next()).await else {
            continue;
        };
        let Some(chunk) = chunk else { break };
        let chunk = chunk.map_err(|_| broken_off())?;
        pace.arrived += chunk.len();
        received.push(&chunk)?;
    }
    Ok(received.bytes)
}

/// Undoes the encoding of a body into `received`.
async fn undo(encoding: Encoding, bytes: &[u8], received: Received<'_>) -> Result<Whole, Failure> {
    let mut decoder = Decoder::new(encoding, received);
    let mut place = Place::none();
    let (mut before, mut after) = (0, 0);
    for piece in bytes.chunks(ENCODED_PIECE) {
        let length = decoder.write(piece)?;
        before += piece.len();
        if before >= TURN || length >= after + TURN {
            (before, after) = (0, length);
            // Only so many bodies are expanded at one time: small ones become large ones.
            place.widen(length).await;
            tokio::task::yield_now().await;
        }
    }
    Ok(Whole {
        bytes: decoder.finish()?,
        place,
    })
}

/// Watches how fast a body comes.
struct Pace {
    part: Duration,
    /// The end of the present part of the time.
    end: Instant,
    arrived: usize,
    arrived_before: usize,
}

impl Pace {
    fn new(part: Duration) -> Self {
        Self {
            part,
            end: Instant::now() + part,
            arrived: 0,
            arrived_before: 0,
        }
    }

    /// Refuses the body if a part of the time has ended in which too little came.
    fn judge(&mut self) -> Result<(), Failure> {
        if Instant::now() < self.end {
            return Ok(());
        }
        let least = LEAST.max(self.arrived_before / LEAST_SHARE);
        if self.arrived - self.arrived_before < least {
            return Err(too_slow(self.part));
        }
        self.arrived_before = self.arrived;
        self.end = Instant::now() + self.part;
        Ok(())
    }
}

fn too_slow(time: Duration) -> Failure {
    Failure::new(
        StatusCode::REQUEST_TIMEOUT,
        "request-timeout",
        "The request came too slowly",
        format!(
            "the body was not complete, or too little of it came, after {} s",
            time.as_secs_f64()
        ),
    )
}

/// The part of a body that has arrived. Memory is reserved as bytes arrive, so that an announcement
/// costs nothing.
struct Received<'a> {
    bytes: Vec<u8>,
    /// The announced length, beyond which nothing comes.
    expected: Option<usize>,
    reserved: usize,
    state: &'a ApiState,
    memory: &'a BodyMemory,
    /// Why the last write failed. A [`Write`] cannot return it.
    refusal: Option<Failure>,
}

impl<'a> Received<'a> {
    fn new(state: &'a ApiState, memory: &'a BodyMemory, expected: Option<usize>) -> Self {
        Self {
            bytes: Vec::new(),
            expected,
            reserved: 0,
            state,
            memory,
            refusal: None,
        }
    }

    /// Returns what has arrived, and leaves nothing behind.
    fn take(&mut self) -> Received<'a> {
        Received {
            bytes: std::mem::take(&mut self.bytes),
            refusal: self.refusal.take(),
            ..*self
        }
    }

    fn push(&mut self, chunk: &[u8]) -> Result<(), Failure> {
        let limit = self.state.limits().payload_limit;
        let length = self.bytes.len() + chunk.len();
        if length > limit {
            return Err(payload_too_large(limit));
        }
        if length > self.reserved {
            // Doubled each time, so that a long body is copied rarely.
            let most = self.expected.unwrap_or(limit);
            let capacity = (2 * self.reserved).min(most).max(length);
            // Whole units, so that a body in many pieces is not rounded up for each of them.
            let reserved = capacity.next_multiple_of(BODY_UNIT);
            let share = self.state.reserve_body(self.reserved, reserved);
            self.memory.hold(share.ok_or_else(no_room)?);
            self.reserved = reserved;
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }
}

impl Write for Received<'_> {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        match self.push(chunk) {
            Ok(()) => Ok(chunk.len()),
            Err(refusal) => {
                self.refusal = Some(refusal);
                Err(io::ErrorKind::Other.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The encodings of bodies that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Identity,
    Gzip,
    Deflate,
}

/// Returns the encoding of a body by the headers of its request.
fn encoding(headers: &HeaderMap) -> Result<Encoding, Failure> {
    let mut encoding = Encoding::Identity;
    for value in headers.get_all(header::CONTENT_ENCODING) {
        let text = String::from_utf8_lossy(value.as_bytes());
        for name in text.split(',').map(str::trim) {
            let next = match name.to_ascii_lowercase().as_str() {
                "" | "identity" => continue,
                "gzip" | "x-gzip" => Encoding::Gzip,
                "deflate" => Encoding::Deflate,
                _ => return Err(unsupported_encoding(&text)),
            };
            if encoding != Encoding::Identity {
                return Err(unsupported_encoding(&text));
            }
            encoding = next;
        }
    }
    Ok(encoding)
}

fn unsupported_encoding(text: &str) -> Failure {
    Failure::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported-encoding",
        "The encoding is not supported",
        format!("Content-Encoding is {text}; send the body plain, or by gzip or deflate once"),
    )
    .with_header(
        header::ACCEPT_ENCODING,
        HeaderValue::from_static("gzip, deflate"),
    )
}

/// Undoes the encoding of a body, piece by piece. What it makes of the body counts against the
/// limits like a plain body, so a small body that expands without end is cut off.
enum Decoder<'a> {
    Plain(Received<'a>),
    /// Gzip, and how many members may still follow.
    Gzip(GzDecoder<Received<'a>>, usize),
    /// Deflate, of which the first byte says whether it has the frame of zlib, as it should.
    Unknown(Received<'a>),
    Zlib(ZlibDecoder<Received<'a>>),
    Raw(DeflateDecoder<Received<'a>>),
}

impl<'a> Decoder<'a> {
    fn new(encoding: Encoding, received: Received<'a>) -> Self {
        match encoding {
            Encoding::Identity => Self::Plain(received),
            Encoding::Gzip => Self::Gzip(GzDecoder::new(received), MAX_MEMBERS - 1),
            Encoding::Deflate => Self::Unknown(received),
        }
    }

    /// Returns how many bytes there are now.
    fn write(&mut self, chunk: &[u8]) -> Result<usize, Failure> {
        if let (Self::Unknown(received), Some(first)) = (&mut *self, chunk.first()) {
            // The low half of zlib's first byte is its method, 8. In raw deflate these bits would be
            // a stored block, whose padding encoders leave at 0.
            let received = received.take();
            *self = if first & 0x0f == 8 {
                Self::Zlib(ZlibDecoder::new(received))
            } else {
                Self::Raw(DeflateDecoder::new(received))
            };
        }
        let (outcome, received) = match self {
            Self::Plain(received) => (received.write_all(chunk), received),
            Self::Unknown(received) => (Ok(()), received),
            Self::Gzip(decoder, more) => (write_members(decoder, more, chunk), decoder.get_mut()),
            Self::Zlib(decoder) => (decoder.write_all(chunk), decoder.get_mut()),
            Self::Raw(decoder) => (decoder.write_all(chunk), decoder.get_mut()),
        };
        match outcome {
            Ok(()) => Ok(received.bytes.len()),
            Err(error) => Err(received
                .refusal
                .take()
                .unwrap_or_else(|| undecodable(&error))),
        }
    }

    /// Ends the body and returns it.
    fn finish(mut self) -> Result<Bytes, Failure> {
        let (outcome, received) = match &mut self {
            Self::Plain(received) | Self::Unknown(received) => (Ok(()), received),
            Self::Gzip(decoder, _) => (decoder.try_finish(), decoder.get_mut()),
            Self::Zlib(decoder) => (decoder.try_finish(), decoder.get_mut()),
            Self::Raw(decoder) => (decoder.try_finish(), decoder.get_mut()),
        };
        match (received.refusal.take(), outcome) {
            (Some(refusal), _) => Err(refusal),
            (None, Err(error)) => Err(undecodable(&error)),
            (None, Ok(())) => Ok(std::mem::take(&mut received.bytes).into()),
        }
    }
}

/// Writes a part of a gzip file. Where a member ends in it and another follows, there are one `more`
/// fewer of them.
fn write_members(
    member: &mut GzDecoder<Received<'_>>,
    more: &mut usize,
    mut chunk: &[u8],
) -> io::Result<()> {
    while !chunk.is_empty() {
        let written = member.write(chunk)?;
        if written == 0 {
            member.try_finish()?;
            let too_many = || io::Error::other(format!("it has more than {MAX_MEMBERS} members"));
            *more = more.checked_sub(1).ok_or_else(too_many)?;
            *member = GzDecoder::new(member.get_mut().take());
        }
        chunk = &chunk[written..];
    }
    Ok(())
}

fn undecodable(error: &io::Error) -> Failure {
    Failure::new(
        StatusCode::BAD_REQUEST,
        "malformed-encoding",
        "The body cannot be decoded",
        format!("the body is not what its Content-Encoding says, or ends early: {error}"),
    )
}

fn payload_too_large(limit: usize) -> Failure {
    Failure::too_large(
        "payload-too-large",
        "The request is too large",
        format!(
            "the request's body is larger than {limit} bytes; send a smaller image, or its URL"
        ),
    )
}

fn no_room() -> Failure {
    Failure::unavailable(
        "overloaded",
        "Overloaded",
        "too much is being received at the moment; try again after the time in Retry-After",
        RETRY_AFTER,
    )
}

fn broken_off() -> Failure {
    Failure::new(
        StatusCode::BAD_REQUEST,
        "incomplete-body",
        "The body is incomplete",
        "the body ended before it was complete",
    )
}
