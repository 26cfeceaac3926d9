//! The allocator's settings.

/// glibc gives large buffers back to the system as soon as they are freed, and every tensor operation then pays page
/// faults for its next one; kept instead, the dense training step was 1.7 times as fast. Linux with glibc only,
/// elsewhere nothing happens.
pub fn keep_large_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets parameters of the allocator, and no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 30);
        // One arena per thread would keep the large buffers of each.
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}
