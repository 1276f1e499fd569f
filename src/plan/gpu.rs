//! The GPU: there, large enough, free; and whether one process will be started, or several.

use super::memory::Need;
use super::versions::Release;
use super::{Check, Question, Settings, gibibytes};
use crate::gpu::{self, Driver, Fault, Gpu};

/// The oldest drivers that PyTorch's builds run with, by the CUDA that they are for.
const DRIVERS: &[(&str, &str)] = &[
    ("11", "450.80.02"),
    ("12", "525.60.13"),
    ("13", "580.65.06"),
];

/// The oldest CUDA with code for a generation of GPUs, by its compute capability: Blackwell, Hopper.
const GENERATIONS: &[(i32, &str)] = &[(10, "12.8"), (9, "11.8")];

/// What NVML says, against what the steps need.
#[derive(Debug)]
pub struct Facts<'a> {
    pub driver: &'a Result<Option<Driver>, Fault>,
    pub visible_devices: Option<&'a str>,
    pub device_order: Option<&'a str>,
    /// Of the step that takes most, and its name; `None` where the weights do not say.
    pub need: Option<(&'a str, Need)>,
    /// "12.8", of the PyTorch that is installed, where it is known.
    pub cuda: Option<&'a str>,
    pub settings: &'a Settings,
}

/// All checks of the GPU.
#[must_use]
pub fn check(facts: &Facts<'_>) -> Vec<Check> {
    let question = Question::new("GPU", "an NVIDIA GPU that CUDA sees");
    let driver = match facts.driver {
        Ok(Some(driver)) => driver,
        Ok(None) => {
            return vec![question.warning(
                "no NVIDIA driver on this machine: all steps would run on the CPU",
                "plan again on the machine that trains; in a container, start it with `--gpus all`",
            )];
        }
        Err(Fault { found, mend }) => return vec![question.error(found, mend)],
    };
    // The launcher sets the variable by this.
    let devices = match facts.settings.gpu_ids.as_deref() {
        Some("all") | None => facts.visible_devices,
        Some(ids) => Some(ids),
    };
    if devices.is_some_and(|devices| devices.trim_start().starts_with("MIG-")) {
        return vec![question.ok("a part of one (MIG), whose memory is not looked up")];
    }
    let in_bus_order = gpu::is_bus_order(facts.device_order);
    let seen = gpu::visible(&driver.gpus, devices, in_bus_order);
    let Some(first) = seen.first().copied() else {
        let found = match devices {
            Some(devices) if !driver.gpus.is_empty() => format!(
                "none of the {} GPUs is visible with CUDA_VISIBLE_DEVICES={devices:?}",
                driver.gpus.len()
            ),
            _ => "a driver without any GPU".to_owned(),
        };
        let mend =
            "let CUDA_VISIBLE_DEVICES name one by its number, such as 0; see `nvidia-smi -L`";
        return vec![question.error(found, mend)];
    };
    let mut checks = vec![question.ok(described(first))];
    checks.extend(
        driver
            .version
            .as_deref()
            .map(|version| driver_check(version, facts.cuda)),
    );
    checks.extend(generation(first, facts.cuda));
    checks.extend(memory(first, facts.need));
    checks.push(others(first));
    checks.push(processes(&seen, facts.settings));
    checks
}

fn described(gpu: &Gpu) -> String {
    let total = gpu.total_bytes.map_or_else(
        || "memory not known".to_owned(),
        |bytes| format!("{} of memory", gibibytes(bytes)),
    );
    format!("{} (GPU {}, {total})", gpu.name, gpu.index)
}

fn driver_check(version: &str, cuda: Option<&str>) -> Check {
    let least = cuda.and_then(|cuda| {
        let major = cuda.split('.').next().unwrap_or(cuda);
        DRIVERS.iter().find(|(of, _)| *of == major)
    });
    let Some((_, least)) = least else {
        return Question::new("GPU driver", "one for the installed PyTorch").ok(version);
    };
    let cuda = cuda.unwrap_or_default();
    let question = Question::new(
        "GPU driver",
        format!("{least} or newer, for a PyTorch of CUDA {cuda}"),
    );
    if Release::parse(version) < Release::parse(least) {
        question.error(
            version,
            "update the NVIDIA driver, or install a PyTorch for an older CUDA",
        )
    } else {
        question.ok(version)
    }
}

