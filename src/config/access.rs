//! Who may use the interface, and how often: keys, origins of browsers, rates. Reads a file of keys; holds digests, never the keys.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use sha2::{Digest, Sha256};
use thiserror::Error;

/// An API key's SHA-256. Comparing digests takes as long for a wrong key as for one that is nearly right.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ApiKey([u8; 32]);

impl ApiKey {
    /// The digest of a key as it came with a request.
    pub fn of(text: &[u8]) -> Self {
        Self(Sha256::digest(text).into())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

/// An origin that may call us from a browser (RFC 6454), or `*` for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedOrigin(String);

impl AllowedOrigin {
    /// Whether a request's `Origin` is this one.
    pub fn matches(&self, origin: &str) -> bool {
        self.0 == "*" || self.0 == origin
    }

    /// All origins.
    pub fn is_any(&self) -> bool {
        self.0 == "*"
    }
}

/// How often one caller may ask.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateLimit {
    /// Requests a second in the long run.
    pub per_second: f64,
    /// Requests at once after a pause.
    pub burst: u32,
}

/// Who may use the interface, and how often.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Any of these opens the interface; none: it is open to everybody.
    pub keys: Vec<ApiKey>,
    /// Origins whose pages may read our answers.
    pub origins: Vec<AllowedOrigin>,
    /// Per key, else per address.
    pub rate: Option<RateLimit>,
    /// Proxies before us, each of which adds the address that it saw to `X-Forwarded-For`.
    pub trusted_proxies: usize,
}

/// The file of keys cannot be used.
#[derive(Debug, Error)]
#[error("the keys in {file} cannot be used: {reason}")]
pub struct KeyFileError {
    file: String,
    reason: String,
}

/// Who may use the interface.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Access")]
pub struct AccessArgs {
    /// A key that requests must carry, as "Authorization: Bearer KEY" or "X-API-Key: KEY" (repeatable) [default: no key is asked for]
    #[arg(long, value_name = "KEY", value_delimiter = ',', value_parser = key, env = "IMGCLASS_API_KEY", hide_env_values = true)]
    pub api_key: Vec<ApiKey>,

    /// A file with further keys, one a line; what follows a # at the start of a line is a comment
    #[arg(long, value_name = "FILE", env = "IMGCLASS_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,

    /// Scheme, host and port of web pages that may call the interface, or * for all (repeatable) [default: none]
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',', value_parser = origin, env = "IMGCLASS_CORS_ALLOW_ORIGIN")]
    pub cors_allow_origin: Vec<AllowedOrigin>,

    /// Requests a second that one key, or one address where no key is asked for, may make; further ones are answered 429
    /// [default: no limit]
    #[arg(long, value_name = "N", value_parser = rate, env = "IMGCLASS_RATE_LIMIT")]
    pub rate_limit: Option<f64>,

    /// Requests that may come at once after a pause, under --rate-limit [default: one second's worth, at least 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000), requires = "rate_limit", env = "IMGCLASS_RATE_LIMIT_BURST")]
    pub rate_limit_burst: Option<u32>,

    // 0, because whoever can reach us directly can write any address into the header.
    /// Proxies before the service that add to X-Forwarded-For; 0: the header is a stranger's word and is not read
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = super::whole(0..=16), env = "IMGCLASS_TRUSTED_PROXIES")]
    pub trusted_proxies: usize,
}

impl AccessArgs {
    /// The rules, with the keys of the file.
    pub fn access(&self) -> Result<Access, KeyFileError> {
        let mut keys = self.api_key.clone();
        if let Some(file) = &self.api_key_file {
            keys.extend(keys_in(file)?);
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

/// The address of a caller as rate limits know it: an IPv6 caller has a whole /64 to choose from, which counts as one.
pub fn caller_address(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let network = address.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(network.into())
        }
    }
}

fn keys_in(file: &Path) -> Result<Vec<ApiKey>, KeyFileError> {
    let error = |reason: String| KeyFileError {
        file: file.display().to_string(),
        reason,
    };
    let text = std::fs::read_to_string(file).map_err(|e| error(e.to_string()))?;
    let lines = text.lines().map(str::trim).enumerate();
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let keys: Result<Vec<ApiKey>, KeyFileError> = lines
        .map(|(i, line)| key(line).map_err(|reason| error(format!("line {}: {reason}", i + 1))))
        .collect();
    let keys = keys?;
    if keys.is_empty() {
        // Open to everybody is not what somebody meant who named a file.
        return Err(error("it holds none".to_owned()));
    }
    Ok(keys)
}

/// A key that headers can carry.
fn key(text: &str) -> Result<ApiKey, String> {
    if (1..=512).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(ApiKey::of(text.as_bytes()))
    } else {
        Err("expected 1 to 512 visible ASCII characters without blanks".to_owned())
    }
}

fn origin(text: &str) -> Result<AllowedOrigin, String> {
    let parsed = url::Url::parse(text).map(|url| url.origin().ascii_serialization());
    if text == "*" || (parsed.as_deref() == Ok(text) && !text.contains('*')) {
        Ok(AllowedOrigin(text.to_owned()))
    } else {
        Err("expected * or scheme, host and port alone, such as https://example.com".to_owned())
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.001..=1e6).contains(&rate) => Ok(rate),
        _ => Err("expected requests a second from 0.001 to 1000000".to_owned()),
    }
}
