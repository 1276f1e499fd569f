//! The zip of photos, from a stranger: what is taken out of it, under which names, and what is refused.

mod mistaken;
mod names;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use zip::result::ZipError;
use zip::{CompressionMethod, ExtraField, ZipArchive};

use super::space;
use crate::error::Error;
use crate::task::{LogLine, Task};
use mistaken::not_a_zip;
use names::{base_name, decoded_name, depth, is_named_like_photo};
pub use names::{flat_names, is_junk, shown};

/// What a zip of photos never needs more of. A photo is compressed already, so that a deflated one shrinks by a few
/// per cent; a hundredfold is a bomb.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub entries: u64,
    pub total_bytes: u64,
    /// An entry may inflate this many times over, once it is larger than `ratio_free_bytes`.
    pub ratio: u64,
    pub ratio_free_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 100_000,
            total_bytes: 64 << 30,
            ratio: 100,
            ratio_free_bytes: 1 << 20,
        }
    }
}

/// A file of the zip that is named like a photo, extracted under a number.
#[derive(Debug)]
pub struct Photo {
    /// With its folders, as in the zip.
    pub entry_name: String,
    pub path: PathBuf,
    pub bytes: u64,
    pub crc32: u32,
}

/// What was in the zip.
#[derive(Debug, Default)]
pub struct Extraction {
    pub photos: Vec<Photo>,
    /// Files that are named like photos but cannot be any, each with the reason.
    pub left_out: Vec<(String, &'static str)>,
    /// Files of other kinds: junk included, folders not.
    pub others: Vec<String>,
}

/// Extracts every photo of `zip`, wherever it lies in it, to `folder/0`, `folder/1`, …, ordered by depth and name.
/// The archive's names reach no path. A wrong number of entries at the end of `zip` is set right in it.
///
/// # Errors
/// [`Error::BadZip`] for what is no zip or a damaged or lying one, [`Error::Unusable`] for one that is encrypted or
/// compressed in a way that cannot be read, [`Error::Io`] for the disk, [`Error::Cancelled`].
pub fn extract(
    zip: &Path,
    content_type: Option<&str>,
    folder: &Path,
    limits: &Limits,
    task: &Task<LogLine>,
) -> Result<Extraction, Error> {
    let file = File::options()
        .read(true)
        .write(true)
        .open(zip)
        .map_err(Error::io("read", zip))?;
    let Some(directory) = Directory::find(&file, limits).map_err(Error::io("read", zip))? else {
        let error = ZipError::InvalidArchive("no central directory ends where it should".into());
        return Err(not_a_zip(zip, content_type, &error)?);
    };
    if directory.entries > limits.entries {
        return Err(Error::BadZip(format!(
            "the zip has more entries than the {} that are allowed",
            limits.entries
        )));
    }
    directory.settle(&file).map_err(Error::io("write", zip))??;
    let mut archive = match ZipArchive::new(io::BufReader::new(&file)) {
        Ok(archive) => archive,
        Err(ZipError::Io(error)) if error.raw_os_error().is_some() => {
            return Err(Error::io("read", zip)(error));
        }
        Err(error) => return Err(not_a_zip(zip, content_type, &error)?),
    };
    if archive.central_directory_start() != directory.start {
        let error = ZipError::InvalidArchive("its central directory lies elsewhere".into());
        return Err(not_a_zip(zip, content_type, &error)?);
    }
    let (mut extraction, entries) = match choose(&mut archive, &file) {
        Err(Error::BadZip(_)) if directory.is_of_several_parts => {
            let error = ZipError::UnsupportedArchive("it says to be the last of several");
            return Err(not_a_zip(zip, content_type, &error)?);
        }
        chosen => chosen?,
    };
    refuse_overlaps(&entries, archive.central_directory_start())?;
    refuse_bombs(&entries, limits)?;
    space::require(
        folder,
        entries.iter().map(|entry| entry.bytes).sum(),
        "extracting the zip",
    )?;
    for (number, entry) in entries.into_iter().enumerate() {
        let path = folder.join(number.to_string());
        write_entry(&mut archive, &entry, &path, task)?;
        extraction.photos.push(Photo {
            entry_name: entry.name,
            path,
            bytes: entry.bytes,
            crc32: entry.crc32,
        });
    }
    Ok(extraction)
}

/// An entry that is to be extracted.
struct Entry {
    index: usize,
    name: String,
    bytes: u64,
    compressed_bytes: u64,
    crc32: u32,
    header_start: u64,
}

fn damaged(entry_name: &str, reason: &str) -> Error {
    Error::BadZip(format!(
        "{} in the zip is damaged: {reason}",
        shown(entry_name)
    ))
}

fn choose<R: Read + Seek>(
    archive: &mut ZipArchive<R>,
    zip: &File,
) -> Result<(Extraction, Vec<Entry>), Error> {
    let mut extraction = Extraction::default();
    let mut entries = Vec::new();
    for index in 0..archive.len() {
        let name = archive
            .by_index_data(index)
            .map(|entry| decoded_name(entry.name_raw(), entry.flags().as_u16()))
            .map_err(|error| Error::BadZip(format!("entry {index}: {error}")))?;
        let file = archive
            .by_index_raw(index)
            .map_err(|error| damaged(&name, &error.to_string()))?;
        let is_renamed = |field: &ExtraField| matches!(field, ExtraField::UnicodePath(_));
        // That field gives the entry another name, in the directory alone.
        if !file.extra_data_fields().any(is_renamed) {
            check_local_name(zip, &name, file.name_raw(), file.header_start())?;
        }
        if name.ends_with('/') {
            continue;
        }
        if !is_named_like_photo(&name) || is_junk(&name) {
            extraction.others.push(name);
            continue;
        }
        // The kind of file, in the upper half where Unix wrote the entry: a link's content is a path, not a photo.
        // Some writers leave odd bits there on what is a file all the same.
        let kind = file.unix_mode().unwrap_or_default() & 0o170_000;
        if kind == LINK {
            extraction.left_out.push((name, "it is a symbolic link"));
        } else if FIFO_DEVICES_SOCKET.contains(&kind) || (kind == FOLDER && file.size() == 0) {
            extraction.left_out.push((name, "it is not a regular file"));
        } else if base_name(&name).starts_with('.') {
            // As Python's glob has it, which Musubi Tuner looks for images with.
            extraction.left_out.push((
                name,
                "its name begins with a dot, which hides it from Musubi Tuner",
            ));
        } else if file.encrypted() {
            return Err(Error::Unusable(format!(
                "{} in the zip is encrypted: make the zip without a password",
                shown(&name)
            )));
        } else if !is_supported(file.compression()) {
            return Err(Error::Unusable(format!(
                "{} in the zip is compressed with a method that cannot be read ({}): make the zip with the usual one, \
                 Deflate",
                shown(&name),
                file.compression()
            )));
        } else {
            entries.push(Entry {
                index,
                bytes: file.size(),
                compressed_bytes: file.compressed_size(),
                crc32: file.crc32(),
                header_start: file.header_start(),
                name,
            });
        }
    }
    // The same photos get the same names, however the zip was put together.
    entries.sort_by(|a, b| (depth(&a.name), &a.name).cmp(&(depth(&b.name), &b.name)));
    Ok((extraction, entries))
}

/// Of `stat`'s mode, as far as it names the kind of file.
const FOLDER: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
const FIFO_DEVICES_SOCKET: [u32; 4] = [0o010_000, 0o020_000, 0o060_000, 0o140_000];

fn is_supported(method: CompressionMethod) -> bool {
    [
        CompressionMethod::STORE,
        CompressionMethod::DEFLATE,
        CompressionMethod::DEFLATE64,
        CompressionMethod::BZIP2,
        CompressionMethod::LZMA,
    ]
    .contains(&method)
}

/// Two entries that share bytes: how one kilobyte becomes a terabyte.
fn refuse_overlaps(entries: &[Entry], directory_start: u64) -> Result<(), Error> {
    let mut by_place: Vec<&Entry> = entries.iter().collect();
    by_place.sort_by_key(|entry| entry.header_start);
    for (number, entry) in by_place.iter().enumerate() {
        let end = entry
            .header_start
            .saturating_add(LOCAL_HEADER_BYTES)
            .saturating_add(entry.compressed_bytes);
        let (next, start) = by_place
            .get(number + 1)
            .map_or(("the central directory", directory_start), |next| {
                (&next.name, next.header_start)
            });
        if end > start {
            return Err(damaged(
                &entry.name,
                &format!(
                    "it ends at byte {end} or later and overlaps {}, which begins at byte {start}",
                    shown(next)
                ),
            ));
        }
    }
    Ok(())
}

/// Before its name.
const LOCAL_HEADER_BYTES: u64 = 30;

/// Refuses an entry that has one name in the directory and another one before its data, as Python's `zipfile` does:
/// readers would disagree on what is in the zip.
fn check_local_name(
    zip: &File,
    entry_name: &str,
    directory_name: &[u8],
    header_start: u64,
) -> Result<(), Error> {
    let read = || -> io::Result<Vec<u8>> {
        let mut length = [0; 2];
        zip.read_exact_at(&mut length, header_start + 26)?;
        let mut name = vec![0; usize::from(u16::from_le_bytes(length))];
        zip.read_exact_at(&mut name, header_start + LOCAL_HEADER_BYTES)?;
        Ok(name)
    };
    let local_name = read().map_err(|error| damaged(entry_name, &error.to_string()))?;
    if local_name != directory_name {
        let local_name = shown(&String::from_utf8_lossy(&local_name));
        return Err(damaged(
            entry_name,
            &format!("the header before its data calls it {local_name}"),
        ));
    }
    Ok(())
}

fn refuse_bombs(entries: &[Entry], limits: &Limits) -> Result<(), Error> {
    let mut total = 0u64;
    for entry in entries {
        total = total.saturating_add(entry.bytes);
        if entry.bytes > limits.ratio_free_bytes
            && entry.bytes / limits.ratio > entry.compressed_bytes
        {
            return Err(Error::BadZip(format!(
                "{} in the zip inflates from {} to {} bytes, {} times is allowed: it is no photo",
                shown(&entry.name),
                entry.compressed_bytes,
                entry.bytes,
                limits.ratio
            )));
        }
    }
    if total > limits.total_bytes {
        return Err(Error::BadZip(format!(
            "the photos in the zip take {total} bytes, {} are allowed",
            limits.total_bytes
        )));
    }
    Ok(())
}

fn write_entry<R: Read + Seek>(
    archive: &mut ZipArchive<R>,
    entry: &Entry,
    path: &Path,
    task: &Task<LogLine>,
) -> Result<(), Error> {
    // The crate's reader checks the CRC and stops at the declared size.
    let mut reader = archive
        .by_index(entry.index)
        .map_err(|error| damaged(&entry.name, &error.to_string()))?;
    let mut file = File::create_new(path).map_err(Error::io("write", path))?;
    let mut written = 0;
    let mut buffer = vec![0; 64 << 10];
    loop {
        task.check()?;
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                file.write_all(&buffer[..count])
                    .map_err(space::write_failed(path))?;
                written += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error().is_some() => {
                return Err(Error::io("read the zip for", path)(error));
            }
            Err(error) => {
                return Err(damaged(
                    &entry.name,
                    &format!("{error} ({written} of {} bytes read)", entry.bytes),
                ));
            }
        }
    }
    if written != entry.bytes {
        return Err(damaged(
            &entry.name,
            &format!("{written} of {} bytes are there", entry.bytes),
        ));
    }
    Ok(())
}

