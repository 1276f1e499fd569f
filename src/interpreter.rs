//! The interpreter that runs Musubi Tuner's scripts, `sys.executable`, and what it can import; nothing is imported to
//! find out.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::Error;
use crate::interrupt;
use crate::process::{self, Command};
use crate::task::{Cancel, lock_of};
use crate::tuner::LAUNCHER;

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

/// The program that runs in the interpreter of a step where that takes more than its script.
fn step_interpreter(py: Python<'_>) -> PyResult<PathBuf> {
    let package: PathBuf = py
        .import("musubitraining")?
        .getattr("__file__")?
        .extract()?;
    Ok(package.with_file_name("step_interpreter.py"))
}

/// Whether this runs accelerate's launcher, as the training does.
#[must_use]
pub fn is_launch(argv: &[OsString]) -> bool {
    matches!(argv, [_, option, module, ..] if option == "-m" && module == LAUNCHER)
}

/// Whether this runs accelerate's launcher for the single process that it starts where it is told nothing else.
#[must_use]
pub fn launches_one_process(argv: &[OsString]) -> bool {
    is_launch(argv) && is_for_one_process(&argv[3..])
}

/// Whether these words tell accelerate's launcher nothing of GPUs, of more processes than one, or of machines.
#[must_use]
pub fn is_for_one_process(words: &[OsString]) -> bool {
    const OF_SEVERAL: [&str; 7] = [
        "config_file",
        "gpu_ids",
        "machine_rank",
        "main_process_ip",
        "main_process_port",
        "multi_gpu",
        "use_",
    ];
    let of_launcher: Vec<String> = words
        .iter()
        .take_while(|word| {
            Path::new(word)
                .extension()
                .is_none_or(|ending| ending != "py")
        })
        // It takes its flags with '-' and with '_'.
        .map(|word| word.to_string_lossy().replace('-', "_"))
        .collect();
    !of_launcher.iter().enumerate().any(|(place, word)| {
        let Some(flag) = word.strip_prefix("__") else {
            return false;
        };
        let is_one = of_launcher.get(place + 1).is_some_and(|next| next == "1");
        OF_SEVERAL.iter().any(|name| flag.starts_with(name))
            || (["num_processes", "num_machines"].contains(&flag) && !is_one)
            || flag.starts_with("num_processes=")
            || flag.starts_with("num_machines=")
    })
}

/// The command that runs accelerate's launcher, and the script of its one process in the launcher's own: to the same
/// effect, without a second interpreter that imports all anew. `None` where `argv` is no launch, or the launcher is
/// not the one whose single process is known.
///
/// # Errors
/// What Python raises.
pub fn launch_in_one_process(py: Python<'_>, argv: &[OsString]) -> PyResult<Option<Vec<OsString>>> {
    let [python, _, _, words @ ..] = argv else {
        return Ok(None);
    };
    if !launches_one_process(argv) || *python != executable(py)? || !launcher_is_known(py)? {
        return Ok(None);
    }
    let program = step_interpreter(py)?.into_os_string();
    let command = [python.clone(), program, "launch".into()];
    Ok(Some(
        command.into_iter().chain(words.iter().cloned()).collect(),
    ))
}

/// Whether the launcher that the steps' interpreter imports starts a single process in the way that is taken over.
///
/// # Errors
/// What Python raises.
pub fn launcher_is_known(py: Python<'_>) -> PyResult<bool> {
    const TAKEN_OVER: [&str; 3] = [
        "def main():",
        "def simple_launcher(args):",
        "process = subprocess.Popen(cmd, env=current_env)",
    ];
    if is_another(py, &executable(py)?)? {
        return Ok(false);
    }
    let Some(spec) = find_spec(py, "accelerate") else {
        return Ok(false);
    };
    let locations: Option<Vec<PathBuf>> =
        spec.getattr("submodule_search_locations")?.extract().ok();
    let file = locations
        .and_then(|locations| locations.into_iter().next())
        .map(|package| package.join("commands/launch.py"));
    let text = file.and_then(|file| std::fs::read_to_string(file).ok());
    Ok(text.is_some_and(|text| TAKEN_OVER.iter().all(|line| text.contains(line))))
}

