//! What Musubi Tuner is told: its scripts, and each step's command line. Pure.

mod commit;
mod parser;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::error::Error;
use parser::Parser;

/// The module that starts a training.
pub const LAUNCHER: &str = "accelerate.commands.launch";

/// One word of a command line after the other, in whatever type it comes.
macro_rules! argv {
    ($($word:expr),* $(,)?) => { vec![$(OsString::from(AsRef::<OsStr>::as_ref(&$word))),*] };
}

/// A Musubi Tuner clone.
pub struct MusubiTuner {
    folder: PathBuf,
}

/// The weight files of a run, whole paths.
pub struct WeightFiles {
    pub vae: PathBuf,
    pub text_encoder: PathBuf,
    pub dit: PathBuf,
    /// What is merged into the DiT, if anything.
    pub base_weights: Option<PathBuf>,
}

/// What the caller chooses of a training.
pub struct Training {
    pub output_folder: PathBuf,
    pub output_name: String,
    pub max_train_steps: String,
    pub seed: String,
}

impl Training {
    #[must_use]
    pub fn steps(&self) -> Vec<OsString> {
        argv![
            "--max_train_steps",
            self.max_train_steps,
            "--seed",
            self.seed
        ]
    }

    #[must_use]
    pub fn output(&self) -> Vec<OsString> {
        argv![
            "--output_dir",
            self.output_folder,
            "--output_name",
            self.output_name
        ]
    }
}

/// A script that takes options of the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    CacheTextEncoderOutputs,
    Train,
}

/// How a conversion script takes its two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConverterForm {
    /// `--model_path SOURCE --output_path DESTINATION`
    Flags,
    /// `SOURCE DESTINATION`, as every Musubi Tuner so far.
    Positional,
}

/// How to call a conversion script, and when to try the other way.
#[derive(Debug, PartialEq, Eq)]
pub struct ConverterCall {
    pub first: ConverterForm,
    pub second: ConverterForm,
    /// An `argparse` script that is called the wrong way says so by its exit code; of others any failure may mean it.
    pub second_after_usage_error_only: bool,
}

impl Script {
    fn name(self) -> &'static str {
        match self {
            Self::CacheTextEncoderOutputs => "zimage_cache_text_encoder_outputs.py",
            Self::Train => "zimage_train_network.py",
        }
    }
}

impl MusubiTuner {
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The repository that its Z-Image loads the tokenizer from; `None` where its sources do not say so.
    #[must_use]
    pub fn tokenizer_repository(&self) -> Option<String> {
        let source = self.package().join("zimage/zimage_utils.py");
        let text = std::fs::read_to_string(source).ok()?;
        text.contains("from_pretrained(").then_some(())?;
        text.lines().find_map(|line| {
            let (_, value) = line.strip_prefix("ZIMAGE_ID")?.split_once('=')?;
            let quoted = value.trim().trim_matches(['"', '\'']);
            quoted.contains('/').then(|| quoted.to_owned())
        })
    }

    #[must_use]
    pub fn latents_script(&self) -> PathBuf {
        self.folder.join("zimage_cache_latents.py")
    }

    #[must_use]
    pub fn text_encoder_script(&self) -> PathBuf {
        self.folder.join(Script::CacheTextEncoderOutputs.name())
    }

    #[must_use]
    pub fn training_script(&self) -> PathBuf {
        self.folder.join(Script::Train.name())
    }

    #[must_use]
    pub fn conversion_script(&self) -> PathBuf {
        self.package()
            .join("networks/convert_z_image_lora_to_comfy.py")
    }

    /// The folder that must be importable from for the scripts to run.
    #[must_use]
    pub fn source_folder(&self) -> PathBuf {
        self.folder.join("src")
    }

    fn package(&self) -> PathBuf {
        self.source_folder().join("musubi_tuner")
    }

