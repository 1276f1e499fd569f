//! The headers that lie before the data of each entry, held against the directory: readers would differ on a zip whose
//! two descriptions of itself do.

use std::io;
use std::ops::Range;

use super::arrival::Seen;
use super::content::Method;
use super::directory::{self, Entry, extra_fields, fill_from_zip64, number, number_16, number_32};
use super::names::shown;
use super::{Zip, damaged};
use crate::error::Error;
use crate::task::{LogLine, Task};

const HEADER: &[u8] = b"PK\x03\x04";
const HEADER_BYTES: usize = 30;
/// Of the file alone: of its directory, the local header does not tell.
const ENCRYPTED: u16 = 1;
/// Its numbers follow the data, since they were not known before.
const HAS_DESCRIPTOR: u16 = 1 << 3;

/// Where the data of each entry begins, in their order, once all of the zip's bytes are accounted for: headers that say
/// what the directory says, data that share no byte, and between them nothing that another reader could take for an entry.
///
/// # Errors
/// [`Error::BadZip`] for the first lie, [`Error::Io`], [`Error::Cancelled`].
pub fn check(
    zip: &Zip,
    entries: &[Entry],
    directory_start: u64,
    task: &Task<LogLine>,
) -> Result<Vec<u64>, Error> {
    let mut data_starts = vec![0; entries.len()];
    let mut by_place: Vec<usize> = (0..entries.len()).collect();
    by_place.sort_by_key(|index| entries[*index].header_start);
    let mut accounted = 0;
    for (number, &index) in by_place.iter().enumerate() {
        task.check()?;
        let entry = &entries[index];
        let next = by_place.get(number + 1).map(|next| &entries[*next]);
        let next_start = next.map_or(directory_start, |next| next.header_start);
        refuse_unlisted(zip, accounted..entry.header_start, task)?;
        let local = LocalHeader::read(zip, entry)?;
        let end = local.data_start.saturating_add(entry.compressed_bytes);
        if end > next_start {
            let next = next.map_or("the central directory".to_owned(), |next| shown(&next.name));
            return Err(damaged(
                &entry.name,
                &format!(
                    "it ends at byte {end} and overlaps {next}, which begins at byte {next_start}"
                ),
            ));
        }
        local.refuse_disagreement(entry)?;
        let descriptor = if (local.flags | entry.flags) & HAS_DESCRIPTOR == 0 {
            0
        } else {
            descriptor_bytes(zip, entry, &(end..next_start))?
        };
        accounted = end + descriptor;
        data_starts[index] = local.data_start;
    }
    refuse_unlisted(zip, accounted..directory_start, task)?;
    Ok(data_starts)
}

/// The longest header, with a name and extra fields.
pub const MOST_BYTES: usize = HEADER_BYTES + 2 * 0xffff;

pub struct LocalHeader {
    pub raw_name: Vec<u8>,
    pub flags: u16,
    pub method: u16,
    crc32: u32,
    pub compressed_bytes: u64,
    pub bytes: u64,
    pub data_start: u64,
}

impl LocalHeader {
    fn read(zip: &Zip, entry: &Entry) -> Result<Self, Error> {
        let at = entry.header_start;
        let missing = |error: io::Error| {
            damaged(
                &entry.name,
                &format!("the header before its data, at byte {at}, cannot be read: {error}"),
            )
        };
        let mut header = vec![0; HEADER_BYTES];
        zip.read_exact_at(&mut header, at).map_err(missing)?;
        if !header.starts_with(HEADER) {
            return Err(damaged(
                &entry.name,
                &format!("the directory has it at byte {at}, where no header of a file begins"),
            ));
        }
        header.resize(HEADER_BYTES + names_bytes(&header), 0);
        zip.read_exact_at(&mut header[HEADER_BYTES..], at + HEADER_BYTES as u64)
            .map_err(missing)?;
        Ok(Self::parse(&header, at))
    }

