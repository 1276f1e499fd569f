//! A dataset's TOML, written: in the part of the language that Musubi Tuner's old parser reads.

use std::path::Path;

use super::schema::{MIN_BUCKETED_SIDE, RESOLUTION_STEP};
use crate::error::Error;

/// What is said of a dataset besides its folders.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Width and height, in pixels.
    pub resolution: [i64; 2],
    pub batch_size: i64,
    pub num_repeats: i64,
    pub enable_bucket: bool,
    pub bucket_no_upscale: bool,
    /// With its dot.
    pub caption_extension: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            resolution: [1024, 1024],
            batch_size: 1,
            num_repeats: 1,
            enable_bucket: true,
            bucket_no_upscale: false,
            caption_extension: ".txt".to_owned(),
        }
    }
}

impl Settings {
    /// The text for the dataset with these two folders.
    ///
    /// # Errors
    /// [`Error::InvalidValue`] for what cannot train, or cannot be written.
    pub fn text(&self, images: &Path, cache: &Path) -> Result<String, Error> {
        const MOST_SIDE: i64 = 8192;
        const MOST_IN_BATCH: i64 = 1024;
        const MOST_REPEATS: i64 = 100_000;
        let [width, height] = self.resolution;
        let (smallest, step) = (MIN_BUCKETED_SIDE, RESOLUTION_STEP);
        for (name, value, least, most) in [
            ("resolution", width, smallest, MOST_SIDE),
            ("resolution", height, smallest, MOST_SIDE),
            ("batch_size", self.batch_size, 1, MOST_IN_BATCH),
            ("num_repeats", self.num_repeats, 1, MOST_REPEATS),
        ] {
            if !(least..=most).contains(&value) {
                return Err(Error::InvalidValue(format!(
                    "{name}={value}: expected {least} to {most}"
                )));
            }
        }
        if !self.enable_bucket && self.resolution.iter().any(|side| side % step != 0) {
            return Err(Error::InvalidValue(format!(
                "resolution=({width}, {height}) with enable_bucket=False: expected multiples of {step}, as photos are cut \
                 to just this size"
            )));
        }
        if self.bucket_no_upscale && !self.enable_bucket {
            return Err(Error::InvalidValue(
                "bucket_no_upscale=True with enable_bucket=False: expected both, as it is about buckets"
                    .to_owned(),
            ));
        }
        let extension = &self.caption_extension;
        let is_extension = extension.len() > 1
            && extension.starts_with('.')
            && !extension.contains(|char: char| char == '/' || char.is_control());
        if !is_extension {
            return Err(Error::InvalidValue(format!(
                "caption_extension={extension:?}: expected one with its dot, such as \".txt\""
            )));
        }
        Ok(format!(
            "[general]\n\
             resolution = [{width}, {height}]\n\
             caption_extension = {}\n\
             batch_size = {}\n\
             num_repeats = {}\n\
             enable_bucket = {}\n\
             bucket_no_upscale = {}\n\
             \n\
             [[datasets]]\n\
             image_directory = {}\n\
             cache_directory = {}\n",
            quoted(extension),
            self.batch_size,
            self.num_repeats,
            self.enable_bucket,
            self.bucket_no_upscale,
            quoted(path(images)?),
            quoted(path(cache)?),
        ))
    }
}

fn path(path: &Path) -> Result<&str, Error> {
    let text = path
        .to_str()
        .filter(|text| !text.contains(char::is_control));
    text.ok_or_else(|| {
        Error::InvalidValue(format!(
            "the path {} has characters that a TOML file cannot hold, or that Musubi Tuner cannot read from one (bytes \
             that are no UTF-8, or control characters): choose a training folder without them",
            path.display()
        ))
    })
}

/// The old parser knows the short escapes; next to a backslash it mistakes a long one.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::parse;

    #[test]
    fn what_cannot_train_is_refused_by_its_name() {
        let refused = |change: &dyn Fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            let text = settings.text(Path::new("/t/images"), Path::new("/t/cache"));
            text.unwrap_err().to_string()
        };
        for (message, wanted) in [
            (
                refused(&|it| it.resolution = [31, 512]),
                "resolution=31: expected 32 to 8192",
            ),
            (
                refused(&|it| it.resolution = [512, 8193]),
                "resolution=8193",
            ),
            (
                refused(&|it| it.batch_size = 0),
                "batch_size=0: expected 1 to 1024",
            ),
            (refused(&|it| it.num_repeats = -1), "num_repeats=-1"),
            (
                refused(&|it| (it.enable_bucket, it.resolution) = (false, [1000, 512])),
                "multiples of 16",
            ),
            (
                refused(&|it| (it.enable_bucket, it.bucket_no_upscale) = (false, true)),
                "bucket_no_upscale=True with enable_bucket=False",
            ),
            (
                refused(&|it| it.caption_extension = "txt".into()),
                "with its dot",
            ),
            (
                refused(&|it| it.caption_extension = ".".into()),
                "with its dot",
            ),
        ] {
            assert!(message.contains(wanted), "{wanted:?} is wanted: {message}");
        }
        for folder in ["/t/a\nb", "/t/\u{1}"] {
            let text = Settings::default().text(Path::new(folder), Path::new("/t"));
            assert!(text.unwrap_err().to_string().contains("control characters"));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_and_trains(
            folder in "[^\\x00-\\x1f\\x7f-\\x9f]{0,40}",
            sides in (32i64..8193, 32i64..8193),
            counts in (1i64..1025, 1i64..100_001),
            enable_bucket: bool,
            bucket_no_upscale: bool,
        ) {
            let round = |side: i64| if enable_bucket { side } else { side / 16 * 16 };
            let settings = Settings {
                resolution: [round(sides.0), round(sides.1)],
                batch_size: counts.0,
                num_repeats: counts.1,
                enable_bucket,
                bucket_no_upscale: bucket_no_upscale && enable_bucket,
                ..Settings::default()
            };
            let (images, cache) = (format!("/{folder}/images"), format!("/{folder}/cache"));
            let text = settings.text(Path::new(&images), Path::new(&cache)).unwrap();
            let config = parse(&text).unwrap();
            prop_assert_eq!(config.warnings(Path::new(&images)), Vec::<String>::new());
            let folders = config.image_folders();
            prop_assert_eq!(folders.len(), 1);
            prop_assert_eq!(folders[0].images.to_str(), Some(images.as_str()));
            prop_assert_eq!(folders[0].caches.to_str(), Some(cache.as_str()));
            prop_assert_eq!(folders[0].caption_extension.as_deref(), Some(".txt"));
        }
    }
}
