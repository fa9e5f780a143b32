//! Every limit of a fetch with its default, as plain values.

use std::time::Duration;

use ipnet::IpNet;

/// Holds the limits of a [`Fetcher`](super::Fetcher), and what it may dial beyond public addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchConfig {
    /// The longest time for the name look-up, the TCP handshake and the TLS handshake of one
    /// request, together.
    pub connect_timeout: Duration,
    /// The longest silence of a server: from the request to the end of the response's head, and
    /// between two pieces of its body.
    pub idle_timeout: Duration,
    /// The longest time for a whole fetch, including its redirects and the body.
    pub total_timeout: Duration,
    /// The largest body, or decoded `data:` URL, in bytes.
    pub max_bytes: u64,
    /// The number of redirects that a fetch follows at most; 0 follows none.
    pub max_redirects: usize,
    /// The longest `http:` or `https:` URL in bytes, both as given and as normalised. `data:` URLs
    /// are bounded by `max_bytes` instead.
    pub max_url_length: usize,
    /// The number of fetches that may run at one time, at least 1; further ones wait.
    ///
    /// This also bounds name look-ups, which go on after the caller has given up.
    pub max_concurrent: usize,
    /// The memory in bytes for all fetched bodies together, from their first byte until they are
    /// decoded. It is never taken for less than one body of `max_bytes`.
    pub max_held_bytes: u64,
    /// What the requests say of their sender. Some servers ask for a contact here.
    pub user_agent: String,
    /// Address ranges that may be dialled although they are not public.
    ///
    /// An IPv4 range also opens its addresses where IPv6 addresses carry them. An IPv6 range opens
    /// the addresses as written. Write IPv4-mapped addresses as IPv4.
    pub allow_cidrs: Vec<IpNet>,
    /// Ports that may be dialled in addition to 80 and 443, on every address.
    pub allow_ports: Vec<u16>,
}

impl Default for FetchConfig {
    /// Returns limits that suit photographs, and opens only public addresses on ports 80 and 443.
    fn default() -> Self {
        Self {
            // A handshake across the world takes less than a second. A lost SYN is sent again after
            // 1 s, and after 3 s if that one is lost too.
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(5),
            total_timeout: Duration::from_secs(15),
            // Twice the size of a 24-megapixel JPEG at high quality.
            max_bytes: 20 * 1024 * 1024,
            // Link shorteners and a move to https take two or three.
            max_redirects: 5,
            // RFC 9110, section 4.1, asks for at least 8000 bytes; servers commonly stop at 8 KiB.
            max_url_length: 8192,
            max_concurrent: 64,
            // Twelve of the largest bodies, or a thousand photographs.
            max_held_bytes: 256 * 1024 * 1024,
            user_agent: concat!("imgclass/", env!("CARGO_PKG_VERSION")).to_owned(),
            allow_cidrs: Vec::new(),
            allow_ports: Vec::new(),
        }
    }
}