/// Where the zip's directory lies and how much is in it, as Python's `zipfile` finds it: by its size. The number of
/// entries that the end record says is wrong in zips of some writers, most of all from 65,536 entries on.
struct Directory {
    start: u64,
    /// Counted; beyond the limit not to the end.
    entries: u64,
    is_of_several_parts: bool,
    end_record: u64,
    /// The record that tells what is too large for the end record.
    end_record_64: Option<u64>,
}

impl Directory {
    fn find(file: &File, limits: &Limits) -> io::Result<Option<Self>> {
        const END: &[u8] = b"PK\x05\x06";
        const END_64: &[u8] = b"PK\x06\x06";
        const LOCATOR_64: &[u8] = b"PK\x06\x07";
        let length = file.metadata()?.len();
        // The record with its longest comment, and those of zip64 before it.
        let tail_start = length.saturating_sub(22 + 0xffff + 76);
        let mut tail = Vec::new();
        let mut reader = io::BufReader::new(file);
        reader.seek(SeekFrom::Start(tail_start))?;
        reader.read_to_end(&mut tail)?;
        let number = |at: usize, bytes: usize| {
            let digits = tail[at..at + bytes].iter().rev();
            digits.fold(0, |number, byte| number << 8 | u64::from(*byte))
        };
        let is = |at: usize, signature: &[u8]| tail[at..].starts_with(signature);
        // The last is the one, unless a comment behind it holds the signature: not often, but in a hostile zip.
        let ends = (0..tail.len().saturating_sub(21)).rev();
        for end in ends.filter(|end| is(*end, END)).take(8) {
            let end_64 = end
                .checked_sub(76)
                .filter(|end_64| is(*end_64, END_64) && is(end - 20, LOCATOR_64));
            let (directory_end, size, disk) = match end_64 {
                Some(end_64) => (end_64, number(end_64 + 40, 8), number(end_64 + 16, 4)),
                None => (end, number(end + 12, 4), number(end + 4, 2)),
            };
            let directory_end = tail_start + directory_end as u64;
            let Some(start) = directory_end.checked_sub(size) else {
                continue;
            };
            if let Some(entries) = count_headers(&mut reader, start..directory_end, limits.entries)?
            {
                return Ok(Some(Self {
                    start,
                    entries,
                    is_of_several_parts: disk != 0,
                    end_record: tail_start + end as u64,
                    end_record_64: end_64.map(|end_64| tail_start + end_64 as u64),
                }));
            }
        }
        Ok(None)
    }

