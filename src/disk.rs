//! Room on a disk, and what is said when there is too little; removing what may be there.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::StatVfs;

use crate::error::Error;

/// What a process without privileges may still write to the file system of `path`, which must exist.
///
/// # Errors
/// [`Error::Io`] when the file system does not say.
pub fn free_bytes(path: &Path) -> Result<u64, Error> {
    let found = rustix::fs::statvfs(path)
        .map_err(|errno| Error::io("look up the free space of", path)(errno.into()))?;
    Ok(free_bytes_of(&found))
}

fn free_bytes_of(found: &StatVfs) -> u64 {
    found.f_bavail.saturating_mul(found.f_frsize)
}

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

/// For `map_err` on what takes room: a full disk is named with what is left.
pub fn failed<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + 'a {
    move |source| {
        let source = if source.kind() == io::ErrorKind::StorageFull {
            why_full(path).unwrap_or(source)
        } else {
            source
        };
        Error::io(action, path)(source)
    }
}

/// `path` itself may not have come to be.
fn why_full(path: &Path) -> Option<io::Error> {
    let found = path
        .ancestors()
        .find_map(|existing| rustix::fs::statvfs(existing).ok())?;
    let reason = if found.f_files > 0 && found.f_favail == 0 {
        format!(
            "the disk takes no more files (all of its {} inodes are in use): delete some, or use another disk",
            found.f_files
        )
    } else {
        format!(
            "the disk is full ({} bytes free): make room, or use another disk",
            free_bytes_of(&found)
        )
    };
    Some(io::Error::new(io::ErrorKind::StorageFull, reason))
}

/// Removes a file, a link (not what it points to) or a folder with all in it; it may be absent.
///
/// # Errors
/// [`Error::Io`].
pub fn remove(path: &Path) -> Result<(), Error> {
    let result = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}
