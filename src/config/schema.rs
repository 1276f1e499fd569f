//! What Musubi Tuner will make of a dataset's configuration: its schema, and what passes the schema and fails later.

use std::mem::discriminant;
use std::path::{Path, PathBuf};

use super::{Cut, DatasetConfig, Entry, ImageFolder, Table, Value};

/// What a key may hold, in the terms of the tuner's own check: there, `true` counts as an integer, `1` is no boolean
/// and `1.0` no integer.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Integer,
    Boolean,
    Integers,
    IntegerOrPair,
}

/// Keys of `[general]`, each the default of the same key in every `[[datasets]]`.
const GENERAL: &[(&str, Kind)] = &[
    ("caption_extension", Kind::Text),
    ("batch_size", Kind::Integer),
    ("num_repeats", Kind::Integer),
    ("resolution", Kind::IntegerOrPair),
    ("enable_bucket", Kind::Boolean),
    ("bucket_no_upscale", Kind::Boolean),
];

/// Keys that an image dataset has besides those of [`GENERAL`].
const IMAGE_DATASET: &[(&str, Kind)] = &[
    ("image_directory", Kind::Text),
    ("image_jsonl_file", Kind::Text),
    ("cache_directory", Kind::Text),
    ("control_directory", Kind::Text),
    ("multiple_target", Kind::Boolean),
    ("no_resize_control", Kind::Boolean),
    ("control_resolution", Kind::IntegerOrPair),
    ("fp_latent_window_size", Kind::Integer),
    ("fp_1f_clean_indices", Kind::Integers),
    ("fp_1f_target_index", Kind::Integer),
    ("fp_1f_no_post", Kind::Boolean),
];

/// Former names, which the tuner still takes in a dataset.
const RENAMED: &[(&str, &str)] = &[
    ("flux_kontext_no_resize_control", "no_resize_control"),
    ("qwen_image_edit_no_resize_control", "no_resize_control"),
    ("qwen_image_edit_control_resolution", "control_resolution"),
];

const VIDEO_DATASET: &[&str] = &["video_directory", "video_jsonl_file"];

/// Keys of kohya's sd-scripts, whose dataset files look alike.
const SD_SCRIPTS: &[&str] = &[
    "alpha_mask",
    "bucket_reso_steps",
    "caption_dropout_every_n_epochs",
    "caption_dropout_rate",
    "caption_prefix",
    "caption_separator",
    "caption_suffix",
    "caption_tag_dropout_rate",
    "class_tokens",
    "color_aug",
    "conditioning_data_dir",
    "custom_attributes",
    "enable_wildcard",
    "face_crop_aug_range",
    "flip_aug",
    "is_reg",
    "keep_tokens",
    "keep_tokens_separator",
    "max_bucket_reso",
    "metadata_file",
    "min_bucket_reso",
    "network_multiplier",
    "random_crop",
    "secondary_separator",
    "shuffle_caption",
    "skip_image_resolution",
    "token_warmup_min",
    "token_warmup_step",
];

/// Images are cut to multiples of it: the latents are an eighth of the side, and the model takes them in pairs.
pub const RESOLUTION_STEP: i64 = 16;

/// The smallest side, of a square of the same area, that buckets can be made for.
pub const MIN_BUCKETED_SIDE: i64 = 32;

/// The longest key that is compared with the known ones for a likeness.
const LONGEST_MISSPELT: usize = 64;

impl DatasetConfig {
    /// One message for each thing that parses but cannot train on the photos in `images_directory`, with its line and
    /// its mend, in the order of the lines.
    #[must_use]
    pub fn warnings(&self, images_directory: &Path) -> Vec<String> {
        let mut review = Review {
            images_directory,
            findings: Vec::new(),
        };
        review.document(self);
        review.findings.sort();
        review.findings.dedup();
        review
            .findings
            .into_iter()
            .map(|(line, text)| format!("dataset.toml, line {line}: {text}"))
            .collect()
    }

    /// The image datasets whose caches can be told from their photos: a folder of photos each, without control images
    /// or several targets.
    #[must_use]
    pub fn image_folders(&self) -> Vec<ImageFolder> {
        let general = self.root.value("general").map(tables).unwrap_or_default();
        let extension_for_all = general
            .first()
            .and_then(|general| general.text("caption_extension"));
        let datasets = self.root.value("datasets").map(tables).unwrap_or_default();
        datasets
            .iter()
            .filter(|dataset| {
                !["control_directory", "multiple_target"]
                    .iter()
                    .any(|key| dataset.entries.contains_key(*key))
            })
            .filter_map(|dataset| {
                let (_, caches) = dataset.cache_directory()?;
                let (_, images) = dataset.text("image_directory")?;
                let extension = dataset.text("caption_extension").or(extension_for_all);
                Some(ImageFolder {
                    images: images.into(),
                    caches: caches.into(),
                    caption_extension: extension.map(|(_, extension)| extension.to_owned()),
                })
            })
            .collect()
    }

