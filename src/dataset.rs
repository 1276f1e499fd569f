//! URL, zip or folder in, ready folder out: downloaded, extracted, chosen, captioned beside the old dataset, and swapped
//! in whole.

mod archive;
mod caption;
mod download;
mod folder;
mod image;
mod origin;
mod photo;
mod proxy;
#[cfg(test)]
mod samples;
mod survey;
mod tls;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::thread;

use crate::disk::{self, remove};
use crate::error::Error;
use crate::task::{LogLine, Task};
use archive::{Arrival, Extraction, Kinds, Limits, Photo, Text, Zip, dotted, shown, stem_of};
pub use archive::{EXTENSIONS, Extensions};
use caption::beside;
pub use caption::warnings as caption_warnings;
pub use download::{Answer, RedactedUrl, ask};
use download::{Downloaded, Patience};
use folder::Whole;
use origin::Origin;
pub use origin::Photos;
pub use photo::Buckets;
use photo::PhotoRecord;
pub use survey::{Survey, survey};

/// What a dataset is made from.
pub struct Source<'a> {
    pub toml_text: &'a str,
    pub photos: Photos<'a>,
    pub trigger_word: &'a str,
    pub options: &'a Options,
    /// What the photos are brought to, as far as that is known.
    pub buckets: &'a [Buckets],
}

/// How a dataset is made.
#[derive(Clone, Debug)]
pub struct Options {
    pub captions: Captions,
    pub extensions: Extensions,
    /// Whether photos are turned as their EXIF orientation asks for.
    pub upright: bool,
    /// Whether a caller has given any.
    pub are_given: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            captions: Captions::TriggerWord,
            extensions: Extensions::default(),
            upright: true,
            are_given: false,
        }
    }
}

/// What photos are captioned with.
#[derive(Clone, Debug)]
pub enum Captions {
    /// The trigger word, each.
    TriggerWord,
    /// The text beside the photo, with the trigger word in it.
    Files {
        /// In the place of one that is not there.
        default: Option<String>,
    },
}

impl Options {
    fn kinds(&self) -> Kinds {
        Kinds {
            photos: self.extensions.clone(),
            texts: matches!(self.captions, Captions::Files { .. }),
        }
    }
}

impl Source<'_> {
    /// The caption of a photo that has no text of its own.
    fn caption(&self) -> String {
        match &self.options.captions {
            Captions::Files {
                default: Some(text),
            } => caption::with_word(text, self.trigger_word),
            _ => self.trigger_word.to_owned(),
        }
    }
}

/// Where a training folder keeps things.
#[derive(Clone, Debug)]
pub struct Layout(PathBuf);

impl Layout {
    #[must_use]
    pub fn new(training_folder: &Path) -> Self {
        Self(training_folder.to_owned())
    }

    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.0
    }

    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    #[must_use]
    pub fn cache(&self) -> PathBuf {
        self.0.join("cache")
    }

    #[must_use]
    pub fn dataset_toml(&self) -> PathBuf {
        self.0.join("dataset.toml")
    }

    /// What became of each photo.
    #[must_use]
    pub fn photos_json(&self) -> PathBuf {
        self.0.join("photos.json")
    }

    #[must_use]
    pub fn images_zip(&self) -> PathBuf {
        self.0.join("images.zip")
    }

    /// The dataset that is being built. Nothing in it counts.
    fn staging(&self) -> Self {
        Self(self.0.join(".dataset-new"))
    }

    /// Photos on their way into a staging folder's images.
    fn extracted(&self) -> PathBuf {
        self.0.join("extracted")
    }

    /// The staging folder under this name is complete: from here on the new dataset goes in, whatever happens.
    fn ready(&self) -> Self {
        Self(self.0.join(".dataset-ready"))
    }

    /// Where the old dataset is moved out of the way.
    fn old(&self) -> Self {
        Self(self.0.join(".dataset-old"))
    }

    /// What is replaced or removed with a dataset.
    fn names(&self) -> impl Iterator<Item = PathBuf> {
        let others = [self.staging().0, self.ready().0, self.old().0];
        let paths = self.parts().into_iter().chain(others);
        let names = paths.chain([self.images_zip()]);
        names.filter_map(|path| path.file_name().map(PathBuf::from))
    }

    /// What a dataset is made of, in the order in which it is put in place and against which it is taken away: whoever
    /// finds `dataset.toml` finds the rest.
    fn parts(&self) -> [PathBuf; 4] {
        [
            self.cache(),
            self.images(),
            self.photos_json(),
            self.dataset_toml(),
        ]
    }
}

/// How much a dataset may bring, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatasetLimits {
    /// Of the zip as it is downloaded, and of what a `Content-Encoding` inflates to.
    pub zip_bytes: u64,
    /// Of all files, extracted.
    pub extracted_bytes: u64,
    /// In the zip, of any kind.
    pub entries: u64,
}

impl Default for DatasetLimits {
    fn default() -> Self {
        Self {
            zip_bytes: 64 << 30,
            extracted_bytes: 64 << 30,
            entries: 100_000,
        }
    }
}

/// Replaces the dataset in `training_folder` (which exists, and which the caller has locked) by one made from `source`.
/// On any error the old one is still there, untouched.
///
/// # Errors
/// [`Error::InvalidUrl`], [`Error::InvalidValue`] when no photo is left; otherwise as [`Origin::of`],
/// [`download::download`], [`archive::extract`], [`folder::gather`] and the disk give them.
pub fn prepare(
    training_folder: &Path,
    source: &Source<'_>,
    limits: &DatasetLimits,
    task: &Task<LogLine>,
) -> Result<(), Error> {
    let patience = Patience {
        limit_bytes: limits.zip_bytes,
        ..Patience::default()
    };
    prepare_with(training_folder, source, &patience, &limits.into(), task)
}

/// [`prepare`], as patient and as generous as said.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_with(
    training_folder: &Path,
    source: &Source<'_>,
    patience: &Patience,
    limits: &Limits,
    task: &Task<LogLine>,
) -> Result<(), Error> {
    let origin = Origin::of(source.photos)?;
    let layout = Layout::new(training_folder);
    origin.refuse_in_the_way(&layout)?;
    recover(training_folder)?;
    let is_word_enough = !source.options.kinds().texts;
    if is_word_enough || !source.trigger_word.trim().is_empty() {
        for warning in caption::warnings(source.trigger_word) {
            task.warn(format!("[dataset] {warning}"))?;
        }
    }
    remove(&layout.images_zip())?;
    let staging = Staging::create(layout.staging())?;
    build(&layout, &staging.0, source, &origin, patience, limits, task)?;
    task.check()?;
    swap_in(&layout)?;
    // The new dataset stands; what the old one leaves behind is no reason to fail.
    if let Err(error) = clear(&layout) {
        task.warn(format!(
            "[dataset] the old dataset is replaced, but not all of it can be deleted: {error}"
        ))?;
    }
    Ok(())
}

