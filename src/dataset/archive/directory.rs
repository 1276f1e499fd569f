//! Where a zip's directory lies and what it says of each entry, as Python's `zipfile` finds and reads it: by its size.
//! The number of entries in the record at the end is wrong in zips of some writers, most of all from 65,536 on.

use std::io::{self, BufReader, Read, Seek, SeekFrom};

use super::names::decoded_name;
use super::{Limits, Zip, ZipReader, damaged};
use crate::error::Error;

const END: &[u8] = b"PK\x05\x06";
const END_BYTES: usize = 22;
const END_64: &[u8] = b"PK\x06\x06";
const END_64_BYTES: usize = 56;
const LOCATOR_64: &[u8] = b"PK\x06\x07";
const LOCATOR_64_BYTES: usize = 20;
/// The record, with the longest comment behind it and those of zip64 before it.
pub const MOST_TAIL_BYTES: usize = END_BYTES + 0xffff + END_64_BYTES + LOCATOR_64_BYTES;
/// In the place of a number that only zip64 can hold.
const IN_ZIP64: u64 = 0xffff_ffff;

pub const HEADER: &[u8] = b"PK\x01\x02";
pub const HEADER_BYTES: usize = 46;

/// What the directory says of a file or folder.
#[derive(Debug)]
pub struct Entry {
    /// With its folders.
    pub name: String,
    /// As it stands in the directory.
    pub raw_name: Vec<u8>,
    /// Of `stat`'s mode, as far as it names the kind of file; zero where that is not said.
    pub kind: u32,
    pub flags: u16,
    pub method: u16,
    pub crc32: u32,
    pub compressed_bytes: u64,
    pub bytes: u64,
    pub header_start: u64,
}

/// Flags: of one entry, of one entry in a stronger way, and of the directory; and of data that change other data.
pub const ENCRYPTED: u16 = 1 | 1 << 6 | 1 << 13;
pub const PATCH: u16 = 1 << 5;

pub const FOLDER: u32 = 0o040_000;

/// A number from little-endian bytes; those past the end count as zero.
pub fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    let digits = bytes.iter().skip(at).take(length).rev();
    digits.fold(0, |number, byte| number << 8 | u64::from(*byte))
}

pub fn number_16(bytes: &[u8], at: usize) -> u16 {
    u16::try_from(number(bytes, at, 2)).unwrap_or_default()
}

pub fn number_32(bytes: &[u8], at: usize) -> u32 {
    u32::try_from(number(bytes, at, 4)).unwrap_or_default()
}

/// The record at the end of a zip.
#[derive(Debug)]
pub struct EndRecord {
    at: u64,
    comment_end: u64,
    directory_end: u64,
    directory_bytes: u64,
    /// Where it is said to begin, as if nothing preceded the zip.
    directory_offset: u64,
    pub is_of_several_parts: bool,
}

