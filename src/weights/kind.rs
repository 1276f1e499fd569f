//! Which model a weight file is of: by the names of its tensors, and by a shape where names do not decide.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;

use safetensors::tensor::Metadata;

use crate::error::Error;

/// What a run needs a weight file for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Vae,
    TextEncoder,
    Dit,
    Adapter,
}

impl Role {
    /// What the file must be.
    #[must_use]
    pub fn expected(self) -> &'static str {
        match self {
            Self::Vae => "the VAE of Z-Image (that of FLUX.1, 16 latent channels)",
            Self::TextEncoder => "the text encoder Qwen3-4B",
            Self::Dit => "the Z-Image transformer (DiT)",
            Self::Adapter => "a LoRA for Z-Image",
        }
    }

    /// The attribute of `Models` that names it.
    #[must_use]
    pub fn field(self) -> &'static str {
        match self {
            Self::Vae => "ae",
            Self::TextEncoder => "text_encoder",
            Self::Dit => "DiT",
            Self::Adapter => "base_weights",
        }
    }
}

/// What a file was recognised as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// "an SDXL UNet"
    pub name: Cow<'static, str>,
    /// What a run of Z-Image can use it for.
    pub role: Option<Role>,
}

impl Kind {
    fn of(name: impl Into<Cow<'static, str>>, role: Option<Role>) -> Self {
        Self {
            name: name.into(),
            role,
        }
    }
}

/// Models that a run cannot use, each by tensors that it alone has of those in the rows below it; `*` stands for the
/// rest of a name.
const OTHERS: &[(&[&str], &str)] = &[
    (
        &["input_blocks.0.0.weight", "label_emb.0.0.weight"],
        "an SDXL UNet",
    ),
    (
        &["input_blocks.0.0.weight"],
        "a Stable Diffusion 1.x or 2.x UNet",
    ),
    (
        &["down_blocks.0.resnets.0.conv1.weight", "add_embedding.*"],
        "an SDXL UNet",
    ),
    (
        &["down_blocks.0.resnets.0.conv1.weight", "time_embedding.*"],
        "a Stable Diffusion 1.x or 2.x UNet",
    ),
    (
        &["joint_blocks.0.*"],
        "a Stable Diffusion 3 transformer (DiT)",
    ),
    (
        &[
            "transformer_blocks.0.attn.add_k_proj.*",
            "pos_embed.pos_embed",
        ],
        "a Stable Diffusion 3 transformer (DiT)",
    ),
    (
        &["double_stream_modulation_img.*"],
        "a FLUX.2 transformer (DiT)",
    ),
    (
        &["distilled_guidance_layer.*"],
        "a Chroma transformer (DiT)",
    ),
    (
        &["double_blocks.0.*", "txt_in.individual_token_refiner.*"],
        "a HunyuanVideo transformer (DiT)",
    ),
    (&["double_blocks.0.*"], "a FLUX.1 transformer (DiT)"),
    (
        &["single_transformer_blocks.0.*"],
        "a FLUX transformer (DiT)",
    ),
    (
        &["transformer_blocks.0.img_mod.*"],
        "a Qwen-Image transformer (DiT)",
    ),
    (
        &["patch_embedding.*", "blocks.0.self_attn.*"],
        "a Wan transformer (DiT)",
    ),
    (
        &["condition_embedder.*", "blocks.0.attn1.*"],
        "a Wan transformer (DiT)",
    ),
    (
        &["text_model.embeddings.token_embedding.weight"],
        "a CLIP text encoder",
    ),
    (
        &["encoder.block.0.layer.0.SelfAttention.q.weight"],
        "a T5 text encoder",
    ),
    (
        &["token_embedding.weight", "blocks.0.attn.q.weight"],
        "a umT5 text encoder (of Wan)",
    ),
    (&["encoder.conv_in.conv.weight"], "a HunyuanVideo VAE"),
    (
        &["encoder.conv1.weight", "decoder.conv1.weight"],
        "a video VAE (of Wan or Qwen-Image)",
    ),
];

