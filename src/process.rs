//! Runs a command: its lines live, its whole process tree gone when the run is over, for whatever reason.

mod lines;
mod supervisor;

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind, PipeReader, Read, Write, pipe};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};

use crate::error::{Error, RUN};
use crate::task::Task;
use lines::LineSplitter;

/// What to run, and where.
#[derive(Clone, Debug)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<OsString>,
    pub cwd: PathBuf,
    /// The whole environment, nothing is inherited besides.
    pub environment: Vec<(OsString, OsString)>,
}

/// Read in one go from a command's output.
const CHUNK_BYTES: usize = 64 * 1024;

/// Runs `command` to its end and says every line of its merged stdout and stderr, without line ends.
///
/// Returns the exit code, negative for a signal, as Python's `subprocess` has it. The command has no stdin. When the
/// task is cancelled, or this process dies, the command's whole process tree is ended (see [`supervisor`]).
///
/// # Errors
/// [`Error::Io`] when the command cannot be started, [`Error::Cancelled`] once the tree of a cancelled run is gone.
pub fn run(command: &Command, task: &Task<String>) -> Result<i32, Error> {
    let Started {
        mut supervisor,
        mut output,
        mut lifeline,
    } = spawn(command)?;
    let mut cord = lifeline
        .try_clone()
        .map_err(Error::io(RUN, &program(command)))?;
    // Written to rather than closed: a fork of this process may hold it open too.
    task.cancel.on_cancel(move || {
        let _ = cord.write_all(b"x");
    });
    let spoken = say_lines(&mut output, task);
    let mut status = [0; 4];
    let told = lifeline.read_exact(&mut status);
    // A host that ignores SIGCHLD, or waits for any child, leaves nothing to wait for here.
    let supervisor_status = supervisor.wait();
    spoken?;
    task.check()?;
    Ok(match (told, supervisor_status) {
        (Ok(()), _) => returncode(ExitStatus::from_raw(i32::from_ne_bytes(status))),
        // The supervisor was killed, and the command with it.
        (Err(_), Ok(status)) => returncode(status),
        (Err(_), Err(_)) => -libc::SIGKILL,
    })
}

fn program(command: &Command) -> PathBuf {
    command.argv.first().map(PathBuf::from).unwrap_or_default()
}

/// A command that runs.
struct Started {
    supervisor: Child,
    output: PipeReader,
    /// The run lasts as long as this is open and nothing is written to it; at the end it tells the command's status.
    lifeline: UnixStream,
}

/// Starts the command under its supervisor.
fn spawn(command: &Command) -> Result<Started, Error> {
    let program = program(command);
    let failed = Error::io(RUN, &program);
    let [_, arguments @ ..] = command.argv.as_slice() else {
        return Err(Error::InvalidValue(
            "cmd is empty: expected a program and its arguments".to_owned(),
        ));
    };
    // The child could not tell its folder's error from its program's.
    let in_folder = Error::io(RUN, &command.cwd);
    if !fs::metadata(&command.cwd).map_err(&in_folder)?.is_dir() {
        return Err(in_folder(io::Error::from_raw_os_error(libc::ENOTDIR)));
    }
    let (output, output_writer) = pipe().map_err(&failed)?;
    let (lifeline, supervisors_end) = UnixStream::pair().map_err(&failed)?;
    let mut process = std::process::Command::new(&program);
    process
        .args(arguments)
        .current_dir(&command.cwd)
        .env_clear()
        .envs(
            command
                .environment
                .iter()
                .map(|(name, value)| (name, value)),
        )
        .stdin(Stdio::null())
        .stderr(output_writer.try_clone().map_err(&failed)?)
        .stdout(output_writer);
    supervisor::supervise(&mut process, supervisors_end.as_raw_fd());
    // `process` holds our copies of the output's writing end: dropped here, so that the output can end.
    Ok(Started {
        supervisor: process.spawn().map_err(&failed)?,
        output,
        lifeline,
    })
}

/// Says every line until the output ends; goes on reading when nobody listens, so that the command never waits.
fn say_lines(output: &mut PipeReader, task: &Task<String>) -> Result<(), Error> {
    let mut splitter = LineSplitter::default();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut heard = Ok(());
    let mut say = |line: &[u8]| {
        if heard.is_ok() {
            heard = task.say(String::from_utf8_lossy(line).into_owned());
        }
    };
    loop {
        match output.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => splitter.feed(&chunk[..length], &mut say),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    splitter.finish(&mut say);
    heard
}

fn returncode(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| status.signal().map(|signal| -signal))
        .unwrap_or(-1)
}
