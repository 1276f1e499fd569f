//! Whether every photo has its cache, as Musubi Tuner leaves out of a training those that have none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::freshness::{Identity, identity};
use crate::config::ImageFolder;
use crate::error::Error;

/// What a caching step writes.
#[derive(Clone, Copy)]
pub enum Kind {
    Latents,
    TextEncoderOutputs,
}

impl Kind {
    fn what(self) -> &'static str {
        match self {
            Self::Latents => "latents",
            Self::TextEncoderOutputs => "text encoder outputs",
        }
    }

    /// `zi` is Z-Image. The ending of the one is not that of the other.
    fn ending(self) -> &'static str {
        match self {
            Self::Latents => "_zi.safetensors",
            Self::TextEncoderOutputs => "_zi_te.safetensors",
        }
    }

    /// Whether the cache file `name` is that of the photo `stem`; latents have the photo's size behind it.
    fn is_of(self, name: &str, stem: &str) -> bool {
        let between = name
            .strip_prefix(stem)
            .and_then(|rest| rest.strip_suffix(self.ending()));
        match self {
            Self::TextEncoderOutputs => between == Some(""),
            Self::Latents => between
                .and_then(|size| size.strip_prefix('_')?.split_once('x'))
                .is_some_and(|(width, height)| {
                    width
                        .bytes()
                        .chain(height.bytes())
                        .all(|digit| digit.is_ascii_digit())
                }),
        }
    }
}

/// The caches of one kind that were there before a step.
pub struct Before(Vec<Caches>);

type Caches = BTreeMap<String, Option<Identity>>;

impl Before {
    #[must_use]
    pub fn look(folders: &[ImageFolder], kind: Kind) -> Self {
        Self(folders.iter().map(|folder| caches(folder, kind)).collect())
    }

    /// Holds the caches against the photos, in folders where the step has written any; returns what to warn of.
    ///
    /// # Errors
    /// [`Error::Unusable`] when there are fewer caches than photos.
    pub fn complete(&self, folders: &[ImageFolder], kind: Kind) -> Result<Vec<String>, Error> {
        let mut warnings = Vec::new();
        for (folder, before) in folders.iter().zip(&self.0) {
            let caches = caches(folder, kind);
            if caches == *before {
                continue;
            }
            let photos = Photos::of(folder);
            let is_of = |name: &String, stem: &String| kind.is_of(name, stem);
            // Of those that were there before, only the ones of these photos.
            let count = caches
                .iter()
                .filter(|(name, now)| {
                    before.get(*name) != Some(*now)
                        || photos.captioned.iter().any(|stem| is_of(name, stem))
                })
                .count();
            if count < photos.captioned.len() {
                let without: Vec<&String> = photos
                    .captioned
                    .iter()
                    .filter(|stem| !caches.keys().any(|name| is_of(name, stem)))
                    .collect();
                return Err(Error::Unusable(format!(
                    "Musubi Tuner has written {} of {count} photos only, {} are in {}: it has none of {}. The training \
                     would leave them out. The log above may say why; replace or remove these photos and run again.",
                    kind.what(),
                    photos.captioned.len(),
                    folder.images.display(),
                    few(&without)
                )));
            }
            if !photos.without_caption.is_empty() {
                let names: Vec<&String> = photos.without_caption.iter().collect();
                warnings.push(format!(
                    "{} photos in {} have no caption and are left out of the training: {}. Put a {:?} file beside each, \
                     or set caption_extension in the dataset TOML.",
                    names.len(),
                    folder.images.display(),
                    few(&names),
                    folder.caption_extension.as_deref().unwrap_or_default()
                ));
            }
        }
        Ok(warnings)
    }
}

fn caches(folder: &ImageFolder, kind: Kind) -> Caches {
    names(&folder.caches)
        .into_iter()
        .filter(|name| name.ends_with(kind.ending()))
        .map(|name| {
            let identity = identity(&folder.caches.join(&name));
            (name, identity)
        })
        .collect()
}

/// The photos in a folder as Musubi Tuner lists them; caches are named by their stems.
struct Photos {
    captioned: BTreeSet<String>,
    without_caption: BTreeSet<String>,
}

