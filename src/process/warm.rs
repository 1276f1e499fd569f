//! The warm interpreter: it has imported what the steps import, and forks for each of them.
//!
//! It is a command of its own, under a supervisor that outlives it: once the last step has been forked, it may go, and its
//! memory with it. Each step gets a supervisor of its own, which is a fork of the interpreter, and is then attended like
//! any other command.

use std::ffi::OsString;
use std::io::{self, ErrorKind, IoSlice, Read, Write, pipe};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::supervisor::Watch;
use super::{Command, Started, end, pid_of, spawn, wait_for};
use crate::error::Error;
use crate::task::{Cancel, lock_of};

/// How long its imports may take; from a slow network disk PyTorch alone was seen to take most of a minute.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// How long a fork may take.
const FORKED_WITHIN: Duration = Duration::from_secs(10);

/// How often a waiting step looks for its cancellation.
const CANCEL_POLL: Duration = Duration::from_millis(50);

/// What it says once it has imported everything. Anything else is the reason why it cannot be used.
const READY: &[u8] = b"ready";

/// The most locks that are passed on with a step.
const MOST_LOCKS: usize = 8;

pub struct WarmInterpreter {
    command: Command,
    started: Instant,
    ready_within: Duration,
    forked_within: Duration,
    process: Mutex<Option<Started>>,
    /// `None` once it is not to be asked any more.
    requests: Mutex<Option<UnixStream>>,
    readiness: Mutex<Option<Result<(), String>>>,
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

/// What a command would find in a fork of the interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    Same,
    /// It is one of those that the interpreter is for, but.
    Other(&'static str),
    NotPrepared,
}

impl WarmInterpreter {
    /// Starts `command`, which gets its requests on stdin.
    ///
    /// # Errors
    /// As [`super::run`].
    pub fn start(command: Command) -> Result<Self, Error> {
        Self::start_within(command, READY_WITHIN)
    }

    fn start_within(command: Command, ready_within: Duration) -> Result<Self, Error> {
        let (requests, theirs) = UnixStream::pair()
            .map_err(|error| Error::Unusable(format!("cannot make a socket: {error}")))?;
        let started = spawn(&command, Stdio::from(OwnedFd::from(theirs)), Watch::Tree)?;
        Ok(Self {
            command,
            started: Instant::now(),
            ready_within,
            forked_within: FORKED_WITHIN,
            process: Mutex::new(Some(started)),
            requests: Mutex::new(Some(requests)),
            readiness: Mutex::new(None),
        })
    }

    /// Whether a process that is forked from it would be as one that `command` starts.
    #[must_use]
    pub fn fit(&self, command: &Command) -> Fit {
        let prepared_for = |word: &OsString| self.command.argv[1..].contains(word);
        let is_prepared = match command.argv.as_slice() {
            [_, option, module, ..] if option == "-m" => prepared_for(module),
            [_, script, ..] => prepared_for(script),
            _ => false,
        };
        if !is_prepared || lock_of(&self.requests).is_none() {
            Fit::NotPrepared
        } else if command.argv[0] != self.command.argv[0] {
            Fit::Other("sys.executable is another one by now")
        } else if command.cwd != self.command.cwd {
            Fit::Other("it is to run in another folder")
        } else if command.environment != self.command.environment {
            Fit::Other("the environment has changed since")
        } else {
            Fit::Same
        }
    }

    /// Waits until it can be asked, and forks for the command of these words; `Ok(Err)` says why that cannot be.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn fork(
        &self,
        command: &Command,
        cancel: &Cancel,
    ) -> Result<Result<Started, String>, Error> {
        let mut readiness = lock_of(&self.readiness);
        if readiness.is_none() {
            *readiness = Some(self.readiness(cancel)?);
        }
        if let Some(Err(trouble)) = &*readiness {
            return Ok(Err(trouble.clone()));
        }
        let forked = self.request(command, cancel);
        cancel.check()?;
        Ok(forked.map_err(|error| format!("it does not answer: {error}")))
    }

