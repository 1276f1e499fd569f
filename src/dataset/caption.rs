//! Captions: the trigger word beside each photo, or a text of the photo's own with the word in it.

pub mod beside;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use icu_normalizer::ComposingNormalizerBorrowed;
use icu_normalizer::properties::CanonicalCombiningClassMapBorrowed;

use crate::error::Error;

/// What a file may have that is taken for a caption: far more than is read of one.
pub const MOST_BYTES: u64 = 64 << 10;

/// What a caption has in the place of the trigger word.
const PLACEHOLDER: &str = "[trigger]";

/// How the bytes of a caption are letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As it says of itself, or as only UTF-8 can be.
    Certain,
    /// Whatever else it could be.
    Windows1252,
}

/// The text of a caption: UTF-8 with or without a byte order mark, UTF-16 with one, else Windows-1252.
///
/// # Errors
/// Why it is none.
pub fn decoded(bytes: &[u8]) -> Result<(String, Encoding), &'static str> {
    let in_words = |bytes: &[u8], word: fn([u8; 2]) -> u16| {
        let (words, rest) = bytes.as_chunks::<2>();
        let words = words.iter().copied().map(word);
        let text: Result<String, _> = char::decode_utf16(words).collect();
        text.ok()
            .filter(|_| rest.is_empty())
            .ok_or("it is UTF-16 that is cut short or damaged")
    };
    let (text, encoding) = match bytes {
        [0xff, 0xfe, rest @ ..] => (in_words(rest, u16::from_le_bytes)?, Encoding::Certain),
        [0xfe, 0xff, rest @ ..] => (in_words(rest, u16::from_be_bytes)?, Encoding::Certain),
        _ => match std::str::from_utf8(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)) {
            Ok(text) => (text.to_owned(), Encoding::Certain),
            Err(_) => (in_windows_1252(bytes)?, Encoding::Windows1252),
        },
    };
    if text.contains('\0') {
        return Err("it has NUL characters: save it as UTF-8");
    }
    // What editors leave in texts, a vertical tab say, is no part of a caption.
    let is_stray = |char: char| char.is_ascii_control() && !matches!(char, '\t' | '\n' | '\r');
    let text = text.replace(is_stray, " ");
    match text.trim() {
        "" => Err("it is empty"),
        text => Ok((text.to_owned(), encoding)),
    }
}

fn in_windows_1252(bytes: &[u8]) -> Result<String, &'static str> {
    /// From 0x80 on; elsewhere, it is Latin-1.
    const MIDDLE: [char; 32] = [
        '€', '\0', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\0', 'Ž', '\0', '\0',
        '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\0', 'ž', 'Ÿ',
    ];
    let letter = |byte: &u8| match byte {
        0x80..0xa0 => MIDDLE[usize::from(byte - 0x80)],
        byte => char::from(*byte),
    };
    let is_undefined = |byte: &u8| *byte != 0 && letter(byte) == '\0';
    if bytes.iter().any(is_undefined) {
        return Err("it is neither UTF-8 nor Windows-1252: save it as UTF-8");
    }
    Ok(bytes.iter().map(letter).collect())
}

/// The caption that `text` gives: with the trigger word for each placeholder, and before it unless it is in it already.
#[must_use]
pub fn with_word(text: &str, trigger_word: &str) -> String {
    let word = trigger_word.trim();
    let text = text.replace(PLACEHOLDER, word);
    let text = text.trim();
    if text.is_empty() {
        word.to_owned()
    } else if word.is_empty() || has_word(text, word) {
        text.to_owned()
    } else {
        format!("{word}, {text}")
    }
}

