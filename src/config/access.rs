//! Options of access: who may use the interface, from which web pages, and how often.
//!
//! Keys are kept as digests only, so that no log line can show one.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::values::{rate_parser, whole_number_parser};

/// The SHA-256 digest of an API key.
///
/// How long it takes to compare two digests says nothing about the keys, so a caller cannot guess a
/// key piece by piece from the time of the answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ApiKey([u8; 32]);

impl ApiKey {
    /// Returns the digest of a key, as it came with a request.
    pub fn of(text: &[u8]) -> Self {
        Self(Sha256::digest(text).into())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

/// An origin (RFC 6454) whose web pages may call the interface, or `*` for every origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedOrigin(String);

impl AllowedOrigin {
    /// Returns whether a request with the header `Origin: {origin}` may read the answer.
    pub fn matches(&self, origin: &str) -> bool {
        self.0 == "*" || self.0 == origin
    }

    /// Returns whether every origin is allowed.
    pub fn is_any(&self) -> bool {
        self.0 == "*"
    }
}

/// How often one caller may send requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateLimit {
    /// The number of requests a second in the long run.
    pub per_second: f64,
    /// The number of requests that may come at once after a pause.
    pub burst: u32,
}

/// The rules of who may use the interface, and how often.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The keys that open the interface. If there are none, it is open to everybody.
    pub keys: Vec<ApiKey>,
    /// The origins whose web pages may read the answers.
    pub origins: Vec<AllowedOrigin>,
    /// The rate for each key, or for each address if a request carries no right key.
    pub rate: Option<RateLimit>,
    /// The number of proxies before the service. Each adds the address that it saw to
    /// `X-Forwarded-For`.
    pub trusted_proxies: usize,
}

/// Says why the file of keys cannot be used.
#[derive(Debug, Error)]
#[error("the keys in {file} cannot be used: {reason}")]
pub struct KeyFileError {
    file: String,
    reason: String,
}

/// The options of access.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Access")]
pub struct AccessArgs {
    /// A key that requests must carry, as "Authorization: Bearer KEY" or "X-API-Key: KEY"
    /// (repeatable) [default: no key is asked for]
    ///
    /// Other users of the machine can read the options of a running process: prefer the environment
    /// variable or --api-key-file.
    #[arg(
        long,
        value_name = "KEY",
        value_delimiter = ',',
        value_parser = parse_key,
        env = "IMGCLASS_API_KEY",
        hide_env_values = true
    )]
    pub api_key: Vec<ApiKey>,

    /// A file with further keys, one per line; lines that start with # are comments
    #[arg(long, value_name = "FILE", env = "IMGCLASS_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,

    // This text is the option's help, where angle brackets would show.
    #[allow(rustdoc::bare_urls)]
    /// An origin whose web pages may call the interface, such as https://example.com, or * for all
    /// (repeatable) [default: none]
    #[arg(
        long,
        value_name = "ORIGIN",
        value_delimiter = ',',
        value_parser = parse_origin,
        env = "IMGCLASS_CORS_ALLOW_ORIGIN"
    )]
    pub cors_allow_origin: Vec<AllowedOrigin>,

    /// The number of requests a second for each key, or for each address if a request carries no
    /// right key; further ones are answered 429 [default: no limit]
    #[arg(
        long,
        value_name = "N",
        value_parser = rate_parser(0.001..=1e6),
        env = "IMGCLASS_RATE_LIMIT"
    )]
    pub rate_limit: Option<f64>,

    /// The number of requests that may come at once after a pause, under --rate-limit [default: as
    /// many as --rate-limit allows in a second, at least 1]
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000),
        requires = "rate_limit",
        env = "IMGCLASS_RATE_LIMIT_BURST"
    )]
    pub rate_limit_burst: Option<u32>,

    /// The number of proxies before the service that add the caller's address to X-Forwarded-For;
    /// with 0 that header is not read
    // The default is 0 because whoever can reach the service directly can write any address into
    // the header.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        value_parser = whole_number_parser(0..=16),
        env = "IMGCLASS_TRUSTED_PROXIES"
    )]
    pub trusted_proxies: usize,
}

impl AccessArgs {
    /// Returns the rules of access, after reading the file of keys if one is named.
    ///
    /// # Errors
    ///
    /// Returns an error if the file cannot be read, holds something that cannot be a key, or holds
    /// no key.
    pub fn load(&self) -> Result<Access, KeyFileError> {
        let mut keys = self.api_key.clone();
        if let Some(file) = &self.api_key_file {
            keys.extend(read_keys(file)?);
        }
        let rate = self.rate_limit.map(|per_second| RateLimit {
            per_second,
            burst: self.rate_limit_burst.unwrap_or(per_second.max(1.0) as u32),
        });
        Ok(Access {
            keys,
            origins: self.cors_allow_origin.clone(),
            rate,
            trusted_proxies: self.trusted_proxies,
        })
    }
}

/// Returns the address under which a caller's requests are counted.
///
/// An IPv6 caller can usually choose from a whole /64 network, so that network counts as one
/// caller.
pub fn caller_address(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let network = address.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(network.into())
        }
    }
}

/// Reads the keys in a file, one per line.
fn read_keys(file: &Path) -> Result<Vec<ApiKey>, KeyFileError> {
    let error = |reason: String| KeyFileError {
        file: file.display().to_string(),
        reason,
    };
    let text = std::fs::read_to_string(file).map_err(|e| error(e.to_string()))?;
    let lines = text.lines().map(str::trim).enumerate();
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let keys: Result<Vec<ApiKey>, KeyFileError> = lines
        .map(|(i, line)| {
            parse_key(line).map_err(|reason| error(format!("line {}: {reason}", i + 1)))
        })
        .collect();
    let keys = keys?;
    if keys.is_empty() {
        // Without a key the interface would be open to everybody, which is not what was meant by
        // naming a file.
        return Err(error("it holds none".to_owned()));
    }
    Ok(keys)
}

/// Parses a key, which must be a text that a header can carry.
fn parse_key(text: &str) -> Result<ApiKey, String> {
    if (1..=512).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(ApiKey::of(text.as_bytes()))
    } else {
        Err("expected 1 to 512 visible ASCII characters without blanks".to_owned())
    }
}

/// Parses `*` or an origin as browsers write it.
fn parse_origin(text: &str) -> Result<AllowedOrigin, String> {
    let parsed = url::Url::parse(text).map(|url| url.origin().ascii_serialization());
    if text == "*" || (parsed.as_deref() == Ok(text) && !text.contains('*')) {
        Ok(AllowedOrigin(text.to_owned()))
    } else {
        Err("expected * or scheme, host and port alone, such as https://example.com".to_owned())
    }
}
