//! What can be known before anything is deleted or fetched.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};

use pyo3::prelude::*;

use super::plan::settings_of;
use super::{absolute, clone_of, is_replaced, options, path_of, weights_of};
use crate::config::DatasetConfig;
use crate::error::Error;
use crate::plan::{self, Check, Verdict};
use crate::task::Cancel;
use crate::tuner::{MusubiTuner, Script};
use crate::weights::kind::{self, Role};
use crate::weights::{self, Weights};
use crate::{adapter, disk, interpreter, interrupt};

/// Less than this and a run may end on a full disk: the LoRA in fp32 has 140 MB, its converted form as many, and
/// the photos and caches come on top.
const LITTLE_SPACE_BYTES: u64 = 500_000_000;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Step {
    PrepareDataset,
    PreCache,
    LaunchTraining,
    ConvertForComfyui,
}

impl Step {
    /// The method that does it.
    pub fn method(self) -> &'static str {
        match self {
            Self::PrepareDataset => "_prepare_dataset",
            Self::PreCache => "_pre_cache",
            Self::LaunchTraining => "_launch_training",
            Self::ConvertForComfyui => "_convert_for_comfyui",
        }
    }
}

/// # Errors
/// [`Error::Missing`].
pub fn exists(what: &'static str, path: &Path) -> Result<(), Error> {
    if path.exists() {
        Ok(())
    } else {
        Err(Error::Missing {
            what,
            path: path.to_owned(),
        })
    }
}

/// All checks of these steps; returns what is odd but no proof of a failure.
pub fn everything(slf: &Bound<'_, PyAny>, steps: &[Step]) -> PyResult<BTreeSet<String>> {
    let mut warnings = BTreeSet::new();
    for step in steps {
        match step {
            Step::PrepareDataset => {
                warnings.extend(space(&absolute(&path_of(
                    slf,
                    "absolute_path_training_folder",
                )?)?));
            }
            Step::PreCache => warnings.extend(pre_cache(slf)?),
            Step::LaunchTraining => {
                warnings.extend(launch_training(slf)?);
                let output = absolute(&path_of(slf, "absolute_path_output")?)?;
                if !is_replaced(slf, "_run_cmd")? {
                    refuse(&plan::folders::writable("output folder", &output))?;
                }
                warnings.extend(space(&output));
                let settings = settings_of(slf)?;
                let odd =
                    plan::environment::check(&plan::environment::of(env::vars_os()), &settings);
                let odd = odd.iter().filter(|check| check.verdict != Verdict::Ok);
                warnings.extend(odd.map(Check::in_words));
            }
            Step::ConvertForComfyui => conversion_script(slf)?,
        }
    }
    Ok(warnings)
}

/// # Errors
/// [`Error::Unusable`] for what has failed.
fn refuse(check: &Check) -> Result<(), Error> {
    match check.verdict {
        Verdict::Error => Err(Error::Unusable(check.in_words())),
        _ => Ok(()),
    }
}

/// A tokenizer that the clone's sources ask for, that is not there, and that must not be fetched.
fn tokenizer(slf: &Bound<'_, PyAny>, clone: &MusubiTuner) -> PyResult<()> {
    let environment = plan::environment::of(env::vars_os());
    if is_replaced(slf, "_run_cmd")? || !plan::tokenizer::is_offline(&environment) {
        return Ok(());
    }
    if let Some(repository) = clone.tokenizer_repository() {
        let found = plan::tokenizer::look(&repository, clone.folder(), &environment);
        refuse(&plan::tokenizer::check(&repository, &found, None))?;
    }
    Ok(())
}

/// What `_pre_cache` needs.
pub fn pre_cache(slf: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
    let clone = clone_of(slf)?;
    exists("Musubi script not found", &clone.latents_script())?;
    exists("Musubi script not found", &clone.text_encoder_script())?;
    let vae = weights_of(slf, "ae")?;
    let text_encoder = weights_of(slf, "text_encoder")?;
    exists("VAE weights not found", &vae)?;
    exists("Text encoder weights not found", &text_encoder)?;
    options::check(slf, &clone, Script::CacheTextEncoderOutputs)?;
    tokenizer(slf, &clone)?;
    recognise(
        slf.py(),
        vec![(Role::Vae, vae), (Role::TextEncoder, text_encoder)],
    )
}

