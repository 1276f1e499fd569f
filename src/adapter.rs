//! The training adapter (`base_weights`) in the naming that Musubi Tuner merges.
//!
//! An adapter in diffusers naming matches no module of Musubi Tuner 0.3.0 to 0.3.4, which then merges nothing of it
//! and says that all weights are merged.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, TensorView, View};

use crate::disk;
use crate::error::Error;

/// Musubi Tuner's own prefix of module names.
const PREFIX: &str = "lora_unet_";

/// Whether these tensors are in diffusers naming: `diffusion_model.layers.0.attention.to_q.lora_A.weight`. Some of
/// other names may be among them, for the text encoder say, but none in Musubi Tuner's own.
#[must_use]
pub fn is_in_diffusers_naming(metadata: &Metadata) -> bool {
    let names = metadata.offset_keys();
    names.iter().any(|name| module_path(name).is_some())
        && !names.iter().any(|name| name.starts_with("lora_"))
}

/// Writes the adapter at `source` to `destination` in Musubi Tuner's naming: tensors unchanged, `alpha` equal to the
/// rank where there is none. The destination appears whole or not at all. Returns how many tensors have another
/// naming, and are left out as Musubi Tuner's own `convert_lora.py` does.
///
/// # Errors
/// [`Error::Io`] when a file cannot be read or written, [`Error::Unusable`] when the source is no safetensors file.
pub fn rename(source: &Path, destination: &Path) -> Result<usize, Error> {
    let bytes = fs::read(source).map_err(Error::io("read", source))?;
    let failed = |error| {
        Error::Unusable(format!(
            "cannot rename the adapter {}: {error}",
            source.display()
        ))
    };
    let tensors = SafeTensors::deserialize(&bytes).map_err(failed)?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(failed)?;

    let mut renamed: BTreeMap<String, Tensor> = BTreeMap::new();
    let mut left_out = 0;
    for (name, tensor) in tensors.iter() {
        let Some(name) = musubi_name(name) else {
            left_out += 1;
            continue;
        };
        if let (Some(module), Some(&rank)) = (
            name.strip_suffix(".lora_down.weight"),
            tensor.shape().first(),
        ) {
            renamed
                .entry(format!("{module}.alpha"))
                .or_insert(Tensor::Alpha(i64::try_from(rank).unwrap_or(i64::MAX)));
        }
        renamed.insert(name, Tensor::Stored(tensor));
    }
    let whole = safetensors::serialize(renamed, header.metadata().clone()).map_err(failed)?;
    write(&whole, destination)?;
    Ok(left_out)
}

/// In place of what is there, in one step. A run that is killed meanwhile leaves a part under the one name that the
/// next run writes to; runs that train side by side take turns.
fn write(whole: &[u8], destination: &Path) -> Result<(), Error> {
    let part = destination.with_extension("part");
    let mut file = open_alone(&part)?;
    let mut written = || -> Result<(), Error> {
        file.set_len(0).map_err(Error::io("write", &part))?;
        disk::require(&part, whole.len() as u64, "the renamed adapter")?;
        file.write_all(whole)
            .map_err(disk::failed("write", &part))?;
        fs::rename(&part, destination).map_err(Error::io("rename into place", destination))
    };
    written().inspect_err(|_| {
        let _ = disk::remove(&part);
    })
}

/// Opens the file at `part`, once no other run writes to it.
fn open_alone(part: &Path) -> Result<File, Error> {
    let failed = disk::failed("write", part);
    loop {
        if part.symlink_metadata().is_ok_and(|found| !found.is_file()) {
            disk::remove(part)?;
        }
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(part)
            .map_err(&failed)?;
        // A file system without locks goes without.
        let _ = flock(&file, FlockOperation::LockExclusive);
        let locked = file.metadata().map_err(&failed)?;
        // Whoever had it before has renamed it into place, or removed it.
        let is_the_same =
            |there: fs::Metadata| (there.dev(), there.ino()) == (locked.dev(), locked.ino());
        let is_there = match part.symlink_metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            there => is_the_same(there.map_err(&failed)?),
        };
        if is_there {
            return Ok(file);
        }
    }
}

/// `layers.0.attention.to_q.lora_A.weight` of a name in diffusers naming.
fn module_path(name: &str) -> Option<&str> {
    name.strip_prefix("diffusion_model.")
        .or_else(|| name.strip_prefix("transformer."))
}

