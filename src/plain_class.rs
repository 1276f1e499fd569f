//! What makes a native class behave like a plain Python class.
//!
//! `inspect` and `mock`'s autospec treat as methods only what `def` has made: they would show `self` of a native method
//! as positional-only and record calls without it. So each native method stands behind a function of the same signature.

use std::ffi::CString;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Puts a Python function in the place of each of the class's methods `names`, and returns them by name.
///
/// # Errors
/// What Python raises.
pub fn install<'py>(class: &Bound<'py, PyAny>, names: &[&str]) -> PyResult<Bound<'py, PyDict>> {
    let py = class.py();
    let functions = PyDict::new(py);
    for name in names {
        let native = class.getattr("__dict__")?.get_item(name)?;
        let signature: String = native.getattr("__text_signature__")?.extract()?;
        let scope = PyDict::new(py);
        scope.set_item("__name__", class.getattr("__module__")?)?;
        scope.set_item("native", &native)?;
        let source = CString::new(definition(name, &signature))
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        py.run(&source, Some(&scope), None)?;
        let function = scope.as_any().get_item(name)?;
        function.setattr("__doc__", native.getattr("__doc__")?)?;
        function.setattr(
            "__qualname__",
            format!("{}.{name}", class.getattr("__name__")?),
        )?;
        class.setattr(*name, &function)?;
        functions.set_item(name, function)?;
    }
    Ok(functions)
}

/// `object.__reduce_ex__`, for a class that keeps everything in the instance's `__dict__`. Protocols 0 and 1 would call
/// the native class without arguments; 2 makes an instance as Python does.
///
/// # Errors
/// What Python raises.
pub fn reduce<'py>(instance: &Bound<'py, PyAny>, protocol: i32) -> PyResult<Bound<'py, PyAny>> {
    let object = instance.py().get_type::<PyAny>();
    object.call_method1("__reduce_ex__", (instance, protocol.max(2)))
}

/// `def` of a function that passes everything on, from a signature such as `($self, step, cmd, *, cwd)`.
fn definition(name: &str, signature: &str) -> String {
    let parameters = signature
        .trim_start_matches("($")
        .trim_end_matches(')')
        .replace(", /", "");
    let mut arguments = Vec::new();
    let mut keywords_only = false;
    for parameter in parameters.split(", ") {
        let parameter = parameter.split('=').next().unwrap_or(parameter);
        match (parameter, keywords_only) {
            ("*", _) => keywords_only = true,
            (_, false) => arguments.push(parameter.to_owned()),
            (_, true) => arguments.push(format!("{parameter}={parameter}")),
        }
    }
    format!(
        "def {name}({parameters}): return native({})",
        arguments.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::definition;

    #[test]
    fn everything_is_passed_on_as_it_came() {
        assert_eq!(
            definition("train", "($self, a, b, *, c=True, d='x')"),
            "def train(self, a, b, *, c=True, d='x'): return native(self, a, b, c=c, d=d)"
        );
        assert_eq!(
            definition("convert", "($self, a)"),
            "def convert(self, a): return native(self, a)"
        );
    }
}
