//! The tokenizer of the text encoder, which transformers takes from the Hugging Face cache, or from its hub.

use std::fs;
use std::path::{Path, PathBuf};

use super::environment::{folder, hugging_face};
use super::{Check, Environment, Question};
use crate::dataset::Answer;

/// What the tokenizer is made from.
const FILES: [&str; 3] = ["vocab.json", "merges.txt", "tokenizer_config.json"];

/// Where the tokenizer is, as far as the disk tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Whole, in this folder.
    On(PathBuf),
    /// What is missing, and where.
    Not(String),
}

/// Looks for the tokenizer of `repository` ("Tongyi-MAI/Z-Image"); `cwd` is where the scripts run.
#[must_use]
pub fn look(repository: &str, cwd: &Path, environment: &Environment) -> Found {
    // A folder of that name comes first.
    let local = cwd.join(repository);
    let folder = if local.is_dir() {
        local.join("tokenizer")
    } else {
        let Some(cache) = hub_cache(environment) else {
            return Found::Not("there is no home folder".to_owned());
        };
        let of_repository = cache.join(format!("models--{}", repository.replace('/', "--")));
        let reference = of_repository.join("refs/main");
        let Ok(revision) = fs::read_to_string(&reference) else {
            return Found::Not(format!("{} does not exist", reference.display()));
        };
        of_repository
            .join("snapshots")
            .join(revision.trim())
            .join("tokenizer")
    };
    match FILES.iter().find(|file| !folder.join(file).is_file()) {
        None => Found::On(folder),
        Some(file) => Found::Not(format!("{} does not exist", folder.join(file).display())),
    }
}

/// Whether the hub must not be asked.
#[must_use]
pub fn is_offline(environment: &Environment) -> bool {
    // The first that is not empty counts, as huggingface_hub has it.
    ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
        .into_iter()
        .filter_map(|name| environment.get(name))
        .find(|value| !value.is_empty())
        .is_some_and(|value| matches!(value.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
}

/// Where the hub has a file of the tokenizer.
#[must_use]
pub fn address(repository: &str, environment: &Environment) -> String {
    let endpoint = environment
        .get("HF_ENDPOINT")
        .filter(|endpoint| !endpoint.is_empty())
        .map_or("https://huggingface.co", |endpoint| {
            endpoint.trim_end_matches('/')
        });
    format!(
        "{endpoint}/{repository}/resolve/main/tokenizer/{}",
        FILES[0]
    )
}

/// The verdict; `answer` is the hub's, where it had to be asked.
#[must_use]
pub fn check(repository: &str, found: &Found, answer: Option<Answer>) -> Check {
    let question = Question::new(
        "tokenizer",
        format!("{repository} in the Hugging Face cache, or to be had from its hub"),
    );
    let mend = format!(
        "hf download {repository} --include 'tokenizer/*' (where there is a network, with the same HF_HOME)"
    );
    let missing = match found {
        Found::On(folder) => return question.ok(folder.display().to_string()),
        Found::Not(missing) => missing,
    };
    match answer {
        None => question.error(
            format!("{missing}, and HF_HUB_OFFLINE forbids to fetch it"),
            mend,
        ),
        Some(Answer::File { .. }) => {
            question.ok(format!("not in the cache, the hub has it ({missing})"))
        }
        Some(Answer::Late) => question.warning(
            format!("{missing}, and the hub gave no answer in time"),
            mend,
        ),
        Some(Answer::Refused(reason)) => question.error(
            format!("{missing}, and the hub does not give it: {reason}"),
            mend,
        ),
    }
}

/// The variables in the order in which transformers and huggingface_hub look at them.
fn hub_cache(environment: &Environment) -> Option<PathBuf> {
    [
        "TRANSFORMERS_CACHE",
        "PYTORCH_TRANSFORMERS_CACHE",
        "PYTORCH_PRETRAINED_BERT_CACHE",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
    ]
    .into_iter()
    .find_map(|name| folder(environment, name))
    .or_else(|| Some(hugging_face(environment)?.join("hub")))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    const REPOSITORY: &str = "Tongyi-MAI/Z-Image";

    fn environment(variables: &[(&str, &Path)]) -> Environment {
        variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.to_str().unwrap().to_owned()))
            .collect()
    }

    #[test]
    fn it_is_found_where_transformers_looks_for_it_and_only_whole() {
        let root = tempfile::tempdir().unwrap();
        let hub = root.path().join("hub");
        let of_repository = hub.join("models--Tongyi-MAI--Z-Image");
        let tokenizer = of_repository.join("snapshots/5f/tokenizer");
        fs::create_dir_all(&tokenizer).unwrap();
        fs::create_dir(of_repository.join("refs")).unwrap();
        let cwd = root.path().join("clone");
        let home = environment(&[("HF_HOME", root.path())]);
        let missing = |environment: &Environment| match look(REPOSITORY, &cwd, environment) {
            Found::Not(missing) => missing,
            Found::On(folder) => panic!("found {}", folder.display()),
        };
        assert!(missing(&home).ends_with("refs/main does not exist"));
        fs::write(of_repository.join("refs/main"), "5f\n").unwrap();
        for file in FILES {
            assert!(missing(&home).ends_with(&format!("{file} does not exist")));
            fs::write(tokenizer.join(file), "{}").unwrap();
        }
        for variables in [
            &[("HF_HOME", root.path())][..],
            &[("HF_HUB_CACHE", &hub), ("HF_HOME", Path::new("/nowhere"))],
            &[
                ("TRANSFORMERS_CACHE", &hub),
                ("HF_HUB_CACHE", Path::new("/nowhere")),
            ],
        ] {
            assert_eq!(
                look(REPOSITORY, &cwd, &environment(variables)),
                Found::On(tokenizer.clone())
            );
        }
        let cache = environment(&[("XDG_CACHE_HOME", root.path())]);
        assert!(missing(&cache).contains("huggingface/hub"));
        assert!(missing(&Environment::new()).contains("no home"));
        // A folder of the repository's name where the scripts run comes first.
        fs::create_dir_all(cwd.join(REPOSITORY)).unwrap();
        assert!(missing(&home).contains("clone/Tongyi-MAI/Z-Image/tokenizer"));
    }

    #[test]
    fn offline_and_the_hubs_answer_decide_what_is_not_in_the_cache() {
        let offline = |value: &str| {
            let variables = [("HF_HUB_OFFLINE".to_owned(), value.to_owned())];
            is_offline(&variables.into_iter().collect())
        };
        assert!(offline("1") && offline("true") && !offline("0") && !offline(""));
        let custom = [("HF_ENDPOINT".to_owned(), "http://mirror/".to_owned())];
        assert_eq!(
            address(REPOSITORY, &custom.into_iter().collect()),
            "http://mirror/Tongyi-MAI/Z-Image/resolve/main/tokenizer/vocab.json"
        );
        let missing = Found::Not("/x does not exist".to_owned());
        let file = Answer::File {
            bytes: None,
            content_type: None,
        };
        for (answer, verdict) in [
            (None, Verdict::Error),
            (Some(file), Verdict::Ok),
            (Some(Answer::Late), Verdict::Warning),
            (Some(Answer::Refused("no".to_owned())), Verdict::Error),
        ] {
            assert_eq!(check(REPOSITORY, &missing, answer).verdict, verdict);
        }
        assert_eq!(
            check(REPOSITORY, &Found::On("/t".into()), None).verdict,
            Verdict::Ok
        );
    }
}
