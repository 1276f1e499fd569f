//! Diffusers' naming, without alpha: `convert_lora.py --target other`.

use super::lora::{ALPHA, Kind, Lora, PREFIX};
use super::{Block, Content, Converted, Tensor, numbers};
use crate::error::Error;

/// What has underscores of its own, where all others stand for dots.
const UNDERSCORES: [(&str, &str); 5] = [
    ("to.q", "to_q"),
    ("to.k", "to_k"),
    ("to.v", "to_v"),
    ("to.out", "to_out"),
    ("feed.forward", "feed_forward"),
];

/// The parts of a layer whose names come out as they are in the model.
const WELL_NAMED: [&str; 4] = [
    "attention.to_",
    "feed_forward.w",
    // Of what is merged already.
    "attention.qkv",
    "attention.out",
];

/// # Errors
/// [`Error::InvalidValue`] when an alpha cannot be multiplied in, [`Error::Io`].
pub fn plan(lora: &Lora<'_>) -> Result<Converted, Error> {
    let mut converted = Converted::default();
    let mut misnamed = Vec::new();
    for (module_name, module) in &lora.modules {
        let name = diffusers_name(module_name);
        if !is_well_named(&name) {
            misnamed.push(name.clone());
        }
        if module.kind == Kind::LoHa {
            for (suffix, stored) in module.tensors() {
                converted.add(lora, format!("{name}.{suffix}"), Tensor::copied(stored))?;
            }
            continue;
        }
        let alpha = match &module.alpha {
            Some(stored) => Some(lora.alpha(module_name, stored)?),
            None => None,
        };
        for (suffix, stored) in ["lora_A.weight", "lora_B.weight"]
            .iter()
            .zip(&module.matrices)
        {
            let mut tensor = Tensor::copied(stored);
            // Without alpha, it counts as the rank: there is nothing to multiply in.
            if let Some(alpha) = &alpha {
                let (kind, factor) = numbers::strength(alpha.dtype, alpha.value, module.rank);
                if !(factor >= 0.0 && factor.is_finite()) {
                    return Err(lora.refuse(&format!(
                        "{module_name}.{ALPHA} is {}: expected a number of at least 0, whose root is multiplied into the \
                         matrices. form=\"merged\" leaves it as it is.",
                        alpha.value
                    )));
                }
                // A number without dimensions takes the matrix's kind, a list of one does not.
                let joined = if alpha.shape.is_empty() {
                    stored.dtype
                } else {
                    numbers::common(&[stored.dtype, kind]).unwrap_or(stored.dtype)
                };
                if !numbers::is_float(stored.dtype) {
                    return Err(lora.refuse(&format!(
                        "{module_name} is of {}: expected F64, F32, F16 or BF16, into which alpha can be multiplied. \
                         form=\"merged\" leaves it as it is.",
                        stored.dtype
                    )));
                }
                tensor.dtype = joined;
                tensor.content = Content::Stored(vec![Block {
                    factor: numbers::as_factor(joined, factor),
                    ..Block::whole(stored)
                }]);
            }
            converted.add(lora, format!("{name}.{suffix}"), tensor)?;
        }
    }
    if let Some(first) = misnamed.first() {
        converted.warnings.push(lora.remark(&format!(
            "{} modules get names that Z-Image has no module of (first {first}), as convert_lora.py names them: whatever \
             loads the file passes them over. form=\"merged\" keeps their names.",
            misnamed.len()
        )));
    }
    Ok(converted)
}

/// `diffusion_model.layers.0.attention.to_q` for `lora_unet_layers_0_attention_to_q`.
fn diffusers_name(module: &str) -> String {
    let path = module.strip_prefix(PREFIX).unwrap_or(module);
    let mut name = format!("diffusion_model.{}", path.replace('_', "."));
    for (dots, underscores) in UNDERSCORES {
        name = name.replace(dots, underscores);
    }
    name
}

fn is_well_named(name: &str) -> bool {
    name.strip_prefix("diffusion_model.layers.")
        .and_then(|path| path.split_once('.'))
        .is_some_and(|(_, part)| WELL_NAMED.iter().any(|known| part.starts_with(known)))
}
