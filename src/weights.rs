//! Safetensors files by their headers: whole, cut, or something else in their place.

pub mod kind;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata};

use crate::error::Error;
use crate::web_page;

/// What a look at a weight file's beginning and size tells.
pub enum Weights {
    /// A safetensors file of the size that its header promises.
    Whole(Metadata),
    /// Nothing that we know; why, in words. The tuner will judge.
    Unrecognised(String),
}

/// The format's own limit, and the tuner's.
const LARGEST_HEADER_BYTES: u64 = 100_000_000;

/// Enough of a file to know a web page by.
const BEGINNING_BYTES: u64 = 512;

/// What to do about weights that came by a download.
pub const DOWNLOAD_AGAIN: &str = "Download it again, whole.";

/// Looks at the header of the weights at `path`; never reads the tensors. `mend` says what to do when they are cut.
///
/// # Errors
/// [`Error::Unusable`] on positive evidence that the file cannot be the weights: it is shorter than its header
/// promises, a web page, or a git-lfs pointer. [`Error::Io`] when it cannot be read.
pub fn inspect(path: &Path, mend: &str) -> Result<Weights, Error> {
    let failed = Error::io("read", path);
    // Looked at before it is opened: opening a pipe waits for a writer.
    let found = fs::metadata(path).map_err(&failed)?;
    if !found.is_file() {
        return Ok(Weights::Unrecognised("it is not a file".to_owned()));
    }
    let mut file = File::open(path).map_err(&failed)?;
    let found_bytes = found.len();
    let mut beginning = Vec::new();
    file.by_ref()
        .take(BEGINNING_BYTES)
        .read_to_end(&mut beginning)
        .map_err(&failed)?;
    impostor(path, &beginning, found_bytes)?;

    let Some((length, _)) = beginning.split_first_chunk::<8>() else {
        return Ok(Weights::Unrecognised(format!(
            "it has {found_bytes} bytes, a safetensors file has more than 8"
        )));
    };
    let header_bytes = u64::from_le_bytes(*length);
    if header_bytes > LARGEST_HEADER_BYTES || beginning.get(8) != Some(&b'{') {
        return Ok(Weights::Unrecognised(match other_format(&beginning) {
            Some(format) => format!("it is {format}, which Musubi Tuner does not read"),
            None => "it does not begin with a safetensors header".to_owned(),
        }));
    }
    if 8 + header_bytes > found_bytes {
        return Err(cut(
            path,
            &format!("at least {} bytes", 8 + header_bytes),
            found_bytes,
            mend,
        ));
    }
    let mut header = Vec::new();
    file.seek(SeekFrom::Start(8)).map_err(&failed)?;
    file.take(header_bytes)
        .read_to_end(&mut header)
        .map_err(&failed)?;
    let metadata: Metadata = match serde_json::from_slice(&header) {
        Ok(metadata) => metadata,
        Err(error) => {
            return Ok(Weights::Unrecognised(format!(
                "its safetensors header cannot be read: {error}"
            )));
        }
    };
    let promised_bytes = 8 + header_bytes + metadata.data_len() as u64;
    match promised_bytes.cmp(&found_bytes) {
        std::cmp::Ordering::Greater => Err(cut(
            path,
            &format!("{promised_bytes} bytes"),
            found_bytes,
            mend,
        )),
        std::cmp::Ordering::Equal => Ok(Weights::Whole(metadata)),
        std::cmp::Ordering::Less => Ok(Weights::Unrecognised(format!(
            "its header promises {promised_bytes} bytes and it has {found_bytes}, more than that"
        ))),
    }
}

fn cut(path: &Path, promised: &str, found_bytes: u64, mend: &str) -> Error {
    Error::Unusable(format!(
        "{} is cut: its header promises {promised}, the file has {found_bytes}. {mend}",
        path.display()
    ))
}