impl Photos {
    fn of(folder: &ImageFolder) -> Self {
        // In lower or upper case alone.
        const EXTENSIONS: [&str; 12] = [
            "png", "jpg", "jpeg", "webp", "bmp", "avif", "PNG", "JPG", "JPEG", "WEBP", "BMP",
            "AVIF",
        ];
        let names = names(&folder.images);
        let stems = names
            .iter()
            .filter_map(|name| name.rsplit_once('.'))
            .filter(|(stem, extension)| {
                !stem.starts_with('.') && !stem.is_empty() && EXTENSIONS.contains(extension)
            })
            .map(|(stem, _)| stem.to_owned());
        let (captioned, without_caption) =
            stems.partition(|stem| match &folder.caption_extension {
                Some(extension) => names.contains(&format!("{stem}{extension}")),
                None => true,
            });
        Self {
            captioned,
            without_caption,
        }
    }
}

/// Of the files in a folder; none where it cannot be read.
fn names(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

fn few(names: &[&String]) -> String {
    const FEW: usize = 10;
    let mut few: Vec<&str> = names.iter().take(FEW).map(|name| name.as_str()).collect();
    let more = names.len().saturating_sub(FEW);
    let rest = format!("{more} more");
    if more > 0 {
        few.push(&rest);
    }
    few.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, ImageFolder) {
        let at = tempfile::tempdir().unwrap();
        let folder = ImageFolder {
            images: at.path().join("images"),
            caches: at.path().join("cache"),
            caption_extension: Some(".txt".to_owned()),
        };
        fs::create_dir(&folder.images).unwrap();
        fs::create_dir(&folder.caches).unwrap();
        for name in [
            "a.jpg",
            "a.txt",
            "b_1.JPG",
            "b_1.txt",
            ".hidden.jpg",
            "c.Jpg",
            "c.txt",
            "note.md",
        ] {
            fs::write(folder.images.join(name), "").unwrap();
        }
        (at, folder)
    }

    fn written(folder: &ImageFolder, kind: Kind, caches: &[&str]) -> Result<Vec<String>, Error> {
        let folders = std::slice::from_ref(folder);
        let before = Before::look(folders, kind);
        for name in caches {
            fs::write(folder.caches.join(name), name).unwrap();
        }
        before.complete(folders, kind)
    }

    #[test]
    fn each_photo_has_its_cache() {
        let (_at, folder) = folder();
        let latents = ["a_0064x0048_zi.safetensors", "b_1_0064x0048_zi.safetensors"];
        assert_eq!(written(&folder, Kind::Latents, &latents).unwrap(), [""; 0]);
        let outputs = ["a_zi_te.safetensors", "b_1_zi_te.safetensors"];
        assert_eq!(
            written(&folder, Kind::TextEncoderOutputs, &outputs).unwrap(),
            [""; 0]
        );
    }

    #[test]
    fn fewer_caches_than_photos_is_an_error_that_names_the_photos() {
        for (kind, cache) in [
            (Kind::Latents, "a_0064x0048_zi.safetensors"),
            (Kind::TextEncoderOutputs, "a_zi_te.safetensors"),
        ] {
            let (_at, folder) = folder();
            let error = written(&folder, kind, &[cache]).unwrap_err().to_string();
            assert!(
                error.contains("of 1 photos only, 2 are in") && error.contains("none of b_1."),
                "{error}"
            );
        }
    }

    #[test]
    fn where_no_cache_was_written_there_is_no_evidence() {
        let (_at, folder) = folder();
        for kind in [Kind::Latents, Kind::TextEncoderOutputs] {
            written(&folder, kind, &[]).unwrap();
            // Those of the other kind are not counted.
            written(&folder, kind, &["note.md", "x_zi.txt"]).unwrap();
        }
        written(
            &folder,
            Kind::TextEncoderOutputs,
            &["a_0064x0048_zi.safetensors"],
        )
        .unwrap();
    }

    #[test]
    fn caches_of_others_stand_for_no_photo() {
        let (_at, folder) = folder();
        for other in ["x", "y", "z"] {
            fs::write(
                folder
                    .caches
                    .join(format!("{other}_0064x0048_zi.safetensors")),
                "",
            )
            .unwrap();
        }
        let one = "a_0064x0048_zi.safetensors";
        let error = written(&folder, Kind::Latents, &[one])
            .unwrap_err()
            .to_string();
        assert!(error.contains("of 1 photos only"), "{error}");
        // One that was there already, and one that is written.
        written(&folder, Kind::Latents, &["b_1_0064x0048_zi.safetensors"]).unwrap();
    }

    #[test]
    fn photos_without_a_caption_are_a_warning() {
        let (_at, folder) = folder();
        fs::remove_file(folder.images.join("b_1.txt")).unwrap();
        let warnings = written(&folder, Kind::Latents, &["a_0064x0048_zi.safetensors"]).unwrap();
        assert!(
            matches!(warnings.as_slice(), [warning] if warning.contains("b_1")),
            "{warnings:?}"
        );
    }
}
