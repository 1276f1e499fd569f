//! The native half of `musubitraining`: its modules, and what Python sees of them.

pub mod adapter;
pub mod config;
pub mod dataset;
pub mod disk;
pub mod error;
pub mod interpreter;
pub mod interrupt;
pub mod process;
pub mod task;
pub mod tuner;
pub mod weights;

use pyo3::prelude::*;

#[pymodule]
mod _native {
    #[pymodule_export]
    use crate::error::DownloadError;
}
