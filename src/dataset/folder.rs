//! A folder of photos: looked through as a zip is, its photos copied. Nothing in it is changed, and no link in it followed.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use flate2::Crc;

use super::archive::{Choice, Entry, Extraction, Kinds, Limits, Photo, Text, choose};
use super::image;
use crate::disk;
use crate::error::Error;
use crate::task::{Cancel, LogLine, Task};

/// What is in a folder, at any depth, in the order of the names.
pub struct Listing {
    pub entries: Vec<Entry>,
    /// Links to folders.
    pub links: Vec<String>,
}

/// # Errors
/// [`Error::Unusable`] for more than is allowed, [`Error::Io`], [`Error::Cancelled`].
pub fn list(root: &Path, limits: &Limits, cancel: &Cancel) -> Result<Listing, Error> {
    let mut entries = Vec::new();
    let mut links = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let path = root.join(&folder);
        let failed = |error| Error::io("read", &path)(error);
        for found in fs::read_dir(&path).map_err(failed)? {
            cancel.check()?;
            let found = found.map_err(failed)?;
            if entries.len() as u64 == limits.entries {
                return Err(Error::Unusable(format!(
                    "{} has more files and folders in it than the {} that are allowed: give a folder with the photos \
                     alone, or set trainer.dataset_limits = DatasetLimits(entries=...)",
                    root.display(),
                    limits.entries
                )));
            }
            let inside = folder.join(found.file_name());
            let about = found.metadata();
            let about = about.map_err(|error| Error::io("read", &found.path())(error))?;
            let entry = entry(&inside, &about);
            if about.is_dir() {
                folders.push(inside);
            } else if about.is_symlink() && found.path().is_dir() {
                links.push(entry.name.clone());
            }
            entries.push(entry);
        }
    }
    entries.sort_by(|one, other| one.raw_name.cmp(&other.raw_name));
    links.sort();
    Ok(Listing { entries, links })
}

fn entry(inside: &Path, about: &Metadata) -> Entry {
    let mut name = inside.to_string_lossy().into_owned();
    if about.is_dir() {
        name.push('/');
    }
    Entry {
        name,
        raw_name: inside.as_os_str().to_owned().into_vec(),
        kind: about.mode() & 0o170_000,
        flags: 0,
        method: 0,
        crc32: 0,
        compressed_bytes: about.len(),
        bytes: about.len(),
        header_start: 0,
    }
}

/// Which of them are wanted.
pub fn choose_of(listing: &Listing, kinds: &Kinds) -> Choice {
    let mut choice = choose(&listing.entries, kinds);
    let extraction = &mut choice.extraction;
    let is_no_link = |name: &String| listing.links.binary_search(name).is_err();
    extraction.others.retain(is_no_link);
    extraction.left_out.retain(|(name, _)| is_no_link(name));
    let reason =
        "it is a link to a folder, and links are not followed: copy the folder, or give it itself";
    let links = listing.links.iter().map(|name| (name.clone(), reason));
    extraction.left_out.extend(links);
    choice
}

/// Copies every photo of `root` to `into`, under a number.
///
/// # Errors
/// [`Error::Unusable`] for more than is allowed and for files that change meanwhile, [`Error::Io`],
/// [`Error::Cancelled`].
pub fn gather(
    root: &Path,
    into: &Path,
    kinds: &Kinds,
    limits: &Limits,
    task: &Task<LogLine>,
) -> Result<Extraction, Error> {
    let listing = list(root, limits, &task.cancel)?;
    let Choice {
        mut extraction,
        photos,
        texts,
    } = choose_of(&listing, kinds);
    let mut entries: Vec<Option<Entry>> = listing.entries.into_iter().map(Some).collect();
    let photos: Vec<Entry> = (photos.into_iter())
        .filter_map(|index| entries[index].take())
        .collect();
    let bytes = photos.iter().map(|entry| entry.bytes);
    let bytes = bytes.fold(0, u64::saturating_add);
    if bytes > limits.total_bytes {
        return Err(Error::Unusable(format!(
            "the photos in {} take {bytes} bytes, {} are allowed: give a folder with fewer, or set \
             trainer.dataset_limits = DatasetLimits(extracted_bytes=...)",
            root.display(),
            limits.total_bytes
        )));
    }
    disk::require(into, bytes, "copying the photos")?;
    for (number, entry) in photos.into_iter().enumerate() {
        let from = root.join(OsStr::from_bytes(&entry.raw_name));
        let path = into.join(number.to_string());
        let (crc32, copy) = copied(&from, &path, task)?;
        let look = image::look(copy).map_err(Error::io("read", &path))?;
        extraction.photos.push(Photo {
            entry_name: entry.name,
            path,
            bytes: entry.bytes,
            crc32,
            fault: look.fault,
            header: look.header,
        });
    }
    let texts = (texts.into_iter()).filter_map(|index| entries[index].take());
    extraction.texts = texts.map(Text::beside).collect();
    Ok(extraction)
}

/// What is in a text of the folder `root`.
///
/// # Errors
/// As [`gather`].
pub fn read_text(root: &Path, text: &Text) -> Result<Vec<u8>, Error> {
    let path = root.join(OsStr::from_bytes(&text.entry.raw_name));
    let mut whole = Whole::open(&path, NO_LINK)?;
    let mut content = Vec::new();
    let most = whole.about.len() + 1;
    let read = (&mut whole.file).take(most).read_to_end(&mut content);
    read.map_err(Error::io("read", &path))?;
    whole.check(content.len() as u64)?;
    Ok(content)
}

