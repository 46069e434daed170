//! The control channel of a mounted volume: a socket in the volume's directory, and one in the
//! user's runtime directory (`runtime`).
//!
//! One line of JSON asks, one line of JSON answers, then the connection ends. Whoever may use
//! the socket file (mode 0600) may ask. The socket is reached through the descriptor of the
//! directory, as the path of a socket has room for 107 bytes only.
//!
//! Owns both ends. The one in the volume's directory is there only while the lock of the volume is
//! held: it is removed before the lock is given up, so that it never names another daemon's
//! socket. A read-only mount holds no lock and has only the other one.
//!
//! Absent on purpose: what is answered. That is the daemon's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, socket,
    sockopt::PeerCredentials,
};
use nix::sys::stat::{Mode, fchmod};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::runtime;
use super::snapshot::{Told, Wanted};
use crate::check;
use crate::fuse::mountinfo::MountEntry;
use crate::volume::{CollectFigures, Named, Status, Usage};

/// Name of the socket in the volume's directory.
const SOCKET: &str = "control.sock";
/// Longest line of a request, bytes.
const REQUEST_BYTES_MAX: u64 = 64 << 10;
/// Connections served at a time; more are turned away.
const CONNECTIONS_MAX: usize = 32;
/// How long the daemon waits for the line of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the daemon may take to say where it is; it has nothing to look up for that.
const PLACE_TIMEOUT: Duration = Duration::from_secs(2);

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "lowercase")]
pub enum Request {
    /// The figures of the volume.
    Status,
    /// Make everything that the kernel has handed over durable.
    Sync,
    /// Answer when the volume is closed: whether all was stored.
    Closed,
    /// Which volume is mounted, and whether it still is.
    Place,
    /// Get ready for a remount with these options.
    Remount {
        /// The list behind `-o`.
        options: String,
    },
    /// Check the volume, or join the check under way.
    Check {
        /// Whether with all data.
        read_data: bool,
        /// Bytes of packs that are read in a second; none: as the mount says.
        rate_bytes: Option<u64>,
    },
    /// What is known of the last check, or of the one under way.
    CheckFigures,
    /// Make, show, delete or restore snapshots.
    Snapshot {
        /// What exactly.
        wanted: Wanted,
    },
    /// End the check under way.
    CheckStop,
    /// Collect, or join the collection under way.
    Collect {
        /// Only look what there is to win.
        dry_run: bool,
    },
    /// What is known of the last collection, or of the one under way.
    CollectFigures,
    /// What files take, and what would be free without them.
    Usage {
        /// The files.
        names: Vec<Named>,
    },
    /// How far the walk for that is.
    UsageProgress,
    /// The kernel has changed its flags: follow them, and make durable what it has handed over.
    Remounted,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub enum Answer {
    /// The figures.
    Status(Box<Figures>),
    /// Where it is.
    Place(Place),
    /// What is known of a check.
    Check(Box<check::Figures>),
    /// What is known of a collection.
    Collect(Box<CollectFigures>),
    /// What files take.
    Usage(Usage),
    /// How far something is.
    Progress {
        /// What is done.
        done: u64,
        /// Of so much.
        total: u64,
    },
    /// About snapshots.
    Snapshot {
        /// What exactly.
        told: Box<Told>,
    },
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

/// Figures of a volume and of its mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Those of the volume.
    #[serde(flatten)]
    pub status: Status,
    /// Whether the mount takes no changes.
    pub read_only: bool,
    /// Of a mounted volume: its checks.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub check: Option<CheckSummary>,
    /// The volume's directory.
    pub volume: String,
}

/// The checks of a mounted volume, in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckSummary {
    /// Whether one is under way.
    pub running: bool,
    /// When the last one ended: seconds since 1970, 0 for never.
    pub finished: u64,
    /// What it found, or what the one under way has found.
    pub findings: u64,
}

impl CheckSummary {
    /// The summary of these figures.
    pub fn of(figures: &check::Figures) -> CheckSummary {
        CheckSummary {
            running: figures.running,
            finished: figures.finished,
            findings: figures.finding_count,
        }
    }
}

/// Where a daemon is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The volume's directory.
    pub volume: String,
    /// The device number of the mount, once there is one.
    pub device: Option<String>,
    /// Whether the mount is still to be seen; not so after a lazy unmount.
    pub mounted: bool,
    /// The process.
    pub pid: u32,
}

/// The daemon's end. Clones are the same.
#[derive(Clone)]
pub struct Server {
    office: Arc<Office>,
}

/// What answers a request.
type Answering = Box<dyn Fn(&Server, &Request) -> Answer + Send + Sync>;

