//! The Python packages that the scripts import: there, and at the versions that the clone asks for.

use std::collections::BTreeMap;
use std::path::Path;

use super::clone::Project;
use super::versions::{Requirement, is_met};
use super::{Check, Question, Settings};

/// What an interpreter says of itself, by `installed.py`.
#[derive(Clone, Debug, Default)]
pub struct Installed {
    pub python: String,
    /// By the names of distributions.
    pub versions: BTreeMap<String, String>,
    /// Where each package lies that can be found.
    pub modules: BTreeMap<String, String>,
}

/// What Musubi Tuner's Z-Image scripts import, by the names of package and distribution.
const NEEDED: &[(&str, &str)] = &[
    ("accelerate", "accelerate"),
    ("torch", "torch"),
    ("transformers", "transformers"),
    ("diffusers", "diffusers"),
    ("safetensors", "safetensors"),
    ("huggingface_hub", "huggingface-hub"),
    ("einops", "einops"),
    ("toml", "toml"),
    ("voluptuous", "voluptuous"),
    ("tqdm", "tqdm"),
    ("numpy", "numpy"),
    ("PIL", "pillow"),
    ("cv2", "opencv-python"),
    ("av", "av"),
];

/// Libraries of PyTorch's that tell the CUDA that it is for.
const CUDA_RUNTIMES: [&str; 3] = [
    "nvidia-cuda-runtime",
    "nvidia-cuda-runtime-cu12",
    "nvidia-cuda-runtime-cu11",
];

/// Which distributions and packages an interpreter is to be asked for.
#[must_use]
pub fn questions(settings: &Settings) -> (Vec<String>, Vec<String>) {
    let needed = needed(settings);
    let distributions = needed
        .iter()
        .map(|(_, distribution)| distribution.as_str())
        .chain(CUDA_RUNTIMES)
        .map(str::to_owned)
        .collect();
    let modules = needed
        .iter()
        .map(|(module, _)| module.as_str())
        .chain(["musubi_tuner", "networks"])
        .map(str::to_owned)
        .collect();
    (distributions, modules)
}

fn needed(settings: &Settings) -> Vec<(String, String)> {
    let mut needed: Vec<(String, String)> = NEEDED
        .iter()
        .map(|(module, distribution)| ((*module).to_owned(), (*distribution).to_owned()))
        .collect();
    let mut need = |module: &str, distribution: &str| {
        needed.push((module.to_owned(), distribution.to_owned()));
    };
    let optimizer = &settings.optimizer_type;
    if optimizer.to_lowercase().ends_with("8bit") && !optimizer.contains('.') {
        need("bitsandbytes", "bitsandbytes");
    } else if let Some((package, _)) = optimizer.split_once('.')
        && !NEEDED.iter().any(|(module, _)| *module == package)
    {
        need(package, &package.replace('_', "-"));
    }
    match settings.attention.as_str() {
        "xformers" => need("xformers", "xformers"),
        "flash_attn" => need("flash_attn", "flash-attn"),
        "flash3" => need("flash_attn_interface", "flash-attn-3"),
        _ => {}
    }
    needed
}

/// The CUDA that the installed PyTorch is for: by its version (`2.9.1+cu128`), or by what it was installed with.
#[must_use]
pub fn cuda_of(installed: &Installed) -> Option<String> {
    let tag = installed.versions.get("torch")?.split_once("+cu");
    if let Some((_, digits)) = tag.filter(|(_, digits)| digits.len() > 1) {
        let (major, minor) = digits.split_at(digits.len() - 1);
        return Some(format!("{major}.{minor}"));
    }
    let runtime = CUDA_RUNTIMES
        .iter()
        .find_map(|name| installed.versions.get(*name))?;
    let mut numbers = runtime.split('.');
    Some(format!("{}.{}", numbers.next()?, numbers.next()?))
}

