//! Why a picture was not decoded, and why the workers do not start.

use std::io;
use std::time::Duration;

use imgclass_image::ImageError;
use thiserror::Error;

/// A picture was not decoded.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// The picture is refused for what it is.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Decoding took longer than one picture may. Holds that limit.
    #[error(
        "decoding the image took longer than {} s; send a smaller one, or another encoding of it",
        .0.as_secs_f64()
    )]
    Overran(Duration),
    /// Decoding needed more memory than the picture's header announced.
    #[error(
        "decoding the image needed more memory than its header announces; send another encoding \
         of it"
    )]
    OutOfMemory,
    /// Something outside the service ended the decoder, most often the system for want of memory.
    #[error(
        "decoding the image was ended from outside, perhaps for want of memory; send a smaller one"
    )]
    Killed,
    /// The decoder ended on this picture.
    #[error("the image cannot be decoded: its data is damaged")]
    Crashed,
    /// There is no worker to decode it.
    #[error("no decode worker: {0}")]
    NoWorker(&'static str),
}

/// The workers cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The system did not start a worker.
    #[error(
        "a decode worker cannot be started: {0}; --no-decode-sandbox decodes without workers, \
         which gives up the protection against hostile images"
    )]
    Worker(#[source] io::Error),
    /// The system did not start a thread.
    #[error("a thread for decoding cannot be started: {0}")]
    Thread(#[source] io::Error),
}
