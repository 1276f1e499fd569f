//! Environment variables and files in the home folder that change what the scripts do.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Check, Environment, Question, Settings};

/// These variables, as text.
#[must_use]
pub fn of(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Environment {
    let lossy = |text: OsString| text.to_string_lossy().into_owned();
    variables
        .into_iter()
        .map(|(name, value)| (lossy(name), lossy(value)))
        .collect()
}

/// All checks.
#[must_use]
pub fn check(environment: &Environment, settings: &Settings) -> Vec<Check> {
    vec![
        progress_bar(environment),
        encoding(environment),
        launcher(environment, settings),
    ]
}

/// tqdm draws a bar with the characters of this variable: of a single one it divides by zero.
fn progress_bar(environment: &Environment) -> Check {
    let question = Question::new("TQDM_ASCII", "not set, or two characters or more");
    match environment.get("TQDM_ASCII") {
        None => question.ok("not set"),
        Some(characters) if characters.chars().count() == 1 => question.error(
            format!("{characters:?}, with which the progress bar fails (ZeroDivisionError)"),
            "unset TQDM_ASCII, or set it to \" #\"",
        ),
        Some(characters) => question.ok(format!("{characters:?}")),
    }
}

/// The scripts print Japanese.
fn encoding(environment: &Environment) -> Check {
    let question = Question::new("PYTHONIOENCODING", "not set, or UTF-8");
    let Some(value) = environment.get("PYTHONIOENCODING") else {
        return question.ok("not set");
    };
    let (encoding, errors) = value.split_once(':').unwrap_or((value, "strict"));
    let plain = encoding.to_ascii_lowercase().replace(['-', '_'], "");
    let can_all = plain.starts_with("utf") || plain == "u8" || plain == "gb18030";
    // Empty stands for what Python would take by itself.
    if plain.is_empty() || can_all || !matches!(errors, "" | "strict") {
        return question.ok(value);
    }
    question.error(
        format!("{value:?}, in which the training cannot print its Japanese (UnicodeEncodeError)"),
        "unset PYTHONIOENCODING, or set it to utf-8",
    )
}

/// A configuration of accelerate's is used without a word.
fn launcher(environment: &Environment, settings: &Settings) -> Check {
    let question = Question::new(
        "accelerate configuration",
        "none that starts several processes",
    );
    let file = match &settings.config_file {
        Some(file) if !file.is_file() => {
            return question.error(
                format!("{} does not exist", file.display()),
                "let LaunchOptions(config_file=...) name a file, or leave it out",
            );
        }
        Some(file) => Some(file.clone()),
        None => default_configuration(environment),
    };
    let Some(file) = file else {
        return question.ok("none");
    };
    let shown = file.display();
    let text = fs::read_to_string(&file).unwrap_or_default();
    let kind = value(&text, "distributed_type").filter(|kind| !kind.eq_ignore_ascii_case("no"));
    let processes = value(&text, "num_processes")
        .and_then(|number| number.parse::<u64>().ok())
        .filter(|number| *number > 1);
    let found = match (&kind, processes) {
        (None, None) => return question.ok(format!("{shown}, one process")),
        (Some(kind), Some(number)) => {
            format!("{shown}: distributed_type {kind}, num_processes {number}")
        }
        (Some(kind), None) => format!("{shown}: distributed_type {kind}"),
        (None, Some(number)) => format!("{shown}: num_processes {number}"),
    };
    if settings.config_file.is_some() || settings.num_processes.is_some() {
        return question.ok(format!("{found}, as LaunchOptions say"));
    }
    question.warning(
        format!("{found}, which accelerate follows without a word"),
        format!("move it away (mv {shown} {shown}.old), or say what is meant with LaunchOptions(num_processes=...)"),
    )
}

/// Where accelerate looks for its own.
fn default_configuration(environment: &Environment) -> Option<PathBuf> {
    let folder = hugging_face(environment)?.join("accelerate");
    [
        "default_config.yaml",
        "default_config.yml",
        "default_config.json",
    ]
    .into_iter()
    .map(|name| folder.join(name))
    .find(|file| file.is_file())
}

/// `HF_HOME`, else `huggingface` in the cache folder.
#[must_use]
pub fn hugging_face(environment: &Environment) -> Option<PathBuf> {
    if let Some(home) = folder(environment, "HF_HOME") {
        return Some(home);
    }
    let cache = folder(environment, "XDG_CACHE_HOME")
        .or_else(|| Some(Path::new(environment.get("HOME")?).join(".cache")))?;
    Some(cache.join("huggingface"))
}

/// The folder that a variable names; it may begin with `~`.
#[must_use]
pub fn folder(environment: &Environment, name: &str) -> Option<PathBuf> {
    let value = environment.get(name).filter(|value| !value.is_empty())?;
    match value.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => {
            Some(Path::new(environment.get("HOME")?).join(rest.trim_start_matches('/')))
        }
        _ => Some(value.into()),
    }
}

