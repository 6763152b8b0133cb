//! NetBIOS name service: answers to broadcasts (nf_conntrack_netbios_ns.c, nf_conntrack_broadcast.c).

use super::{Call, Refused};

/// Linux expects answers only to broadcasts that the host itself sends. Of a packet that is forwarded it wants nothing.
pub(super) fn help(_: &mut Call<'_>) -> Result<(), Refused> {
    Ok(())
}
