//! What is in an entry, decompressed.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use bzip2::bufread::BzDecoder;
use deflate64::Deflate64Decoder;
use flate2::bufread::DeflateDecoder;
use lzma_rust2::LzmaReader;

use super::directory::{Entry, number_16, number_32};

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

/// Reads an entry's content.
pub enum Content<'a> {
    Stored(Stretch<'a>),
    Deflate(Box<DeflateDecoder<Stretch<'a>>>),
    Other(Box<dyn Read + 'a>),
}

impl<'a> Content<'a> {
    /// # Errors
    /// What reading a header of the compressed data gives, and a method that is not supported.
    pub fn open(file: &'a File, entry: &Entry, data_start: u64) -> io::Result<Self> {
        let place = data_start..data_start.saturating_add(entry.compressed_bytes);
        let stretch = BufReader::with_capacity(64 << 10, Slice { file, place });
        Ok(match Method::of(entry.method) {
            // There are writers that give an empty file a method, but not the few bytes that it makes of nothing.
            _ if entry.compressed_bytes == 0 => Self::Stored(stretch),
            Some(Method::Stored) => Self::Stored(stretch),
            Some(Method::Deflate) => Self::Deflate(Box::new(DeflateDecoder::new(stretch))),
            Some(Method::Deflate64) => {
                Self::Other(Box::new(Deflate64Decoder::with_buffer(stretch)))
            }
            Some(Method::Bzip2) => Self::Other(Box::new(BzDecoder::new(stretch))),
            Some(Method::Lzma) => Self::Other(Box::new(lzma(stretch, entry.bytes)?)),
            Some(Method::Unsupported(_)) | None => {
                return Err(io::Error::from(io::ErrorKind::Unsupported));
            }
        })
    }

    /// How many compressed bytes made the content, at its end, where the method tells.
    pub fn compressed_bytes(&self) -> Option<u64> {
        match self {
            Self::Deflate(decoder) => Some(decoder.total_in()),
            Self::Stored(_) | Self::Other(_) => None,
        }
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Stored(stretch) => stretch.read(buffer),
            Self::Deflate(decoder) => decoder.read(buffer),
            Self::Other(decoder) => decoder.read(buffer),
        }
    }
}

/// LZMA in a zip: a version, the length of the properties, these, and the data.
fn lzma<R: BufRead>(mut stretch: R, bytes: u64) -> io::Result<LzmaReader<R>> {
    const PROPERTIES_BYTES: u16 = 5;
    /// What the program that defined the format uses at its highest level.
    const LARGEST_DICTIONARY: u64 = 64 << 20;
    let mut head = [0; 9];
    stretch.read_exact(&mut head)?;
    if number_16(&head, 2) != PROPERTIES_BYTES {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    // A dictionary larger than the content is not used.
    let dictionary = u64::from(number_32(&head, 5)).min(bytes);
    if dictionary > LARGEST_DICTIONARY {
        return Err(io::Error::other(format!(
            "its LZMA dictionary takes {dictionary} bytes, {LARGEST_DICTIONARY} are allowed"
        )));
    }
    let dictionary = u32::try_from(dictionary).unwrap_or_default();
    LzmaReader::new_with_props(stretch, bytes, head[4], dictionary, None)
}

/// A part of a file.
type Stretch<'a> = BufReader<Slice<'a>>;

pub struct Slice<'a> {
    file: &'a File,
    place: Range<u64>,
}

impl Read for Slice<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.place.end.saturating_sub(self.place.start);
        let most = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..most], self.place.start)?;
        self.place.start += read as u64;
        Ok(read)
    }
}
