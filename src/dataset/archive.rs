//! The zip of photos, from a stranger: what is taken out of it, under which names, and what is refused.

mod arrival;
mod content;
mod directory;
mod headers;
mod mistaken;
mod names;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use flate2::Crc;

use super::DatasetLimits;
use super::image::{self, Header, Look};
use crate::disk;
use crate::error::Error;
use crate::task::{LogLine, Task};
pub use arrival::Arrival;
use arrival::Seen;
use content::{Compressed, Method};
pub use directory::Entry;
use directory::{ENCRYPTED, EndRecord, FOLDER, PATCH};
use mistaken::{Fault, not_a_zip};
pub use names::{EXTENSIONS, Extensions, dotted, flat_names, is_junk, shown, stem_of};
use names::{base_name, depth};

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
        Self::from(&DatasetLimits::default())
    }
}

impl From<&DatasetLimits> for Limits {
    fn from(limits: &DatasetLimits) -> Self {
        Self {
            entries: limits.entries,
            total_bytes: limits.extracted_bytes,
            ratio: 100,
            ratio_free_bytes: 1 << 20,
        }
    }
}

/// A file of the zip that is named like a photo, extracted.
#[derive(Debug)]
pub struct Photo {
    /// With its folders, as in the zip.
    pub entry_name: String,
    pub path: PathBuf,
    pub bytes: u64,
    pub crc32: u32,
    /// What keeps it from opening.
    pub fault: Option<Box<str>>,
    pub header: Header,
}

/// The kinds of files that are taken out of a zip.
#[derive(Clone, Debug, Default)]
pub struct Kinds {
    pub photos: Extensions,
    /// Whether texts may be captions.
    pub texts: bool,
}

/// The extension of a caption.
pub const TEXT: &str = "txt";

/// A file of the zip that may be a caption, not read yet.
#[derive(Debug)]
pub struct Text {
    pub entry: Entry,
    data_start: u64,
}

impl Text {
    /// One that lies in no zip.
    pub fn beside(entry: Entry) -> Self {
        Self {
            entry,
            data_start: 0,
        }
    }