    /// All of a header, which lies at `at`.
    fn parse(header: &[u8], at: u64) -> Self {
        let name_end = HEADER_BYTES + usize::from(number_16(header, 26));
        let (raw_name, extra) = (&header[HEADER_BYTES..name_end], &header[name_end..]);
        let mut compressed_bytes = number(header, 18, 4);
        let mut bytes = number(header, 22, 4);
        for (kind, content) in extra_fields(extra).filter_map(Result::ok) {
            if kind == directory::ZIP64 {
                // Without it, a number that is said to be there stays what it is, and is held against the directory's.
                let _ = fill_from_zip64(
                    content,
                    &mut [
                        ("size", &mut bytes),
                        ("compressed size", &mut compressed_bytes),
                    ],
                );
            }
        }
        Self {
            raw_name: raw_name.to_vec(),
            flags: number_16(header, 6),
            method: number_16(header, 8),
            crc32: number_32(header, 14),
            compressed_bytes,
            bytes,
            data_start: at + header.len() as u64,
        }
    }

    pub fn has_descriptor(&self) -> bool {
        self.flags & HAS_DESCRIPTOR != 0
    }

    pub fn is_unreadable(&self) -> bool {
        self.flags & (directory::ENCRYPTED | directory::PATCH) != 0
    }

    fn refuse_disagreement(&self, entry: &Entry) -> Result<(), Error> {
        let lie = |what: &str| {
            Err(damaged(
                &entry.name,
                &format!("the header before its data {what}"),
            ))
        };
        if self.raw_name != entry.raw_name {
            let name = shown(&String::from_utf8_lossy(&self.raw_name));
            return lie(&format!("calls it {name}"));
        }
        if (self.flags ^ entry.flags) & ENCRYPTED != 0 {
            return lie("says that it is encrypted, the directory does not");
        }
        if self.method != entry.method && entry.compressed_bytes > 0 {
            return lie(&format!(
                "says compression method {}, the directory {}",
                self.method, entry.method
            ));
        }
        // Not known yet, where a descriptor follows; but there are writers that know, and say so.
        let is_open = |number: u64| {
            self.flags & HAS_DESCRIPTOR != 0 && matches!(number, 0 | 0xffff_ffff | u64::MAX)
        };
        for (what, here, there) in [
            ("checksum", u64::from(self.crc32), u64::from(entry.crc32)),
            (
                "compressed size",
                self.compressed_bytes,
                entry.compressed_bytes,
            ),
            ("size", self.bytes, entry.bytes),
        ] {
            if here != there && !is_open(here) {
                return lie(&format!("says {what} {here}, the directory {there}"));
            }
        }
        Ok(())
    }
}

/// Of a header that begins with these bytes.
fn names_bytes(header: &[u8]) -> usize {
    usize::from(number_16(header, 26)) + usize::from(number_16(header, 28))
}

/// What follows the data of an entry, as far as a stream can tell, and how long it is.
pub enum Next {
    /// More of it has to come.
    Unknown,
    Header(LocalHeader, usize),
    Descriptor(usize),
    SomethingElse,
}

impl Next {
    /// What lies at `at`, given how it begins and the entry whose data end there.
    pub fn of(bytes: &[u8], at: u64, last: Option<&Seen>) -> Self {
        if bytes.len() < HEADER_BYTES {
            return Self::Unknown;
        }
        if bytes.starts_with(HEADER) {
            let length = HEADER_BYTES + names_bytes(bytes);
            return match bytes.get(..length) {
                Some(header) => Self::Header(LocalHeader::parse(header, at), length),
                None => Self::Unknown,
            };
        }
        let described = |last: &Seen| {
            let numbers = [u64::from(last.crc32), last.compressed_bytes, last.bytes];
            let mut shapes = descriptor_shapes(bytes).into_iter();
            shapes.find_map(|(length, found)| (found == numbers).then_some(length))
        };
        match last.and_then(described) {
            Some(length) => Self::Descriptor(length),
            None => Self::SomethingElse,
        }
    }
}

/// How long the descriptor behind an entry's data is, which takes four shapes: with a signature or without, and with
/// sizes of four bytes or of eight. Some writers announce one and write none.
fn descriptor_bytes(zip: &Zip, entry: &Entry, gap: &Range<u64>) -> Result<u64, Error> {
    const LONGEST: u64 = 24;
    let gap_bytes = gap.end - gap.start;
    let mut bytes = vec![0; usize::try_from(gap_bytes.min(LONGEST)).unwrap_or_default()];
    zip.fill(&mut bytes, gap.start)?;
    let is_signed = bytes.starts_with(SIGNATURE);
    let shapes = descriptor_shapes(&bytes);
    let directory = [u64::from(entry.crc32), entry.compressed_bytes, entry.bytes];
    if let Some((length, _)) = shapes.iter().find(|(_, numbers)| *numbers == directory) {
        return Ok(*length as u64);
    }
    // None is right. It is a lie where it can only be a descriptor.
    let lie = shapes
        .iter()
        .find(|(length, _)| *length as u64 == gap_bytes)
        .or(shapes
            .first()
            .filter(|(_, [crc32, ..])| is_signed || *crc32 == directory[0]));
    match lie {
        Some((_, [crc32, compressed_bytes, size])) => Err(damaged(
            &entry.name,
            &format!(
                "the descriptor behind its data says checksum {crc32}, compressed size {compressed_bytes} and size {size}, \
                 the directory {}, {} and {}",
                directory[0], directory[1], directory[2]
            ),
        )),
        None => Ok(0),
    }
}

