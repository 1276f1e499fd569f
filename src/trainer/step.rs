//! A step's command: begun, heard and ended in the log, and run in the way that costs least to the same effect.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::log::Log;
use super::record::Record;
use super::run::Run;
use super::step_events::StepEvents;
use super::{clone_of, evidence};
use crate::cgroup::MemoryCgroup;
use crate::error::Error;
use crate::failure::{Exit, Listener};
use crate::process::{self, Command, Fit, WarmInterpreter};
use crate::progress::Heard;
use crate::task::{Cancel, Task};
use crate::{interpreter, interrupt};

/// What is held of the second of two steps at once while the first one is heard; with more, the second one waits.
const MOST_HELD_BYTES: usize = 16 << 20;

/// How often a step that waits to be heard looks whether it may speak.
const HELD_POLL: Duration = Duration::from_millis(20);

/// Runs a step's command to its end.
///
/// # Errors
/// `CalledProcessError`, what starting it gives, [`Error::Cancelled`], what Python raises.
pub fn run(
    slf: &Bound<'_, PyAny>,
    name: &Bound<'_, PyAny>,
    cmd: &Bound<'_, PyAny>,
    cwd: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let mut step = Step::new(slf, name, cmd, cwd)?;
    step.announce()?;
    step.begin()?;
    let way = step.way(slf)?;
    let returncode = interrupt::run(
        slf.py(),
        &step.run.clone(),
        |task| way.run(&task.cancel, |said| task.say(said)),
        |_, said| {
            step.follow(&said);
            step.hear(said)
        },
    )?;
    step.end(returncode, Instant::now())
}

/// Runs the commands of two steps at the same time. The log has them one after the other: the lines of the second one are
/// held until the first one has ended well and `between` has returned. If one fails, the other is ended.
///
/// # Errors
/// As [`run`], of the one that has failed first.
pub fn run_at_once<'py>(
    slf: &Bound<'py, PyAny>,
    [mut first, mut second]: [Step<'py>; 2],
    between: impl FnOnce() -> PyResult<()>,
) -> PyResult<()> {
    first.announce()?;
    first.begin()?;
    second.begin()?;
    let ways = [first.way(slf)?, second.way(slf)?];
    let queue = Queue::default();
    let mut between = Some(between);
    let mut held = Vec::new();
    let mut second_ended = None;
    let run = first.run.clone();
    interrupt::run(
        slf.py(),
        &run,
        |task| both(&ways, &queue, task),
        |_, (place, news)| match (place, news) {
            (Place::First, News::Said(said)) => {
                first.follow(&said);
                first.hear(said)
            }
            (Place::First, News::Ended(returncode, at)) => {
                first.end(returncode, at)?;
                if let Some(between) = between.take() {
                    between()?;
                }
                second.announce()?;
                for said in held.drain(..) {
                    second.hear(said)?;
                }
                queue.open();
                Ok(())
            }
            (Place::First, News::EndedFor) => {
                first.log.warning((
                    "[%s] ended, because %s has failed",
                    &first.name,
                    &second.name,
                ))?;
                second.announce()?;
                held.drain(..).try_for_each(|said| second.hear(said))
            }
            (Place::Second, News::Said(said)) => {
                second.follow(&said);
                if queue.is_open() {
                    return second.hear(said);
                }
                held.push(said);
                Ok(())
            }
            (Place::Second, News::Ended(returncode, at)) => {
                second_ended = Some((returncode, at));
                Ok(())
            }
            // The first one's failure is raised.
            (Place::Second, News::EndedFor) => Ok(()),
        },
    )?;
    match second_ended {
        Some((returncode, at)) => second.end(returncode, at),
        None => Ok(()),
    }
}

#[derive(Clone, Copy)]
enum Place {
    First,
    Second,
}

enum News {
    Said(Said),
    Ended(i32, Instant),
    /// By us, as the other one has failed.
    EndedFor,
}

/// Whether the second of two steps is heard yet, and how much of it is held until then.
#[derive(Default)]
struct Queue {
    is_open: AtomicBool,
    held_bytes: AtomicUsize,
}

