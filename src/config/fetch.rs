//! Options of fetching image URLs.

use bytesize::ByteSize;
use clap::Args;
use ipnet::IpNet;

use super::values::{parse_duration, parse_size, whole_number_parser};
use imgclass_fetch::FetchConfig;

/// The options of fetching image URLs; the defaults are those of [`FetchConfig`].
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Fetching image URLs")]
pub struct FetchArgs {
    /// A range of addresses that may be dialled although they are not public (repeatable)
    #[arg(
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        env = "IMGCLASS_FETCH_ALLOW_CIDR"
    )]
    pub fetch_allow_cidr: Vec<IpNet>,

    /// A port that may be dialled in addition to 80 and 443 (repeatable)
    #[arg(
        long,
        value_name = "PORT",
        value_delimiter = ',',
        env = "IMGCLASS_FETCH_ALLOW_PORT"
    )]
    pub fetch_allow_port: Vec<u16>,

    /// The longest time for the name look-up, the TCP handshake and the TLS handshake of one
    /// request, together
    #[arg(
        long,
        value_name = "TIME",
        default_value_t = FetchConfig::default().connect_timeout.into(),
        value_parser = parse_duration,
        env = "IMGCLASS_FETCH_CONNECT_TIMEOUT"
    )]
    pub fetch_connect_timeout: humantime::Duration,

    /// The longest time for which an image server may send nothing
    #[arg(
        long,
        value_name = "TIME",
        default_value_t = FetchConfig::default().idle_timeout.into(),
        value_parser = parse_duration,
        env = "IMGCLASS_FETCH_IDLE_TIMEOUT"
    )]
    pub fetch_idle_timeout: humantime::Duration,

    /// The longest time for a whole fetch, including its redirects
    #[arg(
        long,
        value_name = "TIME",
        default_value_t = FetchConfig::default().total_timeout.into(),
        value_parser = parse_duration,
        env = "IMGCLASS_FETCH_TIMEOUT"
    )]
    pub fetch_timeout: humantime::Duration,

    /// The largest image before decoding, whether it is fetched or read from a file
    #[arg(
        long,
        value_name = "SIZE",
        default_value_t = ByteSize(FetchConfig::default().max_bytes),
        value_parser = parse_size,
        env = "IMGCLASS_FETCH_MAX_BYTES"
    )]
    pub fetch_max_bytes: ByteSize,

    /// The number of redirects that a fetch follows at most
    #[arg(
        long,
        value_name = "N",
        default_value_t = FetchConfig::default().max_redirects,
        value_parser = whole_number_parser(0..=20),
        env = "IMGCLASS_FETCH_MAX_REDIRECTS"
    )]
    pub fetch_max_redirects: usize,

    /// The memory for fetched images, all together, until they are decoded; never less than one of
    /// the largest takes
    #[arg(
        long,
        value_name = "SIZE",
        default_value_t = ByteSize(FetchConfig::default().max_held_bytes),
        value_parser = parse_size,
        env = "IMGCLASS_FETCH_MEMORY"
    )]
    pub fetch_memory: ByteSize,

    /// The User-Agent of requests for images; some servers ask for a contact in it
    #[arg(
        long,
        value_name = "TEXT",
        default_value_t = FetchConfig::default().user_agent,
        value_parser = parse_user_agent,
        env = "IMGCLASS_FETCH_USER_AGENT"
    )]
    pub fetch_user_agent: String,

    /// The number of fetches that may run at one time; further ones wait
    #[arg(
        long,
        value_name = "N",
        default_value_t = FetchConfig::default().max_concurrent,
        value_parser = whole_number_parser(1..=4096),
        env = "IMGCLASS_FETCH_MAX_CONCURRENT"
    )]
    pub fetch_max_concurrent: usize,
}

impl FetchArgs {
    /// Returns the configuration of the fetcher.
    pub(super) fn config(&self) -> FetchConfig {
        FetchConfig {
            connect_timeout: *self.fetch_connect_timeout,
            idle_timeout: *self.fetch_idle_timeout,
            total_timeout: *self.fetch_timeout,
            max_bytes: self.fetch_max_bytes.as_u64(),
            max_redirects: self.fetch_max_redirects,
            max_concurrent: self.fetch_max_concurrent,
            max_held_bytes: self.fetch_memory.as_u64(),
            user_agent: self.fetch_user_agent.clone(),
            allow_cidrs: self.fetch_allow_cidr.clone(),
            allow_ports: self.fetch_allow_port.clone(),
            ..FetchConfig::default()
        }
    }
}

/// Parses a user agent, which must be a text that a header can carry.
fn parse_user_agent(text: &str) -> Result<String, String> {
    let is_allowed = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
    if (1..=512).contains(&text.len()) && text.trim() == text && text.bytes().all(is_allowed) {
        Ok(text.to_owned())
    } else {
        Err(
            "expected 1 to 512 visible ASCII characters and blanks between them, such as \
             \"example/1.0 (https://example.com; mail@example.com)\""
                .to_owned(),
        )
    }
}