/// Whether a run that was killed has left something to [`recover`] from.
///
/// # Errors
/// [`Error::Io`].
pub fn is_unfinished(training_folder: &Path) -> Result<bool, Error> {
    let layout = Layout::new(training_folder);
    let left = [layout.staging(), layout.ready(), layout.old()];
    for folder in left {
        if exists(&folder.0)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Brings a training folder whose last run was killed to the dataset that it was to have: the new one where that was
/// complete, else the old one. The caller has locked it.
///
/// # Errors
/// [`Error::Io`].
pub fn recover(training_folder: &Path) -> Result<(), Error> {
    let layout = Layout::new(training_folder);
    if exists(&layout.ready().0)? {
        move_in(&layout)?;
    }
    clear(&layout)
}

/// Removes what lies beside a dataset that is in place. `ready` goes first: without it, the rest is known for rubbish.
fn clear(layout: &Layout) -> Result<(), Error> {
    remove(&layout.ready().0)?;
    remove(&layout.staging().0)?;
    remove(&layout.old().0)
}

/// The folder that the new dataset is built in; gone, with all in it, unless it has become the dataset.
struct Staging(Layout);

impl Staging {
    fn create(layout: Layout) -> Result<Self, Error> {
        fs::create_dir(&layout.0).map_err(disk::failed("create", &layout.0))?;
        let staging = Self(layout);
        for folder in [staging.0.images(), staging.0.cache()] {
            fs::create_dir(&folder).map_err(disk::failed("create", &folder))?;
        }
        Ok(staging)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What stays because of an error here, the next run removes.
        let _ = remove(&self.0.0);
    }
}

/// Fills the staging folder until only the swap is left. `layout` is for what the log says: where things will be.
fn build(
    layout: &Layout,
    staging: &Layout,
    source: &Source<'_>,
    origin: &Origin,
    patience: &Patience,
    limits: &Limits,
    task: &Task<LogLine>,
) -> Result<(), Error> {
    let toml = staging.dataset_toml();
    fs::write(&toml, source.toml_text).map_err(disk::failed("write", &toml))?;
    task.info(format!(
        "[dataset] wrote dataset.toml={}",
        layout.dataset_toml().display()
    ))?;

    let (found, extraction) = match origin {
        Origin::Url(url) => fetch(staging, url, source, patience, limits, task)?,
        Origin::Zip(path) => {
            let limit = patience.limit_bytes;
            read_zip(staging, path, &source.options.kinds(), limit, limits, task)?
        }
        Origin::Folder(path) => {
            task.info(format!("[dataset] reading photos from {}", path.display()))?;
            let (into, kinds) = (staging.extracted(), source.options.kinds());
            fs::create_dir(&into).map_err(disk::failed("create", &into))?;
            let extraction = folder::gather(path, &into, &kinds, limits, task)?;
            (Found::Folder(path), extraction)
        }
    };
    let Extraction {
        photos,
        left_out,
        texts,
        mut others,
    } = extraction;

    let mut left_out: Vec<(String, String)> = left_out
        .into_iter()
        .map(|(name, reason)| (name, reason.to_owned()))
        .collect();
    let photos = judge(photos, &mut left_out, task)?;
    for (name, reason) in &left_out {
        task.warn(format!("[dataset] left out {}: {reason}", shown(name)))?;
    }
    warn_of_others(&others, &source.options.extensions, task)?;
    warn_of_twins(&photos, task)?;
    let names = photos_named(&photos, task)?;
    let images = staging.images();
    place(&photos, &names, &found, staging, &source.caption(), task)?;
    let mut captions_from = vec![beside::Origin::TriggerWord; photos.len()];
    if source.options.kinds().texts {
        let read = |text: &Text| found.read(text, task);
        let captioned = beside::write(&photos, &names, &texts, read, &images, source, task)?;
        others.extend(captioned.unused);
        captions_from = captioned.origins;
    } else {
        beside::warn_of_unused(&photos, &others, task)?;
    }
    let mut photos: Vec<PhotoRecord> = (photos.into_iter().zip(names).zip(captions_from))
        .map(|((photo, name), caption_from)| {
            PhotoRecord::new(photo.entry_name, name, photo.header, caption_from.name())
        })
        .collect();
    let wanted = photo::Wanted {
        upright: source.options.upright,
        is_looked_at: source.options.are_given,
    };
    photo::put_right(
        &mut photos,
        &images,
        &staging.extracted(),
        wanted,
        source.buckets,
        task,
    )?;
    photo::write_records(&staging.photos_json(), &photos)?;
    remove(&staging.extracted())?;

    let images = layout.images();
    let removed = left_out.len() + others.len();
    task.info(format!(
        "[dataset] images kept={} removed={removed} images_dir={}",
        photos.len(),
        images.display()
    ))?;
    if photos.is_empty() {
        return Err(Error::InvalidValue(format!(
            "Dataset is empty after extraction/filtering. images_dir={}. {}",
            images.display(),
            why_empty(&found, &left_out, &others, &source.options.extensions)
        )));
    }
    Ok(())
}

/// What photos and captions were found in.
enum Found<'a> {
    Zip(Box<Zip>),
    Folder(&'a Path),
}

impl Found<'_> {
    /// What photos were called among the images as they came.
    fn names_on_the_way(&self) -> impl Iterator<Item = &str> {
        let zip = match self {
            Self::Zip(zip) => Some(zip.names_on_the_way()),
            Self::Folder(_) => None,
        };
        zip.into_iter().flatten()
    }

    fn read(&self, text: &Text, task: &Task<LogLine>) -> Result<Vec<u8>, Error> {
        match self {
            Self::Zip(zip) => text.read(zip, task),
            Self::Folder(root) => folder::read_text(root, text),
        }
    }
}

/// The zip that a URL gives, and what is in it.
fn fetch<'a>(
    staging: &Layout,
    url: &RedactedUrl,
    source: &Source<'_>,
    patience: &Patience,
    limits: &Limits,
    task: &Task<LogLine>,
) -> Result<(Found<'a>, Extraction), Error> {
    let shown_url: String = url.to_string().chars().take(120).collect();
    task.info(format!(
        "[dataset] downloading images zip (url={shown_url}...)"
    ))?;
    let (extracted, images) = (staging.extracted(), staging.images());
    let mut is_followed = true;
    let (extraction, zip) = loop {
        for folder in [&extracted, &images] {
            remove(folder)?;
            fs::create_dir(folder).map_err(disk::failed("create", folder))?;
        }
        let to = Arrival::create(&staging.images_zip(), &extracted, limits, is_followed)?
            .of(&source.options.kinds());
        let Downloaded {
            mut zip,
            content_type,
        } = download_captioning(url, to, &images, &source.caption(), patience, task)?;
        task.info(format!("[dataset] downloaded zip bytes={}", zip.bytes()))?;
        let extraction = archive::extract(&mut zip, content_type.as_deref(), limits, task);
        if !zip.lacks_bytes() {
            break (extraction?, zip);
        }
        is_followed = false;
        task.info(
            "[dataset] the zip is not what it seemed to be on the way: downloading it again, to read all of it",
        )?;
    };
    // It is still open for the captions.
    fs::remove_file(zip.path()).map_err(Error::io("remove", zip.path()))?;
    Ok((Found::Zip(Box::new(zip)), extraction))
}

