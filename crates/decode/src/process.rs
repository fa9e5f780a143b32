//! The service's side of one worker process.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use imgclass_image::{Limits, Preprocessing, RgbImage};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::WORKER_ARGUMENT;
use crate::confinement::Confinement;
use crate::protocol::{self, FromWorker, ToWorker};
use crate::work::{Outcome, Prepared, Task};
use crate::worker::{Cause, ProcessorClock};

/// The time in which a worker must be ready. It needs milliseconds.
const START: Duration = Duration::from_secs(20);

/// The variable of the environment that names folders of shared libraries, as those of CUDA.
const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";

/// Address space that a worker may take beside its own at the start, the encoded picture and what
/// decoding announces, in bytes: 8 MiB of stack, the crop and the resize's rows, and what the
/// allocator keeps.
#[cfg(target_os = "linux")]
pub(crate) const RESERVE: u64 = 24 << 20;

/// How workers are started.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    /// The program, which calls [`run_worker`](crate::run_worker).
    pub(crate) program: PathBuf,
    pub(crate) limits: Limits,
    pub(crate) fast: bool,
    pub(crate) preprocessing: Preprocessing,
    /// Bytes of the crop that a worker returns.
    pub(crate) crop_bytes: usize,
}

/// A worker that is ready for a picture, or has one.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    /// `None` while a picture is under way, and after an exchange that failed.
    socket: Option<UnixStream>,
    confinement: Confinement,
    max_side: u32,
    crop_bytes: usize,
}

/// Returns the program that runs, for starting it again.
pub(crate) fn own_program() -> io::Result<PathBuf> {
    // The link leads to the running program even after its file was replaced.
    let link = Path::new("/proc/self/exe");
    if link.exists() {
        return Ok(link.to_owned());
    }
    std::env::current_exe()
}

