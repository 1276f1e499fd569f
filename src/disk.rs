//! Room on a disk.

use std::path::Path;

use crate::error::Error;

/// What a process without privileges may still write to the file system of `path`, which must exist.
///
/// # Errors
/// [`Error::Io`] when the file system does not say.
pub fn free_bytes(path: &Path) -> Result<u64, Error> {
    let found = rustix::fs::statvfs(path)
        .map_err(|errno| Error::io("look up the free space of", path)(errno.into()))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}
