//! Decides which URLs may be fetched, and how much of a URL may be logged.
//!
//! This module judges text only. A host name passes here; the addresses that it resolves to are
//! judged in `resolve`.

use url::{Host, Url};

use super::address::AddressPolicy;
use super::config::FetchConfig;
use super::data_url::is_data_url;
use super::error::UrlRefusal;

/// The longest URL in bytes that [`redacted`] shows: enough for real URLs, and short enough for a
/// log line.
const MAX_LOGGED: usize = 2048;

/// The ports of http and https, which every configuration opens.
const WELL_KNOWN_PORTS: [u16; 2] = [80, 443];

/// Decides which `http:` and `https:` URLs may be fetched, both a request's own and those of
/// redirects.
#[derive(Clone, Debug)]
pub struct UrlPolicy {
    addresses: AddressPolicy,
    allow_ports: Vec<u16>,
    max_url_length: usize,
}

impl UrlPolicy {
    /// Creates the policy that `config` describes.
    #[must_use]
    pub fn new(config: &FetchConfig) -> Self {
        Self {
            addresses: AddressPolicy::new(&config.allow_cidrs),
            allow_ports: config.allow_ports.clone(),
            max_url_length: config.max_url_length,
        }
    }

    /// Returns the policy for addresses, which also judges what names resolve to.
    #[must_use]
    pub fn addresses(&self) -> &AddressPolicy {
        &self.addresses
    }

    /// Parses and judges `raw`, and returns the URL to fetch.
    ///
    /// The text is parsed only here, so that no second parser can read it differently. The host of
    /// the returned URL is an allowed address, or a name whose addresses are still to be judged.
    ///
    /// # Errors
    ///
    /// Returns the rule that `raw` breaks.
    pub fn check(&self, raw: &str) -> Result<Url, UrlRefusal> {
        self.check_text(raw)?;
        self.check_parsed(Url::parse(raw)?)
    }

    /// Parses and judges the `Location` of a redirect from `from`, which may be relative.
    ///
    /// A redirect from https to http is refused: whoever named an https URL was promised that
    /// nobody on the way can change the image.
    ///
    /// # Errors
    ///
    /// Returns the rule that the redirect's target breaks.
    pub fn check_redirect(&self, from: &Url, location: &str) -> Result<Url, UrlRefusal> {
        self.check_text(location)?;
        let target = self.check_parsed(from.join(location)?)?;
        if from.scheme() == "https" && target.scheme() == "http" {
            return Err(UrlRefusal::Downgrade);
        }
        Ok(target)
    }

    /// Applies the rules about the text itself: the parser would silently drop or rewrite what they
    /// refuse.
    fn check_text(&self, raw: &str) -> Result<(), UrlRefusal> {
        self.check_length(raw)?;
        if raw.chars().any(char::is_control) {
            return Err(UrlRefusal::ControlCharacter);
        }
        if raw.contains('\\') {
            return Err(UrlRefusal::Backslash);
        }
        if has_user_info(raw) {
            return Err(UrlRefusal::UserInfo);
        }
        Ok(())
    }

    /// Applies the rules about the parsed URL.
    ///
    /// The parser has already turned decimal, octal, hexadecimal, short and full-width IPv4 into
    /// addresses.
    fn check_parsed(&self, url: Url) -> Result<Url, UrlRefusal> {
        // Percent-encoding can make the URL three times as long as its text.
        self.check_length(url.as_str())?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(UrlRefusal::Scheme(url.scheme().to_owned()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(UrlRefusal::UserInfo);
        }
        let port = url.port_or_known_default().unwrap_or(0);
        if !WELL_KNOWN_PORTS.contains(&port) && !self.allow_ports.contains(&port) {
            return Err(UrlRefusal::Port(port));
        }
        match url.host() {
            Some(Host::Ipv4(address)) => self.addresses.check(address.into())?,
            Some(Host::Ipv6(address)) => self.addresses.check(address.into())?,
            Some(Host::Domain(_)) => {}
            None => return Err(url::ParseError::EmptyHost.into()),
        }
        Ok(url)
    }

    fn check_length(&self, text: &str) -> Result<(), UrlRefusal> {
        if text.len() > self.max_url_length {
            return Err(UrlRefusal::TooLong {
                limit: self.max_url_length,
            });
        }
        Ok(())
    }
}

/// Returns whether the authority in `raw` has an `@`.
///
/// The parsed URL does not tell: the parser drops an empty user info, as in `http://@host/`.
fn has_user_info(raw: &str) -> bool {
    let after_scheme = match raw.split_once(':') {
        Some((scheme, rest)) if !scheme.contains(['/', '?', '#']) => rest,
        _ if raw.starts_with("//") => raw,
        _ => return false,
    };
    let authority = after_scheme
        .trim_start_matches('/')
        .split(['/', '?', '#'])
        .next();
    authority.is_some_and(|authority| authority.contains('@'))
}

/// Returns the part of `raw` that may be logged: scheme, host, port and path, without user info,
/// query, fragment and data.
///
/// For a `data:` URL, a text that is not a URL with a host, or one longer than 2048 bytes, the
/// result tells only the length.
#[must_use]
pub fn redacted(raw: &str) -> String {
    if raw.len() > MAX_LOGGED || is_data_url(raw) {
        let kind = if is_data_url(raw) { "data URL" } else { "URL" };
        return format!("({kind} of {} bytes)", raw.len());
    }
    match Url::parse(raw) {
        Ok(url) if url.has_host() => redacted_url(&url),
        _ => format!("(no web URL, {} bytes)", raw.len()),
    }
}

/// Returns the part of a parsed URL that may be logged.
pub(super) fn redacted_url(url: &Url) -> String {
    let mut text = format!("{}://{}", url.scheme(), url.host_str().unwrap_or_default());
    if let Some(port) = url.port() {
        text.push_str(&format!(":{port}"));
    }
    text.push_str(url.path());
    text
}
