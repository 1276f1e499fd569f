//! What memory and disk a run takes, about, and whether it is there.

use std::path::Path;

use safetensors::tensor::Metadata;

use super::{Check, Question, Settings, gibibytes, gigabytes};

/// The sizes of a transformer, from its file's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dit {
    pub parameters: u64,
    /// Of its blocks alone, which can be swapped out.
    pub block_parameters: u64,
    pub blocks: u64,
    pub width: u64,
    /// Of the feed-forward layers.
    pub inner_width: u64,
}

/// More than any model has: a header may say anything.
const LARGEST_SIDE: u64 = 1 << 20;

/// How many blocks there are, if this is the number of the last.
fn block_count(number: &str) -> u64 {
    let number: Option<u64> = number.parse().ok();
    number.map_or(0, |number| number.min(LARGEST_SIDE) + 1)
}

impl Dit {
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        let mut dit = Self::default();
        for name in metadata.offset_keys() {
            let Some(tensor) = metadata.info(&name) else {
                continue;
            };
            let parameters: u64 = tensor.shape.iter().map(|side| *side as u64).product();
            dit.parameters += parameters;
            let first = tensor.shape.first().map_or(0, |side| *side as u64);
            let first = first.min(LARGEST_SIDE);
            if let Some((block, rest)) = name
                .strip_prefix("layers.")
                .and_then(|rest| rest.split_once('.'))
            {
                dit.block_parameters += parameters;
                dit.blocks = dit.blocks.max(block_count(block));
                if rest == "feed_forward.w1.weight" {
                    dit.inner_width = first;
                }
            } else if name == "cap_embedder.1.weight" {
                dit.width = first;
            }
        }
        dit
    }

    /// Numbers in a LoRA of this rank: on query, key, value, output and three feed-forward matrices of each block.
    #[must_use]
    pub fn lora_parameters(&self, rank: u64) -> u64 {
        let attention = 4 * (self.width + self.width);
        let feed_forward = 3 * (self.width + self.inner_width);
        (self.blocks * (attention + feed_forward)).saturating_mul(rank)
    }
}

/// Memory of a GPU, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// What the weights alone take: certain.
    pub weights: u64,
    /// With what they work on: an estimate.
    pub total: u64,
}

/// CUDA's own, and what PyTorch's allocator holds back.
const CONTEXT_BYTES: u64 = 3 << 29;

/// The latents have an eighth of a photo's side, and the transformer takes them in pairs.
const PIXELS_A_TOKEN: u64 = 16 * 16;

/// The text that comes beside the photo's tokens.
const CAPTION_TOKENS: u64 = 512;

/// What a training takes. Of a block, its weights' results are kept for the way back; with gradient checkpointing those
/// of one block, and the input of each.
#[must_use]
pub fn training(dit: &Dit, settings: &Settings, pixels: u64, batch: u64) -> Need {
    let bytes_each = match (settings.fp8_base, settings.mixed_precision.as_str()) {
        (true, _) => 1,
        (false, "no") => 4,
        (false, _) => 2,
    };
    let swapped = settings.blocks_to_swap.min(dit.blocks);
    let swapped = (dit.block_parameters / dit.blocks.max(1)).saturating_mul(swapped);
    let weights = (dit.parameters - swapped.min(dit.parameters)).saturating_mul(bytes_each);
    let eight_bit = settings.optimizer_type.to_lowercase().ends_with("8bit");
    // In fp32: the number, its gradient, and the optimizer's two.
    let a_number = if eight_bit { 4 + 4 + 2 } else { 4 * 4 };
    let lora = dit
        .lora_parameters(settings.network_dim)
        .saturating_mul(a_number);
    let tokens = (pixels / PIXELS_A_TOKEN + CAPTION_TOKENS).saturating_mul(batch);
    let input = tokens.saturating_mul(dit.width * 2);
    let inside = tokens.saturating_mul((20 * dit.width + 6 * dit.inner_width) * 2);
    let activations = if settings.gradient_checkpointing {
        input.saturating_mul(dit.blocks).saturating_add(inside)
    } else {
        input.saturating_add(inside).saturating_mul(dit.blocks)
    };
    Need {
        weights,
        total: [lora, activations, CONTEXT_BYTES]
            .into_iter()
            .fold(weights, u64::saturating_add),
    }
}

/// What it takes to cache the text encoder's outputs.
#[must_use]
pub fn text_encoder(parameters: u64, settings: &Settings) -> Need {
    let weights = parameters.saturating_mul(if settings.fp8_llm { 1 } else { 2 });
    Need {
        weights,
        total: weights.saturating_add(2 * CONTEXT_BYTES),
    }
}

