//! The native half of `musubitraining`: modules and what Python sees of them.

pub mod error;
pub mod interrupt;
pub mod task;

use pyo3::prelude::*;

#[pymodule]
mod _native {
    #[pymodule_export]
    use crate::error::DownloadError;
}
