//! What is known of failures: how each is told, and its mend. Every row was seen with the real Musubi Tuner
//! (tests/recorded/failures, made anew by real/provoke.py), but for those of the GPU: their texts are torch's own.

use super::traceback::Raised;
use super::{Exit, Listener, NAN_MEND, shown};

/// A failure that is known.
pub struct Known {
    pub is_told_by: fn(&Raised) -> bool,
    pub what: &'static str,
    detail: fn(&Raised, &Listener) -> Option<String>,
    mend: &'static str,
}

/// The first that is told by any exception of the chain holds.
pub const KNOWN: &[Known] = &[
    Known {
        is_told_by: |raised| {
            raised.says(&[
                "CUDA out of memory",
                "CUDA error: out of memory",
                "CUDA driver error: out of memory",
                "CUBLAS_STATUS_ALLOC_FAILED",
                "CUDNN_STATUS_ALLOC_FAILED",
                "HIP out of memory",
                "OutOfMemoryError: ",
            ])
        },
        what: "out of GPU memory",
        detail: |raised, _| gpu_memory(&raised.text),
        mend: "Free the GPU (nvidia-smi shows what holds it), lower `resolution` or `batch_size` in the dataset TOML, or \
               take a GPU with more memory",
    },
    Known {
        is_told_by: |raised| {
            raised.says(&[
                "out of shared memory",
                "insufficient shared memory",
                "killed by signal: Bus error",
            ]) || raised.says(&["No space left on device"])
                && (raised.frames.multiprocessing || raised.says(&["</torch_"]))
        },
        what: "out of shared memory (/dev/shm), through which the data loader's workers hand over their batches",
        detail: |_, _| None,
        mend: "Give the container more of it (docker run --shm-size=8g, in Kubernetes an emptyDir with medium: Memory on \
               /dev/shm), or remount it larger",
    },
    Known {
        is_told_by: |raised| {
            raised.says(&[
                "No space left on device",
                "StorageFull",
                "Disk quota exceeded",
            ]) || raised.says(&["OSError: "])
                && raised.says(&[" requested and "])
                && raised.text.ends_with(" written")
        },
        what: "the disk is full",
        detail: |raised, listener| quoted_path(&raised.text).or_else(|| listener.saving.clone()),
        mend: "Make room (df -h and df -i on the folder that was written to, the output folder or the dataset's cache), \
               and run again: a file that was being written is cut",
    },
    Known {
        is_told_by: |raised| raised.says(&["Read-only file system", "Permission denied"]),
        what: "a file or a folder cannot be written or read",
        detail: exception,
        mend: "Give the user who runs this the right to it, or name another path",
    },
    Known {
        is_told_by: |raised| {
            raised.says(&[
                "can't allocate memory",
                "Unable to allocate ",
                "Cannot allocate memory",
                "unable to mmap",
                "failed to map segment from shared object",
            ]) || raised.text.starts_with("MemoryError") && !raised.frames.safetensors
        },
        what: "out of main memory",
        detail: exception,
        mend: MORE_MEMORY,
    },
    Known {
        is_told_by: |raised| {
            raised.says(&[
                "requires the protobuf library",
                "LocalEntryNotFoundError",
                "OfflineModeIsEnabled",
            ]) || raised.says(&["We couldn't connect to '", "Can't load tokenizer for "])
                || raised.says(&["not NoneType"]) && raised.frames.tokenizer
        },
        what: "cannot reach the model hub for the tokenizer, and the cache has it not",
        detail: |_, listener| listener.loading.clone(),
        mend: "Let this machine reach https://huggingface.co (HTTPS_PROXY; HF_ENDPOINT for a mirror; HF_HUB_OFFLINE \
               unset), or fetch it once where there is a network (hf download REPOSITORY --include 'tokenizer/*') and \
               bring that cache along ($HF_HOME). Installing protobuf is no help",
    },
    Known {
        is_told_by: |raised| raised.says(&["No module named 'musubi_tuner"]),
        what: "Musubi Tuner's own package is not found",
        detail: |_, _| None,
        mend: "Take a whole clone (git clone https://github.com/kohya-ss/musubi-tuner), with its folder src/musubi_tuner",
    },
    Known {
        is_told_by: |raised| raised.says(&["No module named '"]),
        what: "a Python module is missing",
        detail: |raised, _| missing_module(&raised.text),
        mend: "Install it into the Python that runs this (python -m pip install …), best with all that Musubi Tuner needs: \
               python -m pip install -e /path/to/musubi-tuner",
    },
    Known {
        is_told_by: |raised| raised.says(&["cannot open shared object file"]),
        what: "a shared library is missing",
        detail: exception,
        mend: "Install anew what brings it (torch for CUDA's libraries, the system's packages for others: for libGL.so.1, \
               apt install libgl1, or use opencv-python-headless)",
    },
    Known {
        is_told_by: |raised| {
            is_damaged(raised) && raised.frames.dataset
                // A worker of the data loader cannot hand over what it stumbled over.
                || raised.says(&["Can't pickle <class 'safetensors_rust.SafetensorError'>"])
        },
        what: "a file of the dataset's cache is damaged",
        detail: exception,
        mend: "Empty the cache folder (`cache_directory` in the dataset TOML) and run again with use_pre_cache=True",
    },
    Known {
        is_told_by: is_damaged,
        what: "a file of weights is damaged: cut, empty, or something else under its name, such as a web page",
        detail: |raised, listener| {
            listener
                .loading
                .clone()
                .or_else(|| exception(raised, listener))
        },
        mend: "Compare its size with the download page's, and download it again",
    },
    Known {
        is_told_by: |raised| {
            raised.says(&[
                "in loading state_dict for ",
                "KeyError: 'model.embed_tokens.weight'",
            ])
        },
        what: "a file of weights is of another model",
        detail: |raised, listener| {
            listener
                .loading
                .clone()
                .or_else(|| exception(raised, listener))
        },
        mend: "Put the file that the model needs there: ae, text_encoder, DiT and base_weights of `Models` each name one",
    },
    Known {
        is_told_by: |raised| raised.says(&["voluptuous.error.", "toml.decoder.TomlDecodeError: "]),
        what: "Musubi Tuner refuses the dataset TOML",
        detail: exception,
        mend: "Mend that key or line in `dataset_toml_content`",
    },
    Known {
        is_told_by: |raised| raised.says(&["No training items found in the dataset"]),
        what: "no photo has both its caches, of latents and of its caption",
        detail: |_, _| None,
        mend: "Run with use_pre_cache=True, with the same `resolution`, `image_directory` and `cache_directory` as now",
    },
    Known {
        is_told_by: |raised| {
            raised.says(&[
                "UnidentifiedImageError",
                "image file is truncated",
                "could not create decoder object",
                "broken data stream",
                "Truncated File Read",
                "unrecognized data stream contents",
            ])
        },
        what: "a photo cannot be read",
        detail: exception,
        mend: "Take it out of the zip, or save it anew",
    },
    Known {
        is_told_by: |raised| {
            raised.says(&[
                "Found no NVIDIA driver",
                "No CUDA GPUs are available",
                "Torch not compiled with CUDA enabled",
                "NVIDIA driver on your system is too old",
            ])
        },
        what: "no usable GPU",
        detail: exception,
        mend: "Start where nvidia-smi shows a GPU (docker run --gpus all), with a torch for its driver's CUDA version",
    },
    Known {
        is_told_by: |raised| {
            raised.says(&[
                "EADDRINUSE",
                "Address already in use",
                "another process is utilizing it",
            ])
        },
        what: "accelerate's port is in use",
        detail: exception,
        mend: "End the other training on this machine, which holds it, or wait for its end",
    },
    Known {
        is_told_by: |raised| raised.says(&["Too many open files"]),
        what: "too many open files",
        detail: |_, _| None,
        mend: "Raise the limit (ulimit -n 65536) in the shell that starts this",
    },
    Known {
        is_told_by: |raised| raised.says(&["FileNotFoundError: ", "file not found / "]),
        what: "a file is missing, or the folder that it belongs in cannot be made",
        detail: exception,
        mend: "Put it there, or name another path",
    },
];

