//! The clone of Musubi Tuner: its version, its scripts.

use std::fs;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::versions::{Release, Requirement};
use super::{Check, Question};
use crate::tuner::MusubiTuner;

/// The first release with the Z-Image scripts, and the last that this library was run with.
const KNOWN: (&str, &str) = ("0.2.15", "0.3.4");

/// What a clone's `pyproject.toml` says.
#[derive(Clone, Debug, Default)]
pub struct Project {
    pub version: Option<String>,
    /// `>=3.10, <3.13`
    pub python: Option<String>,
    pub requirements: Vec<Requirement>,
    /// One for each extra that asks for PyTorch: any of them will do.
    pub torch: Vec<Requirement>,
}

impl Project {
    /// `None` where there is none, or it cannot be read.
    #[must_use]
    pub fn of(clone: &MusubiTuner) -> Option<Self> {
        let text = fs::read_to_string(clone.folder().join("pyproject.toml")).ok()?;
        let document = DeTable::parse(&text).ok()?;
        let project = document.get_ref().get("project")?.get_ref();
        let text = |key: &str| Some(project.get(key)?.get_ref().as_str()?.to_owned());
        let list = |value: &DeValue<'_>| -> Vec<Requirement> {
            let items = value.as_array().into_iter().flat_map(|items| items.iter());
            items
                .filter_map(|item| Requirement::parse(item.get_ref().as_str()?))
                .collect()
        };
        let extras = project
            .get("optional-dependencies")
            .and_then(|extras| extras.get_ref().as_table());
        Some(Self {
            version: text("version"),
            python: text("requires-python"),
            requirements: project
                .get("dependencies")
                .map(|dependencies| list(dependencies.get_ref()))
                .unwrap_or_default(),
            torch: extras
                .into_iter()
                .flat_map(|extras| extras.values())
                .flat_map(|extra| list(extra.get_ref()))
                .filter(|requirement| requirement.name == "torch")
                .collect(),
        })
    }
}

/// Whether this version of the clone is one that the library is known to work with.
#[must_use]
pub fn version(project: Option<&Project>) -> Check {
    let (first, last) = KNOWN;
    let question = Question::new("Musubi Tuner", format!("a version from {first} to {last}"));
    let version = project.and_then(|project| project.version.as_deref());
    let Some(version) = version else {
        return question.warning(
            "its pyproject.toml does not say",
            format!("see that the clone is whole: `git -C <clone> checkout v{last}`"),
        );
    };
    let number = Release::parse(version);
    if number < Release::parse(first) {
        return question.error(
            format!("{version}, which has no Z-Image"),
            format!("`git -C <clone> fetch --tags && git -C <clone> checkout v{last}`"),
        );
    }
    if number > Release::parse(last) {
        return question.warning(
            format!("{version}, newer than what this library was run with"),
            format!("if a step fails for its options: `git -C <clone> checkout v{last}`"),
        );
    }
    question.ok(version)
}

/// The script of a step.
#[must_use]
pub fn script(script: &Path) -> Check {
    let name = script.file_name().unwrap_or_default().to_string_lossy();
    let question = Question::new(format!("script {name}"), "a file in the clone");
    if script.is_file() {
        question.ok(script.display().to_string())
    } else {
        question.error(
            format!("{} is not there", script.display()),
            format!(
                "see that this is a whole clone: `git -C <clone> checkout v{}`",
                KNOWN.1
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    const PYPROJECT: &str = r#"
[project]
name = "musubi-tuner"
version = "0.3.4"
requires-python = ">=3.10, <3.13"
dependencies = [
    "accelerate==1.6.0",
    # "sageattention>=1.0.6",
    "bitsandbytes",
]
[project.optional-dependencies]
cu124 = ["torch>=2.5.1", "torchvision>=0.20.1"]
cu128 = ["torch>=2.7.1"]
"#;

    #[test]
    fn a_project_says_its_version_and_what_it_asks_for() {
        let folder = tempfile::tempdir().unwrap();
        let clone = MusubiTuner::new(folder.path().to_owned());
        assert!(Project::of(&clone).is_none());
        let file = folder.path().join("pyproject.toml");
        for unreadable in ["", "[project", "project = 1", "[tool]"] {
            fs::write(&file, unreadable).unwrap();
            let project = Project::of(&clone).unwrap_or_default();
            assert!(project.version.is_none() && project.requirements.is_empty());
        }
        fs::write(&file, PYPROJECT).unwrap();
        let project = Project::of(&clone).unwrap();
        assert_eq!(project.version.as_deref(), Some("0.3.4"));
        assert_eq!(project.python.as_deref(), Some(">=3.10, <3.13"));
        let names = |list: &[Requirement]| -> Vec<String> {
            list.iter()
                .map(|requirement| format!("{}{}", requirement.name, requirement.specifier))
                .collect()
        };
        assert_eq!(
            names(&project.requirements),
            ["accelerate==1.6.0", "bitsandbytes"]
        );
        assert_eq!(names(&project.torch), ["torch>=2.5.1", "torch>=2.7.1"]);
    }

    #[test]
    fn the_version_is_known_or_too_old_or_new() {
        let verdict = |version: &str| {
            let project = Project {
                version: Some(version.to_owned()),
                ..Project::default()
            };
            super::version(Some(&project)).verdict
        };
        assert_eq!(verdict("0.3.4"), Verdict::Ok);
        assert_eq!(verdict("0.2.15"), Verdict::Ok);
        assert_eq!(verdict("0.2.14"), Verdict::Error);
        assert_eq!(verdict("0.1.0"), Verdict::Error);
        assert_eq!(verdict("0.3.5"), Verdict::Warning);
        assert_eq!(verdict("1.0"), Verdict::Warning);
        assert_eq!(super::version(None).verdict, Verdict::Warning);
    }
}
