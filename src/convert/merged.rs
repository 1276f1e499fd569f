//! q, k and v of an attention as one module: `convert_z_image_lora_to_comfy.py`.

use safetensors::tensor::TensorInfo;

use super::lora::{Kind, Lora, Module};
use super::{Block, Content, Converted, Tensor, numbers};
use crate::error::Error;

/// In the modules of `layers` alone.
const RENAMED: [(&str, &str); 3] = [
    ("attention_to_out_0", "attention_out"),
    ("attention_norm_k", "attention_k_norm"),
    ("attention_norm_q", "attention_q_norm"),
];

/// # Errors
/// [`Error::InvalidValue`] when it cannot be merged, [`Error::Io`].
pub fn plan(lora: &Lora<'_>) -> Result<Converted, Error> {
    let mut converted = Converted::default();
    let mut uneven = Vec::new();
    for (name, module) in &lora.modules {
        if let Some(attention) = name.strip_suffix("to_q") {
            let [k, v] =
                ["to_k", "to_v"].map(|other| lora.module(&format!("{attention}{other}"), name));
            if merge(&mut converted, lora, attention, [module, k?, v?])? {
                uneven.push(name);
            }
        } else if name.ends_with("to_k") || name.ends_with("to_v") {
            // Merged along with q.
            lora.module(&format!("{}q", &name[..name.len() - 1]), name)?;
        } else {
            let mut name = name.clone();
            if name.contains("layers") {
                for (from, to) in RENAMED {
                    name = name.replace(from, to);
                }
            }
            for (suffix, stored) in module.tensors() {
                converted.add(lora, format!("{name}.{suffix}"), Tensor::copied(stored))?;
            }
        }
    }
    if let Some(first) = uneven.first() {
        converted.warnings.push(lora.remark(&format!(
            "alpha differs between q, k and v in {} attentions (first at {first}). A merged module has one alpha: q's is \
             taken, as convert_z_image_lora_to_comfy.py does, and k and v come out weaker or stronger than they were \
             trained. form=\"separate\" keeps each as it is.",
            uneven.len()
        )));
    }
    Ok(converted)
}

/// Adds the module of three times the rank that does what the three do. Returns whether their alphas differ.
fn merge(
    converted: &mut Converted,
    lora: &Lora<'_>,
    attention: &str,
    q_k_v: [&Module; 3],
) -> Result<bool, Error> {
    let [q, k, v] = q_k_v;
    for (other, module) in [("to_k", k), ("to_v", v)] {
        if (module.kind, module.shapes()) != (q.kind, q.shapes()) {
            return Err(lora.refuse(&format!(
                "q, k and v can only be merged where they are of one kind, rank and size: expected {attention}{other} to \
                 have {} as {attention}to_q has, found {}. Convert it with form=\"separate\".",
                q.described(),
                module.described()
            )));
        }
    }
    for (at, matrix) in q.kind.matrices().iter().enumerate() {
        let stored = q_k_v.map(|module| &module.matrices[at]);
        // A LoRA's second matrix gets the dtype of its first.
        let deciding = if q.kind == Kind::LoRA { 0 } else { at };
        let dtype = numbers::common(&q_k_v.map(|module| module.matrices[deciding].dtype))
            .filter(|joined| {
                stored.iter().all(|info| numbers::common(&[info.dtype, *joined]).is_some())
            })
            .ok_or_else(|| {
                lora.refuse(&format!(
                    "q, k and v can only be merged where they are of one dtype, or all floats: expected that of \
                     {attention}*.{}, found {:?}. Convert it with form=\"separate\".",
                    matrix.suffix,
                    stored.map(|info| info.dtype)
                ))
            })?;
        let &[rows, columns] = &stored[0].shape[..] else {
            return Err(lora.refuse(&format!("{attention}*.{} is no matrix", matrix.suffix)));
        };
        // The ranks side by side: stacked on one side, and on the other each with its own part of the output.
        let (shape, blocks) = if matrix.rank_first {
            (vec![3 * rows, columns], stored.map(Block::whole).into())
        } else {
            let on_the_diagonal = |(at, stored): (usize, &TensorInfo)| Block {
                zeros_before: at * columns,
                row: columns,
                zeros_after: (2 - at) * columns,
                ..Block::whole(stored)
            };
            let blocks = stored.into_iter().enumerate().map(on_the_diagonal);
            (vec![3 * rows, 3 * columns], blocks.collect())
        };
        let tensor = Tensor {
            dtype,
            shape,
            content: Content::Stored(blocks),
        };
        converted.add(lora, format!("{attention}qkv.{}", matrix.suffix), tensor)?;
    }

    let mut alphas = Vec::new();
    for (projection, module) in ["to_q", "to_k", "to_v"].iter().zip(q_k_v) {
        let stored = module.alpha.as_ref().ok_or_else(|| {
            lora.refuse(&format!(
                "q, k and v can only be merged with their alpha: expected {attention}{projection}.alpha, and it is \
                 missing. Convert it with form=\"separate\"."
            ))
        })?;
        alphas.push(lora.alpha(&format!("{attention}{projection}"), stored)?);
    }
    // Over three times the rank, three times the alpha is the same strength.
    let of_q = &alphas[0];
    let mut bytes = Vec::new();
    numbers::triple(of_q.dtype, &of_q.bytes, &mut bytes);
    let tensor = Tensor {
        dtype: of_q.dtype,
        shape: of_q.shape.clone(),
        content: Content::Known(bytes),
    };
    converted.add(lora, format!("{attention}qkv.alpha"), tensor)?;
    #[expect(clippy::float_cmp, reason = "they are equal, or differ")]
    let uneven = alphas.iter().any(|alpha| alpha.value != of_q.value);
    Ok(uneven)
}
