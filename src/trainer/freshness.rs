//! Whether a step has written its file, told from a file of an earlier run under the same name.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::Error;

/// What was at a path before a step ran.
pub struct Before(Option<Identity>);

/// Changes whenever a file, or a link to one, is written or replaced, even by one of the same size and time.
pub type Identity = [(u64, u64, u64, (i64, i64), (i64, i64)); 2];

impl Before {
    pub fn look(path: &Path) -> Self {
        Self(identity(path))
    }

    /// # Errors
    /// [`Error::Missing`] with `what` when the step has left nothing at `path`, or what was there before.
    pub fn written_since(&self, what: &'static str, path: &Path) -> Result<(), Error> {
        let now = identity(path);
        if now.is_none() || now == self.0 {
            return Err(Error::Missing {
                what,
                path: path.to_owned(),
            });
        }
        Ok(())
    }
}

pub fn identity(path: &Path) -> Option<Identity> {
    let of = |found: fs::Metadata| {
        let changed = (found.ctime(), found.ctime_nsec());
        let written = (found.mtime(), found.mtime_nsec());
        (found.dev(), found.ino(), found.size(), written, changed)
    };
    Some([
        of(fs::metadata(path).ok()?),
        of(fs::symlink_metadata(path).ok()?),
    ])
}