impl EndRecord {
    /// The last record that leads to a directory; or why there is none, or not one alone.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn find(zip: &Zip, limits: &Limits) -> Result<Result<Self, String>, Error> {
        Self::find_in(zip, limits).map_err(|error| zip.unreadable(error))
    }

    fn find_in(zip: &Zip, limits: &Limits) -> io::Result<Result<Self, String>> {
        /// Of what reads like such records.
        const MOST: usize = 64;
        let length = zip.bytes;
        let tail_start = length.saturating_sub(MOST_TAIL_BYTES as u64);
        let mut tail = Vec::new();
        let mut reader = BufReader::new(zip.reader());
        reader.seek(SeekFrom::Start(tail_start))?;
        reader.read_to_end(&mut tail)?;

        let mut found: Vec<Self> = Vec::new();
        let mut last = None;
        let mut fault = "no record of its directory ends it".to_owned();
        let places = (0..tail.len().saturating_sub(END_BYTES - 1)).rev();
        let places: Vec<usize> = places
            .filter(|at| tail[*at..].starts_with(END))
            .take(MOST + 1)
            .collect();
        if places.len() > MOST {
            return Ok(Err(format!("it ends more than {MOST} times")));
        }
        for at in places {
            let end = match Self::parse(&tail, at, tail_start) {
                Ok(end) => end,
                Err(lie) if found.is_empty() => return Ok(Err(lie)),
                // Of a zip in the zip.
                Err(_) => continue,
            };
            if is_directory(&mut reader, &end, limits.entries)? {
                found.push(end);
            } else if last.is_none() {
                fault = format!(
                    "the record at byte {} says that a directory of {} bytes ends at byte {}, and none does",
                    tail_start + at as u64,
                    end.directory_bytes,
                    end.directory_end
                );
            }
            last.get_or_insert(tail_start + at as u64);
        }
        let mut found = found.into_iter();
        let (Some(end), Some(last)) = (found.next(), last) else {
            return Ok(Err(fault));
        };
        // A comment may hold what looks like a record, but readers must not differ on which of two is the record.
        let other = if last > end.at && end.comment_end < length {
            Some(last)
        } else {
            found
                .find(|other| other.comment_end == length)
                .map(|other| other.at)
        };
        Ok(match other {
            Some(other) => Err(format!(
                "it ends twice, by a record at byte {} and by one at byte {}",
                end.at.min(other),
                end.at.max(other)
            )),
            None => Ok(end),
        })
    }

    /// The record at `at` of `tail`, and that of zip64 before it.
    fn parse(tail: &[u8], at: usize, tail_start: u64) -> Result<Self, String> {
        let end = &tail[at..];
        let end_start = tail_start + at as u64;
        let comment_bytes = number(end, 20, 2);
        let (mut directory_end, mut disk) = (end_start, number(end, 4, 2));
        let (mut size, mut offset) = (number(end, 12, 4), number(end, 16, 4));
        if let Some(record) = end_64(tail, at, tail_start)? {
            for (what, short, long) in [
                ("directory's size is", size, number(record.1, 40, 8)),
                ("directory's offset is", offset, number(record.1, 48, 8)),
            ] {
                if short != IN_ZIP64 && short != long {
                    return Err(format!(
                        "the {what} {short} by the record at byte {end_start} and {long} by the one at byte {}",
                        record.0
                    ));
                }
            }
            directory_end = record.0;
            disk = number(record.1, 16, 4);
            (size, offset) = (number(record.1, 40, 8), number(record.1, 48, 8));
        }
        Ok(Self {
            at: end_start,
            comment_end: end_start + END_BYTES as u64 + comment_bytes,
            directory_bytes: size,
            directory_end,
            directory_offset: offset,
            is_of_several_parts: disk != 0,
        })
    }

    pub fn directory_start(&self) -> u64 {
        self.directory_end.saturating_sub(self.directory_bytes)
    }

    /// # Errors
    /// [`Error::BadZip`] for more than is allowed, or numbers and names that cannot be; [`Error::Io`].
    pub fn entries(&self, zip: &Zip, limits: &Limits) -> Result<Vec<Entry>, Error> {
        /// A name, extra fields and a comment, on the average: what all of them take has to fit into memory.
        const MOST_ENTRY_BYTES: u64 = 512;
        /// The longest path that a system takes.
        const LONGEST_NAME_BYTES: usize = 4096;
        let bytes = self.directory_bytes;
        let most_bytes = limits.entries.saturating_mul(MOST_ENTRY_BYTES).max(1 << 20);
        let too_much = |what: String| {
            Error::BadZip(format!(
                "the zip has {what}: put fewer into it, or set trainer.dataset_limits = \
                 DatasetLimits(entries=...)"
            ))
        };
        if bytes > most_bytes {
            return Err(too_much(format!(
                "a directory of {bytes} bytes, {most_bytes} are allowed for {} entries",
                limits.entries
            )));
        }
        let mut reader = BufReader::new(zip.reader());
        let io = |error| zip.unreadable(error);
        reader
            .seek(SeekFrom::Start(self.directory_start()))
            .map_err(io)?;
        let mut left = reader.take(bytes);
        let mut entries = Vec::new();
        while left.limit() > 0 {
            if entries.len() as u64 == limits.entries {
                return Err(too_much(format!(
                    "more entries than the {} that are allowed",
                    limits.entries
                )));
            }
            let mut header = [0; HEADER_BYTES];
            left.read_exact(&mut header).map_err(io)?;
            let mut rest = |at| -> Result<Vec<u8>, Error> {
                let mut bytes = vec![0; usize::from(number_16(&header, at))];
                left.read_exact(&mut bytes).map_err(io)?;
                Ok(bytes)
            };
            let (name, extra, _comment) = (rest(28)?, rest(30)?, rest(32)?);
            if name.len() > LONGEST_NAME_BYTES {
                return Err(Error::BadZip(format!(
                    "entry {} of the zip has a name of {} bytes, {LONGEST_NAME_BYTES} are allowed: give it a shorter one",
                    entries.len(),
                    name.len()
                )));
            }
            entries.push(self.entry(&header, name, &extra)?);
        }
        Ok(entries)
    }

    fn entry(&self, header: &[u8], raw_name: Vec<u8>, extra: &[u8]) -> Result<Entry, Error> {
        const UNIX: u8 = 3;
        const DOS_FOLDER: u64 = 0x10;
        let flags = number_16(header, 8);
        let mut name = decoded_name(&raw_name, flags);
        let mut bytes = number(header, 24, 4);
        let mut compressed_bytes = number(header, 20, 4);
        let mut offset = number(header, 42, 4);
        let mut other_name = None;
        for field in extra_fields(extra) {
            let (kind, content) = field.map_err(|reason| damaged(&name, &reason))?;
            match kind {
                ZIP64 => fill_from_zip64(
                    content,
                    &mut [
                        ("size", &mut bytes),
                        ("compressed size", &mut compressed_bytes),
                        ("offset", &mut offset),
                    ],
                )
                .map_err(|reason| damaged(&name, &reason))?,
                UNICODE_NAME if other_name.is_some() => {
                    return Err(damaged(
                        &name,
                        "the directory gives it two other names, in two extra fields 7075",
                    ));
                }
                UNICODE_NAME => other_name = Some(unicode_name(content, &raw_name)),
                _ => {}
            }
        }
        if let Some(Some(other_name)) = other_name {
            name = other_name;
        }
        // Behind where it is said to be, by the bytes that precede the zip.
        let start = i128::from(offset) + i128::from(self.directory_start())
            - i128::from(self.directory_offset);
        let header_start = u64::try_from(start)
            .ok()
            .filter(|start| *start < self.directory_start());
        let Some(header_start) = header_start else {
            return Err(damaged(
                &name,
                &format!(
                    "the directory has it at byte {start}, and begins itself at byte {}",
                    self.directory_start()
                ),
            ));
        };
        let attributes = number(header, 38, 4);
        let kind = match header[5] {
            UNIX => u32::from(number_16(header, 40)) & 0o170_000,
            _ if attributes & DOS_FOLDER != 0 => FOLDER,
            _ => 0,
        };
        Ok(Entry {
            name,
            raw_name,
            kind,
            flags,
            method: number_16(header, 10),
            crc32: number_32(header, 16),
            compressed_bytes,
            bytes,
            header_start,
        })
    }
}