impl Queue {
    fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    fn open(&self) {
        self.is_open.store(true, Ordering::Release);
    }

    /// Waits until there is room for more.
    fn admit(&self, said: &Said, cancel: &Cancel) -> Result<(), Error> {
        while !self.is_open() && self.held_bytes.load(Ordering::Relaxed) > MOST_HELD_BYTES {
            cancel.pause(HELD_POLL)?;
        }
        self.held_bytes.fetch_add(said.bytes(), Ordering::Relaxed);
        Ok(())
    }
}

/// Attends two steps; the failure of one cancels the other.
fn both(ways: &[Way; 2], queue: &Queue, task: &Task<(Place, News)>) -> Result<(), Error> {
    let cancels = [Cancel::default(), Cancel::default()];
    for cancel in &cancels {
        task.cancel.pass_on_to(cancel);
    }
    let attend = |place: Place, own: &Cancel, other: &Cancel| -> Result<(), Error> {
        let way = &ways[place as usize];
        let outcome = way.run(own, |said| {
            if matches!(place, Place::Second) {
                queue.admit(&said, own)?;
            }
            task.say((place, News::Said(said)))
        });
        let news = match outcome {
            Ok(returncode) => {
                if returncode != 0 {
                    other.cancel();
                }
                News::Ended(returncode, Instant::now())
            }
            Err(Error::Cancelled) if !task.cancel.is_cancelled() => News::EndedFor,
            Err(error) => {
                other.cancel();
                return Err(error);
            }
        };
        task.say((place, news))
    };
    let [first, second] = &cancels;
    thread::scope(|scope| {
        let beside = thread::Builder::new()
            .spawn_scoped(scope, || attend(Place::Second, second, first))
            .map_err(|error| Error::Unusable(format!("cannot start a thread: {error}")))?;
        let attended = attend(Place::First, first, second);
        let attended_beside = beside.join().unwrap_or_else(|_| {
            Err(Error::Unusable(
                "internal error in musubitraining: please report it".to_owned(),
            ))
        });
        attended.and(attended_beside)
    })
}

/// What is to be said of a step that runs.
pub enum Said {
    /// Each with `\n` behind it.
    Lines(String),
    /// It is not run as it was to be.
    Warning(String),
}

impl Said {
    fn bytes(&self) -> usize {
        let (Self::Lines(text) | Self::Warning(text)) = self;
        text.len() + size_of::<Self>()
    }
}

/// A step, and what has been heard of it.
pub struct Step<'py> {
    run: Run,
    log: Log<'py>,
    name: Bound<'py, PyAny>,
    /// As the caller gave it.
    cmd: Bound<'py, PyAny>,
    cwd: Bound<'py, PyAny>,
    started: Instant,
    record: Option<Arc<Record>>,
    events: Option<StepEvents>,
    in_one_process: bool,
    heard: Heard,
    listener: Listener,
    memory: Option<MemoryCgroup>,
    oom_kills_before: Option<u64>,
}

impl<'py> Step<'py> {
    /// # Errors
    /// [`Error::Cancelled`], what Python raises.
    pub fn new(
        slf: &Bound<'py, PyAny>,
        name: &Bound<'py, PyAny>,
        cmd: &Bound<'py, PyAny>,
        cwd: &Bound<'py, PyAny>,
    ) -> PyResult<Self> {
        let run = Run::of(slf)?;
        run.check()?;
        let memory = MemoryCgroup::of_this_process();
        Ok(Self {
            log: Log::of(slf)?,
            name: name.clone(),
            cmd: cmd.clone(),
            cwd: cwd.clone(),
            started: Instant::now(),
            record: run.record(),
            events: None,
            in_one_process: false,
            heard: Heard::default(),
            listener: Listener::default(),
            oom_kills_before: memory.as_ref().and_then(MemoryCgroup::oom_kills),
            memory,
            run,
        })
    }

