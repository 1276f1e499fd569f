//! What is under way on a trainer: how it is cancelled, and the training folder that it has for itself.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::{self, ThreadId};

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::options;
use super::record::Record;
use crate::dataset;
use crate::error::Error;
use crate::folder_lock::{self, Access, FolderLock};
use crate::interrupt;
use crate::process::WarmInterpreter;
use crate::progress::Heard;
use crate::task::{Cancel, lock_of};

/// One run of a trainer, from the outermost call on it to that call's end: the steps that `train` calls through
/// `self` belong to its run.
#[derive(Clone)]
pub struct Run(Arc<State>);

#[derive(Default)]
struct State {
    cancel: Cancel,
    folders: Mutex<Vec<(PathBuf, FolderLock)>>,
    /// What is done but once at a time in a folder.
    doing: Mutex<Vec<(&'static str, PathBuf)>>,
    /// With the thread and the step that it was heard in.
    heard: Mutex<Vec<(ThreadId, String, Heard)>>,
    warm: Mutex<Option<Arc<WarmInterpreter>>>,
    converts_natively: AtomicBool,
    options: Mutex<[Option<Py<PyAny>>; 3]>,
    record: Mutex<Option<Arc<Record>>>,
}

/// By the address of the trainer, which lives as long as a call on it.
static UNDER_WAY: Mutex<Vec<(usize, Weak<State>)>> = Mutex::new(Vec::new());

impl Run {
    /// The run of this trainer that is under way, or a new one.
    ///
    /// # Errors
    /// What Python raises.
    pub fn of(trainer: &Bound<'_, PyAny>) -> PyResult<Self> {
        part_at_forks(trainer.py())?;
        let mut under_way = lock_of(&UNDER_WAY);
        under_way.retain(|(_, run)| run.strong_count() > 0);
        if let Some(state) = find(&under_way, trainer) {
            return Ok(Self(state));
        }
        let state = Arc::new(State::default());
        under_way.push((trainer.as_ptr() as usize, Arc::downgrade(&state)));
        Ok(Self(state))
    }

    /// The run of this trainer that is under way.
    #[must_use]
    pub fn under_way(trainer: &Bound<'_, PyAny>) -> Option<Self> {
        find(&lock_of(&UNDER_WAY), trainer).map(Self)
    }

    /// Cancels what is under way on this trainer; tells whether anything was.
    pub fn cancel_on(trainer: &Bound<'_, PyAny>) -> bool {
        Self::under_way(trainer).is_some_and(|run| {
            run.cancel().cancel();
            true
        })
    }

    #[must_use]
    pub fn cancel(&self) -> &Cancel {
        &self.0.cancel
    }

    /// Where it is taken down what happens, in a run of `train`.
    #[must_use]
    pub fn record(&self) -> Option<Arc<Record>> {
        lock_of(&self.0.record).clone()
    }

    pub fn set_record(&self, record: Option<Arc<Record>>) {
        *lock_of(&self.0.record) = record;
    }

    /// Hands what has happened to those who listen.
    ///
    /// # Errors
    /// What they raise.
    pub fn deliver(&self, py: Python<'_>) -> PyResult<()> {
        self.record().map_or(Ok(()), |record| record.deliver(py))
    }

    /// # Errors
    /// [`Error::Cancelled`].
    pub fn check(&self) -> Result<(), Error> {
        self.0.cancel.check()
    }

    /// Has the training folder, if it exists, for this run until its end, and brings what a killed run has left there to
    /// a whole dataset. Waits while a killed run's processes are being ended.
    ///
    /// # Errors
    /// [`Error::Unusable`] when another run has it; what the disk gives; [`Error::Cancelled`].
    pub fn claim(&self, py: Python<'_>, training_folder: &Path, access: Access) -> PyResult<()> {
        if self.has(training_folder) || !training_folder.is_dir() {
            return Ok(());
        }
        let lock = match FolderLock::take(training_folder, access) {
            Err(_) if folder_lock::is_of_the_dead(training_folder) => {
                interrupt::run_quietly(py, &self.0.cancel, |task| {
                    folder_lock::wait_for_the_dead(training_folder, &task.cancel)
                })?;
                FolderLock::take(training_folder, access)?
            }
            taken => taken?,
        };
        if !lock.is_shared() && dataset::is_unfinished(training_folder)? {
            lock.change(training_folder, Access::Alone)?;
            interrupt::run_quietly(py, &self.0.cancel, |_| dataset::recover(training_folder))?;
            lock.change(training_folder, access)?;
        }
        lock_of(&self.0.folders).push((training_folder.to_owned(), lock));
        if let Some(record) = self.record() {
            record.settle(training_folder);
        }
        Ok(())
    }

    /// Whether it has this folder for itself.
    #[must_use]
    pub fn has(&self, training_folder: &Path) -> bool {
        let folders = lock_of(&self.0.folders);
        folders.iter().any(|(folder, _)| folder == training_folder)
    }

    /// [`Self::claim`] for a step alone, which an override of another run may have left to another thread, trainer or
    /// process: in a folder that this process has, or the one that started it, it does without.
    ///
    /// # Errors
    /// As [`Self::claim`].
    pub fn claim_for_step(
        &self,
        py: Python<'_>,
        training_folder: &Path,
        access: Access,
    ) -> PyResult<()> {
        match self.claim(py, training_folder, access) {
            Err(_) if folder_lock::is_of_this_process_or_its_parent(training_folder) => Ok(()),
            claimed => claimed,
        }
    }

