//! SCTP's common header (RFC 9260 section 3.1). Slices start at the header and end with the packet.

use super::checksum::crc32c;

/// Length of the common header in bytes.
pub const HEADER_LEN: usize = 12;
/// Byte offset of the checksum.
pub const CHECKSUM_AT: usize = 8;

/// The checksum as it stands in the packet (RFC 9260 appendix A): CRC32c with the field itself taken as zero, little-endian.
pub fn checksum(sctp: &[u8]) -> [u8; 4] {
    let crc = crc32c(!0, &sctp[..CHECKSUM_AT]);
    let crc = crc32c(crc, &[0; 4]);
    (!crc32c(crc, &sctp[HEADER_LEN..])).to_le_bytes()
}

/// Writes the checksum.
pub fn set_checksum(sctp: &mut [u8]) {
    let check = checksum(sctp);
    sctp[CHECKSUM_AT..HEADER_LEN].copy_from_slice(&check);
}
