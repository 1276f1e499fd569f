//! What Python sees of the conversion.

use std::ffi::OsString;
use std::path::PathBuf;

use pyo3::prelude::*;

use super::{Form, convert};
use crate::error::Error;
use crate::interrupt;
use crate::task::Cancel;

/// Convert a LoRA or LoHa of Z-Image to a form that ComfyUI loads.
///
/// Args:
///     source (str | os.PathLike[str]): the LoRA, as Musubi Tuner has trained it.
///     destination (str | os.PathLike[str]): the file to write, in a folder that exists. What is there stays until the
///         new file is complete; it may be the source.
///     form (str): "merged", what the clone's convert_z_image_lora_to_comfy.py writes: q, k and v as one module, and new
///         hashes in the metadata, if there are any; or "separate", what its convert_lora.py --target other writes,
///         which nunchaku needs: diffusers' naming, alpha multiplied into the matrices.
///
/// Returns:
///     str: the destination.
///
/// Raises:
///     ValueError: the source is no LoRA or LoHa of Z-Image in Musubi Tuner's naming, or is damaged; or the form is
///         neither. Nothing is written.
///     OSError: a file cannot be read or written; what was at the destination is still there.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "Python hands them over")]
#[pyo3(signature = (source, destination, *, form = "merged"))]
pub fn convert_lora_to_comfyui(
    py: Python<'_>,
    source: PathBuf,
    destination: PathBuf,
    form: &str,
) -> PyResult<OsString> {
    let form = match form {
        "merged" => Form::Merged,
        "separate" => Form::Separate,
        _ => {
            return Err(Error::InvalidValue(format!(
                "form={form:?}: expected \"merged\" or \"separate\""
            ))
            .into());
        }
    };
    let warnings = interrupt::run_quietly(py, &Cancel::default(), |task| {
        convert(&source, &destination, form, || task.check())
    })?;
    for warning in warnings {
        py.import("musubitraining.main")?
            .getattr("logger")?
            .call_method1("warning", ("%s", warning))?;
    }
    Ok(destination.into_os_string())
}
