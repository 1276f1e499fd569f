//! A LoRA or LoHa of Z-Image in the forms that ComfyUI loads: the bytes that Musubi Tuner's own two converters write.

mod hashes;
mod lora;
mod merged;
mod numbers;
mod python;
mod replacement;
mod separate;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::mem;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorInfo};

use crate::error::Error;
use hashes::Hashes;
use lora::Lora;
use replacement::Replacement;

pub use python::convert_lora_to_comfyui;

/// What a LoRA is converted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// That of `convert_z_image_lora_to_comfy.py`: q, k and v of an attention are one module of three times the rank, as
    /// they are one layer in ComfyUI.
    Merged,
    /// That of `convert_lora.py --target other`, which nunchaku needs: diffusers' naming, q, k and v each for itself,
    /// `alpha` multiplied into the matrices.
    Separate,
}

/// Read, and written, at a time; it stays in the processor's cache.
const PIECE_BYTES: usize = 1 << 18;

/// Converts the LoRA or LoHa at `source`. The destination, which may be the source, stays as it is until the new file is
/// complete. `check` is asked now and then whether to go on. Returns what to warn of.
///
/// # Errors
/// [`Error::InvalidValue`] when the source cannot be converted, [`Error::Io`] when a file cannot be read or written,
/// what `check` gives.
pub fn convert(
    source: &Path,
    destination: &Path,
    form: Form,
    check: impl Fn() -> Result<(), Error>,
) -> Result<Vec<String>, Error> {
    let lora = Lora::open(source)?;
    let converted = match form {
        Form::Merged => merged::plan(&lora)?,
        Form::Separate => separate::plan(&lora)?,
    };
    write(converted.tensors, &lora, form, destination, check)?;
    Ok(converted.warnings)
}

/// What is to be written.
#[derive(Default)]
struct Converted {
    tensors: BTreeMap<String, Tensor>,
    warnings: Vec<String>,
}

impl Converted {
    fn add(&mut self, lora: &Lora<'_>, name: String, tensor: Tensor) -> Result<(), Error> {
        match self.tensors.entry(name) {
            Entry::Vacant(place) => {
                place.insert(tensor);
                Ok(())
            }
            Entry::Occupied(place) => Err(lora.refuse(&format!(
                "two of its tensors would become {:?}: one part of it is converted already, another is not. Convert the \
                 LoRA as it was trained.",
                place.key()
            ))),
        }
    }
}

struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    content: Content,
}

enum Content {
    Known(Vec<u8>),
    /// One after the other.
    Stored(Vec<Block>),
}

/// A tensor of the source: its rows between zeros, its numbers times a factor.
struct Block {
    stored: TensorInfo,
    factor: f64,
    zeros_before: usize,
    row: usize,
    zeros_after: usize,
}

impl Block {
    /// The numbers as they lie there.
    fn whole(stored: &TensorInfo) -> Self {
        Self {
            stored: stored.clone(),
            factor: 1.0,
            zeros_before: 0,
            row: 1,
            zeros_after: 0,
        }
    }
}

impl Tensor {
    fn copied(stored: &TensorInfo) -> Self {
        Self {
            dtype: stored.dtype,
            shape: stored.shape.clone(),
            content: Content::Stored(vec![Block::whole(stored)]),
        }
    }
}