    /// What it says of itself.
    fn readiness(&self, cancel: &Cancel) -> Result<Result<(), String>, Error> {
        let mut said = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            cancel.check()?;
            let mut requests = lock_of(&self.requests);
            let Some(requests) = requests.as_mut() else {
                return Ok(Err("it has been dismissed".to_owned()));
            };
            let read = requests
                .set_read_timeout(Some(CANCEL_POLL))
                .and_then(|()| requests.read(&mut chunk));
            match read {
                Ok(0) if said.is_empty() => return Ok(Err(self.last_words())),
                Ok(0) => return Ok(Err(String::from_utf8_lossy(&said).into_owned())),
                Ok(length) => said.extend_from_slice(&chunk[..length]),
                Err(error) if is_timeout(&error) => {
                    // Only now: what it has said long ago may be asked for late, after a long download.
                    if self.started.elapsed() >= self.ready_within {
                        return Ok(Err(format!(
                            "its imports have not ended within {} s",
                            self.ready_within.as_secs_f32()
                        )));
                    }
                }
                Err(_) => return Ok(Err(self.last_words())),
            }
            if said == READY {
                return Ok(Ok(()));
            }
        }
    }

    /// Why it has ended before it could say anything.
    fn last_words(&self) -> String {
        let mut words = vec![0; 64 * 1024];
        let mut process = lock_of(&self.process);
        let length = process.as_mut().map_or(0, |started| {
            let mut watched = [PollFd::new(&started.output, PollFlags::IN)];
            match poll(&mut watched, Some(&Timespec::default())) {
                Ok(1..) => started.output.read(&mut words).unwrap_or(0),
                _ => 0,
            }
        });
        let words = String::from_utf8_lossy(&words[..length]);
        match words.trim().lines().last() {
            Some(last) => format!("it has ended before it was ready: {last}"),
            None => "it has ended before it was ready".to_owned(),
        }
    }

    fn request(&self, command: &Command, cancel: &Cancel) -> io::Result<Started> {
        let mut requests = lock_of(&self.requests);
        let requests = requests.as_mut().ok_or(ErrorKind::NotConnected)?;
        let (output, output_writer) = pipe()?;
        let (mut lifeline, supervisors_end) = UnixStream::pair()?;
        let words: Vec<&[u8]> = command.argv.iter().map(|word| word.as_bytes()).collect();
        let words = words.join(&0);
        let length = u32::try_from(words.len()).map_err(io::Error::other)?;
        let mut descriptors = vec![output_writer.as_fd(), supervisors_end.as_fd()];
        descriptors.extend(command.locks.iter().take(MOST_LOCKS).map(AsFd::as_fd));
        send(requests, &length.to_le_bytes(), &descriptors)?;
        requests.write_all(&words)?;
        drop((output_writer, supervisors_end));
        lifeline.set_read_timeout(Some(CANCEL_POLL))?;
        let asked = Instant::now();
        let mut leader = [0; 4];
        // Once our end of the lifeline is closed, a fork that comes late ends itself.
        while let Err(error) = lifeline.read_exact(&mut leader) {
            let is_late = asked.elapsed() >= self.forked_within || cancel.is_cancelled();
            if is_late || !is_timeout(&error) {
                return Err(error);
            }
        }
        lifeline.set_read_timeout(None)?;
        Ok(Started {
            supervisor: None,
            leader: Some(i32::from_ne_bytes(leader)),
            output,
            lifeline,
        })
    }

    /// Lets it go; the steps that it has forked go on.
    pub fn dismiss(&self) {
        if let Some(requests) = lock_of(&self.requests).take() {
            // Not only closed: a fork of this process may hold it open too.
            let _ = requests.shutdown(Shutdown::Both);
        }
    }
}

/// Ends what is left of it, forks included.
impl Drop for WarmInterpreter {
    fn drop(&mut self) {
        self.dismiss();
        if let Some(mut started) = lock_of(&self.process).take() {
            end(&mut started.lifeline, pid_of(started.supervisor.as_ref()));
            wait_for(started.supervisor, started.lifeline);
        }
    }
}