/// What is in a zip that is here already, read where it lies.
fn read_zip<'a>(
    staging: &Layout,
    path: &Path,
    kinds: &Kinds,
    limit_bytes: u64,
    limits: &Limits,
    task: &Task<LogLine>,
) -> Result<(Found<'a>, Extraction), Error> {
    task.info(format!("[dataset] reading photos from {}", path.display()))?;
    let into = staging.extracted();
    fs::create_dir(&into).map_err(disk::failed("create", &into))?;
    let whole = Whole::open(path, 0)?;
    if whole.bytes() > limit_bytes {
        return Err(Error::BadZip(format!(
            "{} has {} bytes, {limit_bytes} are allowed: put fewer photos into it, or set trainer.dataset_limits = \
             DatasetLimits(zip_bytes=...)",
            path.display(),
            whole.bytes()
        )));
    }
    let mut zip = Zip::at(
        path,
        whole.file.try_clone().map_err(Error::io("read", path))?,
        &into,
        kinds,
    )?;
    let extraction = archive::extract(&mut zip, None, limits, task);
    // That is then why it cannot be read.
    whole.check(whole.bytes())?;
    Ok((Found::Zip(Box::new(zip)), extraction?))
}

/// The photos that open. Where none does, all of them: then they are somebody's stand-ins for photos, or of a format
/// that is not known here, and there is no evidence that they cannot train.
fn judge(
    photos: Vec<Photo>,
    left_out: &mut Vec<(String, String)>,
    task: &Task<LogLine>,
) -> Result<Vec<Photo>, Error> {
    let mut open = Vec::new();
    let mut faulty = Vec::new();
    for mut photo in photos {
        match photo.fault.take() {
            None => open.push(photo),
            Some(reason) => faulty.push((photo, reason)),
        }
    }
    if open.is_empty() {
        if let Some((first, reason)) = faulty.first() {
            task.warn(format!(
                "[dataset] none of the {} photos looks like one that opens (the first is {}: {reason}); all are kept",
                faulty.len(),
                shown(&first.entry_name)
            ))?;
        }
        return Ok(faulty.into_iter().map(|(photo, _)| photo).collect());
    }
    left_out.extend(
        faulty
            .into_iter()
            .map(|(photo, reason)| (photo.entry_name, reason.into_string())),
    );
    Ok(open)
}

/// Downloads, and writes the captions of the photos that are taken out of the zip on the way.
fn download_captioning(
    url: &RedactedUrl,
    mut to: Arrival,
    images: &Path,
    caption: &str,
    patience: &Patience,
    task: &Task<LogLine>,
) -> Result<Downloaded, Error> {
    let (sender, photos) = sync_channel::<Vec<PathBuf>>(1);
    to.naming(images, sender);
    thread::scope(|scope| {
        let write_captions = move || {
            for photo in photos.into_iter().flatten() {
                task.check()?;
                caption::write(&photo, caption)?;
            }
            Ok(())
        };
        let captions = thread::Builder::new()
            .name("captions".to_owned())
            .spawn_scoped(scope, write_captions);
        let captions = captions.map_err(|error| {
            Error::Unusable(format!("cannot start a thread for the captions: {error}"))
        })?;
        let downloaded = download::download(url, to, patience, task);
        let captioned = captions.join().unwrap_or_else(|panic| resume_unwind(panic));
        // A download whose captions cannot be written ends by that.
        captioned.and(downloaded)
    })
}

/// What the photos are called in the end.
fn photos_named(photos: &[Photo], task: &Task<LogLine>) -> Result<Vec<String>, Error> {
    let entry_names: Vec<&str> = photos
        .iter()
        .map(|photo| photo.entry_name.as_str())
        .collect();
    let names = archive::flat_names(&entry_names);
    for (entry_name, name) in entry_names.iter().zip(&names) {
        if entry_name.rsplit('/').next() != Some(name) {
            task.info(format!("[dataset] renamed {} to {name}", shown(entry_name)))?;
        }
    }
    Ok(names)
}

/// Leaves in `images` just the photos, under their names, each with its caption. Most are there already.
fn place(
    photos: &[Photo],
    names: &[String],
    found: &Found<'_>,
    staging: &Layout,
    caption: &str,
    task: &Task<LogLine>,
) -> Result<(), Error> {
    let images = staging.images();
    let mut waiting = Vec::new();
    for (photo, name) in photos.iter().zip(names) {
        let path = images.join(name);
        if photo.path != path {
            waiting.push((photo.path.clone(), path));
        }
    }
    if waiting.is_empty() && found.names_on_the_way().count() == photos.len() {
        return Ok(());
    }
    let move_to =
        |from: &Path, to: &Path| fs::rename(from, to).map_err(Error::io("name a photo", to));
    // Where a photo lies that is to be called otherwise, there may be another's place.
    for (number, (from, _)) in waiting.iter_mut().enumerate() {
        task.check()?;
        if from.parent() == Some(&images) {
            let aside = staging.extracted().join(format!("aside{number}"));
            move_to(from, &aside)?;
            *from = aside;
        }
    }
    let is_in_place = |(photo, name): &(&Photo, &String)| photo.path == images.join(name);
    let in_place: HashSet<&Path> = (photos.iter().zip(names).filter(is_in_place))
        .map(|(photo, _)| photo.path.as_path())
        .collect();
    for name in found.names_on_the_way() {
        let path = images.join(name);
        if !in_place.contains(path.as_path()) {
            remove(&path)?;
            remove(&caption::path(&path))?;
        }
    }
    for (from, path) in waiting {
        task.check()?;
        move_to(&from, &path)?;
        caption::write(&path, caption)?;
    }
    Ok(())
}