/// All checks of what is installed. `clone_source` is the folder that `musubi_tuner` is to come from.
#[must_use]
pub fn check(
    installed: &Installed,
    executable: &str,
    project: Option<&Project>,
    clone_source: &Path,
    settings: &Settings,
    has_gpu: bool,
) -> Vec<Check> {
    let empty = Project::default();
    let project = project.unwrap_or(&empty);
    let mut checks = vec![python(installed, executable, project)];
    for (module, distribution) in needed(settings) {
        let asked: Vec<&Requirement> = project
            .requirements
            .iter()
            .chain(&project.torch)
            .filter(|requirement| requirement.name == distribution)
            .collect();
        checks.push(package(
            installed,
            executable,
            &module,
            &distribution,
            &asked,
            has_gpu,
        ));
    }
    checks.push(musubi_tuner(installed, clone_source));
    if let Some(place) = installed.modules.get("networks") {
        checks.push(Question::new("package networks", "none besides Musubi Tuner's own").warning(
            format!("{place}, which --network_module networks.lora_zimage would find first"),
            "uninstall it, or pass TrainingOptions(network_module=\"musubi_tuner.networks.lora_zimage\")",
        ));
    }
    checks
}

fn python(installed: &Installed, executable: &str, project: &Project) -> Check {
    let range = project.python.as_deref().unwrap_or_default();
    let expected = if range.is_empty() {
        "any version"
    } else {
        range
    };
    let question = Question::new(
        "Python",
        format!("{expected} (the clone's requires-python)"),
    );
    let found = format!("{} ({executable})", installed.python);
    if is_met(range, &installed.python) {
        question.ok(found)
    } else {
        question.warning(found, "run this from an environment of another Python")
    }
}

fn package(
    installed: &Installed,
    executable: &str,
    module: &str,
    distribution: &str,
    asked: &[&Requirement],
    has_gpu: bool,
) -> Check {
    let specifiers: Vec<&str> = asked
        .iter()
        .map(|requirement| requirement.specifier.as_str())
        .filter(|specifier| !specifier.is_empty())
        .collect();
    let expected = if specifiers.is_empty() {
        "any version".to_owned()
    } else {
        specifiers.join(" or ")
    };
    let question = Question::new(format!("package {distribution}"), expected);
    let wanted = format!("{distribution}{}", specifiers.first().unwrap_or(&""));
    let mend = format!("{executable} -m pip install '{wanted}'");
    if !installed.modules.contains_key(module) {
        return question.error(format!("{executable} cannot find {module}"), mend);
    }
    let version = installed.versions.get(distribution);
    let Some(version) = version else {
        return question.ok("there, its version is not known");
    };
    if !asked.is_empty()
        && !asked
            .iter()
            .any(|requirement| requirement.is_met_by(version))
    {
        return question.warning(version, mend);
    }
    if distribution == "torch" && has_gpu && version.contains("+cpu") {
        return question.error(
            format!("{version}, which does not use the GPU"),
            format!("{executable} -m pip install --force-reinstall 'torch{}' (of the index for your CUDA, see pytorch.org)",
                specifiers.first().unwrap_or(&"")),
        );
    }
    question.ok(version)
}