/// What it takes to cache the latents: the VAE in fp32, and four of its 128-channel pictures.
#[must_use]
pub fn vae(parameters: u64, pixels: u64, batch: u64) -> Need {
    let weights = parameters.saturating_mul(4);
    let pictures = pixels.saturating_mul(batch).saturating_mul(4 * 128 * 4);
    Need {
        weights,
        total: weights
            .saturating_add(pictures)
            .saturating_add(CONTEXT_BYTES),
    }
}

/// The numbers in a file.
#[must_use]
pub fn parameters(metadata: &Metadata) -> u64 {
    metadata
        .offset_keys()
        .iter()
        .filter_map(|name| metadata.info(name))
        .map(|tensor| {
            tensor
                .shape
                .iter()
                .map(|side| *side as u64)
                .product::<u64>()
        })
        .sum()
}

/// For two processes that have imported PyTorch and its like, and the data loader's workers.
const RAM_BESIDE_BYTES: u64 = 4 << 30;

/// `swapped_bytes` is what lies in RAM instead of on the GPU: swapped blocks, or all of a run without a GPU.
#[must_use]
pub fn ram(available_bytes: Option<u64>, limit_bytes: Option<u64>, swapped_bytes: u64) -> Check {
    let needed = RAM_BESIDE_BYTES.saturating_add(swapped_bytes);
    let question = Question::new("RAM", format!("about {} free", gibibytes(needed)));
    let limit = limit_bytes.map_or_else(String::new, |limit| {
        format!(" (the cgroup's limit is {})", gibibytes(limit))
    });
    match available_bytes {
        None => question.ok("this system does not say"),
        Some(free) if free < needed => question.warning(
            format!("{} free{limit}", gibibytes(free)),
            "end other programs, give the container more memory, or let the kernel kill a step for it",
        ),
        Some(free) => question.ok(format!("{} free{limit}", gibibytes(free))),
    }
}

/// What is written to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    Known(u64),
    About(u64),
}

/// Room for what is written to `folder`. Some network file systems say 0 for "unknown".
#[must_use]
pub fn disk(name: &str, folder: &Path, needed: Room, free_bytes: Option<u64>) -> Check {
    const MEND: &str = "make room, or choose a folder on another disk";
    let (Room::Known(bytes) | Room::About(bytes)) = needed;
    let question = Question::new(
        format!("disk of the {name}"),
        format!("about {} free", gigabytes(bytes)),
    );
    match free_bytes {
        None | Some(0) => question.ok(format!(
            "the file system of {} does not say",
            folder.display()
        )),
        Some(free) if free < bytes => {
            let found = format!("{} free at {}", gigabytes(free), folder.display());
            match needed {
                Room::Known(_) => question.error(found, MEND),
                Room::About(_) => question.warning(found, MEND),
            }
        }
        Some(free) => question.ok(format!("{} free", gigabytes(free))),
    }
}