/// The command of an interpreter that imports once what these scripts import, and forks for each that it is asked for.
///
/// # Errors
/// What Python raises.
pub fn warm(py: Python<'_>, scripts: Vec<PathBuf>) -> PyResult<Vec<OsString>> {
    let mut prepared_for: Vec<OsString> = scripts.into_iter().map(Into::into).collect();
    let native: OsString = py
        .import("musubitraining._native")?
        .getattr("__file__")?
        .extract()?;
    if launcher_is_known(py)? {
        prepared_for.push(LAUNCHER.into());
    }
    let program = step_interpreter(py)?.into_os_string();
    let command = [executable(py)?, program, "warm".into(), native];
    Ok(command.into_iter().chain(prepared_for).collect())
}

/// Makes this process, a fork of a warm interpreter, the supervisor of a step; returns in the step's own process, which is
/// a fork of it.
#[pyfunction]
pub fn _supervise(lifeline: i32, locks: Vec<i32>) -> PyResult<()> {
    Ok(process::supervise_here(lifeline, locks)?)
}

/// The version of a distribution, by the name of its metadata folder: nothing is read or imported.
#[must_use]
pub fn installed_version(py: Python<'_>, distribution: &str) -> Option<String> {
    let path = py.import("sys").ok()?.getattr("path").ok()?;
    path.try_iter().ok()?.flatten().find_map(|folder| {
        let folder: PathBuf = folder.extract().ok()?;
        fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
            let name = entry.file_name();
            let version = name.to_str()?.strip_suffix(".dist-info")?;
            let version = version.strip_prefix(distribution)?.strip_prefix('-')?;
            Some(version.to_owned())
        })
    })
}

/// Whether the interpreter that runs the scripts can import the top-level package `name`.
///
/// What `sys.modules` says of `name` counts first, as it does for an `import`. An interpreter that is not this one
/// (`sys.executable` was assigned) is asked where this one finds nothing.
///
/// # Errors
/// What a signal handler raises meanwhile.
pub fn can_import(py: Python<'_>, name: &str) -> PyResult<bool> {
    let modules = py.import("sys")?.getattr("modules")?;
    if let Some(module) = modules.cast::<PyDict>()?.get_item(name)? {
        return Ok(!module.is_none());
    }
    Ok(find_spec(py, name).is_some() || ask_another(py, name)? == Some(true))
}

/// Whether a script can import `name` by itself: from its environment, not from the folder of this program's script, nor
/// because this program has imported it from somewhere already.
fn scripts_can_import(py: Python<'_>, name: &str) -> PyResult<bool> {
    if let Some(answer) = ask_another(py, name)? {
        return Ok(answer);
    }
    match look_for(py, name)? {
        Some(spec) => Ok(!lies_beside_the_script(&spec)?),
        None => Ok(false),
    }
}

/// What an import would find that had to look for it.
fn look_for<'py>(py: Python<'py>, name: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
    for finder in py.import("sys")?.getattr("meta_path")?.try_iter()? {
        let spec = finder?.call_method1("find_spec", (name, py.None()));
        if let Some(spec) = spec.ok().filter(|spec| !spec.is_none()) {
            return Ok(Some(spec));
        }
    }
    Ok(None)
}

fn find_spec<'py>(py: Python<'py>, name: &str) -> Option<Bound<'py, PyAny>> {
    let util = py.import("importlib.util").ok()?;
    let spec = util.call_method1("find_spec", (name,)).ok()?;
    (!spec.is_none()).then_some(spec)
}

