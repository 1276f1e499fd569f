//! The native half of `musubitraining`: its modules, and what Python sees of them.

pub mod adapter;
pub mod config;
pub mod dataset;
pub mod disk;
pub mod error;
pub mod gpu;
pub mod interpreter;
pub mod interrupt;
pub mod models;
pub mod plain_class;
pub mod process;
pub mod task;
pub mod trainer;
pub mod tuner;
pub mod weights;

use pyo3::prelude::*;

#[pymodule]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::error::DownloadError;
    #[pymodule_export]
    use crate::gpu::GpuMonitor;
    #[pymodule_export]
    use crate::trainer::MusubiTraining;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let py = module.py();
        module.add("Models", crate::models::dataclass(py)?)?;
        crate::gpu::install_methods(py)?;
        crate::trainer::install_methods(py)
    }
}
