//! `Models`: the file names of the weights, a real Python dataclass.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyString;

const DOC: &str = "\
The names of the weight files inside the models folder.

Attributes:
    ae: the VAE (str, default \"ae.safetensors\").
    text_encoder: Qwen3-4B (str, default \"qwen_3_4b.safetensors\").
    DiT: Z-Image itself (str, default \"z_image_de_turbo_v1_bf16.safetensors\").
    base_weights: the training adapter that is merged before training (str, default
        \"zimage_turbo_training_adapter_v2.safetensors\").

The defaults are those of TechTrash_MusubiTraining 0.0.11.";

const FIELDS: [(&str, &str); 4] = [
    ("ae", "ae.safetensors"),
    ("text_encoder", "qwen_3_4b.safetensors"),
    ("DiT", "z_image_de_turbo_v1_bf16.safetensors"),
    (
        "base_weights",
        "zimage_turbo_training_adapter_v2.safetensors",
    ),
];

/// The class, made at the first call.
///
/// # Errors
/// What `dataclasses` raises.
pub fn dataclass(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static CLASS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let class = CLASS.get_or_try_init(py, || make(py).map(Bound::unbind))?;
    Ok(class.bind(py).clone())
}

fn make(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    let string = py.get_type::<PyString>();
    let fields: Vec<_> = FIELDS
        .iter()
        .map(|(name, default)| (*name, &string, *default))
        .collect();
    let class = py
        .import("dataclasses")?
        .call_method1("make_dataclass", ("Models", fields))?;
    // Where the original's pickles say that it is.
    class.setattr("__module__", "musubitraining.main")?;
    class.setattr("__doc__", DOC)?;
    Ok(class)
}
