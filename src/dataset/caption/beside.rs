//! Texts beside their photos: whose they are, and the captions that they make.

use std::collections::HashMap;
use std::path::Path;

use super::super::archive::{EXTENSIONS, Photo, TEXT, Text, shown, stem_of};
use super::super::{Captions, Source, listed};
use super::{Encoding, MOST_BYTES, decoded, too_long, with_word};
use crate::error::Error;
use crate::task::{LogLine, Task};

/// For each photo, which of the texts lies beside it under its name.
#[must_use]
pub fn texts_of(photos: &[&str], texts: &[&str]) -> Vec<Option<usize>> {
    let mut by_stem: HashMap<&str, usize> = HashMap::new();
    for (index, text) in texts.iter().enumerate() {
        let Some(stem) = stem_of(text, &[TEXT]) else {
            continue;
        };
        // Of a.txt and a.TXT, the one that Musubi Tuner would see.
        if text.ends_with(TEXT) || !by_stem.contains_key(stem) {
            by_stem.insert(stem, index);
        }
    }
    let text_of = |photo: &&str| by_stem.get(stem_of(photo, &EXTENSIONS)?).copied();
    photos.iter().map(text_of).collect()
}

/// What a photo's caption is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    TriggerWord,
    File,
    DefaultCaption,
}

impl Origin {
    /// In `photos.json`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TriggerWord => "trigger",
            Self::File => "file",
            Self::DefaultCaption => "default_caption",
        }
    }
}

/// What has come of texts.
pub struct Captioned {
    /// Of each photo's caption.
    pub origins: Vec<Origin>,
    /// Names of texts that are no photo's caption.
    pub unused: Vec<String>,
}

/// Gives each photo in `images` that has a text the caption that it makes; the others have theirs. `read` gives what is
/// in a text.
///
/// # Errors
/// What reading and writing give, [`Error::Cancelled`].
pub fn write(
    photos: &[Photo],
    names: &[String],
    texts: &[Text],
    read: impl Fn(&Text) -> Result<Vec<u8>, Error>,
    images: &Path,
    source: &Source<'_>,
    task: &Task<LogLine>,
) -> Result<Captioned, Error> {
    let entry_name = |text: &Text| shown(&text.entry.name);
    let (fallback, other, words) = match &source.options.captions {
        Captions::Files { default: Some(_) } => {
            (source.caption(), Origin::DefaultCaption, "default_caption")
        }
        _ => (source.caption(), Origin::TriggerWord, "the trigger word"),
    };
    let mut said = Said::default();
    if let Some(length) = too_long(&fallback).filter(|_| other == Origin::DefaultCaption) {
        said.long.push(format!("default_caption {length}"));
    }
    let mut is_used = vec![false; texts.len()];
    let mut origins = vec![other; photos.len()];
    let beside = texts_of(&entry_names(photos), &text_names(texts));
    for ((beside, name), origin) in beside.into_iter().zip(names).zip(&mut origins) {
        task.check()?;
        let Some((index, text)) = beside.map(|index| (index, &texts[index])) else {
            continue;
        };
        let decoded = if text.entry.bytes > MOST_BYTES {
            Err("it is longer than 64 KiB")
        } else {
            decoded(&read(text)?)
        };
        let (decoded, encoding) = match decoded {
            Ok(decoded) => decoded,
            Err(reason) => {
                said.refused
                    .push(format!("{} ({reason})", entry_name(text)));
                continue;
            }
        };
        if encoding == Encoding::Windows1252 {
            said.guessed.push(entry_name(text));
        }
        let caption = with_word(&decoded, source.trigger_word);
        if let Some(length) = too_long(&caption) {
            said.long.push(format!("{} {length}", entry_name(text)));
        }
        super::write(&images.join(name), &caption)?;
        (is_used[index], *origin) = (true, Origin::File);
    }
    let others = origins.iter().filter(|origin| **origin == other).count();
    task.info(format!(
        "[dataset] captions: {} from files, {others} of {words}",
        photos.len() - others
    ))?;
    said.aloud(task)?;
    if others > 0 && fallback.trim().is_empty() {
        task.warn(format!(
            "[dataset] photos that train without a caption, as they have no text beside them and trigger_word is empty: \
             {others}"
        ))?;
    }
    let unused = texts.iter().zip(is_used).filter(|(_, is_used)| !is_used);
    let unused = unused.map(|(text, _)| text.entry.name.clone()).collect();
    Ok(Captioned { origins, unused })
}

/// What is to be said of texts.
#[derive(Default)]
struct Said {
    refused: Vec<String>,
    guessed: Vec<String>,
    long: Vec<String>,
}

impl Said {
    fn aloud(&self, task: &Task<LogLine>) -> Result<(), Error> {
        for (texts, what) in [
            (&self.refused, "are not used"),
            (
                &self.guessed,
                "are not UTF-8 and were read as Windows-1252; where letters came out wrong, save them as UTF-8",
            ),
            (&self.long, "are too long"),
        ] {
            if !texts.is_empty() {
                task.warn(format!("[dataset] captions {what}: {}", listed(texts)))?;
            }
        }
        Ok(())
    }
}

fn entry_names(photos: &[Photo]) -> Vec<&str> {
    let names = photos.iter().map(|photo| photo.entry_name.as_str());
    names.collect()
}

fn text_names(texts: &[Text]) -> Vec<&str> {
    texts.iter().map(|text| text.entry.name.as_str()).collect()
}

/// A word on captions that are thrown away.
///
/// # Errors
/// [`Error::Cancelled`].
pub fn warn_of_unused(
    photos: &[Photo],
    others: &[String],
    task: &Task<LogLine>,
) -> Result<(), Error> {
    let texts: Vec<&str> = others.iter().map(String::as_str).collect();
    let beside = texts_of(&entry_names(photos), &texts);
    let beside: Vec<String> = (beside.into_iter().flatten())
        .map(|index| shown(&others[index]))
        .collect();
    if beside.is_empty() {
        return Ok(());
    }
    task.warn(format!(
        "[dataset] not used as captions: {} ({} in all, beside their photos); the trigger word is the caption of each \
         photo. To train with them: dataset_options=DatasetOptions(captions=\"files\")",
        listed(&beside),
        beside.len()
    ))
}