/// A PyTorch for a CUDA that is older than the GPU has no code for it.
fn generation(gpu: &Gpu, cuda: Option<&str>) -> Option<Check> {
    let ((major, minor), cuda) = (gpu.compute_capability?, cuda?);
    let (_, least) = GENERATIONS.iter().find(|(from, _)| major >= *from)?;
    let question = Question::new(
        "PyTorch for this GPU",
        format!("CUDA {least} or newer, for compute capability {major}.{minor}"),
    );
    Some(if Release::parse(cuda) < Release::parse(least) {
        question.error(
            format!("CUDA {cuda}, which has no code for the {}", gpu.name),
            format!("install a PyTorch for CUDA {least} or newer (see pytorch.org)"),
        )
    } else {
        question.ok(format!("CUDA {cuda}"))
    })
}

/// The weights are certain to need their size, what comes beside them is an estimate.
fn memory(gpu: &Gpu, need: Option<(&str, Need)>) -> Option<Check> {
    const MEND: &str = "use TrainingOptions with fp8_base (and fp8_scaled) or blocks_to_swap, a lower resolution or batch \
                        size in the TOML, or another GPU";
    let (step, need) = need?;
    let question = Question::new(
        "GPU memory",
        format!(
            "about {} free, for the {step} ({} of it weights)",
            gibibytes(need.total),
            gibibytes(need.weights)
        ),
    );
    let Some(free) = gpu.free_bytes else {
        return Some(question.ok("the driver does not say"));
    };
    let total = gpu.total_bytes.unwrap_or(free);
    let found = format!("{} of {} free", gibibytes(free), gibibytes(total));
    Some(if need.weights > total || need.weights > free {
        let mend = if need.weights > total {
            MEND
        } else {
            "end what else is on this GPU, or use another one"
        };
        question.error(found, mend)
    } else if need.total > total {
        question.warning(found, MEND)
    } else if need.total > free {
        question.warning(found, "end what else is on this GPU, or use another one")
    } else {
        question.ok(found)
    })
}

fn others(gpu: &Gpu) -> Check {
    let question = Question::new("others on the GPU", "no other process");
    if gpu.processes.is_empty() {
        return question.ok("none");
    }
    let list: Vec<String> = gpu
        .processes
        .iter()
        .map(|(pid, bytes)| match bytes {
            Some(bytes) => format!("{pid} ({})", gibibytes(*bytes)),
            None => pid.to_string(),
        })
        .collect();
    question.warning(
        format!("processes {}", list.join(", ")),
        "end them if they are left over (`kill PID`); this process itself counts if it has used the GPU",
    )
}