/// `lora_unet_layers_0_attention_to_q.lora_down.weight`; LoHa's and LoKr's tensor names stay as they are.
fn musubi_name(name: &str) -> Option<String> {
    let path = module_path(name)?;
    let suffixes = [
        (".lora_A.", ".lora_down."),
        (".lora_B.", ".lora_up."),
        (".lora_down.", ".lora_down."),
        (".lora_up.", ".lora_up."),
        (".hada_", ".hada_"),
        (".lokr_", ".lokr_"),
        (".alpha", ".alpha"),
    ];
    let renamed = suffixes.iter().find_map(|(theirs, ours)| {
        let at = path.rfind(theirs)?;
        Some(format!(
            "{PREFIX}{}{ours}{}",
            path[..at].replace('.', "_"),
            &path[at + theirs.len()..]
        ))
    });
    Some(renamed.unwrap_or_else(|| format!("{PREFIX}{}", path.replace('.', "_"))))
}

enum Tensor<'data> {
    Stored(TensorView<'data>),
    Alpha(i64),
}

impl View for Tensor<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Self::Stored(tensor) => tensor.dtype(),
            Self::Alpha(_) => Dtype::I64,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Self::Stored(tensor) => tensor.shape(),
            Self::Alpha(_) => &[],
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Stored(tensor) => Cow::Borrowed(tensor.data()),
            Self::Alpha(rank) => Cow::Owned(rank.to_le_bytes().to_vec()),
        }
    }

    fn data_len(&self) -> usize {
        self.data().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_the_tuners() {
        for (theirs, ours) in [
            (
                "diffusion_model.layers.0.attention.to_q.lora_A.weight",
                "lora_unet_layers_0_attention_to_q.lora_down.weight",
            ),
            (
                "transformer.layers.12.attention.to_out.0.lora_B.weight",
                "lora_unet_layers_12_attention_to_out_0.lora_up.weight",
            ),
            (
                "diffusion_model.layers.3.feed_forward.w1.lora_down.weight",
                "lora_unet_layers_3_feed_forward_w1.lora_down.weight",
            ),
            (
                "diffusion_model.layers.3.feed_forward.w1.alpha",
                "lora_unet_layers_3_feed_forward_w1.alpha",
            ),
            (
                "diffusion_model.layers.3.feed_forward.w1.hada_w1_a",
                "lora_unet_layers_3_feed_forward_w1.hada_w1_a",
            ),
        ] {
            assert_eq!(musubi_name(theirs).as_deref(), Some(ours));
        }
        assert_eq!(
            musubi_name("lora_unet_layers_0_attention_to_q.lora_down.weight"),
            None
        );
    }

    #[test]
    fn tensors_stay_and_alpha_is_the_rank_unless_it_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let (source, destination) = (
            folder.join("theirs.safetensors"),
            folder.join("ours.safetensors"),
        );
        let down: Vec<u8> = (0..32).collect();
        let view = |shape: Vec<usize>, data| TensorView::new(Dtype::BF16, shape, data).unwrap();
        let tensors = [
            ("diffusion_model.a.b.lora_A.weight", view(vec![4, 4], &down)),
            ("diffusion_model.a.b.lora_B.weight", view(vec![4, 4], &down)),
            ("diffusion_model.c.lora_A.weight", view(vec![2, 8], &down)),
            ("diffusion_model.c.alpha", view(vec![], &down[..2])),
            ("text_encoder.d.lora_A.weight", view(vec![2, 8], &down)),
        ];
        let metadata = Some([("name".to_owned(), "adapter".to_owned())].into());
        safetensors::serialize_to_file(tensors, metadata.clone(), &source).unwrap();

        assert_eq!(rename(&source, &destination).unwrap(), 1);

        let bytes = fs::read(&destination).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        let alpha = read.tensor("lora_unet_a_b.alpha").unwrap();
        assert_eq!(
            (alpha.dtype(), alpha.shape(), alpha.data()),
            (Dtype::I64, &[][..], &4_i64.to_le_bytes()[..])
        );
        assert_eq!(
            read.tensor("lora_unet_a_b.lora_up.weight").unwrap().data(),
            down
        );
        assert_eq!(
            read.tensor("lora_unet_c.alpha").unwrap().dtype(),
            Dtype::BF16
        );
        assert_eq!(read.len(), 5);
        assert_eq!(
            *SafeTensors::read_metadata(&bytes).unwrap().1.metadata(),
            metadata
        );
        assert_eq!(
            fs::read_dir(folder).unwrap().count(),
            2,
            "nothing else is left behind"
        );
    }

    #[test]
    fn runs_side_by_side_each_find_a_whole_file() {
        let folder = tempfile::tempdir().unwrap();
        let destination = folder.path().join("renamed.safetensors");
        let whole = vec![1; 1 << 20];
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        write(&whole, &destination).unwrap();
                        assert!(fs::read(&destination).unwrap() == whole);
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
