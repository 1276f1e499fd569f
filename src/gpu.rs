//! `GPUMonitor`: how many GPUs there are and what the first one is, from NVIDIA's management library (NVML).

use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList};

use crate::error::Error;
use crate::plain_class::PlainClass;
use crate::task::Cancel;

const UNKNOWN: &str = "Unknown GPU";

/// The words that mark a GPU's name, and its label. In the order of the original, which takes the first that fits.
const LABELS: [(&[&str], &str); 8] = [
    (&["4090"], "RTX 4090"),
    (&["5090"], "RTX 5090"),
    (&["6000", "Ada"], "RTX 6000 Ada"),
    (&["A40"], "A40"),
    (&["H100"], "H100"),
    (&["A100"], "A100"),
    (&["B200"], "B200"),
    (&["H200"], "H200"),
];

/// The label of the GPU that NVML calls `name`. Whole words decide: an RTX A4000 is no A40.
#[must_use]
pub fn label(name: &str) -> &'static str {
    let words: Vec<&str> = name
        .split(|letter: char| !letter.is_alphanumeric())
        .collect();
    LABELS
        .iter()
        .find(|(marks, _)| words.windows(marks.len()).any(|window| window == *marks))
        .map_or(UNKNOWN, |(_, label)| label)
}

/// How many GPUs there are.
///
/// # Errors
/// [`Error::Unusable`] when NVML does not answer, or knows no GPU.
pub fn count() -> Result<u32, Error> {
    let count = ask(Nvml::device_count)?;
    if count == 0 {
        return Err(fault(
            "a driver without any GPU",
            "Look for the GPU with `nvidia-smi -L` (a container sees it when started with `--gpus all`)",
        )
        .into());
    }
    Ok(count)
}

/// The label of GPU 0.
///
/// # Errors
/// [`Error::Unusable`] when NVML does not answer for it.
pub fn first_label() -> Result<&'static str, Error> {
    ask(|nvml| match nvml.device_by_index(0)?.name() {
        Ok(name) => Ok(label(&name)),
        Err(NvmlError::Utf8Error(_)) => Ok(UNKNOWN),
        Err(error) => Err(error),
    })
}

/// The free memory of the GPU that has the least; `None` where there is no NVML, and so no GPU.
///
/// # Errors
/// [`Error::Unusable`] when NVML is there and does not say.
pub fn least_free_bytes() -> Result<Option<u64>, Error> {
    let nvml = match open() {
        Err(NvmlError::LibloadingError(_) | NvmlError::DriverNotLoaded) => return Ok(None),
        opened => opened.map_err(|error| Error::from(explain(&error)))?,
    };
    let free_bytes = |index| Ok(nvml.device_by_index(index)?.memory_info()?.free);
    nvml.device_count()
        .and_then(|count| (0..count).map(free_bytes).collect::<Result<Vec<u64>, _>>())
        .map(|free| free.into_iter().min())
        .map_err(|error| explain(&error).into())
}

/// What there is in the place of a driver that works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub found: String,
    /// Without a full stop.
    pub mend: String,
}

/// What the driver says of itself and its GPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// "580.65.06"
    pub version: Option<String>,
    pub gpus: Vec<Gpu>,
}

/// A GPU as the driver has it at the moment; what it does not say is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// In the order of the PCI bus.
    pub index: u32,
    pub name: String,
    /// "GPU-5f1c…"
    pub uuid: Option<String>,
    /// 9.0 of an H100.
    pub compute_capability: Option<(i32, i32)>,
    pub total_bytes: Option<u64>,
    pub free_bytes: Option<u64>,
    /// The processes that compute on it, with the memory that each has.
    pub processes: Vec<(u32, Option<u64>)>,
}

/// Looks at every GPU; `None` where there is no NVML, and so no GPU.
///
/// # Errors
/// [`Fault`] when NVML is there and does not work.
pub fn look() -> Result<Option<Driver>, Fault> {
    match open().and_then(|nvml| driver(&nvml)) {
        Ok(driver) => Ok(Some(driver)),
        Err(NvmlError::LibloadingError(_) | NvmlError::DriverNotLoaded) => Ok(None),
        Err(error) => Err(explain(&error)),
    }
}