    /// What each dataset of the photos in `images_directory` brings them to, as far as it is something.
    #[must_use]
    pub fn cuts(&self, images_directory: &Path) -> Vec<Cut> {
        /// Where there is no `resolution`.
        const RESOLUTION: (i64, i64) = (960, 544);
        let none = Table::new(1);
        let general = self.root.value("general").map(tables).unwrap_or_default();
        let general = general.first().copied().unwrap_or(&none);
        let datasets = self.root.value("datasets").map(tables).unwrap_or_default();
        let of_the_photos = datasets.into_iter().filter(|dataset| {
            let folder = dataset.text("image_directory");
            folder.is_some_and(|(_, folder)| same_folder(Path::new(folder), images_directory))
        });
        of_the_photos
            .filter_map(|dataset| {
                let effective = |key| dataset.value(key).or_else(|| general.value(key));
                let is_set = |key| matches!(effective(key), Some(Value::Boolean(true)));
                let (width, height) = match effective("resolution") {
                    Some(value) => value.resolution()?,
                    None => RESOLUTION,
                };
                Some(Cut {
                    resolution: (width.try_into().ok()?, height.try_into().ok()?),
                    enable_bucket: is_set("enable_bucket"),
                    bucket_no_upscale: is_set("bucket_no_upscale"),
                })
            })
            .collect()
    }

    /// The most pixels of an image, and the most images at once, that a dataset has.
    #[must_use]
    pub fn largest(&self) -> (u64, u64) {
        // Musubi Tuner's own default.
        const RESOLUTION: (i64, i64) = (960, 544);
        let general = self.root.value("general").map(tables).unwrap_or_default();
        let datasets = self.root.value("datasets").map(tables).unwrap_or_default();
        let value = |dataset: &'_ Table, key: &str| {
            let own = dataset.value(key).and_then(Value::resolution);
            own.or_else(|| general.first()?.value(key)?.resolution())
        };
        let size = |dataset: &&Table| {
            let (width, height) = value(dataset, "resolution").unwrap_or(RESOLUTION);
            let batch = value(dataset, "batch_size").map_or(1, |(batch, _)| batch);
            (
                width.saturating_mul(height).unsigned_abs(),
                batch.unsigned_abs(),
            )
        };
        let sizes: Vec<(u64, u64)> = datasets.iter().map(size).collect();
        (
            sizes.iter().map(|(pixels, _)| *pixels).max().unwrap_or(0),
            sizes.iter().map(|(_, batch)| *batch).max().unwrap_or(0),
        )
    }

    /// The cache folder of every image dataset, as it is written: `cache_directory`, else `image_directory`.
    #[must_use]
    pub fn cache_directories(&self) -> Vec<String> {
        let datasets = self.root.value("datasets").map(tables).unwrap_or_default();
        datasets
            .iter()
            .filter_map(|dataset| dataset.cache_directory())
            .map(|(_, folder)| folder.to_owned())
            .collect()
    }
}

impl Table {
    fn value(&self, key: &str) -> Option<&Value> {
        self.entries.get(key).map(|entry| &entry.value)
    }

    /// A string, and the line that it is on.
    fn text(&self, key: &str) -> Option<(usize, &str)> {
        match self.entries.get(key)? {
            Entry {
                line,
                value: Value::String(text),
            } => Some((*line, text)),
            _ => None,
        }
    }

    fn is_video(&self) -> bool {
        VIDEO_DATASET
            .iter()
            .any(|key| self.entries.contains_key(*key))
    }

    fn cache_directory(&self) -> Option<(usize, &str)> {
        if self.is_video() {
            return None;
        }
        self.text("cache_directory")
            .or_else(|| self.text("image_directory"))
    }
}

impl Value {
    fn integer(&self) -> Option<i64> {
        match self {
            Self::Integer { value, .. } => Some(*value),
            Self::Boolean(boolean) => Some(i64::from(*boolean)),
            _ => None,
        }
    }

