//! `DatasetOptions`, as a dataset is made by them.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyString};

use super::arguments;
use super::options::{self, Kind};
use crate::dataset::{Captions, EXTENSIONS, Extensions, Options};
use crate::error::Error;

/// Those of the call or of the trainer, else the defaults. Any object with the four attributes will do.
///
/// # Errors
/// `AttributeError`, `TypeError` or `ValueError` for what is no set of options.
pub fn of(trainer: &Bound<'_, PyAny>) -> PyResult<Options> {
    match options::of(trainer, Kind::Dataset)? {
        Some(options) => read(&options),
        None => Ok(Options::default()),
    }
}

fn read(options: &Bound<'_, PyAny>) -> PyResult<Options> {
    let upright = options.getattr("upright")?;
    let default = options.getattr("default_caption")?;
    let default = if default.is_none() {
        None
    } else {
        Some(arguments::text("default_caption", &default)?)
    };
    let captions = match arguments::text("captions", &options.getattr("captions")?)?.as_str() {
        "trigger" => Captions::TriggerWord,
        "files" => Captions::Files { default },
        other => {
            return Err(Error::InvalidValue(format!(
                "captions={other:?}: expected \"trigger\" or \"files\""
            ))
            .into());
        }
    };
    Ok(Options {
        captions,
        extensions: extensions(&options.getattr("image_extensions")?)?,
        upright: upright.cast::<PyBool>()?.is_true(),
        are_given: true,
    })
}

fn extensions(value: &Bound<'_, PyAny>) -> PyResult<Extensions> {
    let expected = || {
        format!(
            "image_extensions: expected some of {}",
            EXTENSIONS.join(", ")
        )
    };
    if value.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err(expected()));
    }
    let given = value.extract::<Vec<String>>();
    let given = given.map_err(|_| PyTypeError::new_err(expected()))?;
    let found = Extensions::of(given.iter().map(String::as_str));
    Ok(found.map_err(|other| Error::InvalidValue(format!("{}, found {other:?}", expected())))?)
}
