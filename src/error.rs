//! Everything that can go wrong, in the field's words, and its only mapping to Python exceptions.

mod download;

use std::io;
use std::path::{Path, PathBuf};

use pyo3::exceptions::{
    PyException, PyFileNotFoundError, PyOSError, PyRuntimeError, PyTypeError, PyValueError,
};
use pyo3::prelude::*;

pub use download::{DownloadError, restore_download_error};

pyo3::create_exception!(
    musubitraining,
    Cancelled,
    PyException,
    "The run was ended by `MusubiTraining.cancel()`."
);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value that can never work: `ValueError`.
    #[error("{0}")]
    InvalidValue(String),
    /// No address of a zip: `ValueError`, and what `requests` raises for one.
    #[error("{0}")]
    InvalidUrl(String),
    /// A value of a kind that can never work: `TypeError`.
    #[error("{0}")]
    InvalidType(String),
    /// `FileNotFoundError`, in the contract's words: "VAE weights not found: /models/ae.safetensors".
    #[error("{what}: {}", path.display())]
    Missing { what: &'static str, path: PathBuf },
    /// Something on disk or in the environment that the run cannot work with: `RuntimeError`.
    #[error("{0}")]
    Unusable(String),
    /// `zipfile.BadZipFile`.
    #[error("{0}")]
    BadZip(String),
    /// The zip could not be had.
    #[error("{message}")]
    Download {
        failure: DownloadFailure,
        message: String,
    },
    /// `OSError` with its errno and file name.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The caller no longer wants the work: [`Cancelled`], where nothing else made it cancel.
    #[error(
        "the run was cancelled by cancel(): nothing of it is left running, and the training folder can be used again"
    )]
    Cancelled,
}

/// What `requests` has exceptions for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownloadFailure {
    Status(u16),
    Connection,
    Timeout,
    TooManyRedirects,
    /// Of a redirect: to an address that is neither http nor https.
    InvalidSchema,
}

/// The action of [`Error::Io`] when a command cannot be started.
pub const RUN: &str = "run";

impl Error {
    /// For `map_err` on file-system calls: `.map_err(Error::io("write", &path))`.
    pub fn io<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Self + 'a {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::InvalidValue(_) => PyValueError::new_err(message),
            Error::InvalidUrl(_) => Python::attach(|py| download::invalid_url(py, message)),
            Error::InvalidType(_) => PyTypeError::new_err(message),
            Error::Missing { .. } => PyFileNotFoundError::new_err(message),
            Error::Unusable(_) => PyRuntimeError::new_err(message),
            Error::Cancelled => Cancelled::new_err(message),
            Error::BadZip(_) => Python::attach(|py| bad_zip_file(py, message)),
            Error::Download { failure, .. } => {
                Python::attach(|py| download::raised(py, failure, &message))
            }
            Error::Io {
                action,
                path,
                source,
            } => match errno(&source) {
                // OSError(errno, text, filename) becomes FileNotFoundError, PermissionError, … by its errno.
                Some(errno) => {
                    PyOSError::new_err((errno, in_words(action, &source), path.into_os_string()))
                }
                // A path with a NUL, which no system call takes.
                None if source.kind() == io::ErrorKind::InvalidInput => {
                    PyValueError::new_err(message)
                }
                None => PyOSError::new_err(message),
            },
        }
    }
}

/// The system's own words, then what could not be done; running a command fails in `subprocess`'s words alone.
fn in_words(action: &str, error: &io::Error) -> String {
    let words = error.to_string();
    let words = words.split(" (os error ").next().unwrap_or_default();
    if action == RUN {
        words.to_owned()
    } else {
        format!("{words} (cannot {action})")
    }
}

/// Also of an error that we have put into words of our own.
fn errno(error: &io::Error) -> Option<i32> {
    error.raw_os_error().or(match error.kind() {
        io::ErrorKind::StorageFull => Some(libc::ENOSPC),
        io::ErrorKind::ResourceBusy => Some(libc::EBUSY),
        io::ErrorKind::PermissionDenied => Some(libc::EACCES),
        io::ErrorKind::NotFound => Some(libc::ENOENT),
        _ => None,
    })
}

fn bad_zip_file(py: Python<'_>, message: String) -> PyErr {
    match py
        .import("zipfile")
        .and_then(|module| module.getattr("BadZipFile")?.call1((message,)))
    {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}
