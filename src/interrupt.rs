//! Long work off the interpreter: done on a worker thread, signals polled, what it says handed to Python on the
//! caller's own thread; whatever goes wrong there cancels it, joins it, and only then propagates.

use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::error::Error;
use crate::task::{Cancel, Task};

/// How often a waiting caller looks for signals; the promise is 100 ms.
const SIGNAL_POLL: Duration = Duration::from_millis(50);

/// Messages that may wait for Python before the worker has to: bounds memory when a logger is slow, as a line of output
/// may have a mebibyte.
const MESSAGES_WAITING: usize = 32;

/// Runs `work` on a worker thread while the interpreter is free, hands every message to `on_message` on this thread,
/// and returns what the work returns.
///
/// # Errors
/// What the work returns, what a signal handler or `on_message` raises, [`Error::Cancelled`] when `wanted` is
/// cancelled. In all but the first case the work has been cancelled and has ended before this returns.
pub fn run<M, T, W, H>(py: Python<'_>, wanted: &Cancel, work: W, mut on_message: H) -> PyResult<T>
where
    M: Send,
    T: Send,
    W: FnOnce(&Task<M>) -> Result<T, Error> + Send,
    H: FnMut(Python<'_>, M) -> PyResult<()>,
{
    let cancel = Cancel::default();
    let (sender, receiver) = sync_channel(MESSAGES_WAITING);
    let task = Task::new(cancel.clone(), sender);
    std::thread::scope(|scope| {
        let worker = std::thread::Builder::new()
            .spawn_scoped(scope, move || work(&task))
            .map_err(|error| Error::Unusable(format!("cannot start a thread: {error}")))?;
        let listened = listen(py, wanted, receiver, &mut on_message);
        if listened.is_err() {
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

/// [`run`] for work that has nothing to say.
///
/// # Errors
/// As [`run`].
pub fn run_quietly<T: Send>(
    py: Python<'_>,
    wanted: &Cancel,
    work: impl FnOnce(&Task<()>) -> Result<T, Error> + Send,
) -> PyResult<T> {
    run(py, wanted, work, |_, ()| Ok(()))
}

/// Hears the worker out. Takes the receiver, so that a worker waiting to be heard is let go on every way out.
fn listen<M: Send>(
    py: Python<'_>,
    wanted: &Cancel,
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
                on_message(py, message)?;
                for message in messages.try_iter().take(MESSAGES_WAITING) {
                    on_message(py, message)?;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        py.check_signals()?;
        wanted.check()?;
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
