//! Which URLs may be fetched, and how a URL may be logged. Judges text; never resolves or dials anything.

use url::{Host, Url};

use super::address::AddressPolicy;
use super::config::FetchConfig;
use super::data_url::is_data_url;
use super::error::Refusal;

/// The longest URL in bytes that [`redacted`] shows: enough for real ones, little for a log line.
const MAX_LOGGED: usize = 2048;

/// Ports that every configuration opens: http's and https's own.
const WELL_KNOWN_PORTS: [u16; 2] = [80, 443];

/// Says which `http:` and `https:` URLs may be fetched, first ones and redirects alike.
#[derive(Clone, Debug)]
pub struct UrlPolicy {
    addresses: AddressPolicy,
    allow_ports: Vec<u16>,
    max_url_length: usize,
}

impl UrlPolicy {
    /// The policy that `config` describes.
    #[must_use]
    pub fn new(config: &FetchConfig) -> Self {
        Self {
            addresses: AddressPolicy::new(&config.allow_cidrs),
            allow_ports: config.allow_ports.clone(),
            max_url_length: config.max_url_length,
        }
    }

    /// The policy for addresses, which also judges what names resolve to.
    #[must_use]
    pub fn addresses(&self) -> &AddressPolicy {
        &self.addresses
    }

    /// Parses `raw`, once: the URL returned is the one to fetch. Its host is a vetted address, or a name whose
    /// addresses are still to be vetted.
    ///
    /// # Errors
    /// The rule that `raw` breaks.
    pub fn check(&self, raw: &str) -> Result<Url, Refusal> {
        self.check_text(raw)?;
        self.check_parsed(Url::parse(raw)?)
    }

    /// As [`UrlPolicy::check`], for the `Location` of a redirect from `from`, which may be relative. Leaving https for
    /// http is refused: who asked for https was promised that nobody on the way changes the image.
    ///
    /// # Errors
    /// The rule that the target breaks.
    pub fn check_redirect(&self, from: &Url, location: &str) -> Result<Url, Refusal> {
        self.check_text(location)?;
        let target = self.check_parsed(from.join(location)?)?;
        if from.scheme() == "https" && target.scheme() == "http" {
            return Err(Refusal::Downgrade);
        }
        Ok(target)
    }

    /// Rules about the text: the parser would silently drop or rewrite what they refuse.
    fn check_text(&self, raw: &str) -> Result<(), Refusal> {
        self.check_length(raw)?;
        if raw.chars().any(char::is_control) {
            return Err(Refusal::ControlCharacter);
        }
        if raw.contains('\\') {
            return Err(Refusal::Backslash);
        }
        if has_user_info(raw) {
            return Err(Refusal::UserInfo);
        }
        Ok(())
    }

    /// Rules about what the parser made of the text. It has already turned decimal, octal, hexadecimal, short and
    /// full-width IPv4 into addresses.
    fn check_parsed(&self, url: Url) -> Result<Url, Refusal> {
        // Percent-encoding can treble the length.
        self.check_length(url.as_str())?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Refusal::Scheme(url.scheme().to_owned()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refusal::UserInfo);
        }
        let port = url.port_or_known_default().unwrap_or(0);
        if !WELL_KNOWN_PORTS.contains(&port) && !self.allow_ports.contains(&port) {
            return Err(Refusal::Port(port));
        }
        match url.host() {
            Some(Host::Ipv4(address)) => self.addresses.check(address.into())?,
            Some(Host::Ipv6(address)) => self.addresses.check(address.into())?,
            Some(Host::Domain(_)) => {}
            None => return Err(url::ParseError::EmptyHost.into()),
        }
        Ok(url)
    }

    fn check_length(&self, text: &str) -> Result<(), Refusal> {
        if text.len() > self.max_url_length {
            return Err(Refusal::TooLong {
                limit: self.max_url_length,
            });
        }
        Ok(())
    }
}

/// Whether the authority in `raw` has an `@`: the parser drops an empty user info, as in `http://@host/`.
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

/// `raw` as it may be logged: scheme, host, port and path; no user info, query, fragment or data. Only its length where
/// it is no such URL or longer than 2048 bytes.
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

pub(super) fn redacted_url(url: &Url) -> String {
    let mut text = format!("{}://{}", url.scheme(), url.host_str().unwrap_or_default());
    if let Some(port) = url.port() {
        text.push_str(&format!(":{port}"));
    }
    text.push_str(url.path());
    text
}
