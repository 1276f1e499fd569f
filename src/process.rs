//! Runs a command: its lines live, its whole process tree gone when the run is over, for whatever reason.

mod lines;
mod supervisor;
mod warm;

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind, PipeReader, Read, Write, pipe};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::error::{Error, RUN};
use crate::task::Cancel;
use lines::LineSplitter;
use supervisor::Watch;
pub use supervisor::supervise_here;
pub use warm::{Fit, WarmInterpreter};

/// What to run, and where.
#[derive(Debug)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<OsString>,
    pub cwd: PathBuf,
    /// The whole environment, nothing is inherited besides.
    pub environment: Vec<(OsString, OsString)>,
    /// Locked files, which stay so until the command's whole tree is gone, whatever becomes of this process.
    pub locks: Vec<OwnedFd>,
}

/// Read in one go from a command's output.
const CHUNK_BYTES: usize = 16 * 1024;

/// Runs `command` to its end and says the lines of its merged stdout and stderr: as many as there are to read, each with
/// `\n` behind it, whatever its end was.
///
/// Returns the exit code, negative for a signal, as Python's `subprocess` has it. The command has no stdin. When it is
/// cancelled, or this process dies, the command's whole process tree is ended (see [`supervisor`]).
///
/// # Errors
/// [`Error::Io`] when the command cannot be started, [`Error::Cancelled`] once the tree of a cancelled run is gone, what
/// `say` gives.
pub fn run(
    command: &Command,
    cancel: &Cancel,
    say: impl FnMut(String) -> Result<(), Error>,
) -> Result<i32, Error> {
    attend(spawn(command, Stdio::null(), Watch::Command)?, cancel, say)
}

/// Sees a command that runs to its end, as [`run`] does.
///
/// # Errors
/// [`Error::Cancelled`], what `say` gives.
pub fn attend(
    started: Started,
    cancel: &Cancel,
    say: impl FnMut(String) -> Result<(), Error>,
) -> Result<i32, Error> {
    let Started {
        supervisor,
        leader,
        mut output,
        mut lifeline,
    } = started;
    let mut cord = lifeline.try_clone().map_err(|error| {
        Error::Unusable(format!("cannot hold on to a command's process: {error}"))
    })?;
    let pid = pid_of(supervisor.as_ref());
    cancel.on_cancel(move || end(&mut cord, pid));
    let spoken = say_lines(&mut output, &lifeline, say);
    let status = read_number(&mut lifeline);
    if status.is_none()
        && let Some(leader) = leader.and_then(Pid::from_raw)
    {
        // The supervisor was killed, and with it the command alone: the rest of its group is for us to end.
        let _ = kill_process_group(leader, Signal::KILL);
    }
    wait_for(supervisor, lifeline);
    spoken?;
    cancel.check()?;
    Ok(status.map_or(-libc::SIGKILL, |status| {
        returncode(ExitStatus::from_raw(status))
    }))
}

/// Tells the supervisor at the other end of the cord to end its tree.
fn end(cord: &mut UnixStream, supervisor: Option<Pid>) {
    // Written to rather than closed: a fork of this process may hold it open too.
    let _ = cord.write_all(b"x");
    // The supervisor may have been stopped along with all else. Whoever has its number, if it is over already, is only
    // told to go on.
    if let Some(supervisor) = supervisor {
        let _ = kill_process(supervisor, Signal::CONT);
    }
}

fn pid_of(supervisor: Option<&Child>) -> Option<Pid> {
    let number = i32::try_from(supervisor?.id()).ok()?;
    Pid::from_raw(number)
}

/// Waits until a supervisor is gone that has nothing more to do.
fn wait_for(supervisor: Option<Child>, mut lifeline: UnixStream) {
    match supervisor {
        // A host that ignores SIGCHLD, or waits for any child, leaves nothing to wait for here.
        Some(mut supervisor) => drop(supervisor.wait()),
        None => drop(io::copy(&mut lifeline, &mut io::sink())),
    }
}

/// The supervisor speaks in numbers of four bytes; `None` when it is gone.
fn read_number(lifeline: &mut UnixStream) -> Option<i32> {
    let mut number = [0; 4];
    lifeline.read_exact(&mut number).ok()?;
    Some(i32::from_ne_bytes(number))
}

fn program(command: &Command) -> PathBuf {
    command.argv.first().map(PathBuf::from).unwrap_or_default()
}

/// A command that runs.
pub struct Started {
    /// Where it is a child of this process.
    supervisor: Option<Child>,
    /// The command's process, which leads its group.
    leader: Option<i32>,
    output: PipeReader,
    /// The run lasts as long as this is open and nothing is written to it; at the end it tells the command's status.
    lifeline: UnixStream,
}

/// Starts the command under its supervisor.
fn spawn(command: &Command, stdin: Stdio, watch: Watch) -> Result<Started, Error> {
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
    // Where the host ignores SIGCHLD, `Command` panics on a program that cannot be executed.
    if program.is_absolute() {
        fs::metadata(&program).map_err(&failed)?;
    }
    let (output, output_writer) = pipe().map_err(&failed)?;
    let (mut lifeline, supervisors_end) = UnixStream::pair().map_err(&failed)?;
    // Out of the way of the command's standard streams, where the host has closed its own.
    let supervisors_end =
        fcntl_dupfd_cloexec(supervisors_end, 3).map_err(|errno| failed(errno.into()))?;
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
        .stdin(stdin)
        .stderr(output_writer.try_clone().map_err(&failed)?)
        .stdout(output_writer);
    let locks = command.locks.iter().map(AsRawFd::as_raw_fd).collect();
    supervisor::supervise(&mut process, supervisors_end.as_raw_fd(), locks, watch);
    let supervisor = process.spawn().map_err(&failed)?;
    // They hold our copies of the output's writing end and of the supervisor's: both must end with their owners.
    drop((process, supervisors_end));
    Ok(Started {
        supervisor: Some(supervisor),
        leader: read_number(&mut lifeline),
        output,
        lifeline,
    })
}

/// Says the lines until the output ends; goes on reading when nobody listens, so that the command never waits. What
/// holds the output open after the supervisor's end, a fork of this process say, is not waited for.
fn say_lines(
    output: &mut PipeReader,
    lifeline: &UnixStream,
    mut listener: impl FnMut(String) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut splitter = LineSplitter::default();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut lines = Vec::new();
    let mut heard = Ok(());
    let mut say = |lines: &mut Vec<u8>| {
        if heard.is_ok() && !lines.is_empty() {
            heard = listener(String::from_utf8_lossy(lines).into_owned());
        }
        lines.clear();
    };
    let add = |lines: &mut Vec<u8>, line: &[u8]| {
        lines.extend_from_slice(line);
        lines.push(b'\n');
    };
    while has_output(output, lifeline) {
        match output.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => splitter.feed(&chunk[..length], &mut |line| add(&mut lines, line)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
        say(&mut lines);
    }
    splitter.finish(&mut |line| add(&mut lines, line));
    say(&mut lines);
    heard
}

/// Waits until there is output to read, or none to come: true for output, at its end too.
fn has_output(output: &PipeReader, lifeline: &UnixStream) -> bool {
    let mut watched = [
        PollFd::new(output, PollFlags::IN),
        PollFd::new(lifeline, PollFlags::IN),
    ];
    loop {
        match poll(&mut watched, None) {
            Ok(_) => return !watched[0].revents().is_empty(),
            Err(Errno::INTR) => {}
            Err(_) => return true,
        }
    }
}

fn returncode(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| status.signal().map(|signal| -signal))
        .unwrap_or(-1)
}
