//! Long work off the interpreter: done on a worker thread, signals polled, what it says handed to Python on the
//! caller's own thread; whatever goes wrong there cancels it, joins it, and only then propagates.

use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PySystemExit};
use pyo3::prelude::*;

use crate::error::Error;
use crate::task::{Cancel, Task};

/// How often a waiting caller looks for signals; the promise is 100 ms.
const SIGNAL_POLL: Duration = Duration::from_millis(50);

/// Messages that may wait for Python before the worker has to: bounds memory when a logger is slow, as a line of output
/// may have a mebibyte.
const MESSAGES_WAITING: usize = 32;

/// On whose behalf work is done.
pub trait Caller {
    /// Tells that the work is no longer wanted.
    fn cancel(&self) -> &Cancel;

    /// Called whenever the waiting thread wakes, with the interpreter.
    ///
    /// # Errors
    /// What is to end the work.
    fn wake(&self, _: Python<'_>) -> PyResult<()> {
        Ok(self.cancel().check()?)
    }
}

impl Caller for Cancel {
    fn cancel(&self) -> &Cancel {
        self
    }
}

/// Runs `work` on a worker thread while the interpreter is free, hands every message to `on_message` on this thread,
/// and returns what the work returns.
///
/// # Errors
/// What the work returns, what a signal handler, `on_message` or the caller's waking raises, [`Error::Cancelled`] when the
/// caller is cancelled. In all but the first case the work has been cancelled and has ended before this returns.
pub fn run<M, T, W, H>(
    py: Python<'_>,
    caller: &impl Caller,
    work: W,
    mut on_message: H,
) -> PyResult<T>
where
    M: Send,
    T: Send,
    W: FnOnce(&Task<M>) -> Result<T, Error> + Send,
    H: FnMut(Python<'_>, M) -> PyResult<()>,
{
    let process = std::process::id();
    let cancel = Cancel::default();
    // Not only by the listening, which a log handler may hold up.
    caller.cancel().pass_on_to(&cancel);
    let (sender, receiver) = sync_channel(MESSAGES_WAITING);
    let task = Task::new(cancel.clone(), sender);
    std::thread::scope(|scope| {
        let worker = std::thread::Builder::new()
            .spawn_scoped(scope, move || work(&task))
            .map_err(|error| Error::Unusable(format!("cannot start a thread: {error}")))?;
        let listened = listen(py, caller, receiver, &mut on_message);
        if let Err(error) = &listened {
            if std::process::id() != process {
                end_fork(py, error);
            }
            cancel.cancel();
        }
        let outcome = py.detach(|| worker.join());
        listened?;
        match outcome {
            Ok(result) => Ok(result?),
            Err(panic) => Err(PyRuntimeError::new_err(format!(
                "internal error in musubitraining, please report it: {}",
                panic_text(panic.as_ref())
            ))),
        }
    })
}

/// Ends a fork of this process that leaves `on_message` by an exception: the work and its thread are its parent's, so that
/// it has neither to cancel nor to join.
fn end_fork(py: Python<'_>, error: &PyErr) -> ! {
    let code = if error.is_instance_of::<PySystemExit>(py) {
        let code = error.value(py).getattr("code");
        code.map_or(1, |code| {
            code.extract().unwrap_or(i32::from(!code.is_none()))
        })
    } else {
        error.print(py);
        1
    };
    std::process::exit(code)
}

/// [`run`] for work that has nothing to say.
///
/// # Errors
/// As [`run`].
pub fn run_quietly<T: Send>(
    py: Python<'_>,
    caller: &impl Caller,
    work: impl FnOnce(&Task<()>) -> Result<T, Error> + Send,
) -> PyResult<T> {
    run(py, caller, work, |_, ()| Ok(()))
}

/// Hears the worker out. Takes the receiver, so that a worker waiting to be heard is let go on every way out.
fn listen<M: Send>(
    py: Python<'_>,
    caller: &impl Caller,
    mut messages: Receiver<M>,
    on_message: &mut impl FnMut(Python<'_>, M) -> PyResult<()>,
) -> PyResult<()> {
    loop {
        let next;
        (messages, next) = py.detach(move || {
            let next = messages.recv_timeout(SIGNAL_POLL);
            (messages, next)
        });
        match next {
            Ok(message) => {
                let waiting = messages.try_iter().take(MESSAGES_WAITING);
                for message in std::iter::once(message).chain(waiting) {
                    on_message(py, message)?;
                    py.check_signals()?;
                    caller.wake(py)?;
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                py.check_signals()?;
                caller.wake(py)?;
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
