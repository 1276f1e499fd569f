//! The zip while it arrives: photos are taken out of it on the way, and kept nowhere else. Nothing is decided by that.
//! What the stream seems to hold counts once the directory, which comes last, has been judged and says the same. Where it
//! does not, all of the zip is needed: stored photos are a part of it, of deflated ones the compressed bytes are gone, so
//! that it has to come again ([`Zip::lacks_bytes`]).

use std::fs::{self, File};
use std::io::{self, Cursor, Seek, SeekFrom, Write};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;

use flate2::{Crc, Decompress, FlushDecompress, Status};

use super::content::Method;
use super::directory::MOST_TAIL_BYTES;
use super::headers::{self, LocalHeader, Next};
use super::names::{Stems, base_name, decoded_name, is_junk};
use super::{Kinds, Limits, STORED, Zip, is_bomb};
use crate::dataset::image::{self, Header};
use crate::disk;
use crate::error::Error;

/// What is written, and inflated, at a time.
const BUFFER_BYTES: usize = 128 << 10;

/// How many photos are told of at a time.
const PHOTOS_AT_A_TIME: usize = 100;

/// Somebody else may fill the disk meanwhile: what photos may take between two looks at it.
const BYTES_BETWEEN_LOOKS: u64 = 16 << 20;

/// The data of an entry, as the stream had it.
#[derive(Debug)]
pub struct Seen {
    pub data_start: u64,
    pub compressed_bytes: u64,
    pub method: u16,
    /// Decompressed.
    pub bytes: u64,
    pub crc32: u32,
    /// Whether the data ended where they were to.
    pub is_whole: bool,
    /// Whether what is in it lies in a file of its own, and its bytes not in the zip's.
    pub is_photo: bool,
    /// What that file is called among the images; without this it has a number.
    pub name: Option<Box<str>>,
    /// Bytes of the zip before it that do not lie in the zip's file.
    pub apart_before: u64,
    /// See [`image::look`].
    pub fault: Option<Box<str>>,
    pub header: Header,
}

impl Seen {
    pub fn data_end(&self) -> u64 {
        self.data_start + self.compressed_bytes
    }

    pub fn apart_after(&self) -> u64 {
        let apart = if self.is_photo {
            self.compressed_bytes
        } else {
            0
        };
        self.apart_before + apart
    }
}

/// The zip so far.
pub struct Arrival {
    zip: Zip,
    /// What is to be written to the zip's own file.
    waiting: Vec<u8>,
    limits: Limits,
    is_followed: bool,
    state: State,
    inflater: Inflater,
    extracted_bytes: u64,
    /// What photos may take before there is another look.
    room: u64,
    naming: Option<Naming>,
}

/// For photos that get their names as they come.
struct Naming {
    stems: Stems,
    /// Those that are there, and whom to tell of them.
    photos: Vec<PathBuf>,
    listener: SyncSender<Vec<PathBuf>>,
}

enum State {
    /// Between the data of two entries, with what came of a header.
    Between(Vec<u8>),
    Within(Within),
    /// What comes is written down, to be read when all of it is there.
    Lost,
}

