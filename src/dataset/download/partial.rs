//! The file so far: of which version of the file on the server it is, and whether an answer goes on with it.

use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{self, HeaderMap, HeaderName};

use super::super::archive::Arrival;
use crate::disk;
use crate::error::Error;

/// Somebody else may fill the disk meanwhile: how often is looked.
const BYTES_BETWEEN_ROOM_CHECKS: u64 = 16 << 20;

/// The file so far, and what is needed to go on with it.
pub struct Partial {
    pub zip: Arrival,
    /// Of the version that the bytes so far belong to.
    pub version: Option<Version>,
    room_checked_at: u64,
}

/// One state of the file on the server.
pub struct Version {
    pub total: Option<u64>,
    pub encodings: Vec<String>,
    etag: Option<String>,
    last_modified: Option<String>,
    /// The one of the two that is strong enough to go on by.
    validator: Option<String>,
}

impl Partial {
    pub fn new(zip: Arrival) -> Self {
        Self {
            zip,
            version: None,
            room_checked_at: 0,
        }
    }

    pub fn written(&self) -> u64 {
        self.zip.bytes()
    }

    pub fn restart(&mut self) -> Result<(), Error> {
        self.version = None;
        self.room_checked_at = 0;
        self.zip.restart()
    }

    /// Goes on with an answer that brings all of the file.
    pub fn begin(&mut self, version: Version) -> Result<(), Error> {
        if !version.encodings.is_empty() {
            self.zip.stop_following();
        }
        self.version = Some(version);
        self.require_room()
    }

    pub fn append(&mut self, chunk: &[u8]) -> Result<(), Error> {
        let written = self.written() + chunk.len() as u64;
        let total = self.version.as_ref().and_then(|version| version.total);
        self.zip
            .append(chunk, total.map(|total| total.saturating_sub(written)))?;
        if written - self.room_checked_at >= BYTES_BETWEEN_ROOM_CHECKS {
            self.require_room()?;
        }
        Ok(())
    }

    /// Refuses what will not fit, where the server has said how long the file is.
    pub fn require_room(&mut self) -> Result<(), Error> {
        self.room_checked_at = self.written();
        match self.version.as_ref().and_then(|version| version.total) {
            Some(total) => disk::require(
                self.zip.path(),
                total.saturating_sub(self.written()),
                "the rest of the download",
            ),
            None => Ok(()),
        }
    }

    /// What `Range` and `If-Range` say to go on, where there is something to go on with and a validator that tells
    /// whether the file is still the same.
    pub fn resumption(&self) -> Option<(String, String)> {
        let validator = self.version.as_ref()?.validator.clone()?;
        (self.written() > 0).then(|| (format!("bytes={}-", self.written()), validator))
    }
}

impl Version {
    /// That of an answer that brings all of the file.
    pub fn of(status: StatusCode, headers: &HeaderMap) -> Self {
        let owned = |name| text(headers, name).map(str::to_owned);
        // Beside chunks a length means nothing (RFC 9112, 6.3).
        let length = text(headers, &header::CONTENT_LENGTH)
            .filter(|_| !headers.contains_key(header::TRANSFER_ENCODING));
        let range = text(headers, &header::CONTENT_RANGE)
            .filter(|_| status == StatusCode::PARTIAL_CONTENT)
            .and_then(ContentRange::parse);
        Self {
            total: range
                .map(|range| range.last + 1)
                .or_else(|| length?.parse().ok()),
            encodings: encodings(headers),
            etag: owned(&header::ETAG),
            last_modified: owned(&header::LAST_MODIFIED),
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

/// A strong validator: an `ETag` that is not weak, else a `Last-Modified` from at least a second before the answer (a
/// file may change twice within its one second of resolution; RFC 9110, 8.8.2.2).
fn validator(headers: &HeaderMap) -> Option<String> {
    if let Some(etag) = text(headers, &header::ETAG).filter(|etag| etag.starts_with('"')) {
        return Some(etag.to_owned());
    }
    let modified = text(headers, &header::LAST_MODIFIED)?;
    let age = date(headers)?
        .duration_since(httpdate::parse_http_date(modified).ok()?)
        .ok()?;
    (age >= Duration::from_secs(1)).then(|| modified.to_owned())
}

/// When the server says that it is.
pub fn date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(text(headers, &header::DATE)?).ok()
}

/// `Content-Range: bytes 0-99/100`, or with `*` for a length that the server does not know (RFC 9110, 14.4).
#[derive(Debug, PartialEq, Eq)]
pub struct ContentRange {
    pub first: u64,
    pub last: u64,
    pub total: Option<u64>,
}

impl ContentRange {
    /// `None` for what is none, or makes no sense.
    pub fn parse(value: &str) -> Option<Self> {
        let (unit, range) = value.trim().split_once(' ')?;
        let (span, total) = range.split_once('/')?;
        let (first, last) = span.split_once('-')?;
        let number = |digits: &str| digits.trim().parse::<u64>().ok();
        let (first, last) = (number(first)?, number(last)?);
        let total = match total.trim() {
            "*" => None,
            digits => Some(number(digits)?),
        };
        let makes_sense = unit.eq_ignore_ascii_case("bytes")
            && first <= last
            && last < u64::MAX
            && total.is_none_or(|total| last < total);
        makes_sense.then_some(Self { first, last, total })
    }

    fn is_whole(&self) -> bool {
        self.first == 0 && self.total.is_none_or(|total| total - 1 == self.last)
    }
}

/// Whether a 206 that nobody asked for brings all of the file: some servers and proxies always answer so.
pub fn is_whole(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_RANGE).is_none_or(|range| {
        let range = range.to_str().ok().and_then(ContentRange::parse);
        range.is_some_and(|range| range.is_whole())
    })
}

/// Whether a 206 goes on exactly where the file ends, with the same version of it; if so, its length is known from
/// here on where the server says it.
pub fn continues(partial: &mut Partial, headers: &HeaderMap) -> Result<(), String> {
    let written = partial.written();
    let Some(version) = partial.version.as_mut().filter(|_| written > 0) else {
        return Err("the server sent a part of the file where all of it was asked for".to_owned());
    };
    let range = text(headers, &header::CONTENT_RANGE).unwrap_or_default();
    let Some(range) = ContentRange::parse(range) else {
        return Err(format!(
            "the server resumed with an unreadable Content-Range {range:?}"
        ));
    };
    if range.first != written {
        return Err(format!(
            "the server resumed at byte {} where byte {written} was asked for",
            range.first
        ));
    }
    let total = range.total.or(version.total);
    if version.total.is_some_and(|known| total != Some(known)) {
        return Err("the file on the server has another length now".to_owned());
    }
    // A server need not say them again; where it does, they are those of the part.
    let is_other = |name, known: &Option<String>| {
        let now = text(headers, name);
        now.is_some() && known.is_some() && now != known.as_deref()
    };
    if is_other(&header::ETAG, &version.etag)
        || is_other(&header::LAST_MODIFIED, &version.last_modified)
        || encodings(headers) != version.encodings
    {
        return Err("the file on the server is another one now".to_owned());
    }
    version.total = total;
    Ok(())
}
