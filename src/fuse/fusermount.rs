//! Mounting and unmounting without the right to do so oneself: through the helper `fusermount3`.
//!
//! The helper is set-user-id; it opens /dev/fuse, mounts, and passes the descriptor back over a
//! socket whose number stands in `_FUSE_COMMFD`.

use std::ffi::OsStr;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

const HELPER: &str = "fusermount3";

/// Mounts on `mountpoint` and returns the connection to the kernel.
///
/// The error of a refused mount carries what the helper printed.
pub fn mount(mountpoint: &Path, options: &OsStr) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let output = Command::new(HELPER)
        .arg("-o")
        .arg(options)
        .arg("--")
        .arg(mountpoint)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .output()?;
    drop(theirs);
    succeeded(output)?;
    receive(&ours)
}

/// Unmounts; with `lazy` also when files are open.
pub fn unmount(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    let mut command = Command::new(HELPER);
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(mountpoint);
    succeeded(command.output()?)
}

fn succeeded(output: Output) -> io::Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(text.trim().replace('\n', "; ")))
}

fn receive(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0_u8; 1];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let descriptor = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    let descriptor = descriptor.ok_or_else(|| io::Error::other("it passed no descriptor back"))?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{IoSlice, Read, Write};

    use nix::sys::socket::{ControlMessage, sendmsg};

    use super::*;

    #[test]
    fn a_descriptor_that_is_passed_is_owned_from_then_on() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut written, passed) = UnixStream::pair().unwrap();
        let byte = [IoSlice::new(&[0])];
        let descriptors = [passed.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let flags = MsgFlags::empty();
        sendmsg::<()>(theirs.as_raw_fd(), &byte, &rights, flags, None).unwrap();
        let received = receive(&ours).unwrap();
        assert_ne!(received.as_raw_fd(), passed.as_raw_fd());
        let flags = FdFlag::from_bits_retain(fcntl(&received, FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC), "no child gets it");
        drop(passed);
        written.write_all(b"still open").unwrap();
        drop(written);
        let mut text = String::new();
        File::from(received).read_to_string(&mut text).unwrap();
        assert_eq!(text, "still open");
        // And without one.
        (&theirs).write_all(&[0]).unwrap();
        assert!(receive(&ours).is_err());
    }
}