/// A word on what a user may have meant to train on.
fn warn_of_others(
    others: &[String],
    taken: &Extensions,
    task: &Task<LogLine>,
) -> Result<(), Error> {
    /// Which Musubi Tuner does not read.
    const UNREAD: [&str; 6] = ["gif", "tif", "tiff", "jfif", "jxl", "dng"];
    let ending_in = |extensions: &[&str]| -> Vec<String> {
        others
            .iter()
            .filter(|name| stem_of(name, extensions).is_some() && !archive::is_junk(name))
            .map(|name| shown(name))
            .collect()
    };
    let could_be_taken: Vec<&str> = taken.others().collect();
    let (mut left_out, unread) = (ending_in(&could_be_taken), ending_in(&UNREAD));
    let mut mends = Vec::new();
    if !left_out.is_empty() {
        let more = dotted(could_be_taken.into_iter());
        mends.push(format!(
            "to take {more} as well: dataset_options=DatasetOptions(image_extensions=\"all\")"
        ));
    }
    let heic = ending_in(&["heic", "heif"]);
    if !heic.is_empty() {
        mends.push(format!("{}: {}", listed(&heic), image::HOW_TO_CONVERT_HEIC));
    }
    if !unread.is_empty() {
        mends.push(format!(
            "save {} as JPEG, which Musubi Tuner reads",
            listed(&unread)
        ));
    }
    left_out.extend(heic);
    left_out.extend(unread);
    if !left_out.is_empty() {
        task.warn(format!(
            "[dataset] left out {} ({} in all): only {taken} are taken; {}",
            listed(&left_out),
            left_out.len(),
            mends.join("; ")
        ))?;
    }
    let zips = ending_in(&["zip"]);
    if !zips.is_empty() {
        task.warn(format!(
            "[dataset] did not look into {}: zips in the zip are not opened",
            listed(&zips)
        ))?;
    }
    Ok(())
}

/// Equal size and checksum: the same photo, which then counts more than the others.
fn warn_of_twins(photos: &[Photo], task: &Task<LogLine>) -> Result<(), Error> {
    let mut by_content: BTreeMap<(u64, u32), Vec<&str>> = BTreeMap::new();
    for photo in photos {
        by_content
            .entry((photo.bytes, photo.crc32))
            .or_default()
            .push(&photo.entry_name);
    }
    let twins: Vec<String> = by_content
        .values()
        .filter(|names| names.len() > 1)
        .map(|names| {
            let names: Vec<String> = names.iter().map(|name| shown(name)).collect();
            names.join(" = ")
        })
        .collect();
    if !twins.is_empty() {
        task.info(format!(
            "[dataset] the same photo under several names, trained on as often: {}",
            listed(&twins)
        ))?;
    }
    Ok(())
}

fn why_empty(
    found: &Found<'_>,
    left_out: &[(String, String)],
    others: &[String],
    taken: &Extensions,
) -> String {
    let what = match found {
        Found::Zip(_) => "zip",
        Found::Folder(_) => "folder",
    };
    if left_out.is_empty() && others.is_empty() {
        return format!("The {what} holds no files: put {taken} photos into it.");
    }
    let mut why = vec![format!(
        "No file in the {what} is taken for a photo: {taken} are."
    )];
    if !left_out.is_empty() {
        let names: Vec<String> = left_out
            .iter()
            .map(|(name, reason)| format!("{} ({reason})", shown(name)))
            .collect();
        why.push(format!("Left out: {}.", listed(&names)));
    }
    if !others.is_empty() {
        let names: Vec<String> = others.iter().map(|name| shown(name)).collect();
        why.push(format!("Other files: {}.", listed(&names)));
    }
    why.join(" ")
}

/// A few, and how many more.
fn listed(items: &[String]) -> String {
    const FEW: usize = 10;
    let few = items[..items.len().min(FEW)].join(", ");
    match items.len().saturating_sub(FEW) {
        0 => few,
        more => format!("{few} and {more} more"),
    }
}

/// The commit: one rename makes the new dataset complete, the rest can be finished by any later run. Power loss needs
/// no care here, for the next run builds the dataset anew anyway.
fn swap_in(layout: &Layout) -> Result<(), Error> {
    rename(&layout.staging().0, &layout.ready().0)?;
    move_in(layout)
}

/// Moves what `ready` (still) has to its place, after what is there in its stead; all of it back when that fails. At
/// no time do a part of the old dataset and one of the new are in place together, and as long as `ready` is there,
/// any later run can finish.
fn move_in(layout: &Layout) -> Result<(), Error> {
    take_places(layout).inspect_err(|_| {
        // A mount point or another user's folder is in the way. An error in going back is the smaller trouble: the
        // next run tries again.
        let _ = move_out(layout);
    })
}

fn take_places(layout: &Layout) -> Result<(), Error> {
    let (ready, places) = (layout.ready().parts(), layout.parts());
    let mut waiting = Vec::new();
    for ((new, part), aside) in ready.iter().zip(&places).zip(layout.old().parts()) {
        if exists(new)? {
            waiting.push((new, part, aside));
        }
    }
    for (_, part, aside) in waiting.iter().rev() {
        set_aside(part, aside)?;
    }
    for (new, part, _) in waiting {
        rename(new, part)?;
    }
    Ok(())
}

/// Undoes [`take_places`], however far it came.
fn move_out(layout: &Layout) -> Result<(), Error> {
    for (new, part) in layout.ready().parts().iter().zip(&layout.parts()).rev() {
        if exists(part)? && !exists(new)? {
            rename(part, new)?;
        }
    }
    for (part, aside) in layout.parts().iter().zip(layout.old().parts()) {
        if exists(&aside)? {
            rename(&aside, part)?;
        }
    }
    rename(&layout.ready().0, &layout.staging().0)?;
    clear(layout)
}