    /// Width and height; one number is a square.
    fn resolution(&self) -> Option<(i64, i64)> {
        match self {
            Self::Array(sides) => match sides.as_slice() {
                [width, height] => Some((width.integer()?, height.integer()?)),
                _ => None,
            },
            side => side.integer().map(|side| (side, side)),
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::String(text) => format!("the string {text:?}"),
            Self::Integer { value, .. } => format!("the integer {value}"),
            Self::Float(float) => format!("the float {float:?}"),
            Self::Boolean(boolean) => format!("the boolean {boolean}"),
            Self::Datetime(datetime) => format!("the date or time {datetime}"),
            Self::Array(items) => format!("a list of {}", items.len()),
            Self::Table(_) => "a table".to_owned(),
            Self::Tables(_) => "a list of tables".to_owned(),
        }
    }
}

impl Kind {
    fn accepts(self, value: &Value) -> bool {
        match self {
            Self::Text => matches!(value, Value::String(_)),
            Self::Integer => value.integer().is_some(),
            Self::Boolean => matches!(value, Value::Boolean(_)),
            Self::Integers => {
                matches!(value, Value::Array(items) if items.iter().all(|item| item.integer().is_some()))
            }
            Self::IntegerOrPair => value.resolution().is_some(),
        }
    }

    fn expected(self) -> &'static str {
        match self {
            Self::Text => "a string in quotes",
            Self::Integer => "an integer, without quotes or a decimal point",
            Self::Boolean => "`true` or `false`, without quotes",
            Self::Integers => "a list of integers, such as `[0, 1]`",
            Self::IntegerOrPair => "an integer or two, such as `1024` or `[832, 1216]`",
        }
    }
}

/// The tables in a value that is a list of them, or one alone.
fn tables(value: &Value) -> Vec<&Table> {
    match value {
        Value::Tables(tables) => tables.iter().collect(),
        Value::Array(items) => items.iter().flat_map(tables).collect(),
        Value::Table(table) => vec![table],
        _ => Vec::new(),
    }
}

/// The folder that a path leads to, also while its last parts are still to be made.
fn resolved(path: &Path) -> PathBuf {
    path.ancestors()
        .find_map(|ancestor| {
            let existing = ancestor.canonicalize().ok()?;
            Some(existing.join(path.strip_prefix(ancestor).ok()?))
        })
        .unwrap_or_else(|| path.to_owned())
}

/// Whether two paths lead to one folder, however they are spelt.
fn same_folder(left: &Path, right: &Path) -> bool {
    left == right || resolved(left) == resolved(right)
}

struct Review<'a> {
    images_directory: &'a Path,
    findings: Vec<(usize, String)>,
}

