//! Where photos are: at a URL, in a zip or in a folder that is here already.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use reqwest::Url;

use super::Layout;
use super::download::{RedactedUrl, invalid};
use crate::error::Error;

/// As callers name it.
#[derive(Clone, Copy, Debug)]
pub enum Photos<'a> {
    /// A URL, or a path.
    Text(&'a str),
    Path(&'a Path),
}

#[derive(Debug)]
pub enum Origin {
    Url(RedactedUrl),
    Zip(PathBuf),
    Folder(PathBuf),
}

impl Origin {
    /// # Errors
    /// [`Error::InvalidUrl`] for text that is neither a URL nor a path to something, [`Error::Missing`] for a path to
    /// nothing, [`Error::Unusable`] for what is neither a file nor a folder, [`Error::Io`].
    pub fn of(photos: Photos<'_>) -> Result<Self, Error> {
        let text = match photos {
            Photos::Path(path) => {
                return Self::at(path)?.ok_or_else(|| Error::Missing {
                    what: "No zip and no folder of photos is here",
                    path: path.to_owned(),
                });
            }
            Photos::Text(text) => text,
        };
        if text.trim_start().to_ascii_lowercase().starts_with("file:") {
            let path = path_of(text.trim())?;
            return Self::at(&path)?
                .ok_or_else(|| invalid(&format!("nothing is at {}", path.display())));
        }
        let refused = match RedactedUrl::parse(text) {
            Ok(url) => return Ok(Self::Url(url)),
            Err(refused) => refused,
        };
        if text.contains("://") || text.trim().is_empty() {
            return Err(refused);
        }
        Self::at(Path::new(text))?.ok_or_else(|| {
            let path = shown_path(text).map_or_else(
                || "at that path".to_owned(),
                |path| format!("at the path {path:?}"),
            );
            invalid(&format!(
                "it does not begin with http:// or https://, and nothing is {path}"
            ))
        })
    }

    /// `None` where nothing is.
    fn at(path: &Path) -> Result<Option<Self>, Error> {
        let found = match fs::metadata(path) {
            Ok(found) => found,
            Err(error) => {
                return match error.kind() {
                    io::ErrorKind::NotFound
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::InvalidFilename
                    | io::ErrorKind::InvalidInput => Ok(None),
                    _ => Err(Error::io("look at", path)(error)),
                };
            }
        };
        if found.is_dir() {
            Ok(Some(Self::Folder(path.to_owned())))
        } else if found.is_file() {
            Ok(Some(Self::Zip(path.to_owned())))
        } else {
            Err(Error::Unusable(format!(
                "{} is a pipe, a socket or a device: images_zip_url takes a zip that is a file, or a folder of photos",
                path.display()
            )))
        }
    }

    /// Refuses what lies where the new dataset goes, and a folder in which it would come to lie.
    ///
    /// # Errors
    /// [`Error::InvalidValue`], [`Error::Io`].
    pub fn refuse_in_the_way(&self, layout: &Layout) -> Result<(), Error> {
        let (Self::Zip(path) | Self::Folder(path)) = self else {
            return Ok(());
        };
        let resolved = |path: &Path| path.canonicalize().map_err(Error::io("look at", path));
        let (given, training) = (resolved(path)?, resolved(layout.folder())?);
        let reason = if training.starts_with(&given) {
            "holds the training folder"
        } else if layout
            .names()
            .any(|name| given.starts_with(training.join(name)))
        {
            "is replaced with the dataset"
        } else {
            return Ok(());
        };
        Err(Error::InvalidValue(format!(
            "images_zip_url={}: it {reason} {}, so that the photos would be lost or mixed with those of the last run: \
             keep them elsewhere",
            path.display(),
            layout.folder().display()
        )))
    }
}

/// What a `file://` URL leads to on this machine.
fn path_of(text: &str) -> Result<PathBuf, Error> {
    let path = Url::parse(text)
        .ok()
        .and_then(|url| url.to_file_path().ok());
    path.ok_or_else(|| {
        invalid("it is a file:// URL that leads to no file of this machine: write file:///path/to/photos.zip")
    })
}

/// Text that is probably a path, as far as it may be shown: no query, no user, no password and no data.
fn shown_path(text: &str) -> Option<String> {
    let first = text.split('/').next().unwrap_or_default();
    if first.contains([':', '@']) {
        return None;
    }
    text.split(['?', '#']).next().map(str::to_owned)
}
