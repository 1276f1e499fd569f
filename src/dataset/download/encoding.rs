//! What a `Content-Encoding` has done to the file, undone.

use std::io::{self, BufRead, Read, Seek};

use flate2::bufread::GzDecoder;
use flate2::read::{DeflateDecoder, ZlibDecoder};

use super::failure::{Failure, Stop};
use super::partial::Partial;
use super::transfer::CHUNK_BYTES;
use super::{Patience, check_limit};
use crate::error::Error;
use crate::task::{LogLine, Task};

/// One is usual, two have been seen; a file can be made that inflates to itself for ever.
const MOST_ENCODINGS: usize = 5;

/// A zip is compressed already: what inflates a hundredfold is a bomb.
const RATIO: u64 = 100;

/// Undoes `Content-Encoding` on the finished file, the last encoding first: kept as sent until here, so that a cut
/// download of an encoded file resumes too.
pub fn undo_encodings(
    partial: &mut Partial,
    encodings: Vec<String>,
    patience: &Patience,
    task: &Task<LogLine>,
) -> Result<(), Stop> {
    if encodings.len() > MOST_ENCODINGS {
        return Err(Stop::Try(Failure::final_connection(format!(
            "the server has encoded the zip {} times over, {MOST_ENCODINGS} at most are undone",
            encodings.len()
        ))));
    }
    for encoding in encodings.into_iter().rev() {
        let path = partial.zip.path().to_owned();
        let encoded_bytes = partial.written();
        let beside = partial.zip.beside(&path.with_extension("decoded"))?;
        let encoded = partial.zip.so_far()?.reader();
        let mut encoded = io::BufReader::with_capacity(CHUNK_BYTES, encoded);
        let mut decoder: Box<dyn Read> = match encoding.as_str() {
            "gzip" | "x-gzip" => Box::new(GzipMembers::new(encoded)),
            // "deflate" means zlib, but some servers send it bare (RFC 9110, 8.4.1.2).
            "deflate" if has_zlib_header(&mut encoded).map_err(Error::io("read", &path))? => {
                Box::new(ZlibDecoder::new(encoded))
            }
            "deflate" => Box::new(DeflateDecoder::new(encoded)),
            // Stores keep whatever an upload named there ("utf-8", "aws-chunked"), and send it along with a file that
            // is in no encoding at all.
            other => {
                task.info(format!(
                    "[dataset] the server names the encoding {other:?}, which is unknown: the zip is read as it came"
                ))?;
                continue;
            }
        };
        let mut plain = Partial::new(beside);
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            task.check()?;
            match decoder.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    let inflated = plain.written() + count as u64;
                    check_limit(inflated, patience)?;
                    if inflated > patience.ratio_free_bytes && inflated / RATIO > encoded_bytes {
                        return Err(Stop::Try(Failure::final_connection(format!(
                            "its {encoding} encoding inflates {encoded_bytes} bytes to {inflated} and more, {RATIO} times is \
                             allowed: it is no zip of photos"
                        ))));
                    }
                    plain.append(&buffer[..count])?;
                }
                Err(error) => {
                    drop(decoder);
                    partial.restart()?;
                    let reason =
                        format!("its {encoding} encoding breaks off or is damaged: {error}");
                    return Err(Stop::Try(Failure::connection(reason)));
                }
            }
        }
        drop(decoder);
        plain.zip.rename(&path)?;
        *partial = plain;
    }
    Ok(())
}

/// The members of a gzip file, one after the other (RFC 1952, 2.2). What follows them and is none is ignored.
pub struct GzipMembers<R> {
    /// `None` behind the last one.
    member: Option<GzDecoder<R>>,
    /// A later member than the first that has brought nothing so far, so that it may be none.
    is_doubtful: bool,
}

impl<R: BufRead> GzipMembers<R> {
    fn new(reader: R) -> Self {
        Self {
            member: Some(GzDecoder::new(reader)),
            is_doubtful: false,
        }
    }
}

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(mut member) = self.member.take() {
            match member.read(buffer) {
                Ok(0) => {
                    let mut rest = member.into_inner();
                    if !rest.fill_buf()?.is_empty() {
                        self.member = Some(GzDecoder::new(rest));
                        self.is_doubtful = true;
                    }
                }
                Err(error) if self.is_doubtful && error.raw_os_error().is_none() => {}
                result => {
                    self.is_doubtful &= result.is_err();
                    self.member = Some(member);
                    return result;
                }
            }
        }
        Ok(0)
    }
}

/// RFC 1950, 2.2: compression method 8, and the first two bytes a multiple of 31.
pub fn has_zlib_header(reader: &mut (impl Read + Seek)) -> io::Result<bool> {
    let mut head = [0; 2];
    let read = reader.read(&mut head)?;
    reader.rewind()?;
    Ok(read == 2 && head[0] & 0x0f == 8 && u16::from_be_bytes(head) % 31 == 0)
}