/// Whether `word` is in `text` as a word of its own, in whichever form its letters are: the tokenizer composes them.
fn has_word(text: &str, word: &str) -> bool {
    let (text, word) = (composed(text), composed(word));
    let goes_on = |inner: Option<char>, outer: Option<char>| {
        inner.is_some_and(is_of_word) && outer.is_some_and(is_of_word)
    };
    text.match_indices(word.as_ref()).any(|(start, _)| {
        let (before, after) = (&text[..start], &text[start + word.len()..]);
        // A combining mark changes the letter before it, whatever that is.
        !goes_on(word.chars().next(), before.chars().next_back())
            && !goes_on(word.chars().next_back(), after.chars().next())
            && !after.chars().next().is_some_and(is_mark)
    })
}

fn composed(text: &str) -> Cow<'_, str> {
    ComposingNormalizerBorrowed::new_nfc().normalize(text)
}

fn is_of_word(char: char) -> bool {
    char.is_alphanumeric() || char == '_' || is_mark(char)
}

fn is_mark(char: char) -> bool {
    CanonicalCombiningClassMapBorrowed::new().get_u8(char) != 0
}

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
pub fn write(photo: &Path, caption: &str) -> Result<(), Error> {
    let path = path(photo);
    std::fs::write(&path, caption).map_err(crate::disk::failed("write", &path))
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
    if let Some(length) = too_long(trigger_word) {
        warnings.push(format!("trigger_word {length}"));
    }
    warnings
}

/// What is to be said of a caption of which the text encoder does not read all.
#[must_use]
pub fn too_long(caption: &str) -> Option<String> {
    let (least, bytes) = (least_tokens(caption), caption.trim().len());
    let certainty = if least > ENCODER_TOKENS {
        "is longer"
    } else if bytes > ENCODER_TOKENS * USUAL_TOKEN_BYTES {
        "is probably longer"
    } else {
        return None;
    };
    Some(format!(
        "{certainty} than the {ENCODER_TOKENS} tokens that the text encoder reads ({bytes} bytes, at least {least} \
         tokens): what is behind them is not learnt"
    ))
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

    mod properties {
        use proptest::prelude::*;

        use super::*;

        fn text() -> impl Strategy<Value = String> {
            prop_oneof![
                any::<String>(),
                "[sSkK é\u{301}日,.\\[\\]_]{0,12}",
                "(sks|\\[trigger\\]|asks|[ ,\u{301}日_]){0,5}",
            ]
        }

        proptest! {
            #[test]
            fn any_bytes_are_a_text_or_say_why(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
                match decoded(&bytes) {
                    Ok((text, _)) => {
                        prop_assert!(!text.is_empty() && text.trim() == text);
                        let is_stray = |char: char| char.is_ascii_control() && !char.is_ascii_whitespace();
                        prop_assert!(!text.contains(is_stray));
                        prop_assert_eq!(decoded(text.as_bytes()), Ok((text, Encoding::Certain)));
                    }
                    Err(why) => prop_assert!(!why.is_empty()),
                }
            }

            #[test]
            fn a_text_is_the_same_in_every_encoding_that_says_what_it_is(text in text()) {
                let words = |to_bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
                    "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(to_bytes).collect()
                };
                let utf_8 = decoded(text.as_bytes());
                let marked = decoded(&["\u{feff}", &text].concat().into_bytes());
                // A text of UTF-8 that begins with a mark of its own has two then.
                if !text.starts_with('\u{feff}') {
                    prop_assert_eq!(&marked, &utf_8);
                }
                prop_assert_eq!(&decoded(&words(u16::to_le_bytes)), &marked);
                prop_assert_eq!(&decoded(&words(u16::to_be_bytes)), &marked);
            }

            #[test]
            fn a_caption_has_the_word_and_getting_it_again_changes_nothing(text in text(), word in "[sSkK é日<]{1,6}") {
                let caption = with_word(&text, &word);
                prop_assert!(!caption.contains(PLACEHOLDER));
                prop_assert_eq!(with_word(&caption, &word), caption.clone());
                let (word, text) = (word.trim(), text.replace(PLACEHOLDER, word.trim()));
                prop_assert!(word.is_empty() || has_word(&caption, word));
                prop_assert!(caption.ends_with(text.trim()));
            }
        }
    }
}
