//! The names of entries: how they read, what they tell, and what photos are called in the dataset.

use std::collections::{HashMap, HashSet, hash_map};
use std::fmt;
use std::hash::{BuildHasher, RandomState};

use icu_normalizer::ComposingNormalizerBorrowed;

/// As Python's `zipfile` reads it: UTF-8 where the entry says so (bit 11), else code page 437, up to a NUL.
pub fn decoded_name(raw: &[u8], flags: u16) -> String {
    const UTF_8: u16 = 1 << 11;
    let raw = raw.split(|byte| *byte == 0).next().unwrap_or_default();
    if flags & UTF_8 != 0 {
        return String::from_utf8_lossy(raw).into_owned();
    }
    raw.iter()
        .map(|byte| {
            byte.checked_sub(128)
                .map_or(char::from(*byte), |high| CP437[usize::from(high)])
        })
        .collect()
}

/// The upper half of IBM's code page 437.
#[rustfmt::skip]
const CP437: [char; 128] = [
    'Ç', 'ü', 'é', 'â', 'ä', 'à', 'å', 'ç', 'ê', 'ë', 'è', 'ï', 'î', 'ì', 'Ä', 'Å',
    'É', 'æ', 'Æ', 'ô', 'ö', 'ò', 'û', 'ù', 'ÿ', 'Ö', 'Ü', '¢', '£', '¥', '₧', 'ƒ',
    'á', 'í', 'ó', 'ú', 'ñ', 'Ñ', 'ª', 'º', '¿', '⌐', '¬', '½', '¼', '¡', '«', '»',
    '░', '▒', '▓', '│', '┤', '╡', '╢', '╖', '╕', '╣', '║', '╗', '╝', '╜', '╛', '┐',
    '└', '┴', '┬', '├', '─', '┼', '╞', '╟', '╚', '╔', '╩', '╦', '╠', '═', '╬', '╧',
    '╨', '╤', '╥', '╙', '╘', '╒', '╓', '╫', '╪', '┘', '┌', '█', '▄', '▌', '▐', '▀',
    'α', 'ß', 'Γ', 'π', 'Σ', 'σ', 'µ', 'τ', 'Φ', 'Θ', 'Ω', 'δ', '∞', 'φ', 'ε', '∩',
    '≡', '±', '≥', '≤', '⌠', '⌡', '÷', '≈', '°', '∙', '·', '√', 'ⁿ', '²', '■', '\u{a0}',
];

/// The part of a name in a zip that names the file: behind the last separator of any system, and a drive letter.
pub fn base_name(entry_name: &str) -> &str {
    let base = entry_name.rsplit(['/', '\\']).next().unwrap_or_default();
    match base.as_bytes() {
        [drive, b':', ..] if drive.is_ascii_alphabetic() => &base[2..],
        _ => base,
    }
}

pub fn depth(entry_name: &str) -> usize {
    entry_name.matches(['/', '\\']).count()
}

/// What Musubi Tuner reads, in lower case and without dots.
pub const EXTENSIONS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "bmp", "avif"];

/// The files that are taken for photos: those with one of these extensions, in any case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extensions(Vec<&'static str>);

impl Default for Extensions {
    fn default() -> Self {
        Self(vec!["jpg", "jpeg"])
    }
}

impl Extensions {
    /// # Errors
    /// The first that Musubi Tuner does not read.
    pub fn of<'a>(extensions: impl IntoIterator<Item = &'a str>) -> Result<Self, &'a str> {
        let known = |extension: &'a str| {
            let known = EXTENSIONS.into_iter().find(|known| *known == extension);
            known.ok_or(extension)
        };
        extensions
            .into_iter()
            .map(known)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub fn are_of_photo(&self, entry_name: &str) -> bool {
        let name = entry_name.to_lowercase();
        let ends = |extension: &&str| {
            let stem = name.strip_suffix(extension);
            stem.is_some_and(|stem| stem.ends_with('.'))
        };
        self.0.iter().any(ends)
    }

    /// Those that could be taken as well.
    pub fn others(&self) -> impl Iterator<Item = &'static str> {
        let others = EXTENSIONS.into_iter();
        others.filter(|extension| !self.0.contains(extension))
    }
}

