//! What a dataset would be made of, as far as names tell.

use super::archive::{self, Kinds, Limits, Zip};
use super::caption::beside::texts_of;
use super::folder::{self, Whole};
use super::origin::{Origin, Photos};
use super::{DatasetLimits, Options};
use crate::error::Error;
use crate::task::Cancel;

/// What is in a zip or a folder that is here, as far as its directory tells.
#[derive(Debug, PartialEq, Eq)]
pub struct Survey {
    pub photos: usize,
    /// Of them, those with a text beside them.
    pub captioned: usize,
    /// Files that are named like photos and cannot be any, each with the reason.
    pub left_out: Vec<(String, &'static str)>,
    /// Files of other kinds.
    pub others: usize,
}

/// Looks what is there, and reads no photo; `None` for a URL, which nobody asks.
///
/// # Errors
/// As [`prepare`].
pub fn survey(
    photos: Photos<'_>,
    options: &Options,
    limits: &DatasetLimits,
    cancel: &Cancel,
) -> Result<Option<Survey>, Error> {
    let limits = Limits::from(limits);
    // Captions are counted whether they are used or not.
    let kinds = Kinds {
        texts: true,
        ..options.kinds()
    };
    let (entries, choice) = match Origin::of(photos)? {
        Origin::Url(_) => return Ok(None),
        Origin::Zip(path) => {
            let file = Whole::open(&path, 0)?.file;
            let entries = archive::entries_of(&Zip::at(&path, file, &path, &kinds)?, &limits)?;
            let choice = archive::choose(&entries, &kinds);
            (entries, choice)
        }
        Origin::Folder(path) => {
            let listing = folder::list(&path, &limits, cancel)?;
            let choice = folder::choose_of(&listing, &kinds);
            (listing.entries, choice)
        }
    };
    let names = |indices: &[usize]| -> Vec<&str> {
        let names = indices.iter().map(|index| entries[*index].name.as_str());
        names.collect()
    };
    let (photos, texts) = (names(&choice.photos), names(&choice.texts));
    let captioned = texts_of(&photos, &texts).into_iter().flatten().count();
    Ok(Some(Survey {
        photos: photos.len(),
        captioned,
        left_out: choice.extraction.left_out,
        others: choice.extraction.others.len() + texts.len() - captioned.min(texts.len()),
    }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::dataset::samples::{jpeg, png, zip_of};
    use crate::dataset::{EXTENSIONS, Extensions};

    #[test]
    fn a_survey_tells_what_a_dataset_would_be_made_of_and_changes_nothing() {
        let here = tempfile::tempdir().unwrap();
        let files = [
            ("a.jpg", jpeg(64, 48)),
            ("a.txt", b"own".to_vec()),
            ("b.png", png(8, 8)),
            ("b.TXT", b"own".to_vec()),
            ("c.jpg", b"fake".to_vec()),
            ("readme.txt", vec![]),
            (".hidden.jpg", vec![]),
        ];
        let folder = here.path().join("photos");
        fs::create_dir(&folder).unwrap();
        for (name, content) in &files {
            fs::write(folder.join(name), content).unwrap();
        }
        let zip = here.path().join("photos.zip");
        fs::write(&zip, zip_of(files)).unwrap();
        let contents = || -> BTreeMap<_, _> {
            let files = fs::read_dir(&folder).unwrap();
            let paths = files.map(|file| file.unwrap().path()).chain([zip.clone()]);
            paths.map(|path| (fs::read(&path).unwrap(), path)).collect()
        };
        let before = contents();
        let look = |path: &Path, options: &Options, limits: &DatasetLimits| {
            survey(Photos::Path(path), options, limits, &Cancel::default())
        };
        let all = Options {
            extensions: Extensions::of(EXTENSIONS).unwrap(),
            ..Options::default()
        };
        for path in [&folder, &zip] {
            for (options, photos, captioned, others) in
                [(&Options::default(), 2, 1, 3), (&all, 3, 2, 1)]
            {
                let found = look(path, options, &DatasetLimits::default())
                    .unwrap()
                    .unwrap();
                assert_eq!(
                    (found.photos, found.captioned, found.others),
                    (photos, captioned, others),
                    "{path:?}"
                );
                assert_eq!(found.left_out.len(), 1);
            }
            let few = DatasetLimits {
                entries: 3,
                ..DatasetLimits::default()
            };
            look(path, &all, &few).unwrap_err();
        }
        look(&here.path().join("gone"), &all, &DatasetLimits::default()).unwrap_err();
        let url = Photos::Text("http://host/a.zip");
        let found = survey(url, &all, &DatasetLimits::default(), &Cancel::default());
        assert_eq!(found.unwrap(), None);
        assert_eq!(contents(), before);
    }
}