/// What a training leaves in the output folder: the LoRA in fp32, those saved on the way, and the converted one.
#[must_use]
pub fn output_bytes(dit: &Dit, settings: &Settings, convert: bool) -> u64 {
    // Musubi Tuner writes fp32 since 0.3.2.
    let lora = dit.lora_parameters(settings.network_dim).saturating_mul(4);
    let saves = settings
        .save_every_n_steps
        .map_or(0, |steps| settings.max_train_steps / steps.max(1));
    // The converted form has query, key and value's matrices in one with zeros between.
    let files = saves.saturating_add(if convert { 3 } else { 1 });
    lora.saturating_mul(files).saturating_add(10_000_000)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    /// The real one.
    const Z_IMAGE: Dit = Dit {
        parameters: 6_154_908_736,
        block_parameters: 5_400_000_000,
        blocks: 30,
        width: 3840,
        inner_width: 10_240,
    };

    #[test]
    fn the_estimate_follows_the_options() {
        let base = Settings::default();
        let need = |settings: &Settings| training(&Z_IMAGE, settings, 1024 * 1024, 1);
        let usual = need(&base);
        assert_eq!(usual.weights, 2 * Z_IMAGE.parameters);
        // What is known of cards: 16 GB do not hold it without swapping, 24 GB do.
        assert!(
            usual.total > 15 << 30 && usual.total < 20 << 30,
            "{usual:?}"
        );
        let fp8 = Settings {
            fp8_base: true,
            ..base.clone()
        };
        assert_eq!(need(&fp8).weights, Z_IMAGE.parameters);
        let swapping = Settings {
            blocks_to_swap: 28,
            ..base.clone()
        };
        assert_eq!(
            need(&swapping).weights,
            2 * (Z_IMAGE.parameters - 28 * 180_000_000)
        );
        let whole = Settings {
            mixed_precision: "no".to_owned(),
            ..base.clone()
        };
        assert_eq!(need(&whole).weights, 4 * Z_IMAGE.parameters);
        let kept = Settings {
            gradient_checkpointing: false,
            ..base.clone()
        };
        assert!(need(&kept).total > usual.total + (20 << 30));
        let larger = Settings {
            network_dim: 128,
            ..base.clone()
        };
        assert!(need(&larger).total > usual.total);
        let plain = Settings {
            optimizer_type: "AdamW".to_owned(),
            ..base.clone()
        };
        assert!(need(&plain).total > usual.total);
        assert!(training(&Z_IMAGE, &base, 1024 * 1024, 4).total > usual.total);
        assert!(training(&Z_IMAGE, &base, 512 * 512, 1).total < usual.total);
        // Not a panic, whatever the numbers.
        let mad = Settings {
            blocks_to_swap: u64::MAX,
            network_dim: u64::MAX >> 40,
            ..base
        };
        let _ = training(&Z_IMAGE, &mad, u64::MAX >> 8, u64::MAX);
        let _ = training(&Dit::default(), &mad, 0, 0);
    }

    #[test]
    fn a_header_that_says_nonsense_is_no_panic() {
        let largest = u64::MAX / 2;
        let header = format!(
            "{{\"cap_embedder.1.weight\":{{\"dtype\":\"U8\",\"shape\":[{largest},0],\"data_offsets\":[0,0]}},\
             \"layers.{}.feed_forward.w1.weight\":{{\"dtype\":\"U8\",\"shape\":[{largest},0],\"data_offsets\":[0,0]}}}}",
            u64::MAX
        );
        let dit = Dit::of(&serde_json::from_str(&header).unwrap());
        let settings = Settings {
            network_dim: u64::MAX,
            ..Settings::default()
        };
        assert!(training(&dit, &settings, u64::MAX, u64::MAX).total > 0);
        assert!(output_bytes(&dit, &settings, true) > 0);
    }

    #[test]
    fn a_lora_of_the_real_model_has_the_size_that_is_known() {
        // 210 modules; 140 MB in fp32.
        let bytes = 4 * Z_IMAGE.lora_parameters(16);
        assert!((135_000_000..145_000_000).contains(&bytes), "{bytes}");
        let often = Settings {
            save_every_n_steps: Some(100),
            ..Settings::default()
        };
        let once = output_bytes(&Z_IMAGE, &Settings::default(), false);
        assert!(output_bytes(&Z_IMAGE, &often, false) > 20 * once - 200_000_000);
        assert!(output_bytes(&Z_IMAGE, &Settings::default(), true) > once);
    }

    #[test]
    fn what_is_short_is_told_with_both_numbers() {
        for (check, verdict) in [
            (ram(Some(8 << 30), None, 0), Verdict::Ok),
            (ram(Some(3 << 30), Some(4 << 30), 0), Verdict::Warning),
            (ram(Some(8 << 30), None, 12 << 30), Verdict::Warning),
            (ram(None, None, 0), Verdict::Ok),
            (
                disk(
                    "training folder",
                    Path::new("/o"),
                    Room::About(500),
                    Some(499),
                ),
                Verdict::Warning,
            ),
            (
                disk(
                    "output folder",
                    Path::new("/o"),
                    Room::Known(500),
                    Some(499),
                ),
                Verdict::Error,
            ),
            (
                disk(
                    "output folder",
                    Path::new("/o"),
                    Room::Known(500),
                    Some(500),
                ),
                Verdict::Ok,
            ),
            (
                disk("output folder", Path::new("/o"), Room::Known(500), Some(0)),
                Verdict::Ok,
            ),
            (
                disk("output folder", Path::new("/o"), Room::Known(500), None),
                Verdict::Ok,
            ),
        ] {
            assert_eq!(check.verdict, verdict, "{check:?}");
        }
        let short = ram(Some(3 << 30), Some(4 << 30), 0);
        assert!(
            short.found.contains("3.0 GiB") && short.found.contains("limit is 4.0 GiB"),
            "{short:?}"
        );
    }
}
