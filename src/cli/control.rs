//! The control channel of a mounted volume: a socket in the volume's directory.
//!
//! One line of JSON asks, one line of JSON answers, then the connection ends. Whoever may use
//! the socket file (mode 0600) may ask. The socket is reached through the descriptor of the
//! directory, as the path of a socket has room for 107 bytes only.
//!
//! Owns both ends. The file is there only while the lock of the volume is held: it is removed
//! before the lock is given up, so that it never names another daemon's socket.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, socket,
    sockopt::PeerCredentials,
};
use nix::sys::stat::{Mode, fchmod};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::error::Error;
use crate::fuse::chain;
use crate::volume::{Status, Volume};

/// Name of the socket in the volume's directory.
const SOCKET: &str = "control.sock";
/// Longest line of a request, bytes.
const REQUEST_BYTES_MAX: u64 = 4096;
/// Connections served at a time; more are turned away.
const CONNECTIONS_MAX: usize = 32;
/// How long the daemon waits for the line of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "lowercase")]
pub enum Request {
    /// The figures of the volume.
    Status,
    /// Make everything that the kernel has handed over durable.
    Sync,
    /// Answer when the volume is closed: whether all was stored.
    Closed,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub enum Answer {
    /// The figures.
    Status(Box<Status>),
    /// It will be done; another answer follows.
    Waiting,
    /// It is done.
    Done,
    /// It could not be done.
    Failed {
        /// Why, in one line.
        why: String,
    },
}

/// The daemon's end.
pub struct Server {
    directory: File,
    waiting: Arc<Mutex<Vec<UnixStream>>>,
}

impl Server {
    /// Starts to listen in the directory of `volume`, whose lock the caller holds.
    ///
    /// A socket left behind by a daemon that was killed is replaced.
    pub fn start(path: &Path, volume: Arc<Volume>) -> io::Result<Server> {
        let directory = open_directory(path)?;
        remove(&directory)?;
        let listener = listen_in(&directory)?;
        let waiting = Arc::new(Mutex::new(Vec::new()));
        let office = Office { volume, waiting: Arc::clone(&waiting), open: AtomicUsize::new(0) };
        thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || accept(&listener, &Arc::new(office)))?;
        Ok(Server { directory, waiting })
    }

    /// Removes the socket's name: nobody new comes. To be called while the lock is still held.
    pub fn leave(&self) {
        if let Err(error) = remove(&self.directory) {
            tracing::warn!("cannot remove {SOCKET}: {error}");
        }
    }

    /// Tells those who asked how closing the volume ended.
    pub fn closed(&self, answer: &Answer) {
        for stream in self.waiting.lock().drain(..) {
            // Who has gone away does not want to know any more.
            let _ = send(&stream, answer);
        }
    }
}

/// What the threads of the server share.
struct Office {
    volume: Arc<Volume>,
    waiting: Arc<Mutex<Vec<UnixStream>>>,
    open: AtomicUsize,
}

