//! What processor and kernel do for us that the language has no word for: prefetch, comparing lanes, the time-stamp
//! counter, huge pages, and the kernel's time zone.
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

/// What the kernel's own time zone adds to UTC, in seconds: 0 unless somebody told it otherwise by settimeofday(2), as
/// systems do whose hardware clock has local time (`sys_tz`, which xt_time's `--kerneltz` goes by). The C library does not tell.
pub fn kernel_time_zone() -> i32 {
    // `struct timezone`: minutes west of Greenwich, and a kind of summer time that has never been used.
    let mut zone = [0i32; 2];
    let no_time: *mut libc::timeval = core::ptr::null_mut();
    // SAFETY: gettimeofday(2) takes a null pointer for the time, and writes a `struct timezone` (two ints) where the other
    // leads. On failure, of which there is none with valid pointers, it stays as it is.
    unsafe {
        libc::syscall(libc::SYS_gettimeofday, no_time, core::ptr::from_mut(&mut zone));
    }
    zone[0].saturating_mul(-60)
}

/// Sixteen comparisons at once, each answer one bit, lowest lane first. What a [`Lanes`] value stands for is that the
/// processor has been asked; [`with_lanes`] hands out the widest.
pub trait Lanes: Copy {
    /// Lanes where `key & mask == value`.
    fn masked_equal(self, values: &[u32; 16], masks: &[u32; 16], key: u32) -> u16;
    /// Lanes where `key & mask == value`.
    fn masked_equal_u8(self, values: &[u8; 16], masks: &[u8; 16], key: u8) -> u16;
    /// Lanes where `key - low <= span` in wrapping arithmetic.
    fn within(self, lows: &[u16; 16], spans: &[u16; 16], key: u16) -> u16;
    /// Lanes that have a bit in common with `key`.
    fn some_common(self, bits: &[u16; 16], key: u16) -> u16;
    /// Lanes that have no bit in common with `key`.
    fn none_common(self, bits: &[u8; 16], key: u8) -> u16;
    /// Lanes that are at most `key`.
    fn at_most(self, values: &[u32; 16], key: u32) -> u16;
}