const MORE_MEMORY: &str = "Give the machine or the container more memory (docker run --memory, in Kubernetes \
    resources.limits.memory), end what else runs in it, or lower `resolution` or `batch_size` in the dataset TOML";

/// The kernel kills one of the data loader's workers rather than the training.
const WORKER_KILLED: &str = "is killed by signal: Killed";

impl Known {
    pub fn reason(&self, raised: &Raised, listener: &Listener) -> String {
        told(
            self.what,
            (self.detail)(raised, listener).as_deref(),
            self.mend,
        )
    }
}

fn told(what: &str, detail: Option<&str>, mend: &str) -> String {
    let detail = detail.map(|detail| format!(": {}", detail.trim_end_matches(['.', ' '])));
    format!("{what}{}. {mend}.", detail.unwrap_or_default())
}

/// Of a step that was killed, or whose data loader was.
pub fn of_kill(returncode: i32, chain: &[Raised], exit: &Exit) -> Option<String> {
    if returncode == -libc::SIGKILL {
        return Some(killed("the step", exit));
    }
    let worker = chain.iter().any(|raised| raised.says(&[WORKER_KILLED]));
    worker.then(|| killed("a worker of the step's data loader", exit))
}

fn killed(who: &str, exit: &Exit) -> String {
    let limit = exit.memory_limit_bytes.map(binary_size);
    let of_limit = limit.map(|limit| format!(", whose memory limit is {limit}"));
    match exit.oom_kills {
        Some(kills @ 1..) => {
            let processes = if kills == 1 {
                "1 process"
            } else {
                &format!("{kills} processes")
            };
            let of_limit = of_limit.unwrap_or_default();
            told(
                &format!("{who} was killed by the kernel's OOM killer, for lack of memory"),
                Some(&format!("{processes} of this cgroup{of_limit}")),
                MORE_MEMORY,
            )
        }
        Some(0) => told(
            &format!("{who} was killed (SIGKILL)"),
            Some(
                "by somebody, or by the kernel as the machine ran out of memory; this cgroup did not",
            ),
            "Look into dmesg and into what runs this container or job, and see that there is memory left (free -h)",
        ),
        None => told(
            &format!(
                "{who} was killed (SIGKILL), most often by the kernel's OOM killer, for lack of memory"
            ),
            Some("dmesg or the container's status, OOMKilled, tells"),
            MORE_MEMORY,
        ),
    }
}

