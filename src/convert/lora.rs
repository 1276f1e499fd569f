//! The LoRA or LoHa that is converted: its modules, complete and of shapes that fit.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorInfo};

use super::numbers;
use crate::error::Error;
use crate::weights::{self, Weights};

/// What begins every module's name.
pub const PREFIX: &str = "lora_unet_";

pub const ALPHA: &str = "alpha";

const BLOCKS: [&str; 3] = ["layers_", "noise_refiner_", "context_refiner_"];
/// Trained, or already converted.
const PARTS_OF_A_BLOCK: [&str; 14] = [
    "adaLN_modulation_0",
    "attention_k_norm",
    "attention_norm_k",
    "attention_norm_q",
    "attention_out",
    "attention_q_norm",
    "attention_qkv",
    "attention_to_k",
    "attention_to_out_0",
    "attention_to_q",
    "attention_to_v",
    "feed_forward_w1",
    "feed_forward_w2",
    "feed_forward_w3",
];
const BESIDE_THE_BLOCKS: [&str; 4] = [
    "all_final_layer_",
    "all_x_embedder_",
    "cap_embedder_",
    "t_embedder_",
];

pub struct Lora<'a> {
    path: &'a Path,
    file: File,
    data_start: u64,
    pub metadata: Option<BTreeMap<String, String>>,
    /// By their names, `lora_unet_` included.
    pub modules: BTreeMap<String, Module>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    LoRA,
    LoHa,
}

/// One of the matrices whose product changes a layer.
pub struct Matrix {
    pub suffix: &'static str,
    /// (rank, in), or else (out, rank).
    pub rank_first: bool,
}

impl Kind {
    pub fn matrices(self) -> &'static [Matrix] {
        const fn matrix(suffix: &'static str, rank_first: bool) -> Matrix {
            Matrix { suffix, rank_first }
        }
        const LORA: &[Matrix] = &[
            matrix("lora_down.weight", true),
            matrix("lora_up.weight", false),
        ];
        const LOHA: &[Matrix] = &[
            matrix("hada_w1_a", false),
            matrix("hada_w1_b", true),
            matrix("hada_w2_a", false),
            matrix("hada_w2_b", true),
        ];
        match self {
            Self::LoRA => LORA,
            Self::LoHa => LOHA,
        }
    }
}

pub struct Module {
    pub kind: Kind,
    /// In the order of [`Kind::matrices`].
    pub matrices: Vec<TensorInfo>,
    pub rank: usize,
    pub alpha: Option<TensorInfo>,
}

impl Module {
    /// With what follows the module's name and a dot.
    pub fn tensors(&self) -> impl Iterator<Item = (&'static str, &TensorInfo)> {
        let matrices = self.kind.matrices().iter().map(|matrix| matrix.suffix);
        matrices
            .zip(&self.matrices)
            .chain(self.alpha.iter().map(|alpha| (ALPHA, alpha)))
    }

    pub fn shapes(&self) -> Vec<&[usize]> {
        self.matrices
            .iter()
            .map(|matrix| &matrix.shape[..])
            .collect()
    }

    /// `lora_down.weight [16, 3840], lora_up.weight [3840, 16]`
    pub fn described(&self) -> String {
        described(self.kind, &self.matrices)
    }
}

fn described(kind: Kind, matrices: &[TensorInfo]) -> String {
    let each = kind.matrices().iter().zip(matrices);
    let each: Vec<String> = each
        .map(|(matrix, info)| format!("{} {:?}", matrix.suffix, info.shape))
        .collect();
    each.join(", ")
}

/// How strong a module is, over its rank.
pub struct Alpha {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub value: f64,
    pub bytes: Vec<u8>,
}

