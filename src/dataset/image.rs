//! Whether a photo opens, judged cheaply by its content: the header's format and size, and where the format tells,
//! its end. Musubi Tuner stops on one that does not, minutes later and without always naming it. On the way, what its
//! header says of it.

mod exif;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use imagesize::{Compression, ImageType};

/// Pillow, which opens the photos for Musubi Tuner, refuses more as a decompression bomb.
const MOST_PIXELS: u64 = 178_956_970;

pub const HOW_TO_CONVERT_HEIC: &str = "convert it to JPEG (on the iPhone, Settings > Camera > Formats > Most \
     Compatible for photos to come; on a Mac, Preview > File > Export; anywhere, `heif-convert IMG.HEIC IMG.jpg` of \
     libheif)";

/// A photo, on disk or in memory.
pub trait Photo: Read + Seek {
    /// Where it is read from on is left as it is.
    ///
    /// # Errors
    /// What reading gives.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;
}

impl Photo for File {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, at)
    }
}

impl Photo for Cursor<&[u8]> {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let mut there = self.get_ref().get(at..).unwrap_or_default();
        there.read(buffer)
    }
}

/// What the header says of a photo that opens, as far as Pillow reads it alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub format: Format,
    /// As stored; 0 where it is not known.
    pub width: u32,
    pub height: u32,
    /// EXIF's number for what was up when the photo was taken: 2 to 8 where it is stored in another way, else 0 or 1.
    pub orientation: u8,
    pub has_alpha: bool,
    pub is_cmyk: bool,
    /// 16 bits for each channel.
    pub is_deep: bool,
}

/// What is decoded here, and the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Other,
    Jpeg,
    Png,
    Webp,
}

/// What shows of a photo without decoding it.
pub struct Look {
    /// What keeps it from opening.
    pub fault: Option<Box<str>>,
    pub header: Header,
}

/// # Errors
/// What reading it gives.
pub fn look(photo: impl Photo) -> io::Result<Look> {
    let mut header = Header::default();
    let fault = fault(photo, &mut header)?.map(String::into_boxed_str);
    if fault.is_some() {
        header = Header::default();
    }
    Ok(Look { fault, header })
}

fn fault(mut photo: impl Photo, header: &mut Header) -> io::Result<Option<String>> {
    let bytes = photo.seek(SeekFrom::End(0))?;
    photo.rewind()?;
    let mut reader = BufReader::with_capacity(16 << 10, photo);
    if bytes == 0 {
        return Ok(Some("it is empty".to_owned()));
    }
    let mut head = [0; 12];
    let read = reader.by_ref().take(12).read(&mut head)?;
    if head[..read].starts_with(b"\xff\xd8") {
        header.format = Format::Jpeg;
        return jpeg_fault(&mut reader, bytes, header);
    }
    // JPEG 2000, which Pillow opens and the crate does not know.
    if head == *b"\0\0\0\x0cjP  \r\n\x87\n" || head.starts_with(b"\xff\x4f\xff\x51") {
        return Ok(None);
    }
    reader.rewind()?;
    let Ok(kind) = imagesize::reader_type(&mut reader) else {
        return Ok(Some(format!(
            "it is no picture ({bytes} bytes of {})",
            content(&head[..read])
        )));
    };
    let name = match kind {
        ImageType::Png => "PNG",
        ImageType::Webp => "WebP",
        ImageType::Gif
        | ImageType::Bmp
        | ImageType::Tiff
        | ImageType::Ico
        | ImageType::Psd
        | ImageType::Pnm
        | ImageType::Qoi
        | ImageType::Tga
        | ImageType::Dds(_)
        | ImageType::Heif(Compression::Av1) => "picture",
        ImageType::Heif(_) => {
            return Ok(Some(format!(
                "it is a HEIC picture, which Musubi Tuner does not open: {HOW_TO_CONVERT_HEIC}"
            )));
        }
        ImageType::Jxl => {
            return Ok(Some(
                "it is a JPEG XL picture, which Musubi Tuner does not open: save it as JPEG"
                    .to_owned(),
            ));
        }
        other => {
            return Ok(Some(format!(
                "it is a {other:?} file, which Musubi Tuner does not open: save it as JPEG"
            )));
        }
    };
    reader.rewind()?;
    let cut = match kind {
        ImageType::Png => png_is_cut(reader.get_ref(), bytes, header)?,
        ImageType::Webp => {
            u64::from(u32::from_le_bytes([head[4], head[5], head[6], head[7]])) + 8 > bytes
        }
        _ => false,
    };
    if cut {
        return Ok(Some(format!(
            "it is a {name} that is cut short at {bytes} bytes"
        )));
    }
    reader.rewind()?;
    // Of other formats, and of Apple's kind of PNG, the crate does not read every header as Pillow does: no evidence.
    let head = head_of(reader.get_ref())?;
    header.format = match kind {
        ImageType::Webp => Format::Webp,
        ImageType::Png if head[12..16] == *b"IHDR" => Format::Png,
        _ => return Ok(None),
    };
    match header.format {
        Format::Webp => webp_header(reader.get_ref(), &head, bytes, header)?,
        _ => png_header(&head, header),
    }
    let Ok(size) = imagesize::reader_size(&mut reader) else {
        return Ok(None);
    };
    Ok(sized(header, size.width as u64, size.height as u64))
}