/// Of a step that another signal ended.
pub fn of_end(returncode: i32) -> Option<String> {
    let (signal, mend) = match -returncode {
        libc::SIGTERM => {
            return Some(told(
                "ended by SIGTERM",
                Some("whoever runs this container or job asked the step to end"),
                "Look there for the reason (a time limit, a pre-empted machine), and run again",
            ));
        }
        libc::SIGILL => (
            "SIGILL",
            "This machine's processor lacks instructions that a library was built for: use another machine, or a build \
             of torch and bitsandbytes for this one",
        ),
        libc::SIGBUS => (
            "SIGBUS",
            "Most often /dev/shm or the disk is full (df -h), or a file of weights was cut while it was read",
        ),
        libc::SIGSEGV => ("SIGSEGV", REINSTALL),
        libc::SIGABRT => ("SIGABRT", REINSTALL),
        libc::SIGFPE => ("SIGFPE", REINSTALL),
        _ => return None,
    };
    Some(told(
        &format!("the step crashed in a library ({signal})"),
        None,
        mend,
    ))
}

const REINSTALL: &str = "The lines before may say more. Install torch and bitsandbytes anew, in versions that Musubi Tuner \
    names and for this machine's GPU driver";

/// Of what a program said of its arguments, or Python of a program.
pub fn of_refusal(line: &str) -> String {
    if let Some(module) = missing_module(line) {
        return told(
            "a Python module is missing",
            Some(&module),
            "Install it into the Python that runs this: python -m pip install …",
        );
    }
    if line.contains("can't open file ") {
        return told(
            "a script is missing",
            Some(&shown(line)),
            "Take a whole clone of Musubi Tuner; v0.3.4 is the one that was tried",
        );
    }
    told(
        "a command line was refused",
        Some(&shown(after(line, ": error: ").unwrap_or(line))),
        "This Musubi Tuner or accelerate takes other options: a clone of v0.3.4, with the accelerate that it names, \
         takes them",
    )
}