/// The data of the entry that was seen last.
struct Within {
    /// Of the compressed bytes, those that are to come; `None` where the data tell their end themselves.
    left: Option<u64>,
    most_bytes: u64,
    bytes: u64,
    checksum: Crc,
    photo: Option<File>,
    inflation: Inflation,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Inflation {
    GoesOn,
    HasEnded,
    IsBroken,
}

struct Inflater {
    decompress: Decompress,
    buffer: Vec<u8>,
}

impl Arrival {
    /// The zip at `path`, which is overwritten. Photos go to `folder`, which must exist, under numbers: on the way, where
    /// it is followed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(
        path: &Path,
        folder: &Path,
        limits: &Limits,
        is_followed: bool,
    ) -> Result<Self, Error> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        let file = options.open(path).map_err(Error::io("write", path))?;
        Ok(Self {
            zip: Zip::new(file, path, folder),
            waiting: Vec::with_capacity(BUFFER_BYTES),
            limits: *limits,
            is_followed,
            state: State::at_the_start(is_followed),
            inflater: Inflater {
                decompress: Decompress::new(false),
                buffer: Vec::new(),
            },
            extracted_bytes: 0,
            room: 0,
            naming: None,
        })
    }

    /// Has all else left in the zip.
    #[must_use]
    pub fn of(mut self, kinds: &Kinds) -> Self {
        self.zip.kinds.clone_from(kinds);
        self
    }

    /// Has photos go to `images`, which must exist, under the names that they most probably get in the end, and tells of
    /// those that are there.
    pub fn naming(&mut self, images: &Path, listener: SyncSender<Vec<PathBuf>>) {
        images.clone_into(&mut self.zip.images);
        self.naming = Some(Naming {
            stems: Stems::default(),
            photos: Vec::new(),
            listener,
        });
    }

    /// Another zip at `path`, out of which nothing is taken. It knows what photos were called before this started again.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn beside(&self, path: &Path) -> Result<Self, Error> {
        let mut other = Self::create(path, &self.zip.folder, &self.limits, false)?;
        other.zip.images.clone_from(&self.zip.images);
        other.zip.forgotten.clone_from(&self.zip.forgotten);
        Ok(other.of(&self.zip.kinds))
    }

    /// # Errors
    /// [`Error::Io`].
    pub fn rename(&mut self, path: &Path) -> Result<(), Error> {
        fs::rename(&self.zip.path, path).map_err(Error::io("rename", &self.zip.path))?;
        path.clone_into(&mut self.zip.path);
        Ok(())
    }

    pub fn bytes(&self) -> u64 {
        self.zip.bytes
    }

    pub fn path(&self) -> &Path {
        &self.zip.path
    }

    /// Nothing is taken out before it starts again.
    pub fn stop_following(&mut self) {
        self.state = State::Lost;
    }

    /// Forgets all that came.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn restart(&mut self) -> Result<(), Error> {
        for (place, seen) in self.zip.seen.iter().enumerate() {
            if seen.is_photo {
                let path = self.zip.photo_path(place);
                fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            }
        }
        let names = self.zip.seen.drain(..).filter_map(|seen| seen.name);
        self.zip.forgotten.extend(names);
        self.zip.tail.clear();
        self.zip.bytes = 0;
        self.waiting.clear();
        self.state = State::at_the_start(self.is_followed);
        self.extracted_bytes = 0;
        self.room = 0;
        let cleared = self.zip.file.set_len(0);
        cleared
            .and_then(|()| self.zip.file.seek(SeekFrom::Start(0)))
            .map(drop)
            .map_err(Error::io("write", &self.zip.path))
    }

    /// The zip by now, for reading.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn so_far(&mut self) -> Result<&Zip, Error> {
        self.flush()?;
        self.zip.forget_what_was_read();
        Ok(&self.zip)
    }

    /// # Errors
    /// [`Error::Io`].
    pub fn finish(mut self) -> Result<Zip, Error> {
        self.so_far()?;
        self.tell(1)?;
        Ok(self.zip)
    }

    /// Tells of the photos that are there, if there are so many.
    fn tell(&mut self, at_least: usize) -> Result<(), Error> {
        match &mut self.naming {
            Some(naming) if naming.photos.len() >= at_least => {
                let told = naming.listener.send(mem::take(&mut naming.photos));
                // As in `Task::say`: nobody listens any more.
                told.map_err(|_| Error::Cancelled)
            }
            _ => Ok(()),
        }
    }

    /// Takes what came next. `bytes_to_come` are those behind it, where that is known.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append(&mut self, mut chunk: &[u8], bytes_to_come: Option<u64>) -> Result<(), Error> {
        if bytes_to_come.is_none_or(|bytes| bytes < MOST_TAIL_BYTES as u64) {
            self.zip.keep_tail(chunk);
        }
        while !chunk.is_empty() {
            chunk = match mem::replace(&mut self.state, State::Lost) {
                State::Lost => {
                    self.write_down(chunk)?;
                    &[]
                }
                State::Between(head) => self.go_between(head, chunk, bytes_to_come)?,
                State::Within(within) => self.go_within(within, chunk)?,
            }
        }
        Ok(())
    }

    /// Writes to the zip's own file.
    fn write_down(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.zip.bytes += bytes.len() as u64;
        if self.waiting.len() + bytes.len() > BUFFER_BYTES {
            self.flush()?;
        }
        if bytes.len() < BUFFER_BYTES {
            self.waiting.extend_from_slice(bytes);
            return Ok(());
        }
        let written = self.zip.file.write_all(bytes);
        written.map_err(disk::failed("write", &self.zip.path))
    }

    fn flush(&mut self) -> Result<(), Error> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let written = self.zip.file.write_all(&self.waiting);
        written.map_err(disk::failed("write", &self.zip.path))?;
        self.waiting.clear();
        Ok(())
    }

    fn go_between<'a>(
        &mut self,
        mut head: Vec<u8>,
        chunk: &'a [u8],
        bytes_to_come: Option<u64>,
    ) -> Result<&'a [u8], Error> {
        let known = head.len();
        let at = self.zip.bytes - known as u64;
        let last = self.zip.seen.last().filter(|last| last.data_end() == at);
        let next = if known == 0 {
            Next::of(chunk, at, last)
        } else {
            head.extend_from_slice(&chunk[..chunk.len().min(headers::MOST_BYTES)]);
            Next::of(&head, at, last)
        };
        let used = match &next {
            Next::Unknown => chunk.len(),
            Next::Descriptor(length) | Next::Header(_, length) => length.saturating_sub(known),
            Next::SomethingElse => return Ok(chunk),
        };
        self.write_down(&chunk[..used])?;
        self.state = match next {
            Next::Header(header, _) => self.begin(&header, bytes_to_come)?,
            // The beginning of a header may have come with it.
            Next::Descriptor(length) => {
                head.truncate(known);
                State::Between(head.split_off(length.min(known)))
            }
            Next::Unknown if known == 0 => State::Between(chunk.to_vec()),
            _ => State::Between(head),
        };
        Ok(&chunk[used..])
    }

    /// What to do with what follows a header.
    fn begin(&mut self, header: &LocalHeader, bytes_to_come: Option<u64>) -> Result<State, Error> {
        /// Where the header does not say what the data inflate to.
        const MOST_OF_UNKNOWN: u64 = 256 << 20;
        let is_open = header.has_descriptor() && header.compressed_bytes == 0;
        let is_stored = match Method::of(header.method) {
            _ if header.is_unreadable() => return Ok(State::Lost),
            Some(Method::Deflate) => false,
            Some(Method::Stored) if header.compressed_bytes == header.bytes && !is_open => true,
            _ => return Ok(State::Lost),
        };
        if header.compressed_bytes == 0 && !is_open {
            return Ok(State::Between(Vec::new()));
        }
        let may_take = self.limits.total_bytes.saturating_sub(self.extracted_bytes);
        let most_bytes = if is_open {
            may_take.min(MOST_OF_UNKNOWN)
        } else {
            header.bytes
        };
        let place = self.zip.seen.len();
        if place as u64 >= self.limits.entries
            || most_bytes > may_take
            || is_bomb(most_bytes, header.compressed_bytes, &self.limits) && !is_open
        {
            return Ok(State::Lost);
        }
        let name = decoded_name(&header.raw_name, header.flags);
        let is_photo = self.zip.kinds.photos.are_of_photo(&name)
            && !is_junk(&name)
            && !base_name(&name).starts_with('.');
        if is_photo && !is_stored && !self.has_room(most_bytes, bytes_to_come)? {
            return Ok(State::Lost);
        }
        let stems = self.naming.as_mut().map(|naming| &mut naming.stems);
        let seen = Seen {
            data_start: header.data_start,
            compressed_bytes: 0,
            method: header.method,
            bytes: 0,
            crc32: 0,
            is_whole: false,
            is_photo,
            name: stems
                .filter(|_| is_photo)
                .and_then(|stems| stems.first_name(&name))
                .map(String::into_boxed_str),
            apart_before: self.zip.seen.last().map_or(0, Seen::apart_after),
            fault: None,
            header: Header::default(),
        };
        self.zip.seen.push(seen);
        let photo = if is_photo {
            let path = self.zip.photo_path(place);
            let mut options = File::options();
            let file = options.read(true).write(true).create_new(true).open(&path);
            Some(file.map_err(disk::failed("write", &path))?)
        } else {
            None
        };
        if !is_stored {
            self.inflater.decompress.reset(false);
        }
        Ok(State::Within(Within {
            left: (!is_open).then_some(header.compressed_bytes),
            most_bytes,
            bytes: 0,
            checksum: Crc::new(),
            photo,
            inflation: Inflation::GoesOn,
        }))
    }

    /// Whether a photo fits beside what is to come of the zip. If not, it waits for what is required at the end.
    fn has_room(&mut self, bytes: u64, bytes_to_come: Option<u64>) -> Result<bool, Error> {
        if self.room < bytes {
            let needed = bytes.saturating_add(bytes_to_come.unwrap_or_default());
            let free = disk::free_bytes(&self.zip.folder)?;
            // Some network file systems say 0 for "unknown".
            if free > 0 && free < needed {
                return Ok(false);
            }
            self.room = bytes + free.saturating_sub(needed).min(BYTES_BETWEEN_LOOKS);
        }
        self.room -= bytes;
        Ok(true)
    }

    fn go_within<'a>(&mut self, mut within: Within, chunk: &'a [u8]) -> Result<&'a [u8], Error> {
        let place = self.zip.seen.len() - 1;
        let left = within.left.and_then(|left| usize::try_from(left).ok());
        let data = &chunk[..chunk.len().min(left.unwrap_or(usize::MAX))];
        let is_stored = self.zip.seen[place].method == STORED;
        let (used, content_bytes) = if is_stored {
            let written = within.take(data);
            // A stored photo is a part of the download.
            written.map_err(disk::failed("write", &self.zip.path))?;
            (data.len(), data.len())
        } else {
            let failed = |error| {
                let path = self.zip.photo_path(place);
                disk::failed("write", &path)(error)
            };
            self.inflater.inflate(data, &mut within).map_err(failed)?
        };
        if self.zip.seen[place].is_photo {
            self.zip.bytes += used as u64;
        } else {
            self.write_down(&data[..used])?;
        }
        let seen = &mut self.zip.seen[place];
        seen.compressed_bytes += used as u64;
        let is_over = match &mut within.left {
            Some(left) => {
                *left -= used as u64;
                *left == 0
            }
            None => within.inflation != Inflation::GoesOn,
        };
        if !is_over {
            self.state = State::Within(within);
            return Ok(&chunk[used..]);
        }
        seen.bytes = within.bytes;
        seen.crc32 = within.checksum.sum();
        seen.is_whole = is_stored || within.inflation == Inflation::HasEnded;
        if let Some(photo) = within.photo.take() {
            let look = if content_bytes as u64 == within.bytes {
                let inflated = &self.inflater.buffer;
                let content = if is_stored { data } else { inflated };
                image::look(Cursor::new(&content[..content_bytes]))
            } else {
                image::look(photo)
            };
            let path = || self.zip.photo_path(place);
            let look = look.map_err(|error| Error::io("read", &path())(error))?;
            self.zip.seen[place].fault = look.fault;
            self.zip.seen[place].header = look.header;
            let path = self.zip.photo_path(place);
            if let Some(naming) = &mut self.naming
                && self.zip.seen[place].name.is_some()
            {
                naming.photos.push(path);
                self.tell(PHOTOS_AT_A_TIME)?;
            }
        }
        self.extracted_bytes += within.bytes;
        if within.left.is_some() || within.inflation == Inflation::HasEnded {
            self.state = State::Between(Vec::new());
        }
        Ok(&chunk[used..])
    }
}