/// The checksum of what is in a file, and its copy.
fn copied(from: &Path, to: &Path, task: &Task<LogLine>) -> Result<(u32, File), Error> {
    let mut whole = Whole::open(from, NO_LINK)?;
    let mut options = File::options();
    let copy = options.read(true).write(true).create_new(true).open(to);
    let mut copy = copy.map_err(disk::failed("write", to))?;
    let mut checksum = Crc::new();
    let mut buffer = vec![0; 256 << 10];
    let (mut bytes, most) = (0, whole.about.len());
    // One that grows as fast as it is read has no end.
    while bytes <= most {
        task.check()?;
        let content = match whole.file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => &buffer[..count],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io("read", from)(error)),
        };
        bytes += content.len() as u64;
        checksum.update(content);
        copy.write_all(content).map_err(disk::failed("write", to))?;
    }
    whole.check(bytes)?;
    Ok((checksum.sum(), copy))
}

/// A link in a folder may lead anywhere.
const NO_LINK: i32 = libc::O_NOFOLLOW;

/// A file of the user's, which has to stay as it is while it is read.
pub struct Whole<'a> {
    path: &'a Path,
    pub file: File,
    about: Metadata,
}

impl<'a> Whole<'a> {
    /// # Errors
    /// [`Error::Unusable`] for what is no regular file, [`Error::Io`].
    pub fn open(path: &'a Path, flags: i32) -> Result<Self, Error> {
        let mut options = File::options();
        // A pipe that has come in its place would wait for a writer.
        options.read(true).custom_flags(libc::O_NONBLOCK | flags);
        let file = options.open(path).map_err(Error::io("read", path))?;
        let about = file.metadata().map_err(Error::io("read", path))?;
        if !about.is_file() {
            return Err(Error::Unusable(format!(
                "{} was a regular file, and is something else now: make the dataset again when nothing changes it",
                path.display()
            )));
        }
        Ok(Self { path, file, about })
    }

    /// As it was opened.
    pub fn bytes(&self) -> u64 {
        self.about.len()
    }

    /// # Errors
    /// [`Error::Unusable`] when it is another than it was, or more or fewer bytes were read than it had.
    pub fn check(&self, read_bytes: u64) -> Result<(), Error> {
        let now = self.file.metadata();
        let now = now.map_err(Error::io("read", self.path))?;
        let state = |about: &Metadata| (about.len(), about.mtime(), about.mtime_nsec());
        if read_bytes == self.about.len() && state(&now) == state(&self.about) {
            return Ok(());
        }
        Err(Error::Unusable(format!(
            "{} changed while it was read ({} bytes at first, {} now, {read_bytes} read): make the dataset again when \
             nothing writes to it",
            self.path.display(),
            self.about.len(),
            now.len()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::samples::task;

    #[test]
    fn a_file_that_changes_while_it_is_read_is_named_with_its_sizes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jpg");
        let write = |content: &str| fs::write(&path, content).unwrap();
        let touch = || {
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH)
                .unwrap();
        };
        let cases: [(&str, &dyn Fn(), u64); 4] = [
            ("grows", &|| write("much longer"), 11),
            ("shrinks", &|| write(""), 5),
            ("is read in part", &|| {}, 4),
            ("is written anew", &touch, 5),
        ];
        for (name, change, read) in cases {
            write("first");
            let whole = Whole::open(&path, NO_LINK).unwrap();
            change();
            let error = whole.check(read).unwrap_err().to_string();
            assert!(
                error.contains("a.jpg changed while it was read (5 bytes at first"),
                "{name}: {error}"
            );
        }
        write("first");
        Whole::open(&path, NO_LINK).unwrap().check(5).unwrap();
    }

    /// The kernel says of such a file that it is empty, and has something to read in it all the same.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_photo_that_is_longer_than_it_was_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy");
        let error = copied(Path::new("/proc/version"), &copy, &task().0).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("/proc/version changed while it was read (0 bytes"),
            "{message}"
        );
    }

    #[test]
    fn what_vanishes_or_becomes_something_else_is_named_and_never_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let inside = |name: &str| folder.path().join(name);
        rustix::fs::mkfifoat(rustix::fs::CWD, inside("pipe.jpg"), rustix::fs::Mode::RWXU).unwrap();
        fs::create_dir(inside("folder.jpg")).unwrap();
        fs::write(inside("real.jpg"), "x").unwrap();
        std::os::unix::fs::symlink(inside("real.jpg"), inside("link.jpg")).unwrap();
        for (name, wanted) in [
            ("gone.jpg", "No such file"),
            ("pipe.jpg", "is something else now"),
            ("folder.jpg", "is something else now"),
            ("link.jpg", "symbolic links"),
        ] {
            let error = copied(&inside(name), &inside("copy"), &task().0).unwrap_err();
            let message = error.to_string();
            assert!(
                message.contains(name) && message.contains(wanted),
                "{message}"
            );
            assert!(!inside("copy").exists());
        }
    }

    #[test]
    fn names_that_are_no_text_are_two_files() {
        let folder = tempfile::tempdir().unwrap();
        let into = tempfile::tempdir().unwrap();
        for name in [b"\xff.jpg", b"\xfe.jpg"] {
            // Some file systems take no such names.
            if fs::write(folder.path().join(OsStr::from_bytes(name)), name).is_err() {
                return;
            }
        }
        let kinds = Kinds::default();
        let gathered = gather(
            folder.path(),
            into.path(),
            &kinds,
            &Limits::default(),
            &task().0,
        );
        let photos = gathered.unwrap().photos;
        let contents: Vec<_> = photos
            .iter()
            .map(|photo| fs::read(&photo.path).unwrap())
            .collect();
        assert_eq!(contents, [b"\xfe.jpg", b"\xff.jpg"]);
    }
}