impl<'a> Lora<'a> {
    /// # Errors
    /// [`Error::InvalidValue`] when it is no LoRA or LoHa of Z-Image that can be converted, [`Error::Io`].
    pub fn open(path: &'a Path) -> Result<Self, Error> {
        let mend = "Copy or download it again, whole, or train again.";
        let header = match weights::inspect(path, mend) {
            Ok(Weights::Whole(header)) => header,
            Ok(Weights::Unrecognised(why)) => {
                return Err(refused(
                    path,
                    &format!("expected a LoRA in a safetensors file, and {why}. {mend}"),
                ));
            }
            // Here, it is an argument that cannot work.
            Err(Error::Unusable(why)) => return Err(Error::InvalidValue(why)),
            Err(error) => return Err(error),
        };
        let failed = Error::io("read", path);
        let mut file = File::open(path).map_err(&failed)?;
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(&failed)?;
        let metadata = header.metadata().clone();
        let mut lora = Self {
            path,
            file,
            data_start: u64::from_le_bytes(length).saturating_add(8),
            metadata: metadata.map(|metadata| metadata.into_iter().collect()),
            modules: BTreeMap::new(),
        };
        let found_bytes = lora.file.metadata().map_err(failed)?.len();
        if found_bytes.checked_sub(lora.data_start) != Some(header.data_len() as u64) {
            return Err(lora.changed());
        }
        let mut modules: BTreeMap<String, BTreeMap<String, TensorInfo>> = BTreeMap::new();
        for name in header.offset_keys() {
            let Some(info) = header.info(&name) else {
                continue;
            };
            let (module, suffix) = lora.of_a_module(&name)?;
            if info.dtype.bitsize() % 8 != 0 {
                return Err(lora.refuse(&format!(
                    "its tensor {name:?} is of {}: expected numbers of whole bytes, as Musubi Tuner writes them.",
                    info.dtype
                )));
            }
            modules
                .entry(module.to_owned())
                .or_default()
                .insert(suffix.to_owned(), info.clone());
        }
        for (name, tensors) in modules {
            let module = lora.module_of(&name, tensors)?;
            lora.modules.insert(name, module);
        }
        if lora.modules.is_empty() {
            return Err(lora.refuse(
                "expected a LoRA, found a file without tensors. Train again, or take another copy.",
            ));
        }
        Ok(lora)
    }

    /// `what` says what was expected, what was found, and what to do.
    pub fn refuse(&self, what: &str) -> Error {
        refused(self.path, what)
    }

    /// To be warned of.
    pub fn remark(&self, what: &str) -> String {
        format!("{}: {what}", self.path.display())
    }

