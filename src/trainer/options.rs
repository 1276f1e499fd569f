//! The options that a run has: those given to the call, else those of the trainer.

use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;

use super::run::Run;

/// What options are about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Training,
    Launch,
    Dataset,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Training, Self::Launch, Self::Dataset];

    /// The parameter of `MusubiTraining` and of `train`, and the trainer's attribute.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Training => "options",
            Self::Launch => "launch_options",
            Self::Dataset => "dataset_options",
        }
    }
}

/// The options that are given, in the order of [`Kind::ALL`].
pub type Given<'py> = [Option<Bound<'py, PyAny>>; 3];

/// Sets on the trainer those that are given.
///
/// # Errors
/// What Python raises.
pub fn set(trainer: &Bound<'_, PyAny>, given: Given<'_>) -> PyResult<()> {
    for (kind, options) in Kind::ALL.into_iter().zip(given) {
        if let Some(options) = options {
            trainer.setattr(kind.name(), options)?;
        }
    }
    Ok(())
}

/// Those of the call that is under way on this trainer, else those that are set on it; `None` where neither are.
///
/// # Errors
/// What Python raises.
pub fn of<'py>(trainer: &Bound<'py, PyAny>, kind: Kind) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = trainer.py();
    if let Some(options) = Run::of(trainer)?.options(py, kind) {
        return Ok(Some(options));
    }
    match trainer.getattr(kind.name()) {
        Ok(options) if options.is_none() => Ok(None),
        Ok(options) => Ok(Some(options)),
        Err(error) if error.is_instance_of::<PyAttributeError>(py) => Ok(None),
        Err(error) => Err(error),
    }
}