/// Refuses weights that hold a NaN or an infinity, as a training whose loss is NaN writes them. What is not known to be
/// a number is passed over. `check` is asked now and then whether to go on.
///
/// # Errors
/// [`Error::Unusable`] with the tensor, [`Error::Io`] when the file cannot be read, what `check` gives.
pub fn refuse_non_finite(
    path: &Path,
    metadata: &Metadata,
    mend: &str,
    check: impl Fn() -> Result<(), Error>,
) -> Result<(), Error> {
    let failed = Error::io("read", path);
    let mut file = File::open(path).map_err(&failed)?;
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(&failed)?;
    let data_start = 8 + u64::from_le_bytes(length);
    let mut buffer = vec![0; SCANNED_BYTES];
    for name in metadata.offset_keys() {
        let Some(tensor) = metadata.info(&name) else {
            continue;
        };
        let Some(is_finite) = finite_test(tensor.dtype) else {
            continue;
        };
        let (start, end) = tensor.data_offsets;
        let mut left = end - start;
        file.seek(SeekFrom::Start(data_start + start as u64))
            .map_err(&failed)?;
        while left > 0 {
            check()?;
            let piece = &mut buffer[..left.min(SCANNED_BYTES)];
            file.read_exact(piece).map_err(&failed)?;
            if !is_finite(piece) {
                return Err(Error::Unusable(format!(
                    "{} holds values that are no finite numbers (in {name:?}): it cannot be used. {mend}",
                    path.display()
                )));
            }
            left -= piece.len();
        }
    }
    Ok(())
}

/// Read at a time; a multiple of every number's size.
const SCANNED_BYTES: usize = 1 << 18;

/// Whether all little-endian numbers of this kind are finite: whose exponent is not all ones.
fn finite_test(dtype: Dtype) -> Option<fn(&[u8]) -> bool> {
    fn finite_16<const EXPONENT: u16>(bytes: &[u8]) -> bool {
        let (numbers, _) = bytes.as_chunks();
        numbers
            .iter()
            .all(|number| u16::from_le_bytes(*number) & EXPONENT != EXPONENT)
    }
    match dtype {
        Dtype::F16 => Some(finite_16::<0x7c00>),
        Dtype::BF16 => Some(finite_16::<0x7f80>),
        Dtype::F32 => Some(|bytes| {
            let (numbers, _) = bytes.as_chunks();
            numbers
                .iter()
                .all(|number| f32::from_le_bytes(*number).is_finite())
        }),
        Dtype::F64 => Some(|bytes| {
            let (numbers, _) = bytes.as_chunks();
            numbers
                .iter()
                .all(|number| f64::from_le_bytes(*number).is_finite())
        }),
        _ => None,
    }
}

/// A text that a failed download leaves under the name of the weights.
fn impostor(path: &Path, beginning: &[u8], found_bytes: u64) -> Result<(), Error> {
    let text = String::from_utf8_lossy(beginning);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    if web_page::begins(beginning) || text.starts_with("<?xml") {
        return Err(Error::Unusable(format!(
            "{} is a web page of {found_bytes} bytes, expected a safetensors file: the download was answered with a \
             page (a log-in, a licence to accept, an error). Download the file itself.",
            path.display()
        )));
    }
    if text.starts_with("version https://git-lfs.github.com/spec/") {
        let promised = text
            .lines()
            .find_map(|line| line.strip_prefix("size "))
            .map_or_else(String::new, |size| format!(" of {} bytes", size.trim()));
        return Err(Error::Unusable(format!(
            "{} is a git-lfs pointer of {found_bytes} bytes, expected the safetensors file{promised} that it points \
             to: run `git lfs pull` where it was cloned, or download the file itself.",
            path.display()
        )));
    }
    Ok(())
}

