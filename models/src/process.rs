//! Settings of the whole process that decide speed; made once, before any thread exists.

/// Prepares the process for tensor work:
///
/// - candle's own pool, whose idle threads spin, is limited to the calling thread: actions run side by
///   side in pools of their own, and spinning threads would take their cores;
/// - glibc keeps freed memory of tensor size instead of giving it back to the kernel, which would zero
///   it again page by page (a quarter of a forward pass, measured). It does so in its main arena alone: the arenas that
///   it makes for threads hold no block above 64 MiB, and give what is free back. So there is one arena. Blocks that are
///   larger than any batch of images makes, as gradients of CT-CLIP's projection are, go back at once: kept, they leave
///   holes that nothing else fills.
///
/// # Safety
/// No other thread may exist yet: call it first thing in `main`.
pub unsafe fn prepare() {
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: the caller promises that no other thread can read the environment now.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const MIB: i32 = 1 << 20;
        // SAFETY: mallopt takes two integers and only changes when memory is returned to the kernel.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 1);
            libc::mallopt(libc::M_MMAP_THRESHOLD, 512 * MIB);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
            libc::mallopt(libc::M_TOP_PAD, 64 * MIB);
        }
    }
}