impl State {
    fn at_the_start(is_followed: bool) -> Self {
        if is_followed {
            Self::Between(Vec::new())
        } else {
            Self::Lost
        }
    }
}

impl Within {
    /// Takes a piece of what is in the entry.
    fn take(&mut self, content: &[u8]) -> io::Result<()> {
        self.bytes += content.len() as u64;
        self.checksum.update(content);
        match &mut self.photo {
            Some(file) => file.write_all(content),
            None => Ok(()),
        }
    }
}

impl Inflater {
    /// Inflates what is there of an entry; how many bytes of it belong to the entry, and how many that they
    /// inflate to came last and are in the buffer.
    ///
    /// # Errors
    /// What writing gives. What does not inflate as it should is told by [`Within::inflation`].
    fn inflate(&mut self, data: &[u8], within: &mut Within) -> io::Result<(usize, usize)> {
        self.buffer.resize(BUFFER_BYTES, 0);
        let (mut used, mut inflated) = (0, 0);
        while within.inflation == Inflation::GoesOn {
            let before = (self.decompress.total_in(), self.decompress.total_out());
            let flush = FlushDecompress::None;
            let status = self
                .decompress
                .decompress(&data[used..], &mut self.buffer, flush);
            let count = |now: u64, before: u64| usize::try_from(now - before).unwrap_or_default();
            used += count(self.decompress.total_in(), before.0);
            inflated = count(self.decompress.total_out(), before.1);
            within.inflation = match status {
                Ok(Status::StreamEnd) => Inflation::HasEnded,
                Ok(_) => Inflation::GoesOn,
                Err(_) => Inflation::IsBroken,
            };
            if within.bytes + inflated as u64 > within.most_bytes {
                within.inflation = Inflation::IsBroken;
            } else {
                within.take(&self.buffer[..inflated])?;
            }
            if used == data.len() && inflated < self.buffer.len() {
                break;
            }
        }
        // Data that end before their end, or do not inflate, are for whoever reads the zip.
        if within.inflation == Inflation::HasEnded
            && within.left.is_some_and(|left| left != used as u64)
        {
            within.inflation = Inflation::IsBroken;
        }
        if within.left.is_some() || within.inflation == Inflation::IsBroken {
            used = data.len();
        }
        Ok((used, inflated))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use zip::CompressionMethod;
    use zip::write::SimpleFileOptions;

    use super::*;
    use crate::dataset::archive::extract;
    use crate::dataset::samples::{jpeg, task};

    /// More than is kept of a zip to look for its end, and nothing that compresses well.
    fn photo(seed: u64) -> Vec<u8> {
        let mut photo = jpeg(64, 48);
        let end = photo.len() - 2;
        let noise = (0..200_000u64).scan(seed, |state, _| {
            *state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            Some((*state >> 57) as u8)
        });
        photo.splice(end..end, noise);
        photo
    }

    fn zip_in(method: CompressionMethod) -> Vec<u8> {
        let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let options = SimpleFileOptions::default().compression_method(method);
        writer.add_directory("in", options).unwrap();
        for (name, content) in [
            ("in/a.jpg", photo(1)),
            ("b.txt", photo(2)),
            ("c.jpg", photo(3)),
        ] {
            writer.start_file(name, options).unwrap();
            writer.write_all(&content).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    fn arrived(folder: &Path, zip: &[u8], chunk_bytes: usize) -> Zip {
        let path = folder.join("images.zip");
        let mut arrival = Arrival::create(&path, folder, &Limits::default(), true).unwrap();
        for chunk in zip.chunks(chunk_bytes) {
            arrival.append(chunk, None).unwrap();
        }
        arrival.finish().unwrap()
    }

    /// The numbers of the photos' files that were there when the zip was.
    fn taken(folder: &Path) -> Vec<usize> {
        let entries = fs::read_dir(folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut numbers: Vec<usize> = names.filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable();
        numbers
    }

    #[test]
    fn photos_are_taken_on_the_way_and_kept_nowhere_else() {
        for method in [CompressionMethod::STORE, CompressionMethod::DEFLATE] {
            let zip = zip_in(method);
            for chunk_bytes in [1000, 1 << 20] {
                let folder = tempfile::tempdir().unwrap();
                let mut zip = arrived(folder.path(), &zip, chunk_bytes);
                assert_eq!(taken(folder.path()), [0, 2]);
                let own = zip.file.metadata().unwrap().len();
                assert!(own < zip.bytes() / 2, "{own} of {} bytes", zip.bytes());
                let extraction = extract(&mut zip, None, &Limits::default(), &task().0).unwrap();
                assert!(!zip.lacks_bytes());
                assert_eq!(taken(folder.path()), [0, 2], "no photo is read again");
                let contents = extraction
                    .photos
                    .iter()
                    .map(|photo| fs::read(&photo.path).unwrap());
                assert_eq!(contents.collect::<Vec<_>>(), [photo(3), photo(1)]);
                assert!(extraction.photos.iter().all(|photo| photo.fault.is_none()));
            }
        }
    }

    #[test]
    fn numbers_behind_the_data_are_followed() {
        for name in ["streamed", "zip64-streamed"] {
            let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/archive");
            let zip = fs::read(format!("{corpus}/{name}.zip")).unwrap();
            for chunk_bytes in [1, 7, 1000] {
                let folder = tempfile::tempdir().unwrap();
                let mut zip = arrived(folder.path(), &zip, chunk_bytes);
                let before = taken(folder.path());
                let extraction = extract(&mut zip, None, &Limits::default(), &task().0).unwrap();
                assert_eq!(before.len(), extraction.photos.len(), "{name}");
                assert_eq!(taken(folder.path()), before, "{name}");
            }
        }
    }

    #[test]
    fn what_cannot_be_followed_is_read_at_the_end() {
        let stored = zip_in(CompressionMethod::STORE);
        let mut of_unknown_size = stored.clone();
        for at in 0..of_unknown_size.len() - 4 {
            if of_unknown_size[at..].starts_with(b"PK\x03\x04") {
                of_unknown_size[at + 6] |= 8;
                of_unknown_size[at + 14..at + 26].fill(0);
            }
        }
        for (name, zip) in [
            (
                "behind a program",
                [b"#!/bin/sh\n", stored.as_slice()].concat(),
            ),
            ("bzip2", zip_in(CompressionMethod::BZIP2)),
            ("stored, of unknown size", of_unknown_size),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let mut zip = arrived(folder.path(), &zip, 1000);
            assert_eq!(taken(folder.path()), [0; 0], "{name}");
            let extraction = extract(&mut zip, None, &Limits::default(), &task().0).unwrap();
            let contents = extraction
                .photos
                .iter()
                .map(|photo| fs::read(&photo.path).unwrap());
            assert_eq!(contents.collect::<Vec<_>>(), [photo(3), photo(1)], "{name}");
        }
    }

    /// What is stored can be read whatever the directory says, what was deflated only where it says the same.
    #[test]
    fn a_zip_that_is_not_what_it_seemed_is_read_whole_or_has_to_come_again() {
        for method in [CompressionMethod::STORE, CompressionMethod::DEFLATE] {
            let mut bytes = zip_in(method);
            let directory = bytes
                .windows(4)
                .position(|bytes| bytes == b"PK\x01\x02")
                .unwrap();
            let photo = bytes[directory..]
                .windows(8)
                .position(|name| name == b"in/a.jpg")
                .unwrap();
            // Its checksum, in both headers.
            let header = bytes
                .windows(8)
                .position(|name| name == b"in/a.jpg")
                .unwrap()
                - 30;
            bytes[header + 14] ^= 1;
            bytes[directory + photo - 46 + 16] ^= 1;
            let folder = tempfile::tempdir().unwrap();
            let mut zip = arrived(folder.path(), &bytes, 1000);
            let error = extract(&mut zip, None, &Limits::default(), &task().0).unwrap_err();
            let is_stored = method == CompressionMethod::STORE;
            assert_eq!(zip.lacks_bytes(), !is_stored);
            if is_stored {
                assert!(error.to_string().contains("its checksum is"), "{error}");
                let mut whole = Vec::new();
                zip.reader().read_to_end(&mut whole).unwrap();
                assert!(whole == bytes, "it reads as it came");
            }
        }
    }

    #[test]
    fn a_zip_that_starts_again_leaves_nothing_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images.zip");
        let mut arrival = Arrival::create(&path, folder.path(), &Limits::default(), true).unwrap();
        let first = zip_in(CompressionMethod::STORE);
        arrival
            .append(&first[..first.len() - 100_000], None)
            .unwrap();
        assert_eq!(taken(folder.path()), [0, 2]);
        arrival
            .so_far()
            .unwrap()
            .reader()
            .read_to_end(&mut Vec::new())
            .unwrap();
        arrival.restart().unwrap();
        assert_eq!(taken(folder.path()), [0; 0]);
        let second = zip_in(CompressionMethod::DEFLATE);
        arrival.append(&second, None).unwrap();
        let mut zip = arrival.finish().unwrap();
        let extraction = extract(&mut zip, None, &Limits::default(), &task().0).unwrap();
        let contents = extraction
            .photos
            .iter()
            .map(|photo| fs::read(&photo.path).unwrap());
        assert_eq!(contents.collect::<Vec<_>>(), [photo(3), photo(1)]);
    }
}
