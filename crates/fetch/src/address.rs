//! Decides which IP addresses may be dialled.
//!
//! Two tables list the ranges that are not public. An IPv6 address can carry IPv4 addresses inside
//! it (mapped, 6to4, Teredo, NAT64, ISATAP); such an address is judged by the IPv4 addresses that
//! its packets would end at. This module only judges addresses: `resolve` finds them and `client`
//! dials them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::error::UrlRefusal;

/// The IPv4 ranges that are not globally routable, each with its purpose and its RFC.
///
/// They are the IANA IPv4 Special-Purpose Address Registry (RFC 6890), multicast, and the metadata
/// services of clouds. Most metadata services live inside ranges that are listed anyway:
/// 169.254.169.254 (AWS, Azure, Google, Oracle, ...), 169.254.170.2 (AWS tasks), 100.100.100.200
/// (Alibaba) and 192.0.0.192 (Oracle).
#[rustfmt::skip] // one row for each range
const FORBIDDEN_V4: &[(Ipv4Net, &str)] = &[
    (v4([0, 0, 0, 0], 8), "0.0.0.0/8, this network (RFC 791)"),
    (v4([10, 0, 0, 0], 8), "10.0.0.0/8, private (RFC 1918)"),
    (v4([100, 64, 0, 0], 10), "100.64.0.0/10, carrier-grade NAT (RFC 6598)"),
    (v4([127, 0, 0, 0], 8), "127.0.0.0/8, loopback (RFC 1122)"),
    // The registry calls this address public, but on Azure the host itself answers it to every
    // guest (WireServer).
    (v4([168, 63, 129, 16], 32), "168.63.129.16, Azure's platform service"),
    (v4([169, 254, 0, 0], 16), "169.254.0.0/16, link-local and cloud metadata (RFC 3927)"),
    (v4([172, 16, 0, 0], 12), "172.16.0.0/12, private (RFC 1918)"),
    (v4([192, 0, 0, 0], 24), "192.0.0.0/24, protocol assignments (RFC 6890)"),
    (v4([192, 0, 2, 0], 24), "192.0.2.0/24, documentation (RFC 5737)"),
    (v4([192, 88, 99, 0], 24), "192.88.99.0/24, 6to4 relays (RFC 7526)"),
    (v4([192, 168, 0, 0], 16), "192.168.0.0/16, private (RFC 1918)"),
    (v4([198, 18, 0, 0], 15), "198.18.0.0/15, benchmarking (RFC 2544)"),
    (v4([198, 51, 100, 0], 24), "198.51.100.0/24, documentation (RFC 5737)"),
    (v4([203, 0, 113, 0], 24), "203.0.113.0/24, documentation (RFC 5737)"),
    (v4([224, 0, 0, 0], 4), "224.0.0.0/4, multicast (RFC 5771)"),
    (v4([240, 0, 0, 0], 4), "240.0.0.0/4, reserved and broadcast (RFC 1112, RFC 919)"),
];

/// The only global unicast space that IANA hands out (RFC 4291, section 2.4).
///
/// Outside it lie loopback, unique local fc00::/7 (with the metadata services fd00:ec2::254 of AWS
/// and fd20:ce::254 of Google), link-local fe80::/10, site-local fec0::/10, multicast ff00::/8,
/// discard-only 100::/64 and segment routing 5f00::/16.
const GLOBAL_UNICAST_V6: Ipv6Net = v6([0x2000, 0], 3);

/// The IPv6 ranges inside 2000::/3 that are not globally routable, from the IANA IPv6
/// Special-Purpose Address Registry.
#[rustfmt::skip] // one row for each range
const FORBIDDEN_V6: &[(Ipv6Net, &str)] = &[
    (v6([0x2001, 0], 23), "2001::/23, protocol assignments (RFC 2928)"),
    (v6([0x2001, 0xdb8], 32), "2001:db8::/32, documentation (RFC 3849)"),
    (v6([0x3fff, 0], 20), "3fff::/20, documentation (RFC 9637)"),
];

const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6([a, b]: [u16; 2], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), prefix)
}

/// Decides which addresses may be dialled: public ones, and those that the operator opened.
#[derive(Clone, Debug)]
pub struct AddressPolicy {
    allow: Vec<IpNet>,
}

impl AddressPolicy {
    /// Creates a policy that allows public addresses and those in the ranges of `allow`.
    ///
    /// An IPv4 range in `allow` also opens its addresses where IPv6 addresses carry them. An IPv6
    /// range opens the addresses as written, whatever IPv4 addresses they carry.
    #[must_use]
    pub fn new(allow: &[IpNet]) -> Self {
        Self {
            allow: allow.to_vec(),
        }
    }

    /// Checks whether `address` may be dialled.
    ///
    /// An IPv6 address that carries IPv4 addresses (mapped, compatible, 6to4, Teredo, ISATAP,
    /// NAT64) is judged by those.
    ///
    /// # Errors
    ///
    /// Returns [`UrlRefusal::Address`] with the forbidden range that the address, or an address
    /// that it carries, falls in.
    pub fn check(&self, address: IpAddr) -> Result<(), UrlRefusal> {
        let range = match address {
            IpAddr::V4(v4) => self.forbidden_v4(v4),
            IpAddr::V6(v6) => self.forbidden_v6(v6),
        };
        range.map_or(Ok(()), |range| Err(UrlRefusal::Address { address, range }))
    }

