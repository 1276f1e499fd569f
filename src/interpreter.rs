//! The interpreter that runs Musubi Tuner's scripts, `sys.executable`, and what it can import; nothing is imported to
//! find out.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::Error;
use crate::interrupt;
use crate::process::{self, Command};

/// `sys.executable`, read when it is needed: hosts and tests assign it.
///
/// # Errors
/// `RuntimeError` where an embedding host left it empty.
pub fn executable(py: Python<'_>) -> PyResult<OsString> {
    let executable: Option<OsString> = py.import("sys")?.getattr("executable")?.extract()?;
    let executable = executable.filter(|path| !path.is_empty());
    Ok(executable.ok_or_else(|| {
        Error::Unusable(
            "sys.executable is empty: expected the path of the Python interpreter that is to run Musubi Tuner's \
             scripts. Set sys.executable to it."
                .to_owned(),
        )
    })?)
}

/// Whether the interpreter can import the top-level package `name`.
///
/// What `sys.modules` says of `name` counts first, as it does for an `import`. An interpreter that is not this one
/// (`sys.executable` was assigned) is asked; where it does not answer, this one's word stands.
///
/// # Errors
/// What a signal handler raises meanwhile.
pub fn can_import(py: Python<'_>, name: &str) -> PyResult<bool> {
    let sys = py.import("sys")?;
    if let Some(module) = sys.getattr("modules")?.cast::<PyDict>()?.get_item(name)? {
        return Ok(!module.is_none());
    }
    let executable = executable(py)?;
    let prefix: PathBuf = sys.getattr("prefix")?.extract()?;
    if !Path::new(&executable).starts_with(prefix)
        && let Some(answer) = ask(py, executable, name)?
    {
        return Ok(answer);
    }
    Ok(find_spec(py, name).is_some())
}

fn find_spec<'py>(py: Python<'py>, name: &str) -> Option<Bound<'py, PyAny>> {
    let util = py.import("importlib.util").ok()?;
    let spec = util.call_method1("find_spec", (name,)).ok()?;
    (!spec.is_none()).then_some(spec)
}

/// Whether a package is found only because it lies where this program's script does: a child has another script.
fn lies_beside_the_script(py: Python<'_>, name: &str) -> PyResult<bool> {
    let Some(spec) = find_spec(py, name) else {
        return Ok(false);
    };
    let sys = py.import("sys")?;
    let script_folder: String = sys
        .getattr("path")?
        .get_item(0)
        .and_then(|first| first.extract())
        .unwrap_or_default();
    let script_folder = std::path::absolute(&script_folder)
        .or_else(|_| env::current_dir())
        .unwrap_or_default();
    let locations = spec.getattr("submodule_search_locations")?;
    let Ok(locations) = locations.extract::<Vec<PathBuf>>() else {
        return Ok(false);
    };
    Ok(locations
        .iter()
        .any(|location| location.parent() == Some(&script_folder)))
}

/// Has another interpreter look; `None` where it gives no clear answer.
fn ask(py: Python<'_>, executable: OsString, name: &str) -> PyResult<Option<bool>> {
    let question = format!(
        "import importlib.util, sys; sys.exit(100 + (importlib.util.find_spec({name:?}) is None))"
    );
    let command = Command {
        argv: vec![executable, "-c".into(), question.into()],
        cwd: PathBuf::from("/"),
        environment: env::vars_os().collect(),
    };
    let answer = interrupt::run(
        py,
        |task| Ok(process::run(&command, task).ok()),
        |_, _: String| Ok(()),
    )?;
    Ok(match answer {
        Some(100) => Some(true),
        Some(101) => Some(false),
        _ => None,
    })
}

/// The environment of a step: the host's, its output unbuffered and in UTF-8, and the clone's own package importable
/// where none is otherwise.
///
/// # Errors
/// What a signal handler raises meanwhile.
pub fn environment(py: Python<'_>, clone_source: &Path) -> PyResult<Vec<(OsString, OsString)>> {
    let mut environment: Vec<(OsString, OsString)> = env::vars_os()
        .filter(|(name, _)| name != "PYTHONUNBUFFERED")
        .collect();
    // In a pipe Python holds its output back in blocks; and Musubi Tuner prints Japanese.
    environment.push(("PYTHONUNBUFFERED".into(), "1".into()));
    if !environment
        .iter()
        .any(|(name, _)| name == "PYTHONIOENCODING")
    {
        environment.push(("PYTHONIOENCODING".into(), "utf-8".into()));
    }
    let python_path = env::var_os("PYTHONPATH").unwrap_or_default();
    let entries: Vec<PathBuf> = env::split_paths(&python_path)
        .filter(|entry| !entry.as_os_str().is_empty())
        .collect();
    let given = entries
        .iter()
        .any(|entry| entry.join("musubi_tuner").is_dir());
    if clone_source.join("musubi_tuner").is_dir()
        && !given
        && (!can_import(py, "musubi_tuner")? || lies_beside_the_script(py, "musubi_tuner")?)
    {
        // A folder whose name holds the separator cannot be led with; the child then says that the module is missing.
        if let Ok(led) = env::join_paths(std::iter::once(clone_source.to_owned()).chain(entries)) {
            environment.retain(|(name, _)| name != "PYTHONPATH");
            environment.push(("PYTHONPATH".into(), led));
        }
    }
    Ok(environment)
}
