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
        hashes = Some(Hashes::new(&header(Some(&of_training), &entries)?));
        metadata.extend(hashes::unknown());
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
        metadata.extend(hashes.finish());
        replacement.rewrite_beginning(&header(Some(metadata), &entries)?)?;
    }
    replacement.put_in_place()
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
        if let Some(hashes) = &mut self.hashes {
            hashes.data(&self.piece);
        }
        self.replacement.write(&self.piece)?;
        self.piece.clear();
        Ok(())
    }
}