fn accept(listener: &UnixListener, office: &Arc<Office>) {
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!("the control socket cannot accept: {error}");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if CONNECTIONS_MAX <= office.open.fetch_add(1, Ordering::Relaxed) {
            office.open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let shared = Arc::clone(office);
        let started = thread::Builder::new().name("control-one".to_owned()).spawn(move || {
            if let Err(error) = shared.serve(stream) {
                tracing::debug!("a control connection failed: {error}");
            }
            shared.open.fetch_sub(1, Ordering::Relaxed);
        });
        if started.is_err() {
            office.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Office {
    fn serve(&self, stream: UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
        let answer = match receive(&stream, REQUEST_BYTES_MAX)? {
            Request::Status => match self.volume.status() {
                Ok(status) => Answer::Status(Box::new(Status { mounted: true, ..status })),
                Err(error) => Answer::Failed { why: chain(&error) },
            },
            Request::Sync => match self.volume.sync() {
                Ok(()) => Answer::Done,
                Err(error) => Answer::Failed { why: chain(&error) },
            },
            Request::Closed => {
                let mut waiting = self.waiting.lock();
                // Those of earlier attempts, whose unmount was refused.
                waiting.retain(|stream| !has_hung_up(stream));
                // Under the lock, so that this answer comes before the other.
                send(&stream, &Answer::Waiting)?;
                waiting.push(stream);
                return Ok(());
            }
        };
        send(&stream, &answer)
    }
}

/// The other end: one connection to the daemon of a volume.
pub struct Client {
    stream: UnixStream,
    volume: PathBuf,
}

impl Client {
    /// Connects to the daemon that has `volume` mounted; `None` when there is none, or none that
    /// this user may talk to.
    pub fn connect(volume: &Path) -> Option<Client> {
        let directory = open_directory(volume).ok()?;
        let stream = UnixStream::connect(socket_path(&directory)).ok()?;
        Some(Client { stream, volume: volume.to_owned() })
    }

    /// The process at the other end, to be told when it has ended.
    pub fn process(&self) -> Option<OwnedFd> {
        let peer = getsockopt(&self.stream, PeerCredentials).ok()?;
        open_process(peer.pid())
    }

    /// Asks, and waits for the answer as long as it takes.
    pub fn ask(self, request: Request) -> Result<Answer, Error> {
        self.send(request)?;
        match self.answer(None)? {
            Some(answer) => Ok(answer),
            None => Err(self.failed(io::ErrorKind::TimedOut.into())),
        }
    }

    /// Sends a request whose answer is fetched later.
    pub fn send(&self, request: Request) -> Result<(), Error> {
        send(&self.stream, &request).map_err(|source| self.failed(source))
    }

    /// Waits for the answer; `None` when it is not there after `timeout`.
    pub fn answer(&self, timeout: Option<Duration>) -> Result<Option<Answer>, Error> {
        self.stream.set_read_timeout(timeout).map_err(|source| self.failed(source))?;
        match receive(&self.stream, u64::MAX) {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
                ) =>
            {
                Err(Error::DaemonGone)
            }
            Err(source) => Err(self.failed(source)),
        }
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Control { volume: self.volume.clone(), source }
    }
}

fn open_directory(path: &Path) -> io::Result<File> {
    let flags = libc::O_DIRECTORY | libc::O_CLOEXEC;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

fn socket_path(directory: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()))
}

fn remove(directory: &File) -> io::Result<()> {
    match fs::remove_file(socket_path(directory)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The mode is set before the socket gets its name, so that it is never open to others.
fn listen_in(directory: &File) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(socket.as_fd(), Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(&socket_path(directory))?)?;
    listen(&socket, Backlog::new(CONNECTIONS_MAX as i32)?)?;
    Ok(UnixListener::from(socket))
}

fn send<T: Serialize>(mut stream: &UnixStream, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Reads one line and not a byte more: another may follow.
fn receive<T: for<'a> Deserialize<'a>>(stream: &UnixStream, bytes_max: u64) -> io::Result<T> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    let mut limited = stream.take(bytes_max);
    while limited.read(&mut byte)? == 1 {
        match byte {
            [b'\n'] => return Ok(serde_json::from_slice(&line)?),
            [byte] => line.push(byte),
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// Whether the other end is closed.
fn has_hung_up(stream: &UnixStream) -> bool {
    let mut watched = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let polled = poll(&mut watched, PollTimeout::ZERO);
    polled.is_ok() && watched[0].any() == Some(true)
}

fn open_process(pid: libc::pid_t) -> Option<OwnedFd> {
    use std::os::fd::FromRawFd;
    if pid <= 0 {
        // A process of another namespace: it has no number here.
        return None;
    }
    // SAFETY: pidfd_open takes two numbers and touches no memory of ours.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let descriptor = i32::try_from(descriptor).ok().filter(|descriptor| 0 <= *descriptor)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Some(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_both_ways() {
        let (one, other) = UnixStream::pair().unwrap();
        send(&one, &Request::Sync).unwrap();
        assert_eq!(receive::<Request>(&other, REQUEST_BYTES_MAX).unwrap(), Request::Sync);
        let answer = Answer::Failed { why: "no\nspace".to_owned() };
        send(&other, &answer).unwrap();
        send(&other, &Answer::Done).unwrap();
        assert_eq!(receive::<Answer>(&one, u64::MAX).unwrap(), answer);
        assert_eq!(receive::<Answer>(&one, u64::MAX).unwrap(), Answer::Done);
        assert!(!has_hung_up(&one));
        drop(other);
        assert!(has_hung_up(&one));
    }

    #[test]
    fn what_is_no_line_is_refused() {
        let (one, other) = UnixStream::pair().unwrap();
        (&one).write_all(&[b'x'; 8192]).unwrap();
        assert!(receive::<Request>(&other, REQUEST_BYTES_MAX).is_err());
        let (one, other) = UnixStream::pair().unwrap();
        (&one).write_all(b"{\"request\":\"format\"}\n").unwrap();
        assert!(receive::<Request>(&other, REQUEST_BYTES_MAX).is_err());
        let (one, other) = UnixStream::pair().unwrap();
        drop(one);
        let error = receive::<Request>(&other, REQUEST_BYTES_MAX).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_socket_in_a_deep_directory_is_private_and_replaced() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120)).join("e".repeat(120));
        fs::create_dir_all(&deep).unwrap();
        let directory = open_directory(&deep).unwrap();
        drop(listen_in(&directory).unwrap());
        assert!(Client::connect(&deep).is_none());
        remove(&directory).unwrap();
        let _listener = listen_in(&directory).unwrap();
        let mode = fs::metadata(deep.join(SOCKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(Client::connect(&deep).unwrap().process().is_some());
    }
}
