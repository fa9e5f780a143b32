//! Bounds of connections, and where the metrics are.

use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;

use super::{size, time, whole};

/// Bounds of connections.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// Open at one time; further ones are answered 503 and closed.
    pub max_connections: usize,
    /// From the first byte of a request's head, or from the connection's start, to the head's end.
    pub header_timeout: Duration,
    /// From an answer to the next request's first byte.
    pub keep_alive_timeout: Duration,
}

/// Connections.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Connections")]
pub struct ConnectionArgs {
    // Twice the requests that are worked on, so that waiting clients can be told so; under the usual limit of 1024 file descriptors
    // accepting pauses earlier.
    /// Connections open at one time; further ones are answered 503 and closed
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = whole(1..=1_000_000), env = "IMGCLASS_MAX_CONNECTIONS")]
    pub max_connections: usize,

    // A thousand photographs as base64, or eight bodies of the largest size.
    /// Memory for request bodies at one time, together; a request for which there is no room is answered 503
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize::mib(256), value_parser = size, env = "IMGCLASS_MAX_BODY_BYTES")]
    pub max_body_bytes: ByteSize,

    /// The longest that a client may take to send a request's head; the connection is closed after it
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time, env = "IMGCLASS_HEADER_TIMEOUT")]
    pub header_timeout: humantime::Duration,

    // Longer than the 60 s of common load balancers: who closes first must not be the server, or requests are lost on the way.
    /// How long a connection may stay open without a request
    #[arg(long, value_name = "TIME", default_value = "75s", value_parser = time, env = "IMGCLASS_KEEP_ALIVE_TIMEOUT")]
    pub keep_alive_timeout: humantime::Duration,

    /// Serve /metrics on this port only, not on the main one; 0 takes a free one [default: on the main port]
    #[arg(long, value_name = "PORT", env = "IMGCLASS_METRICS_PORT")]
    pub metrics_port: Option<u16>,
}

impl ConnectionArgs {
    /// The bounds.
    pub fn limits(&self) -> ConnectionLimits {
        ConnectionLimits {
            max_connections: self.max_connections,
            header_timeout: *self.header_timeout,
            keep_alive_timeout: *self.keep_alive_timeout,
        }
    }
}