    /// What `pyproject.toml` says.
    #[must_use]
    pub fn version(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.folder.join("pyproject.toml")).ok()?;
        let (_, project) = text.split_once("[project]")?;
        let mut lines = project.lines().map(str::trim);
        let value =
            lines.find_map(|line| line.strip_prefix("version")?.trim().strip_prefix('='))?;
        Some(value.trim().trim_matches(['"', '\'']).to_owned())
    }

    /// The commit that is checked out, where this is a clone.
    #[must_use]
    pub fn commit(&self) -> Option<String> {
        commit::commit(&self.folder)
    }

    /// Refuses words that the script of this clone does not take. One whose parser cannot be read is not accused.
    ///
    /// # Errors
    /// [`Error::InvalidValue`] names the flag, the clone and what to do.
    pub fn check_words(&self, script: Script, words: &[OsString]) -> Result<(), Error> {
        let words: Vec<String> = words
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let objection = self
            .parser(script)
            .and_then(|parser| parser.objection(&words))
            .or_else(|| self.lacks_module(&words));
        let Some(objection) = objection else {
            return Ok(());
        };
        Err(Error::InvalidValue(format!(
            "{} of the Musubi Tuner in {} (version {}) {objection}, which TrainingOptions ask for. Change them, or use a \
             Musubi Tuner that takes it.",
            script.name(),
            self.folder.display(),
            self.version().as_deref().unwrap_or("unknown"),
        )))
    }

    /// The network module, if it is to be one of the clone's own that is not there.
    fn lacks_module(&self, words: &[String]) -> Option<String> {
        let place = words.iter().position(|word| word == "--network_module")?;
        let name = words.get(place + 1)?;
        let module = name.strip_prefix("musubi_tuner.").unwrap_or(name);
        let networks = self.package().join("networks");
        let file = networks.join(format!(
            "{}.py",
            module.strip_prefix("networks.")?.replace('.', "/")
        ));
        (networks.join("lora_zimage.py").exists() && !file.exists())
            .then(|| format!("has no network module {name}"))
    }

    fn parser(&self, script: Script) -> Option<Parser> {
        let (wrapper, shared, known): (_, &[&str], &[&str]) = match script {
            Script::CacheTextEncoderOutputs => (
                self.text_encoder_script(),
                &["cache_text_encoder_outputs.py"],
                &["--dataset_config", "--text_encoder"],
            ),
            Script::Train => (
                self.training_script(),
                // The second one before 0.3.0.
                &["training/parser_common.py", "hv_train_network.py"],
                &["--dit", "--sdpa", "--network_module", "--output_name"],
            ),
        };
        let read = |path: PathBuf| std::fs::read_to_string(path).ok();
        // A script that is not a way into the package parses for itself.
        let module = format!("musubi_tuner.{}", script.name().strip_suffix(".py")?);
        read(wrapper)?.contains(&module).then_some(())?;
        let own = read(self.package().join(script.name()))?;
        let shared = shared
            .iter()
            .find_map(|file| read(self.package().join(file)))?;
        Parser::read(&own, &shared, known)
    }

    /// Whether this clone's Z-Image trainer silently merges nothing of base weights in diffusers naming.
    ///
    /// The conversion was written for every trainer in 0.2.15, and has been in the HunyuanVideo trainer alone since
    /// 0.3.0. It counts if it is where the Z-Image trainer would inherit it from. A clone that cannot be read is not
    /// accused.
    #[must_use]
    pub fn ignores_diffusers_base_weights(&self) -> bool {
        let package = self.package();
        let base = ["training/trainer_base.py", "hv_train_network.py"]
            .into_iter()
            .map(|file| package.join(file));
        let Some(base) = base
            .into_iter()
            .find_map(|file| std::fs::read_to_string(file).ok())
        else {
            return false;
        };
        let own =
            std::fs::read_to_string(package.join("zimage_train_network.py")).unwrap_or_default();
        ![own, base].iter().any(|source| {
            source.contains("convert_weight_keys") && source.contains("diffusion_model.")
        })
    }
}