/// ".jpg and .jpeg"
impl fmt::Display for Extensions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&dotted(self.0.iter().copied()))
    }
}

/// ".jpg, .jpeg and .png"
pub fn dotted<'a>(extensions: impl Iterator<Item = &'a str>) -> String {
    let dotted: Vec<String> = extensions
        .map(|extension| format!(".{extension}"))
        .collect();
    match dotted.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        _ => dotted.concat(),
    }
}

/// A name without its extension, if it has one of these, in any case.
pub fn stem_of<'a>(entry_name: &'a str, extensions: &[&str]) -> Option<&'a str> {
    let (stem, extension) = entry_name.rsplit_once('.')?;
    let is_one = |one: &&str| one.eq_ignore_ascii_case(extension);
    extensions.iter().any(is_one).then_some(stem)
}

/// What macOS and Windows put beside photos.
#[must_use]
pub fn is_junk(entry_name: &str) -> bool {
    let base = base_name(entry_name);
    entry_name.split(['/', '\\']).any(|part| part == "__MACOSX")
        || base.starts_with("._")
        || base == ".DS_Store"
        || base.eq_ignore_ascii_case("Thumbs.db")
}

/// A name from a zip, for a log line or a message: nothing in it can start a line, steer a terminal or run on.
#[must_use]
pub fn shown(name: &str) -> String {
    if name.is_empty() {
        return "(a file without a name)".to_owned();
    }
    let mut shown: String = name
        .chars()
        .take(120)
        .map(|char| {
            if is_unprintable(char) {
                '\u{fffd}'
            } else {
                char
            }
        })
        .collect();
    if name.chars().nth(120).is_some() {
        shown.push('…');
    }
    shown
}

