//! A Python class with native methods, which behaves like any class that `class` makes.
//!
//! Instances keep everything in their `__dict__`, and the methods are Python functions in front of the native ones:
//! callers subclass, pickle, inspect and mock such a class in every way that Python knows, some of which a native type
//! refuses.

use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyType};

/// Where the class says that it is from: there pickles look for it, and log records of its methods name that file.
const MODULE: &str = "musubitraining.main";
pub const FILE_NAME: &str = "<musubitraining>/main.py";

/// A class, and its methods from before anybody could replace one.
pub struct PlainClass {
    class: Py<PyAny>,
    methods: Py<PyDict>,
}

impl PlainClass {
    /// Makes the class `name`; a native function's first parameter is `self`.
    ///
    /// # Errors
    /// What Python raises.
    pub fn new(
        py: Python<'_>,
        name: &str,
        doc: &str,
        native_methods: &[Bound<'_, PyCFunction>],
    ) -> PyResult<Self> {
        let methods = PyDict::new(py);
        for native in native_methods {
            let method_name: String = native.getattr("__name__")?.extract()?;
            let function = function(native, &method_name)?;
            function.setattr("__qualname__", format!("{name}.{method_name}"))?;
            methods.set_item(method_name, function)?;
        }
        let namespace = methods.copy()?;
        namespace.set_item("__module__", MODULE)?;
        namespace.set_item("__doc__", doc)?;
        let class = py.get_type::<PyType>().call1((name, (), namespace))?;
        Ok(Self {
            class: class.unbind(),
            methods: methods.unbind(),
        })
    }

    #[must_use]
    pub fn class<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.class.bind(py)
    }

    /// Whether a subclass or a test has put something else in the place of the method `name` for this instance.
    ///
    /// # Errors
    /// What Python raises.
    pub fn is_replaced(&self, instance: &Bound<'_, PyAny>, name: &str) -> PyResult<bool> {
        let of_its_own = instance
            .getattr("__dict__")
            .and_then(|own| own.contains(name));
        let Some(defined) = self.methods.bind(instance.py()).get_item(name)? else {
            return Ok(true);
        };
        let is_defined = |now: Bound<'_, PyAny>| now.is(&defined);
        Ok(of_its_own.unwrap_or(false) || !instance.get_type().getattr(name).is_ok_and(is_defined))
    }
}

/// A Python function of the native one's signature, which passes everything on.
///
/// # Errors
/// What Python raises.
pub fn function<'py>(native: &Bound<'py, PyCFunction>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    let py = native.py();
    let signature: String = native.getattr("__text_signature__")?.extract()?;
    let scope = PyDict::new(py);
    scope.set_item("__name__", MODULE)?;
    scope.set_item("native", native)?;
    let builtins = py.import("builtins")?;
    let code =
        builtins.call_method1("compile", (definition(name, &signature), FILE_NAME, "exec"))?;
    builtins.call_method1("exec", (code, &scope))?;
    let function = scope.as_any().get_item(name)?;
    function.setattr("__doc__", native.getattr("__doc__")?)?;
    Ok(function)
}

/// `def` of a function that passes everything on, from a signature such as `(slf, step, cmd, *, cwd)`.
fn definition(name: &str, signature: &str) -> String {
    let parameters = signature
        .trim_start_matches('(')
        .trim_end_matches(')')
        .replace(", /", "");
    let parameters: Vec<&str> = std::iter::once("self")
        .chain(parameters.split(", ").skip(1))
        .collect();
    let mut arguments = Vec::new();
    let mut keywords_only = false;
    for parameter in &parameters {
        let parameter = parameter.split('=').next().unwrap_or(parameter);
        match (parameter, keywords_only) {
            ("*", _) => keywords_only = true,
            (rest, _) if rest.starts_with('*') => arguments.push(rest.to_owned()),
            (_, false) => arguments.push(parameter.to_owned()),
            (_, true) => arguments.push(format!("{parameter}={parameter}")),
        }
    }
    format!(
        "def {name}({}): return native({})",
        parameters.join(", "),
        arguments.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::definition;

    #[test]
    fn everything_is_passed_on_as_it_came() {
        assert_eq!(
            definition("train", "(slf, a, b, *, c=True, d='x')"),
            "def train(self, a, b, *, c=True, d='x'): return native(self, a, b, c=c, d=d)"
        );
        assert_eq!(
            definition("convert", "(slf, a)"),
            "def convert(self, a): return native(self, a)"
        );
        assert_eq!(
            definition("train_async", "(slf, *args, **kwargs)"),
            "def train_async(self, *args, **kwargs): return native(self, *args, **kwargs)"
        );
        assert_eq!(
            definition("ask", "(slf)"),
            "def ask(self): return native(self)"
        );
    }
}
