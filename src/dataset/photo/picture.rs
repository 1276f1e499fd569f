//! One photo, decoded, changed and written again.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use ::image::codecs::jpeg::JpegEncoder;
use ::image::codecs::png::PngEncoder;
use ::image::metadata::Orientation;
use ::image::{
    ColorType, DynamicImage, ImageDecoder, ImageEncoder, ImageError, ImageFormat, ImageReader,
    Limits, RgbImage,
};

use super::change::Change;
use super::sight::Sight;
use crate::dataset::image::{Format, Header};
use crate::disk;
use crate::error::Error;
use crate::task::{LogLine, Task};

/// What is lost of a photo at it is below what resizing it to its bucket loses.
const JPEG_QUALITY: u8 = 98;

/// What decoding and changing a photo takes of memory: two copies of its pixels, and as much again for what decoders hold.
pub fn bytes(header: &Header) -> u64 {
    let channels = if header.has_alpha || header.is_cmyk {
        4
    } else {
        3
    };
    let depth = if header.is_deep { 2 } else { 1 };
    3 * channels * depth * u64::from(header.width) * u64::from(header.height)
}

pub struct Picture {
    image: DynamicImage,
    /// ICC.
    profile: Option<Vec<u8>>,
}

impl Picture {
    /// The photo at `path`, or what the decoder has against it.
    pub fn decoded(path: &Path, header: &Header) -> Result<Self, String> {
        let format = match header.format {
            Format::Jpeg => ImageFormat::Jpeg,
            Format::Png => ImageFormat::Png,
            Format::Webp => ImageFormat::WebP,
            Format::Other => return Err("its format is not known here".to_owned()),
        };
        let decode = || -> Result<Self, ImageError> {
            let file = BufReader::new(File::open(path)?);
            let mut reader = ImageReader::with_format(file, format);
            let mut limits = Limits::no_limits();
            limits.max_image_width = Some(header.width);
            limits.max_image_height = Some(header.height);
            limits.max_alloc = Some(bytes(header).saturating_add(64 << 20));
            reader.limits(limits);
            let mut decoder = reader.into_decoder()?;
            let profile = decoder.icc_profile().ok().flatten();
            let image = DynamicImage::from_decoder(decoder)?;
            Ok(Self { image, profile })
        };
        // Of a stranger's file: what the decoder's authors did not think of is no reason to lose the others.
        match catch_unwind(AssertUnwindSafe(decode)) {
            Ok(Ok(picture)) => Ok(picture),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("its decoder fails on it".to_owned()),
        }
    }

    /// Width and height.
    pub fn size(&self) -> (u32, u32) {
        (self.image.width(), self.image.height())
    }

    pub fn sight(&self) -> Sight {
        Sight::of(&self.image)
    }

    /// Whether it has changed by that: what might be transparent need not be.
    pub fn change(&mut self, change: Change) -> bool {
        match change {
            Change::Turned(orientation) => {
                let Some(orientation) = Orientation::from_exif(orientation) else {
                    return false;
                };
                self.image.apply_orientation(orientation);
                true
            }
            Change::Opaque => self.lay_on_white(),
            // The decoder has.
            Change::Rgb => true,
            Change::Shallow => {
                self.image = self.image.to_rgb8().into();
                true
            }
        }
    }

    fn lay_on_white(&mut self) -> bool {
        if !self.image.color().has_alpha() {
            return false;
        }
        let pixels = self.image.to_rgba8();
        if pixels.pixels().all(|pixel| pixel[3] == u8::MAX) {
            return false;
        }
        let (width, height) = pixels.dimensions();
        let mut opaque = RgbImage::new(width, height);
        for (pixel, to) in pixels.pixels().zip(opaque.pixels_mut()) {
            let [colours @ .., alpha] = pixel.0;
            to.0 = colours.map(|colour| over_white(colour, alpha));
        }
        self.image = opaque.into();
        true
    }

    /// Writes it as JPEG or as PNG, without EXIF data; or says what the encoder has against it.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Cancelled`].
    pub fn write(
        &mut self,
        is_jpeg: bool,
        path: &Path,
        task: &Task<LogLine>,
    ) -> Result<Result<(), String>, Error> {
        if self.image.color() != ColorType::L8 {
            self.image = DynamicImage::ImageRgb8(std::mem::take(&mut self.image).into_rgb8());
        }
        match self.encode(is_jpeg, path, task) {
            Ok(()) => Ok(Ok(())),
            Err(ImageError::IoError(error)) => {
                task.check()?;
                Err(disk::failed("write", path)(error))
            }
            Err(error) => {
                disk::remove(path)?;
                Ok(Err(error.to_string()))
            }
        }
    }