/// How to call the conversion script of this text. Where the text does not tell, flags come first, as in the original.
#[must_use]
pub fn converter_call(script: &str) -> ConverterCall {
    let declares_arguments = script.contains("add_argument(");
    let declares_flags = script.split("add_argument(").skip(1).any(|declared| {
        let name = declared.trim_start().trim_start_matches(['"', '\'']);
        name.starts_with("--model_path") || name.starts_with("--output_path")
    });
    let reads_flags = script.contains("--model_path") || script.contains("--output_path");
    let reads_positions = script.contains("argv[1") || script.contains("len(sys.argv)");
    let takes_positions = if declares_arguments {
        !declares_flags
    } else {
        reads_positions && !reads_flags
    };
    let (first, second) = if takes_positions {
        (ConverterForm::Positional, ConverterForm::Flags)
    } else {
        (ConverterForm::Flags, ConverterForm::Positional)
    };
    ConverterCall {
        first,
        second,
        second_after_usage_error_only: declares_arguments,
    }
}

/// The exit code of `argparse` for a command line that it does not take.
pub const USAGE_ERROR: i32 = 2;

#[must_use]
pub fn cache_latents(
    python: &OsStr,
    clone: &MusubiTuner,
    dataset_toml: &Path,
    vae: &Path,
) -> Vec<OsString> {
    argv![
        python,
        clone.latents_script(),
        "--dataset_config",
        dataset_toml,
        "--vae",
        vae
    ]
}

#[must_use]
pub fn cache_text_encoder_outputs(
    python: &OsStr,
    clone: &MusubiTuner,
    dataset_toml: &Path,
    text_encoder: &Path,
    options: Vec<OsString>,
) -> Vec<OsString> {
    let mut argv = argv![
        python,
        clone.text_encoder_script(),
        "--dataset_config",
        dataset_toml,
        "--text_encoder",
        text_encoder,
    ];
    argv.extend(options);
    argv
}

/// `launch` is for the launcher; `options` for the script, with the steps and the output.
#[must_use]
pub fn train(
    python: &OsStr,
    clone: &MusubiTuner,
    dataset_toml: &Path,
    weights: &WeightFiles,
    launch: Vec<OsString>,
    options: Vec<OsString>,
) -> Vec<OsString> {
    let mut argv = argv![python, "-m", LAUNCHER];
    argv.extend(launch);
    argv.extend(argv![
        clone.training_script(),
        "--dit",
        weights.dit,
        "--vae",
        weights.vae,
        "--text_encoder",
        weights.text_encoder,
    ]);
    if let Some(base_weights) = &weights.base_weights {
        argv.extend(argv!["--base_weights", base_weights]);
    }
    argv.extend(argv!["--dataset_config", dataset_toml]);
    argv.extend(options);
    argv
}

#[must_use]
pub fn convert(
    python: &OsStr,
    clone: &MusubiTuner,
    form: ConverterForm,
    source: &Path,
    destination: &Path,
) -> Vec<OsString> {
    let script = clone.conversion_script();
    match form {
        ConverterForm::Flags => argv![
            python,
            script,
            "--model_path",
            source,
            "--output_path",
            destination
        ],
        ConverterForm::Positional => argv![python, script, source, destination],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_converter_is_called_the_way_its_text_says() {
        use ConverterForm::{Flags, Positional};
        for (script, first, after_usage_error_only) in [
            (
                "parser.add_argument('src_path'); parser.add_argument('dst_path')",
                Positional,
                true,
            ),
            (
                "parser.add_argument('src_path')  # not --model_path and --output_path",
                Positional,
                true,
            ),
            ("parser.add_argument(\n    \"--model_path\")", Flags, true),
            ("parser.add_argument('--output_path')", Flags, true),
            ("source, destination = sys.argv[1:]", Positional, false),
            ("shutil.copy(sys.argv[1], sys.argv[2])", Positional, false),
            (
                "output = sys.argv[sys.argv.index('--output_path') + 1]",
                Flags,
                false,
            ),
            ("output = sys.argv[4]", Flags, false),
            ("from arguments import parser", Flags, false),
            ("", Flags, false),
        ] {
            let call = converter_call(script);
            assert_eq!(call.first, first, "{script}");
            assert_ne!(call.first, call.second, "{script}");
            assert_eq!(
                call.second_after_usage_error_only, after_usage_error_only,
                "{script}"
            );
        }
    }
}
