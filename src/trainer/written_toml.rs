//! `dataset_toml`, the dataset's TOML for who has no wish of their own.

use std::path::{Path, PathBuf};

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::{absolute, arguments, checks};
use crate::config::Settings;
use crate::dataset::Layout;

/// Write the dataset configuration of a training folder, as Musubi Tuner reads it.
///
/// Args:
///     training_folder (str | os.PathLike[str]): that of the trainer; its photos will be in `images`, its caches in
///         `cache`. A relative path counts from the current folder.
///     resolution (int | tuple[int, int]): pixels, 32 to 8192: the side of a square, or width and height. With buckets,
///         the area that photos are brought to; without, their size, in multiples of 16.
///     batch_size (int): photos in a step, 1 to 1024.
///     num_repeats (int): how often each photo comes in an epoch, 1 to 100_000.
///     enable_bucket (bool): whether photos keep their shape, as near as buckets come to it.
///     bucket_no_upscale (bool): whether photos that are smaller keep their size; needs enable_bucket.
///     caption_extension (str): of the captions' files, with its dot. Those of this library end in ".txt".
///
/// Returns:
///     str: the text, for `dataset_toml_content`.
///
/// Raises:
///     ValueError: a value is out of its range, or the path is one that Musubi Tuner cannot work with.
///     TypeError: a value is of a type that cannot work.
#[pyfunction]
#[pyo3(
    signature = (
        training_folder, *, resolution=None, batch_size=None, num_repeats=None, enable_bucket=true,
        bucket_no_upscale=false, caption_extension=".txt"
    ),
    text_signature = "(training_folder, *, resolution=(1024, 1024), batch_size=1, num_repeats=1, enable_bucket=True, \
                      bucket_no_upscale=False, caption_extension='.txt')"
)]
pub fn dataset_toml(
    training_folder: &Bound<'_, PyAny>,
    resolution: Option<Bound<'_, PyAny>>,
    batch_size: Option<Bound<'_, PyAny>>,
    num_repeats: Option<Bound<'_, PyAny>>,
    enable_bucket: bool,
    bucket_no_upscale: bool,
    caption_extension: &str,
) -> PyResult<String> {
    let mut settings = Settings {
        enable_bucket,
        bucket_no_upscale,
        caption_extension: caption_extension.to_owned(),
        ..Settings::default()
    };
    if let Some(resolution) = resolution {
        settings.resolution = sides(&resolution)?;
    }
    if let Some(batch_size) = batch_size {
        settings.batch_size = arguments::number("batch_size", &batch_size)?;
    }
    if let Some(num_repeats) = num_repeats {
        settings.num_repeats = arguments::number("num_repeats", &num_repeats)?;
    }
    text(&training_folder.extract::<PathBuf>()?, &settings)
}

/// That of a caller who gives none.
///
/// # Errors
/// As [`dataset_toml`].
pub fn usual(training_folder: &Path) -> PyResult<String> {
    text(training_folder, &Settings::default())
}

fn text(training_folder: &Path, settings: &Settings) -> PyResult<String> {
    let folder = absolute(training_folder)?;
    checks::cache_folders(None, &folder)?;
    let layout = Layout::new(&folder);
    Ok(settings.text(&layout.images(), &layout.cache())?)
}

fn sides(resolution: &Bound<'_, PyAny>) -> PyResult<[i64; 2]> {
    let side = |side: &Bound<'_, PyAny>| arguments::number("resolution", side);
    let is_pair = !resolution.is_instance_of::<PyString>()
        && resolution.len().is_ok_and(|length| length == 2);
    if is_pair {
        return Ok([
            side(&resolution.get_item(0)?)?,
            side(&resolution.get_item(1)?)?,
        ]);
    }
    side(resolution).map(|side| [side, side])
}
