//! The two hashes that stand in a LoRA's metadata, as sd-webui-additional-networks takes them.

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};

use ring::digest::{Context, SHA256};

use crate::error::Error;

pub const MODEL_HASH: &str = "sshs_model_hash";
pub const MODEL_DIGITS: usize = 64;
pub const LEGACY_HASH: &str = "sshs_legacy_hash";
pub const LEGACY_DIGITS: usize = 8;

/// What of the file the legacy hash is of.
const LEGACY_BYTES: Range<usize> = 0x10_0000..0x11_0000;

/// Pieces that may wait to be hashed.
const PIECES_WAITING: usize = 4;

/// Hashes of a file that has only the metadata of the training, so that later remarks in it change nothing. Taken on a
/// thread of its own, as it takes as long as all the rest.
pub struct Hashes {
    pieces: SyncSender<Vec<u8>>,
    hashed: Receiver<Vec<u8>>,
    thread: JoinHandle<[String; 2]>,
}

impl Hashes {
    /// # Errors
    /// [`Error::Unusable`] when there is no thread to be had.
    pub fn begin(header: &[u8]) -> Result<Self, Error> {
        let mut legacy = Legacy {
            context: Context::new(&SHA256),
            bytes: 0,
        };
        legacy.update(header);
        let (pieces, to_hash) = sync_channel(PIECES_WAITING);
        let (done, hashed) = channel();
        let thread = Builder::new()
            .spawn(move || hash(legacy, &to_hash, &done))
            .map_err(|error| Error::Unusable(format!("cannot start a thread: {error}")))?;
        Ok(Self {
            pieces,
            hashed,
            thread,
        })
    }

    /// Takes the next of what is behind the header; gives an empty buffer in its place.
    ///
    /// # Errors
    /// [`Error::Unusable`] when the thread has ended.
    pub fn add(&self, piece: Vec<u8>) -> Result<Vec<u8>, Error> {
        self.pieces.send(piece).map_err(|_| ended())?;
        let mut buffer = self.hashed.try_recv().unwrap_or_default();
        buffer.clear();
        Ok(buffer)
    }

    /// The hash of the model, and the legacy one.
    ///
    /// # Errors
    /// [`Error::Unusable`] when the thread has failed.
    pub fn finish(self) -> Result<[String; 2], Error> {
        drop(self.pieces);
        self.thread.join().map_err(|_| ended())
    }
}

fn ended() -> Error {
    Error::Unusable("internal error in musubitraining, please report it: no hashes".to_owned())
}

fn hash(mut legacy: Legacy, pieces: &Receiver<Vec<u8>>, done: &Sender<Vec<u8>>) -> [String; 2] {
    let mut model = Context::new(&SHA256);
    for piece in pieces {
        model.update(&piece);
        legacy.update(&piece);
        // Nobody wants the last ones.
        let _ = done.send(piece);
    }
    [hex(model, MODEL_DIGITS), hex(legacy.context, LEGACY_DIGITS)]
}

struct Legacy {
    context: Context,
    /// Of the file, so far.
    bytes: usize,
}

impl Legacy {
    fn update(&mut self, piece: &[u8]) {
        let within = |end: usize| end.saturating_sub(self.bytes).min(piece.len());
        let (start, end) = (within(LEGACY_BYTES.start), within(LEGACY_BYTES.end));
        self.context.update(&piece[start..end]);
        self.bytes += piece.len();
    }
}

fn hex(context: Context, digits: usize) -> String {
    let digest = context.finish();
    let halves = digest
        .as_ref()
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15]);
    halves
        .filter_map(|half| char::from_digit(half.into(), 16))
        .take(digits)
        .collect()
}