    /// Has the end record say what is in the directory, which the crate goes by.
    fn settle(&self, file: &File) -> io::Result<Result<(), Error>> {
        const IN_END_RECORD_64: u16 = 0xffff;
        let mut counts = [0; 8];
        file.read_exact_at(&mut counts, self.end_record + 4)?;
        let entries = match (u16::try_from(self.entries), self.end_record_64) {
            (_, Some(_)) if counts[4..] == [0xff; 4] => IN_END_RECORD_64,
            (Ok(entries), _) => entries,
            (Err(_), Some(_)) => IN_END_RECORD_64,
            (Err(_), None) => {
                return Ok(Err(Error::BadZip(format!(
                    "the zip has {} entries, which only a zip64 can tell, and it tells {}: make it with another program",
                    self.entries,
                    u16::from_le_bytes([counts[6], counts[7]])
                ))));
            }
        };
        let [low, high] = entries.to_le_bytes();
        // Two numbers of disks, two of entries.
        let settled = [0, 0, 0, 0, low, high, low, high];
        if counts != settled {
            file.write_all_at(&settled, self.end_record + 4)?;
        }
        if let Some(record) = self.end_record_64 {
            let settled = [
                [0; 8],
                self.entries.to_le_bytes(),
                self.entries.to_le_bytes(),
            ]
            .concat();
            file.write_all_at(&settled, record + 16)?;
        }
        Ok(Ok(()))
    }
}