    /// What is in it.
    ///
    /// # Errors
    /// As [`extract`].
    pub fn read(&self, zip: &Zip, task: &Task<LogLine>) -> Result<Vec<u8>, Error> {
        let mut content = Vec::new();
        read_entry(zip, &self.entry, self.data_start, task, |bytes| {
            content.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(content)
    }
}

/// What was in the zip.
#[derive(Debug, Default)]
pub struct Extraction {
    pub photos: Vec<Photo>,
    /// Files that are named like photos but cannot be any, each with the reason.
    pub left_out: Vec<(String, &'static str)>,
    /// What may be a caption, where texts are wanted.
    pub texts: Vec<Text>,
    /// Files of other kinds: junk included, folders not.
    pub others: Vec<String>,
}

/// Extracts every photo of `zip`, wherever it lies in it, to the zip's folder, under a number, where it was not taken out
/// on the way. The archive's names reach no path but as [`flat_names`] makes them. What is no photo is read as well, though
/// not written: a zip that lies about one of its files is not to be believed in the others.
///
/// # Errors
/// [`Error::BadZip`] for what is no zip or a damaged or lying one, [`Error::Unusable`] for one that is encrypted or
/// compressed in a way that cannot be read, [`Error::Io`] for the disk, [`Error::Cancelled`].
pub fn extract(
    zip: &mut Zip,
    content_type: Option<&str>,
    limits: &Limits,
    task: &Task<LogLine>,
) -> Result<Extraction, Error> {
    let end = end_of(zip, content_type, limits)?;
    match extract_from(zip, &end, limits, task) {
        Err(Error::BadZip(_)) if end.is_of_several_parts => {
            Err(not_a_zip(zip, content_type, &Fault::OneOfSeveralParts)?)
        }
        extraction => extraction,
    }
}

fn end_of(zip: &Zip, content_type: Option<&str>, limits: &Limits) -> Result<EndRecord, Error> {
    match EndRecord::find(zip, limits)? {
        Ok(end) => Ok(end),
        Err(reason) => Err(not_a_zip(zip, content_type, &Fault::Damaged(reason))?),
    }
}

/// What the directory of a zip says is in it; nothing else is read.
///
/// # Errors
/// As [`extract`].
pub fn entries_of(zip: &Zip, limits: &Limits) -> Result<Vec<Entry>, Error> {
    end_of(zip, None, limits)?.entries(zip, limits)
}

/// The zip that came: in a file, and in those of the photos that were taken out of it on the way.
#[derive(Debug)]
pub struct Zip {
    path: PathBuf,
    /// What is in no photo's file.
    file: File,
    bytes: u64,
    folder: PathBuf,
    /// The photos that have their names already go there.
    images: PathBuf,
    /// In the order of their places, which is that of their files' numbers.
    seen: Vec<Seen>,
    /// What photos were called that came before the zip started again.
    forgotten: Vec<Box<str>>,
    /// The photo that was read last, by its number.
    opened: RefCell<Option<(usize, File)>>,
    /// What was read last of the zip's own file, and where it lies there: headers are read one after the other.
    window: RefCell<(u64, Vec<u8>)>,
    kinds: Kinds,
    /// What it is said to be that comes in a zip's place: "the server sent".
    said_of: String,
    /// Its last bytes, as they came; at least so many as are looked through for its end.
    tail: Vec<u8>,
    lacks_bytes: Cell<bool>,
}

impl Zip {
    /// One that is here already, to be read where it lies. Photos go to `folder`, which must exist.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn at(path: &Path, file: File, folder: &Path, kinds: &Kinds) -> Result<Self, Error> {
        let found = file.metadata().map_err(Error::io("read", path))?;
        Ok(Self {
            bytes: found.len(),
            kinds: kinds.clone(),
            said_of: format!("{} is", path.display()),
            ..Self::new(file, path, folder)
        })
    }

    fn new(file: File, path: &Path, folder: &Path) -> Self {
        Self {
            path: path.to_owned(),
            file,
            bytes: 0,
            folder: folder.to_owned(),
            images: PathBuf::new(),
            seen: Vec::new(),
            forgotten: Vec::new(),
            opened: RefCell::default(),
            window: RefCell::default(),
            kinds: Kinds::default(),
            said_of: "the server sent".to_owned(),
            tail: Vec::new(),
            lacks_bytes: Cell::default(),
        }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn photo_path(&self, number: usize) -> PathBuf {
        match self.seen.get(number).and_then(|seen| seen.name.as_deref()) {
            Some(name) => self.images.join(name),
            None => self.folder.join(number.to_string()),
        }
    }

    /// What photos were called among the images as they came, whatever has become of them.
    pub fn names_on_the_way(&self) -> impl Iterator<Item = &str> {
        let seen = self.seen.iter().filter_map(|seen| seen.name.as_deref());
        seen.chain(self.forgotten.iter().map(AsRef::as_ref))
    }

    /// For `map_err`, on reading.
    fn unreadable(&self, error: io::Error) -> Error {
        Error::io("read", &self.path)(error)
    }

    pub fn reader(&self) -> ZipReader<'_> {
        ZipReader { zip: self, at: 0 }
    }

    /// Reads some bytes from `at` on; none at the end.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let after = self.seen.partition_point(|seen| seen.data_start <= at);
        let next = self.seen.get(after);
        let up_to = |end: u64| {
            let left = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
            left.min(buffer.len())
        };
        let last = after
            .checked_sub(1)
            .map(|number| (number, &self.seen[number]));
        if let Some((number, photo)) =
            last.filter(|(_, last)| last.is_photo && at < last.data_end())
        {
            let most = up_to(photo.data_end());
            return self.read_photo(&mut buffer[..most], number, at);
        }
        let most = up_to(next.map_or(self.bytes, |next| next.data_start));
        let apart = last.map_or(0, |(_, last)| last.apart_after());
        self.read_own(&mut buffer[..most], at - apart)
    }

    /// Reads from `at` on what is among the data of a photo.
    fn read_photo(&self, buffer: &mut [u8], number: usize, at: u64) -> io::Result<usize> {
        let photo = &self.seen[number];
        if photo.method == STORED {
            let mut opened = self.opened.borrow_mut();
            if opened.as_ref().is_none_or(|(open, _)| *open != number) {
                *opened = Some((number, File::open(self.photo_path(number))?));
            }
            return match &*opened {
                Some((_, file)) => file.read_at(buffer, at - photo.data_start),
                None => Ok(0),
            };
        }
        let tail_start = self.bytes - self.tail.len() as u64;
        let skipped = at
            .checked_sub(tail_start)
            .and_then(|skipped| usize::try_from(skipped).ok());
        if let Some(mut there) = skipped.and_then(|skipped| self.tail.get(skipped..)) {
            return there.read(buffer);
        }
        self.lacks_bytes.set(true);
        Err(io::Error::other("it was inflated as it came, and not kept"))
    }

    /// Whether something was to be read that has not been kept: what came of it does not count then.
    pub fn lacks_bytes(&self) -> bool {
        self.lacks_bytes.get()
    }

    fn keep_tail(&mut self, chunk: &[u8]) {
        let kept = &chunk[chunk.len().saturating_sub(directory::MOST_TAIL_BYTES)..];
        if self.tail.len() + kept.len() > 2 * directory::MOST_TAIL_BYTES {
            let more = directory::MOST_TAIL_BYTES - kept.len();
            self.tail.drain(..self.tail.len().saturating_sub(more));
        }
        self.tail.extend_from_slice(kept);
    }

    /// Reads from the zip's own file.
    fn read_own(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        const WINDOW_BYTES: usize = 16 << 10;
        if buffer.len() >= WINDOW_BYTES {
            return self.file.read_at(buffer, at);
        }
        let mut window = self.window.borrow_mut();
        let (start, bytes) = &mut *window;
        let from = |start: u64, bytes: &[u8]| {
            let from = usize::try_from(at.checked_sub(start)?).ok()?;
            (from + buffer.len() <= bytes.len()).then_some(from)
        };
        let from = if let Some(from) = from(*start, bytes) {
            from
        } else {
            bytes.resize(WINDOW_BYTES, 0);
            let read = self.file.read_at(bytes, at);
            bytes.truncate(*read.as_ref().unwrap_or(&0));
            *start = at;
            read?;
            0
        };
        let count = buffer.len().min(bytes.len() - from);
        buffer[..count].copy_from_slice(&bytes[from..from + count]);
        Ok(count)
    }

    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        ZipReader { zip: self, at }.read_exact(buffer)
    }

