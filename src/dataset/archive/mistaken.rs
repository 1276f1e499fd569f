//! What came in the place of a zip.

use std::io::Read;

use super::Zip;
use super::names::shown;
use crate::error::Error;
use crate::web_page;

/// Why something that begins like a zip is none.
pub enum Fault {
    Damaged(String),
    OneOfSeveralParts,
}

/// Says what it is instead.
///
/// # Errors
/// [`Error::Io`], where it cannot be read.
pub fn not_a_zip(zip: &Zip, content_type: Option<&str>, fault: &Fault) -> Result<Error, Error> {
    let (length, said_of) = (zip.bytes, &zip.said_of);
    let mut head = Vec::new();
    let mut reader = zip.reader();
    for bytes in [2, 1022] {
        if head != b"PK" {
            let read = reader.by_ref().take(bytes).read_to_end(&mut head);
            read.map_err(|error| zip.unreadable(error))?;
        }
    }
    let kind = content_type.map_or_else(String::new, |kind| format!("{}, ", shown(kind)));
    let text = String::from_utf8_lossy(&head)
        .trim_start_matches(['\u{feff}', ' ', '\r', '\n', '\t'])
        .to_lowercase();
    let is = |magic: &[u8]| head.starts_with(magic);
    let what = if head.is_empty() {
        format!("{said_of} an empty file")
    } else if is(b"PK") {
        match fault {
            Fault::Damaged(reason) => format!(
                "{said_of} a zip that is cut short or damaged: make it, or upload it, again ({kind}{length} bytes: \
                 {reason})"
            ),
            Fault::OneOfSeveralParts => format!(
                "{said_of} a zip in several parts: make it one file ({kind}{length} bytes, which say to be the last \
                 part)"
            ),
        }
    } else if web_page::begins(&head) {
        format!(
            "{said_of} a web page, {kind}{}: use the direct link to the file",
            rounded(length)
        )
    } else {
        let name = [
            (b"\x1f\x8b".as_slice(), "a gzip file (.gz, .tgz)"),
            (b"Rar!", "a RAR archive"),
            (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
            (b"BZh", "a bzip2 file"),
            (b"\xfd7zXZ", "an xz file"),
            (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
            (b"\xff\xd8\xff", "a single JPEG photo"),
            (b"\x89PNG", "a single PNG picture"),
            (b"%PDF", "a PDF"),
        ]
        .into_iter()
        .find_map(|(magic, name)| is(magic).then_some(name));
        let name = match name {
            Some(name) => name,
            None if head.get(257..262) == Some(b"ustar") => "a tar archive",
            None if text.starts_with("<?xml") => {
                "an XML document, as stores answer with when they refuse,"
            }
            None if text.starts_with(['{', '[']) => {
                "JSON, as services answer with when they refuse,"
            }
            None if head
                .iter()
                .all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) =>
            {
                "plain text"
            }
            None => "something else",
        };
        format!(
            "{said_of} {name} where a zip was expected ({kind}{length} bytes): pack the photos as .zip"
        )
    };
    Ok(Error::BadZip(format!("File is not a zip file: {what}")))
}

/// "5 kB".
fn rounded(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{} kB", (bytes + 500) / 1_000),
        _ => format!("{} MB", (bytes + 500_000) / 1_000_000),
    }
}
