//! Python's `musubitraining` logger.

use std::sync::Arc;

use pyo3::call::PyCallArgs;
use pyo3::exceptions::PyException;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::record::Record;
use super::run::Run;
use crate::events::Event;
use crate::plain_class;
use crate::task::{Level, LogLine};

/// `logging.INFO`.
const INFO: u8 = 20;

pub struct Log<'py> {
    logger: Bound<'py, PyAny>,
    /// Of the run that it is a log of, which takes down the warnings.
    record: Option<Arc<Record>>,
}

impl<'py> Log<'py> {
    /// The logger that `musubitraining.main` has at the moment.
    pub fn new(py: Python<'py>) -> PyResult<Self> {
        Ok(Self {
            logger: py.import("musubitraining.main")?.getattr("logger")?,
            record: None,
        })
    }

    /// That of the run which is under way on this trainer.
    pub fn of(trainer: &Bound<'py, PyAny>) -> PyResult<Self> {
        Ok(Self {
            record: Run::of(trainer)?.record(),
            ..Self::new(trainer.py())?
        })
    }

    /// That of a run which has this record.
    pub fn recorded(py: Python<'py>, record: &Arc<Record>) -> PyResult<Self> {
        Ok(Self {
            record: Some(record.clone()),
            ..Self::new(py)?
        })
    }

    /// As in Python: the format, then its arguments.
    pub fn info(&self, message: impl PyCallArgs<'py>) -> PyResult<()> {
        self.logger.call_method1("info", message).map(drop)
    }

    /// As [`Self::info`]; the record of the run has it, too.
    pub fn warning(
        &self,
        message: impl IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>, Error = PyErr>,
    ) -> PyResult<()> {
        let message = message.into_pyobject(self.logger.py())?;
        self.logger.call_method1("warning", &message)?;
        if let Some(record) = &self.record {
            let arguments = message.get_slice(1, message.len());
            let text = message.get_item(0)?.call_method1("__mod__", (arguments,))?;
            record.warn(&text.str()?.to_string_lossy());
        }
        Ok(())
    }

    pub fn error(&self, message: impl PyCallArgs<'py>) -> PyResult<()> {
        self.logger.call_method1("error", message).map(drop)
    }

    pub fn line(&self, line: &LogLine) -> PyResult<()> {
        let message = ("%s", &line.text);
        if let (Some(record), Some(retry)) = (&self.record, &line.retry) {
            record.events.say(&Event::Retry {
                attempt: retry.attempt,
                wait: retry.wait,
                reason: &retry.reason,
            });
        }
        match line.level {
            Level::Info => self.info(message),
            Level::Warning => self.warning(message),
        }
    }
}

impl<'py> Log<'py> {
    /// For lines of `step` that have come at once.
    pub fn of_lines(&self, step: &Bound<'py, PyAny>) -> PyResult<LinesLog<'_, 'py>> {
        let is_plain = match self.makes_plain_records() {
            // What has no such functions is a stand-in for a logger. Ctrl-C is heard wherever it comes.
            Err(error) if error.is_instance_of::<PyException>(step.py()) => false,
            asked => asked?,
        };
        let copier = if is_plain {
            let filters = self.logger.getattr("filters")?.is_truthy()?;
            let has_to_ask = filters || self.logger.getattr("disabled")?.is_truthy()?;
            Some(Copier {
                is_enabled: self
                    .logger
                    .call_method1("isEnabledFor", (INFO,))?
                    .is_truthy()?,
                handle: self
                    .logger
                    .getattr(if has_to_ask { "handle" } else { "callHandlers" })?,
                first: None,
            })
        } else {
            None
        };
        Ok(LinesLog {
            log: self,
            step: step.clone(),
            copier,
        })
    }

    /// Whether the logger makes its records as `logging` does: nobody has replaced a function that takes part.
    fn makes_plain_records(&self) -> PyResult<bool> {
        let logging = self.logger.py().import("logging")?;
        let file_of =
            |function: Bound<'py, PyAny>| function.getattr("__code__")?.getattr("co_filename");
        let ours = file_of(logging.getattr("getLogger")?)?;
        for name in [
            "info",
            "_log",
            "findCaller",
            "makeRecord",
            "handle",
            "filter",
        ] {
            if !file_of(self.logger.getattr(name)?)?.eq(&ours)? {
                return Ok(false);
            }
        }
        let factory = logging.call_method0("getLogRecordFactory")?;
        Ok(factory.is(&logging.getattr("LogRecord")?))
    }
}

/// Logs lines of a step that have come at once, each in a record of its own.
///
/// Most of what `Logger.info` costs is to look for its caller and to find out some twenty attributes of the record, which
/// are the same for all these lines but for text and time: the first line's record is made by the logger, those of the
/// others are copies. What is asked of the logger is asked once, too.
pub struct LinesLog<'log, 'py> {
    log: &'log Log<'py>,
    step: Bound<'py, PyAny>,
    /// None where the logger has ways of its own.
    copier: Option<Copier<'py>>,
}

struct Copier<'py> {
    is_enabled: bool,
    handle: Bound<'py, PyAny>,
    first: Option<LogRecord<'py>>,
}

/// A record as it was before any handler had it.
struct LogRecord<'py> {
    class: Bound<'py, PyAny>,
    new: Bound<'py, PyAny>,
    clock: Bound<'py, PyAny>,
    attributes: Bound<'py, PyDict>,
    created: f64,
    relative_ms: f64,
}

impl LinesLog<'_, '_> {
    pub fn info(&mut self, line: &str) -> PyResult<()> {
        const FORMAT: &str = "[%s] %s";
        let Some(copier) = &mut self.copier else {
            return self.log.info((FORMAT, &self.step, line));
        };
        if !copier.is_enabled {
            return Ok(());
        }
        let logger = &self.log.logger;
        let arguments = (&self.step, line).into_pyobject(logger.py())?;
        let record = if let Some(first) = &copier.first {
            first.copy(&arguments)?
        } else {
            let (name, file, function) =
                (logger.getattr("name")?, plain_class::FILE_NAME, "_run_cmd");
            let no_exception = logger.py().None();
            let of_record = (
                name,
                INFO,
                file,
                1,
                FORMAT,
                &arguments,
                no_exception,
                function,
            );
            let record = logger.call_method1("makeRecord", of_record)?;
            copier.first = Some(LogRecord::new(&record)?);
            record
        };
        copier.handle.call1((record,)).map(drop)
    }
}

impl<'py> LogRecord<'py> {
    fn new(record: &Bound<'py, PyAny>) -> PyResult<Self> {
        let class = record.get_type();
        Ok(Self {
            new: class.getattr("__new__")?,
            class: class.into_any(),
            clock: record.py().import("time")?.getattr("time")?,
            attributes: record.getattr("__dict__")?.cast::<PyDict>()?.copy()?,
            created: record.getattr("created")?.extract()?,
            relative_ms: record.getattr("relativeCreated")?.extract()?,
        })
    }

    fn copy(&self, arguments: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
        let py = arguments.py();
        let created: f64 = self.clock.call0()?.extract()?;
        let relative_ms = self.relative_ms + (created - self.created) * 1e3;
        let attributes = self.attributes.copy()?;
        attributes.set_item(intern!(py, "args"), arguments)?;
        attributes.set_item(intern!(py, "created"), created)?;
        attributes.set_item(intern!(py, "msecs"), (created.fract() * 1e3).trunc())?;
        attributes.set_item(intern!(py, "relativeCreated"), relative_ms)?;
        let record = self.new.call1((&self.class,))?;
        record.setattr(intern!(py, "__dict__"), attributes)?;
        Ok(record)
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