impl Review<'_> {
    fn say(&mut self, line: usize, text: impl Into<String>) {
        self.findings.push((line, text.into()));
    }

    fn document(&mut self, config: &DatasetConfig) {
        self.refused_by_the_old_parser(&config.root);
        for (key, entry) in &config.root.entries {
            match (key.as_str(), &entry.value) {
                ("datasets", _) | ("general", Value::Table(_)) => {}
                ("general", value) => self.say(
                    entry.line,
                    format!(
                        "`general` is {}, expected a table: write `[general]`",
                        value.describe()
                    ),
                ),
                (key, _) => self.unknown_top_level_key(key, entry.line),
            }
        }
        let none = Table::new(1);
        let general = config.root.value("general").map(tables).unwrap_or_default();
        let general = general.first().copied().unwrap_or(&none);
        for (key, entry) in &general.entries {
            self.general_key(key, entry);
        }
        self.datasets(config, general);
    }

    fn datasets(&mut self, config: &DatasetConfig, general: &Table) {
        let images_directory = self.images_directory.display().to_string();
        let Some(Entry { line, value }) = config.root.entries.get("datasets") else {
            return self.say(
                config.last_line,
                format!(
                    "there is no `[[datasets]]`, so there is nothing to train on: \
                     add `[[datasets]]` with `image_directory = {images_directory:?}`"
                ),
            );
        };
        match value {
            Value::Tables(_) => {}
            Value::Table(_) => self.say(
                *line,
                "Musubi Tuner expects a list of datasets: write `[[datasets]]`, with two brackets on each side",
            ),
            Value::Array(items) if items.is_empty() => self.say(
                *line,
                format!(
                    "`datasets` is empty, so there is nothing to train on: \
                     write `[[datasets]]` with `image_directory = {images_directory:?}`"
                ),
            ),
            Value::Array(items) => {
                for item in items.iter().filter(|item| !matches!(item, Value::Table(_))) {
                    self.say(*line, format!("a dataset is {}, expected a table: write `[[datasets]]`", item.describe()));
                }
            }
            value => {
                self.say(*line, format!("`datasets` is {}, expected tables: write `[[datasets]]`", value.describe()));
            }
        }
        let datasets = tables(value);
        for dataset in &datasets {
            self.dataset(dataset, general);
        }
        self.photos_are_trained(&datasets);
        self.caches_are_apart(&datasets);
    }

    fn unknown_top_level_key(&mut self, key: &str, line: usize) {
        let mend = if is_key_of(GENERAL, key) {
            "put it under `[general]` or `[[datasets]]`".to_owned()
        } else if is_key_of(IMAGE_DATASET, key) || VIDEO_DATASET.contains(&key) {
            "put it under `[[datasets]]`".to_owned()
        } else {
            mend_of_unknown(key, ["general", "datasets"].into_iter())
        };
        let key = key.escape_debug();
        self.say(
            line,
            format!(
                "Musubi Tuner refuses `{key}` outside of `[general]` and `[[datasets]]`: {mend}"
            ),
        );
    }

    fn general_key(&mut self, key: &str, entry: &Entry) {
        if let Some(kind) = kind_of(GENERAL, key) {
            return self.kind(key, kind, entry);
        }
        let mend = if is_key_of(IMAGE_DATASET, key) {
            "move it to each `[[datasets]]`".to_owned()
        } else {
            mend_of_unknown(key, GENERAL.iter().map(|(key, _)| *key))
        };
        self.say(
            entry.line,
            format!(
                "Musubi Tuner refuses `{}` in `[general]`: {mend}",
                key.escape_debug()
            ),
        );
    }

    fn dataset_key(&mut self, key: &str, name: &str, entry: &Entry) {
        if let Some(kind) = kind_of(GENERAL, name).or_else(|| kind_of(IMAGE_DATASET, name)) {
            return self.kind(key, kind, entry);
        }
        let known = GENERAL.iter().chain(IMAGE_DATASET).map(|(key, _)| *key);
        let mend = match key {
            "subsets" => "put what it holds directly under `[[datasets]]`".to_owned(),
            "image_dir" => "write `image_directory`".to_owned(),
            key => mend_of_unknown(key, known),
        };
        self.say(
            entry.line,
            format!(
                "Musubi Tuner refuses `{}` in `[[datasets]]`: {mend}",
                key.escape_debug()
            ),
        );
    }

    fn kind(&mut self, key: &str, kind: Kind, entry: &Entry) {
        if !kind.accepts(&entry.value) {
            let (found, expected) = (entry.value.describe(), kind.expected());
            self.say(
                entry.line,
                format!("`{key}` is {found}, which Musubi Tuner refuses: write {expected}"),
            );
        }
    }

    fn dataset(&mut self, dataset: &Table, general: &Table) {
        if let Some(entry) = VIDEO_DATASET
            .iter()
            .find_map(|key| dataset.entries.get(*key))
        {
            return self.say(
                entry.line,
                "Z-Image trains on images, not on videos: remove this dataset, or give it an `image_directory` instead",
            );
        }
        for (key, entry) in &dataset.entries {
            let name = RENAMED
                .iter()
                .find(|(former, _)| former == key)
                .map_or(key.as_str(), |(_, name)| name);
            // Beside the new name the former one is ignored.
            if name == key || !dataset.entries.contains_key(name) {
                self.dataset_key(key, name, entry);
            }
        }
        let named = |key: &str| dataset.entries.contains_key(key);
        if !named("image_directory") && !named("image_jsonl_file") {
            self.say(
                dataset.line,
                format!(
                    "the dataset names no images, so Musubi Tuner takes it for a video dataset, which Z-Image does not \
                     train on: add `image_directory = {:?}`",
                    self.images_directory.display().to_string()
                ),
            );
        }
        if named("image_jsonl_file") && !named("image_directory") && !named("cache_directory") {
            self.say(dataset.line, "a dataset of an `image_jsonl_file` needs a folder for its cache: add `cache_directory`");
        }
        for key in [
            "image_directory",
            "image_jsonl_file",
            "cache_directory",
            "control_directory",
        ] {
            if let Some((line, path)) = dataset
                .text(key)
                .filter(|(_, path)| !Path::new(path).is_absolute())
            {
                self.say(
                    line,
                    format!(
                        "`{key}` is {path:?}, which Musubi Tuner looks for in its own folder (and it does not expand `~`): \
                         write the whole path"
                    ),
                );
            }
        }
        let effective = |key: &str| {
            dataset
                .entries
                .get(key)
                .or_else(|| general.entries.get(key))
        };
        for key in ["batch_size", "num_repeats"] {
            if let Some(entry) = effective(key) {
                self.at_least_one(key, entry);
            }
        }
        let bucketed = matches!(
            effective("enable_bucket"),
            Some(Entry {
                value: Value::Boolean(true),
                ..
            })
        );
        if let Some(entry) = effective("resolution") {
            self.resolution(entry, bucketed);
        }
        if let Some((_, folder)) = dataset.text("image_directory") {
            let photos = same_folder(Path::new(folder), self.images_directory);
            self.caption_extension(effective("caption_extension"), dataset.line, photos);
        }
    }

    fn at_least_one(&mut self, key: &str, entry: &Entry) {
        if entry.value.integer().is_some_and(|number| number < 1) {
            let found = entry.value.describe();
            self.say(
                entry.line,
                format!("`{key}` is {found}, with which nothing is trained: write 1 or more"),
            );
        }
    }

    fn resolution(&mut self, entry: &Entry, bucketed: bool) {
        let Some((width, height)) = entry.value.resolution() else {
            return;
        };
        let unusable = |side: i64| side < RESOLUTION_STEP || side / (RESOLUTION_STEP / 2) % 2 != 0;
        let complaint = if width < 1 || height < 1 {
            "no image can have"
        } else if bucketed && width.saturating_mul(height) < MIN_BUCKETED_SIDE * MIN_BUCKETED_SIDE {
            "is too small for buckets"
        } else if !bucketed && (unusable(width) || unusable(height)) {
            "Z-Image cannot be trained in without buckets"
        } else {
            return;
        };
        self.say(
            entry.line,
            format!(
                "`resolution` is {width}×{height}, which {complaint}: \
                 write multiples of {RESOLUTION_STEP}, such as `1024` or `[832, 1216]`"
            ),
        );
    }

    fn caption_extension(&mut self, extension: Option<&Entry>, dataset_line: usize, photos: bool) {
        let (line, found) = match extension {
            None => (dataset_line, ""),
            Some(Entry {
                line,
                value: Value::String(text),
            }) => (*line, text.as_str()),
            Some(_) => return,
        };
        if found.is_empty() {
            self.say(
                line,
                "without a `caption_extension` caching stops with a FileNotFoundError: add `caption_extension = \".txt\"`",
            );
        } else if photos && found != ".txt" {
            self.say(
                line,
                format!(
                    "`caption_extension` is {found:?}, but the photos' captions are in `.txt` files, and a photo whose \
                     caption is not found does not train: write \".txt\""
                ),
            );
        } else if !found.starts_with('.') {
            self.say(
                line,
                format!(
                    "`caption_extension` is {found:?}, which lacks its dot: write {:?}",
                    format!(".{found}")
                ),
            );
        }
    }

    fn photos_are_trained(&mut self, datasets: &[&Table]) {
        let folders: Vec<_> = datasets
            .iter()
            .filter_map(|dataset| dataset.text("image_directory"))
            .collect();
        let photos = self.images_directory;
        if folders
            .iter()
            .any(|(_, folder)| same_folder(Path::new(folder), photos))
        {
            return;
        }
        let photos = photos.display().to_string();
        if let Some((line, folder)) = folders.first() {
            self.say(
                *line,
                format!("the photos are put in {photos:?}, which no dataset trains on: write it in place of {folder:?}"),
            );
        } else if let Some(entry) = datasets
            .iter()
            .find_map(|dataset| dataset.entries.get("image_jsonl_file"))
        {
            self.say(
                entry.line,
                format!("the photos are put in {photos:?}, which no dataset trains on: write `image_directory = {photos:?}`"),
            );
        }
    }

    fn caches_are_apart(&mut self, datasets: &[&Table]) {
        let caches: Vec<_> = datasets
            .iter()
            .filter_map(|dataset| dataset.cache_directory())
            .collect();
        for (index, (line, cache)) in caches.iter().enumerate() {
            let taken = caches[..index]
                .iter()
                .find(|(_, other)| same_folder(Path::new(other), Path::new(cache)));
            let Some((other_line, other)) = taken else {
                continue;
            };
            let outcome = if other == cache {
                "which Musubi Tuner refuses"
            } else {
                "and mixes with it"
            };
            self.say(
                *line,
                format!(
                    "the dataset has the cache folder of the one on line {other_line}, {outcome}: \
                     give each its own `cache_directory`"
                ),
            );
        }
    }

    /// Musubi Tuner reads the file with `toml` 0.10.2, which does not know all of TOML 1.0.
    fn refused_by_the_old_parser(&mut self, table: &Table) {
        for (key, entry) in &table.entries {
            self.refused_value(&key.escape_debug().to_string(), entry.line, &entry.value);
        }
    }

    fn refused_value(&mut self, key: &str, line: usize, value: &Value) {
        match value {
            Value::Integer { value, stumbled_on: true } => self.say(
                line,
                format!(
                    "`{key}` is not in decimal and has no blank after its `=`, which Musubi Tuner's TOML parser cannot \
                     read: write `{key} = {value}`"
                ),
            ),
            Value::Array(items) => {
                let kind = items.first().map(discriminant);
                if items.iter().any(|item| Some(discriminant(item)) != kind) {
                    self.say(
                        line,
                        format!(
                            "the list `{key}` mixes types, which Musubi Tuner's TOML parser cannot read: \
                             write values of one type"
                        ),
                    );
                }
                for item in items {
                    self.refused_value(key, line, item);
                }
            }
            Value::Table(table) => self.refused_by_the_old_parser(table),
            Value::Tables(tables) => {
                for table in tables {
                    self.refused_by_the_old_parser(table);
                }
            }
            _ => {}
        }
    }
}

