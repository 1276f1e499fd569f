//! The file so far: of which version of the file on the server it is, and whether an answer goes on with it.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use reqwest::header::{self, HeaderMap, HeaderName};

use super::super::space;
use crate::error::Error;

/// The file so far, and what is needed to go on with it.
pub struct Partial {
    pub path: PathBuf,
    file: File,
    pub written: u64,
    /// Of the version that the bytes so far belong to.
    pub version: Option<Version>,
}

/// One state of the file on the server.
pub struct Version {
    pub total: Option<u64>,
    pub encodings: Vec<String>,
    pub validator: Option<String>,
}

impl Partial {
    pub fn create(path: &Path) -> Result<Self, Error> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .map_err(Error::io("write", path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            written: 0,
            version: None,
        })
    }

    pub fn restart(&mut self) -> Result<(), Error> {
        self.version = None;
        self.written = 0;
        self.file
            .set_len(0)
            .map_err(Error::io("write", &self.path))?;
        self.file
            .seek(SeekFrom::Start(0))
            .map_err(Error::io("write", &self.path))?;
        Ok(())
    }

    pub fn append(&mut self, chunk: &[u8]) -> Result<(), Error> {
        self.file
            .write_all(chunk)
            .map_err(space::write_failed(&self.path))?;
        self.written += chunk.len() as u64;
        Ok(())
    }

    /// What `Range` and `If-Range` say to go on, where there is something to go on with and a validator that tells
    /// whether the file is still the same.
    pub fn resumption(&self) -> Option<(String, String)> {
        let validator = self.version.as_ref()?.validator.clone()?;
        (self.written > 0).then(|| (format!("bytes={}-", self.written), validator))
    }
}

impl Version {
    pub fn of(headers: &HeaderMap) -> Self {
        Self {
            total: text(headers, &header::CONTENT_LENGTH).and_then(|length| length.parse().ok()),
            encodings: encodings(headers),
            validator: validator(headers),
        }
    }
}

pub fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

pub fn encodings(headers: &HeaderMap) -> Vec<String> {
    let values = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(|encoding| encoding.trim().to_ascii_lowercase())
        .filter(|encoding| !encoding.is_empty() && encoding != "identity")
        .collect()
}

/// A strong validator: an `ETag` that is not weak, else a `Last-Modified` that is older than the answer (a file may
/// change twice within its one second of resolution; RFC 9110, 8.8.2.2).
pub fn validator(headers: &HeaderMap) -> Option<String> {
    if let Some(etag) = text(headers, &header::ETAG).filter(|etag| etag.starts_with('"')) {
        return Some(etag.to_owned());
    }
    let modified = text(headers, &header::LAST_MODIFIED)?;
    (text(headers, &header::DATE) != Some(modified)).then(|| modified.to_owned())
}

/// Whether a 206 that nobody asked for brings all of the file: some servers and proxies always answer so.
pub fn is_whole(headers: &HeaderMap) -> bool {
    let Some(range) = headers.get(header::CONTENT_RANGE) else {
        return true;
    };
    let whole = |range: &str| {
        let (span, total) = range.strip_prefix("bytes ")?.split_once('/')?;
        let (start, end) = span.split_once('-')?;
        let after_end = end.trim().parse::<u64>().ok()?.checked_add(1)?;
        let is_total = total.trim() == "*" || total.trim().parse() == Ok(after_end);
        Some(start.trim() == "0" && is_total)
    };
    range.to_str().ok().and_then(whole).unwrap_or_default()
}

/// Whether a 206 goes on exactly where the file ends, with the same version of it.
pub fn continues(partial: &Partial, headers: &HeaderMap) -> Result<(), String> {
    let Some(version) = partial.version.as_ref().filter(|_| partial.written > 0) else {
        return Err("the server sent a part of the file where all of it was asked for".to_owned());
    };
    let range = text(headers, &header::CONTENT_RANGE).unwrap_or_default();
    let parsed = range.strip_prefix("bytes ").and_then(|range| {
        let (span, total) = range.split_once('/')?;
        Some((
            span.split_once('-')?.0.trim().parse::<u64>().ok()?,
            total.trim().parse::<u64>().ok(),
        ))
    });
    let Some((start, total)) = parsed else {
        return Err(format!(
            "the server resumed with an unreadable Content-Range {range:?}"
        ));
    };
    if start != partial.written {
        return Err(format!(
            "the server resumed at byte {start} where byte {} was asked for",
            partial.written
        ));
    }
    if total.is_some_and(|total| version.total.is_some_and(|known| known != total)) {
        return Err("the file on the server has another length now".to_owned());
    }
    let etag = text(headers, &header::ETAG);
    if etag.is_some_and(|etag| {
        version
            .validator
            .as_ref()
            .is_some_and(|known| known.starts_with('"') && known != etag)
    }) || encodings(headers) != version.encodings
    {
        return Err("the file on the server is another one now".to_owned());
    }
    Ok(())
}