fn driver(nvml: &Nvml) -> Result<Driver, NvmlError> {
    let gpu = |index| {
        let device = nvml.device_by_index(index)?;
        let memory = device.memory_info().ok();
        let processes = device.running_compute_processes().unwrap_or_default();
        Ok(Gpu {
            index,
            name: device.name().unwrap_or_else(|_| UNKNOWN.to_owned()),
            uuid: device.uuid().ok(),
            compute_capability: device
                .cuda_compute_capability()
                .ok()
                .map(|capability| (capability.major, capability.minor)),
            total_bytes: memory.as_ref().map(|memory| memory.total),
            free_bytes: memory.as_ref().map(|memory| memory.free),
            processes: processes
                .into_iter()
                .map(|process| (process.pid, used_bytes(&process.used_gpu_memory)))
                .collect(),
        })
    };
    Ok(Driver {
        version: nvml.sys_driver_version().ok(),
        gpus: (0..nvml.device_count()?)
            .map(gpu)
            .collect::<Result<_, NvmlError>>()?,
    })
}

fn used_bytes(memory: &UsedGpuMemory) -> Option<u64> {
    match memory {
        UsedGpuMemory::Used(bytes) => Some(*bytes),
        UsedGpuMemory::Unavailable => None,
    }
}

/// The GPUs that CUDA sees, in its order: of those that `CUDA_VISIBLE_DEVICES` names, up to a word that names none, else
/// all. They are counted in bus order, or the fastest first, which is taken to be the one with the most memory.
#[must_use]
pub fn visible<'a>(
    gpus: &'a [Gpu],
    visible_devices: Option<&str>,
    in_bus_order: bool,
) -> Vec<&'a Gpu> {
    let mut gpus: Vec<&Gpu> = gpus.iter().collect();
    if !in_bus_order {
        gpus.sort_by_key(|gpu| std::cmp::Reverse(gpu.total_bytes));
    }
    let Some(words) = visible_devices else {
        return gpus;
    };
    let named = |word: &str| match word.parse::<usize>() {
        Ok(index) => gpus.get(index).copied(),
        Err(_) if word.is_empty() => None,
        // The beginning of one is enough.
        Err(_) => gpus.iter().copied().find(|gpu| {
            let uuid = gpu.uuid.as_deref().unwrap_or_default();
            uuid.starts_with(word)
        }),
    };
    words
        .split(',')
        .map_while(|word| named(word.trim()))
        .collect()
}

/// Whether CUDA counts the GPUs as they are on the bus, with this `CUDA_DEVICE_ORDER`.
#[must_use]
pub fn is_bus_order(device_order: Option<&str>) -> bool {
    device_order == Some("PCI_BUS_ID")
}

/// What a GPU has and does at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    pub used_bytes: u64,
    pub total_bytes: u64,
    pub utilisation_percent: Option<u32>,
}

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    pub driver: Option<String>,
    pub gpu: String,
}

/// Reads the GPU that CUDA sees first, again and again, until it is cancelled. Says nothing where there is no NVML, or no
/// GPU that is whole.
pub fn watch(
    visible_devices: Option<&str>,
    in_bus_order: bool,
    every: Duration,
    cancel: &Cancel,
    on_start: impl FnOnce(Watched),
    mut on_reading: impl FnMut(Reading),
) {
    let watch = || -> Result<(), NvmlError> {
        let nvml = open()?;
        let driver = driver(&nvml)?;
        let is_part =
            visible_devices.is_some_and(|devices| devices.trim_start().starts_with("MIG-"));
        let seen = visible(&driver.gpus, visible_devices, in_bus_order);
        let Some(first) = seen.first().filter(|_| !is_part) else {
            return Ok(());
        };
        on_start(Watched {
            driver: driver.version.clone(),
            gpu: first.name.clone(),
        });
        let device = nvml.device_by_index(first.index)?;
        loop {
            // A driver that is busy with something else may not answer this once.
            if let Ok(memory) = device.memory_info() {
                let utilisation = device.utilization_rates().ok();
                on_reading(Reading {
                    used_bytes: memory.used,
                    total_bytes: memory.total,
                    utilisation_percent: utilisation.map(|rates| rates.gpu),
                });
            }
            if cancel.pause(every).is_err() {
                return Ok(());
            }
        }
    };
    // Whoever wants to know why there is none asks `GPUMonitor`.
    drop(watch());
}

/// All memory of the GPU that a training in this environment uses.
///
/// Raises:
///     RuntimeError: there is no NVIDIA driver, it reports no GPU, or none is visible.
#[pyfunction]
pub fn _gpu_memory_bytes(py: Python<'_>) -> Result<u64, Error> {
    py.detach(|| {
        let count = count()?;
        let driver = ask(driver)?;
        let devices = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let order = std::env::var("CUDA_DEVICE_ORDER").ok();
        let seen = visible(&driver.gpus, devices.as_deref(), is_bus_order(order.as_deref()));
        let Some(first) = seen.first() else {
            return Err(Error::Unusable(format!(
                "CUDA_VISIBLE_DEVICES={} begins with none of the {count} GPUs that the driver reports. Set it to the \
                 number or the UUID of one (`nvidia-smi -L`), or unset it",
                devices.unwrap_or_default()
            )));
        };
        first.total_bytes.ok_or_else(|| {
            Error::Unusable(format!(
                "the driver does not say how much memory the {} has: name a preset instead of \"auto\"",
                first.name
            ))
        })
    })
}

