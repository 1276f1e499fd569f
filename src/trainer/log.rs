//! Python's `musubitraining` logger.

use pyo3::call::PyCallArgs;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::task::{Level, LogLine};

pub struct Log<'py>(Bound<'py, PyAny>);

impl<'py> Log<'py> {
    /// The logger that `musubitraining.main` has at the moment.
    pub fn new(py: Python<'py>) -> PyResult<Self> {
        Ok(Self(py.import("musubitraining.main")?.getattr("logger")?))
    }

    /// As in Python: the format, then its arguments.
    pub fn info(&self, message: impl PyCallArgs<'py>) -> PyResult<()> {
        self.0.call_method1("info", message).map(drop)
    }

    pub fn warning(&self, message: impl PyCallArgs<'py>) -> PyResult<()> {
        self.0.call_method1("warning", message).map(drop)
    }

    pub fn error(&self, message: impl PyCallArgs<'py>) -> PyResult<()> {
        self.0.call_method1("error", message).map(drop)
    }

    pub fn line(&self, line: &LogLine) -> PyResult<()> {
        let message = ("%s", &line.text);
        match line.level {
            Level::Info => self.info(message),
            Level::Warning => self.warning(message),
        }
    }
}

/// Gives a program that did not configure logging a simple default, so that container logs show something.
pub fn configure_root(py: Python<'_>) -> PyResult<()> {
    let logging = py.import("logging")?;
    if logging
        .call_method0("getLogger")?
        .getattr("handlers")?
        .is_truthy()?
    {
        return Ok(());
    }
    let options = PyDict::new(py);
    options.set_item("level", logging.getattr("INFO")?)?;
    options.set_item(
        "format",
        "%(asctime)s | %(levelname)s | %(name)s | %(message)s",
    )?;
    logging
        .call_method("basicConfig", (), Some(&options))
        .map(drop)
}