/// How many headers lie there, one after the other, and nothing else; at most one more than `limit`.
fn count_headers(
    reader: &mut io::BufReader<&File>,
    place: Range<u64>,
    limit: u64,
) -> io::Result<Option<u64>> {
    let (mut at, mut count) = (place.start, 0);
    reader.seek(SeekFrom::Start(at))?;
    while at < place.end && count <= limit {
        let mut header = [0; 46];
        match reader.read_exact(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            result => result?,
        }
        if !header.starts_with(b"PK\x01\x02") {
            return Ok(None);
        }
        let length = |at: usize| i64::from(u16::from_le_bytes([header[at], header[at + 1]]));
        // Its name, extra fields and comment.
        let rest = length(28) + length(30) + length(32);
        reader.seek_relative(rest)?;
        at += header.len() as u64 + rest.unsigned_abs();
        count += 1;
    }
    Ok(Some(count))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use zip::write::SimpleFileOptions;

    use super::*;
    use crate::dataset::samples::{jpeg, shaded_jpeg, task, zip_of};

    fn extracted(zip: &[u8], limits: &Limits) -> Result<Extraction, Error> {
        let folder = tempfile::tempdir().unwrap();
        let (path, into) = (folder.path().join("a.zip"), folder.path().join("into"));
        std::fs::write(&path, zip).unwrap();
        std::fs::create_dir(&into).unwrap();
        let result = extract(&path, Some("application/zip"), &into, limits, &task().0);
        // Whatever the zip holds, nothing is beside the numbered files.
        let beside: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(beside.len(), 2, "{beside:?}");
        for entry in std::fs::read_dir(&into).unwrap() {
            let entry = entry.unwrap();
            assert!(
                entry.file_type().unwrap().is_file()
                    && entry.file_name().to_str().unwrap().parse::<usize>().is_ok()
            );
        }
        result
    }

    fn names(zip: &[u8]) -> Vec<String> {
        extracted(zip, &Limits::default())
            .unwrap()
            .photos
            .into_iter()
            .map(|photo| photo.entry_name)
            .collect()
    }

    /// The reason that it is refused for, and whether as a bad zip.
    fn refusal(zip: &[u8]) -> (String, bool) {
        let error = extracted(zip, &Limits::default()).unwrap_err();
        (error.to_string(), matches!(error, Error::BadZip(_)))
    }

    /// Puts `bytes` at the offsets from the beginning of each local and each central header.
    fn patched(mut zip: Vec<u8>, local: usize, central: usize, bytes: &[u8]) -> Vec<u8> {
        for position in 0..zip.len() - 4 {
            let offset = match &zip[position..position + 4] {
                b"PK\x03\x04" => local,
                b"PK\x01\x02" => central,
                _ => continue,
            };
            zip[position + offset..position + offset + bytes.len()].copy_from_slice(bytes);
        }
        zip
    }

    fn replaced(zip: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
        assert_eq!(from.len(), to.len());
        let mut zip = zip.to_vec();
        let positions: Vec<_> = zip
            .windows(from.len())
            .enumerate()
            .filter(|(_, w)| *w == from)
            .map(|(at, _)| at)
            .collect();
        assert_eq!(positions.len(), 2);
        for position in positions {
            zip[position..position + to.len()].copy_from_slice(to);
        }
        zip
    }

    #[test]
    fn photos_are_found_at_any_depth_and_everything_else_is_counted() {
        let zip = zip_of([
            ("deep/er/b.JPEG", jpeg(1, 1)),
            ("a.jpg", jpeg(1, 1)),
            ("x.jpg/", vec![]),
            ("__MACOSX/._a.jpg", vec![0]),
            ("__MACOSX/c.jpg", vec![0]),
            ("._d.jpg", vec![0]),
            ("in/.DS_Store", vec![0]),
            ("THUMBS.DB", vec![0]),
            ("a.txt", vec![0]),
            (".hidden.jpg", jpeg(1, 1)),
            ("no.jpg.png", vec![0]),
        ]);
        let extraction = extracted(&zip, &Limits::default()).unwrap();
        let photos: Vec<_> = extraction
            .photos
            .iter()
            .map(|photo| photo.entry_name.as_str())
            .collect();
        assert_eq!(photos, ["a.jpg", "deep/er/b.JPEG"]);
        assert_eq!(extraction.others.len(), 7, "{:?}", extraction.others);
        assert_eq!(extraction.left_out.len(), 1, "{:?}", extraction.left_out);
    }

    #[test]
    fn links_are_left_out() {
        let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
        writer
            .add_symlink("a.jpg", "/etc/passwd", SimpleFileOptions::default())
            .unwrap();
        let extraction =
            extracted(&writer.finish().unwrap().into_inner(), &Limits::default()).unwrap();
        assert_eq!((extraction.photos.len(), extraction.left_out.len()), (0, 1));
    }

    #[test]
    fn odd_modes_do_not_make_a_photo_another_thing() {
        const DOS: u8 = 0;
        const UNIX: u8 = 3;
        let photo = zip_of([("a.jpg", jpeg(1, 1))]);
        let empty = zip_of([("a.jpg", vec![])]);
        for (name, zip, system, attributes, is_taken) in [
            ("the folder bit of DOS", &photo, DOS, 0x10, true),
            ("a folder's mode", &photo, UNIX, 0o040_755 << 16, true),
            ("no kind", &photo, UNIX, 0o644 << 16, true),
            ("all bits", &photo, UNIX, 0o170_644 << 16, true),
            ("a folder", &empty, DOS, 0x10, false),
            ("a link", &photo, UNIX, 0o120_777 << 16, false),
            ("a pipe", &photo, UNIX, 0o010_644 << 16, false),
            ("a device", &photo, UNIX, 0o020_644 << 16, false),
            ("a disk", &photo, UNIX, 0o060_644 << 16, false),
            ("a socket", &photo, UNIX, 0o140_644 << 16, false),
        ] {
            let mut zip = zip.clone();
            let directory = zip
                .windows(4)
                .position(|bytes| bytes == b"PK\x01\x02")
                .unwrap();
            zip[directory + 5] = system;
            zip[directory + 38..directory + 42].copy_from_slice(&u32::to_le_bytes(attributes));
            let extraction = extracted(&zip, &Limits::default()).unwrap();
            let found = (extraction.photos.len(), extraction.left_out.len());
            assert_eq!(found, if is_taken { (1, 0) } else { (0, 1) }, "{name}");
        }
    }

    /// Puts `bytes` at `offset` of the last record with the signature.
    fn with_record(mut zip: Vec<u8>, signature: &[u8], offset: usize, bytes: &[u8]) -> Vec<u8> {
        let at = zip.windows(4).rposition(|at| at == signature).unwrap() + offset;
        zip[at..at + bytes.len()].copy_from_slice(bytes);
        zip
    }

    #[test]
    fn all_entries_are_read_however_many_the_end_says() {
        let two = zip_of([("a.jpg", jpeg(1, 1)), ("b.jpg", jpeg(1, 1))]);
        for (name, disks_and_counts) in [
            ("none", [0, 0, 0, 0, 0, 0, 0, 0]),
            ("too few", [0, 0, 0, 0, 1, 0, 1, 0]),
            ("too many", [0, 0, 0, 0, 5, 0, 5, 0]),
            ("two numbers", [0, 0, 0, 0, 1, 0, 2, 0]),
            ("as many as zip64 says", [0, 0, 0, 0, 255, 255, 255, 255]),
            ("another disk", [1, 0, 1, 0, 2, 0, 2, 0]),
        ] {
            let zip = with_record(two.clone(), b"PK\x05\x06", 4, &disks_and_counts);
            assert_eq!(names(&zip), ["a.jpg", "b.jpg"], "{name}");
            let behind_junk = [b"MZ junk".to_vec(), zip].concat();
            assert_eq!(names(&behind_junk), ["a.jpg", "b.jpg"], "{name}");
        }
        let commented = [
            with_record(two, b"PK\x05\x06", 20, &[27, 0]),
            b"PK\x05\x06 is how the end begins.".to_vec(),
        ];
        assert_eq!(names(&commented.concat()), ["a.jpg", "b.jpg"]);
    }

    #[test]
    fn all_entries_of_a_zip64_are_read_however_many_the_end_says() {
        let two = zip_of([("a.jpg", jpeg(1, 1)), ("b.jpg", jpeg(1, 1))]);
        let end = two.windows(4).rposition(|at| at == b"PK\x05\x06").unwrap();
        let (size, start) = (&two[end + 12..end + 16], &two[end + 16..end + 20]);
        let zip64 = |count: u8, short: &[u8]| {
            [
                &two[..end],
                b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x2d\0\x2d\0\0\0\0\0\0\0\0\0",
                &[count, 0, 0, 0, 0, 0, 0, 0, count, 0, 0, 0, 0, 0, 0, 0],
                size,
                &[0; 4],
                start,
                &[0; 4],
                b"PK\x06\x07\0\0\0\0",
                &u64::to_le_bytes(end as u64),
                b"\x01\0\0\0PK\x05\x06\0\0\0\0",
                short,
                &[255; 8],
                &[0, 0],
            ]
            .concat()
        };
        for count in [0, 1, 2, 5] {
            for short in [&[255; 4][..], &[1, 0, 1, 0], &[0; 4]] {
                assert_eq!(
                    names(&zip64(count, short)),
                    ["a.jpg", "b.jpg"],
                    "{count} {short:?}"
                );
            }
        }
    }

    #[test]
    fn a_directory_that_is_not_where_the_end_says_is_no_zip() {
        let two = zip_of([("a.jpg", jpeg(1, 1)), ("b.jpg", jpeg(1, 1))]);
        for size in [1u32, 60, u32::MAX] {
            let zip = with_record(two.clone(), b"PK\x05\x06", 12, &size.to_le_bytes());
            let (message, is_bad_zip) = refusal(&zip);
            assert!(
                is_bad_zip && message.contains("cut short or damaged"),
                "{size}: {message}"
            );
        }
    }

    #[test]
    fn the_last_of_several_parts_is_named() {
        let zip = zip_of([("a.jpg", jpeg(1, 1))]);
        let directory = zip
            .windows(4)
            .position(|bytes| bytes == b"PK\x01\x02")
            .unwrap();
        let last = with_record(zip[directory..].to_vec(), b"PK\x05\x06", 4, &[1, 0, 1, 0]);
        let last = with_record(last, b"PK\x05\x06", 16, &[0; 4]);
        let (message, is_bad_zip) = refusal(&last);
        assert!(is_bad_zip && message.contains("several parts"), "{message}");
    }

    #[test]
    fn names_read_as_pythons_zipfile_reads_them() {
        // Python: bytes([0x82]).decode("cp437") == "é"
        let zip = zip_of([("caf_1.jpg", jpeg(1, 1))]);
        assert_eq!(names(&replaced(&zip, b"caf_1", b"caf\x821")), ["café1.jpg"]);
        assert_eq!(
            names(&replaced(&zip, b"caf_1.jpg", "é\u{a0}_.jpg".as_bytes())),
            ["├⌐┬á_.jpg"]
        );
        assert_eq!(
            names(&zip_of([("日本 \"q\".jpg", jpeg(1, 1))])),
            ["日本 \"q\".jpg"]
        );
        let invalid = replaced(
            &zip_of([("é.jpg", jpeg(1, 1))]),
            "é".as_bytes(),
            b"\xff\xfe",
        );
        assert_eq!(names(&invalid), ["\u{fffd}\u{fffd}.jpg"]);
        let nul = zip_of([("a.jpg_.exe", jpeg(1, 1))]);
        assert_eq!(names(&replaced(&nul, b"jpg_", b"jpg\0")), ["a.jpg"]);
    }

    #[test]
    fn an_entry_written_twice_counts_once_as_its_last_version() {
        let zip = zip_of([("a.jpg", shaded_jpeg(1)), ("b.jpg", shaded_jpeg(2))]);
        let twice = replaced(&zip, b"b.jpg", b"a.jpg");
        let photos = extracted(&twice, &Limits::default()).unwrap().photos;
        assert_eq!(photos.len(), 1);
        assert_eq!(
            photos[0].crc32,
            extracted(&zip, &Limits::default()).unwrap().photos[1].crc32
        );
    }

    #[test]
    fn every_usual_method_is_read() {
        for method in [
            CompressionMethod::STORE,
            CompressionMethod::DEFLATE,
            CompressionMethod::BZIP2,
        ] {
            let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
            let options = SimpleFileOptions::default()
                .compression_method(method)
                .large_file(true);
            writer.start_file("a.jpg", options).unwrap();
            writer.write_all(&jpeg(1, 1)).unwrap();
            let zip = writer.finish().unwrap().into_inner();
            assert_eq!(names(&zip), ["a.jpg"], "{method:?}");
        }
        // As Python's zipfile writes b"fake" with ZIP_LZMA.
        let lzma = "504b03043f0002000e00000021006ff1cdcd170000000400000005000000612e6a7067090405005d0000800000331849b7e4c02e1ffffac8a000504b01023f033f0002000e00000021006ff1cdcd1700000004000000050000000000000000000000800100000000612e6a7067504b05060000000001000100330000003a0000000000";
        let byte = |at: usize| u8::from_str_radix(&lzma[at..at + 2], 16).unwrap();
        let zip: Vec<u8> = (0..lzma.len()).step_by(2).map(byte).collect();
        assert_eq!(names(&zip), ["a.jpg"]);
    }

    #[test]
    fn bytes_before_the_zip_do_no_harm() {
        assert_eq!(
            names(
                &[
                    b"#!self-extracting\n".to_vec(),
                    zip_of([("a.jpg", jpeg(1, 1))])
                ]
                .concat()
            ),
            ["a.jpg"]
        );
    }

    #[test]
    fn what_is_no_zip_is_named() {
        let zip = zip_of([("a.jpg", jpeg(1, 1)), ("b.jpg", jpeg(1, 1))]);
        let tar = [vec![0x20; 257], b"ustar".to_vec(), vec![0; 300]].concat();
        for (content, wanted) in [
            (Vec::new(), "an empty file"),
            (
                b"  <!DOCTYPE html><title>Sign in</title>".to_vec(),
                "a web page, not a zip (application/zip, 39 bytes)",
            ),
            (b"\x1f\x8b\x08....".to_vec(), "gzip"),
            (b"Rar!\x1a\x07\x01\0".to_vec(), "a RAR archive"),
            (b"7z\xbc\xaf\x27\x1c..".to_vec(), "a 7z archive"),
            (tar, "a tar archive"),
            (b"{\"error\": 1}".to_vec(), "JSON"),
            (b"no".to_vec(), "plain text"),
            (b"<?xml version='1.0'?><Error/>".to_vec(), "an XML document"),
            (vec![1, 2, 3], "something else"),
            (jpeg(1, 1), "a single JPEG photo"),
            (zip[..zip.len() - 30].to_vec(), "cut short or damaged"),
            (zip[..40].to_vec(), "cut short or damaged"),
        ] {
            let (message, is_bad_zip) = refusal(&content);
            assert!(
                is_bad_zip && message.contains(wanted),
                "{wanted:?} is wanted: {message}"
            );
        }
    }

    #[test]
    fn a_zip_of_nothing_is_a_zip() {
        assert_eq!(names(&zip_of([])), [""; 0]);
    }

    #[test]
    fn damage_is_named_by_its_entry() {
        let zip = zip_of([("in/a.jpg", jpeg(64, 48))]);
        let directory = zip
            .windows(4)
            .rposition(|bytes| bytes == b"PK\x01\x02")
            .unwrap();
        let mut renamed_in_directory = zip.clone();
        renamed_in_directory[directory + 46 + 3] = b'b';
        // CRC at 14 and 16; sizes from 18 and 20 on: compressed, uncompressed.
        for (name, damaged, wanted) in [
            (
                "CRC",
                patched(zip.clone(), 14, 16, &[1, 2, 3, 4]),
                "checksum",
            ),
            (
                "inflates past what it declares",
                patched(zip.clone(), 22, 24, &[9, 0, 0, 0]),
                "declared uncompressed size",
            ),
            (
                "shorter than declared",
                patched(zip.clone(), 22, 24, &[0, 1, 0, 0]),
                "of 256 bytes",
            ),
            (
                "runs into the directory",
                patched(zip.clone(), 18, 20, &[255, 0, 0, 0]),
                "overlaps the central directory",
            ),
            ("two names", renamed_in_directory, "calls it in/a.jpg"),
            (
                "its header lies elsewhere",
                patched(zip.clone(), 0, 42, &[7, 0, 0, 0])
                    .into_iter()
                    .enumerate()
                    .map(|(at, byte)| if at < 4 { b"PK\x03\x04"[at] } else { byte })
                    .collect(),
                "",
            ),
        ] {
            let (message, is_bad_zip) = refusal(&damaged);
            assert!(
                is_bad_zip && message.contains(".jpg in the zip is damaged"),
                "{name}: {message}"
            );
            assert!(message.contains(wanted), "{name}: {message}");
        }
    }

    #[test]
    fn encryption_and_unknown_methods_are_named() {
        let zip = zip_of([("a.jpg", jpeg(64, 48)), ("b.txt", vec![1])]);
        let (message, is_bad_zip) = refusal(&patched(zip.clone(), 6, 8, &[1, 0]));
        assert!(
            !is_bad_zip && message.contains("a.jpg in the zip is encrypted"),
            "{message}"
        );
        let (message, is_bad_zip) = refusal(&patched(zip, 8, 10, &[98, 0]));
        assert!(
            !is_bad_zip && message.contains("a.jpg in the zip") && message.contains("Ppmd"),
            "{message}"
        );
    }

    #[test]
    fn bombs_are_refused_with_numbers() {
        let inflated = vec![0; 3 << 20];
        let (message, is_bad_zip) = refusal(&zip_of([("a.jpg", inflated)]));
        assert!(
            is_bad_zip && message.contains("to 3145728 bytes, 100 times is allowed"),
            "{message}"
        );

        let two = zip_of([("a.jpg", jpeg(1, 1)), ("b.jpg", jpeg(1, 1))]);
        for (limits, wanted) in [
            (
                Limits {
                    entries: 1,
                    ..Limits::default()
                },
                "more entries than the 1 that are allowed",
            ),
            (
                Limits {
                    total_bytes: 100,
                    ..Limits::default()
                },
                "100 are allowed",
            ),
        ] {
            let message = extracted(&two, &limits).unwrap_err().to_string();
            assert!(message.contains(wanted), "{message}");
        }

        // The first entry's data is said to go on into the second entry.
        let first = two
            .windows(4)
            .position(|bytes| bytes == b"PK\x01\x02")
            .unwrap();
        let mut overlapping = two;
        overlapping[first + 20] += 40;
        let (message, is_bad_zip) = refusal(&overlapping);
        assert!(is_bad_zip && message.contains("overlap"), "{message}");
    }
}