    /// [`Self::read_exact_at`], with the error of the zip.
    fn fill(&self, buffer: &mut [u8], at: u64) -> Result<(), Error> {
        self.read_exact_at(buffer, at)
            .map_err(|error| self.unreadable(error))
    }

    /// It may be otherwise by now.
    fn forget_what_was_read(&mut self) {
        self.opened.take();
        self.window.take();
    }

    /// The number under which an entry was seen on the way, just as the directory has it.
    fn number_of(&self, entry: &Entry, data_start: u64) -> Option<usize> {
        let place = self
            .seen
            .binary_search_by_key(&data_start, |seen| seen.data_start);
        place.ok().filter(|place| {
            let seen = &self.seen[*place];
            seen.is_whole
                && (seen.method, seen.crc32) == (entry.method, entry.crc32)
                && (seen.compressed_bytes, seen.bytes) == (entry.compressed_bytes, entry.bytes)
        })
    }
}

pub struct ZipReader<'a> {
    zip: &'a Zip,
    at: u64,
}

impl Read for ZipReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.zip.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for ZipReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(offset) => self.at.checked_add_signed(offset),
            SeekFrom::End(offset) => self.zip.bytes.checked_add_signed(offset),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

fn extract_from(
    zip: &mut Zip,
    end: &EndRecord,
    limits: &Limits,
    task: &Task<LogLine>,
) -> Result<Extraction, Error> {
    let entries = end.entries(zip, limits)?;
    refuse_unreadable(&entries)?;
    refuse_bombs(&entries, limits)?;
    let data_starts = headers::check(zip, &entries, end.directory_start(), task)?;
    let Choice {
        mut extraction,
        photos,
        texts,
    } = choose(&entries, &zip.kinds);
    let mut is_photo = vec![false; entries.len()];
    for index in &photos {
        is_photo[*index] = true;
    }
    let numbers: Vec<Option<usize>> = (entries.iter().zip(&data_starts).zip(&is_photo))
        .map(|((entry, data_start), is_photo)| {
            let number = zip.number_of(entry, *data_start)?;
            (zip.seen[number].is_photo || !is_photo).then_some(number)
        })
        .collect();
    let needed = photos.iter().filter(|index| numbers[**index].is_none());
    disk::require(
        &zip.folder,
        needed.map(|index| entries[*index].bytes).sum(),
        "extracting the zip",
    )?;
    let mut next_number = zip.seen.len();
    let mut taken: Vec<Option<(PathBuf, Look)>> = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let photo = match numbers[index] {
            Some(number) if is_photo[index] => {
                let path = zip.photo_path(number);
                let seen = &mut zip.seen[number];
                let (fault, header) = (seen.fault.take(), seen.header);
                Some((path, Look { fault, header }))
            }
            Some(_) => None,
            None => {
                let path = is_photo[index].then(|| zip.photo_path(next_number));
                next_number += 1;
                let data_start = data_starts[index];
                if let Some(path) = path {
                    let look = write_photo(zip, entry, data_start, &path, task)?;
                    Some((path, look))
                } else {
                    read_entry(zip, entry, data_start, task, |_| Ok(()))?;
                    None
                }
            }
        };
        taken.push(photo);
    }
    for index in photos {
        if let Some((path, look)) = taken[index].take() {
            let entry = &entries[index];
            extraction.photos.push(Photo {
                entry_name: entry.name.clone(),
                path,
                bytes: entry.bytes,
                crc32: entry.crc32,
                fault: look.fault,
                header: look.header,
            });
        }
    }
    let mut entries: Vec<Option<Entry>> = entries.into_iter().map(Some).collect();
    extraction.texts = (texts.into_iter())
        .filter_map(|index| {
            let (entry, data_start) = (entries[index].take()?, data_starts[index]);
            Some(Text { entry, data_start })
        })
        .collect();
    Ok(extraction)
}

