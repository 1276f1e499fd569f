//! What proves that a step which went on, or ended well, has failed.

use std::path::Path;

use pyo3::prelude::*;

use super::run::Run;
use crate::config::ImageFolder;
use crate::error::Error;
use crate::failure::NAN_MEND;
use crate::interrupt;
use crate::progress::{Alarm, Heard};
use crate::weights::{self, Weights};

/// What is said the moment that a line of a step shows it.
#[must_use]
pub fn warning(alarm: &Alarm) -> Option<String> {
    match alarm {
        Alarm::NothingMerged { adapter } => {
            let is_empty = matches!(
                weights::inspect(Path::new(adapter), weights::DOWNLOAD_AGAIN),
                Ok(Weights::Whole(metadata)) if metadata.offset_keys().is_empty()
            );
            (!is_empty).then(|| {
                format!(
                    "Musubi Tuner has merged 0 modules of the adapter {adapter}: it trains as if the adapter were not \
                     there. Either it is an adapter of another model, or its tensors have names that this clone does not \
                     merge: convert it with the clone's convert_lora.py (--target default) and name the new file in \
                     Models(base_weights=...)."
                )
            })
        }
        Alarm::LossIsNan { step, total } => Some(format!(
            "the loss is NaN at step {step} of {total}. {NAN_MEND} If it stays so, the LoRA cannot be used; stop the run \
             to save the time."
        )),
        Alarm::WorkerFailed => Some(
            "a worker that loads the training data has failed, and Musubi Tuner may wait for it without end: if no step \
             follows, stop the run. The lines above say why: a damaged cache (cache the photos again), or too little \
             shared memory (/dev/shm; docker run --shm-size=8g)."
                .to_owned(),
        ),
    }
}

/// Refuses a caching step that has found nothing to cache; returns what to warn of.
///
/// # Errors
/// [`Error::Unusable`].
pub fn images(
    heard: &Heard,
    dataset_toml: &Path,
    folders: &[ImageFolder],
) -> Result<Option<String>, Error> {
    let (datasets, empty) = (heard.datasets(), heard.empty_datasets());
    if empty == 0 {
        return Ok(None);
    }
    if empty < datasets {
        return Ok(Some(format!(
            "{empty} of {datasets} datasets in {} have no images, and nothing of them is trained: check their \
             `image_directory` and `caption_extension`",
            dataset_toml.display()
        )));
    }
    let expected: Vec<String> = folders.iter().map(expected_in).collect();
    Err(Error::Unusable(format!(
        "Musubi Tuner found 0 images, so that there is nothing to train on. Expected: {}. Check `image_directory` and \
         `caption_extension` (with its dot, as \".txt\") in {}.",
        if expected.is_empty() {
            "photos".to_owned()
        } else {
            expected.join("; ")
        },
        dataset_toml.display()
    )))
}

fn expected_in(folder: &ImageFolder) -> String {
    let photos = format!("photos in {}", folder.images.display());
    match &folder.caption_extension {
        Some(extension) => format!(
            "{photos}, each with a caption file of the same name ending in {extension:?} beside it"
        ),
        None => photos,
    }
}

/// Refuses a training whose loss was NaN to the end.
///
/// # Errors
/// [`Error::Unusable`].
pub fn loss(heard: &Heard, lora: &Path) -> Result<(), Error> {
    match heard.nan_since() {
        None => Ok(()),
        Some((step, total)) => Err(Error::Unusable(format!(
            "the loss was NaN from step {step} of {total} to the end, so that the LoRA {} cannot be used. {NAN_MEND}",
            lora.display()
        ))),
    }
}

/// Refuses a LoRA that is cut, or whose numbers are none.
///
/// # Errors
/// [`Error::Unusable`], [`Error::Io`], [`Error::Cancelled`], what a signal handler raises.
pub fn lora(py: Python<'_>, run: &Run, lora: &Path) -> PyResult<()> {
    interrupt::run_quietly(py, run.cancel(), |task| {
        let mend = "A full disk leaves such a file: make room, and run again.";
        match weights::inspect(lora, mend)? {
            Weights::Whole(metadata) => {
                weights::refuse_non_finite(lora, &metadata, NAN_MEND, || task.check())
            }
            Weights::Unrecognised(_) => Ok(()),
        }
    })
}
