//! What the kernel is asked for when a mount begins, and how its write-back is set.
//!
//! Owns the list of capabilities, the limits of requests, and the settings in `/sys/class/bdi`.
//!
//! Absent on purpose, as the transport (fuser 0.18) accepts them but does not serve them:
//! SETXATTR_EXT (the first setxattr would end its thread), SECURITY_CTX, CREATE_SUPP_GROUP,
//! ALLOW_IDMAP, HAS_RESEND, OVER_IO_URING. NO_OPEN_SUPPORT: the volume counts open files.

use std::fs;
use std::io;

use fuser::{InitFlags, KernelConfig};

/// Most bytes of a write request: what the kernel's limit of 256 pages allows.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// How far ahead the kernel reads, bytes.
const READ_AHEAD_BYTES: u32 = 1 << 20;
/// Most requests that no task waits for (write-back, read-ahead).
const BACKGROUND_REQUESTS_MAX: u16 = 64;
/// Most dirty bytes that the kernel keeps for the mount. It hands over at least 150 MiB/s, so
/// that the last close takes no more than a second or two.
const DIRTY_BYTES_MAX: u64 = 256 << 20;
/// The same as a share of all dirty memory, percent, for kernels that take no bytes.
const DIRTY_RATIO_MAX: u32 = 10;

/// Each with its reason; one that the kernel does not have is left out.
const CAPABILITIES: [InitFlags; 13] = [
    // Small writes are gathered in the page cache: 1 MiB requests instead of one for each call.
    InitFlags::FUSE_WRITEBACK_CACHE,
    // Lookups and readdirs in one directory side by side.
    InitFlags::FUSE_PARALLEL_DIROPS,
    // Names with their attributes, when the caller looks as if it wanted them.
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    // Direct I/O does not wait piece by piece.
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_ASYNC_READ,
    // Targets of symbolic links never change.
    InitFlags::FUSE_CACHE_SYMLINKS,
    // The volume clears set-id bits itself. Without it each write(2) asks for security.capability.
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    // More than 32 pages a request.
    InitFlags::FUSE_MAX_PAGES,
    // O_TRUNC comes with the open, in one step.
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    // Access control lists are judged by the kernel. The volume keeps them in step with the modes,
    // and takes the umask off itself: a default list takes its place.
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
    // File handles (open_by_handle_at, NFS) find an inode by its number, also after a remount.
    InitFlags::FUSE_EXPORT_SUPPORT,
];

/// Asks for all of it. Answers whether files can be opened for direct I/O and still be mapped.
///
/// # Errors
///
/// Without write-back, which Linux has since 3.15: the times of changes are left to the kernel.
pub fn configure(config: &mut KernelConfig) -> io::Result<bool> {
    for capability in CAPABILITIES {
        if config.add_capabilities(capability).is_err() {
            if capability == InitFlags::FUSE_WRITEBACK_CACHE {
                return Err(io::Error::other("the kernel has no write-back cache for FUSE"));
            }
            tracing::info!("the kernel does not offer {capability:?}");
        }
    }
    // Each answers the nearest value that it takes.
    if let Err(nearest) = config.set_max_write(WRITE_BYTES_MAX) {
        let _ = config.set_max_write(nearest);
    }
    if let Err(nearest) = config.set_max_readahead(READ_AHEAD_BYTES) {
        let _ = config.set_max_readahead(nearest);
    }
    if let Err(nearest) = config.set_max_background(BACKGROUND_REQUESTS_MAX) {
        let _ = config.set_max_background(nearest);
    }
    // Since Linux 6.6. Without it such files could not be mapped, which programs need more.
    Ok(config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP).is_ok())
}

/// Raises the write-back limits of the mount with that device number.
///
/// By default a FUSE mount may hold 1 % of the dirty memory, and write(2) stalls. Without
/// the right to change it the mount works all the same, slower.
pub fn raise_limits(device: &str) {
    let directory = format!("/sys/class/bdi/{device}");
    let set = |name: &str, value: String| -> io::Result<()> {
        fs::write(format!("{directory}/{name}"), value)
    };
    let dirty = set("max_bytes", DIRTY_BYTES_MAX.to_string())
        .or_else(|_| set("max_ratio", DIRTY_RATIO_MAX.to_string()));
    // Strict, so that the bound holds also while the machine has much memory to spare.
    let strict = dirty.and_then(|()| set("strict_limit", "1".to_owned()));
    let ahead = set("read_ahead_kb", (READ_AHEAD_BYTES / 1024).to_string());
    if let Err(error) = strict.and(ahead) {
        tracing::info!("cannot raise the write-back limits in {directory}: {error}");
    }
}
