//! What blocking work is given: a way to say something to its caller, and to learn that it is no longer wanted.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Error;

/// How loud a [`LogLine`] is, in the terms of Python's `logging`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Info,
    Warning,
}

/// How often waiting work looks for its cancellation; the promise is 100 ms.
const CANCEL_POLL: Duration = Duration::from_millis(50);

/// Does what cannot be interrupted on a thread of its own, which is left alone when it takes longer than `limit`, or is no
/// longer wanted: then there is no answer.
///
/// # Errors
/// [`Error::Cancelled`]; [`Error::Unusable`] when there are no more threads.
pub fn within<T: Send + 'static>(
    limit: Duration,
    cancel: &Cancel,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>, Error> {
    let until = Instant::now() + limit;
    let (sender, receiver) = sync_channel(1);
    thread::Builder::new()
        // Nobody may want it any more.
        .spawn(move || drop(sender.send(work())))
        .map_err(|error| Error::Unusable(format!("cannot start a thread: {error}")))?;
    loop {
        cancel.check()?;
        match receiver.recv_timeout(CANCEL_POLL) {
            Ok(answer) => return Ok(Some(answer)),
            Err(RecvTimeoutError::Timeout) if Instant::now() < until => {}
            Err(_) => return Ok(None),
        }
    }
}

/// One line for the `musubitraining` logger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    pub level: Level,
    pub text: String,
    /// What it tells, if it is that something is tried again.
    pub retry: Option<Retry>,
}

/// Something has failed and is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// From 2.
    pub attempt: u32,
    pub wait: Duration,
    pub reason: String,
}

/// Tells work on another thread that it is no longer wanted.
#[derive(Clone, Default)]
pub struct Cancel(Arc<(Mutex<CancelState>, Condvar)>);

#[derive(Default)]
struct CancelState {
    cancelled: bool,
    hooks: Vec<Box<dyn FnOnce() + Send>>,
}

/// What a mutex guards, whatever became of a thread that had it.
pub fn lock_of<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cancel {
    fn state(&self) -> MutexGuard<'_, CancelState> {
        lock_of(&self.0.0)
    }

    /// Cancels; runs the hooks once, on this thread.
    pub fn cancel(&self) {
        let hooks = {
            let mut state = self.state();
            state.cancelled = true;
            std::mem::take(&mut state.hooks)
        };
        self.0.1.notify_all();
        for hook in hooks {
            hook();
        }
    }

    /// Cancels `other`, which may be over by then, along with this.
    pub fn pass_on_to(&self, other: &Self) {
        let other = Arc::downgrade(&other.0);
        self.on_cancel(move || {
            if let Some(other) = other.upgrade() {
                Self(other).cancel();
            }
        });
    }

    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.state().cancelled
    }

    /// # Errors
    /// [`Error::Cancelled`].
    pub fn check(&self) -> Result<(), Error> {
        if self.is_cancelled() {
            Err(Error::Cancelled)
        } else {
            Ok(())
        }
    }

    /// Runs `hook` when the work is cancelled; at once if it is already.
    pub fn on_cancel(&self, hook: impl FnOnce() + Send + 'static) {
        let mut state = self.state();
        if state.cancelled {
            drop(state);
            hook();
        } else {
            state.hooks.push(Box::new(hook));
        }
    }

    /// Sleeps for `duration`, or until cancelled.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn pause(&self, duration: Duration) -> Result<(), Error> {
        let state = self.state();
        let (state, _) = self
            .0
            .1
            .wait_timeout_while(state, duration, |state| !state.cancelled)
            .unwrap_or_else(PoisonError::into_inner);
        if state.cancelled {
            Err(Error::Cancelled)
        } else {
            Ok(())
        }
    }
}

/// One piece of blocking work, seen from inside: `M` is what it has to say.
pub struct Task<M> {
    pub cancel: Cancel,
    messages: SyncSender<M>,
}

impl<M> Task<M> {
    #[must_use]
    pub fn new(cancel: Cancel, messages: SyncSender<M>) -> Self {
        Self { cancel, messages }
    }

    /// Hands `message` to the caller; waits while the caller is behind, so that memory stays bounded.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when nobody listens any more.
    pub fn say(&self, message: M) -> Result<(), Error> {
        self.messages.send(message).map_err(|_| Error::Cancelled)
    }

    /// # Errors
    /// [`Error::Cancelled`] when the work is no longer wanted.
    pub fn check(&self) -> Result<(), Error> {
        self.cancel.check()
    }
}

impl Task<LogLine> {
    /// # Errors
    /// [`Error::Cancelled`] when nobody listens any more.
    pub fn info(&self, text: impl Into<String>) -> Result<(), Error> {
        self.say(LogLine {
            level: Level::Info,
            text: text.into(),
            retry: None,
        })
    }

    /// # Errors
    /// [`Error::Cancelled`] when nobody listens any more.
    pub fn warn(&self, text: impl Into<String>) -> Result<(), Error> {
        self.say(LogLine {
            level: Level::Warning,
            text: text.into(),
            retry: None,
        })
    }

    /// Warns that something is tried again.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when nobody listens any more.
    pub fn warn_of(&self, retry: Retry, text: String) -> Result<(), Error> {
        self.say(LogLine {
            level: Level::Warning,
            text,
            retry: Some(retry),
        })
    }
}