/// What the threads of the server share.
struct Office {
    answering: Answering,
    waiting: Mutex<Vec<UnixStream>>,
    open: AtomicUsize,
    /// None once it takes no new ones.
    doors: Mutex<Option<Vec<Door>>>,
}

impl Server {
    /// A server that nobody can reach yet.
    pub fn new(answering: impl Fn(&Server, &Request) -> Answer + Send + Sync + 'static) -> Server {
        let office = Office {
            answering: Box::new(answering),
            waiting: Mutex::default(),
            open: AtomicUsize::new(0),
            doors: Mutex::new(Some(Vec::new())),
        };
        Server { office: Arc::new(office) }
    }

    /// Listens in the directory of the volume, whose lock the caller holds.
    ///
    /// A socket left behind by a daemon that was killed is replaced.
    pub fn open_in_volume(&self, path: &Path) -> io::Result<()> {
        self.open(open_directory(path)?, SOCKET, false)
    }

    /// Listens in the runtime directory, for the mount with that device number.
    pub fn open_for_mount(&self, device: &str) -> io::Result<()> {
        self.open(runtime::prepare()?, &runtime::socket_name(device), true)
    }

    fn open(&self, directory: File, name: &str, shared: bool) -> io::Result<()> {
        let mut doors = self.office.doors.lock();
        let Some(doors) = doors.as_mut() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let (door, listener) = Door::open(directory, name, shared)?;
        let server = self.clone();
        thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || accept(&listener, &server))?;
        doors.push(door);
        Ok(())
    }

    /// Removes the sockets' names: nobody new comes. To be called while the lock is still held.
    pub fn leave(&self) {
        for door in self.office.doors.lock().take().unwrap_or_default() {
            if let Err(error) = door.close() {
                tracing::warn!("cannot remove {}: {error}", door.name);
            }
        }
    }

    /// Tells those who asked how closing the volume ended.
    pub fn closed(&self, answer: &Answer) {
        for stream in self.office.waiting.lock().drain(..) {
            // Who has gone away does not want to know any more.
            let _ = send(&stream, answer);
        }
    }
}

/// A socket with a name.
struct Door {
    directory: File,
    name: String,
    /// Keeps the inode from being given to another's socket of that name.
    pin: File,
    /// Whether others have sockets in the same directory.
    shared: bool,
}

impl Door {
    fn open(directory: File, name: &str, shared: bool) -> io::Result<(Door, UnixListener)> {
        let turn = turn(&directory, shared)?;
        if shared {
            sweep(&directory);
        }
        remove(&directory, name)?;
        let listener = listen_in(&directory, name)?;
        let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let path = socket_path(&directory, name);
        let pin = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        drop(turn);
        Ok((Door { directory, name: name.to_owned(), pin, shared }, listener))
    }

    fn close(&self) -> io::Result<()> {
        let _turn = turn(&self.directory, self.shared)?;
        match fs::symlink_metadata(socket_path(&self.directory, &self.name)) {
            Ok(about) if about.ino() == self.pin.metadata()?.ino() => {
                remove(&self.directory, &self.name)
            }
            // It is another's by now.
            _ => Ok(()),
        }
    }
}

