//! `DownloadError`, and its kinds that are also what callers of `requests` catch.

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};

use super::DownloadFailure;

pyo3::create_exception!(
    musubitraining,
    DownloadError,
    PyOSError,
    "The zip of photos could not be had. `status` is the HTTP status, or None where there was no answer."
);

/// The exception for a failed download.
pub fn raised(py: Python<'_>, failure: DownloadFailure, message: &str) -> PyErr {
    match exception(py, failure, message) {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

/// The exception for an address that is none: a `ValueError`, which that of `requests` is, too.
pub fn invalid_url(py: Python<'_>, message: String) -> PyErr {
    let of_requests = py
        .import("requests.exceptions")
        .and_then(|exceptions| exceptions.getattr("InvalidURL")?.call1((&message,)));
    of_requests.map_or_else(|_| PyValueError::new_err(message), PyErr::from_value)
}

/// Makes an unpickled error of the kind that this process has: with `requests` or without.
///
/// # Errors
/// What Python raises.
#[pyfunction(name = "_restore_download_error")]
pub fn restore_download_error<'py>(
    py: Python<'py>,
    message: &str,
    status: Option<u16>,
    kind: &str,
) -> PyResult<Bound<'py, PyAny>> {
    let failure = match (status, kind) {
        (Some(status), _) => DownloadFailure::Status(status),
        (None, "Timeout") => DownloadFailure::Timeout,
        (None, "TooManyRedirects") => DownloadFailure::TooManyRedirects,
        (None, "InvalidSchema") => DownloadFailure::InvalidSchema,
        (None, _) => DownloadFailure::Connection,
    };
    exception(py, failure, message)
}

fn exception<'py>(
    py: Python<'py>,
    failure: DownloadFailure,
    message: &str,
) -> PyResult<Bound<'py, PyAny>> {
    let status = match failure {
        DownloadFailure::Status(status) => Some(status),
        _ => None,
    };
    let Ok(requests) = py.import("requests") else {
        let exception = py.get_type::<DownloadError>().call1((message,))?;
        exception.setattr("status", status)?;
        return Ok(exception);
    };
    let exception = kind(&requests, failure)?.call1((message,))?;
    exception.setattr("status", status)?;
    if let Some(status) = status {
        // Callers look at `error.response.status_code`.
        let response = requests.getattr("Response")?.call0()?;
        response.setattr("status_code", status)?;
        exception.setattr("response", response)?;
    }
    Ok(exception)
}

/// The class of `requests` for this failure, which is a [`DownloadError`] too.
fn kind<'py>(
    requests: &Bound<'py, PyModule>,
    failure: DownloadFailure,
) -> PyResult<Bound<'py, PyAny>> {
    static KINDS: PyOnceLock<Py<PyDict>> = PyOnceLock::new();
    let py = requests.py();
    let name = match failure {
        DownloadFailure::Status(_) => "HTTPError",
        DownloadFailure::Connection => "ConnectionError",
        DownloadFailure::Timeout => "Timeout",
        DownloadFailure::TooManyRedirects => "TooManyRedirects",
        // A ValueError besides.
        DownloadFailure::InvalidSchema => "InvalidSchema",
    };
    let kinds = KINDS.get_or_init(py, || PyDict::new(py).unbind()).bind(py);
    if let Some(kind) = kinds.get_item(name)? {
        return Ok(kind);
    }
    let namespace = PyDict::new(py);
    namespace.set_item("__module__", "musubitraining")?;
    let of_requests = requests.getattr("exceptions")?.getattr(name)?;
    let bases = (py.get_type::<DownloadError>(), of_requests);
    let kind = py.get_type::<PyType>().call1((name, bases, namespace))?;
    // No module has this class to look it up in.
    let reduce = wrap_pyfunction!(reduce, py)?;
    py.import("copyreg")?
        .call_method1("pickle", (&kind, reduce))?;
    kinds.set_item(name, &kind)?;
    Ok(kind)
}

/// How `copyreg` has one pickled.
#[pyfunction]
fn reduce<'py>(error: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyTuple>> {
    let py = error.py();
    let restore = py
        .import("musubitraining._native")?
        .getattr("_restore_download_error")?;
    let arguments = (
        error.str()?,
        error.getattr("status")?,
        error.get_type().name()?,
    );
    (restore, arguments).into_pyobject(py)
}