/// What NVML says of the driver and of every GPU.
///
/// Raises:
///     RuntimeError: there is no NVIDIA driver that works; the message says what to do.
#[pyfunction]
pub fn _gpus(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let driver = py
        .detach(|| open().and_then(|nvml| driver(&nvml)))
        .map_err(|error| {
            let Fault { found, mend } = explain(&error);
            Error::Unusable(format!(
                "expected an NVIDIA driver with its management library (NVML) and found {found}. {mend}"
            ))
        })?;
    let gpus = PyList::empty(py);
    for gpu in &driver.gpus {
        let processes = PyList::empty(py);
        for (pid, used_bytes) in &gpu.processes {
            let process = PyDict::new(py);
            process.set_item("pid", pid)?;
            process.set_item("used_bytes", used_bytes)?;
            processes.append(process)?;
        }
        let entry = PyDict::new(py);
        entry.set_item("index", gpu.index)?;
        entry.set_item("name", &gpu.name)?;
        entry.set_item("uuid", &gpu.uuid)?;
        entry.set_item("total_bytes", gpu.total_bytes)?;
        entry.set_item("free_bytes", gpu.free_bytes)?;
        entry.set_item("processes", processes)?;
        gpus.append(entry)?;
    }
    let said = PyDict::new(py);
    said.set_item("driver", driver.version)?;
    said.set_item("gpus", gpus)?;
    Ok(said)
}

/// Opens NVML, asks, and shuts it down again.
fn ask<T>(question: impl FnOnce(&Nvml) -> Result<T, NvmlError>) -> Result<T, Error> {
    open()
        .and_then(|nvml| question(&nvml))
        .map_err(|error| explain(&error).into())
}

fn open() -> Result<Nvml, NvmlError> {
    let opened = Nvml::init();
    // The driver installs `libnvidia-ml.so.1`; the name without a number comes with its development files.
    if cfg!(target_os = "linux") && matches!(opened, Err(NvmlError::LibloadingError(_))) {
        return Nvml::builder()
            .lib_path("libnvidia-ml.so".as_ref())
            .init()
            .or(opened);
    }
    opened
}

fn explain(error: &NvmlError) -> Fault {
    const CONTAINER: &str = "a container gets it when started with `--gpus all`";
    match error {
        NvmlError::LibloadingError(error) => fault(
            &format!("no such library ({error})"),
            &format!("Install the NVIDIA driver and see that `nvidia-smi` works ({CONTAINER})"),
        ),
        NvmlError::FailedToLoadSymbol(symbol) => fault(
            &format!("a library that is too old, or not NVML ({symbol})"),
            "Update the NVIDIA driver",
        ),
        NvmlError::DriverNotLoaded => fault(
            "the library without a loaded driver",
            &format!(
                "See what `nvidia-smi` says and load the driver, by a reboot if need be ({CONTAINER})"
            ),
        ),
        NvmlError::LibRmVersionMismatch => fault(
            "a library and a loaded driver of different versions",
            "Reboot after a driver update, and restart containers that were running during it",
        ),
        NvmlError::NoPermission => fault(
            "a driver that this user has no permission for",
            "See who may read and write `/dev/nvidia*`",
        ),
        NvmlError::GpuLost => fault(
            "that GPU 0 is lost: it fell off the bus",
            "See what `nvidia-smi` says, and reboot",
        ),
        NvmlError::ResetRequired => fault(
            "that GPU 0 needs a reset",
            "See what `nvidia-smi` says, and reboot",
        ),
        error => fault(
            &format!("this error: {error}"),
            "See what `nvidia-smi` says",
        ),
    }
}

fn fault(found: &str, mend: &str) -> Fault {
    Fault {
        found: found.to_owned(),
        mend: mend.to_owned(),
    }
}

impl From<Fault> for Error {
    fn from(Fault { found, mend }: Fault) -> Self {
        Self::Unusable(format!(
            "GPUMonitor expected an NVIDIA driver with its management library (NVML) and found {found}. \
             {mend}, or do without GPUMonitor: training does not need it."
        ))
    }
}

const DOC: &str = "\
The GPUs of this machine, through NVIDIA's management library (NVML).

`gpu_count` is their number and `gpu_name` the label of GPU 0, both as they were at construction.

Raises:
    RuntimeError: there is no NVIDIA driver, or it reports no GPU; the message says what to do.";

