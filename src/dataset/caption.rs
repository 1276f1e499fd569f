//! Captions: the trigger word beside each photo.

use std::path::{Path, PathBuf};

use crate::error::Error;

/// What Musubi Tuner's text encoder reads of a caption; the rest is cut.
const ENCODER_TOKENS: usize = 512;

/// What an English text takes for each of its tokens, about; Chinese takes less.
const USUAL_TOKEN_BYTES: usize = 4;

/// Where the caption of `photo` is, beside it: `IMG.JPG` has it in `IMG.txt`, `my.jpg.photo.jpg` in `my.jpg.photo.txt`.
#[must_use]
pub fn path(photo: &Path) -> PathBuf {
    photo.with_extension("txt")
}

/// Writes the caption of `photo`.
///
/// # Errors
/// [`Error::Io`].
pub fn write(photo: &Path, trigger_word: &str) -> Result<(), Error> {
    let path = path(photo);
    std::fs::write(&path, trigger_word).map_err(crate::disk::failed("write", &path))
}

/// What a user would want to know about their trigger word before the training, not after it.
#[must_use]
pub fn warnings(trigger_word: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    if trigger_word.trim().is_empty() {
        warnings.push(
            "trigger_word is empty: the photos train without captions, and no word will call up what is learnt"
                .to_owned(),
        );
        return warnings;
    }
    if trigger_word.trim() != trigger_word {
        warnings.push(
            "trigger_word begins or ends with white space, which Musubi Tuner strips: prompt without it".to_owned(),
        );
    }
    if trigger_word.trim().contains(['\n', '\r']) {
        warnings.push(
            "trigger_word has line breaks, which Musubi Tuner keeps: it is learnt with them as one caption".to_owned(),
        );
    }
    let (least, bytes) = (least_tokens(trigger_word), trigger_word.trim().len());
    if least > ENCODER_TOKENS || bytes > ENCODER_TOKENS * USUAL_TOKEN_BYTES {
        let certainty = if least > ENCODER_TOKENS {
            "is longer"
        } else {
            "is probably longer"
        };
        warnings.push(format!(
            "trigger_word {certainty} than the {ENCODER_TOKENS} tokens that the text encoder reads ({bytes} bytes, at \
             least {least} tokens): what is behind them is not learnt"
        ));
    }
    warnings
}

/// The tokenizer splits a text before it joins anything: a run of letters is at least one token, a digit is one.
fn least_tokens(text: &str) -> usize {
    let letters = text
        .split(|char: char| !char.is_alphabetic())
        .filter(|run| !run.is_empty())
        .count();
    letters + text.chars().filter(|char| char.is_numeric()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caption_is_named_by_all_but_the_extension_and_holds_the_word_alone() {
        let folder = tempfile::tempdir().unwrap();
        for (photo, caption) in [
            ("a.jpg", "a.txt"),
            ("IMG.JPG", "IMG.txt"),
            ("my.jpg.photo.jpg", "my.jpg.photo.txt"),
            ("日本 \"q\".jpeg", "日本 \"q\".txt"),
        ] {
            write(&folder.path().join(photo), "sks 日本").unwrap();
            assert_eq!(
                std::fs::read(folder.path().join(caption)).unwrap(),
                "sks 日本".as_bytes(),
                "{photo}"
            );
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4);
    }

    #[test]
    fn each_doubt_about_a_trigger_word_is_one_warning() {
        for (word, wanted) in [
            ("sks woman, 日本", &[] as &[&str]),
            ("", &["is empty"]),
            (" \n", &["is empty"]),
            (" sks", &["begins or ends with white space"]),
            ("sks\n", &["begins or ends with white space"]),
            ("a\nb", &["line breaks"]),
            (&"word ".repeat(400)[..1999], &[]),
            (
                &"ab ".repeat(513)[..1538],
                &["is longer than the 512 tokens"],
            ),
            (&"1".repeat(513), &["is longer"]),
            (&"x".repeat(3000), &["is probably longer"]),
        ] {
            let warnings = warnings(word);
            assert_eq!(warnings.len(), wanted.len(), "{word:?}: {warnings:?}");
            assert!(
                warnings
                    .iter()
                    .zip(wanted)
                    .all(|(warning, part)| warning.contains(part)),
                "{warnings:?}"
            );
        }
    }
}