    fn words(&self) -> PyResult<Vec<Bound<'py, PyAny>>> {
        if self.cmd.is_instance_of::<PyString>() {
            return Ok(vec![self.cmd.clone()]);
        }
        let os = self.cmd.py().import("os")?;
        self.cmd
            .try_iter()?
            .map(|word| os.call_method1("fspath", (word?,)))
            .collect()
    }

    fn announce(&self) -> PyResult<()> {
        self.log.info(("[%s] starting", &self.name))?;
        self.log.info(("[%s] cwd=%s", &self.name, &self.cwd))?;
        let blank = PyString::new(self.cmd.py(), " ");
        let command = blank.call_method1("join", (self.words()?,))?;
        self.log.info(("[%s] cmd=%s", &self.name, command))
    }

    fn name(&self) -> PyResult<String> {
        Ok(self.name.str()?.to_string_lossy().into_owned())
    }

    /// Begins in the record.
    fn begin(&mut self) -> PyResult<()> {
        let Some(record) = &self.record else {
            return Ok(());
        };
        let name = self.name()?;
        let words = self.words()?;
        let argv = words.iter().map(PyAnyMethods::extract);
        let argv: Vec<OsString> = argv.collect::<PyResult<_>>()?;
        self.events = Some(StepEvents::new(&name, &argv));
        let shown = argv.iter().map(|word| word.to_string_lossy().into_owned());
        record.events.begin_step(&name, &shown.collect::<Vec<_>>());
        record.deliver(self.cmd.py())
    }

    /// Takes what it says down in the record.
    fn follow(&mut self, said: &Said) {
        let (Some(record), Some(events), Said::Lines(lines)) =
            (&self.record, &mut self.events, said)
        else {
            return;
        };
        for line in lines.split_terminator('\n') {
            events.hear(line, &mut |event| record.events.say(event));
        }
    }

    /// Ends in the record.
    fn finish(&mut self, duration: Duration, returncode: i32) -> PyResult<()> {
        if let (Some(record), Some(events)) = (&self.record, &mut self.events) {
            events.end(&mut |event| record.events.say(event));
            record
                .events
                .end_step(&self.name()?, Some(duration), Some(returncode), &[]);
            record.deliver(self.cmd.py())?;
        }
        Ok(())
    }

    /// How its command is to be run.
    fn way(&mut self, trainer: &Bound<'py, PyAny>) -> PyResult<Way> {
        let py = trainer.py();
        let words = self.words()?;
        let command = Command {
            argv: words
                .iter()
                .map(PyAnyMethods::extract)
                .collect::<PyResult<_>>()?,
            cwd: self
                .cwd
                .extract::<Option<_>>()?
                .unwrap_or_else(|| PathBuf::from(".")),
            environment: interpreter::environment(
                py,
                clone_of(trainer).ok().map(|clone| clone.source_folder()),
            )?,
            locks: self.run.locks(),
        };
        let in_one_process =
            interpreter::launch_in_one_process(py, &command.argv)?.map(|argv| Command {
                argv,
                cwd: command.cwd.clone(),
                environment: command.environment.clone(),
                locks: self.run.locks(),
            });
        self.in_one_process = in_one_process.is_some();
        Ok(Way {
            run: self.run.clone(),
            warm: self.run.warm_interpreter(),
            is_forked: !interpreter::is_launch(&command.argv)
                || interpreter::launches_one_process(&command.argv),
            command,
            in_one_process,
        })
    }

    fn hear(&mut self, said: Said) -> PyResult<()> {
        let lines = match said {
            Said::Lines(lines) => lines,
            Said::Warning(warning) => return self.log.warning(("[%s] %s", &self.name, warning)),
        };
        let mut lines_log = self.log.of_lines(&self.name)?;
        for line in lines.split_terminator('\n') {
            let alarm = self.heard.hear(line);
            self.listener.hear(line);
            lines_log.info(line)?;
            // Not at the end of them alone: a handler may be slow.
            self.run.check()?;
            if let Some(warning) = alarm.and_then(|alarm| evidence::warning(&alarm)) {
                self.log.warning(("[%s] %s", &self.name, warning))?;
            }
        }
        Ok(())
    }

    fn end(&mut self, returncode: i32, at: Instant) -> PyResult<()> {
        let py = self.cmd.py();
        let memory = self.memory.as_ref();
        let exit = Exit {
            returncode,
            oom_kills: memory
                .and_then(MemoryCgroup::oom_kills)
                .zip(self.oom_kills_before)
                .map(|(now, before)| now.saturating_sub(before)),
            memory_limit_bytes: memory.and_then(MemoryCgroup::limit_bytes),
            nan_since: self.heard.nan_since(),
        };
        let heard = std::mem::take(&mut self.heard);
        self.run.note(self.name.str()?.to_string(), heard);

        let duration = at - self.started;
        let seconds = duration.as_secs_f64();
        if returncode == 0 {
            self.log
                .info(("[%s] done (duration=%.1fs)", &self.name, seconds))?;
            return self.finish(duration, returncode);
        }
        // The launcher ends so, whatever signal has ended its script.
        let returncode = if self.in_one_process && returncode < 0 {
            1
        } else {
            returncode
        };
        let reason = self.listener.reason(&exit);
        if let Some(reason) = &reason {
            self.log.warning(("[%s] %s", &self.name, reason))?;
        }
        self.log.error((
            "[%s] failed (exit_code=%s, duration=%.1fs)",
            &self.name,
            returncode,
            seconds,
        ))?;
        self.finish(duration, returncode)?;
        let keywords = PyDict::new(py);
        keywords.set_item("output", self.listener.last_lines())?;
        keywords.set_item("reason", reason)?;
        let error = py
            .import("musubitraining.errors")?
            .getattr("CalledProcessError")?
            .call((returncode, &self.cmd), Some(&keywords))?;
        Err(PyErr::from_value(error))
    }
}

