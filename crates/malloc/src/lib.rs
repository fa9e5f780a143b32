//! Sets glibc's memory allocator up for a service that runs for months. It is a crate of its own,
//! because the setting takes one call of a C function, and every crate above the kernels forbids
//! `unsafe` code.

/// glibc's `M_MMAP_THRESHOLD`, from its `malloc.h`: the size in bytes from which blocks are mapped.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const M_MMAP_THRESHOLD: std::ffi::c_int = -3;

/// glibc's `M_ARENA_MAX`, from its `malloc.h`: the most arenas for small blocks.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const M_ARENA_MAX: std::ffi::c_int = -8;

/// glibc's `M_TRIM_THRESHOLD`, from its `malloc.h`: the free bytes at the end of the heap from which
/// they are given back.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const M_TRIM_THRESHOLD: std::ffi::c_int = -1;

/// Sets the allocator up, where it is glibc's and where the user has not done so by
/// `MALLOC_ARENA_MAX` or `MALLOC_MMAP_THRESHOLD_`. Call it before any other thread is started.
///
/// - Two arenas serve small blocks. Otherwise there is one for nearly each thread, and what one
///   thread has freed is not found by another.
/// - Blocks from 1 MB on are mapped. Otherwise the first large picture raises that bound to its own
///   size when it is freed, and later large blocks break up the heap.
///
/// `docs/benchmarks.md` says what each of the two is worth.
pub fn set_up() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (variable, parameter, value) in [
        ("MALLOC_ARENA_MAX", M_ARENA_MAX, 2),
        ("MALLOC_MMAP_THRESHOLD_", M_MMAP_THRESHOLD, 1 << 20),
    ] {
        if std::env::var_os(variable).is_none() {
            set(parameter, value);
        }
    }
}

/// Sets glibc's allocator up for a process that decodes one picture after the other.
///
/// The heap keeps up to 8 MiB of free memory, and blocks are mapped only from 8 MiB on. So a usual
/// photograph finds the pages of the one before it. Otherwise the kernel would clear some 270 pages
/// for each.
pub fn set_up_decode_worker() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        set(M_MMAP_THRESHOLD, 8 << 20);
        set(M_TRIM_THRESHOLD, 8 << 20);
    }
}

/// Gives free memory within the heap back to the system, where the allocator is glibc's. By itself
/// glibc returns only what is free at the heap's end, so that a burst of large requests would keep
/// its memory for ever. Elsewhere nothing happens.
///
/// Other threads that allocate wait meanwhile. Call it when nothing is under way.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: this is glibc's own function by its own signature. It may be called at any time,
        // and changes no block that is in use.
        unsafe { malloc_trim(0) };
    }
}

/// Calls glibc's `mallopt`.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn set(parameter: std::ffi::c_int, value: std::ffi::c_int) {
    use std::ffi::c_int;
    unsafe extern "C" {
        fn mallopt(parameter: c_int, value: c_int) -> c_int;
    }
    // SAFETY: this is glibc's own function by its own signature, with two integers. It may be called
    // at any time, and where it fails it changes nothing.
    unsafe { mallopt(parameter, value) };
}