/// Whether a package is found only because it lies where this program's script does: a child has another script.
fn lies_beside_the_script(spec: &Bound<'_, PyAny>) -> PyResult<bool> {
    let sys = spec.py().import("sys")?;
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

/// What an interpreter that is not this one says; `None` where it is this one, or gives no clear answer. It is asked
/// once, unless it may yet be given the package.
fn ask_another(py: Python<'_>, name: &str) -> PyResult<Option<bool>> {
    static ANSWERS: Mutex<BTreeMap<(OsString, String), Option<bool>>> = Mutex::new(BTreeMap::new());
    let executable = executable(py)?;
    if !is_another(py, &executable)? {
        return Ok(None);
    }
    let answers = || lock_of(&ANSWERS);
    let key = (executable.clone(), name.to_owned());
    if let Some(answer) = answers().get(&key) {
        return Ok(*answer);
    }
    let question = format!(
        "import importlib.util, sys; sys.exit(100 + (importlib.util.find_spec({name:?}) is None))"
    );
    let command = Command {
        argv: vec![executable, "-c".into(), question.into()],
        cwd: PathBuf::from("/"),
        environment: env::vars_os().collect(),
        locks: Vec::new(),
    };
    let returncode = interrupt::run(
        py,
        &Cancel::default(),
        |task| Ok(process::run(&command, &task.cancel, |_| Ok(())).ok()),
        |_, ()| Ok(()),
    )?;
    let answer = match returncode {
        Some(100) => Some(true),
        Some(101) => Some(false),
        _ => None,
    };
    if answer != Some(false) {
        answers().insert(key, answer);
    }
    Ok(answer)
}

fn is_another(py: Python<'_>, executable: &OsString) -> PyResult<bool> {
    let prefix: PathBuf = py.import("sys")?.getattr("prefix")?.extract()?;
    Ok(!Path::new(executable).starts_with(prefix))
}

/// The environment of a step: the host's, its output unbuffered and in UTF-8, and the clone's own package importable
/// where none is otherwise.
///
/// # Errors
/// What a signal handler raises meanwhile.
pub fn environment(
    py: Python<'_>,
    clone_source: Option<PathBuf>,
) -> PyResult<Vec<(OsString, OsString)>> {
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
    let Some(source) = clone_source.filter(|source| source.join("musubi_tuner").is_dir()) else {
        return Ok(environment);
    };
    let python_path = env::var_os("PYTHONPATH").unwrap_or_default();
    let entries: Vec<PathBuf> = env::split_paths(&python_path)
        .filter(|entry| !entry.as_os_str().is_empty())
        .collect();
    let is_given = entries
        .iter()
        .any(|entry| entry.join("musubi_tuner").is_dir());
    if is_given || scripts_can_import(py, "musubi_tuner")? {
        return Ok(environment);
    }
    // A folder whose name holds the separator cannot be led with; the child then says that the module is missing.
    if let Ok(led) = env::join_paths(std::iter::once(source).chain(entries)) {
        environment.retain(|(name, _)| name != "PYTHONPATH");
        environment.push(("PYTHONPATH".into(), led));
    }
    Ok(environment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launcher_that_is_told_of_more_than_one_process_is_known() {
        for (words, expected) in [
            (
                "--num_cpu_threads_per_process 1 --mixed_precision bf16 /m/train.py --num_processes 2",
                true,
            ),
            ("--num_processes 1 --num-machines 1 /m/train.py", true),
            ("--quiet --dynamo_backend no /m/train.py", true),
            ("--num_processes 2 /m/train.py", false),
            ("--num-processes=2 /m/train.py", false),
            ("--num_machines 2 /m/train.py", false),
            ("--multi_gpu /m/train.py", false),
            ("--multi-gpu /m/train.py", false),
            ("--gpu_ids 1 /m/train.py", false),
            ("--config_file c.yaml /m/train.py", false),
            ("--use_deepspeed /m/train.py", false),
        ] {
            let argv: Vec<OsString> = ["python", "-m", LAUNCHER]
                .into_iter()
                .chain(words.split(' '))
                .map(Into::into)
                .collect();
            assert_eq!(launches_one_process(&argv), expected, "{words}");
            assert!(!launches_one_process(&argv[2..]), "{words}");
        }
    }
}
