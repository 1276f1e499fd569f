//! `DatasetLimits`, how much a dataset may bring: a real Python dataclass, set as an attribute of a trainer.

use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{IntoPyDict, PyDict, PyInt};

use super::arguments;
use crate::dataset::DatasetLimits;
use crate::plain_class;

/// Of a trainer.
const ATTRIBUTE: &str = "dataset_limits";

const DOC: &str = "\
How much a zip of photos may bring; more is refused before the old dataset is touched.

Set it on a trainer: `trainer.dataset_limits = DatasetLimits(extracted_bytes=200 * 2**30)`. It is read when the dataset is
prepared, and any object with the three attributes will do. Each is an int of at least 1.

Attributes:
    zip_bytes: bytes of the zip as it is downloaded, also of what a Content-Encoding inflates to (default 64 * 2**30).
    extracted_bytes: bytes of all the files in it, extracted (default 64 * 2**30).
    entries: files and folders in it, of any kind (default 100_000).

Raises:
    TypeError: a value is no int.
    ValueError: a value is less than 1.";

/// The class, made at the first call.
///
/// # Errors
/// What `dataclasses` raises.
pub fn dataclass(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static CLASS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let class = CLASS.get_or_try_init(py, || make(py).map(Bound::unbind))?;
    Ok(class.bind(py).clone())
}

fn make(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    let int = py.get_type::<PyInt>();
    let defaults = DatasetLimits::default();
    let fields = [
        ("zip_bytes", &int, defaults.zip_bytes),
        ("extracted_bytes", &int, defaults.extracted_bytes),
        ("entries", &int, defaults.entries),
    ];
    let namespace = PyDict::new(py);
    namespace.set_item("__doc__", DOC)?;
    let check = wrap_pyfunction!(check, py)?;
    namespace.set_item(
        "__post_init__",
        plain_class::function(&check, "__post_init__")?,
    )?;
    let options = [("frozen", true), ("kw_only", true)].into_py_dict(py)?;
    options.set_item("namespace", namespace)?;
    let class = py.import("dataclasses")?.call_method(
        "make_dataclass",
        ("DatasetLimits", fields),
        Some(&options),
    )?;
    // Afterwards: some Pythons put a caller's module there.
    class.setattr("__module__", "musubitraining")?;
    Ok(class)
}

#[pyfunction(name = "__post_init__")]
fn check(slf: &Bound<'_, PyAny>) -> PyResult<()> {
    read(slf).map(drop)
}

/// Those that are set on `trainer`, else the defaults.
///
/// # Errors
/// `AttributeError`, `TypeError` or `ValueError` for what is no set of limits.
pub fn of(trainer: &Bound<'_, PyAny>) -> PyResult<DatasetLimits> {
    match trainer.getattr(ATTRIBUTE) {
        Ok(limits) => read(&limits),
        Err(error) if error.is_instance_of::<PyAttributeError>(trainer.py()) => {
            Ok(DatasetLimits::default())
        }
        Err(error) => Err(error),
    }
}

fn read(limits: &Bound<'_, PyAny>) -> PyResult<DatasetLimits> {
    let read = |name: &str| arguments::size(name, &limits.getattr(name)?);
    Ok(DatasetLimits {
        zip_bytes: read("zip_bytes")?,
        extracted_bytes: read("extracted_bytes")?,
        entries: read("entries")?,
    })
}
