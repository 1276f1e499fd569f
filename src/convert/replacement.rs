//! A file that takes another's place once it is complete, and is gone without a trace if it never is.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::disk;
use crate::error::Error;

/// As many links as the kernel follows.
const MOST_LINKS: usize = 40;

pub struct Replacement {
    part: NamedTempFile,
    /// As it was named, for errors.
    destination: PathBuf,
    /// Where links lead to.
    place: PathBuf,
}

impl Replacement {
    /// Makes room for `bytes` bytes beside `destination`, which stays as it is, and must be one that could be written.
    ///
    /// # Errors
    /// [`Error::Io`], with both numbers where there is too little room; [`Error::InvalidValue`] for what is no file.
    pub fn beside(destination: &Path, bytes: u64, what: &str) -> Result<Self, Error> {
        let failed = disk::failed("write", destination);
        let old = match fs::metadata(destination) {
            Ok(found) if found.is_dir() => {
                return Err(failed(io::Error::from_raw_os_error(libc::EISDIR)));
            }
            Ok(found) if !found.is_file() => {
                return Err(Error::InvalidValue(format!(
                    "cannot write {}: it is there already, and it is a device or a pipe; expected a file, or nothing",
                    destination.display()
                )));
            }
            Ok(found) => {
                File::options()
                    .write(true)
                    .open(destination)
                    .map_err(&failed)?;
                Some(found)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        let place = where_links_lead(destination);
        let folder = match place.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let part = tempfile::Builder::new()
            .prefix(".convert-")
            .suffix(".part")
            .make_in(folder, |path| File::create_new(path))
            .map_err(&failed)?;
        if let Some(old) = old {
            // Who may not give files away goes on as the new one's owner.
            let _ = fchown(part.as_file(), Some(old.uid()), Some(old.gid()));
            part.as_file()
                .set_permissions(old.permissions())
                .map_err(&failed)?;
        }
        disk::require(folder, bytes, what)?;
        drop(failed);
        Ok(Self {
            part,
            destination: destination.to_owned(),
            place,
        })
    }

    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        self.part
            .as_file()
            .write_all(bytes)
            .map_err(disk::failed("write", &self.destination))
    }

    /// Writes over the beginning.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn rewrite_beginning(&self, bytes: &[u8]) -> Result<(), Error> {
        self.part
            .as_file()
            .seek(SeekFrom::Start(0))
            .map_err(Error::io("write", &self.destination))?;
        self.write(bytes)
    }

    /// # Errors
    /// [`Error::Io`].
    pub fn put_in_place(self) -> Result<(), Error> {
        self.part
            .persist(&self.place)
            .map(drop)
            .map_err(|error| Error::io("rename into place", &self.destination)(error.error))
    }
}

/// The last of the links may lead to nothing.
fn where_links_lead(path: &Path) -> PathBuf {
    let mut place = path.to_owned();
    for _ in 0..MOST_LINKS {
        let Ok(target) = fs::read_link(&place) else {
            break;
        };
        place.set_file_name("");
        place.push(target);
    }
    place
}
