//! What is in an entry, decompressed.

use std::cell::Cell;
use std::fmt;
use std::io::{self, Read};

use zip::read::{ZipReadOptions, read_zipfile_from_stream_with_options};
use zip::result::{ZipError, ZipResult};

use super::Zip;
use super::directory::Entry;

/// How an entry is compressed, of the ways that have a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Stored,
    Deflate,
    Deflate64,
    Bzip2,
    Lzma,
    Unsupported(&'static str),
}

impl Method {
    pub fn of(number: u16) -> Option<Self> {
        Some(match number {
            0 => Self::Stored,
            8 => Self::Deflate,
            9 => Self::Deflate64,
            12 => Self::Bzip2,
            14 => Self::Lzma,
            1 => Self::Unsupported("Shrink"),
            2..=5 => Self::Unsupported("Reduce"),
            6 => Self::Unsupported("Implode"),
            10 => Self::Unsupported("PKWARE DCL Implode"),
            16 => Self::Unsupported("IBM z/OS CMPSC"),
            18 => Self::Unsupported("IBM TERSE"),
            19 => Self::Unsupported("IBM LZ77"),
            20 | 93 => Self::Unsupported("Zstandard"),
            94 => Self::Unsupported("MP3"),
            95 => Self::Unsupported("XZ"),
            96 => Self::Unsupported("JPEG variant"),
            97 => Self::Unsupported("WavPack"),
            98 => Self::Unsupported("PPMd"),
            99 => Self::Unsupported("AES encryption"),
            _ => return None,
        })
    }

    pub fn is_supported(self) -> bool {
        !matches!(self, Self::Unsupported(_))
    }
}

impl fmt::Display for Method {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Unsupported(name) => name,
            Self::Stored => "none",
            Self::Deflate => "Deflate",
            Self::Deflate64 => "Deflate64",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "LZMA",
        })
    }
}

/// The compressed data of an entry, as the one file of a zip of its own: what was held against everything that the zip
/// says of it is what is read.
pub struct Compressed<'a> {
    header: io::Cursor<[u8; HEADER_BYTES]>,
    zip: &'a Zip,
    /// Read up to here; looked at while the data are read.
    at: &'a Cell<u64>,
    end: u64,
}

const HEADER_BYTES: usize = 30;

impl<'a> Compressed<'a> {
    /// Those of `entry`, which begin where `at` says.
    ///
    /// # Errors
    /// What reading the file gives, and an LZMA dictionary larger than is allowed.
    pub fn of(zip: &'a Zip, entry: &Entry, at: &'a Cell<u64>) -> io::Result<Self> {
        const SIZES_ELSEWHERE: u8 = 1 << 3;
        let method = match Method::of(entry.method) {
            // What some writers make of an empty file, whatever the method.
            _ if entry.compressed_bytes == 0 => 0,
            Some(Method::Lzma) => {
                check_dictionary(zip, at.get())?;
                entry.method
            }
            _ => entry.method,
        };
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(b"PK\x03\x04");
        header[6] = SIZES_ELSEWHERE;
        header[8..10].copy_from_slice(&method.to_le_bytes());
        Ok(Self {
            header: io::Cursor::new(header),
            zip,
            at,
            end: at.get().saturating_add(entry.compressed_bytes),
        })
    }

    /// Reads what they decompress to.
    ///
    /// # Errors
    /// Those of the crate.
    pub fn decompressed(&mut self, entry: &Entry) -> ZipResult<impl Read> {
        let options = ZipReadOptions::new()
            .override_compressed_size(entry.compressed_bytes)
            .override_uncompressed_size(entry.bytes)
            .override_crc(entry.crc32);
        read_zipfile_from_stream_with_options(self, options)?
            .ok_or(ZipError::InvalidArchive("it has no header".into()))
    }
}

impl Read for Compressed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.header.read(buffer)? {
            0 => {}
            count => return Ok(count),
        }
        // The last byte comes alone: who did not ask for it has found the end of the content before.
        let left = match self.end.saturating_sub(self.at.get()) {
            0 => return Ok(0),
            1 => 1,
            left => left - 1,
        };
        let most = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.zip.read_at(&mut buffer[..most], self.at.get())?;
        self.at.set(self.at.get() + count as u64);
        Ok(count)
    }
}

/// The crate takes as much memory as an entry asks for.
fn check_dictionary(zip: &Zip, data_start: u64) -> io::Result<()> {
    /// What the program that defined the format uses at its highest level.
    const LARGEST_BYTES: u32 = 64 << 20;
    // A version, the length of the properties, and the first of these, before it.
    let mut bytes = [0; 4];
    zip.read_exact_at(&mut bytes, data_start + 5)?;
    let dictionary = u32::from_le_bytes(bytes);
    if dictionary > LARGEST_BYTES {
        return Err(io::Error::other(format!(
            "its LZMA dictionary takes {dictionary} bytes, {LARGEST_BYTES} are allowed"
        )));
    }
    Ok(())
}