/// The lock of a directory that is shared.
fn turn(directory: &File, shared: bool) -> io::Result<Option<Flock<File>>> {
    if !shared {
        return Ok(None);
    }
    // Opened anew: two doors of one process take turns as well.
    let own = File::open(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
    match Flock::lock(own, FlockArg::LockExclusive) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// Removes the sockets of daemons that were killed, once their mounts are gone.
fn sweep(directory: &File) {
    let listed = fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    for entry in listed.into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        if runtime::is_left_behind(&name)
            && UnixStream::connect(socket_path(directory, &name)).is_err_and(refused)
        {
            let _ = remove(directory, &name);
        }
    }
}

fn accept(listener: &UnixListener, server: &Server) {
    let office = &server.office;
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
        let shared = server.clone();
        let started = thread::Builder::new().name("control-one".to_owned()).spawn(move || {
            if let Err(error) = shared.serve(stream) {
                tracing::debug!("a control connection failed: {error}");
            }
            shared.office.open.fetch_sub(1, Ordering::Relaxed);
        });
        if started.is_err() {
            office.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Server {
    fn serve(&self, stream: UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
        let request = receive(&stream, REQUEST_BYTES_MAX)?;
        if request == Request::Closed {
            let mut waiting = self.office.waiting.lock();
            // Those of earlier attempts, whose unmount was refused.
            waiting.retain(|stream| !has_hung_up(stream));
            // Under the lock, so that this answer comes before the other.
            send(&stream, &Answer::Waiting)?;
            waiting.push(stream);
            return Ok(());
        }
        send(&stream, &(self.office.answering)(self, &request))
    }
}

/// The other end: one connection to the daemon of a volume.
pub struct Client {
    stream: UnixStream,
    volume: PathBuf,
}

impl Client {
    /// Connects to the daemon that has `volume` open for changes; `None` when there is none, or
    /// none that this user may talk to.
    pub fn of_volume(volume: &Path) -> Option<Client> {
        let directory = open_directory(volume).ok()?;
        let stream = UnixStream::connect(socket_path(&directory, SOCKET)).ok()?;
        Some(Client { stream, volume: volume.to_owned() })
    }

    /// Connects to the daemon that serves `mount`.
    pub fn of_mount(mount: &MountEntry) -> Option<Client> {
        let source = Path::new(&mount.source);
        let name = runtime::socket_name(&mount.device);
        for directory in runtime::directories(mount) {
            let Ok(stream) = UnixStream::connect(socket_path(&directory, &name)) else { continue };
            let peer = getsockopt(&stream, PeerCredentials).map(|peer| peer.uid()).ok();
            if peer == mount.user() {
                return Some(Client { stream, volume: source.to_owned() });
            }
        }
        // Where the runtime directory is not that of the daemon. The volume may be mounted by
        // another as well.
        let place = Client::of_volume(source).filter(|_| source.is_absolute())?.place()?;
        let same = place.device.as_ref() == Some(&mount.device);
        if same { Client::of_volume(source) } else { None }
    }

    /// Asks where the daemon is; `None` when it does not say so soon.
    pub fn place(self) -> Option<Place> {
        self.send(Request::Place).ok()?;
        match self.answer(Some(PLACE_TIMEOUT)) {
            Ok(Some(Answer::Place(place))) => Some(place),
            _ => None,
        }
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

fn socket_path(directory: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}

fn remove(directory: &File, name: &str) -> io::Result<()> {
    match fs::remove_file(socket_path(directory, name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The mode is set before the socket gets its name, so that it is never open to others.
fn listen_in(directory: &File, name: &str) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(socket.as_fd(), Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(&socket_path(directory, name))?)?;
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
        (&one).write_all(&[b'x'; 80 << 10]).unwrap();
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
        let first = Door::open(open_directory(&deep).unwrap(), SOCKET, false).unwrap();
        drop(first.1);
        assert!(Client::of_volume(&deep).is_none());
        let second = Door::open(open_directory(&deep).unwrap(), SOCKET, true).unwrap();
        let mode = fs::metadata(deep.join(SOCKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(Client::of_volume(&deep).unwrap().process().is_some());
        // The first is not the one to remove it.
        first.0.close().unwrap();
        assert!(deep.join(SOCKET).exists());
        second.0.close().unwrap();
        assert!(!deep.join(SOCKET).exists());
    }

    #[test]
    fn sockets_of_mounts_that_are_gone_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let directory = || open_directory(dir.path()).unwrap();
        drop(Door::open(directory(), "0-99999999.sock", false).unwrap().1);
        let served = Door::open(directory(), "0-99999998.sock", false).unwrap();
        let _new = Door::open(directory(), "0-99999997.sock", true).unwrap();
        assert!(!dir.path().join("0-99999999.sock").exists());
        assert!(dir.path().join("0-99999998.sock").exists(), "its daemon is there");
        drop(served);
    }

    #[test]
    fn figures_go_over_the_wire_whole() {
        let status = Status {
            uuid: "0-1".to_owned(),
            format: 1,
            branches: 128,
            hash: "sha3-256".to_owned(),
            compression: "lz4".to_owned(),
            mounted: true,
            poisoned: false,
            files: u64::MAX,
            logical_bytes: 4 << 20,
            unique_bytes: 2 << 20,
            chunks: 512,
            stored_bytes: 1 << 20,
            pack_bytes: 900 << 10,
            metadata_bytes: 100 << 10,
            index_bytes: 24 << 10,
            physical_bytes: 2 << 20,
            reserve_bytes: 1 << 20,
            quota_bytes: Some(1 << 30),
            available_bytes: 1 << 29,
            garbage_bytes: None,
            commits: 7,
            dirty_bytes: 0,
            shared_copy_bytes: 0,
            unshared_copies: 0,
        };
        let figures = Figures { status, read_only: true, check: None, volume: "/v".to_owned() };
        let (one, other) = UnixStream::pair().unwrap();
        send(&one, &Answer::Status(Box::new(figures.clone()))).unwrap();
        let answer = receive::<Answer>(&other, u64::MAX).unwrap();
        assert_eq!(answer, Answer::Status(Box::new(figures)));
    }
}