/// What modules a LoRA of another model changes: the beginning of their names, dots as underlines.
const OTHER_LORAS: &[(&[&str], &str)] = &[
    (
        &[
            "down_blocks_",
            "up_blocks_",
            "mid_block_",
            "input_blocks_",
            "output_blocks_",
            "middle_block_",
        ],
        "a LoRA for SDXL or Stable Diffusion",
    ),
    (
        &["joint_blocks_", "joint_transformer_blocks_"],
        "a LoRA for Stable Diffusion 3",
    ),
    (
        &["double_blocks_", "single_blocks_"],
        "a LoRA for FLUX or HunyuanVideo",
    ),
    (
        &["single_transformer_blocks_", "transformer_blocks_"],
        "a LoRA for FLUX or Qwen-Image",
    ),
    (
        &["blocks_0_self_attn", "blocks_0_cross_attn", "blocks_0_ffn"],
        "a LoRA for Wan",
    ),
];

/// The hidden sizes of the other Qwen3 models.
const QWEN3: &[(usize, &str)] = &[
    (1024, "Qwen3-0.6B"),
    (2048, "Qwen3-1.7B"),
    (4096, "Qwen3-8B"),
    (5120, "Qwen3-14B or Qwen3-32B"),
];

/// The vocabulary of every Qwen3: one with another is a stand-in, whose sizes say nothing.
const QWEN3_VOCABULARY: usize = 151_936;

/// Lumina Image 2.0, whose transformer has the same names as Z-Image's.
const LUMINA_2_WIDTH: usize = 2304;

/// What checkpoints have before the names of a transformer's or a UNet's tensors.
const CHECKPOINT_PREFIX: &str = "model.diffusion_model.";

/// The model that these tensors are of; `None` where they are not known.
#[must_use]
pub fn recognise(metadata: &Metadata) -> Option<Kind> {
    let names: BTreeSet<String> = metadata.offset_keys().into_iter().collect();
    let tensors = Tensors {
        metadata,
        names: &names,
        prefix: "",
    };
    if let Some(lora) = tensors.lora() {
        return lora.kind();
    }
    let whole = tensors.with_prefix(CHECKPOINT_PREFIX);
    if whole.any("") {
        return whole.checkpoint();
    }
    tensors
        .z_image()
        .or_else(|| tensors.other())
        .or_else(|| tensors.vae())
        .or_else(|| tensors.language_model())
}

/// # Errors
/// [`Error::Unusable`] for weights that are known to be of another model than `role` needs.
pub fn require(path: &Path, metadata: &Metadata, role: Role) -> Result<(), Error> {
    match recognise(metadata) {
        Some(kind) if kind.role != Some(role) => Err(Error::Unusable(format!(
            "{} is {}, expected {}: let Models(..., {}=...) name the right file, or download it under this name.",
            path.display(),
            kind.name,
            role.expected(),
            role.field(),
        ))),
        _ => Ok(()),
    }
}

struct Tensors<'a> {
    metadata: &'a Metadata,
    names: &'a BTreeSet<String>,
    /// What all the names asked for have before them.
    prefix: &'static str,
}

