//! Whether the disk has room for a dataset, and what is said when it has not.

use std::io;
use std::path::Path;

use crate::disk::free_bytes;
use crate::error::Error;

/// # Errors
/// [`Error::Io`] with both numbers when `needed` bytes do not fit beside `path`.
pub fn require(path: &Path, needed: u64, what: &str) -> Result<(), Error> {
    match free_bytes(path) {
        // Some network file systems say 0 for "unknown". There, and on a disk that is really full, writing tells.
        Ok(free) if free > 0 && free < needed => {
            let reason = format!(
                "{what} needs {needed} bytes and {free} are free: make room, or use another disk"
            );
            let full = io::Error::new(io::ErrorKind::StorageFull, reason);
            Err(Error::io("write", path)(full))
        }
        _ => Ok(()),
    }
}

/// For `map_err` on writes of zips, photos and captions: a full disk is named with what is left.
pub fn write_failed(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    move |source| {
        let source = match (source.kind(), free_bytes(path)) {
            (io::ErrorKind::StorageFull, Ok(free)) => io::Error::new(
                io::ErrorKind::StorageFull,
                format!("the disk is full ({free} bytes free): make room, or use another disk"),
            ),
            _ => source,
        };
        Error::io("write", path)(source)
    }
}