/// The record of zip64 that belongs to the end at `at` of `tail`, and where it lies; right before its locator, or, with
/// more data in it than is usual, where the locator says.
fn end_64(tail: &[u8], at: usize, tail_start: u64) -> Result<Option<(u64, &[u8])>, String> {
    let Some(locator) = at.checked_sub(LOCATOR_64_BYTES) else {
        return Ok(None);
    };
    if !tail[locator..].starts_with(LOCATOR_64) {
        return Ok(None);
    }
    let usual = locator
        .checked_sub(END_64_BYTES)
        .filter(|record| tail[*record..].starts_with(END_64));
    let said = number(&tail[locator..], 8, 8)
        .checked_sub(tail_start)
        .and_then(|said| usize::try_from(said).ok())
        .filter(|said| {
            let record = tail.get(*said..locator).unwrap_or_default();
            let length = record.len().checked_sub(12).map(|length| length as u64);
            record.starts_with(END_64) && length == Some(number(record, 4, 8))
        });
    let place = |record: usize| tail_start + record as u64;
    match (usual, said) {
        (Some(usual), Some(said)) if usual != said => Err(format!(
            "it has two zip64 records, at byte {} and at byte {}",
            place(said),
            place(usual)
        )),
        (Some(record), _) | (None, Some(record)) => {
            Ok(Some((place(record), &tail[record..locator])))
        }
        (None, None) => Ok(None),
    }
}

