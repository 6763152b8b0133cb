//! What the processor does for us that the language has no word for: prefetch, comparing lanes, the time-stamp counter,
//! and huge pages.
//!
//! One of the two places where `unsafe` may stand (the other is `xdp`).
#![allow(unsafe_code)]

/// Asks for the cache line at `line` to be brought close, for a read or a write soon. Never faults, changes nothing.
#[inline(always)]
pub fn prefetch<T: ?Sized>(line: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: PREFETCHT0 is a hint; it has no architectural effect and faults on no address, and this one is valid.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(core::ptr::from_ref(line).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// One bit for each lane of `lanes` that is `wanted`, lowest first.
#[inline(always)]
pub fn equal_lanes(lanes: &[u8; 16], wanted: u8) -> u32 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: Every x86-64 processor has SSE2.
    unsafe {
        equal_lanes_sse2(lanes, wanted)
    }
    #[cfg(not(target_arch = "x86_64"))]
    lanes.iter().enumerate().fold(0, |mask, (lane, &value)| mask | u32::from(value == wanted) << lane)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse2")]
#[inline]
fn equal_lanes_sse2(lanes: &[u8; 16], wanted: u8) -> u32 {
    use core::arch::x86_64::{_mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8, _mm_set1_epi8};
    // SAFETY: The load needs no alignment, and reads the 16 bytes of `lanes`.
    let lanes = unsafe { _mm_loadu_si128(lanes.as_ptr().cast()) };
    _mm_movemask_epi8(_mm_cmpeq_epi8(lanes, _mm_set1_epi8(wanted as i8))) as u32
}

/// Asks the kernel to back memory that has not been touched yet with huge pages. A large table at random then costs
/// one miss per access, not two. A hint: nothing happens where the kernel has none to give.
pub fn advise_huge_pages<T>(memory: &mut [core::mem::MaybeUninit<T>]) {
    const PAGE: usize = 4096;
    let range = memory.as_mut_ptr_range();
    // The first and the last page, too, though they may be shared: a huge page is given only where all of it is wished for.
    let start = range.start as usize / PAGE * PAGE;
    let end = (range.end as usize).next_multiple_of(PAGE);
    if memory.is_empty() {
        return;
    }
    // SAFETY: The pages from `start` to `end` are those that `memory` lies on. MADV_HUGEPAGE changes neither their contents
    // nor their protection; on failure nothing has changed.
    unsafe {
        libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE);
    }
}

/// The processor's time-stamp counter, in its own ticks; 0 where there is none. For benchmarks, never for time-outs.
#[inline]
pub fn tsc() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: RDTSC exists on every x86-64 processor and only reads a register.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_lanes_are_told_by_their_bits() {
        let lanes = [7, 1, 0xff, 7, 0x80, 0, 7, 2, 7, 0, 0, 3, 0, 0x7f, 0, 7];
        for wanted in [0, 1, 2, 3, 7, 9, 0x7f, 0x80, 0xff] {
            let plain = (0..16).filter(|&lane| lanes[lane] == wanted).fold(0, |mask, lane| mask | 1 << lane);
            assert_eq!(equal_lanes(&lanes, wanted), plain, "{wanted:#x}");
        }
    }
}
