//! What Musubi Tuner is told: its scripts, and each step's command line. Pure.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// A Musubi Tuner clone.
pub struct MusubiTuner {
    folder: PathBuf,
}

/// The weight files of a run, whole paths.
pub struct WeightFiles {
    pub vae: PathBuf,
    pub text_encoder: PathBuf,
    pub dit: PathBuf,
    pub base_weights: PathBuf,
}

/// What the caller chooses of a training.
pub struct Training {
    pub output_folder: PathBuf,
    pub output_name: String,
    pub max_train_steps: String,
    pub seed: String,
}

/// How a conversion script takes its two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConverterForm {
    /// `--model_path SOURCE --output_path DESTINATION`
    Flags,
    /// `SOURCE DESTINATION`, as every Musubi Tuner so far.
    Positional,
}

impl MusubiTuner {
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    #[must_use]
    pub fn latents_script(&self) -> PathBuf {
        self.folder.join("zimage_cache_latents.py")
    }

    #[must_use]
    pub fn text_encoder_script(&self) -> PathBuf {
        self.folder.join("zimage_cache_text_encoder_outputs.py")
    }

    #[must_use]
    pub fn training_script(&self) -> PathBuf {
        self.folder.join("zimage_train_network.py")
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

/// The ways to call a conversion script, to be tried in order, by what its text declares.
#[must_use]
pub fn converter_forms(script: &str) -> &'static [ConverterForm] {
    let declares_flags = script.contains("--model_path") && script.contains("--output_path");
    match (declares_flags, script.contains("argparse")) {
        (true, true) => &[ConverterForm::Flags],
        // Its own way of reading arguments: only trying tells.
        (true, false) => &[ConverterForm::Flags, ConverterForm::Positional],
        (false, _) => &[ConverterForm::Positional],
    }
}

/// One word of a command line after the other, in whatever type it comes.
macro_rules! argv {
    ($($word:expr),* $(,)?) => { vec![$(OsString::from(AsRef::<OsStr>::as_ref(&$word))),*] };
}

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
) -> Vec<OsString> {
    argv![
        python,
        clone.text_encoder_script(),
        "--dataset_config",
        dataset_toml,
        "--text_encoder",
        text_encoder,
        "--batch_size",
        "16",
    ]
}

#[must_use]
pub fn train(
    python: &OsStr,
    clone: &MusubiTuner,
    dataset_toml: &Path,
    weights: &WeightFiles,
    training: &Training,
) -> Vec<OsString> {
    argv![
        python,
        "-m",
        "accelerate.commands.launch",
        "--num_cpu_threads_per_process",
        "1",
        "--mixed_precision",
        "bf16",
        clone.training_script(),
        "--dit",
        weights.dit,
        "--vae",
        weights.vae,
        "--text_encoder",
        weights.text_encoder,
        "--base_weights",
        weights.base_weights,
        "--dataset_config",
        dataset_toml,
        "--sdpa",
        "--mixed_precision",
        "bf16",
        "--timestep_sampling",
        "sigmoid",
        "--weighting_scheme",
        "none",
        "--optimizer_type",
        "adamw8bit",
        "--learning_rate",
        "2e-4",
        "--optimizer_args",
        "weight_decay=0.0001",
        "--gradient_checkpointing",
        "--max_train_steps",
        training.max_train_steps,
        "--seed",
        training.seed,
        "--network_module",
        "networks.lora_zimage",
        "--network_dim",
        "16",
        "--network_alpha",
        "16",
        "--output_dir",
        training.output_folder,
        "--output_name",
        training.output_name,
    ]
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
        let real =
            "import argparse\nparser.add_argument('src_path')\nparser.add_argument('dst_path')";
        let flags = "import argparse\nparser.add_argument('--model_path')\nparser.add_argument('--output_path')";
        let own = "import sys\nsource = sys.argv[sys.argv.index('--model_path') + 1]  # and --output_path";
        assert_eq!(converter_forms(real), [ConverterForm::Positional]);
        assert_eq!(converter_forms(flags), [ConverterForm::Flags]);
        assert_eq!(
            converter_forms(own),
            [ConverterForm::Flags, ConverterForm::Positional]
        );
        assert_eq!(converter_forms(""), [ConverterForm::Positional]);
    }
}