impl Tensors<'_> {
    fn with_prefix(&self, prefix: &'static str) -> Self {
        Self { prefix, ..*self }
    }

    fn has(&self, name: &str) -> bool {
        self.names.contains(&format!("{}{name}", self.prefix))
    }

    /// Whether there is one whose name begins so.
    fn any(&self, beginning: &str) -> bool {
        let beginning = format!("{}{beginning}", self.prefix);
        self.names
            .range(beginning.clone()..)
            .next()
            .is_some_and(|name| name.starts_with(&beginning))
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        let tensor = self.metadata.info(&format!("{}{name}", self.prefix))?;
        Some(&tensor.shape)
    }

    fn z_image(&self) -> Option<Kind> {
        let is_of_comfyui = self.has("x_embedder.weight") && self.has("cap_embedder.1.weight");
        if !is_of_comfyui && !self.any("all_x_embedder.") {
            return None;
        }
        if let Some([LUMINA_2_WIDTH, _]) = self.shape("cap_embedder.1.weight") {
            return Some(Kind::of("a Lumina Image 2.0 transformer (DiT)", None));
        }
        let is_scaled = |name: &String| {
            [".scale_weight", ".weight_scale", "scaled_fp8"]
                .iter()
                .any(|end| name.ends_with(end))
        };
        if self.names.iter().any(is_scaled) {
            // Its scales are tensors that the tuner does not expect; it scales the bf16 file itself (`--fp8_scaled`).
            return Some(Kind::of(
                "a Z-Image transformer (DiT) in ComfyUI's scaled fp8, which Musubi Tuner does not load",
                None,
            ));
        }
        Some(Kind::of("a Z-Image transformer (DiT)", Some(Role::Dit)))
    }

    fn checkpoint(&self) -> Option<Kind> {
        let kind = self.z_image().or_else(|| self.other())?;
        let part = kind
            .name
            .split(" (DiT)")
            .next()
            .unwrap_or_default()
            .to_owned();
        Some(Kind::of(
            format!("{part} in a checkpoint (its tensors begin with {CHECKPOINT_PREFIX:?})"),
            None,
        ))
    }

    fn other(&self) -> Option<Kind> {
        let has = |mark: &&str| match mark.strip_suffix('*') {
            Some(beginning) => self.any(beginning),
            None => self.has(mark),
        };
        let (_, name) = OTHERS.iter().find(|(marks, _)| marks.iter().all(has))?;
        Some(Kind::of(*name, None))
    }

    fn vae(&self) -> Option<Kind> {
        let conv_in = ["encoder.conv_in.weight", "decoder.conv_in.weight"]
            .into_iter()
            .find_map(|name| self.shape(name))?;
        if conv_in.len() == 5 {
            return Some(Kind::of("a video VAE (of Wan or Qwen-Image)", None));
        }
        let decoded = self.shape("decoder.conv_in.weight");
        let encoded = self.shape("encoder.conv_out.weight");
        let channels = match (decoded, encoded) {
            (Some([_, channels, ..]), _) => Some(*channels),
            // Mean and variance.
            (_, Some([both, ..])) => Some(both / 2),
            _ => None,
        };
        Some(match channels {
            Some(4) => Kind::of(
                "an SDXL VAE (or one of Stable Diffusion 1.x or 2.x: 4 latent channels)",
                None,
            ),
            Some(32) => Kind::of("a FLUX.2 VAE (32 latent channels)", None),
            Some(16) | None => Kind::of("a VAE with 16 latent channels", Some(Role::Vae)),
            Some(channels) => Kind::of(format!("a VAE with {channels} latent channels"), None),
        })
    }

    fn language_model(&self) -> Option<Kind> {
        const LAYER: &str = "layers.0.self_attn.";
        if self.any("visual.")
            || self.any("model.visual.")
            || self.any("model.language_model.layers.")
        {
            return Some(Kind::of("a Qwen-VL model", None));
        }
        if self.has("embed_tokens.weight") && self.has(&format!("{LAYER}q_norm.weight")) {
            return Some(Kind::of(
                "a Qwen3 without \"model.\" before its tensors' names, which Musubi Tuner does not load",
                None,
            ));
        }
        let [vocabulary, width] = self.shape("model.embed_tokens.weight")? else {
            return None;
        };
        let layer = |name: &str| self.has(&format!("model.{LAYER}{name}"));
        Some(
            if self.has("model.layers.0.pre_feedforward_layernorm.weight") {
                Kind::of("a Gemma text encoder", None)
            } else if layer("q_proj.bias") {
                Kind::of("a Qwen2 or Qwen2.5", None)
            } else if layer("q_proj.weight") && !layer("q_norm.weight") {
                Kind::of("a language model like Llama, not Qwen3", None)
            } else if *vocabulary != QWEN3_VOCABULARY {
                Kind::of(format!("a Qwen3 of width {width}"), Some(Role::TextEncoder))
            } else {
                match QWEN3.iter().find(|(other, _)| other == width) {
                    Some((_, name)) => Kind::of(*name, None),
                    None => Kind::of("Qwen3-4B", Some(Role::TextEncoder)),
                }
            },
        )
    }

    fn lora(&self) -> Option<Lora> {
        const MATRICES: &[&str] = &[
            ".lora_down.",
            ".lora_up.",
            ".lora_A.",
            ".lora_B.",
            ".hada_w",
            ".lokr_w",
        ];
        let modules: BTreeSet<String> = self
            .names
            .iter()
            .filter_map(|name| {
                let end = MATRICES.iter().find_map(|matrix| name.find(matrix))?;
                Some(name[..end].replace('.', "_"))
            })
            .collect();
        (!modules.is_empty()).then_some(Lora(modules))
    }
}

/// The modules that it changes, with underlines for dots.
struct Lora(BTreeSet<String>);