    /// The module's name, and what follows it.
    fn of_a_module<'n>(&self, name: &'n str) -> Result<(&'n str, &'n str), Error> {
        if name.starts_with("diffusion_model.") || name.starts_with("transformer.") {
            return Err(self.refuse(&format!(
                "it is in diffusers' naming already ({name:?}), which ComfyUI loads as it is. For the merged form, bring \
                 it into Musubi Tuner's naming first, with the clone's convert_lora.py --target default."
            )));
        }
        let (module, suffix) = name.split_once('.').unwrap_or((name, ""));
        if suffix.starts_with("lokr_") {
            return Err(self.refuse(&format!(
                "it is a LoKr ({name:?}); a LoRA or a LoHa can be converted. For the separate form of a LoKr, run the \
                 clone's convert_lora.py --target other; it has no merged form."
            )));
        }
        if !module.strip_prefix(PREFIX).is_some_and(is_of_z_image) {
            return Err(self.refuse(&format!(
                "its tensor {name:?} belongs to no module of Z-Image as Musubi Tuner names them, such as \
                 lora_unet_layers_0_attention_to_q. Convert a LoRA that zimage_train_network.py has trained."
            )));
        }
        let known = [Kind::LoRA, Kind::LoHa]
            .iter()
            .flat_map(|kind| kind.matrices())
            .any(|matrix| matrix.suffix == suffix);
        if !known && suffix != ALPHA {
            return Err(self.refuse(&format!(
                "its tensor {name:?} is none that a LoRA (lora_down.weight, lora_up.weight, alpha) or a LoHa (hada_w1_a, \
                 hada_w1_b, hada_w2_a, hada_w2_b, alpha) has. Convert a LoRA that zimage_train_network.py has trained."
            )));
        }
        Ok((module, suffix))
    }

    fn module_of(
        &self,
        name: &str,
        mut tensors: BTreeMap<String, TensorInfo>,
    ) -> Result<Module, Error> {
        let alpha = tensors.remove(ALPHA);
        let kind = if tensors.keys().any(|suffix| suffix.starts_with("hada_")) {
            Kind::LoHa
        } else {
            Kind::LoRA
        };
        let mut matrices = Vec::new();
        for Matrix { suffix, .. } in kind.matrices() {
            matrices.push(tensors.remove(*suffix).ok_or_else(|| {
                self.refuse(&format!(
                    "its module {name} is not complete: expected {name}.{suffix}, and it is missing. Train again, or take \
                     a whole LoRA."
                ))
            })?);
        }
        if let Some(suffix) = tensors.keys().next() {
            return Err(self.refuse(&format!(
                "its module {name} is a LoRA and a LoHa at once: expected one of them, found {suffix} beside {}.",
                described(kind, &matrices)
            )));
        }
        let rank = self.rank_of(name, kind, &matrices)?;
        Ok(Module {
            kind,
            matrices,
            rank,
            alpha,
        })
    }

    /// Of matrices that fit each other.
    fn rank_of(&self, name: &str, kind: Kind, matrices: &[TensorInfo]) -> Result<usize, Error> {
        let mut sizes = [None; 3];
        for (matrix, info) in kind.matrices().iter().zip(matrices) {
            let fits = match info.shape[..] {
                [rows, columns] if rows * columns > 0 => {
                    let (rank, outer, side) = if matrix.rank_first {
                        (rows, columns, 1)
                    } else {
                        (columns, rows, 2)
                    };
                    *sizes[0].get_or_insert(rank) == rank
                        && *sizes[side].get_or_insert(outer) == outer
                }
                _ => false,
            };
            if !fits {
                return Err(self.refuse(&format!(
                    "the shapes of its module {name} do not fit each other: expected {}, found {}. Train again, or take \
                     another copy.",
                    match kind {
                        Kind::LoRA => "lora_down.weight [rank, in], lora_up.weight [out, rank]",
                        Kind::LoHa => "hada_w1_a and hada_w2_a [out, rank], hada_w1_b and hada_w2_b [rank, in]",
                    },
                    described(kind, matrices)
                )));
            }
        }
        Ok(sizes[0].unwrap_or_default())
    }

    /// The module of this name, which `other` needs beside it.
    ///
    /// # Errors
    /// [`Error::InvalidValue`] when it is missing.
    pub fn module(&self, name: &str, other: &str) -> Result<&Module, Error> {
        self.modules.get(name).ok_or_else(|| {
            self.refuse(&format!(
                "it has the module {other}, and {name} is missing: q, k and v of an attention can only be merged \
                 together. Convert it with form=\"separate\", or train all three."
            ))
        })
    }

    /// # Errors
    /// [`Error::InvalidValue`] when it is no number, [`Error::Io`].
    pub fn alpha(&self, module: &str, info: &TensorInfo) -> Result<Alpha, Error> {
        let (start, end) = info.data_offsets;
        let mut numbers = Vec::new();
        let is_one = info.shape.iter().all(|size| *size == 1);
        let mut bytes = vec![0; if is_one { end - start } else { 0 }];
        self.read(start, &mut bytes)?;
        if numbers::decode(info.dtype, &bytes, &mut numbers)
            && let [value] = numbers[..]
        {
            return Ok(Alpha {
                dtype: info.dtype,
                shape: info.shape.clone(),
                value,
                bytes,
            });
        }
        Err(self.refuse(&format!(
            "{module}.alpha: expected one number, found {} of shape {:?}. Train again, or take another copy.",
            info.dtype, info.shape
        )))
    }

    /// Fills `bytes` from the data at `at`.
    ///
    /// # Errors
    /// [`Error::InvalidValue`] when the file has become shorter meanwhile, [`Error::Io`].
    pub fn read(&self, at: usize, bytes: &mut [u8]) -> Result<(), Error> {
        self.file
            .read_exact_at(bytes, self.data_start + at as u64)
            .map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => self.changed(),
                _ => Error::io("read", self.path)(error),
            })
    }

    fn changed(&self) -> Error {
        self.refuse("it has changed while it was read. Convert it once it is written.")
    }
}

fn refused(path: &Path, what: &str) -> Error {
    Error::InvalidValue(format!("cannot convert {}: {what}", path.display()))
}

/// Whether Z-Image has a module of this name.
fn is_of_z_image(name: &str) -> bool {
    part_of_a_block(name).is_some_and(|part| PARTS_OF_A_BLOCK.contains(&part))
        || BESIDE_THE_BLOCKS
            .iter()
            .any(|beside| name.starts_with(beside))
}

/// `attention_to_q` of `layers_0_attention_to_q`
fn part_of_a_block(name: &str) -> Option<&str> {
    let (number, part) = BLOCKS
        .iter()
        .find_map(|block| name.strip_prefix(block))?
        .split_once('_')?;
    let is_number = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
    is_number.then_some(part)
}
