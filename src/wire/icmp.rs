//! ICMP header fields and numbers (RFC 792, RFC 1812, IANA "ICMP Type Numbers"). Slices start at the header.

/// Header length in bytes.
pub const HEADER_LEN: usize = 8;
/// Byte offset of the checksum.
pub const CHECKSUM_AT: usize = 2;
/// Byte offset of a query's identifier.
pub const ID_AT: usize = 4;

/// Echo reply.
pub const ECHO_REPLY: u8 = 0;
/// Destination unreachable.
pub const DEST_UNREACHABLE: u8 = 3;
/// Source quench (deprecated by RFC 6633).
pub const SOURCE_QUENCH: u8 = 4;
/// Redirect.
pub const REDIRECT: u8 = 5;
/// Echo request.
pub const ECHO_REQUEST: u8 = 8;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 11;
/// Parameter problem.
pub const PARAMETER_PROBLEM: u8 = 12;
/// Timestamp request.
pub const TIMESTAMP_REQUEST: u8 = 13;
/// Timestamp reply.
pub const TIMESTAMP_REPLY: u8 = 14;
/// Information request.
pub const INFO_REQUEST: u8 = 15;
/// Information reply.
pub const INFO_REPLY: u8 = 16;
/// Address mask request.
pub const MASK_REQUEST: u8 = 17;
/// Address mask reply.
pub const MASK_REPLY: u8 = 18;

/// Destination unreachable: network.
pub const CODE_NET: u8 = 0;
/// Destination unreachable: host.
pub const CODE_HOST: u8 = 1;
/// Destination unreachable: fragmentation needed and DF set.
pub const CODE_FRAG_NEEDED: u8 = 4;
/// Destination unreachable: communication administratively prohibited.
pub const CODE_ADMIN_PROHIBITED: u8 = 13;

/// Whether this type reports an error about another packet (RFC 1122 section 3.2.2).
pub const fn is_error(kind: u8) -> bool {
    matches!(kind, DEST_UNREACHABLE | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAMETER_PROBLEM)
}
