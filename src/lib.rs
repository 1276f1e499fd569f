//! The native half of `musubitraining`: its modules, and what Python sees of them.

mod adapter;
mod cgroup;
mod config;
mod convert;
mod dataset;
mod disk;
mod error;
mod events;
mod failure;
mod folder_lock;
mod gpu;
mod interpreter;
mod interrupt;
mod models;
mod plain_class;
mod plan;
mod process;
mod progress;
mod read_ahead;
mod task;
mod trainer;
mod tuner;
mod web_page;
mod weights;

use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;

#[pymodule]
mod _native {
    use pyo3::prelude::*;
    use pyo3::types::PyTuple;

    #[pymodule_export]
    use crate::convert::convert_lora_to_comfyui;
    #[pymodule_export]
    use crate::error::{Cancelled, DownloadError, restore_download_error};
    #[pymodule_export]
    use crate::gpu::{_gpu_memory_bytes, _gpus};
    #[pymodule_export]
    use crate::interpreter::_supervise;
    #[pymodule_export]
    use crate::trainer::dataset_toml;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let py = module.py();
        // One that a caller makes has it, too.
        module
            .getattr("DownloadError")?
            .setattr("status", py.None())?;
        module.add("GPUMonitor", crate::gpu::class(py)?)?;
        module.add("MusubiTraining", crate::trainer::class(py)?)?;
        module.add(
            "IMAGE_EXTENSIONS",
            PyTuple::new(py, crate::dataset::EXTENSIONS)?,
        )?;
        module.index()?.append("DatasetLimits")?;
        module.index()?.append("Models")?;
        module.setattr("__getattr__", wrap_pyfunction!(super::dataclass, py)?)
    }
}

/// The dataclasses are made when they are first asked for: `dataclasses` is slow to import.
#[pyfunction]
fn dataclass<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    match name {
        "DatasetLimits" => trainer::dataset_limits_class(py),
        "Models" => models::dataclass(py),
        _ => Err(PyAttributeError::new_err(format!(
            "module 'musubitraining._native' has no attribute '{name}'"
        ))),
    }
}