impl Lora {
    fn kind(&self) -> Option<Kind> {
        // What Musubi Tuner, ComfyUI and diffusers have before a module's name.
        let inner = |module: &str| {
            ["lora_unet_", "diffusion_model_", "transformer_"]
                .iter()
                .find_map(|prefix| module.strip_prefix(prefix))
                .unwrap_or(module)
                .to_owned()
        };
        let modules: Vec<String> = self.0.iter().map(|module| inner(module)).collect();
        let is_of_z_image = |module: &String| {
            ["layers_", "noise_refiner_", "context_refiner_"]
                .iter()
                .any(|part| module.starts_with(part))
                && ["_attention_", "_feed_forward_", "_adaLN_modulation"]
                    .iter()
                    .any(|part| module.contains(part))
        };
        if modules.iter().any(is_of_z_image) {
            return Some(Kind::of("a LoRA for Z-Image", Some(Role::Adapter)));
        }
        // The whole name, where what it begins with is the first part of the module's: "transformer_blocks_0_…".
        let begins = |part: &&str| {
            modules
                .iter()
                .chain(&self.0)
                .any(|module| module.starts_with(*part))
        };
        OTHER_LORAS
            .iter()
            .find(|(parts, _)| parts.iter().any(begins))
            .map(|(_, name)| Kind::of(*name, None))
    }
}