/// The value behind `name` in a line of YAML or JSON.
fn value(text: &str, name: &str) -> Option<String> {
    text.split(['\n', '{', ','])
        .find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim().trim_matches(['"', '\'']) == name).then_some(value)
        })
        .map(|value| {
            let value = value.split(" #").next().unwrap_or(value);
            value
                .trim()
                .trim_end_matches('}')
                .trim()
                .trim_matches(['"', '\''])
                .to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn variables_that_end_a_training_are_errors() {
        for (name, value, index, verdict) in [
            ("TQDM_ASCII", "1", 0, Verdict::Error),
            ("TQDM_ASCII", " #", 0, Verdict::Ok),
            ("TQDM_ASCII", "", 0, Verdict::Ok),
            ("PYTHONIOENCODING", "latin-1", 1, Verdict::Error),
            ("PYTHONIOENCODING", "ascii:strict", 1, Verdict::Error),
            ("PYTHONIOENCODING", "ascii:replace", 1, Verdict::Ok),
            ("PYTHONIOENCODING", "UTF_8", 1, Verdict::Ok),
            ("PYTHONIOENCODING", ":replace", 1, Verdict::Ok),
            ("OTHER", "1", 1, Verdict::Ok),
        ] {
            let checks = check(&environment(&[(name, value)]), &Settings::default());
            assert_eq!(checks[index].verdict, verdict, "{name}={value}: {checks:?}");
        }
    }

    #[test]
    fn a_configuration_of_several_processes_is_told_wherever_it_is() {
        let home = tempfile::tempdir().unwrap();
        let home_text = home.path().to_str().unwrap();
        let cache = home.path().join(".cache/huggingface/accelerate");
        fs::create_dir_all(&cache).unwrap();
        let settings = Settings::default();
        let look = |variables: &[(&str, &str)], settings: &Settings| {
            let mut all = environment(variables);
            all.insert("HOME".to_owned(), home_text.to_owned());
            launcher(&all, settings)
        };
        assert_eq!(look(&[], &settings).found, "none");
        let yaml = cache.join("default_config.yaml");
        fs::write(
            &yaml,
            "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nnum_processes: 1\n",
        )
        .unwrap();
        assert_eq!(look(&[], &settings).verdict, Verdict::Ok);
        fs::write(
            &yaml,
            "distributed_type: MULTI_GPU\nnum_processes: 2 # two\n",
        )
        .unwrap();
        let check = look(&[], &settings);
        assert_eq!(check.verdict, Verdict::Warning, "{check:?}");
        assert!(
            check.found.contains("MULTI_GPU, num_processes 2"),
            "{check:?}"
        );
        // Elsewhere there is none.
        assert_eq!(look(&[("HF_HOME", "~/other")], &settings).found, "none");
        assert_eq!(
            look(&[("XDG_CACHE_HOME", "/nowhere")], &settings).found,
            "none"
        );
        assert_eq!(
            look(&[("HF_HOME", "~/.cache/huggingface")], &settings).verdict,
            Verdict::Warning
        );
        fs::rename(&yaml, cache.join("default_config.json")).unwrap();
        fs::write(
            cache.join("default_config.json"),
            r#"{"num_processes": 4, "distributed_type": "MULTI_GPU"}"#,
        )
        .unwrap();
        assert!(
            look(&[], &settings)
                .found
                .contains("MULTI_GPU, num_processes 4")
        );
        let said = Settings {
            num_processes: Some(4),
            ..Settings::default()
        };
        assert_eq!(look(&[], &said).verdict, Verdict::Ok);
        let missing = Settings {
            config_file: Some("/nowhere/x.yaml".into()),
            ..Settings::default()
        };
        assert_eq!(look(&[], &missing).verdict, Verdict::Error);
    }
}