/// Other formats that weights come in.
fn other_format(beginning: &[u8]) -> Option<&'static str> {
    const FORMATS: &[(&[u8], &str)] = &[
        (b"GGUF", "a GGUF file"),
        // Of `torch.save`: a zip, and before PyTorch 1.6 a pickle that begins with a number of its own.
        (b"PK\x03\x04", "a PyTorch checkpoint (or another zip)"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9", "a PyTorch checkpoint"),
    ];
    let (_, format) = FORMATS
        .iter()
        .find(|(magic, _)| beginning.starts_with(magic))?;
    Some(format)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspected(name: &str, content: &[u8]) -> Result<Weights, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        inspect(&path, DOWNLOAD_AGAIN)
    }

    fn whole() -> Vec<u8> {
        let header = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}      "#;
        [&(header.len() as u64).to_le_bytes()[..], header, &[0; 8]].concat()
    }

    #[test]
    fn a_whole_file_is_whole() {
        let Ok(Weights::Whole(metadata)) = inspected("whole", &whole()) else {
            panic!("not whole")
        };
        assert_eq!(metadata.offset_keys(), ["a"]);
    }

    #[test]
    fn every_cut_of_a_file_is_an_error_with_both_sizes_or_unrecognised() {
        let whole = whole();
        for length in 0..whole.len() {
            match inspected("cut", &whole[..length]) {
                Ok(Weights::Unrecognised(_)) => {
                    assert!(length <= 8, "{length} bytes were let through");
                }
                Ok(Weights::Whole(_)) => panic!("{length} bytes pass for whole"),
                Err(error) => assert!(
                    error.to_string().contains(&format!("has {length}")),
                    "{error}"
                ),
            }
        }
    }

    #[test]
    fn what_is_not_known_is_not_an_error() {
        for content in [
            &b""[..],
            b"fake",
            &[0; 64],
            b"{\"error\": 1}",
            &[255; 64],
            &[whole(), vec![0]].concat(),
        ] {
            assert!(matches!(
                inspected("unknown", content),
                Ok(Weights::Unrecognised(_))
            ));
        }
    }

    #[test]
    fn a_page_or_a_pointer_in_the_place_of_weights_is_named() {
        let page = inspected("page", b"\n<!DOCTYPE html><html>")
            .err()
            .unwrap()
            .to_string();
        assert!(page.contains("web page of 22 bytes"), "{page}");
        let pointer =
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 8044982048\n";
        let pointer = inspected("pointer", pointer).err().unwrap().to_string();
        assert!(
            pointer.contains("git-lfs pointer") && pointer.contains("of 8044982048 bytes"),
            "{pointer}"
        );
    }

    #[test]
    fn another_format_is_named_but_not_a_header_whose_length_looks_like_one() {
        for (beginning, format) in [
            (&b"GGUF\x03\0\0\0\x23\x01\0\0"[..], "a GGUF file"),
            (b"PK\x03\x04\0\0\x08\x08\0\0", "a PyTorch checkpoint"),
            (
                b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
                "a PyTorch checkpoint",
            ),
        ] {
            let Ok(Weights::Unrecognised(why)) = inspected("model", beginning) else {
                panic!("{format} is not told")
            };
            assert!(why.contains(format), "{why}");
        }
        // 0x0280 bytes of header.
        let header = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let header = [&header[..], &vec![b' '; 0x280 - header.len()]].concat();
        let file = [&0x280_u64.to_le_bytes()[..], &header, &[0; 8]].concat();
        assert!(matches!(inspected("whole", &file), Ok(Weights::Whole(_))));
    }

    #[test]
    fn what_is_no_finite_number_is_found_wherever_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lora");
        let count = SCANNED_BYTES / 8 + 3;
        for (kind, bytes, one, others) in [
            (
                "F64",
                8,
                1f64.to_le_bytes().to_vec(),
                vec![
                    f64::NAN.to_le_bytes().to_vec(),
                    f64::INFINITY.to_le_bytes().to_vec(),
                ],
            ),
            (
                "F32",
                4,
                f32::MAX.to_le_bytes().to_vec(),
                vec![
                    (-f32::NAN).to_le_bytes().to_vec(),
                    f32::NEG_INFINITY.to_le_bytes().to_vec(),
                ],
            ),
            (
                "BF16",
                2,
                vec![0x7f, 0x7f],
                vec![vec![0xc0, 0x7f], vec![0x80, 0xff]],
            ),
            (
                "F16",
                2,
                vec![0xff, 0x7b],
                vec![vec![0, 0x7e], vec![0, 0xfc]],
            ),
            ("I32", 4, vec![0xff; 4], vec![]),
        ] {
            let end = count * bytes;
            let header = format!(
                "{{\"first\":{{\"dtype\":\"{kind}\",\"shape\":[{count}],\"data_offsets\":[0,{end}]}},\
                 \"last\":{{\"dtype\":\"{kind}\",\"shape\":[],\"data_offsets\":[{end},{}]}}}}",
                end + bytes
            );
            let write = |at: usize, number: &[u8]| {
                let mut data = one.repeat(count + 1);
                data[at * bytes..(at + 1) * bytes].copy_from_slice(number);
                fs::write(
                    &path,
                    [
                        &(header.len() as u64).to_le_bytes()[..],
                        header.as_bytes(),
                        &data,
                    ]
                    .concat(),
                )
                .unwrap();
                let Ok(Weights::Whole(metadata)) = inspect(&path, "") else {
                    panic!("{kind} is not whole")
                };
                refuse_non_finite(&path, &metadata, "", || Ok(()))
            };
            write(0, &one).unwrap();
            for other in others {
                for (at, tensor) in [(0, "first"), (count - 1, "first"), (count, "last")] {
                    let error = write(at, &other).unwrap_err().to_string();
                    assert!(
                        error.contains(&format!("{tensor:?}")),
                        "{kind} at {at}: {error}"
                    );
                }
            }
        }
    }
}