    fn encode(&self, is_jpeg: bool, path: &Path, task: &Task<LogLine>) -> Result<(), ImageError> {
        let file = File::create(path)?;
        let mut writer = BufWriter::with_capacity(64 << 10, Watched { file, task });
        let (width, height) = self.size();
        let (pixels, colour) = (self.image.as_bytes(), self.image.color().into());
        if is_jpeg {
            let mut encoder = JpegEncoder::new_with_quality(&mut writer, JPEG_QUALITY);
            self.keep_profile(&mut encoder);
            encoder.write_image(pixels, width, height, colour)?;
        } else {
            let mut encoder = PngEncoder::new(&mut writer);
            self.keep_profile(&mut encoder);
            encoder.write_image(pixels, width, height, colour)?;
        }
        writer.flush()?;
        Ok(())
    }

    /// Where it is one of the colours that the pixels are now.
    fn keep_profile(&self, encoder: &mut impl ImageEncoder) {
        let colours: &[u8] = match self.image.color() {
            ColorType::L8 => b"GRAY",
            _ => b"RGB ",
        };
        if let Some(profile) = &self.profile
            && profile.get(16..20) == Some(colours)
        {
            // Both encoders can.
            let _ = encoder.set_icc_profile(profile.clone());
        }
    }
}

fn over_white(colour: u8, alpha: u8) -> u8 {
    let (colour, alpha) = (u32::from(colour), u32::from(alpha));
    let sum = colour * alpha + 255 * (255 - alpha);
    u8::try_from((sum + 127) / 255).unwrap_or(u8::MAX)
}

/// A file that is written for as long as somebody wants it.
struct Watched<'a> {
    file: File,
    task: &'a Task<LogLine>,
}

impl Write for Watched<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.task.check().map_err(io::Error::other)?;
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use ::image::codecs::webp::WebPEncoder;

    use super::*;
    use crate::dataset::image::look;
    use crate::dataset::photo;
    use crate::dataset::samples::task;

    /// Photos that need something: a lying JPEG, a transparent PNG, a transparent WebP.
    fn photos() -> [Vec<u8>; 3] {
        const EXIF: &[u8] = b"\xff\xe1\x00\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        let pixels = RgbImage::from_fn(40, 24, |x, y| {
            let [x, y] = [x, y].map(|at| u8::try_from(at).unwrap());
            ::image::Rgb([x * 6, y * 9, x.wrapping_mul(y)])
        });
        let opaque = DynamicImage::from(pixels);
        let mut clear = opaque.to_rgba8();
        clear.get_pixel_mut(3, 4)[3] = 7;
        let [mut jpeg, mut png, mut webp] = [const { Vec::new() }; 3];
        opaque
            .write_with_encoder(JpegEncoder::new(&mut jpeg))
            .unwrap();
        clear.write_with_encoder(PngEncoder::new(&mut png)).unwrap();
        clear
            .write_with_encoder(WebPEncoder::new_lossless(&mut webp))
            .unwrap();
        jpeg.splice(2..2, EXIF.iter().copied());
        [jpeg, png, webp]
    }

    /// Whatever it holds, it is put right, or not decoded and left.
    fn put_right(content: &[u8]) -> Vec<Change> {
        let folder = tempfile::tempdir().unwrap();
        let [path, anew] = ["a.jpg", "anew"].map(|name| folder.path().join(name));
        std::fs::write(&path, content).unwrap();
        let header = look(Cursor::new(content)).unwrap().header;
        let mut changes = Change::asked_for(&header, photo::Wanted::default());
        let Ok(mut picture) = Picture::decoded(&path, &header) else {
            return Vec::new();
        };
        changes.retain(|change| picture.change(*change));
        let is_jpeg = header.format == Format::Jpeg;
        picture.write(is_jpeg, &anew, &task().0).unwrap().unwrap();
        let again = look(File::open(&anew).unwrap()).unwrap();
        assert_eq!(again.fault, None);
        assert_eq!(
            Change::asked_for(&again.header, photo::Wanted::default()),
            []
        );
        assert_eq!((again.header.width, again.header.height), picture.size());
        changes
    }

    #[test]
    fn what_is_put_right_needs_nothing_more() {
        let [jpeg, png, webp] = photos();
        assert_eq!(put_right(&jpeg), [Change::Turned(6)]);
        assert_eq!(put_right(&png), [Change::Opaque]);
        assert_eq!(put_right(&webp), [Change::Opaque]);
    }

    mod properties {
        use proptest::prelude::*;
        use proptest::sample::Index;

        use super::*;

        proptest! {
            #[test]
            fn any_photo_is_put_right_or_left(
                which in 0_usize..3,
                changes in prop::collection::vec((any::<Index>(), any::<u8>()), 0..4),
                cut in prop::option::of(any::<Index>()),
            ) {
                let mut photo = photos()[which].clone();
                for (at, byte) in changes {
                    let at = at.index(photo.len());
                    photo[at] = byte;
                }
                if let Some(cut) = cut {
                    photo.truncate(cut.index(photo.len() + 1));
                }
                put_right(&photo);
            }
        }
    }
}
