//! ICMPv6 header fields and numbers (RFC 4443, RFC 4861, IANA "ICMPv6 Parameters"). Slices start at the header.

/// Header length in bytes.
pub const HEADER_LEN: usize = 8;
/// Byte offset of the checksum.
pub const CHECKSUM_AT: usize = 2;
/// Byte offset of a query's identifier.
pub const ID_AT: usize = 4;

/// Destination unreachable.
pub const DEST_UNREACHABLE: u8 = 1;
/// Packet too big.
pub const PACKET_TOO_BIG: u8 = 2;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 3;
/// Parameter problem.
pub const PARAMETER_PROBLEM: u8 = 4;
/// Echo request.
pub const ECHO_REQUEST: u8 = 128;
/// Echo reply.
pub const ECHO_REPLY: u8 = 129;
/// Redirect.
pub const REDIRECT: u8 = 137;
/// Node information query.
pub const NI_QUERY: u8 = 139;
/// Node information reply.
pub const NI_REPLY: u8 = 140;

/// Destination unreachable: no route.
pub const CODE_NO_ROUTE: u8 = 0;
/// Destination unreachable: administratively prohibited.
pub const CODE_ADMIN_PROHIBITED: u8 = 1;
/// Destination unreachable: beyond scope of the source address.
pub const CODE_BEYOND_SCOPE: u8 = 2;
/// Destination unreachable: address unreachable.
pub const CODE_ADDR_UNREACHABLE: u8 = 3;

/// Whether this type reports an error about another packet (RFC 4443 section 2.1: the high bit is clear).
pub const fn is_error(kind: u8) -> bool {
    kind < 128
}