fn kind_of(keys: &[(&str, Kind)], key: &str) -> Option<Kind> {
    keys.iter()
        .find(|(known, _)| *known == key)
        .map(|(_, kind)| *kind)
}

fn is_key_of(keys: &[(&str, Kind)], key: &str) -> bool {
    kind_of(keys, key).is_some()
}

fn mend_of_unknown<'k>(key: &str, known: impl Iterator<Item = &'k str>) -> String {
    if SD_SCRIPTS.contains(&key) {
        return "it is a key of sd-scripts, remove it".to_owned();
    }
    match nearest(key, known) {
        Some(known) => format!("did you mean `{known}`?"),
        None => "remove it".to_owned(),
    }
}

/// The known key that `key` is a misspelling or a part of.
fn nearest<'k>(key: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let key = key.to_lowercase().replace('-', "_");
    if key.len() > LONGEST_MISSPELT {
        return None;
    }
    known
        .map(|known| (edits(&key, known), known))
        .filter(|(edits, known)| *edits <= known.len() / 4 || key.len() > 4 && known.contains(&key))
        .min()
        .map(|(_, known)| known)
}

/// How many letters must be put in, taken out or changed to make one word of the other.
fn edits(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, letter) in left.chars().enumerate() {
        let mut diagonal = index;
        row[0] = index + 1;
        for (column, other) in right.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    const TRAINS: &str = r#"
[general]
resolution = [1024, 1024]
caption_extension = ".txt"
batch_size = 1
enable_bucket = true
bucket_no_upscale = false

[[datasets]]
image_directory = "/training/images"
cache_directory = "/training/cache"
"#;

    fn warnings(text: &str) -> Vec<String> {
        parse(text).unwrap().warnings(Path::new("/training/images"))
    }

    #[track_caller]
    fn assert_one(text: &str, line: usize, parts: &[&str]) {
        let found = warnings(text);
        assert_eq!(found.len(), 1, "{text}\n{found:#?}");
        assert!(
            found[0].starts_with(&format!("dataset.toml, line {line}: ")),
            "{text}\n{found:#?}"
        );
        for part in parts {
            assert!(found[0].contains(part), "{part} is not in {found:#?}");
        }
    }

    #[test]
    fn what_the_photos_are_brought_to_is_that_of_their_datasets() {
        let cut = |resolution, enable_bucket, bucket_no_upscale| Cut {
            resolution,
            enable_bucket,
            bucket_no_upscale,
        };
        for (text, wanted) in [
            (TRAINS.to_owned(), vec![cut((1024, 1024), true, false)]),
            (
                TRAINS.replace("[1024, 1024]", "[832, 1216]"),
                vec![cut((832, 1216), true, false)],
            ),
            (
                format!("{TRAINS}resolution = 512\nbucket_no_upscale = true"),
                vec![cut((512, 512), true, true)],
            ),
            (
                format!(
                    "{TRAINS}[[datasets]]\nimage_directory = \"/training/images/\"\nresolution = 768"
                ),
                vec![cut((1024, 1024), true, false), cut((768, 768), true, false)],
            ),
            (
                "[[datasets]]\nimage_directory = \"/training/images\"".to_owned(),
                vec![cut((960, 544), false, false)],
            ),
            (TRAINS.replace("/training/images", "/other"), vec![]),
            (TRAINS.replace("[1024, 1024]", "-1"), vec![]),
            (TRAINS.replace("[1024, 1024]", "[1, 2, 3]"), vec![]),
            ("datasets = 1".to_owned(), vec![]),
            (String::new(), vec![]),
        ] {
            let config = parse(&text).unwrap();
            assert_eq!(config.cuts(Path::new("/training/images")), wanted, "{text}");
        }
    }

    #[test]
    fn what_trains_is_not_warned_of() {
        let cases = [
            TRAINS.to_owned(),
            TRAINS.replace("/training/images", "/training/./images//"),
            TRAINS.replace('\n', "\r\n"),
            TRAINS.replace("[1024, 1024]", "512"),
            TRAINS.replace("batch_size = 1", "batch_size = true"),
            TRAINS.replace("batch_size = 1", "batch_size = 0x4"),
            TRAINS.replace("batch_size = 1\n", "batch_size = 0\n") + "batch_size = 2",
            format!(
                "{TRAINS}fp_1f_clean_indices = [0, 1]\nmultiple_target = false\ncontrol_resolution = [64, 64]"
            ),
            format!("{TRAINS}flux_kontext_no_resize_control = true"),
            format!("{TRAINS}flux_kontext_no_resize_control = 1\nno_resize_control = true"),
            format!(
                "{TRAINS}[[datasets]]\nimage_directory = \"/more\"\ncaption_extension = \".caption\""
            ),
            format!(
                "{TRAINS}[[datasets]]\nimage_jsonl_file = \"/a.jsonl\"\ncache_directory = \"/b\""
            ),
            r#"datasets = [{image_directory = "/training/images", caption_extension = ".txt"}]"#
                .to_owned(),
        ];
        for text in &cases {
            assert_eq!(warnings(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn without_datasets_nothing_trains() {
        assert_one("", 1, &["no `[[datasets]]`", "/training/images"]);
        assert_one("[general]\nbatch_size = 1\n", 3, &["no `[[datasets]]`"]);
        assert_one("datasets = []", 1, &["empty"]);
        assert_one("datasets = 3", 1, &["the integer 3", "`[[datasets]]`"]);
        assert_one(
            &TRAINS.replace("[[datasets]]", "[datasets]"),
            9,
            &["write `[[datasets]]`"],
        );
        assert_one(
            &TRAINS.replace("[general]", "[[general]]"),
            2,
            &["write `[general]`"],
        );
    }

    #[test]
    fn unknown_keys_are_named_with_what_was_meant() {
        let cases = [
            (
                "caption_extention = \".txt\"",
                "did you mean `caption_extension`?",
            ),
            ("Batch-Size = 2", "did you mean `batch_size`?"),
            ("repeats = 2", "did you mean `num_repeats`?"),
            ("image_dir = \"/x\"", "write `image_directory`"),
            ("shuffle_caption = true", "sd-scripts, remove it"),
            ("debug_dataset = true", "remove it"),
            ("source_fps = 1.0", "remove it"),
            ("[[datasets.subsets]]", "directly under `[[datasets]]`"),
        ];
        for (text, mend) in cases {
            assert_one(&format!("{TRAINS}{text}"), 12, &["`[[datasets]]`", mend]);
        }
        for (text, mend) in [
            ("cache_directory = \"/x\"", "move it to each"),
            ("batchsize = 1", "`batch_size`?"),
        ] {
            assert_one(
                &TRAINS.replace("batch_size = 1", text),
                5,
                &["`[general]`", mend],
            );
        }
        for (text, mend) in [
            (
                "resolution = 512",
                "put it under `[general]` or `[[datasets]]`",
            ),
            ("image_directory = \"/x\"", "put it under `[[datasets]]`"),
            ("[dataset]", "did you mean `datasets`?"),
            ("[extra]", "remove it"),
        ] {
            assert_one(&format!("{text}{TRAINS}"), 1, &["refuses", mend]);
        }
    }

    #[test]
    fn wrong_types_are_named() {
        let cases = [
            ("num_repeats = 1.0", "the float 1.0"),
            ("num_repeats = \"2\"", "the string \"2\""),
            ("num_repeats = 1979-05-27", "the date or time 1979-05-27"),
            ("multiple_target = 1", "the integer 1"),
            (
                "multiple_target = \"true\"",
                "`true` or `false`, without quotes",
            ),
            ("control_resolution = [1024]", "a list of 1"),
            ("control_resolution = [1024.0, 1024.0]", "a list of 2"),
            ("fp_1f_clean_indices = 1", "a list of integers"),
            ("control_directory = 1", "a string"),
        ];
        for (text, part) in cases {
            assert_one(&format!("{TRAINS}{text}"), 12, &[part]);
        }
    }

    #[test]
    fn values_that_pass_the_schema_and_fail_later_are_named() {
        let cases = [
            ("batch_size = 0", "`batch_size` is the integer 0"),
            ("batch_size = false", "write 1 or more"),
            ("num_repeats = -1", "`num_repeats`"),
            ("resolution = 0", "0×0"),
            ("resolution = [-512, 512]", "-512×512"),
            ("resolution = 31", "too small for buckets"),
            (
                "enable_bucket = false\nresolution = [1024, 1000]",
                "without buckets",
            ),
            ("enable_bucket = false\nresolution = true", "1×1"),
            (
                "caption_extension = \"\"",
                "add `caption_extension = \".txt\"`",
            ),
            ("caption_extension = \"txt\"", "write \".txt\""),
            ("caption_extension = \".TXT\"", "write \".txt\""),
            ("caption_extension = \".caption.txt\"", "write \".txt\""),
            ("control_directory = \"control\"", "write the whole path"),
        ];
        for (text, part) in cases {
            let line = 12 + text.matches('\n').count();
            assert_one(&format!("{TRAINS}{text}"), line, &[part]);
        }
        assert_one(
            &TRAINS.replace("caption_extension = \".txt\"", ""),
            9,
            &["without a `caption_extension`"],
        );
        let elsewhere = format!(
            "{TRAINS}[[datasets]]\nimage_directory = \"/more\"\ncaption_extension = \"caption\""
        );
        assert_one(&elsewhere, 14, &["lacks its dot", "\".caption\""]);
    }

    #[test]
    fn a_default_that_no_dataset_takes_is_not_warned_of_and_one_that_two_take_is_named_once() {
        let two = format!("{TRAINS}[[datasets]]\nimage_directory = \"/more\"")
            .replace("batch_size = 1", "batch_size = 0");
        assert_one(&two, 5, &["`batch_size`"]);
    }

    #[test]
    fn the_photos_must_be_trained() {
        assert_one(
            &TRAINS.replace("/training/images", "/other/images"),
            10,
            &["/training/images", "/other/images"],
        );
        let jsonl = TRAINS.replace(
            "image_directory = \"/training/images\"",
            "image_jsonl_file = \"/a.jsonl\"",
        );
        assert_one(&jsonl, 10, &["no dataset trains on"]);
        let relative = warnings(&TRAINS.replace("/training/images", "~/images"));
        assert_eq!(relative.len(), 2, "{relative:?}");
        assert!(
            relative
                .iter()
                .any(|text| text.contains("does not expand `~`"))
        );
        assert_one(
            &TRAINS.replace("image_directory = \"/training/images\"\n", ""),
            9,
            &["names no images"],
        );
        assert_one(
            &format!("{TRAINS}[[datasets]]\nvideo_directory = \"/v\"\nsource_fps = 1"),
            13,
            &["not on videos"],
        );
        assert_one(
            &format!("{TRAINS}[[datasets]]\nimage_jsonl_file = \"/a\""),
            12,
            &["add `cache_directory`"],
        );
        assert_one(
            &TRAINS.replace("/training/cache", "cache"),
            11,
            &["`cache_directory`", "whole path"],
        );
    }

    #[test]
    #[cfg(unix)]
    fn a_link_to_the_photos_folder_is_the_photos_folder_even_before_it_is_made() {
        let folder =
            std::env::temp_dir().join(format!("musubitraining-schema-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("training")).unwrap();
        std::os::unix::fs::symlink(folder.join("training"), folder.join("link")).unwrap();
        let text = TRAINS.replace(
            "/training/images",
            folder.join("link/images").to_str().unwrap(),
        );
        let found = parse(&text)
            .unwrap()
            .warnings(&folder.join("training/images"));
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found, [""; 0]);
    }

    #[test]
    fn caches_must_be_apart() {
        let second = |cache: &str| {
            format!("{TRAINS}[[datasets]]\nimage_directory = \"/b\"\ncache_directory = \"{cache}\"")
        };
        assert_one(
            &second("/training/cache"),
            14,
            &["line 11", "which Musubi Tuner refuses"],
        );
        assert_one(&second("/training//cache/"), 14, &["line 11", "mixes"]);
        let cached_among_images =
            format!("{TRAINS}[[datasets]]\nimage_directory = \"/training/cache\"");
        assert_one(&cached_among_images, 13, &["line 11"]);
        let config = parse(&cached_among_images).unwrap();
        assert_eq!(
            config.cache_directories(),
            ["/training/cache", "/training/cache"]
        );
        assert_eq!(
            parse(&second("/c")).unwrap().cache_directories(),
            ["/training/cache", "/c"]
        );
        assert_eq!(parse("datasets = 1").unwrap().cache_directories(), [""; 0]);
    }

    #[test]
    fn what_the_tuners_own_parser_refuses_is_named() {
        assert_one(
            &format!("{TRAINS}num_repeats=0x10"),
            12,
            &["write `num_repeats = 16`"],
        );
        let mixed = format!("{TRAINS}control_resolution = [1, true]");
        assert_one(&mixed, 12, &["mixes types"]);
    }
}
