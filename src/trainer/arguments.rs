//! What callers pass to the steps: taken as Python passes it, refused where it can never work.

use std::convert::Infallible;
use std::path::PathBuf;

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyString};

use crate::error::Error;

/// An argument that may be left out. `None` is a value like any other, as it is for a Python function.
pub struct Given<'py>(pub Option<Bound<'py, PyAny>>);

impl<'a, 'py> FromPyObject<'a, 'py> for Given<'py> {
    type Error = Infallible;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> Result<Self, Self::Error> {
        Ok(Self(Some(value.to_owned())))
    }
}

impl<'py> Given<'py> {
    pub fn or(
        self,
        py: Python<'py>,
        default: impl IntoPyObjectExt<'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        match self.0 {
            Some(value) => Ok(value),
            None => default.into_bound_py_any(py),
        }
    }
}

/// A string.
pub fn text(name: &str, value: &Bound<'_, PyAny>) -> PyResult<String> {
    value
        .cast::<PyString>()
        .map_err(|_| wrong_type(name, "a str", value))?
        .extract()
}

/// The name of a file in the output folder, without its ending.
pub fn output_name(value: &Bound<'_, PyAny>) -> PyResult<String> {
    let name = text("output_name", value)?;
    let problem = if name.is_empty() {
        "is empty"
    } else if name.contains(['/', '\\']) {
        "has a path separator"
    } else if name == "." || name == ".." {
        "names a folder"
    } else if name.contains('\0') {
        "has a NUL character"
    } else if name.starts_with('-') {
        "begins with '-', which Musubi Tuner takes for an option"
    } else {
        return Ok(name);
    };
    Err(Error::InvalidValue(format!(
        "output_name={name:?} {problem}: expected the name of a file inside the output folder, without \
         \".safetensors\", such as \"my_lora\". To write elsewhere, set absolute_path_output."
    )).into())
}

/// Optimisation steps, in digits.
pub fn max_train_steps(value: &Bound<'_, PyAny>) -> PyResult<String> {
    let steps = integer("max_train_steps", value)?;
    if steps.lt(1)? {
        return Err(Error::InvalidValue(format!(
            "max_train_steps={steps}: expected at least 1 step"
        ))
        .into());
    }
    Ok(steps.to_string())
}

/// A seed, in digits.
pub fn seed(value: &Bound<'_, PyAny>) -> PyResult<String> {
    let seed = integer("seed", value)?;
    // The tuner seeds NumPy with it, which takes 32 bits.
    if seed.lt(0)? || seed.gt(u32::MAX)? {
        return Err(Error::InvalidValue(format!(
            "seed={seed}: expected 0 to {} (2**32 - 1)",
            u32::MAX
        ))
        .into());
    }
    Ok(seed.to_string())
}

/// How much is allowed, at least 1. More than fits is no limit.
pub fn size(name: &str, value: &Bound<'_, PyAny>) -> PyResult<u64> {
    let size = integer(name, value)?;
    if size.lt(1)? {
        return Err(Error::InvalidValue(format!("{name}={size}: expected at least 1")).into());
    }
    Ok(size.extract().unwrap_or(u64::MAX))
}

/// A number of a kind that has its range elsewhere; more than fits is in none.
pub fn number(name: &str, value: &Bound<'_, PyAny>) -> PyResult<i64> {
    let number = integer(name, value)?;
    let beyond = if number.lt(0)? { i64::MIN } else { i64::MAX };
    Ok(number.extract().unwrap_or(beyond))
}

/// Photos: a URL, or the path of a zip or a folder.
pub enum Photos {
    Text(String),
    Path(PathBuf),
}

impl Photos {
    pub fn of(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        if value.is_instance_of::<PyString>() {
            return text("images_zip_url", value).map(Self::Text);
        }
        let path = value.extract().map(Self::Path);
        path.map_err(|_| wrong_type("images_zip_url", "a str or an os.PathLike[str]", value).into())
    }
}

/// Whatever Python takes for an index, NumPy's integers too; not a bool, which is a slip.
fn integer<'py>(name: &str, value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    if value.is_instance_of::<PyBool>() {
        return Err(wrong_type(name, "an int", value).into());
    }
    let index = value
        .py()
        .import("operator")?
        .call_method1("index", (value,));
    Ok(index.map_err(|_| wrong_type(name, "an int", value))?)
}

/// [`Error::InvalidType`].
pub fn wrong_type(name: &str, expected: &str, value: &Bound<'_, PyAny>) -> Error {
    let found = value
        .get_type()
        .name()
        .map_or_else(|_| "something else".to_owned(), |name| name.to_string());
    Error::InvalidType(format!("{name}: expected {expected}, found {found}"))
}
