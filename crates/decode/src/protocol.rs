//! What the service and a worker say to each other over their socket.
//!
//! A frame is the length of its header in four bytes (little endian), the header as JSON, and then
//! the bytes that the header announces. [`ToWorker::Task`] is followed by the encoded picture,
//! [`FromWorker::Prepared`] by the pixels of the crop and those of the picture. Both sides check
//! lengths before they allocate.

use std::io::{self, Read};

use imgclass_image::{ImageError, ImageInfo, Limits, Preprocessing};
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::confinement::Confinement;
use crate::work::Task;

/// The longest header, in bytes. The longest that is sent is an error's text of some hundred bytes.
const MAX_HEADER: usize = 8192;

/// What the service says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// The first frame: how pictures are decoded from now on.
    Setup {
        limits: Limits,
        fast: bool,
        preprocessing: Preprocessing,
    },
    /// One picture; `encoded_bytes` follow.
    Task(Task),
}

/// What a worker says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromWorker {
    /// The answer to [`ToWorker::Setup`]: the worker is confined and waits for pictures.
    Ready(Confinement),
    /// The picture is decoded. The bytes of the crop follow, then those of the picture.
    Prepared {
        size: (u32, u32),
        picture: Option<(u32, u32)>,
    },
    /// See [`Outcome::Costly`](crate::work::Outcome::Costly).
    Costly(ImageInfo),
    /// See [`Outcome::Refused`](crate::work::Outcome::Refused).
    Refused(ImageError),
}

/// Returns the frame of `message`, without the bytes that follow its header.
pub(crate) fn frame(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = header_length((frame.len() - 4) as u64)?;
    // At most `MAX_HEADER`, so it fits.
    frame[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(frame)
}

/// Reads a header.
///
/// # Errors
/// Those of reading; [`io::ErrorKind::InvalidData`] where the header is too long or is no `T`.
pub(crate) fn read<T: DeserializeOwned>(mut from: impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut header = vec![0; header_length(u64::from(u32::from_le_bytes(length)))?];
    from.read_exact(&mut header)?;
    Ok(serde_json::from_slice(&header)?)
}

/// Does what [`read`] does, asynchronously.
pub(crate) async fn read_async<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length).await?;
    let mut header = vec![0; header_length(u64::from(u32::from_le_bytes(length)))?];
    from.read_exact(&mut header).await?;
    Ok(serde_json::from_slice(&header)?)
}

/// Checks the length of a header.
fn header_length(length: u64) -> io::Result<usize> {
    match usize::try_from(length) {
        Ok(length) if length <= MAX_HEADER => Ok(length),
        _ => Err(invalid("the header of a frame is too long")),
    }
}

/// Returns the error for what the other side must not say.
pub(crate) fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