/// Of a training whose loss was no number any more.
pub fn of_nan_loss((step, total): (u64, u64)) -> String {
    format!("the loss was NaN from step {step} of {total} on. {NAN_MEND}")
}

#[allow(clippy::unnecessary_wraps, reason = "one of the rows' details")]
fn exception(raised: &Raised, _: &Listener) -> Option<String> {
    Some(shown(&raised.text))
}

/// What the readers of safetensors files stumble over.
fn is_damaged(raised: &Raised) -> bool {
    raised.says(&[
        "HeaderTooLarge",
        "HeaderTooSmall",
        "InvalidHeader",
        "MetadataIncompleteBuffer",
    ]) || raised.frames.safetensors
        && raised.says(&[
            "unpack requires a buffer of ",
            "is invalid for input of size ",
            "must be divisible by ",
            "JSONDecodeError",
            "UnicodeDecodeError",
        ])
        // The first eight bytes of a file are its header's length.
        || raised.frames.safetensors && raised.text.starts_with("MemoryError")
}

/// `2.00 GiB more were wanted, GPU 0 has 23.64 GiB, of which 512.00 MiB are free`.
fn gpu_memory(text: &str) -> Option<String> {
    let wanted = after(text, "Tried to allocate ").and_then(amount)?;
    // Until torch 2.0: "(GPU 0; 23.65 GiB total capacity; 21.20 GiB already allocated; 1.00 GiB free; …".
    let gpu = after(text, "GPU ").and_then(|gpu| gpu.split([' ', ';']).next())?;
    let old = after(text, "; ").filter(|rest| rest.contains(" total capacity;"));
    let total = after(text, "total capacity of ").or(old).and_then(amount);
    let free = after(text, " of which ")
        .or_else(|| after(text, " already allocated; "))
        .and_then(amount);
    let (Some(total), Some(free)) = (total, free) else {
        return Some(format!("{wanted} more were wanted of GPU {gpu}"));
    };
    let other = after(text, "Process ").and_then(|other| {
        let (process, rest) = other.split_once(" has ")?;
        Some(format!(
            ", and {} are held by process {process}",
            amount(rest)?
        ))
    });
    Some(format!(
        "{wanted} more were wanted, GPU {gpu} has {total}, of which {free} are free{}",
        other.unwrap_or_default()
    ))
}

/// `2.00 GiB` at the beginning of a text.
fn amount(text: &str) -> Option<String> {
    let mut words = text.split([' ', ';']);
    let (number, unit) = (words.next()?, words.next()?);
    Some(format!(
        "{number} {}",
        unit.trim_end_matches(['.', ',', ')'])
    ))
}

/// The module, and the package it comes with where that has another name.
fn missing_module(text: &str) -> Option<String> {
    let name = after(text, "No module named ")?.trim_start_matches('\'');
    let name = name.split(['\'', ')']).next()?;
    let package = match name.split('.').next()? {
        "cv2" => "opencv-python-headless",
        "google" => "protobuf",
        "PIL" => "pillow",
        "yaml" => "pyyaml",
        _ => return Some(name.to_owned()),
    };
    Some(format!("{name} (of the package {package})"))
}

/// The path in `[Errno 28] No space left on device: '/output/lora.safetensors'`.
fn quoted_path(text: &str) -> Option<String> {
    let path = after(text, ": '")?.trim_end_matches('\'');
    Some(shown(path))
}

pub fn after<'a>(text: &'a str, sign: &str) -> Option<&'a str> {
    // Most texts do not contain it, which is found out several times faster than where to split.
    let (_, rest) = text.contains(sign).then(|| text.split_once(sign))??;
    Some(rest)
}

#[allow(clippy::cast_precision_loss, reason = "two decimals are shown")]
fn binary_size(bytes: u64) -> String {
    const GIB: u64 = 1 << 30;
    let (unit, name) = if bytes >= GIB {
        (GIB, "GiB")
    } else {
        (1 << 20, "MiB")
    };
    format!("{:.2} {name}", bytes as f64 / unit as f64)
}