/// Each script imports the package that its clone holds.
fn musubi_tuner(installed: &Installed, clone_source: &Path) -> Check {
    let own = clone_source.join("musubi_tuner");
    let question = Question::new("package musubi_tuner", format!("{}", own.display()));
    let same = |place: &str| {
        Path::new(place) == own
            || matches!((Path::new(place).canonicalize(), own.canonicalize()), (Ok(left), Ok(right)) if left == right)
    };
    match installed.modules.get("musubi_tuner") {
        Some(place) if same(place) => question.ok(place),
        Some(place) => question.warning(
            format!("{place}: the scripts of this clone would import another one's"),
            "pip uninstall musubi-tuner, or put the clone's src folder first on PYTHONPATH",
        ),
        None => question.error(
            "the scripts cannot find it",
            "run `pip install -e .` in the clone, or put its src folder on PYTHONPATH",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn installed(changes: &[(&str, &str, &str)]) -> Installed {
        let mut installed = Installed {
            python: "3.11.4".to_owned(),
            ..Installed::default()
        };
        let usual = needed(&Settings::default());
        for (module, distribution) in &usual {
            installed
                .modules
                .insert(module.clone(), format!("/site/{module}"));
            installed
                .versions
                .insert(distribution.clone(), "1.0".to_owned());
        }
        installed.modules.insert(
            "musubi_tuner".to_owned(),
            "/clone/src/musubi_tuner".to_owned(),
        );
        for (module, distribution, version) in changes {
            if version.is_empty() {
                installed.modules.remove(*module);
                installed.versions.remove(*distribution);
            } else {
                installed
                    .modules
                    .insert((*module).to_owned(), format!("/site/{module}"));
                installed
                    .versions
                    .insert((*distribution).to_owned(), (*version).to_owned());
            }
        }
        installed
    }

    fn project() -> Project {
        let parsed = |text| Requirement::parse(text).unwrap();
        Project {
            python: Some(">=3.10, <3.13".to_owned()),
            requirements: vec![parsed("accelerate==1.0"), parsed("opencv-python==1.0")],
            torch: vec![parsed("torch>=1.0"), parsed("torch>=2.7")],
            ..Project::default()
        }
    }

    fn verdict(installed: &Installed, name: &str, has_gpu: bool) -> Option<Verdict> {
        let source = Path::new("/clone/src");
        let checks = check(
            installed,
            "/python",
            Some(&project()),
            source,
            &Settings::default(),
            has_gpu,
        );
        checks
            .iter()
            .find(|check| check.name == name)
            .map(|check| check.verdict)
    }

    #[test]
    fn what_is_missing_or_of_another_version_is_told() {
        let all = installed(&[]);
        let source = Path::new("/clone/src");
        let checks = check(
            &all,
            "/python",
            Some(&project()),
            source,
            &Settings::default(),
            true,
        );
        assert!(
            checks.iter().all(|check| check.verdict == Verdict::Ok),
            "{checks:?}"
        );
        for (change, name, has_gpu, expected) in [
            (
                ("accelerate", "accelerate", ""),
                "package accelerate",
                false,
                Verdict::Error,
            ),
            (
                ("accelerate", "accelerate", "2.0"),
                "package accelerate",
                false,
                Verdict::Warning,
            ),
            (
                ("torch", "torch", "0.9"),
                "package torch",
                false,
                Verdict::Warning,
            ),
            (
                ("torch", "torch", "2.9.1+cpu"),
                "package torch",
                true,
                Verdict::Error,
            ),
            (
                ("torch", "torch", "2.9.1+cpu"),
                "package torch",
                false,
                Verdict::Ok,
            ),
            (
                ("bitsandbytes", "bitsandbytes", ""),
                "package bitsandbytes",
                false,
                Verdict::Error,
            ),
            (
                ("musubi_tuner", "", ""),
                "package musubi_tuner",
                false,
                Verdict::Error,
            ),
            (
                ("musubi_tuner", "", "1"),
                "package musubi_tuner",
                false,
                Verdict::Warning,
            ),
            (
                ("networks", "networks", "1"),
                "package networks",
                false,
                Verdict::Warning,
            ),
        ] {
            assert_eq!(
                verdict(&installed(&[change]), name, has_gpu),
                Some(expected),
                "{change:?}"
            );
        }
        // cv2 comes with more than one distribution.
        let mut headless = installed(&[]);
        headless.versions.remove("opencv-python");
        assert_eq!(
            verdict(&headless, "package opencv-python", false),
            Some(Verdict::Ok)
        );
        let old = Installed {
            python: "3.13.1".to_owned(),
            ..installed(&[])
        };
        assert_eq!(verdict(&old, "Python", false), Some(Verdict::Warning));
    }

    #[test]
    fn the_options_say_what_else_is_needed() {
        let modules = |settings: &Settings| questions(settings).1;
        let usual = modules(&Settings::default());
        assert!(
            usual.contains(&"bitsandbytes".to_owned()) && !usual.contains(&"xformers".to_owned())
        );
        let other = modules(&Settings {
            optimizer_type: "prodigyopt.Prodigy".to_owned(),
            attention: "xformers".to_owned(),
            ..Settings::default()
        });
        assert!(!other.contains(&"bitsandbytes".to_owned()), "{other:?}");
        assert!(other.contains(&"prodigyopt".to_owned()) && other.contains(&"xformers".to_owned()));
    }

    #[test]
    fn the_cuda_of_pytorch_is_told_by_its_version_or_its_libraries() {
        for (torch, runtime, expected) in [
            ("2.9.1+cu128", None, Some("12.8")),
            ("2.9.1+cu130", Some("12.8.90"), Some("13.0")),
            ("2.9.1", Some("12.8.90"), Some("12.8")),
            ("2.9.1+cpu", None, None),
            ("2.9.1", None, None),
        ] {
            let mut installed = installed(&[("torch", "torch", torch)]);
            if let Some(version) = runtime {
                installed
                    .versions
                    .insert("nvidia-cuda-runtime-cu12".to_owned(), version.to_owned());
            }
            assert_eq!(cuda_of(&installed).as_deref(), expected, "{torch}");
        }
    }
}