/// Writes a photo to a file at `path`; what keeps it from opening.
fn write_photo(
    zip: &Zip,
    entry: &Entry,
    data_start: u64,
    path: &Path,
    task: &Task<LogLine>,
) -> Result<Look, Error> {
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).open(path);
    let mut file = file.map_err(disk::failed("write", path))?;
    read_entry(zip, entry, data_start, task, |bytes| {
        file.write_all(bytes).map_err(disk::failed("write", path))
    })?;
    image::look(file).map_err(Error::io("read", path))
}

fn damaged(entry_name: &str, reason: &str) -> Error {
    Error::BadZip(format!(
        "{} in the zip is damaged: {reason}. Make the zip, or upload it, again.",
        shown(entry_name)
    ))
}

/// Encryption and methods that are not supported; of any entry, as Python's `zipfile` refuses the whole zip for them.
fn refuse_unreadable(entries: &[Entry]) -> Result<(), Error> {
    for entry in entries {
        let method = Method::of(entry.method);
        if entry.flags & ENCRYPTED != 0 {
            return Err(Error::Unusable(format!(
                "{} in the zip is encrypted: make the zip without a password",
                shown(&entry.name)
            )));
        }
        if entry.flags & PATCH == 0 && method.is_some_and(Method::is_supported) {
            continue;
        }
        let method = match method {
            _ if entry.flags & PATCH != 0 => "patched data".to_owned(),
            Some(method) => method.to_string(),
            None => format!("number {}", entry.method),
        };
        return Err(Error::Unusable(format!(
            "{} in the zip is compressed with a method that cannot be read ({method}): make the zip with the usual one, \
             Deflate",
            shown(&entry.name)
        )));
    }
    Ok(())
}

fn is_bomb(bytes: u64, compressed_bytes: u64, limits: &Limits) -> bool {
    bytes > limits.ratio_free_bytes && bytes / limits.ratio > compressed_bytes
}

fn refuse_bombs(entries: &[Entry], limits: &Limits) -> Result<(), Error> {
    let mut total = 0u64;
    for entry in entries {
        total = total.saturating_add(entry.bytes);
        if is_bomb(entry.bytes, entry.compressed_bytes, limits) {
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
            "the files in the zip take {total} bytes, {} are allowed: put fewer into it, or set \
             trainer.dataset_limits = DatasetLimits(extracted_bytes=...)",
            limits.total_bytes
        )));
    }
    Ok(())
}

/// What to do with entries.
#[derive(Default)]
pub struct Choice {
    /// With what is left out.
    pub extraction: Extraction,
    /// Those to be extracted, in their order.
    pub photos: Vec<usize>,
    /// Those that may be captions.
    pub texts: Vec<usize>,
}