const SIGNATURE: &[u8] = b"PK\x07\x08";

/// How long a descriptor may be that begins with these bytes, and the numbers that are in it then.
fn descriptor_shapes(bytes: &[u8]) -> Vec<(usize, [u64; 3])> {
    let shape = |start: usize, width: usize| {
        let length = start + 4 + 2 * width;
        (bytes.len() >= length).then(|| {
            let numbers = [
                number(bytes, start, 4),
                number(bytes, start + 4, width),
                number(bytes, start + 4 + width, width),
            ];
            (length, numbers)
        })
    };
    // What reads like a signature may be a checksum.
    let starts: &[usize] = if bytes.starts_with(SIGNATURE) {
        &[SIGNATURE.len(), 0]
    } else {
        &[0]
    };
    let shapes = starts
        .iter()
        .flat_map(|start| [4, 8].map(|width| shape(*start, width)));
    shapes.flatten().collect()
}

/// Refuses the header of a file, or of another directory, in bytes that the directory does not account for. Those may be
/// anything else: a program before the zip, alignment, what an editor left behind.
fn refuse_unlisted(zip: &Zip, gap: Range<u64>, task: &Task<LogLine>) -> Result<(), Error> {
    const CHUNK: u64 = 64 << 10;
    const SIGNATURE_BYTES: u64 = HEADER.len() as u64;
    let mut at = gap.start;
    while at + SIGNATURE_BYTES <= gap.end {
        task.check()?;
        let bytes = (gap.end - at).min(CHUNK);
        let mut chunk = vec![0; usize::try_from(bytes).unwrap_or_default()];
        zip.fill(&mut chunk, at)?;
        for (place, signature) in chunk.windows(HEADER.len()).enumerate() {
            if signature != HEADER && signature != directory::HEADER {
                continue;
            }
            let header = at + place as u64;
            if let Some(found) = described(zip, header..gap.end)? {
                return Err(Error::BadZip(format!(
                    "the zip holds {found} at byte {header}, which its directory does not account for"
                )));
            }
        }
        at += bytes - (SIGNATURE_BYTES - 1);
    }
    Ok(())
}

/// What the header is of that a place begins with, if what it says of itself can be and fits there.
fn described(zip: &Zip, place: Range<u64>) -> Result<Option<String>, Error> {
    const NEWEST_VERSION: u8 = 63;
    let mut header = [0; directory::HEADER_BYTES];
    let there = (place.end - place.start).min(header.len() as u64);
    let there = usize::try_from(there).unwrap_or_default();
    zip.fill(&mut header[..there], place.start)?;
    let is_local = header.starts_with(HEADER);
    let (what, fields, header_bytes) = if is_local {
        ("the file", &header[4..], HEADER_BYTES)
    } else {
        (
            "another directory, with",
            &header[6..],
            directory::HEADER_BYTES,
        )
    };
    let (version, method) = (fields[0], number_16(fields, 4));
    let (name_bytes, extra_bytes) = (number(fields, 22, 2), number(fields, 24, 2));
    let bytes = header_bytes as u64 + name_bytes + extra_bytes;
    let can_be = name_bytes > 0
        && version <= NEWEST_VERSION
        && Method::of(method).is_some()
        && place.start + bytes <= place.end;
    if !can_be {
        return Ok(None);
    }
    let mut name = vec![0; usize::try_from(name_bytes).unwrap_or_default()];
    zip.fill(&mut name, place.start + header_bytes as u64)?;
    Ok(Some(format!(
        "{what} {}",
        shown(&String::from_utf8_lossy(&name))
    )))
}
