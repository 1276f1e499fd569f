//! The options that a run has: those given to the call, else those of the trainer.

use std::ffi::OsString;

use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;

use super::arguments;
use super::run::Run;
use crate::tuner::{MusubiTuner, Script, Training};

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

/// The `TrainingOptions` or `LaunchOptions` of a run; the defaults where none are given.
///
/// # Errors
/// `TypeError` for anything else, what Python raises.
fn command_line<'py>(trainer: &Bound<'py, PyAny>, kind: Kind) -> PyResult<Bound<'py, PyAny>> {
    let name = match kind {
        Kind::Launch => "LaunchOptions",
        _ => "TrainingOptions",
    };
    let class = trainer
        .py()
        .import("musubitraining.training_options")?
        .getattr(name)?;
    match of(trainer, kind)? {
        None => class.call0(),
        Some(options) if options.is_instance(&class)? => Ok(options),
        Some(other) => {
            let expected = format!("a {name}");
            Err(arguments::wrong_type(kind.name(), &expected, &other).into())
        }
    }
}

/// Whether base weights are merged into the DiT.
///
/// # Errors
/// As [`launch_words`].
pub fn merge_base_weights(trainer: &Bound<'_, PyAny>) -> PyResult<bool> {
    if of(trainer, Kind::Training)?.is_none() {
        return Ok(true);
    }
    let base_weights = command_line(trainer, Kind::Training)?.getattr("base_weights")?;
    Ok(!base_weights.is_none())
}

/// For the launcher.
///
/// # Errors
/// `TypeError` for what are no options, what Python raises.
pub fn launch_words(trainer: &Bound<'_, PyAny>) -> PyResult<Vec<OsString>> {
    let precision = command_line(trainer, Kind::Training)?.getattr("mixed_precision")?;
    command_line(trainer, Kind::Launch)?
        .call_method1("_launch_words", (precision,))?
        .extract()
}

/// For the training script, with the steps and the output.
///
/// # Errors
/// As [`launch_words`].
pub fn training_words(trainer: &Bound<'_, PyAny>, training: &Training) -> PyResult<Vec<OsString>> {
    command_line(trainer, Kind::Training)?
        .call_method1("_training_words", (training.steps(), training.output()))?
        .extract()
}

/// For the script that caches text encoder outputs.
///
/// # Errors
/// As [`launch_words`].
pub fn text_cache_words(trainer: &Bound<'_, PyAny>) -> PyResult<Vec<OsString>> {
    command_line(trainer, Kind::Training)?
        .call_method0("_text_cache_words")?
        .extract()
}

/// What can be known of options that are given: the files that they name exist, and the clone takes the words.
/// Returns what may surprise.
///
/// # Errors
/// `FileNotFoundError`, `ValueError`, `TypeError` for what are no options, what Python raises.
pub fn check(
    trainer: &Bound<'_, PyAny>,
    clone: &MusubiTuner,
    script: Script,
) -> PyResult<Vec<String>> {
    for kind in [Kind::Training, Kind::Launch] {
        if of(trainer, kind)?.is_some() {
            command_line(trainer, kind)?.call_method0("_look_for_files")?;
        }
    }
    if of(trainer, Kind::Training)?.is_none() {
        return Ok(Vec::new());
    }
    let options = command_line(trainer, Kind::Training)?;
    let words = match script {
        Script::CacheTextEncoderOutputs => options.call_method0("_text_cache_words")?,
        Script::Train => options.call_method0("_training_words")?,
    };
    clone.check_words(script, &words.extract::<Vec<OsString>>()?)?;
    match script {
        Script::CacheTextEncoderOutputs => Ok(Vec::new()),
        Script::Train => options.call_method0("_remarks")?.extract(),
    }
}
