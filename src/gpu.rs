//! `GPUMonitor`: how many GPUs there are and what the first one is, from NVIDIA's management library (NVML).

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::error::Error;
use crate::plain_class::PlainClass;

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
        return Err(unusable(
            "a driver without any GPU",
            "Look for the GPU with `nvidia-smi -L` (a container sees it when started with `--gpus all`)",
        ));
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
        opened => opened.map_err(|error| explain(&error))?,
    };
    let free_bytes = |index| Ok(nvml.device_by_index(index)?.memory_info()?.free);
    nvml.device_count()
        .and_then(|count| (0..count).map(free_bytes).collect::<Result<Vec<u64>, _>>())
        .map(|free| free.into_iter().min())
        .map_err(|error| explain(&error))
}

/// A GPU, as far as the choice of one goes.
#[derive(Clone, Debug)]
struct Card {
    uuid: String,
    total_bytes: u64,
}

/// The memory of the GPU that a process of CUDA takes first: of what `CUDA_VISIBLE_DEVICES` lets it see, in bus order or
/// the fastest first, which is taken to be the one with the most memory. `None` where it sees none.
fn first_visible_bytes(
    mut cards: Vec<Card>,
    visible: Option<&str>,
    in_bus_order: bool,
) -> Option<u64> {
    if !in_bus_order {
        cards.sort_by_key(|card| std::cmp::Reverse(card.total_bytes));
    }
    let first = visible.map_or("0", |visible| visible.split(',').next().unwrap_or_default());
    let first = first.trim();
    let card = match first.parse::<usize>() {
        Ok(index) => cards.get(index),
        Err(_) if first.is_empty() => None,
        // The beginning of one is enough.
        Err(_) => cards.iter().find(|card| card.uuid.starts_with(first)),
    };
    card.map(|card| card.total_bytes)
}

/// All memory of the GPU that a training in this environment uses.
///
/// Raises:
///     RuntimeError: there is no NVIDIA driver, it reports no GPU, or none is visible.
#[pyfunction]
pub fn _gpu_memory_bytes(py: Python<'_>) -> Result<u64, Error> {
    py.detach(|| {
        let count = count()?;
        let cards = ask(|nvml| {
            let card = |index| {
                let device = nvml.device_by_index(index)?;
                Ok(Card {
                    uuid: device.uuid()?,
                    total_bytes: device.memory_info()?.total,
                })
            };
            (0..count).map(card).collect()
        })?;
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let in_bus_order = std::env::var("CUDA_DEVICE_ORDER").is_ok_and(|order| order == "PCI_BUS_ID");
        first_visible_bytes(cards, visible.as_deref(), in_bus_order).ok_or_else(|| {
            Error::Unusable(format!(
                "CUDA_VISIBLE_DEVICES={} begins with none of the {count} GPUs that the driver reports. Set it to the \
                 number or the UUID of one (`nvidia-smi -L`), or unset it",
                visible.unwrap_or_default()
            ))
        })
    })
}

/// Opens NVML, asks, and shuts it down again.
fn ask<T>(question: impl FnOnce(&Nvml) -> Result<T, NvmlError>) -> Result<T, Error> {
    open()
        .and_then(|nvml| question(&nvml))
        .map_err(|error| explain(&error))
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

fn explain(error: &NvmlError) -> Error {
    const CONTAINER: &str = "a container gets it when started with `--gpus all`";
    match error {
        NvmlError::LibloadingError(error) => unusable(
            &format!("no such library ({error})"),
            &format!("Install the NVIDIA driver and see that `nvidia-smi` works ({CONTAINER})"),
        ),
        NvmlError::FailedToLoadSymbol(symbol) => unusable(
            &format!("a library that is too old, or not NVML ({symbol})"),
            "Update the NVIDIA driver",
        ),
        NvmlError::DriverNotLoaded => unusable(
            "the library without a loaded driver",
            &format!(
                "See what `nvidia-smi` says and load the driver, by a reboot if need be ({CONTAINER})"
            ),
        ),
        NvmlError::LibRmVersionMismatch => unusable(
            "a library and a loaded driver of different versions",
            "Reboot after a driver update, and restart containers that were running during it",
        ),
        NvmlError::NoPermission => unusable(
            "a driver that this user has no permission for",
            "See who may read and write `/dev/nvidia*`",
        ),
        NvmlError::GpuLost => unusable(
            "that GPU 0 is lost: it fell off the bus",
            "See what `nvidia-smi` says, and reboot",
        ),
        NvmlError::ResetRequired => unusable(
            "that GPU 0 needs a reset",
            "See what `nvidia-smi` says, and reboot",
        ),
        error => unusable(
            &format!("this error: {error}"),
            "See what `nvidia-smi` says",
        ),
    }
}

fn unusable(found: &str, mend: &str) -> Error {
    Error::Unusable(format!(
        "GPUMonitor expected an NVIDIA driver with its management library (NVML) and found {found}. \
         {mend}, or do without GPUMonitor: training does not need it."
    ))
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
    fn the_gpu_that_is_used_is_the_first_visible_one() {
        let card = |uuid: &str, gib: u64| Card {
            uuid: uuid.to_owned(),
            total_bytes: gib,
        };
        let cards = vec![card("GPU-aa", 2), card("GPU-bb", 24), card("GPU-cc", 12)];
        for (visible, in_bus_order, expected) in [
            (None, true, Some(2)),
            (None, false, Some(24)),
            (Some("0"), true, Some(2)),
            (Some("2,1"), true, Some(12)),
            (Some(" 1 , 2"), false, Some(12)),
            (Some("GPU-b,0"), false, Some(24)),
            (Some("GPU-dd"), true, None),
            (Some("3"), true, None),
            (Some("-1"), true, None),
            (Some(""), true, None),
        ] {
            let found = first_visible_bytes(cards.clone(), visible, in_bus_order);
            assert_eq!(found, expected, "{visible:?} {in_bus_order}");
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
            let text = explain(&error).to_string();
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
