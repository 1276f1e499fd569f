//! Whether the two caching steps fit into memory together.

use std::fs;
use std::path::Path;

use crate::cgroup::{self, MemoryCgroup};
use crate::gpu;
use crate::weights::{self, Weights};

/// For two processes that have imported PyTorch and its like, and the photos that they prepare.
const RAM_BESIDE_WEIGHTS_BYTES: u64 = 4 << 30;

/// For two CUDA contexts, and what a VAE that encodes photos of 2048 x 2048 in fp32 takes beside its weights.
const GPU_BESIDE_WEIGHTS_BYTES: u64 = 8 << 30;

/// What is to be had of a kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    pub ram_bytes: Option<u64>,
    /// Of the GPU that has the least; `Ok(None)` without a GPU, `Err` where it does not say.
    pub gpu_bytes: Result<Option<u64>, ()>,
}

impl Free {
    #[must_use]
    pub fn now() -> Self {
        Self {
            ram_bytes: cgroup::available_bytes(MemoryCgroup::of_this_process().as_ref()),
            gpu_bytes: gpu::least_free_bytes().map_err(drop),
        }
    }
}

/// Whether there is room for both; why, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    AtOnce(String),
    OneByOne(String),
}

/// Decides by the weight files and what memory is free. Files that are no weights say nothing of what they will take.
#[must_use]
pub fn decide(vae: &Path, text_encoder: &Path, free: Free) -> Decision {
    let size_of = |path: &Path| match weights::inspect(path, weights::DOWNLOAD_AGAIN) {
        Ok(Weights::Whole(_)) => fs::metadata(path).ok().map(|file| file.len()),
        _ => None,
    };
    let (Some(vae_bytes), Some(text_encoder_bytes)) = (size_of(vae), size_of(text_encoder)) else {
        return Decision::OneByOne("it is not known what the weights take".to_owned());
    };
    // The VAE is loaded in fp32, whatever its file has.
    let weights_bytes = vae_bytes
        .saturating_mul(2)
        .saturating_add(text_encoder_bytes);
    let mut found = Vec::new();
    let mut short = Vec::new();
    let mut hold = |what: &str, beside_bytes: u64, free_bytes: Option<u64>| {
        let needed = weights_bytes.saturating_add(beside_bytes);
        match free_bytes {
            Some(free) => {
                let list = if free < needed {
                    &mut short
                } else {
                    &mut found
                };
                list.push(format!(
                    "{what} {} of {} MiB free",
                    needed >> 20,
                    free >> 20
                ));
            }
            None => short.push(format!("{what} that is not known")),
        }
    };
    let ram_beside = match free.gpu_bytes {
        Ok(None) => RAM_BESIDE_WEIGHTS_BYTES + GPU_BESIDE_WEIGHTS_BYTES,
        _ => RAM_BESIDE_WEIGHTS_BYTES,
    };
    hold("RAM", ram_beside, free.ram_bytes);
    match free.gpu_bytes {
        Ok(None) => {}
        Ok(gpu_bytes) => hold("GPU memory", GPU_BESIDE_WEIGHTS_BYTES, gpu_bytes),
        Err(()) => hold("GPU memory", GPU_BESIDE_WEIGHTS_BYTES, None),
    }
    if short.is_empty() {
        Decision::AtOnce(format!("they need {}", found.join(", ")))
    } else {
        Decision::OneByOne(format!("together they need {}", short.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights of so many bytes, almost.
    fn weights(folder: &Path, name: &str, bytes: u64) -> std::path::PathBuf {
        let path = folder.join(name);
        let header =
            format!(r#"{{"a":{{"dtype":"U8","shape":[{bytes}],"data_offsets":[0,{bytes}]}}}}"#);
        let length = header.len() as u64;
        fs::write(&path, [&length.to_le_bytes(), header.as_bytes()].concat()).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_len(8 + length + bytes).unwrap();
        path
    }

    #[test]
    fn both_run_at_once_where_all_memory_that_they_take_is_known_to_be_free() {
        const GIB: u64 = 1 << 30;
        let folder = tempfile::tempdir().unwrap();
        let vae = weights(folder.path(), "ae", GIB);
        let text_encoder = weights(folder.path(), "te", 8 * GIB);
        for (ram, gpu, at_once, part) in [
            // 2 x 1 + 8 GiB of weights, and what comes beside them.
            (
                Some(15 * GIB),
                Ok(Some(19 * GIB)),
                true,
                "GPU memory 18432 of 19456 MiB free",
            ),
            (
                Some(13 * GIB),
                Ok(Some(19 * GIB)),
                false,
                "RAM 14336 of 13312 MiB free",
            ),
            (
                Some(15 * GIB),
                Ok(Some(17 * GIB)),
                false,
                "GPU memory 18432 of 17408 MiB free",
            ),
            (None, Ok(Some(19 * GIB)), false, "RAM that is not known"),
            (
                Some(15 * GIB),
                Err(()),
                false,
                "GPU memory that is not known",
            ),
            // Without a GPU, RAM is what it would take of one.
            (
                Some(15 * GIB),
                Ok(None),
                false,
                "RAM 22528 of 15360 MiB free",
            ),
            (
                Some(23 * GIB),
                Ok(None),
                true,
                "RAM 22528 of 23552 MiB free",
            ),
        ] {
            let free = Free {
                ram_bytes: ram,
                gpu_bytes: gpu,
            };
            let decision = decide(&vae, &text_encoder, free);
            let (Decision::AtOnce(why) | Decision::OneByOne(why)) = &decision;
            assert_eq!(matches!(decision, Decision::AtOnce(_)), at_once, "{why}");
            assert!(why.contains(part), "{why}");
        }
        fs::write(&vae, b"fake").unwrap();
        let plenty = Free {
            ram_bytes: Some(1 << 50),
            gpu_bytes: Ok(Some(1 << 50)),
        };
        assert!(matches!(
            decide(&vae, &text_encoder, plenty),
            Decision::OneByOne(_)
        ));
    }
}