#[pyfunction(name = "__init__")]
fn initialise(slf: &Bound<'_, PyAny>) -> PyResult<()> {
    slf.setattr("gpu_count", slf.py().detach(count)?)?;
    slf.setattr("gpu_name", slf.call_method0("get_gpu_name")?)
}

/// The label of GPU 0: one of those in `GPU`.
///
/// Raises:
///     RuntimeError: there is no NVIDIA driver, or it reports no GPU.
#[pyfunction]
fn get_gpu_name(slf: &Bound<'_, PyAny>) -> PyResult<&'static str> {
    Ok(slf.py().detach(first_label)?)
}

/// The class `GPUMonitor`.
///
/// # Errors
/// What Python raises.
pub fn class(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static CLASS: PyOnceLock<PlainClass> = PyOnceLock::new();
    let class = CLASS.get_or_try_init(py, || {
        let methods = [
            wrap_pyfunction!(initialise, py)?,
            wrap_pyfunction!(get_gpu_name, py)?,
        ];
        PlainClass::new(py, "GPUMonitor", DOC, &methods)
    })?;
    Ok(class.class(py))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nvml_gives_have_their_label() {
        let cases = [
            ("NVIDIA GeForce RTX 4090", "RTX 4090"),
            ("NVIDIA GeForce RTX 4090 D", "RTX 4090"),
            ("NVIDIA GeForce RTX 4090 Laptop GPU", "RTX 4090"),
            ("NVIDIA GeForce RTX 5090", "RTX 5090"),
            ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
            ("NVIDIA A40", "A40"),
            ("NVIDIA A40-48Q", "A40"),
            ("NVIDIA H100 80GB HBM3", "H100"),
            ("NVIDIA H100 PCIe", "H100"),
            ("NVIDIA A100-SXM4-80GB", "A100"),
            ("NVIDIA A100-PCIE-40GB", "A100"),
            ("NVIDIA A100 80GB PCIe", "A100"),
            ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "A100"),
            ("NVIDIA B200", "B200"),
            ("NVIDIA H200", "H200"),
            ("NVIDIA H200 NVL", "H200"),
            ("NVIDIA RTX A4000", UNKNOWN),
            ("NVIDIA RTX A6000", UNKNOWN),
            ("Quadro RTX 6000", UNKNOWN),
            ("NVIDIA RTX 5000 Ada Generation", UNKNOWN),
            ("NVIDIA GeForce GT 40900", UNKNOWN),
            ("NVIDIA GH200 480GB", UNKNOWN),
            ("NVIDIA L40S", UNKNOWN),
            ("Ada 6000", UNKNOWN),
            ("", UNKNOWN),
        ];
        for (name, expected) in cases {
            assert_eq!(label(name), expected, "{name}");
        }
    }

    #[test]
    fn cuda_sees_what_is_named_up_to_a_word_that_names_nothing() {
        let gpu = |index: u32, gib: u64| Gpu {
            index,
            name: "NVIDIA H200".to_owned(),
            uuid: Some(format!("GPU-{index}abc-def")),
            compute_capability: None,
            total_bytes: Some(gib << 30),
            free_bytes: None,
            processes: Vec::new(),
        };
        let gpus = [gpu(0, 2), gpu(1, 24), gpu(2, 12)];
        for (devices, in_bus_order, expected) in [
            (None, true, vec![0, 1, 2]),
            (None, false, vec![1, 2, 0]),
            (Some("0,1,2"), true, vec![0, 1, 2]),
            (Some("0"), false, vec![1]),
            (Some("2, 0"), true, vec![2, 0]),
            (Some("GPU-1"), true, vec![1]),
            (Some("GPU-1abc-def,0"), true, vec![1, 0]),
            (Some("1,7,0"), true, vec![1]),
            (Some("-1"), true, vec![]),
            (Some(""), true, vec![]),
            (Some("NoDevFiles"), true, vec![]),
        ] {
            let seen: Vec<u32> = visible(&gpus, devices, in_bus_order)
                .iter()
                .map(|gpu| gpu.index)
                .collect();
            assert_eq!(seen, expected, "{devices:?} {in_bus_order}");
        }
    }

    #[test]
    fn an_error_says_what_was_expected_what_was_found_and_what_to_do() {
        for error in [
            NvmlError::DriverNotLoaded,
            NvmlError::GpuLost,
            NvmlError::NoPermission,
            NvmlError::Unknown,
        ] {
            let text = Error::from(explain(&error)).to_string();
            for part in [
                "expected an NVIDIA driver",
                "and found ",
                "training does not need it",
            ] {
                assert!(text.contains(part), "{error:?}: {text}");
            }
        }
    }
}