/// Which entries are wanted, and what to say of the others.
pub fn choose(entries: &[Entry], kinds: &Kinds) -> Choice {
    let mut extraction = Extraction::default();
    // Of two entries of one name, the second overwrites the first.
    let mut photos: HashMap<&[u8], usize> = HashMap::new();
    let mut texts: HashMap<&[u8], usize> = HashMap::new();
    for (index, entry) in entries.iter().enumerate() {
        let name = &entry.name;
        if name.ends_with('/') {
            continue;
        }
        let is_text = kinds.texts && stem_of(name, &[TEXT]).is_some();
        let is_file = entry.kind != LINK && !(NO_FILE.contains(&entry.kind) && entry.bytes == 0);
        if is_text && is_file && !is_junk(name) {
            texts.insert(&entry.raw_name, index);
            continue;
        }
        if !kinds.photos.are_of_photo(name) || is_junk(name) {
            extraction.others.push(name.clone());
            continue;
        }
        // A link's content is a path, not a photo. Some writers leave odd bits there on what is a file all the same.
        let reason = if entry.kind == LINK {
            "it is a symbolic link"
        } else if NO_FILE.contains(&entry.kind) && entry.bytes == 0 {
            "it is not a regular file"
        } else if base_name(name).starts_with('.') {
            // As Python's glob has it, which Musubi Tuner looks for images with.
            "its name begins with a dot, which hides it from Musubi Tuner"
        } else {
            photos.insert(&entry.raw_name, index);
            continue;
        };
        extraction.left_out.push((name.clone(), reason));
    }
    let mut photos: Vec<usize> = photos.into_values().collect();
    // The same photos get the same names, however the zip was put together.
    photos.sort_by_key(|index| {
        let Entry { name, raw_name, .. } = &entries[*index];
        (depth(name), name, raw_name)
    });
    let mut texts: Vec<usize> = texts.into_values().collect();
    texts.sort_by_key(|index| entries[*index].name.as_str());
    Choice {
        extraction,
        photos,
        texts,
    }
}

const STORED: u16 = 0;
const LINK: u32 = 0o120_000;
/// A pipe, devices, a socket and a folder. With content, one is a file that a writer took from there.
const NO_FILE: [u32; 5] = [0o010_000, 0o020_000, 0o060_000, 0o140_000, FOLDER];

