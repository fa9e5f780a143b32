//! The process of a worker: it confines itself, then decodes one picture after the other until the
//! service closes the socket.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use imgclass_image::Preprocessor;

use crate::WORKER_ARGUMENT;
use crate::confinement::Confinement;
use crate::protocol::{self, FromWorker, ToWorker};
use crate::work::{Outcome, Task, Work};

/// Runs as a worker, and returns how the process ends. Programs that start
/// [`Decoders`](crate::Decoders) call this, and nothing else, where [`is_worker`](crate::is_worker)
/// says so.
#[must_use]
pub fn run_worker() -> ExitCode {
    end_at_panics_that_abort();
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("imgclass: {WORKER_ARGUMENT} is for the service itself: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Makes the process exit at a panic in a function of a C interface, as the AV1 decoder's are. By
/// itself it would abort, which is how a process ends that finds no memory, so that the service would
/// take damaged data for a want of memory.
fn end_at_panics_that_abort() {
    const FAULT: i32 = 70;
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // The first panic unwinds to that function, where this second one follows.
        if panic.payload_as_str() == Some("panic in a function that cannot unwind") {
            std::process::exit(FAULT);
        }
        usual(panic);
    }));
}

fn serve() -> io::Result<()> {
    // The socket is the standard input, which the service has connected.
    let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let ToWorker::Setup {
        limits,
        fast,
        preprocessing,
    } = protocol::read(&socket)?
    else {
        return Err(protocol::invalid("the first frame is no set-up"));
    };
    let preprocessor = Preprocessor::new(preprocessing).map_err(io::Error::other)?;
    let work = Work {
        limits,
        preprocessor,
        fast,
    };
    let confinement = Confinement::enter()?;
    socket.write_all(&protocol::frame(&FromWorker::Ready(confinement))?)?;
    loop {
        match protocol::read(&socket) {
            Ok(ToWorker::Task(task)) => answer(&work, &task, &mut socket)?,
            Ok(ToWorker::Setup { .. }) => {
                return Err(protocol::invalid("a second set-up"));
            }
            // The service has ended, or wants this worker no more.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Reads the picture of a task, decodes it, and answers.
fn answer(work: &Work, task: &Task, socket: &mut UnixStream) -> io::Result<()> {
    // The service has allowed the address space for it.
    let length = usize::try_from(task.encoded_bytes).map_err(io::Error::other)?;
    let mut encoded = vec![0; length];
    socket.read_exact(&mut encoded)?;
    let (header, prepared) = match work.perform(&encoded, task) {
        Outcome::Costly(info) => (FromWorker::Costly(info), None),
        Outcome::Refused(error) => (FromWorker::Refused(error), None),
        Outcome::Prepared(prepared) => {
            let picture = prepared.picture.as_ref();
            let header = FromWorker::Prepared {
                size: prepared.size,
                picture: picture.map(|picture| (picture.width(), picture.height())),
            };
            (header, Some(prepared))
        }
    };
    drop(encoded);
    let mut frame = protocol::frame(&header)?;
    if let Some(prepared) = prepared {
        frame.extend_from_slice(&prepared.pixels);
        socket.write_all(&frame)?;
        if let Some(picture) = prepared.picture {
            socket.write_all(picture.data())?;
        }
        return Ok(());
    }
    socket.write_all(&frame)
}
