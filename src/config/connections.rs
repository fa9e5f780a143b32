//! Options of connections, and the port of the metrics.

use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;

use super::server::Port;
use super::values::{parse_duration, parse_size, whole_number_parser};

/// The limits of connections.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// The number of connections that may be open at one time; further ones are answered 503 and
    /// closed.
    pub max_connections: usize,
    /// The longest time to the end of a request's head, from its first byte or from the start of
    /// the connection.
    pub header_timeout: Duration,
    /// The longest time from an answer to the first byte of the next request.
    pub keep_alive_timeout: Duration,
}

/// The options of connections.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Connections")]
pub struct ConnectionArgs {
    /// The number of connections open at one time; further ones are answered 503 and closed
    // Twice the default of --max-concurrent-requests, so that a client over that limit has a
    // connection on which it can be answered 503. If the process may open only 1024 files, which is
    // usual, it stops accepting a little earlier.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1024,
        value_parser = whole_number_parser(1..=1_000_000),
        env = "IMGCLASS_MAX_CONNECTIONS"
    )]
    pub max_connections: usize,

    /// The memory for the bodies of all requests at one time, together; a request whose body does
    /// not fit is answered 503
    // A thousand photographs as base64, or eight bodies of the largest size that --payload-limit
    // allows by default.
    #[arg(
        long,
        value_name = "SIZE",
        default_value_t = ByteSize::mib(256),
        value_parser = parse_size,
        env = "IMGCLASS_MAX_BODY_BYTES"
    )]
    pub max_body_bytes: ByteSize,

    /// The longest time that a client may take to send a request's head; after it the connection is
    /// closed
    #[arg(
        long,
        value_name = "TIME",
        default_value = "10s",
        value_parser = parse_duration,
        env = "IMGCLASS_HEADER_TIMEOUT"
    )]
    pub header_timeout: humantime::Duration,

    /// The longest time that a connection stays open without a request
    // Longer than the 60 s of common load balancers. The load balancer has to close first: if the
    // server does, a request that is already on its way is lost.
    #[arg(
        long,
        value_name = "TIME",
        default_value = "75s",
        value_parser = parse_duration,
        env = "IMGCLASS_KEEP_ALIVE_TIMEOUT"
    )]
    pub keep_alive_timeout: humantime::Duration,

    /// A port for /metrics, which is then no longer served on the main port; 0 takes a free one
    /// [default: the main port]
    #[arg(long, value_name = "PORT", env = "IMGCLASS_METRICS_PORT")]
    pub metrics_port: Option<Port>,
}

impl ConnectionArgs {
    /// Returns the port of the metrics, if they have one of their own.
    pub fn metrics_port(&self) -> Option<u16> {
        let port = self.metrics_port.clone()?;
        port.number("IMGCLASS_METRICS_PORT")
    }

    /// Returns the limits of connections.
    pub fn limits(&self) -> ConnectionLimits {
        ConnectionLimits {
            max_connections: self.max_connections,
            header_timeout: *self.header_timeout,
            keep_alive_timeout: *self.keep_alive_timeout,
        }
    }
}