/// Whether this LoRA has query, key and value in one, as ComfyUI wants them. Merged as `base_weights`, only the modules
/// that are named alike in both forms have an effect.
#[must_use]
pub fn is_lora_of_comfyui(metadata: &Metadata) -> bool {
    metadata.offset_keys().iter().any(|name| {
        let name = name.replace('.', "_");
        name.contains("_attention_qkv_lora_") || name.contains("_attention_qkv_hada_")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of tensors such as `encoder.conv_in.weight=128,3,3,3`; a name alone has one number.
    fn header(tensors: &str) -> Metadata {
        let mut at = 0;
        let entries: Vec<String> = tensors
            .split_whitespace()
            .map(|tensor| {
                let (name, shape) = tensor.split_once('=').unwrap_or((tensor, "1"));
                let start = at;
                at += shape.split(',').map(|side| side.parse::<usize>().unwrap()).product::<usize>();
                format!("{name:?}:{{\"dtype\":\"U8\",\"shape\":[{shape}],\"data_offsets\":[{start},{at}]}}")
            })
            .collect();
        serde_json::from_str(&format!("{{{}}}", entries.join(","))).unwrap()
    }

    /// What a run needs, in each of its forms.
    const NEEDED: &[(&str, Role)] = &[
        (
            "x_embedder.weight=3840,64 cap_embedder.1.weight=3840,2560",
            Role::Dit,
        ),
        (
            "all_x_embedder.2-1.weight layers.0.attention.to_q.weight",
            Role::Dit,
        ),
        (
            "encoder.conv_in.weight=128,3,3,3 decoder.conv_in.weight=512,16,3,3",
            Role::Vae,
        ),
        (
            "encoder.conv_in.weight=128,3,3,3 encoder.conv_out.weight=32,512,3,3",
            Role::Vae,
        ),
        ("encoder.conv_in.weight=16,3,8,8", Role::Vae),
        (
            "model.embed_tokens.weight=151936,2560 model.layers.0.self_attn.q_norm.weight",
            Role::TextEncoder,
        ),
        ("model.embed_tokens.weight=512,1024", Role::TextEncoder),
        (
            "lora_unet_layers_0_attention_to_q.lora_down.weight",
            Role::Adapter,
        ),
        (
            "diffusion_model.layers.0.attention.to_q.lora_A.weight",
            Role::Adapter,
        ),
        (
            "transformer.layers.0.feed_forward.w1.lokr_w1",
            Role::Adapter,
        ),
    ];

    const OF_OTHERS: &[(&str, &str)] = &[
        (
            "encoder.conv_in.weight=128,3,3,3 decoder.conv_in.weight=512,4,3,3",
            "an SDXL VAE",
        ),
        (
            "encoder.conv_in.weight=128,3,3,3 decoder.conv_in.weight=512,32,3,3",
            "a FLUX.2 VAE",
        ),
        ("encoder.conv_in.weight=96,3,3,3,3", "a video VAE"),
        ("encoder.conv1.weight decoder.conv1.weight", "a video VAE"),
        (
            "model.diffusion_model.input_blocks.0.0.weight model.diffusion_model.label_emb.0.0.weight",
            "an SDXL UNet in a checkpoint",
        ),
        (
            "model.diffusion_model.x_embedder.weight model.diffusion_model.cap_embedder.1.weight",
            "a Z-Image transformer in a checkpoint",
        ),
        (
            "x_embedder.weight cap_embedder.1.weight=2304,2304",
            "a Lumina Image 2.0",
        ),
        (
            "x_embedder.weight cap_embedder.1.weight layers.0.attention.qkv.scale_weight",
            "scaled fp8",
        ),
        (
            "down_blocks.0.resnets.0.conv1.weight add_embedding.linear_1.weight",
            "an SDXL UNet",
        ),
        (
            "down_blocks.0.resnets.0.conv1.weight time_embedding.linear_1.weight",
            "a Stable Diffusion 1.x",
        ),
        (
            "double_blocks.0.img_attn.qkv.weight",
            "a FLUX.1 transformer",
        ),
        (
            "double_blocks.0.img_attn.qkv.weight double_stream_modulation_img.lin.weight",
            "a FLUX.2 transformer",
        ),
        (
            "transformer_blocks.0.img_mod.1.weight txt_norm.weight",
            "a Qwen-Image transformer",
        ),
        (
            "patch_embedding.weight blocks.0.self_attn.q.weight",
            "a Wan transformer",
        ),
        (
            "model.embed_tokens.weight=151936,4096 model.layers.0.self_attn.q_norm.weight",
            "Qwen3-8B",
        ),
        (
            "model.embed_tokens.weight=9,9 model.layers.0.self_attn.q_proj.bias",
            "Qwen2.5",
        ),
        (
            "embed_tokens.weight layers.0.self_attn.q_norm.weight",
            "without \"model.\"",
        ),
        (
            "model.embed_tokens.weight=9,9 model.visual.patch_embed.weight",
            "a Qwen-VL",
        ),
        (
            "text_model.embeddings.token_embedding.weight",
            "a CLIP text encoder",
        ),
        (
            "encoder.block.0.layer.0.SelfAttention.q.weight",
            "a T5 text encoder",
        ),
        (
            "lora_unet_down_blocks_0_attentions_0.lora_down.weight",
            "a LoRA for SDXL",
        ),
        (
            "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",
            "a LoRA for FLUX",
        ),
        (
            "transformer_blocks.0.attn.to_q.lora_A.weight",
            "a LoRA for FLUX or Qwen-Image",
        ),
        (
            "diffusion_model.blocks.0.self_attn.q.lora_A.weight",
            "a LoRA for Wan",
        ),
    ];

    #[test]
    fn what_a_run_needs_is_known_in_each_of_its_forms() {
        for (tensors, role) in NEEDED {
            let tensors = header(tensors);
            let kind = recognise(&tensors).unwrap();
            assert_eq!(kind.role, Some(*role), "{kind:?}");
            require(Path::new("x"), &tensors, *role).unwrap();
        }
    }

    #[test]
    fn other_models_are_named() {
        for (tensors, name) in OF_OTHERS {
            let tensors = header(tensors);
            let kind = recognise(&tensors).unwrap();
            assert!(kind.name.contains(name), "{kind:?}, not {name}");
            for role in [Role::Vae, Role::TextEncoder, Role::Dit, Role::Adapter] {
                let refused = require(Path::new("/models/x"), &tensors, role);
                let error = refused.unwrap_err().to_string();
                for part in ["/models/x", name, role.expected(), role.field()] {
                    assert!(error.contains(part), "{error}");
                }
            }
        }
    }

    #[test]
    fn what_a_run_needs_is_not_taken_for_something_else_that_it_needs() {
        let dit = header("x_embedder.weight=3840,64 cap_embedder.1.weight=3840,2560");
        let error = require(Path::new("x"), &dit, Role::TextEncoder)
            .unwrap_err()
            .to_string();
        assert!(error.contains("is a Z-Image transformer"), "{error}");
    }

    #[test]
    fn what_is_not_known_is_let_through() {
        for tensors in [
            "",
            "a=2",
            "lora_unet_something.lora_down.weight",
            "model.embed_tokens.weight",
        ] {
            assert_eq!(recognise(&header(tensors)), None, "{tensors}");
        }
    }

    #[test]
    fn a_lora_of_comfyui_has_query_key_and_value_in_one() {
        for (name, expected) in [
            ("lora_unet_layers_0_attention_qkv.lora_down.weight", true),
            ("diffusion_model.layers.0.attention.qkv.lora_A.weight", true),
            ("lora_unet_layers_0_attention_to_q.lora_down.weight", false),
        ] {
            assert_eq!(is_lora_of_comfyui(&header(name)), expected, "{name}");
        }
    }
}