/// Whether headers lie there, one after the other, and nothing else; looked at up to one more than `limit`.
fn is_directory(
    reader: &mut BufReader<ZipReader<'_>>,
    end: &EndRecord,
    limit: u64,
) -> io::Result<bool> {
    if end.directory_bytes > end.directory_end {
        return Ok(false);
    }
    let (mut at, mut count) = (end.directory_start(), 0);
    reader.seek(SeekFrom::Start(at))?;
    while at < end.directory_end && count <= limit {
        let mut header = [0; HEADER_BYTES];
        match reader.read_exact(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            result => result?,
        }
        if !header.starts_with(HEADER) {
            return Ok(false);
        }
        // Its name, extra fields and comment.
        let rest: i64 = [28, 30, 32]
            .iter()
            .map(|at| i64::from(number_16(&header, *at)))
            .sum();
        reader.seek_relative(rest)?;
        at += HEADER_BYTES as u64 + rest.unsigned_abs();
        count += 1;
    }
    Ok(at == end.directory_end || count > limit)
}

pub const ZIP64: u16 = 0x0001;
const UNICODE_NAME: u16 = 0x7075;

/// Kind and content of each field. Up to three bytes may follow the last.
pub fn extra_fields(mut extra: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8]), String>> {
    std::iter::from_fn(move || {
        let (head, rest) = extra.split_at_checked(4)?;
        let (kind, length) = (number_16(head, 0), usize::from(number_16(head, 2)));
        let Some((content, rest)) = rest.split_at_checked(length) else {
            extra = &[];
            return Some(Err(format!(
                "its extra field {kind:04x} is said to take {length} bytes, {} are there",
                rest.len()
            )));
        };
        extra = rest;
        Some(Ok((kind, content)))
    })
}

/// Puts the numbers of a zip64 field in the place of those that refer to it.
///
/// # Errors
/// One is not in it.
pub fn fill_from_zip64(mut content: &[u8], numbers: &mut [(&str, &mut u64)]) -> Result<(), String> {
    let length = content.len();
    for (name, number_there) in numbers {
        if **number_there != IN_ZIP64 {
            continue;
        }
        let Some((bytes, rest)) = content.split_at_checked(8) else {
            return Err(format!(
                "its {name} is said to be in its zip64 field, whose {length} bytes do not hold it"
            ));
        };
        **number_there = number(bytes, 0, 8);
        content = rest;
    }
    Ok(())
}

/// The name in an Info-ZIP Unicode Path field, if it was written for this entry's name.
fn unicode_name(content: &[u8], raw_name: &[u8]) -> Option<String> {
    const VERSION: u8 = 1;
    let (head, name) = content.split_at_checked(5)?;
    let mut crc = flate2::Crc::new();
    crc.update(raw_name);
    if head[0] != VERSION || number_32(head, 1) != crc.sum() || name.is_empty() {
        return None;
    }
    String::from_utf8(name.to_vec()).ok()
}