impl Process {
    /// Starts a worker and waits until it is ready.
    ///
    /// The worker dies with the thread that calls this.
    pub(crate) fn start(launch: &Launch) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let child = Command::new(&launch.program)
            .arg0("imgclass")
            .arg(WORKER_ARGUMENT)
            .env_clear()
            // Where the operator's own libraries are, without which the program may not start.
            .envs(std::env::var_os(LIBRARY_PATH).map(|folders| (LIBRARY_PATH, folders)))
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C at a terminal is for the service, which needs its workers until it has ended.
            .process_group(0)
            .spawn()?;
        let mut process = Self {
            child,
            socket: None,
            confinement: Confinement {
                own_address_space: None,
                seccomp: false,
                landlock: false,
            },
            max_side: launch.limits.max_side,
            crop_bytes: launch.crop_bytes,
        };
        match process.set_up(launch, &socket) {
            Ok(()) => {
                process.socket = Some(socket);
                Ok(process)
            }
            Err(error) => {
                process.end();
                Err(error)
            }
        }
    }

    fn set_up(&mut self, launch: &Launch, mut socket: &UnixStream) -> io::Result<()> {
        socket.set_read_timeout(Some(START))?;
        socket.write_all(&protocol::frame(&ToWorker::Setup {
            limits: launch.limits,
            fast: launch.fast,
            preprocessing: launch.preprocessing.clone(),
        })?)?;
        let FromWorker::Ready(confinement) = protocol::read(socket)? else {
            return Err(protocol::invalid("the worker did not say that it is ready"));
        };
        self.confinement = confinement;
        socket.set_read_timeout(None)?;
        socket.set_nonblocking(true)
    }

    /// Returns which limits hold for this worker.
    pub(crate) fn confinement(&self) -> &Confinement {
        &self.confinement
    }

    /// Has the worker carry out a task on the encoded picture `bytes`.
    ///
    /// # Errors
    /// Those of the socket, and [`io::ErrorKind::InvalidData`] where the worker said what it must
    /// not say. The worker is of no further use after an error, and where this future is dropped.
    pub(crate) async fn perform(&mut self, bytes: &[u8], task: &Task) -> io::Result<Outcome> {
        self.allow(bytes.len() as u64 + task.memory)?;
        let socket = self.socket.take();
        let socket = socket.ok_or_else(|| io::Error::other("the worker has no socket"))?;
        let mut socket = tokio::net::UnixStream::from_std(socket)?;
        socket
            .write_all(&protocol::frame(&ToWorker::Task(*task))?)
            .await?;
        socket.write_all(bytes).await?;
        let outcome = match protocol::read_async(&mut socket).await? {
            FromWorker::Ready(_) => return Err(protocol::invalid("the worker is ready twice")),
            FromWorker::Costly(info) => Outcome::Costly(info),
            FromWorker::Refused(error) => Outcome::Refused(error),
            FromWorker::Prepared { size, picture } => {
                self.check_sizes(size, picture, task)?;
                let mut pixels = vec![0; self.crop_bytes];
                socket.read_exact(&mut pixels).await?;
                let picture = match picture {
                    Some(size) => Some(read_picture(&mut socket, size).await?),
                    None => None,
                };
                Outcome::Prepared(Prepared {
                    pixels,
                    size,
                    picture,
                })
            }
        };
        self.socket = Some(socket.into_std()?);
        Ok(outcome)
    }

    /// Checks what a worker says of a picture's sizes, which may be a stranger's word.
    fn check_sizes(
        &self,
        (width, height): (u32, u32),
        picture: Option<(u32, u32)>,
        task: &Task,
    ) -> io::Result<()> {
        let sides = 1..=self.max_side;
        let kept = 1..=task.keep_picture.unwrap_or(0);
        let plausible = sides.contains(&width)
            && sides.contains(&height)
            && picture.is_some() == task.keep_picture.is_some()
            && picture
                .is_none_or(|(width, height)| kept.contains(&width) && kept.contains(&height));
        if plausible {
            Ok(())
        } else {
            Err(protocol::invalid("the worker returned an impossible size"))
        }
    }

    /// Lets the worker's address space grow to its own size, `bytes` and [`RESERVE`].
    #[cfg(target_os = "linux")]
    fn allow(&self, bytes: u64) -> io::Result<()> {
        use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
        let Some(own) = self.confinement.own_address_space else {
            return Ok(());
        };
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("the worker has no process id"))?;
        // The worker has inherited the hard limit of the service. It cannot raise the soft one,
        // because seccomp does not let it.
        let hard = getrlimit(Resource::As).maximum;
        let soft = own.saturating_add(bytes).saturating_add(RESERVE);
        let limit = Rlimit {
            current: Some(hard.map_or(soft, |hard| hard.min(soft))),
            maximum: hard,
        };
        prlimit(Some(pid), Resource::As, limit)?;
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    fn allow(&self, _bytes: u64) -> io::Result<()> {
        Ok(())
    }

    /// Returns the clock of the process's processor time.
    pub(crate) fn clock(&self) -> ProcessorClock {
        ProcessorClock {
            process: self.child.id(),
        }
    }

    /// Returns whether the process has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills the worker, if it lives. [`Process::end`] must follow.
    pub(crate) fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
    }

    /// Kills the worker and waits until it is gone. Returns why it had ended, if it had by itself.
    pub(crate) fn end(mut self) -> Option<Cause> {
        // A worker that has crashed may be a zombie only a moment after its socket was closed.
        self.kill();
        self.child.wait().ok().and_then(cause)
    }
}

/// Reads a picture of this width and height.
async fn read_picture(
    socket: &mut tokio::net::UnixStream,
    (width, height): (u32, u32),
) -> io::Result<RgbImage> {
    let mut data = vec![0; 3 * width as usize * height as usize];
    socket.read_exact(&mut data).await?;
    RgbImage::new(width, height, data).ok_or_else(|| protocol::invalid("a picture without pixels"))
}

/// Returns why a worker ended, from its exit status. `None` where the service or somebody else ended
/// it.
fn cause(status: ExitStatus) -> Option<Cause> {
    use rustix::process::Signal;
    match status.signal().and_then(Signal::from_named_raw) {
        // Those that come from outside. A supervisor may send them to all processes of a service.
        Some(Signal::KILL | Signal::TERM | Signal::INT | Signal::HUP | Signal::QUIT) => None,
        // The standard library ends the process like this where there is no memory.
        Some(Signal::ABORT) => Some(Cause::OutOfMemory),
        _ => Some(Cause::Crashed),
    }
}