/// Moves a part of the old dataset out of the way. A link is moved itself, not what it points to.
fn set_aside(part: &Path, aside: &Path) -> Result<(), Error> {
    if !exists(part)? {
        return Ok(());
    }
    if let Some(folder) = aside.parent() {
        match fs::create_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(disk::failed("create", folder)(error));
            }
            _ => {}
        }
    }
    // Of a run that was killed, while `part` has been put there since.
    remove(aside)?;
    match fs::rename(part, aside) {
        // A folder that is in a container's image, below what can be written, cannot be moved.
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            copy(part, aside)?;
            remove(part)
        }
        moved => moved.map_err(|error| cannot_move(part, error)),
    }
}

/// Copies a folder with all in it; links as such.
fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let failed = |error| Error::io("copy", from)(error);
    let found = from.symlink_metadata().map_err(failed)?;
    if found.is_symlink() {
        let target = fs::read_link(from).map_err(failed)?;
        return std::os::unix::fs::symlink(target, to).map_err(disk::failed("create", to));
    }
    if !found.is_dir() {
        return fs::copy(from, to)
            .map(drop)
            .map_err(disk::failed("write", to));
    }
    fs::create_dir(to).map_err(disk::failed("create", to))?;
    for entry in fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Whether the name is taken, be it by a link that leads nowhere. Not to be able to tell is an error: what is taken for
/// absent gets lost.
fn exists(path: &Path) -> Result<bool, Error> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(false),
            _ => Err(Error::io("look at", path)(error)),
        },
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(|error| cannot_move(from, error))
}

