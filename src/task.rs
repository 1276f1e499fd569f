//! What blocking work is given: a way to say something to its caller, and to learn that it is no longer wanted.

use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::Error;

/// How loud a [`LogLine`] is, in the terms of Python's `logging`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Info,
    Warning,
}

/// One line for the `musubitraining` logger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    pub level: Level,
    pub text: String,
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
        })
    }

    /// # Errors
    /// [`Error::Cancelled`] when nobody listens any more.
    pub fn warn(&self, text: impl Into<String>) -> Result<(), Error> {
        self.say(LogLine {
            level: Level::Warning,
            text: text.into(),
        })
    }
}
