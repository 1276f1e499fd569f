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

    /// Of those that the words of a command line come from.
    fn class(self) -> Option<&'static str> {
        match self {
            Self::Training => Some("TrainingOptions"),
            Self::Launch => Some("LaunchOptions"),
            Self::Dataset => None,
        }
    }
}

/// The options that are given, in the order of [`Kind::ALL`].
pub type Given<'py> = [Option<Bound<'py, PyAny>>; 3];

/// Those that are given, if they are what they should be.
///
/// # Errors
/// `TypeError` if not, what Python raises.
pub fn checked(given: Given<'_>) -> PyResult<Given<'_>> {
    for (kind, options) in Kind::ALL.into_iter().zip(&given) {
        let (Some(options), Some(class)) = (options, kind.class()) else {
            continue;
        };
        if !options.is_instance(&import(options.py(), class)?)? {
            let expected = format!("a {class} from musubitraining");
            return Err(arguments::wrong_type(kind.name(), &expected, options).into());
        }
    }
    Ok(given)
}

fn import<'py>(py: Python<'py>, class: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("musubitraining.training_options")?.getattr(class)
}

/// Sets on the trainer those that are given.
///
/// # Errors
/// As [`checked`].
pub fn set(trainer: &Bound<'_, PyAny>, given: Given<'_>) -> PyResult<()> {
    for (kind, options) in Kind::ALL.into_iter().zip(checked(given)?) {
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

/// Those that the words of a command line come from, if any are given. What a subclass keeps under the same name for
/// itself is none.
///
/// # Errors
/// What Python raises.
pub fn given<'py>(trainer: &Bound<'py, PyAny>, kind: Kind) -> PyResult<Option<Bound<'py, PyAny>>> {
    let (Some(options), Some(class)) = (of(trainer, kind)?, kind.class()) else {
        return Ok(None);
    };
    let is_one = options.is_instance(&import(trainer.py(), class)?)?;
    Ok(is_one.then_some(options))
}

/// The training options of a run; the defaults where none are given.
fn training<'py>(trainer: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    match given(trainer, Kind::Training)? {
        Some(options) => Ok(options),
        None => import(trainer.py(), "TrainingOptions")?.call0(),
    }
}

/// The highest of the schedule, as far as options say it.
#[must_use]
pub fn learning_rate(trainer: &Bound<'_, PyAny>) -> Option<f64> {
    let rate = training(trainer).ok()?.getattr("learning_rate").ok()?;
    rate.extract().ok()
}

/// Whether base weights are merged into the DiT.
///
/// # Errors
/// What Python raises.
pub fn merge_base_weights(trainer: &Bound<'_, PyAny>) -> PyResult<bool> {
    match given(trainer, Kind::Training)? {
        Some(options) => Ok(!options.getattr("base_weights")?.is_none()),
        None => Ok(true),
    }
}

/// For the launcher.
///
/// # Errors
/// What Python raises.
pub fn launch_words(trainer: &Bound<'_, PyAny>) -> PyResult<Vec<OsString>> {
    let options = match given(trainer, Kind::Launch)? {
        Some(options) => options,
        None => import(trainer.py(), "LaunchOptions")?.call0()?,
    };
    let precision = training(trainer)?.getattr("mixed_precision")?;
    options
        .call_method1("_launch_words", (precision,))?
        .extract()
}

/// For the training script, with the steps and the output.
///
/// # Errors
/// What Python raises.
pub fn training_words(trainer: &Bound<'_, PyAny>, of_call: &Training) -> PyResult<Vec<OsString>> {
    training(trainer)?
        .call_method1("_training_words", (of_call.steps(), of_call.output()))?
        .extract()
}

/// For the script that caches text encoder outputs.
///
/// # Errors
/// What Python raises.
pub fn text_cache_words(trainer: &Bound<'_, PyAny>) -> PyResult<Vec<OsString>> {
    training(trainer)?
        .call_method0("_text_cache_words")?
        .extract()
}

/// What can be known of options that are given: the files that they name exist, and the clone takes the words.
/// Returns what may surprise.
///
/// # Errors
/// `FileNotFoundError`, `ValueError`, what Python raises.
pub fn check(
    trainer: &Bound<'_, PyAny>,
    clone: &MusubiTuner,
    script: Script,
) -> PyResult<Vec<String>> {
    let mut remarks = Vec::new();
    for kind in Kind::ALL {
        if let Some(options) = given(trainer, kind)? {
            options.call_method0("_look_for_files")?;
        } else if let (Some(other), Some(class)) = (of(trainer, kind)?, kind.class()) {
            remarks.push(format!(
                "the trainer's attribute `{}` is no {class}, but a {}: it is left alone, and the defaults hold",
                kind.name(),
                other.get_type().name()?
            ));
        }
    }
    let Some(options) = given(trainer, Kind::Training)? else {
        return Ok(remarks);
    };
    let words = match script {
        Script::CacheTextEncoderOutputs => options.call_method0("_text_cache_words")?,
        Script::Train => options.call_method0("_training_words")?,
    };
    clone.check_words(script, &words.extract::<Vec<OsString>>()?)?;
    if script == Script::Train {
        remarks.extend(options.call_method0("_remarks")?.extract::<Vec<String>>()?);
    }
    Ok(remarks)
}