fn cannot_move(from: &Path, error: io::Error) -> Error {
    let error = if error.kind() == io::ErrorKind::ResourceBusy {
        let reason = "it is a mount point; mount the training folder instead";
        io::Error::new(io::ErrorKind::ResourceBusy, reason)
    } else {
        error
    };
    Error::io("move", from)(error)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc::Receiver;

    use super::samples::{
        Server, answer, jpeg, lines, ok, png, shaded_jpeg, silence, task, zip_of,
    };
    use super::*;
    use crate::task::Level;

    const TOML: &str = "# é\r\n[[datasets]]\n";

    /// Every name in the folder with what it holds: a file's content, a link's target, or nothing for a folder.
    fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
        fn visit(folder: &Path, prefix: &str, tree: &mut BTreeMap<String, Vec<u8>>) {
            for entry in fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                let name = format!("{prefix}{}", entry.file_name().into_string().unwrap());
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    visit(&entry.path(), &format!("{name}/"), tree);
                    tree.insert(format!("{name}/"), Vec::new());
                } else if kind.is_symlink() {
                    tree.insert(
                        name,
                        fs::read_link(entry.path())
                            .unwrap()
                            .into_os_string()
                            .into_encoded_bytes(),
                    );
                } else {
                    tree.insert(name, fs::read(entry.path()).unwrap());
                }
            }
        }
        let mut found = BTreeMap::new();
        visit(folder, "", &mut found);
        found
    }

    fn names(folder: &Path) -> Vec<String> {
        tree(folder).into_keys().collect()
    }

    /// A training folder with a dataset of an earlier run.
    fn used_folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        fs::create_dir(layout.images()).unwrap();
        fs::create_dir(layout.cache()).unwrap();
        fs::write(layout.images().join("old.jpg"), "old").unwrap();
        fs::write(layout.images().join("old.txt"), "old").unwrap();
        fs::write(layout.cache().join("old_zi.safetensors"), "old").unwrap();
        fs::write(layout.photos_json(), "old").unwrap();
        fs::write(layout.dataset_toml(), "old").unwrap();
        folder
    }

    const NEW: [&str; 6] = [
        "cache/",
        "dataset.toml",
        "images/",
        "images/new.jpg",
        "images/new.txt",
        "photos.json",
    ];

    fn new_zip() -> Vec<u8> {
        zip_of([("new.jpg", jpeg(64, 48)), ("read.me", vec![])])
    }

    fn run(folder: &Path, url: &str) -> (Result<(), Error>, Receiver<LogLine>) {
        run_of(folder, Photos::Text(url), &Options::default())
    }

    fn run_of(
        folder: &Path,
        photos: Photos<'_>,
        options: &Options,
    ) -> (Result<(), Error>, Receiver<LogLine>) {
        let (task, said) = task();
        let patience = Patience {
            first_pause: std::time::Duration::from_millis(1),
            tries: 2,
            ..Patience::default()
        };
        let source = Source {
            toml_text: TOML,
            photos,
            trigger_word: "sks",
            options,
            buckets: &[],
        };
        (
            prepare_with(folder, &source, &patience, &Limits::default(), &task),
            said,
        )
    }

    fn run_with(folder: &Path, zip: &[u8]) -> (Result<(), Error>, Receiver<LogLine>) {
        run(folder, &Server::start(vec![ok("", zip)]).url())
    }

    #[test]
    fn a_new_dataset_takes_the_place_of_the_old_one_and_is_told_in_order() {
        let folder = used_folder();
        let layout = Layout::new(folder.path());
        fs::write(layout.images_zip(), "old").unwrap();
        let zip = new_zip();
        let server = Server::start(vec![ok("", &zip)]);
        let (result, said) = run(folder.path(), &format!("{}?sig=s3cr3t", server.url()));
        result.unwrap();
        assert_eq!(names(folder.path()), NEW);
        assert_eq!(fs::read(layout.dataset_toml()).unwrap(), TOML.as_bytes());
        assert_eq!(fs::read(layout.images().join("new.txt")).unwrap(), b"sks");
        assert_eq!(
            fs::read(layout.images().join("new.jpg")).unwrap(),
            jpeg(64, 48)
        );
        let training = folder.path().display();
        assert_eq!(
            lines(&said, Level::Info),
            [
                format!("[dataset] wrote dataset.toml={training}/dataset.toml"),
                format!("[dataset] downloading images zip (url={}...)", server.url()),
                format!("[dataset] downloaded zip bytes={}", zip.len()),
                format!("[dataset] images kept=1 removed=1 images_dir={training}/images"),
            ]
        );
    }

    #[test]
    fn whatever_fails_leaves_the_old_dataset_and_nothing_else() {
        let hostile = zip_of([
            ("../../evil.jpg", jpeg(64, 48)),
            ("b.jpg", vec![0; 2 << 20]),
        ]);
        for (name, reply) in [
            ("a refusal", answer("404 Not Found", b"")),
            ("a server that fails", answer("500 Oops", b"")),
            ("a cut body", answer("200 OK\r\nContent-Length: 99", b"PK")),
            ("a web page", ok("\r\nContent-Type: text/html", b"<html>")),
            ("a cut zip", ok("", &new_zip()[..60])),
            (
                "a zip without photos",
                ok("", &zip_of([("read.me", vec![])])),
            ),
            ("an empty zip", ok("", &zip_of([]))),
            ("a bomb beside a photo", ok("", &hostile)),
        ] {
            let folder = used_folder();
            let before = tree(folder.path());
            let server = Server::start(vec![reply]);
            let (result, _said) = run(folder.path(), &server.url());
            result.expect_err(name);
            assert_eq!(tree(folder.path()), before, "{name}");
        }
        let folder = used_folder();
        let before = tree(folder.path());
        assert!(matches!(
            run(folder.path(), "ftp://host/a.zip").0,
            Err(Error::InvalidUrl(_))
        ));
        assert_eq!(tree(folder.path()), before);
    }

    #[test]
    fn cancelling_leaves_the_old_dataset_and_nothing_else() {
        let zip = zip_of([("a.jpg", shaded_jpeg(1)), ("b.jpg", vec![7; 9999])]);
        let within_a_photo = zip.windows(5).position(|name| name == b"b.jpg").unwrap() + 10;
        for arrived in [&zip[..2], &zip[..within_a_photo]] {
            let folder = used_folder();
            let before = tree(folder.path());
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n";
            let (reply, silent) = silence([head, arrived].concat());
            let server = Server::start(vec![reply]);
            let (task, _said) = task();
            let cancel = task.cancel.clone();
            let canceller = std::thread::spawn(move || {
                silent.recv().unwrap();
                cancel.cancel();
            });
            let source = Source {
                toml_text: TOML,
                photos: Photos::Text(&server.url()),
                trigger_word: "sks",
                options: &Options::default(),
                buckets: &[],
            };
            assert!(matches!(
                prepare(folder.path(), &source, &DatasetLimits::default(), &task),
                Err(Error::Cancelled)
            ));
            canceller.join().unwrap();
            assert_eq!(tree(folder.path()), before);
        }
    }

    #[test]
    fn many_photos_are_placed_as_few_are() {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..1500).map(|number| format!("{number}.jpg")).collect();
        let zip = zip_of(names.iter().map(|name| (name.as_str(), shaded_jpeg(1))));
        let server = Server::start(vec![ok("", &zip)]);
        run(folder.path(), &server.url()).0.unwrap();
        let images = Layout::new(folder.path()).images();
        assert_eq!(fs::read_dir(&images).unwrap().count(), 3000);
        for name in names {
            let photo = images.join(name);
            assert_eq!(fs::read(&photo).unwrap(), shaded_jpeg(1));
            assert_eq!(fs::read(photo.with_extension("txt")).unwrap(), b"sks");
        }
    }

    /// A version that another one takes the place of, in the middle of the download.
    fn replaced_on_the_way(first: &[u8], headers: &str, second: &[u8]) -> Server {
        let head = format!("200 OK\r\nETag: \"one\"\r\nContent-Length: {}", first.len());
        let cut = answer(&head, &first[..first.len() - first.len() / 8]);
        Server::start(vec![cut, ok(headers, second)])
    }

    fn gzipped(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    const GZIP: &str = "\r\nContent-Encoding: gzip";

    #[test]
    fn nothing_stays_of_a_version_that_is_replaced_on_the_way() {
        let names: Vec<String> = (0..300).map(|number| format!("{number}.jpg")).collect();
        let first = zip_of(names.iter().map(|name| (name.as_str(), shaded_jpeg(1))));
        let second = zip_of([("2.JPG", shaded_jpeg(2)), ("new.jpg", shaded_jpeg(3))]);
        let encoded = gzipped(&second);
        for (headers, body) in [("\r\nETag: \"two\"", &second), (GZIP, &encoded)] {
            let folder = tempfile::tempdir().unwrap();
            let server = replaced_on_the_way(&first, headers, body);
            run(folder.path(), &server.url()).0.unwrap();
            assert_eq!(server.requests().len(), 2);
            let images = tree(&Layout::new(folder.path()).images());
            let names: Vec<&String> = images.keys().collect();
            assert_eq!(names, ["2.JPG", "2.txt", "new.jpg", "new.txt"]);
            assert_eq!(images["2.JPG"], shaded_jpeg(2));
        }
    }

    /// What is not as it seemed on the way lies under its name at first.
    #[test]
    fn photos_that_are_called_otherwise_in_the_end_change_places() {
        let folder = tempfile::tempdir().unwrap();
        let zip = zip_of([
            ("z/a.jpg", shaded_jpeg(1)),
            ("a_2.jpg", shaded_jpeg(2)),
            ("a.jpeg", shaded_jpeg(3)),
            ("A.jpg", shaded_jpeg(4)),
        ]);
        run_with(folder.path(), &zip).0.unwrap();
        let images = tree(&Layout::new(folder.path()).images());
        let photos = [
            ("A.jpg", 4),
            ("a_2.jpg", 2),
            ("a_3.jpeg", 3),
            ("a_4.jpg", 1),
        ];
        for (name, shade) in photos {
            assert_eq!(images[name], shaded_jpeg(shade), "{name}");
        }
        assert_eq!(images.len(), 8, "{:?}", images.keys());
    }

    #[test]
    fn a_caption_that_cannot_be_written_ends_the_download() {
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path().join("images");
        let staging = folder.path().join("extracted");
        for folder in [&images, &staging, &images.join("7.txt")] {
            fs::create_dir(folder).unwrap();
        }
        let names: Vec<String> = (0..300).map(|number| format!("{number}.jpg")).collect();
        let zip = zip_of(names.iter().map(|name| (name.as_str(), shaded_jpeg(1))));
        let server = Server::start(vec![ok("", &zip)]);
        let zip = folder.path().join("images.zip");
        let to = Arrival::create(&zip, &staging, &Limits::default(), true).unwrap();
        let url = RedactedUrl::parse(&server.url()).unwrap();
        let patience = Patience::default();
        let result = download_captioning(&url, to, &images, "sks", &patience, &task().0);
        let message = result.unwrap_err().to_string();
        assert!(message.contains("7.txt"), "{message}");
    }

    #[test]
    fn a_swap_that_cannot_begin_is_undone() {
        let folder = used_folder();
        let before = tree(folder.path());
        let layout = Layout::new(folder.path());
        // In the way of the folder that the old dataset would be moved to.
        fs::write(layout.old().0, "").unwrap();
        let staging = Staging::create(layout.staging()).unwrap();
        fs::write(staging.0.photos_json(), "new").unwrap();
        fs::write(staging.0.dataset_toml(), "new").unwrap();
        swap_in(&layout).unwrap_err();
        assert_eq!(tree(folder.path()), before);
    }

    #[test]
    fn photos_land_flat_each_with_its_caption() {
        let folder = tempfile::tempdir().unwrap();
        let zip = zip_of([
            ("IMG.JPG", shaded_jpeg(1)),
            ("img/IMG.txt", b"somebody's caption".to_vec()),
            ("a.jpg", shaded_jpeg(2)),
            ("sub/a.jpeg", shaded_jpeg(3)),
            ("my.jpg.photo.jpg", shaded_jpeg(4)),
            ("../up.Jpg", shaded_jpeg(5)),
            ("picture.jpg", png(8, 8)),
            ("__MACOSX/._a.jpg", vec![0]),
        ]);
        let (result, said) = run_with(folder.path(), &zip);
        result.unwrap();
        let images = tree(&Layout::new(folder.path()).images());
        let photos = [
            ("IMG.JPG", shaded_jpeg(1)),
            ("a.jpg", shaded_jpeg(2)),
            ("a_2.jpeg", shaded_jpeg(3)),
            ("my.jpg.photo.jpg", shaded_jpeg(4)),
            ("up.jpg", shaded_jpeg(5)),
            ("picture.jpg", png(8, 8)),
        ];
        for (name, content) in &photos {
            assert_eq!(images.get(*name), Some(content), "{name}");
            let caption = format!("{}.txt", name.rsplit_once('.').unwrap().0);
            assert_eq!(
                images.get(&caption).map(Vec::as_slice),
                Some(b"sks".as_slice()),
                "{caption}"
            );
        }
        assert_eq!(images.len(), 12);
        let said = lines(&said, Level::Info);
        for line in [
            "renamed sub/a.jpeg to a_2.jpeg",
            "renamed ../up.Jpg to up.jpg",
            "images kept=6 removed=2",
        ] {
            assert!(
                said.iter().any(|said| said.contains(line)),
                "{line:?} is wanted: {said:?}"
            );
        }
    }

    #[test]
    fn a_photo_that_cannot_open_is_left_out_where_others_open() {
        let folder = tempfile::tempdir().unwrap();
        let zip = zip_of([
            ("good.jpg", jpeg(64, 48)),
            ("cut.jpg", jpeg(64, 48)[..30].to_vec()),
            ("text.jpg", b"fake".into()),
        ]);
        let (result, said) = run_with(folder.path(), &zip);
        result.unwrap();
        assert_eq!(
            names(&Layout::new(folder.path()).images()),
            ["good.jpg", "good.txt"]
        );
        let said: Vec<_> = said.try_iter().collect();
        let warnings: Vec<_> = said
            .iter()
            .filter(|line| line.level == Level::Warning)
            .collect();
        assert!(
            warnings.len() == 2
                && warnings[0].text.contains("cut.jpg")
                && warnings[1].text.contains("text.jpg"),
            "{warnings:?}"
        );
        assert!(
            said.iter()
                .any(|line| line.text.contains("kept=1 removed=2")),
            "{said:?}"
        );
    }

    #[test]
    fn stand_ins_for_photos_are_all_kept_with_one_warning() {
        let folder = tempfile::tempdir().unwrap();
        let (result, said) = run_with(
            folder.path(),
            &zip_of([("a.jpg", b"fake".to_vec()), ("b.jpg", b"fake".to_vec())]),
        );
        result.unwrap();
        assert_eq!(
            names(&Layout::new(folder.path()).images()),
            ["a.jpg", "a.txt", "b.jpg", "b.txt"]
        );
        assert_eq!(lines(&said, Level::Warning).len(), 1);
    }

    #[test]
    fn an_empty_dataset_says_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let zip = zip_of([(".hidden.jpg", jpeg(64, 48)), ("in/b.png", png(1, 1))]);
        let (result, said) = run_with(folder.path(), &zip);
        let error = result.unwrap_err();
        let start = format!(
            "Dataset is empty after extraction/filtering. images_dir={}/images.",
            folder.path().display()
        );
        assert!(
            matches!(error, Error::InvalidValue(_)) && error.to_string().starts_with(&start),
            "{error}"
        );
        assert!(
            error
                .to_string()
                .contains(".hidden.jpg (its name begins with a dot")
                && error.to_string().contains("in/b.png"),
            "{error}"
        );
        assert_eq!(lines(&said, Level::Warning).len(), 2);
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn links_and_files_in_the_place_of_folders_are_replaced_themselves() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = used_folder();
        let before = tree(elsewhere.path());
        let layout = Layout::new(folder.path());
        std::os::unix::fs::symlink(elsewhere.path().join("images"), layout.images()).unwrap();
        std::os::unix::fs::symlink(elsewhere.path().join("dataset.toml"), layout.dataset_toml())
            .unwrap();
        std::os::unix::fs::symlink(elsewhere.path().join("nowhere"), layout.staging().0).unwrap();
        fs::write(layout.cache(), "a file").unwrap();
        run_with(folder.path(), &new_zip()).0.unwrap();
        assert_eq!(names(folder.path()), NEW);
        assert_eq!(tree(elsewhere.path()), before);
    }

    /// Every state that a run killed in the swap can leave, made by stopping the swap's renames one by one.
    fn stopped_swaps() -> impl Iterator<Item = (tempfile::TempDir, String)> {
        let states = (0..=4)
            .map(|aside| (aside, 0))
            .chain((1..=4).map(|moved_in| (4, moved_in)));
        states.map(|(moved_aside, moved_in)| {
            let folder = used_folder();
            let layout = Layout::new(folder.path());
            let ready = layout.ready();
            fs::create_dir(&ready.0).unwrap();
            fs::create_dir(ready.images()).unwrap();
            fs::create_dir(ready.cache()).unwrap();
            fs::write(ready.images().join("new.jpg"), "new").unwrap();
            fs::write(ready.images().join("new.txt"), "new").unwrap();
            fs::write(ready.photos_json(), "new").unwrap();
            fs::write(ready.dataset_toml(), "new").unwrap();
            let aside = layout.parts().into_iter().zip(layout.old().parts());
            for (part, aside) in aside.rev().take(moved_aside) {
                set_aside(&part, &aside).unwrap();
            }
            for (new, part) in ready.parts().iter().zip(layout.parts()).take(moved_in) {
                rename(new, &part).unwrap();
            }
            (folder, format!("{moved_aside} aside, {moved_in} in"))
        })
    }

    #[test]
    fn a_swap_that_was_killed_is_finished() {
        for (folder, state) in stopped_swaps() {
            recover(folder.path()).unwrap();
            assert_eq!(names(folder.path()), NEW, "{state}");
            let layout = Layout::new(folder.path());
            for part in [layout.dataset_toml(), layout.photos_json()] {
                assert_eq!(fs::read(part).unwrap(), b"new", "{state}");
            }
        }
    }

    #[test]
    fn what_cannot_be_moved_is_copied_whole() {
        let folder = used_folder();
        let before = tree(folder.path());
        std::os::unix::fs::symlink("nowhere", folder.path().join("images/link")).unwrap();
        let other = tempfile::tempdir().unwrap();
        for part in ["images", "cache", "photos.json", "dataset.toml"] {
            copy(&folder.path().join(part), &other.path().join(part)).unwrap();
        }
        assert_eq!(
            fs::read_link(other.path().join("images/link")).unwrap(),
            Path::new("nowhere")
        );
        fs::remove_file(other.path().join("images/link")).unwrap();
        assert_eq!(tree(other.path()), before);
    }

    #[test]
    fn a_swap_that_fails_is_undone() {
        let before = tree(used_folder().path());
        for (folder, state) in stopped_swaps() {
            move_out(&Layout::new(folder.path())).unwrap();
            assert_eq!(tree(folder.path()), before, "{state}");
        }
    }

    #[test]
    fn what_is_left_of_an_old_dataset_does_not_come_back() {
        let folder = used_folder();
        let layout = Layout::new(folder.path());
        fs::create_dir_all(layout.old().cache()).unwrap();
        fs::write(layout.old().cache().join("older"), "").unwrap();
        fs::remove_dir_all(layout.cache()).unwrap();
        let before = tree(folder.path());
        recover(folder.path()).unwrap();
        let is_of_the_dataset = |(name, _): &(String, _)| !name.starts_with(".dataset-old/");
        assert_eq!(
            tree(folder.path()),
            before.into_iter().filter(is_of_the_dataset).collect()
        );
    }

    mod properties {
        use proptest::prelude::*;
        use zip::CompressionMethod;
        use zip::write::SimpleFileOptions;

        use super::*;

        fn holds(zip: &[u8]) -> Result<(), TestCaseError> {
            let all = Options {
                captions: Captions::Files { default: None },
                extensions: Extensions::of(EXTENSIONS).unwrap(),
                ..Options::default()
            };
            holds_for(zip, &Options::default())?;
            holds_for(zip, &all)
        }

        /// Taken out on the way, all at the end or read where it lies: it is the same folder, or the same refusal.
        fn holds_for(zip: &[u8], options: &Options) -> Result<(), TestCaseError> {
            let images = |photos: Photos<'_>| {
                let folder = tempfile::tempdir().unwrap();
                let result = run_of(folder.path(), photos, options).0;
                let images = Layout::new(folder.path()).images();
                result
                    .map(|()| tree(&images))
                    .map_err(|error| std::mem::discriminant(&error))
            };
            let served = |reply| images(Photos::Text(&Server::start(vec![reply]).url()));
            let at_the_end = served(ok(GZIP, &gzipped(zip)));
            prop_assert_eq!(&served(ok("", zip)), &at_the_end);
            let mut here = tempfile::NamedTempFile::new().unwrap();
            here.write_all(zip).unwrap();
            prop_assert_eq!(&images(Photos::Path(here.path())), &at_the_end);
            prop_assert_eq!(fs::read(here.path()).unwrap(), zip);
            let Ok(images) = at_the_end else {
                return Ok(());
            };
            let photos = images
                .keys()
                .filter(|name| name.strip_suffix(".txt").is_none());
            for photo in photos.clone() {
                let caption = images.get(&format!("{}.txt", photo.rsplit_once('.').unwrap().0));
                let caption = caption.map(|caption| String::from_utf8(caption.clone()).unwrap());
                let expected = match &options.captions {
                    Captions::TriggerWord => caption.as_deref() == Some("sks"),
                    Captions::Files { .. } => caption.is_some_and(|it| it.starts_with("sks")),
                };
                prop_assert!(expected, "{photo}");
            }
            prop_assert_eq!(images.len(), 2 * photos.count());
            Ok(())
        }

        #[test]
        fn every_zip_of_the_corpus_holds() {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/archive");
            for file in fs::read_dir(folder).unwrap() {
                let path = file.unwrap().path();
                holds(&fs::read(&path).unwrap())
                    .unwrap_or_else(|error| panic!("{path:?}: {error}"));
            }
        }

        /// Of few letters, so that they meet.
        fn name() -> impl Strategy<Value = String> {
            "(b/|__MACOSX/)?[aAb]{1,2}(_2|é|E\u{301})?\\.(jpg|JPG|jpeg|png|txt|TXT)"
        }

        fn content() -> impl Strategy<Value = Vec<u8>> {
            prop_oneof![
                4 => any::<u8>().prop_map(shaded_jpeg),
                1 => Just(b"fake".to_vec()),
                1 => Just(b"sks in Windows-1252: \xe9".to_vec()),
                1 => Just(Vec::new()),
            ]
        }

        proptest! {
            #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

            #[test]
            fn generated_zips_hold(
                files in prop::collection::btree_map(name(), (content(), any::<bool>()), 0..12),
                twin in any::<prop::sample::Index>(),
                has_twins in any::<bool>(),
            ) {
                let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
                for (name, (content, is_stored)) in &files {
                    let method = if *is_stored {
                        CompressionMethod::Stored
                    } else {
                        CompressionMethod::Deflated
                    };
                    let options = SimpleFileOptions::default().compression_method(method);
                    writer.start_file(name.as_str(), options).unwrap();
                    writer.write_all(content).unwrap();
                }
                let mut zip = writer.finish().unwrap().into_inner();
                // The same name twice: of two names of one length, one takes the other's.
                if let Some(from) = files.keys().nth(twin.index(files.len().max(1))) {
                    let to = files.keys().find(|to| *to != from && to.len() == from.len());
                    if let Some(to) = to.filter(|_| has_twins) {
                        for at in 0..zip.len() - from.len() {
                            if zip[at..].starts_with(from.as_bytes()) {
                                zip[at..at + to.len()].copy_from_slice(to.as_bytes());
                            }
                        }
                    }
                }
                holds(&zip)?;
            }
        }
    }
}