fn send(to: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_LOCKS + 2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors"));
    }
    let sent = sendmsg(
        to,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(ErrorKind::WriteZero.into())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rustix::process::Pid;

    use super::*;

    fn interpreter(shell: &str, ready_within: Duration) -> (WarmInterpreter, Command) {
        let words = |words: [&str; 3]| words.map(OsString::from).to_vec();
        let command = |argv| Command {
            argv,
            cwd: PathBuf::from("/"),
            environment: std::env::vars_os().collect(),
            locks: Vec::new(),
        };
        let warm = WarmInterpreter::start_within(command(words(["sh", "-c", shell])), ready_within);
        (warm.unwrap(), command(words(["sh", "script", "-c"])))
    }

    fn trouble(shell: &str, ready_within: Duration) -> String {
        let (warm, command) = interpreter(shell, ready_within);
        warm.fork(&command, &Cancel::default())
            .unwrap()
            .err()
            .unwrap()
    }

    #[test]
    fn one_that_hangs_is_given_up_and_ended() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let shell = format!("echo $$ > {}; exec sleep 600", pid.display());
        let (warm, command) = interpreter(&shell, Duration::from_millis(300));
        let trouble = warm
            .fork(&command, &Cancel::default())
            .unwrap()
            .err()
            .unwrap();
        assert_eq!(trouble, "its imports have not ended within 0.3 s");
        drop(warm);
        let pid = std::fs::read_to_string(pid)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let gone = rustix::process::test_kill_process(Pid::from_raw(pid).unwrap());
        assert_eq!(gone, Err(rustix::io::Errno::SRCH));
    }

    #[test]
    fn one_that_was_ready_in_time_may_be_asked_much_later() {
        let (warm, command) = interpreter("printf ready >&0", Duration::ZERO);
        // Once it has ended, it has said it.
        let mut process = lock_of(&warm.process);
        let supervisor = process.as_mut().unwrap().supervisor.as_mut();
        supervisor.unwrap().wait().unwrap();
        drop(process);
        let trouble = warm.fork(&command, &Cancel::default()).unwrap();
        let trouble = trouble.err().unwrap();
        assert!(trouble.starts_with("it does not answer"), "{trouble}");
    }

    #[test]
    fn one_that_ends_says_why() {
        let minute = Duration::from_secs(60);
        let died = "it has ended before it was ready";
        assert_eq!(trouble("exit 1", minute), died);
        assert_eq!(
            trouble("echo no such file; exit 2", minute),
            format!("{died}: no such file")
        );
        assert_eq!(trouble("kill -9 $$", minute), died);
        assert_eq!(
            trouble("echo half of it is missing >&0", minute),
            "half of it is missing\n"
        );
        let gone = trouble("printf ready >&0", minute);
        assert!(gone.starts_with("it does not answer"), "{gone}");
    }

    #[test]
    fn a_step_that_waits_for_it_can_be_cancelled() {
        let (warm, command) = interpreter("exec sleep 600", Duration::from_secs(600));
        let cancel = Cancel::default();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| warm.fork(&command, &cancel).err());
            cancel.cancel();
            assert!(matches!(waiting.join().unwrap(), Some(Error::Cancelled)));
        });
    }

    #[test]
    fn a_step_that_waits_for_its_fork_can_be_cancelled() {
        let (mut warm, command) = interpreter("exec sleep 600", Duration::from_secs(600));
        warm.forked_within = Duration::from_secs(600);
        *lock_of(&warm.readiness) = Some(Ok(()));
        let cancel = Cancel::default();
        cancel.cancel();
        let outcome = warm.fork(&command, &cancel);
        assert!(matches!(outcome.err(), Some(Error::Cancelled)));
    }

    #[test]
    fn only_a_command_that_would_find_the_same_is_forked() {
        let (warm, _) = interpreter("exec sleep 600", Duration::from_secs(600));
        let like = |change: &dyn Fn(&mut Command)| {
            let mut command = Command {
                argv: ["sh", "exec sleep 600"].map(OsString::from).to_vec(),
                cwd: PathBuf::from("/"),
                environment: std::env::vars_os().collect(),
                locks: Vec::new(),
            };
            change(&mut command);
            warm.fit(&command)
        };
        assert_eq!(like(&|_| {}), Fit::Same);
        assert_eq!(
            like(&|command| command.argv.push("--flag".into())),
            Fit::Same
        );
        let is_other = |change: &dyn Fn(&mut Command)| matches!(like(change), Fit::Other(_));
        assert!(is_other(&|command| command.cwd = PathBuf::from("/tmp")));
        assert!(is_other(&|command| command
            .environment
            .push(("A".into(), "b".into()))));
        assert!(is_other(&|command| command.argv[0] = "bash".into()));
        let is_not_prepared = |change: &dyn Fn(&mut Command)| like(change) == Fit::NotPrepared;
        assert!(is_not_prepared(
            &|command| command.argv[1] = "another".into()
        ));
        assert!(is_not_prepared(&|command| command
            .argv
            .insert(1, "-X".into())));
        warm.dismiss();
        assert_eq!(like(&|_| {}), Fit::NotPrepared);
    }
}