/// Work to be compiled for each kind of [`Lanes`]. `run` and what it calls should be `#[inline(always)]`: only what ends
/// up in one function with it is compiled for the wider registers.
pub trait LanesTask {
    /// What it gives.
    type Output;
    /// Does it.
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Runs `task` with the widest lanes this processor has. (In a function of its own, a search for one packet took 5 ns longer: the
/// task was copied, before what had just been written was there to read.)
#[inline(always)]
pub fn with_lanes<T: LanesTask>(task: T) -> T::Output {
    #[cfg(target_arch = "x86_64")]
    match width() {
        // SAFETY: The processor has what the function is compiled for.
        64 => return unsafe { avx512::run(task) },
        // SAFETY: As above.
        32 => return unsafe { run_avx2(task) },
        _ => {}
    }
    task.run(PlainLanes)
}

/// Bytes of the widest registers there are. Asked once: it is nine features.
#[cfg(target_arch = "x86_64")]
#[inline]
fn width() -> u8 {
    use core::sync::atomic::{AtomicU8, Ordering};
    static WIDTH: AtomicU8 = AtomicU8::new(0);
    #[cold]
    fn ask() -> u8 {
        match (avx512::is_here(), avx2_is_here()) {
            (true, _) => 64,
            (_, true) => 32,
            _ => 16,
        }
    }
    match WIDTH.load(Ordering::Relaxed) {
        0 => {
            let width = ask();
            WIDTH.store(width, Ordering::Relaxed);
            width
        }
        width => width,
    }
}

#[cfg(target_arch = "x86_64")]
fn avx2_is_here() -> bool {
    std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("bmi1")
        && std::arch::is_x86_feature_detected!("bmi2")
        && std::arch::is_x86_feature_detected!("popcnt")
        && std::arch::is_x86_feature_detected!("lzcnt")
}

/// [`PlainLanes`], compiled for registers of 32 bytes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt,lzcnt")]
fn run_avx2<T: LanesTask>(task: T) -> T::Output {
    task.run(PlainLanes)
}

/// Lanes without a word of the processor's own: what the compiler makes of loops.
#[derive(Clone, Copy, Debug)]
pub struct PlainLanes;

impl PlainLanes {
    #[inline(always)]
    fn bits(test: impl Fn(usize) -> bool) -> u16 {
        let mut answers = [0u8; 16];
        for (lane, answer) in answers.iter_mut().enumerate() {
            *answer = if test(lane) { 0xff } else { 0 };
        }
        equal_lanes(&answers, 0xff) as u16
    }
}

impl Lanes for PlainLanes {
    #[inline(always)]
    fn masked_equal(self, values: &[u32; 16], masks: &[u32; 16], key: u32) -> u16 {
        Self::bits(|lane| key & masks[lane] == values[lane])
    }

    #[inline(always)]
    fn masked_equal_u8(self, values: &[u8; 16], masks: &[u8; 16], key: u8) -> u16 {
        Self::bits(|lane| key & masks[lane] == values[lane])
    }

    #[inline(always)]
    fn within(self, lows: &[u16; 16], spans: &[u16; 16], key: u16) -> u16 {
        Self::bits(|lane| key.wrapping_sub(lows[lane]) <= spans[lane])
    }

    #[inline(always)]
    fn some_common(self, bits: &[u16; 16], key: u16) -> u16 {
        Self::bits(|lane| bits[lane] & key != 0)
    }

    #[inline(always)]
    fn none_common(self, bits: &[u8; 16], key: u8) -> u16 {
        Self::bits(|lane| bits[lane] & key == 0)
    }

    #[inline(always)]
    fn at_most(self, values: &[u32; 16], key: u32) -> u16 {
        Self::bits(|lane| values[lane] <= key)
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    //! [`Lanes`] of 64-byte registers, whose comparisons give their bits without a detour.
    use super::{Lanes, LanesTask};
    use core::arch::x86_64::*;

    /// That the processor has AVX-512 with BW, DQ and VL.
    #[derive(Clone, Copy, Debug)]
    pub(super) struct Avx512(());

    pub(super) fn is_here() -> bool {
        super::avx2_is_here()
            && std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512dq")
            && std::arch::is_x86_feature_detected!("avx512vl")
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2,popcnt,lzcnt")]
    pub(super) fn run<T: LanesTask>(task: T) -> T::Output {
        task.run(Avx512(()))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn words(lanes: &[u32; 16]) -> __m512i {
        // SAFETY: The load needs no alignment, and reads the 64 bytes of `lanes`.
        unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn halves(lanes: &[u16; 16]) -> __m256i {
        // SAFETY: The load needs no alignment, and reads the 32 bytes of `lanes`.
        unsafe { _mm256_loadu_si256(lanes.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn bytes(lanes: &[u8; 16]) -> __m128i {
        // SAFETY: The load needs no alignment, and reads the 16 bytes of `lanes`.
        unsafe { _mm_loadu_si128(lanes.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn masked_equal(values: &[u32; 16], masks: &[u32; 16], key: u32) -> u16 {
        let masked = _mm512_and_si512(words(masks), _mm512_set1_epi32(key as i32));
        _mm512_cmpeq_epi32_mask(masked, words(values))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn masked_equal_u8(values: &[u8; 16], masks: &[u8; 16], key: u8) -> u16 {
        let masked = _mm_and_si128(bytes(masks), _mm_set1_epi8(key as i8));
        _mm_cmpeq_epi8_mask(masked, bytes(values))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn within(lows: &[u16; 16], spans: &[u16; 16], key: u16) -> u16 {
        let above = _mm256_sub_epi16(_mm256_set1_epi16(key as i16), halves(lows));
        _mm256_cmple_epu16_mask(above, halves(spans))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn some_common(bits: &[u16; 16], key: u16) -> u16 {
        _mm256_test_epi16_mask(halves(bits), _mm256_set1_epi16(key as i16))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn none_common(bits: &[u8; 16], key: u8) -> u16 {
        _mm_testn_epi8_mask(bytes(bits), _mm_set1_epi8(key as i8))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn at_most(values: &[u32; 16], key: u32) -> u16 {
        _mm512_cmple_epu32_mask(words(values), _mm512_set1_epi32(key as i32))
    }

    impl Lanes for Avx512 {
        #[inline(always)]
        fn masked_equal(self, values: &[u32; 16], masks: &[u32; 16], key: u32) -> u16 {
            // SAFETY: `self` exists, so the processor has been asked.
            unsafe { masked_equal(values, masks, key) }
        }

        #[inline(always)]
        fn masked_equal_u8(self, values: &[u8; 16], masks: &[u8; 16], key: u8) -> u16 {
            // SAFETY: As above.
            unsafe { masked_equal_u8(values, masks, key) }
        }

        #[inline(always)]
        fn within(self, lows: &[u16; 16], spans: &[u16; 16], key: u16) -> u16 {
            // SAFETY: As above.
            unsafe { within(lows, spans, key) }
        }

        #[inline(always)]
        fn some_common(self, bits: &[u16; 16], key: u16) -> u16 {
            // SAFETY: As above.
            unsafe { some_common(bits, key) }
        }

        #[inline(always)]
        fn none_common(self, bits: &[u8; 16], key: u8) -> u16 {
            // SAFETY: As above.
            unsafe { none_common(bits, key) }
        }

        #[inline(always)]
        fn at_most(self, values: &[u32; 16], key: u32) -> u16 {
            // SAFETY: As above.
            unsafe { at_most(values, key) }
        }
    }
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

    /// All of [`Lanes`] on one set of lanes.
    struct Everything<'a>(&'a [[u32; 16]; 2], u32);

    impl LanesTask for Everything<'_> {
        type Output = [u16; 6];

        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) -> [u16; 6] {
            let Everything([a, b], key) = self;
            let (a16, b16) = (&a.map(|lane| lane as u16), &b.map(|lane| lane as u16));
            let (a8, b8) = (&a.map(|lane| lane as u8), &b.map(|lane| lane as u8));
            [
                lanes.masked_equal(a, b, key),
                lanes.masked_equal_u8(a8, b8, key as u8),
                lanes.within(a16, b16, key as u16),
                lanes.some_common(a16, key as u16),
                lanes.none_common(a8, key as u8),
                lanes.at_most(a, key),
            ]
        }
    }

    #[test]
    fn wide_lanes_say_what_plain_ones_say() {
        let mut seed = 1u32;
        let mut number = || {
            seed = seed.wrapping_mul(0x915f_77f5).wrapping_add(0x1234_5677);
            // Few bits apart, high ones too.
            [seed >> 29, seed >> 30 | 0x8080_8080, u32::MAX - (seed >> 30), seed][(seed >> 13) as usize & 3]
        };
        for _ in 0..2000 {
            let lanes = [core::array::from_fn(|_| number()), core::array::from_fn(|_| number())];
            let key = number();
            let plain = Everything(&lanes, key).run(PlainLanes);
            assert_eq!(with_lanes(Everything(&lanes, key)), plain, "{lanes:x?} {key:x}");
            let by_hand = (0..16).fold(0, |bits, lane| bits | u16::from(lanes[0][lane] <= key) << lane);
            assert_eq!(plain[5], by_hand);
        }
    }
}