/// Control characters, and those that change the direction of what follows.
fn is_unprintable(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Musubi Tuner caches `<stem>_<width>x<height>_zi.safetensors`, which has to fit into a file name of 255 bytes.
const STEM_BYTES: usize = 255 - "_99999x99999_zi.safetensors".len();

/// The flat name that each photo gets, given its name in the zip: as it is there, but for what Musubi Tuner would not
/// see, could not store, or would take for another photo's. Stems are unique without regard to case and Unicode form,
/// since captions and caches are named by them; the first of a kind keeps its name.
#[must_use]
pub fn flat_names(entry_names: &[&str]) -> Vec<String> {
    // Each stem that is taken, and the number to try next when it comes again.
    let mut taken: HashMap<String, u64> = HashMap::new();
    let keeps: Vec<bool> = entry_names
        .iter()
        .map(|name| {
            let kind = folded(&safe_parts(name).0);
            taken.insert(kind, FIRST_NUMBER).is_none()
        })
        .collect();
    let mut names = Vec::with_capacity(keeps.len());
    for (name, keeps) in entry_names.iter().zip(keeps) {
        let (stem, extension) = safe_parts(name);
        let stem = if keeps {
            stem
        } else {
            free_stem(&stem, &mut taken)
        };
        names.push(format!("{stem}.{extension}"));
    }
    names
}

/// The stems of the photos so far, while it is not known which there will be: their hashes, which take little memory.
#[derive(Default)]
pub struct Stems(HashSet<u64>, RandomState);

impl Stems {
    /// The name that [`flat_names`] gives to the first photo of its stem; `None` where it may not be the first.
    pub fn first_name(&mut self, entry_name: &str) -> Option<String> {
        let (stem, extension) = safe_parts(entry_name);
        let is_first = self.0.insert(self.1.hash_one(folded(&stem)));
        is_first.then(|| format!("{stem}.{extension}"))
    }
}

/// Of the second photo of a name: `a_2.jpg`.
const FIRST_NUMBER: u64 = 2;

fn free_stem(stem: &str, taken: &mut HashMap<String, u64>) -> String {
    let kind = folded(stem);
    let mut number = taken.get(&kind).copied().unwrap_or(FIRST_NUMBER);
    loop {
        let suffix = format!("_{number}");
        let candidate = format!("{}{suffix}", shortened(stem, STEM_BYTES - suffix.len()));
        number += 1;
        if let hash_map::Entry::Vacant(free) = taken.entry(folded(&candidate)) {
            free.insert(FIRST_NUMBER);
            taken.insert(kind, number);
            return candidate;
        }
    }
}

/// The same for stems that differ in case or Unicode form only. By way of upper case, since letters that share one are
/// the same to some file systems: ß and ss, ſ and s, both small sigmas.
fn folded(stem: &str) -> String {
    if stem.is_ascii() {
        return stem.to_ascii_lowercase();
    }
    let composed = |text: &str| {
        ComposingNormalizerBorrowed::new_nfc()
            .normalize(text)
            .into_owned()
    };
    composed(&composed(stem).to_uppercase().to_lowercase())
}

/// Stem and extension of one photo's flat name.
fn safe_parts(entry_name: &str) -> (String, String) {
    let base = base_name(entry_name);
    let (stem, extension) = base.rsplit_once('.').unwrap_or((base, "jpg"));
    let stem: String = stem
        .chars()
        .map(|char| if is_unprintable(char) { '_' } else { char })
        .collect();
    // Musubi Tuner looks for extensions in lower and in upper case, not for a mixture.
    let extension = if extension.chars().all(|char| char.is_ascii_uppercase()) {
        extension.to_owned()
    } else {
        extension.to_lowercase()
    };
    (shortened(&stem, STEM_BYTES).to_owned(), extension)
}

fn shortened(stem: &str, bytes: usize) -> &str {
    let fits = |end: &usize| *end <= bytes && stem.is_char_boundary(*end);
    &stem[..(0..=stem.len()).rev().find(fits).unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_flat_unique_and_as_they_were_where_they_can_be() {
        let long = "é".repeat(200);
        for (entry_names, flat) in [
            (
                vec!["a.jpg", "in/b.JPG", "日本 'q'.jpeg", "my.jpg.photo.jpg"],
                vec!["a.jpg", "b.JPG", "日本 'q'.jpeg", "my.jpg.photo.jpg"],
            ),
            (
                vec!["a.jpg", "a.jpeg", "sub/A.JPG"],
                vec!["a.jpg", "a_2.jpeg", "A_3.JPG"],
            ),
            // The one that is there keeps its name.
            (
                vec!["a.jpg", "in/a.jpg", "in/a_2.jpg"],
                vec!["a.jpg", "a_3.jpg", "a_2.jpg"],
            ),
            // One letter, composed and decomposed.
            (
                vec!["\u{e9}.jpg", "e\u{301}.jpg"],
                vec!["\u{e9}.jpg", "e\u{301}_2.jpg"],
            ),
            (vec!["a.Jpg", "b.JpEg"], vec!["a.jpg", "b.jpeg"]),
            (
                vec![
                    "../../etc/a.jpg",
                    "/b.jpg",
                    "C:\\c.jpg",
                    "\\\\host\\d.jpg",
                    "..\\e.jpg",
                    "C:f.jpg",
                ],
                vec!["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg"],
            ),
            (
                vec!["a\nb.jpg", "\u{202e}gpj.jpg"],
                vec!["a_b.jpg", "_gpj.jpg"],
            ),
        ] {
            assert_eq!(flat_names(&entry_names), flat, "{entry_names:?}");
        }
        let names = flat_names(&[
            &format!("{long}.jpg"),
            &format!("{long}x.jpg"),
            &format!("{long}.jpeg"),
        ]);
        let stems: std::collections::HashSet<&str> = names
            .iter()
            .map(|name| name.rsplit_once('.').unwrap().0)
            .collect();
        assert_eq!(stems.len(), 3);
        assert!(
            stems
                .iter()
                .all(|stem| format!("{stem}_99999x99999_zi.safetensors").len() <= 255),
            "{stems:?}"
        );
    }

    #[test]
    fn no_character_steers_what_follows() {
        // Unicode's Bidi_Control, and what ends a line.
        let steering = "\u{61c}\u{200e}\u{200f}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}";
        for char in steering
            .chars()
            .chain("\n\r\u{85}\u{2028}\u{2029}\u{1b}\0".chars())
        {
            assert_eq!(flat_names(&[&format!("a{char}b.jpg")]), ["a_b.jpg"]);
            assert_eq!(shown(&format!("a{char}b")), "a\u{fffd}b");
        }
    }

    mod properties {
        use std::collections::HashSet;

        use icu_normalizer::DecomposingNormalizerBorrowed;
        use proptest::prelude::*;

        use super::*;

        /// Of entries that are taken for photos.
        fn is_taken(name: &str) -> bool {
            Extensions::default().are_of_photo(name) && !base_name(name).starts_with('.')
        }

        fn holds(entry_names: &[&str]) -> Result<(), TestCaseError> {
            let names = flat_names(entry_names);
            prop_assert_eq!(names.len(), entry_names.len());
            let mut stems = HashSet::new();
            for (entry_name, name) in entry_names.iter().zip(&names) {
                let (stem, extension) = name.rsplit_once('.').unwrap_or_default();
                prop_assert!(
                    !stem.is_empty() && !name.starts_with('.'),
                    "{entry_name:?} became {name:?}"
                );
                prop_assert!(!name.contains(['/', '\\']) && !name.contains(is_unprintable));
                prop_assert!(["jpg", "jpeg", "JPG", "JPEG"].contains(&extension));
                let cache = format!("{stem}_99999x99999_zi.safetensors");
                prop_assert!(cache.len() <= 255);
                prop_assert!(
                    stems.insert(folded(stem)),
                    "{name:?} comes twice, for {entry_names:?}"
                );
            }
            prop_assert_eq!(&flat_names(entry_names), &names);

            // Whose stem is its own keeps its name, wherever in the order it stands.
            let reversed: Vec<&str> = entry_names.iter().rev().copied().collect();
            let alone = |name: &str| {
                let stem = folded(&safe_parts(name).0);
                let same = |other: &&&str| folded(&safe_parts(other).0) == stem;
                entry_names.iter().filter(same).count() == 1
            };
            for ((entry_name, name), again) in entry_names
                .iter()
                .zip(&names)
                .zip(flat_names(&reversed).iter().rev())
            {
                if alone(entry_name) {
                    let (stem, extension) = safe_parts(entry_name);
                    prop_assert_eq!(name, &format!("{stem}.{extension}"));
                    prop_assert_eq!(name, again);
                }
            }
            Ok(())
        }

        #[test]
        fn every_name_of_the_corpus_holds() {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/names");
            for file in std::fs::read_dir(folder).unwrap() {
                let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
                let names: Vec<&str> = text.split('\n').filter(|name| is_taken(name)).collect();
                assert!(!names.is_empty());
                holds(&names).unwrap();
            }
        }

        /// Of few letters, so that they meet.
        fn name() -> impl Strategy<Value = String> {
            let part = prop_oneof![
                "[aAbéÉßſsSkK\u{212a}σςΣ_2.]{1,4}",
                "e\u{301}|E\u{301}|\u{1e9e}|ﬁ|İ|i\u{307}",
                "[/\\\\:.]|\\.\\./|C:|\\\\\\\\",
                "\\PC{0,3}",
                any::<String>(),
                "[a日é]{60,130}",
            ];
            let parts = prop::collection::vec(part, 0..4).prop_map(|parts| parts.concat());
            let ending = prop::sample::select(vec![".jpg", ".jpeg", ".JPG", ".JPEG", ".jPg"]);
            (parts, ending).prop_map(|(parts, ending)| format!("{parts}{ending}"))
        }

        proptest! {
            #[test]
            fn flat_names_are_valid_unique_and_stable(
                names in prop::collection::vec(name(), 0..12),
            ) {
                let names: Vec<&str> = names
                    .iter()
                    .map(String::as_str)
                    .filter(|name| is_taken(name))
                    .collect();
                holds(&names)?;
            }

            #[test]
            fn a_stem_folds_to_the_same_in_every_form_and_case(stem in any::<String>()) {
                let decomposed = DecomposingNormalizerBorrowed::new_nfd().normalize(&stem).into_owned();
                prop_assert_eq!(folded(&decomposed), folded(&stem));
                let composed = ComposingNormalizerBorrowed::new_nfc().normalize(&stem).into_owned();
                prop_assert_eq!(folded(&composed.to_uppercase()), folded(&stem));
            }

            #[test]
            fn what_is_shown_stays_on_its_line(name in any::<String>()) {
                let shown = shown(&name);
                prop_assert!(!shown.is_empty() && shown.chars().count() <= 121);
                prop_assert!(!shown.contains(is_unprintable));
            }
        }
    }
}