/// What `_launch_training` needs.
pub fn launch_training(slf: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
    if !interpreter::can_import(slf.py(), "accelerate")? {
        return Err(Error::Unusable(format!(
            "Missing dependency: `accelerate`. The training is started with it by {}, which cannot find it: run \
             `{0} -m pip install accelerate`.",
            interpreter::executable(slf.py())?.display()
        ))
        .into());
    }
    let clone = clone_of(slf)?;
    exists("Musubi training script not found", &clone.training_script())?;
    let mut roles = vec![Role::Dit, Role::Vae, Role::TextEncoder];
    if options::merge_base_weights(slf)? {
        roles.push(Role::Adapter);
    }
    let files = roles
        .into_iter()
        .map(|role| Ok((role, weights_of(slf, role.field())?)))
        .collect::<PyResult<Vec<_>>>()?;
    for (_, file) in &files {
        exists("Model weights not found", file)?;
    }
    let mut warnings = options::check(slf, &clone, Script::Train)?;
    warnings.extend(recognise(slf.py(), files)?);
    Ok(warnings)
}

/// What `_convert_for_comfyui` needs besides the LoRA.
pub fn conversion_script(slf: &Bound<'_, PyAny>) -> PyResult<()> {
    Ok(exists(
        "Conversion script not found",
        &clone_of(slf)?.conversion_script(),
    )?)
}

/// What is odd about weights; an error when they are certainly none, or of another model.
fn recognise(py: Python<'_>, files: Vec<(Role, PathBuf)>) -> PyResult<Vec<String>> {
    interrupt::run_quietly(py, &Cancel::default(), |_| {
        let mut warnings = Vec::new();
        for (role, file) in files {
            match weights::inspect(&file, weights::DOWNLOAD_AGAIN)? {
                Weights::Whole(metadata) => kind::require(&file, &metadata, role)?,
                Weights::Unrecognised(why) => warnings.push(format!(
                    "{} does not look like weights: {why}. Expected a safetensors file; going on, the tuner will judge.",
                    file.display()
                )),
            }
        }
        Ok(warnings)
    })
}

/// Whether this adapter is in a naming of which this clone merges nothing, without an error.
pub fn is_merged_in_vain(adapter: &Path, clone: &MusubiTuner) -> Result<bool, Error> {
    match weights::inspect(adapter, weights::DOWNLOAD_AGAIN)? {
        Weights::Whole(metadata) => Ok(
            adapter::is_in_diffusers_naming(&metadata) && clone.ignores_diffusers_base_weights()
        ),
        Weights::Unrecognised(_) => Ok(false),
    }
}

/// What is odd about the disk that a folder is or will be on. Some network file systems say 0 for "unknown", so that
/// only writing proves that a disk is full.
fn space(folder: &Path) -> Option<String> {
    let existing = folder.ancestors().find(|folder| folder.exists())?;
    let free_bytes = disk::free_bytes(existing).ok()?;
    (free_bytes < LITTLE_SPACE_BYTES).then(|| {
        format!(
            "the disk of {} has {} MB free: a LoRA and its converted form need about 300 MB, photos and caches more. \
             Free some space.",
            folder.display(),
            free_bytes / 1_000_000
        )
    })
}

/// Refuses a cache folder that the tuner would look for and not find. `None` stands for a TOML that does not parse.
///
/// # Errors
/// [`Error::InvalidValue`] for the training folder itself, and for the cache folders that the TOML names.
pub fn cache_folders(config: Option<&DatasetConfig>, training_folder: &Path) -> Result<(), Error> {
    let named = config
        .map(DatasetConfig::cache_directories)
        .unwrap_or_default();
    let folder = training_folder.to_string_lossy().into_owned();
    match [folder]
        .into_iter()
        .chain(named)
        .find(|folder| folder.contains(['[', '*', '?']))
    {
        None => Ok(()),
        Some(folder) => Err(Error::InvalidValue(format!(
            "the folder {folder} has a '[', '*' or '?' in its path, which Musubi Tuner takes for a glob pattern: its \
             training would find no caches there. Choose a training folder without these characters."
        ))),
    }
}