    /// The locked folders, for the processes of a step to hold as well.
    #[must_use]
    pub fn locks(&self) -> Vec<OwnedFd> {
        lock_of(&self.0.folders)
            .iter()
            .filter_map(|(_, lock)| lock.duplicate())
            .collect()
    }

    /// Does `what` in this folder, which another thread must not do with the same trainer meanwhile.
    ///
    /// # Errors
    /// [`Error::Unusable`] when one does.
    pub fn alone(&self, what: &'static str, training_folder: &Path) -> Result<Alone, Error> {
        let mut doing = lock_of(&self.0.doing);
        let this = (what, training_folder.to_owned());
        if doing.contains(&this) {
            return Err(folder_lock::in_use(training_folder, " of this trainer"));
        }
        doing.push(this.clone());
        Ok(Alone {
            run: self.clone(),
            this,
        })
    }

    /// Whether the LoRA is converted here, not by the clone's script.
    #[must_use]
    pub fn converts_natively(&self) -> bool {
        self.0.converts_natively.load(Ordering::Relaxed)
    }

    pub fn convert_natively(&self, natively: bool) {
        self.0.converts_natively.store(natively, Ordering::Relaxed);
    }

    /// Has these options until its end, whatever the trainer's are.
    ///
    /// # Errors
    /// As [`options::checked`].
    pub fn set_options(&self, given: options::Given<'_>) -> PyResult<()> {
        let given = options::checked(given)?;
        *lock_of(&self.0.options) = given.map(|options| options.map(Bound::unbind));
        Ok(())
    }

    #[must_use]
    pub fn options<'py>(&self, py: Python<'py>, kind: options::Kind) -> Option<Bound<'py, PyAny>> {
        let options = lock_of(&self.0.options);
        Some(options[kind as usize].as_ref()?.bind(py).clone())
    }

    /// Has the steps run in forks of this interpreter, until it is dropped.
    pub fn warm_up(&self, interpreter: WarmInterpreter) -> Warm {
        *lock_of(&self.0.warm) = Some(Arc::new(interpreter));
        Warm(self.clone())
    }

    #[must_use]
    pub fn warm_interpreter(&self) -> Option<Arc<WarmInterpreter>> {
        lock_of(&self.0.warm).clone()
    }

    /// Does without its warm interpreter from here on; tells whether it had one.
    pub fn cool_down(&self) -> bool {
        lock_of(&self.0.warm).take().is_some()
    }

    /// Notes what a step's command has said.
    pub fn note(&self, step: String, heard: Heard) {
        lock_of(&self.0.heard).push((thread::current().id(), step, heard));
    }

    /// What the step's command has said, once: the last one of this thread, whatever a subclass calls the step, else that
    /// of the thread which it has left the step to. `None` when none has run, as `_run_cmd` may be replaced.
    #[must_use]
    pub fn heard(&self, step: &str) -> Option<Heard> {
        let mut heard = lock_of(&self.0.heard);
        let this = thread::current().id();
        let place = heard
            .iter()
            .rposition(|(thread, _, _)| *thread == this)
            .or_else(|| heard.iter().rposition(|(_, of, _)| of == step))?;
        let (_, _, last) = heard.remove(place);
        heard.retain(|(thread, _, _)| *thread != this);
        Some(last)
    }
}

impl interrupt::Caller for Run {
    fn cancel(&self) -> &Cancel {
        &self.0.cancel
    }

    fn wake(&self, py: Python<'_>) -> PyResult<()> {
        self.deliver(py)?;
        Ok(self.check()?)
    }
}

/// Until it is dropped.
pub struct Alone {
    run: Run,
    this: (&'static str, PathBuf),
}

impl Drop for Alone {
    fn drop(&mut self) {
        lock_of(&self.run.0.doing).retain(|doing| *doing != self.this);
    }
}

/// The time that a run has a warm interpreter for.
pub struct Warm(Run);

/// Ends the interpreter and what is left of its forks.
impl Drop for Warm {
    fn drop(&mut self) {
        Python::attach(|py| py.detach(|| self.0.cool_down()));
    }
}

fn find(under_way: &[(usize, Weak<State>)], trainer: &Bound<'_, PyAny>) -> Option<Arc<State>> {
    let address = trainer.as_ptr() as usize;
    under_way
        .iter()
        .filter(|(of, _)| *of == address)
        .find_map(|(_, run)| run.upgrade())
}

/// A fork of this process has none of its runs, and must not keep their folders when this process is gone.
fn part_at_forks(py: Python<'_>) -> PyResult<()> {
    static DONE: PyOnceLock<()> = PyOnceLock::new();
    DONE.get_or_try_init(py, || {
        let keywords = pyo3::types::PyDict::new(py);
        keywords.set_item("after_in_child", wrap_pyfunction!(leave_to_parent, py)?)?;
        py.import("os")?
            .call_method("register_at_fork", (), Some(&keywords))
            .map(drop)
    })
    .copied()
}

#[pyfunction]
fn leave_to_parent() {
    folder_lock::leave_to_parent();
    if let Ok(mut under_way) = UNDER_WAY.try_lock() {
        under_way.clear();
    }
}