/// Reads an entry to its end, and hands over what is in it piece by piece.
///
/// # Errors
/// [`Error::BadZip`] where it has not the size or the checksum that it declares.
fn read_entry(
    zip: &Zip,
    entry: &Entry,
    data_start: u64,
    task: &Task<LogLine>,
    mut take: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let damaged = |reason: String| damaged(&entry.name, &reason);
    let unreadable = |reason: String| damaged(format!("its data cannot be read: {reason}"));
    let read_up_to = Cell::new(data_start);
    let mut compressed =
        Compressed::of(zip, entry, &read_up_to).map_err(|error| unreadable(error.to_string()))?;
    let mut reader = compressed
        .decompressed(entry)
        .map_err(|error| unreadable(error.to_string()))?;
    let mut bytes = 0u64;
    let mut checksum = Crc::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        task.check()?;
        let content = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => &buffer[..count],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.raw_os_error().is_some() => {
                return Err(zip.unreadable(error));
            }
            Err(_) if bytes == entry.bytes && checksum.sum() != entry.crc32 => {
                return Err(damaged(format!(
                    "its checksum is {:08x}, {:08x} is declared",
                    checksum.sum(),
                    entry.crc32
                )));
            }
            Err(error) => {
                return Err(damaged(format!(
                    "{error} (it declares {} bytes, {bytes} were read)",
                    entry.bytes
                )));
            }
        };
        bytes += content.len() as u64;
        checksum.update(content);
        take(content)?;
    }
    if bytes != entry.bytes {
        return Err(damaged(format!(
            "{bytes} of {} bytes are there",
            entry.bytes
        )));
    }
    let data_bytes = read_up_to.get() - data_start;
    if Method::of(entry.method) == Some(Method::Deflate) && data_bytes < entry.compressed_bytes {
        return Err(damaged(format!(
            "something follows its compressed data within the {} bytes that they are said to take",
            entry.compressed_bytes
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use zip::CompressionMethod;
    use zip::write::SimpleFileOptions;

    use super::*;
    use crate::dataset::samples::{jpeg, shaded_jpeg, task, zip_of};

    /// The zip as it arrives in chunks of this many bytes; followed, or written down and read at the end.
    fn arrived(
        zip: &[u8],
        chunk_bytes: usize,
        is_followed: bool,
        folder: &Path,
        limits: &Limits,
    ) -> Zip {
        let into = folder.join("into");
        std::fs::create_dir(&into).unwrap();
        let path = folder.join("a.zip");
        let mut arrival = Arrival::create(&path, &into, limits, is_followed).unwrap();
        for chunk in zip.chunks(chunk_bytes) {
            arrival.append(chunk, None).unwrap();
        }
        arrival.finish().unwrap()
    }

    fn extracted(zip: &[u8], limits: &Limits) -> Result<Extraction, Error> {
        let folder = tempfile::tempdir().unwrap();
        let mut zip = arrived(zip, zip.len().max(1), true, folder.path(), limits);
        let into = folder.path().join("into");
        let result = extract(&mut zip, Some("application/zip"), limits, &task().0);
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
            (
                "what came through a pipe",
                &photo,
                UNIX,
                0o010_644 << 16,
                true,
            ),
            ("a pipe", &empty, UNIX, 0o010_644 << 16, false),
            ("a device", &empty, UNIX, 0o020_644 << 16, false),
            ("a disk", &empty, UNIX, 0o060_644 << 16, false),
            ("a socket", &empty, UNIX, 0o140_644 << 16, false),
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
    fn more_entries_than_the_end_can_say_are_read() {
        const ENTRIES: u32 = 0x1_0001;
        let (mut zip, mut directory) = (Vec::new(), Vec::new());
        for number in 0..ENTRIES {
            let extension = if number == 0x1_0000 { "jpg" } else { "txt" };
            let name = format!("{number}.{extension}");
            let about = [
                b"\x14\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".as_slice(),
                &u16::try_from(name.len()).unwrap().to_le_bytes(),
                &[0, 0],
            ]
            .concat();
            directory.extend(b"PK\x01\x02\x14\0");
            directory.extend([&about, &[0; 10][..]].concat());
            directory.extend(u32::try_from(zip.len()).unwrap().to_le_bytes());
            directory.extend(name.as_bytes());
            zip.extend([b"PK\x03\x04", about.as_slice(), name.as_bytes()].concat());
        }
        let start = u32::try_from(zip.len()).unwrap();
        let size = u32::try_from(directory.len()).unwrap();
        zip.extend(directory);
        zip.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
        zip.extend([size.to_le_bytes(), start.to_le_bytes()].concat());
        zip.extend([0, 0]);
        let extraction = extracted(&zip, &Limits::default()).unwrap();
        assert_eq!(extraction.photos.len(), 1);
        assert_eq!(extraction.others.len(), 0x1_0000);
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
    fn names_that_differ_in_what_is_no_text_are_two() {
        let zip = zip_of([("é1.jpg", shaded_jpeg(1)), ("é2.jpg", shaded_jpeg(2))]);
        let zip = replaced(&zip, "é1".as_bytes(), b"\xff\xfe1");
        let zip = replaced(&zip, "é2".as_bytes(), b"\xff\xfd1");
        assert_eq!(extracted(&zip, &Limits::default()).unwrap().photos.len(), 2);
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
                "a web page, application/zip, 39 bytes: ",
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
                "larger than its declared uncompressed size (it declares 9 bytes",
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
    fn every_cut_is_refused() {
        let zip = zip_of([("a.jpg", jpeg(64, 48)), ("b.txt", vec![1; 99])]);
        for length in 0..zip.len() {
            let (message, is_bad_zip) = refusal(&zip[..length]);
            assert!(is_bad_zip, "{length} bytes: {message}");
        }
    }

    #[test]
    fn a_flipped_bit_changes_no_photo() {
        let zip = zip_of([("a.jpg", shaded_jpeg(1)), ("b.jpg", shaded_jpeg(2))]);
        let whole: Vec<u32> = extracted(&zip, &Limits::default())
            .unwrap()
            .photos
            .iter()
            .map(|photo| photo.crc32)
            .collect();
        for at in 0..zip.len() * 8 {
            let mut flipped = zip.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            if let Ok(extraction) = extracted(&flipped, &Limits::default()) {
                let photos = extraction.photos.iter();
                assert!(
                    photos
                        .map(|photo| photo.crc32)
                        .all(|crc| whole.contains(&crc)),
                    "bit {at}"
                );
            }
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
            !is_bad_zip && message.contains("a.jpg in the zip") && message.contains("PPMd"),
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
                "more entries than the 1 that are allowed: put fewer into it, or set trainer.dataset_limits = \
                 DatasetLimits(entries=...)",
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

    mod properties {
        use proptest::prelude::*;
        use proptest::sample::Index;

        use super::*;

        const LIMITS: Limits = Limits {
            entries: 20,
            total_bytes: 64 << 10,
            ratio: 100,
            ratio_free_bytes: 4 << 10,
        };

        /// Whatever it is: it ends, no more than the limits is written, only numbered files in the folder, and what is
        /// taken is what the zip declares.
        fn holds(zip: &[u8]) -> Result<(), TestCaseError> {
            let at_the_end = extracted_as(zip, None)?;
            for chunk_bytes in [1, 7, 100, zip.len().max(1)] {
                let on_the_way = extracted_as(zip, Some(chunk_bytes))?;
                prop_assert_eq!(
                    &on_the_way,
                    &at_the_end,
                    "in chunks of {} bytes",
                    chunk_bytes
                );
            }
            Ok(())
        }

        /// What came of it, in the end: names, content and judgement of the photos and names of the rest, or what is said.
        type Told = Result<(Vec<(String, Vec<u8>, Option<Box<str>>)>, Vec<String>), String>;

        /// Followed in chunks of so many bytes, or written down and read at the end.
        fn extracted_as(zip: &[u8], chunk_bytes: Option<usize>) -> Result<Told, TestCaseError> {
            let folder = tempfile::tempdir().unwrap();
            let mut arrived = arrived(
                zip,
                chunk_bytes.unwrap_or(usize::MAX),
                chunk_bytes.is_some(),
                folder.path(),
                &LIMITS,
            );
            let result = extract(&mut arrived, None, &LIMITS, &task().0);
            if arrived.lacks_bytes() {
                return extracted_as(zip, None);
            }
            prop_assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
            let mut written = 0;
            for entry in std::fs::read_dir(folder.path().join("into")).unwrap() {
                let entry = entry.unwrap();
                prop_assert!(entry.file_type().unwrap().is_file());
                prop_assert!(entry.file_name().to_str().unwrap().parse::<u64>().is_ok());
                written += entry.metadata().unwrap().len();
            }
            // What is taken on the way and turns out to be something else lies beside what it is taken for.
            let most = LIMITS.total_bytes * if chunk_bytes.is_some() { 2 } else { 1 };
            prop_assert!(written <= most, "{written} bytes are written");
            let extraction = match result {
                Ok(extraction) => extraction,
                Err(Error::BadZip(message) | Error::Unusable(message)) => {
                    prop_assert!(!message.is_empty() && !message.contains(['\n', '\0']));
                    return Ok(Err(message));
                }
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            };
            let listed = extraction.photos.len() + extraction.others.len();
            prop_assert!(listed + extraction.left_out.len() <= 20);
            let mut photos = Vec::new();
            for photo in extraction.photos {
                let content = std::fs::read(&photo.path).unwrap();
                let mut checksum = Crc::new();
                checksum.update(&content);
                prop_assert_eq!(
                    (content.len() as u64, checksum.sum()),
                    (photo.bytes, photo.crc32)
                );
                photos.push((photo.entry_name, content, photo.fault));
            }
            let left_out = extraction.left_out.into_iter().map(|(name, _)| name);
            let others = extraction.others.into_iter().chain(left_out).collect();
            Ok(Ok((photos, others)))
        }

        fn corpus() -> Vec<Vec<u8>> {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/archive");
            let mut files: Vec<_> = std::fs::read_dir(folder)
                .unwrap()
                .map(|file| file.unwrap().path())
                .collect();
            files.sort();
            files
                .iter()
                .map(|file| std::fs::read(file).unwrap())
                .collect()
        }

        #[test]
        fn every_zip_of_the_corpus_holds() {
            let zips = corpus();
            assert!(zips.len() > 20);
            for zip in zips {
                holds(&zip).unwrap();
            }
        }

        /// One thing that damage, or malice, does to a zip.
        #[derive(Clone, Debug)]
        enum Change {
            Flip(Index, u8),
            /// A number, at an offset from one of the records.
            Overwrite(Index, usize, Vec<u8>),
            Cut(Index),
            Remove(Index, usize),
            Insert(Index, Vec<u8>),
            /// A part of another zip, or of the same.
            Splice(Index, Index, Index, usize),
        }

        fn change() -> impl Strategy<Value = Change> {
            let telling = prop_oneof![
                prop::sample::select(vec![
                    0u64,
                    1,
                    8,
                    0xff,
                    0xffff,
                    0x7fff_ffff,
                    0xffff_ffff,
                    u64::MAX
                ]),
                0u64..800,
                any::<u64>(),
            ];
            let number = (telling, prop::sample::select(vec![1, 2, 4, 8]))
                .prop_map(|(number, bytes)| number.to_le_bytes()[..bytes].to_vec());
            let signatures = vec![
                b"PK\x03\x04".to_vec(),
                b"PK\x01\x02".to_vec(),
                b"PK\x05\x06".to_vec(),
                b"PK\x06\x06".to_vec(),
                b"PK\x06\x07".to_vec(),
                b"PK\x07\x08".to_vec(),
            ];
            let bytes = prop_oneof![
                prop::sample::select(signatures),
                prop::collection::vec(any::<u8>(), 1..40),
            ];
            prop_oneof![
                1 => (any::<Index>(), 0..8u8).prop_map(|(at, bit)| Change::Flip(at, bit)),
                6 => (any::<Index>(), 0..60usize, number)
                    .prop_map(|(record, offset, number)| Change::Overwrite(record, offset, number)),
                1 => any::<Index>().prop_map(Change::Cut),
                1 => (any::<Index>(), 1..60usize).prop_map(|(at, bytes)| Change::Remove(at, bytes)),
                1 => (any::<Index>(), bytes).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
                1 => (any::<Index>(), any::<Index>(), any::<Index>(), 1..400usize)
                    .prop_map(|(at, zip, from, bytes)| Change::Splice(at, zip, from, bytes)),
            ]
        }

        fn changed(mut zip: Vec<u8>, change: &Change, corpus: &[Vec<u8>]) -> Vec<u8> {
            if zip.is_empty() {
                return zip;
            }
            let length = zip.len();
            match change {
                Change::Flip(at, bit) => zip[at.index(length)] ^= 1 << bit,
                Change::Overwrite(record, offset, number) => {
                    let records: Vec<usize> = zip
                        .windows(2)
                        .enumerate()
                        .filter_map(|(at, window)| (window == b"PK").then_some(at))
                        .collect();
                    if !records.is_empty() {
                        let at = records[record.index(records.len())] + offset;
                        for (byte, new) in zip.iter_mut().skip(at).zip(number) {
                            *byte = *new;
                        }
                    }
                }
                Change::Cut(at) => zip.truncate(at.index(length)),
                Change::Remove(at, bytes) => {
                    let at = at.index(length);
                    zip.drain(at..length.min(at + bytes));
                }
                Change::Insert(at, bytes) => {
                    let at = at.index(length);
                    zip.splice(at..at, bytes.iter().copied());
                }
                Change::Splice(at, other, from, bytes) => {
                    let other = &corpus[other.index(corpus.len())];
                    let from = from.index(other.len());
                    let part = &other[from..other.len().min(from + bytes)];
                    let at = at.index(length);
                    zip.splice(at..at, part.iter().copied());
                }
            }
            zip
        }

        proptest! {
            #[test]
            fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
                holds(&bytes)?;
                holds(&[b"PK\x03\x04".as_slice(), &bytes].concat())?;
            }

            #[test]
            fn changed_zips_are_refused_or_read(
                zip in any::<Index>(),
                changes in prop::collection::vec(change(), 1..4),
            ) {
                let corpus = corpus();
                let zip = corpus[zip.index(corpus.len())].clone();
                let zip = changes.iter().fold(zip, |zip, change| changed(zip, change, &corpus));
                holds(&zip)?;
            }
        }
    }
}