fn write(
    tensors: BTreeMap<String, Tensor>,
    lora: &Lora<'_>,
    form: Form,
    destination: &Path,
    check: impl Fn() -> Result<(), Error>,
) -> Result<(), Error> {
    // By name within a dtype, as the safetensors library orders what it writes.
    let mut tensors: Vec<(String, Tensor)> = tensors.into_iter().collect();
    tensors.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype));
    let (entries, data_bytes) = entries(&tensors)?;

    let mut metadata = lora.metadata.clone();
    let mut hashes = None;
    // The other script leaves them as they were.
    if let Some(metadata) = metadata.as_mut().filter(|_| form == Form::Merged) {
        let of_training = metadata
            .iter()
            .filter(|(key, _)| key.starts_with("ss_"))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        hashes = Some(Hashes::begin(&header(Some(&of_training), &entries)?)?);
        // Their places, until they are known.
        let unknown =
            [hashes::MODEL_DIGITS, hashes::LEGACY_DIGITS].map(|digits| "0".repeat(digits));
        set_hashes(metadata, unknown);
    }

    let start = header(metadata.as_ref(), &entries)?;
    let bytes = (start.len() + data_bytes) as u64;
    let replacement = Replacement::beside(destination, bytes, "the converted LoRA")?;
    replacement.write(&start)?;
    let mut data = Data {
        lora,
        replacement: &replacement,
        hashes,
        check,
        piece: Vec::new(),
        stored: Vec::new(),
        computed: Vec::new(),
        numbers: Vec::new(),
    };
    for (_, tensor) in &tensors {
        match &tensor.content {
            Content::Known(bytes) => data.piece.extend(bytes),
            Content::Stored(blocks) => {
                for block in blocks {
                    data.add(block, tensor.dtype)?;
                }
            }
        }
    }
    data.flush()?;
    if let (Some(hashes), Some(metadata)) = (data.hashes, &mut metadata) {
        set_hashes(metadata, hashes.finish()?);
        replacement.rewrite_beginning(&header(Some(metadata), &entries)?)?;
    }
    replacement.put_in_place()
}

fn set_hashes(metadata: &mut BTreeMap<String, String>, [model, legacy]: [String; 2]) {
    metadata.insert(hashes::MODEL_HASH.to_owned(), model);
    metadata.insert(hashes::LEGACY_HASH.to_owned(), legacy);
}

/// Of the tensors in the header, and the bytes of their data.
fn entries(tensors: &[(String, Tensor)]) -> Result<(Vec<String>, usize), Error> {
    let mut entries = Vec::new();
    let mut end = 0;
    for (name, tensor) in tensors {
        let start = end;
        end += tensor.shape.iter().product::<usize>() * tensor.dtype.bitsize() / 8;
        let info = TensorInfo {
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            data_offsets: (start, end),
        };
        entries.push(format!(
            "{}:{}",
            serde_json::to_string(name).map_err(|error| unwritable(&error))?,
            serde_json::to_string(&info).map_err(|error| unwritable(&error))?
        ));
    }
    Ok((entries, end))
}

/// With its length before it; the metadata sorted, so that the same input gives the same file.
fn header(
    metadata: Option<&BTreeMap<String, String>>,
    entries: &[String],
) -> Result<Vec<u8>, Error> {
    let mut all = Vec::new();
    if let Some(metadata) = metadata {
        let metadata = serde_json::to_string(metadata).map_err(|error| unwritable(&error))?;
        all.push(format!("\"__metadata__\":{metadata}"));
    }
    all.extend_from_slice(entries);
    let mut header = format!("{{{}}}", all.join(",")).into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok([&(header.len() as u64).to_le_bytes()[..], &header].concat())
}

fn unwritable(error: &serde_json::Error) -> Error {
    Error::Unusable(format!("cannot write a safetensors header: {error}"))
}

/// The data behind the header, on its way from one file into the other.
struct Data<'a, C> {
    lora: &'a Lora<'a>,
    replacement: &'a Replacement,
    hashes: Option<Hashes>,
    check: C,
    /// Not yet written.
    piece: Vec<u8>,
    stored: Vec<u8>,
    computed: Vec<u8>,
    numbers: Vec<f64>,
}