/// As many bytes as tell a format's properties; 0 behind the end of the file.
fn head_of(photo: &impl Photo) -> io::Result<[u8; 32]> {
    let mut head = [0; 32];
    let _ = photo.read_at(&mut head, 0)?;
    Ok(head)
}

fn png_header(head: &[u8; 32], header: &mut Header) {
    let (depth, colour) = (head[24], head[25]);
    header.is_deep = depth == 16;
    header.has_alpha |= matches!(colour, 4 | 6);
}

fn webp_header(
    photo: &impl Photo,
    head: &[u8; 32],
    bytes: u64,
    header: &mut Header,
) -> io::Result<()> {
    /// Before the metadata there may be the frames of an animation.
    const MOST_CHUNKS: usize = 1000;
    match &head[12..16] {
        // The first bit behind the two sizes.
        b"VP8L" => header.has_alpha = head[24] & 0x10 != 0,
        b"VP8X" => {
            let flags = head[20];
            header.has_alpha = flags & 0x10 != 0;
            let has_exif = flags & 0x08 != 0;
            let mut at = 12;
            for _ in 0..MOST_CHUNKS {
                let mut chunk = [0; 8];
                if !has_exif || at + 8 > bytes {
                    break;
                }
                read_exact_at(photo, &mut chunk, at)?;
                let [.., a, b, c, d] = chunk;
                let end = at + 8 + u64::from(u32::from_le_bytes([a, b, c, d]));
                if chunk.starts_with(b"EXIF") {
                    header.orientation = exif::orientation(photo, at + 8, end.min(bytes))?;
                    break;
                }
                at = end + end % 2;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Writes the size down; what keeps a photo of it from opening.
fn sized(header: &mut Header, width: u64, height: u64) -> Option<String> {
    header.width = u32::try_from(width).unwrap_or_default();
    header.height = u32::try_from(height).unwrap_or_default();
    size_fault(width, height)
}

fn size_fault(width: u64, height: u64) -> Option<String> {
    if width == 0 || height == 0 {
        return Some(format!("its size is {width}x{height}"));
    }
    let pixels = width.saturating_mul(height);
    (pixels > MOST_PIXELS)
        .then(|| format!("it has {pixels} pixels, {MOST_PIXELS} are the most that opens"))
}

fn content(head: &[u8]) -> &'static str {
    match head {
        [b'<', ..] => "HTML or XML",
        _ if head.starts_with(b"%PDF") => "PDF",
        _ if head.starts_with(b"PK") => "zip",
        _ if head
            .iter()
            .all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) =>
        {
            "text"
        }
        _ => "something else",
    }
}

/// Walks the segments to the end-of-image marker, without which Pillow calls a JPEG truncated. A thumbnail's own
/// marker lies inside a segment, and coded data holds none.
fn jpeg_fault<P: Photo>(
    reader: &mut BufReader<P>,
    bytes: u64,
    header: &mut Header,
) -> io::Result<Option<String>> {
    let cut = || {
        Ok(Some(format!(
            "it is a JPEG that is cut short at {bytes} bytes"
        )))
    };
    reader.seek(SeekFrom::Start(2))?;
    let mut size: Option<(u64, u64)> = None;
    while let Some(marker) = next_marker(reader)? {
        match marker {
            // Where the coded data begins, what lies between it and its end need not be read.
            0xda if size.is_some() && ends_near_the_end(reader, bytes)? => {
                return Ok(size.and_then(|(width, height)| sized(header, width, height.max(1))));
            }
            0xd9 => {
                return Ok(match size {
                    None => Some("it is a JPEG without a picture in it".to_owned()),
                    // The height may come behind the picture (a DNL marker).
                    Some((width, height)) => sized(header, width, height.max(1)),
                });
            }
            // Markers without a segment; those between coded data are passed over with it.
            0x01 | 0xd0..=0xd8 => {}
            _ => {
                let mut length = [0; 2];
                if !filled(reader, &mut length)? {
                    return cut();
                }
                let mut left = i64::from(u16::from_be_bytes(length)) - 2;
                if marker == 0xe1 && header.orientation == 0 {
                    let start = reader.stream_position()?;
                    let end = start.saturating_add_signed(left.max(0)).min(bytes);
                    header.orientation = exif::orientation(reader.get_ref(), start, end)?;
                }
                if matches!(marker, 0xc0..=0xcf)
                    && !matches!(marker, 0xc4 | 0xc8 | 0xcc)
                    && size.is_none()
                    && left >= 6
                {
                    let mut frame = [0; 6];
                    if !filled(reader, &mut frame)? {
                        return cut();
                    }
                    // What Pillow takes for no JPEG it knows.
                    if frame[0] != 8 {
                        return Ok(Some(format!(
                            "it is a JPEG of {} bits, of which Musubi Tuner opens 8: save it anew",
                            frame[0]
                        )));
                    }
                    let pixels = |high, low| u64::from(u16::from_be_bytes([high, low]));
                    size = Some((pixels(frame[3], frame[4]), pixels(frame[1], frame[2])));
                    header.is_cmyk = frame[5] == 4;
                    left -= 6;
                }
                // Past the end of the file, the next read finds nothing.
                reader.seek_relative(left.max(0))?;
            }
        }
    }
    cut()
}

/// Whether the end-of-image marker is among the last bytes: last of all, or before what some cameras and phones append.
/// The reader stands where the coded data begins.
fn ends_near_the_end<P: Photo>(reader: &mut BufReader<P>, bytes: u64) -> io::Result<bool> {
    const NEAR: u64 = 64 << 10;
    let ends = |photo: &P, bytes_back: u64, begin: u64| -> io::Result<bool> {
        let start = bytes.saturating_sub(bytes_back).max(begin);
        let mut tail = vec![0; usize::try_from(bytes.saturating_sub(start)).unwrap_or_default()];
        read_exact_at(photo, &mut tail, start)?;
        Ok(tail.windows(2).any(|marker| marker == [0xff, 0xd9]))
    };
    let begin = reader.stream_position()?;
    Ok(ends(reader.get_ref(), 2, begin)? || ends(reader.get_ref(), NEAR, begin)?)
}

/// The next marker, over coded data and fill bytes; `None` at the end of the file.
fn next_marker(reader: &mut impl BufRead) -> io::Result<Option<u8>> {
    let mut after_ff = false;
    loop {
        let buffer = reader.fill_buf()?;
        let Some(&first) = buffer.first() else {
            return Ok(None);
        };
        if after_ff {
            reader.consume(1);
            match first {
                // A stuffed byte, or a restart marker, of coded data.
                0 | 0xd0..=0xd7 => after_ff = false,
                0xff => {}
                marker => return Ok(Some(marker)),
            }
        } else {
            let skip = buffer.iter().position(|byte| *byte == 0xff);
            after_ff = skip.is_some();
            let skip = skip.map_or(buffer.len(), |position| position + 1);
            reader.consume(skip);
        }
    }
}

/// Whether the picture's data is missing or runs past the end of the file. A missing or cut last chunk alone does not
/// keep a PNG from opening.
fn png_is_cut(photo: &impl Photo, bytes: u64, header: &mut Header) -> io::Result<bool> {
    const END: &[u8] = b"\0\0\0\0IEND\xae\x42\x60\x82";
    let read = |position: u64| -> io::Result<[u8; 12]> {
        let mut chunk = [0; 12];
        let there = usize::try_from(bytes.saturating_sub(position)).unwrap_or(chunk.len());
        read_exact_at(photo, &mut chunk[..there.min(12)], position)?;
        Ok(chunk)
    };
    let ends = bytes > 12 && read(bytes - 12)? == *END;
    let mut position = 8;
    let mut has_data = false;
    while position + 8 <= bytes && !(has_data && ends) {
        let head = read(position)?;
        match &head[4..8] {
            b"IEND" => break,
            b"IDAT" => has_data = true,
            b"tRNS" => header.has_alpha = true,
            _ => {}
        }
        let length = u64::from(u32::from_be_bytes([head[0], head[1], head[2], head[3]]));
        if &head[4..8] == b"eXIf" {
            let end = (position + 8 + length).min(bytes);
            header.orientation = exif::orientation(photo, position + 8, end)?;
        }
        position += 8 + length + 4;
        if position > bytes {
            return Ok(true);
        }
    }
    if position < bytes && header.orientation == 0 {
        header.orientation = orientation_near_the_end(photo, bytes)?;
    }
    Ok(!has_data)
}

/// What the EXIF chunk says that some writers put behind a PNG's data, which are not walked through.
fn orientation_near_the_end(photo: &impl Photo, bytes: u64) -> io::Result<u8> {
    const NEAR: u64 = 16 << 10;
    let start = bytes.saturating_sub(NEAR);
    let mut tail = vec![0; usize::try_from(bytes - start).unwrap_or_default()];
    read_exact_at(photo, &mut tail, start)?;
    match tail.windows(4).position(|name| name == b"eXIf") {
        Some(at) => exif::orientation(photo, start + at as u64 + 4, bytes),
        None => Ok(0),
    }
}

fn read_exact_at(photo: &impl Photo, mut buffer: &mut [u8], mut at: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match photo.read_at(buffer, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                buffer = &mut buffer[count..];
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fills the buffer; false where the file ends before.
fn filled(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::samples::{jpeg, png};

    fn fault_of(content: &[u8]) -> Option<Box<str>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jpg");
        std::fs::write(&path, content).unwrap();
        let on_disk = look(File::open(&path).unwrap()).unwrap();
        let in_memory = look(Cursor::new(content)).unwrap();
        assert_eq!(in_memory.fault, on_disk.fault);
        assert_eq!(in_memory.header, on_disk.header);
        on_disk.fault
    }

    #[test]
    fn what_opens_has_no_fault() {
        let webp = [b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f".as_slice(), &[0; 20]].concat();
        let mut with_fill_bytes = jpeg(64, 48);
        with_fill_bytes.insert(2, 0xff);
        for (name, content) in [
            ("JPEG", jpeg(64, 48)),
            (
                "JPEG with bytes behind it",
                [jpeg(64, 48), vec![0; 9000]].concat(),
            ),
            ("JPEG with fill bytes", with_fill_bytes),
            ("PNG", png(64, 48)),
            (
                "PNG without its last chunk, which Pillow opens",
                png(64, 48)[..png(64, 48).len() - 12].to_vec(),
            ),
            ("WebP", webp),
            ("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n....".to_vec()),
        ] {
            assert_eq!(fault_of(&content), None, "{name}");
        }
    }

    #[test]
    fn the_header_tells_what_a_photo_needs() {
        let changed = |mut content: Vec<u8>, at: usize, byte: u8| {
            content[at] = byte;
            content
        };
        let components = jpeg(64, 48).windows(2).position(|at| at == b"\xff\xc0");
        let components = components.unwrap() + 9;
        let mut transparent = png(64, 48);
        transparent.splice(33..33, *b"\0\0\0\x02tRNS\0\x01crc.");
        let webp = |flags: u8| {
            let head = b"RIFF\x34\0\0\0WEBPVP8X\x0a\0\0\0";
            let size = [flags, 0, 0, 0, 63, 0, 0, 47, 0, 0];
            let exif = b"EXIF\x16\0\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0";
            [head.as_slice(), &size, exif].concat()
        };
        let of = |format| Header {
            format,
            width: 64,
            height: 48,
            ..Header::default()
        };
        let (jpeg_header, png_header, webp_header) =
            (of(Format::Jpeg), of(Format::Png), of(Format::Webp));
        for (name, content, header) in [
            ("JPEG", jpeg(64, 48), jpeg_header),
            (
                "CMYK",
                changed(jpeg(64, 48), components, 4),
                Header {
                    is_cmyk: true,
                    ..jpeg_header
                },
            ),
            ("PNG", png(64, 48), png_header),
            (
                "PNG of 16 bits",
                changed(png(64, 48), 24, 16),
                Header {
                    is_deep: true,
                    ..png_header
                },
            ),
            (
                "RGBA",
                changed(png(64, 48), 25, 6),
                Header {
                    has_alpha: true,
                    ..png_header
                },
            ),
            (
                "one transparent colour",
                transparent,
                Header {
                    has_alpha: true,
                    ..png_header
                },
            ),
            ("WebP", webp(0), webp_header),
            (
                "WebP with both",
                webp(0x18),
                Header {
                    has_alpha: true,
                    orientation: 6,
                    ..webp_header
                },
            ),
            ("a stand-in", b"fake".to_vec(), Header::default()),
        ] {
            let found = look(Cursor::new(content.as_slice())).unwrap();
            assert_eq!(found.header, header, "{name}: {:?}", found.fault);
        }
    }

    #[test]
    fn what_cannot_open_says_why() {
        let whole = jpeg(64, 48);
        let thumbnail_only = [
            &whole[..2],
            b"\xff\xe1\x00\x08Exif\xff\xd9",
            &whole[2..whole.len() - 2],
        ]
        .concat();
        for (content, reason) in [
            (Vec::new(), "empty"),
            (b"fake".to_vec(), "no picture (4 bytes of text)"),
            (b"<html>a web page</html>".to_vec(), "HTML"),
            (whole[..whole.len() - 2].to_vec(), "JPEG that is cut short"),
            (whole[..8].to_vec(), "JPEG that is cut short"),
            (thumbnail_only, "JPEG that is cut short"),
            (b"\xff\xd8\xff\xd9".to_vec(), "without a picture"),
            (png(64, 48)[..40].to_vec(), "PNG that is cut short"),
            (png(64, 48)[..43].to_vec(), "PNG that is cut short"),
            (
                b"RIFF\xff\0\0\0WEBPVP8L\x0d\0\0\0\x2f".to_vec(),
                "WebP that is cut short",
            ),
            (b"\0\0\0\x18ftypheic\0\0\0\0heicmif1".to_vec(), "HEIC"),
            (jpeg(0, 48), "0x48"),
            (jpeg(20_000, 20_000), "400000000 pixels"),
        ] {
            let fault = fault_of(&content).unwrap_or_default();
            assert!(
                fault.contains(reason),
                "{reason:?} is wanted, {fault:?} is said"
            );
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_large_is_not_read_through() {
        const BYTES: usize = 8 << 20;
        let photo = jpeg(64, 48);
        let coded = photo.windows(5).position(|at| at == b"coded").unwrap();
        let mut large = [&photo[..coded], &vec![0x55; BYTES], &photo[coded..]].concat();
        let picture = png(64, 48);
        let data = picture.windows(4).position(|at| at == b"IDAT").unwrap() - 4;
        let chunk = [b"\x00\x00\x20\x00IDAT".as_slice(), &[0x55; 0x2000 + 4]].concat();
        let end = b"\0\0\0\0IEND\xae\x42\x60\x82";
        let chunks = [&picture[..data], &chunk.repeat(BYTES / 0x2000), end].concat();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jpg");
        let read_by = |work: &dyn Fn()| {
            let read = || {
                let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
                let count = io.lines().find_map(|line| line.strip_prefix("rchar: "));
                count.unwrap().parse::<u64>().unwrap()
            };
            let before = read();
            work();
            read() - before
        };
        for append in [false, true] {
            if append {
                large.extend([0; 4096]);
            }
            for content in [&large, &chunks] {
                std::fs::write(&path, content).unwrap();
                let judged =
                    read_by(&|| assert_eq!(look(File::open(&path).unwrap()).unwrap().fault, None));
                assert!(judged < BYTES as u64 / 20, "{judged} bytes are read");
            }
        }
    }

    mod properties {
        use proptest::prelude::*;
        use proptest::sample::Index;

        use super::*;

        proptest! {
            #[test]
            fn any_content_is_judged(
                kind in 0..5usize,
                changes in prop::collection::vec((any::<Index>(), any::<u8>()), 0..6),
                length in any::<Index>(),
                more in prop::collection::vec(any::<u8>(), 0..60),
            ) {
                let mut content = [
                    jpeg(64, 48),
                    png(64, 48),
                    b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f.............".to_vec(),
                    b"\0\0\0\x18ftypheic\0\0\0\0heicmif1".to_vec(),
                    Vec::new(),
                ][kind].clone();
                for (at, byte) in changes {
                    if !content.is_empty() {
                        let at = at.index(content.len());
                        content[at] = byte;
                    }
                }
                content.truncate(length.index(content.len() + 1));
                content.extend(more);
                if let Some(fault) = fault_of(&content) {
                    prop_assert!(!fault.is_empty() && !fault.contains(char::is_control));
                }
            }
        }
    }
}
