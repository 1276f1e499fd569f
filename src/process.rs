//! Runs a command: its lines live, its whole process tree gone when the run is over, for whatever reason.

mod lines;
mod supervisor;

use std::ffi::OsString;
use std::io::{ErrorKind, PipeReader, PipeWriter, Read, pipe};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};

use crate::error::Error;
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
    let (mut child, mut output, lifeline) = spawn(command)?;
    task.cancel.on_cancel(move || drop(lifeline));
    let spoken = say_lines(&mut output, task);
    let status = child
        .wait()
        .map_err(Error::io("wait for", &program(command)))?;
    spoken?;
    task.check()?;
    Ok(returncode(status))
}

fn program(command: &Command) -> PathBuf {
    command.argv.first().map(PathBuf::from).unwrap_or_default()
}

/// Starts the command under its supervisor; the run lasts as long as the returned [`PipeWriter`] is open.
fn spawn(command: &Command) -> Result<(Child, PipeReader, PipeWriter), Error> {
    let program = program(command);
    let failed = Error::io("run", &program);
    let [_, arguments @ ..] = command.argv.as_slice() else {
        return Err(Error::InvalidValue(
            "cmd is empty: expected a program and its arguments".to_owned(),
        ));
    };
    if !command.cwd.is_dir() {
        return Err(Error::Io {
            action: "run in",
            path: command.cwd.clone(),
            source: std::io::Error::from_raw_os_error(libc::ENOENT),
        });
    }
    let (output, output_writer) = pipe().map_err(&failed)?;
    let (lifeline, lifeline_writer) = pipe().map_err(&failed)?;
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
    supervisor::supervise(&mut process, lifeline.as_raw_fd());
    let child = process.spawn().map_err(&failed)?;
    // `process` holds our copies of the output's writing end: dropped here, so that the output can end.
    Ok((child, output, lifeline_writer))
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