impl<C: Fn() -> Result<(), Error>> Data<'_, C> {
    #[expect(clippy::float_cmp, reason = "1 exactly leaves everything as it is")]
    fn add(&mut self, block: &Block, dtype: Dtype) -> Result<(), Error> {
        let stored_row = block.row * block.stored.dtype.bitsize() / 8;
        let size = dtype.bitsize() / 8;
        let (before, row, after) = (
            block.zeros_before * size,
            block.row * size,
            block.zeros_after * size,
        );
        let rows_at_once = (PIECE_BYTES / (before + row + after).max(stored_row)).max(1);
        let (mut at, end) = block.stored.data_offsets;
        while at < end {
            self.stored
                .resize((end - at).min(rows_at_once * stored_row), 0);
            self.lora.read(at, &mut self.stored)?;
            at += self.stored.len();
            let rows = if block.factor == 1.0 && block.stored.dtype == dtype {
                &self.stored
            } else {
                let _ = numbers::decode(block.stored.dtype, &self.stored, &mut self.numbers);
                self.computed.clear();
                numbers::encode(dtype, &self.numbers, block.factor, &mut self.computed);
                &self.computed
            };
            if before + after == 0 {
                self.piece.extend(rows);
            } else {
                for row in rows.chunks_exact(row) {
                    self.piece.resize(self.piece.len() + before, 0);
                    self.piece.extend(row);
                    self.piece.resize(self.piece.len() + after, 0);
                }
            }
            if self.piece.len() >= PIECE_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        (self.check)()?;
        self.replacement.write(&self.piece)?;
        match &self.hashes {
            Some(hashes) => self.piece = hashes.add(mem::take(&mut self.piece))?,
            None => self.piece.clear(),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;

    use super::*;

    fn folder_with(content: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("lora.safetensors");
        fs::write(&source, content).unwrap();
        (folder, source)
    }

    fn recorded() -> Vec<Vec<u8>> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recorded/conversion");
        let mut paths: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        paths.iter().map(|path| fs::read(path).unwrap()).collect()
    }

    #[test]
    fn what_is_not_wanted_any_more_leaves_nothing_behind() {
        let (folder, source) = folder_with(&recorded()[0]);
        let destination = folder.path().join("converted");
        for form in [Form::Merged, Form::Separate] {
            let asked = Cell::new(0);
            let check = || {
                asked.set(asked.get() + 1);
                Err(Error::Cancelled)
            };
            let result = convert(&source, &destination, form, check);
            assert!(matches!(result, Err(Error::Cancelled)));
            assert_eq!(asked.get(), 1);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn an_old_file_stays_until_the_new_one_is_complete() {
        let (folder, source) = folder_with(&recorded()[0]);
        let destination = folder.path().join("converted");
        fs::write(&destination, "old").unwrap();
        let check = || {
            assert_eq!(fs::read(&destination).unwrap(), b"old");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
            Ok(())
        };
        convert(&source, &destination, Form::Merged, check).unwrap();
        assert_ne!(fs::read(&destination).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_has_become_shorter_is_an_error() {
        let (folder, source) = folder_with(&recorded()[0]);
        let lora = Lora::open(&source).unwrap();
        fs::write(&source, "short").unwrap();
        let error = lora.read(0, &mut [0; 8]).unwrap_err().to_string();
        assert!(error.contains("changed while it was read"), "{error}");
        drop(folder);
    }

    mod properties {
        use proptest::prelude::*;
        use proptest::sample::{Index, select};
        use safetensors::SafeTensors;

        use super::*;

        /// Whatever it is: it stays as it is, and becomes a whole file with other names, or is refused without a trace.
        fn holds(content: &[u8]) -> Result<(), TestCaseError> {
            let (folder, source) = folder_with(content);
            let destination = folder.path().join("converted");
            for form in [Form::Merged, Form::Separate] {
                match convert(&source, &destination, form, || Ok(())) {
                    Ok(_) => {
                        let bytes = fs::read(&destination).unwrap();
                        let read = SafeTensors::deserialize(&bytes);
                        prop_assert!(read.is_ok(), "{form:?}: {read:?}");
                        fs::remove_file(&destination).unwrap();
                    }
                    Err(Error::InvalidValue(message)) => {
                        prop_assert!(message.contains("lora.safetensors"), "{message}");
                    }
                    Err(error) => return Err(TestCaseError::fail(error.to_string())),
                }
                prop_assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
                prop_assert!(fs::read(&source).unwrap() == content);
            }
            Ok(())
        }

        fn file(header: &str, data: &[u8]) -> Vec<u8> {
            let length = (header.len() as u64).to_le_bytes();
            [&length[..], header.as_bytes(), data].concat()
        }

        fn name() -> impl Strategy<Value = String> {
            let module = select(vec![
                "lora_unet_layers_0_attention_to_q",
                "lora_unet_layers_0_attention_to_k",
                "lora_unet_layers_0_attention_to_v",
                "lora_unet_layers_0_attention_to_out_0",
                "lora_unet_layers_0_attention_out",
                "lora_unet_layers__feed_forward_w1",
                "lora_unet_cap_embedder_1",
                "lora_unet_",
                "diffusion_model",
            ]);
            let suffix = select(vec![
                ".lora_down.weight",
                ".lora_up.weight",
                ".alpha",
                ".hada_w1_a",
                ".lokr_w1",
                "",
            ]);
            (module, suffix).prop_map(|(module, suffix)| format!("{module}{suffix}"))
        }

        fn dtype() -> impl Strategy<Value = Dtype> {
            use Dtype::{BF16, BOOL, F4, F8_E4M3, F16, F32, F64, I64, U8};
            select(vec![
                F32, F32, F32, F32, BF16, F16, F64, I64, U8, BOOL, F8_E4M3, F4,
            ])
        }

        /// Of kinds and shapes that may fit, for names that may go together.
        fn modules() -> impl Strategy<Value = Vec<(String, Dtype, Vec<usize>)>> {
            let tensor = (name(), dtype(), prop::collection::vec(0..4_usize, 0..3));
            let tensors = prop::collection::vec(tensor, 0..4);
            let block = (
                dtype(),
                dtype(),
                dtype(),
                0..3_usize,
                0..3_usize,
                0..8_usize,
            );
            (tensors, block).prop_map(|(others, (down, up, alpha, rank, size, parts))| {
                let mut all = Vec::new();
                for part in ["to_q", "to_k", "to_v", "to_out_0"].iter().take(parts) {
                    let name = |suffix| format!("lora_unet_layers_0_attention_{part}.{suffix}");
                    all.push((name("lora_down.weight"), down, vec![rank, size]));
                    all.push((name("lora_up.weight"), up, vec![size, rank]));
                    all.push((name("alpha"), alpha, vec![]));
                }
                all.extend(others);
                all
            })
        }

        proptest! {
            #[test]
            fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
                holds(&bytes)?;
                holds(&file(&String::from_utf8_lossy(&bytes), &bytes))?;
            }

            #[test]
            fn any_tensors_are_refused_or_converted(
                tensors in modules(),
                numbers in any::<[u8; 16]>(),
                metadata in proptest::option::of(any::<[String; 2]>()),
            ) {
                let mut end = 0;
                let mut entries: Vec<String> = tensors
                    .iter()
                    .map(|(name, dtype, shape)| {
                        let start = end;
                        end += (shape.iter().product::<usize>() * dtype.bitsize()).div_ceil(8);
                        format!(
                            "\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{start},{end}]}}"
                        )
                    })
                    .collect();
                if let Some([key, value]) = metadata {
                    let metadata = BTreeMap::from([(format!("ss_{key}"), value)]);
                    entries.push(format!("\"__metadata__\":{}", serde_json::to_string(&metadata).unwrap()));
                }
                let data: Vec<u8> = numbers.into_iter().cycle().take(end).collect();
                holds(&file(&format!("{{{}}}", entries.join(",")), &data))?;
            }

            #[test]
            fn changed_files_are_refused_or_converted(
                which in any::<Index>(),
                at in any::<Index>(),
                byte in any::<u8>(),
                length in proptest::option::of(any::<Index>()),
            ) {
                let recorded = recorded();
                let mut content = recorded[which.index(recorded.len())].clone();
                // Most of the rest are numbers, which may be anything.
                let header = content.len().min(900);
                content[at.index(header)] = byte;
                if let Some(length) = length {
                    content.truncate(length.index(content.len()));
                }
                holds(&content)?;
            }
        }
    }
}
