//! Every limit of a fetch and its default. Holds plain values; never reads flags or the environment.

use std::time::Duration;

use ipnet::IpNet;

/// Limits and openings of a [`Fetcher`](super::Fetcher).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchConfig {
    /// Name look-up, TCP and TLS handshake of one hop, together.
    pub connect_timeout: Duration,
    /// The longest silence: from the request to the end of the response's head, and between two pieces of its body.
    pub idle_timeout: Duration,
    /// The whole fetch, every redirect and the body included.
    pub total_timeout: Duration,
    /// The most bytes that one fetch or one decoded `data:` URL may give.
    pub max_bytes: u64,
    /// Redirects followed before giving up; 0 follows none.
    pub max_redirects: usize,
    /// The longest `http:` or `https:` URL in bytes, as given and as normalised. `data:` URLs are bounded by
    /// `max_bytes` instead.
    pub max_url_length: usize,
    /// Fetches under way at once, at least 1; further ones wait. Together with `max_bytes` this bounds the memory of
    /// bodies under way, and it also bounds name look-ups, which outlive a caller that gave up.
    pub max_concurrent: usize,
    /// Address ranges that may be dialled although they are not public. An IPv4 range also opens its addresses where
    /// they are embedded in IPv6; an IPv6 range opens the addresses as written. Name IPv4-mapped addresses as IPv4.
    pub allow_cidrs: Vec<IpNet>,
    /// Ports that may be dialled beside 80 and 443, on every address.
    pub allow_ports: Vec<u16>,
}

impl Default for FetchConfig {
    /// Nothing is open beyond public addresses on ports 80 and 443.
    fn default() -> Self {
        Self {
            // A handshake across the world takes under a second; one lost SYN is repeated after 1 s, a second after 3 s.
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(5),
            total_timeout: Duration::from_secs(15),
            // Twice the size of a 24 megapixel JPEG at high quality.
            max_bytes: 20 * 1024 * 1024,
            max_redirects: 3,
            // RFC 9110, section 4.1, asks for at least 8000; servers commonly stop at 8 KiB.
            max_url_length: 8192,
            // With `max_bytes`: 1.25 GiB of bodies at worst.
            max_concurrent: 64,
            allow_cidrs: Vec::new(),
            allow_ports: Vec::new(),
        }
    }
}