/// Several visible GPUs start as many processes, where nothing says how many it shall be.
fn processes(seen: &[&Gpu], settings: &Settings) -> Check {
    let question = Question::new(
        "visible GPUs",
        "one, or LaunchOptions that say how many processes",
    );
    if seen.len() < 2 {
        return question.ok("1");
    }
    let found = format!("{}", seen.len());
    if let Some(processes) = settings.num_processes {
        return question.ok(format!("{found}, num_processes={processes}"));
    }
    if settings.config_file.is_some() {
        return question.ok(format!("{found}, and a launcher's config_file"));
    }
    question.warning(
        format!("{found}: accelerate starts a process on each by itself"),
        "set CUDA_VISIBLE_DEVICES to one of them, or pass LaunchOptions(num_processes=...)",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    const GIB: u64 = 1 << 30;

    fn card(index: u32, total: u64, free: u64) -> Gpu {
        Gpu {
            index,
            name: "NVIDIA GeForce RTX 4090".to_owned(),
            uuid: Some(format!("GPU-{index}")),
            compute_capability: Some((8, 9)),
            total_bytes: Some(total * GIB),
            free_bytes: Some(free * GIB),
            processes: Vec::new(),
        }
    }

    type Found = Result<Option<Driver>, Fault>;

    fn driver(gpus: Vec<Gpu>) -> Driver {
        Driver {
            version: Some("550.54.14".to_owned()),
            gpus,
        }
    }

    fn need(weights: u64, total: u64) -> Need {
        Need {
            weights: weights * GIB,
            total: total * GIB,
        }
    }

    fn verdict_of(facts: &Facts<'_>, name: &str) -> Option<Verdict> {
        let checks = check(facts);
        let found = checks.iter().find(|check| check.name == name);
        found.map(|check| check.verdict)
    }

    fn facts<'a>(driver: &'a Found, settings: &'a Settings) -> Facts<'a> {
        Facts {
            driver,
            visible_devices: None,
            device_order: Some("PCI_BUS_ID"),
            need: None,
            cuda: None,
            settings,
        }
    }

    #[test]
    fn a_gpu_is_there_and_seen_or_not() {
        let settings = Settings::default();
        let fault = Fault {
            found: "x".into(),
            mend: "y".into(),
        };
        let one = Ok(Some(driver(vec![card(0, 24, 24)])));
        for (driver, devices, expected) in [
            (Ok(None), None, Verdict::Warning),
            (Err(fault), None, Verdict::Error),
            (Ok(Some(driver(vec![]))), None, Verdict::Error),
            (one.clone(), Some(""), Verdict::Error),
            (one.clone(), Some("1"), Verdict::Error),
            (one.clone(), Some("MIG-5f"), Verdict::Ok),
            (one, Some("0"), Verdict::Ok),
        ] {
            let facts = Facts {
                visible_devices: devices,
                ..facts(&driver, &settings)
            };
            assert_eq!(verdict_of(&facts, "GPU"), Some(expected), "{driver:?}");
        }
    }

    #[test]
    fn memory_that_weights_need_is_an_error_and_what_is_estimated_a_warning() {
        let settings = Settings::default();
        for (total, free, expected) in [
            (24, 24, Verdict::Ok),
            (16, 16, Verdict::Warning),
            (24, 15, Verdict::Warning),
            (24, 8, Verdict::Error),
            (8, 8, Verdict::Error),
        ] {
            let driver = Ok(Some(driver(vec![card(0, total, free)])));
            let facts = Facts {
                need: Some(("training", need(12, 17))),
                ..facts(&driver, &settings)
            };
            let verdict = verdict_of(&facts, "GPU memory");
            assert_eq!(verdict, Some(expected), "{free} of {total}");
        }
    }

    #[test]
    fn others_on_the_gpu_and_an_old_driver_are_told() {
        let settings = Settings::default();
        let busy = Gpu {
            processes: vec![(4711, Some(9 * GIB)), (4712, None)],
            ..card(0, 24, 15)
        };
        let busy = Ok(Some(driver(vec![busy])));
        let checks = check(&facts(&busy, &settings));
        let others = checks
            .iter()
            .find(|check| check.name == "others on the GPU");
        let others = others.unwrap();
        assert_eq!(others.verdict, Verdict::Warning);
        assert_eq!(others.found, "processes 4711 (9.0 GiB), 4712");
        for (cuda, expected) in [
            (Some("12.8"), Verdict::Ok),
            (Some("13.0"), Verdict::Error),
            (Some("99.0"), Verdict::Ok),
            (None, Verdict::Ok),
        ] {
            let facts = Facts {
                cuda,
                ..facts(&busy, &settings)
            };
            let verdict = verdict_of(&facts, "GPU driver");
            assert_eq!(verdict, Some(expected), "{cuda:?}");
        }
    }

    #[test]
    fn a_gpu_that_is_newer_than_its_pytorch_is_an_error() {
        let settings = Settings::default();
        for (capability, cuda, expected) in [
            (Some((12, 0)), Some("12.4"), Some(Verdict::Error)),
            (Some((12, 0)), Some("12.8"), Some(Verdict::Ok)),
            (Some((10, 0)), Some("13.0"), Some(Verdict::Ok)),
            (Some((9, 0)), Some("11.7"), Some(Verdict::Error)),
            (Some((8, 9)), Some("11.7"), None),
            (Some((12, 0)), None, None),
            (None, Some("12.4"), None),
        ] {
            let gpu = Gpu {
                compute_capability: capability,
                ..card(0, 24, 24)
            };
            let driver = Ok(Some(driver(vec![gpu])));
            let facts = Facts {
                cuda,
                ..facts(&driver, &settings)
            };
            let verdict = verdict_of(&facts, "PyTorch for this GPU");
            assert_eq!(verdict, expected, "{capability:?} {cuda:?}");
        }
    }

    #[test]
    fn several_gpus_are_warned_of_unless_it_is_said_what_to_do_with_them() {
        let two = Ok(Some(driver(vec![card(0, 24, 24), card(1, 24, 24)])));
        let usual = Settings::default();
        let verdict = |facts: &Facts<'_>| verdict_of(facts, "visible GPUs");
        assert_eq!(verdict(&facts(&two, &usual)), Some(Verdict::Warning));
        let hidden = Facts {
            visible_devices: Some("1"),
            ..facts(&two, &usual)
        };
        assert_eq!(verdict(&hidden), Some(Verdict::Ok));
        let chosen = Settings {
            gpu_ids: Some("1".to_owned()),
            ..Settings::default()
        };
        let checks = check(&facts(&two, &chosen));
        assert!(checks[0].found.contains("GPU 1"), "{checks:?}");
        let both = Settings {
            num_processes: Some(2),
            ..Settings::default()
        };
        assert_eq!(verdict(&facts(&two, &both)), Some(Verdict::Ok));
    }
}