    /// Checks whether a host name that resolves to `answers` may be dialled.
    ///
    /// Every answer must be allowed: a name that mixes public and internal addresses is an attack
    /// or a mistake.
    ///
    /// # Errors
    ///
    /// Returns the refusal of the first forbidden answer, or [`UrlRefusal::NoAddress`] if `answers`
    /// is empty.
    pub fn check_all(&self, answers: &[IpAddr]) -> Result<(), UrlRefusal> {
        if answers.is_empty() {
            return Err(UrlRefusal::NoAddress);
        }
        answers.iter().try_for_each(|answer| self.check(*answer))
    }

    fn allows(&self, address: IpAddr) -> bool {
        self.allow.iter().any(|range| range.contains(&address))
    }

    /// Returns the name of the forbidden range that `address` falls in, or `None` if it may be
    /// dialled.
    fn forbidden_v4(&self, address: Ipv4Addr) -> Option<&'static str> {
        if self.allows(address.into()) {
            return None;
        }
        let range = FORBIDDEN_V4
            .iter()
            .find(|(range, _)| range.contains(&address));
        range.map(|(_, name)| *name)
    }

    /// Returns the name of the forbidden range that `address`, or an IPv4 address that it carries,
    /// falls in, or `None` if it may be dialled.
    fn forbidden_v6(&self, address: Ipv6Addr) -> Option<&'static str> {
        // The operating system dials a mapped address as IPv4, so IPv6 ranges in `allow` do not
        // apply to it.
        if let Some(mapped) = address.to_ipv4_mapped() {
            return self.forbidden_v4(mapped);
        }
        if self.allows(address.into()) {
            return None;
        }
        match carried_by_prefix(address) {
            Some(carried) if carried.is_empty() => {
                Some("64:ff9b:1::/48, local NAT64 without an IPv4 address (RFC 8215)")
            }
            Some(carried) => carried.into_iter().find_map(|v4| self.forbidden_v4(v4)),
            None => forbidden_native(address)
                .or_else(|| carried_by_isatap(address).and_then(|v4| self.forbidden_v4(v4))),
        }
    }
}

/// Returns the name of the forbidden range that `address` itself falls in, without regard to what
/// it carries.
fn forbidden_native(address: Ipv6Addr) -> Option<&'static str> {
    if !GLOBAL_UNICAST_V6.contains(&address) {
        return Some("outside 2000::/3, the global unicast addresses (RFC 4291)");
    }
    let range = FORBIDDEN_V6
        .iter()
        .find(|(range, _)| range.contains(&address));
    range.map(|(_, name)| *name)
}

/// Returns the IPv4 addresses at which a packet to `address` may end, or `None` if the prefix of
/// `address` is not one that carries IPv4 addresses.
fn carried_by_prefix(address: Ipv6Addr) -> Option<Vec<Ipv4Addr>> {
    let pair = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match address.segments() {
        // IPv4-compatible (RFC 4291, section 2.5.5.1). This row also matches :: and ::1, which
        // become 0.0.0.0 and 0.0.0.1.
        [0, 0, 0, 0, 0, 0, g, h] => Some(vec![pair(g, h)]),
        // NAT64 under the well-known prefix 64:ff9b::/96 (RFC 6052).
        [0x64, 0xff9b, 0, 0, 0, 0, g, h] => Some(vec![pair(g, h)]),
        // NAT64 under the local-use prefix (RFC 8215).
        [0x64, 0xff9b, 1, ..] => Some(carried_by_local_nat64(address.octets())),
        // Teredo (RFC 4380): the server, then the client with every bit inverted.
        [0x2001, 0, b, c, _, _, g, h] => Some(vec![pair(b, c), pair(!g, !h)]),
        // 6to4 (RFC 3056): the site's router, behind which an ISATAP host may sit.
        [0x2002, b, c, ..] => {
            let mut carried = vec![pair(b, c)];
            carried.extend(carried_by_isatap(address));
            Some(carried)
        }
        _ => None,
    }
}

/// Returns the IPv4 address in a local NAT64 address, read at every prefix length that the operator
/// may have chosen.
///
/// 64:ff9b:1::/48 leaves the prefix length to the operator: /48, /56, /64 or /96, and octet 8 is
/// skipped (RFC 6052, section 2.2). A reading in 0.0.0.0/8 cannot be a translator's target; it is
/// the zeros of an address with another prefix length, so it is dropped. The result is empty if no
/// reading is left.
fn carried_by_local_nat64(octets: [u8; 16]) -> Vec<Ipv4Addr> {
    let readings = [
        [6, 7, 9, 10],
        [7, 9, 10, 11],
        [9, 10, 11, 12],
        [12, 13, 14, 15],
    ];
    let read = |at: [usize; 4]| Ipv4Addr::from(at.map(|i| octets[i]));
    readings
        .into_iter()
        .map(read)
        .filter(|v4| v4.octets()[0] != 0)
        .collect()
}

/// Returns the IPv4 address in an ISATAP interface identifier, under any prefix.
///
/// Such an identifier is 0000:5efe or 0200:5efe before the IPv4 address (RFC 5214, section 6.1).
/// The universal and group bits are ignored.
fn carried_by_isatap(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.octets() {
        [.., flags, 0, 0x5e, 0xfe, a, b, c, d] if flags & !0x03 == 0 => {
            Some(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    }
}
