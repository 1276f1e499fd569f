//! The two hashes that stand in a LoRA's metadata, as sd-webui-additional-networks takes them.

use std::ops::Range;

use ring::digest::{Context, SHA256};

const MODEL_HASH: &str = "sshs_model_hash";
const LEGACY_HASH: &str = "sshs_legacy_hash";
const LEGACY_DIGITS: usize = 8;

/// What of the file the legacy hash is of.
const LEGACY_BYTES: Range<usize> = 0x10_0000..0x11_0000;

/// Hashes of a file that has only the metadata of the training, so that later remarks in it change nothing.
pub struct Hashes {
    model: Context,
    legacy: Context,
    /// Of the file, so far.
    bytes: usize,
}

impl Hashes {
    pub fn new(header: &[u8]) -> Self {
        let mut hashes = Self {
            model: Context::new(&SHA256),
            legacy: Context::new(&SHA256),
            bytes: 0,
        };
        hashes.file(header);
        hashes
    }

    /// The next of what is behind the header.
    pub fn data(&mut self, bytes: &[u8]) {
        self.model.update(bytes);
        self.file(bytes);
    }

    fn file(&mut self, bytes: &[u8]) {
        let within = |end: usize| end.saturating_sub(self.bytes).min(bytes.len());
        self.legacy
            .update(&bytes[within(LEGACY_BYTES.start)..within(LEGACY_BYTES.end)]);
        self.bytes += bytes.len();
    }

    pub fn finish(self) -> [(String, String); 2] {
        let hex = |context: Context| -> String {
            let digest = context.finish();
            let digits = digest
                .as_ref()
                .iter()
                .flat_map(|byte| [byte >> 4, byte & 15]);
            digits
                .filter_map(|digit| char::from_digit(digit.into(), 16))
                .collect()
        };
        let mut legacy = hex(self.legacy);
        legacy.truncate(LEGACY_DIGITS);
        [
            (MODEL_HASH.to_owned(), hex(self.model)),
            (LEGACY_HASH.to_owned(), legacy),
        ]
    }
}

/// Of the same length, to keep their places.
pub fn unknown() -> [(String, String); 2] {
    Hashes::new(&[])
        .finish()
        .map(|(key, hash)| (key, "0".repeat(hash.len())))
}