/// How a step's command is run.
struct Way {
    run: Run,
    warm: Option<Arc<WarmInterpreter>>,
    /// By the warm interpreter. The processes of a launcher that starts several import for themselves.
    is_forked: bool,
    command: Command,
    /// The same, of a launcher that is to have its script in its own process.
    in_one_process: Option<Command>,
}

impl Way {
    fn run(
        &self,
        cancel: &Cancel,
        mut say: impl FnMut(Said) -> Result<(), Error>,
    ) -> Result<i32, Error> {
        let command = &self.command;
        if let Some(warm) = &self.warm {
            let forked = match warm.fit(command) {
                _ if !self.is_forked => None,
                Fit::Same => Some(warm.fork(command, cancel)?),
                Fit::Other(why) => Some(Err(why.to_owned())),
                Fit::NotPrepared => None,
            };
            // The training is the last: nobody else needs what is imported, and it takes what memory there is.
            if interpreter::is_launch(&command.argv) || matches!(forked, Some(Err(_))) {
                warm.dismiss();
            }
            match forked {
                Some(Ok(started)) => {
                    return process::attend(started, cancel, |lines| say(Said::Lines(lines)));
                }
                Some(Err(trouble)) if self.run.cool_down() => {
                    say(Said::Warning(format!(
                        "no warm start, the steps run in processes of their own: {trouble}"
                    )))?;
                }
                _ => {}
            }
        }
        let command = self.in_one_process.as_ref().unwrap_or(command);
        process::run(command, cancel, |lines| say(Said::Lines(lines)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_bounded() {
        let piece = || Said::Lines("x".repeat(1 << 20));
        let queue = Queue::default();
        let cancel = Cancel::default();
        thread::scope(|scope| {
            let speaker =
                scope.spawn(|| (0..1000).try_for_each(|_| queue.admit(&piece(), &cancel)));
            while queue.held_bytes.load(Ordering::Relaxed) <= MOST_HELD_BYTES {
                thread::yield_now();
            }
            cancel.cancel();
            assert!(matches!(speaker.join().unwrap(), Err(Error::Cancelled)));
        });
        assert!(queue.held_bytes.load(Ordering::Relaxed) <= MOST_HELD_BYTES + piece().bytes());
        queue.open();
        (0..1000).for_each(|_| queue.admit(&piece(), &Cancel::default()).unwrap());
    }
}
