//! Photos put right, as Musubi Tuner takes every photo to be: upright, opaque, RGB of 8 bits. And what else is to be
//! said of them before they are trained on.

mod bucket;
mod crew;
mod picture;
mod sight;

use std::fmt::{self, Display};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::json;

use super::image::{Format, Header};
use super::listed;
use crate::disk;
use crate::error::Error;
use crate::task::{LogLine, Task};
pub use bucket::Buckets;
use picture::Picture;
use sight::Sight;

/// The photos that have a log line of their own; behind them there is a count.
const MOST_LINES: usize = 30;

/// What is wanted beside what every photo gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Turned as EXIF asks for, which Musubi Tuner ignores.
    pub upright: bool,
    /// Every photo is decoded, and told of where it is blurred, black, or nearly another one.
    pub is_looked_at: bool,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            upright: true,
            is_looked_at: false,
        }
    }
}

/// What became of a photo, for `photos.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhotoRecord {
    /// Where it is from.
    pub entry_name: String,
    /// What it is called in the dataset.
    pub name: String,
    pub header: Header,
    /// `trigger`, `file` or `default_caption`.
    pub caption_from: &'static str,
    pub done: Vec<String>,
    pub warnings: Vec<String>,
}

impl PhotoRecord {
    #[must_use]
    pub fn new(
        entry_name: String,
        name: String,
        header: Header,
        caption_from: &'static str,
    ) -> Self {
        let base = entry_name.rsplit('/').next();
        let done = match base {
            Some(base) if base != name => vec![format!("renamed from {base}")],
            _ => Vec::new(),
        };
        Self {
            entry_name,
            name,
            header,
            caption_from,
            done,
            warnings: Vec::new(),
        }
    }

    fn write(&self, file: &mut impl Write) -> io::Result<()> {
        let side = |pixels: u32| json!((pixels > 0).then_some(pixels));
        write!(
            file,
            r#"{{"file":{},"from":{},"width":{},"height":{},"caption_from":{},"done":{},"warnings":{}}}"#,
            json!(self.name),
            json!(self.entry_name),
            side(self.header.width),
            side(self.header.height),
            json!(self.caption_from),
            json!(self.done),
            json!(self.warnings),
        )
    }
}

/// Writes the record of the photos: JSON, a line for each.
///
/// # Errors
/// [`Error::Io`].
pub fn write_records(path: &Path, records: &[PhotoRecord]) -> Result<(), Error> {
    let write = || {
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(b"{\"photos\": [")?;
        for (number, record) in records.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            writeln!(file, "{comma}")?;
            record.write(&mut file)?;
        }
        file.write_all(b"\n]}\n")?;
        file.flush()
    };
    write().map_err(disk::failed("write", path))
}

/// What a photo needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// By EXIF's number.
    Turned(u8),
    Opaque,
    Rgb,
    Shallow,
}

impl Change {
    /// Where a photo may need them; whether it is transparent shows only in what it holds.
    fn asked_for(header: &Header, wanted: Wanted) -> Vec<Self> {
        let turned = wanted.upright && header.orientation > 1;
        let changes = [
            (turned, Self::Turned(header.orientation)),
            (header.has_alpha, Self::Opaque),
            (header.is_cmyk, Self::Rgb),
            (header.is_deep, Self::Shallow),
        ];
        let asked_for = changes
            .into_iter()
            .filter(|(is_asked_for, _)| *is_asked_for);
        asked_for.map(|(_, change)| change).collect()
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Turned(_) => "turned upright",
            Self::Opaque => "laid on white",
            Self::Rgb => "converted to RGB",
            Self::Shallow => "converted to 8 bits",
        }
    }

    fn reason(self) -> String {
        match self {
            Self::Turned(orientation) => format!("EXIF orientation {orientation}"),
            Self::Opaque => "transparency".to_owned(),
            Self::Rgb => "CMYK".to_owned(),
            Self::Shallow => "16 bits".to_owned(),
        }
    }
}

impl Display for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.verb(), self.reason())
    }
}

/// All of them around a name: "turned upright a.jpg (EXIF orientation 6)".
fn sentence(changes: &[Change], name: &str) -> String {
    let verbs: Vec<&str> = changes.iter().map(|change| change.verb()).collect();
    let reasons: Vec<String> = changes.iter().map(|change| change.reason()).collect();
    format!("{} {name} ({})", verbs.join(" and "), reasons.join(", "))
}

/// What came of a photo that was decoded.
struct Outcome {
    changes: Vec<Change>,
    name: Option<String>,
    size: (u32, u32),
    sight: Option<Sight>,
}

/// Puts the photos in `images` right where they need it, on all cores, and says so; the others keep their bytes. What is
/// written is written in `beside`, a folder on the same disk, and renamed.
///
/// # Errors
/// [`Error::Io`], [`Error::Cancelled`]. A photo that cannot be decoded is left as it is.
pub fn put_right(
    records: &mut [PhotoRecord],
    images: &Path,
    beside: &Path,
    wanted: Wanted,
    buckets: &[Buckets],
    task: &Task<LogLine>,
) -> Result<(), Error> {
    let is_decoded = |record: &PhotoRecord| {
        let header = &record.header;
        header.format != Format::Other
            && (wanted.is_looked_at || !Change::asked_for(header, wanted).is_empty())
    };
    let jobs: Vec<usize> = (0..records.len())
        .filter(|index| is_decoded(&records[*index]))
        .collect();
    if jobs.len() > MOST_LINES {
        task.info(format!(
            "[dataset] decoding {} of {} photos",
            jobs.len(),
            records.len()
        ))?;
    }
    let mut outcomes = Vec::new();
    let mut lines = Lines::default();
    let costs: Vec<u64> = jobs
        .iter()
        .map(|index| picture::bytes(&records[*index].header))
        .collect();
    let work = |job: usize| {
        let record = &records[jobs[job]];
        let aside = beside.join(format!("right{job}"));
        redone(record, images, &aside, wanted, task)
    };
    crew::run(&costs, work, |job, outcome| {
        lines.tell(&records[jobs[job]], wanted, &outcome, task)?;
        outcomes.push(outcome);
        Ok(())
    })?;
    lines.end(task)?;
    let mut sights = Vec::new();
    for (index, outcome) in jobs.into_iter().zip(outcomes) {
        let record = &mut records[index];
        match outcome {
            Ok(outcome) => {
                (record.header.width, record.header.height) = outcome.size;
                record.name = outcome.name.unwrap_or_else(|| record.name.clone());
                let done = outcome.changes.iter().map(Change::to_string);
                record.done.extend(done);
                sights.extend(outcome.sight.map(|sight| (index, sight)));
            }
            Err(reason) => record.warnings.push(reason),
        }
    }
    warn_of_sizes(records, buckets, task)?;
    warn_of_sights(records, &sights, task)
}

/// The photo decoded, put right and written again where it needs that; or why it cannot be decoded.
fn redone(
    record: &PhotoRecord,
    images: &Path,
    aside: &Path,
    wanted: Wanted,
    task: &Task<LogLine>,
) -> Result<Result<Outcome, String>, Error> {
    task.check()?;
    let path = images.join(&record.name);
    let mut picture = match Picture::decoded(&path, &record.header) {
        Ok(picture) => picture,
        Err(reason) => return Ok(Err(format!("it cannot be decoded: {reason}"))),
    };
    task.check()?;
    let mut changes = Change::asked_for(&record.header, wanted);
    changes.retain(|change| picture.change(*change));
    let mut name = None;
    if !changes.is_empty() {
        let is_jpeg = record.header.format == Format::Jpeg;
        if let Err(reason) = picture.write(is_jpeg, aside, task)? {
            return Ok(Err(format!("it cannot be written again: {reason}")));
        }
        if !is_jpeg && !record.name.to_lowercase().ends_with(".png") {
            name = Some(Path::new(&record.name).with_extension("png"));
        }
        let to = name.as_ref().map_or(path.clone(), |name| images.join(name));
        fs::rename(aside, &to).map_err(Error::io("name a photo", &to))?;
        if name.is_some() {
            disk::remove(&path)?;
        }
    }
    Ok(Ok(Outcome {
        changes,
        name: name.map(|name| name.display().to_string()),
        size: picture.size(),
        sight: wanted.is_looked_at.then(|| picture.sight()),
    }))
}

/// What is said of single photos, of which there may be many.
#[derive(Default)]
struct Lines {
    said: usize,
    changed: usize,
    left: usize,
}

impl Lines {
    fn tell(
        &mut self,
        record: &PhotoRecord,
        wanted: Wanted,
        outcome: &Result<Outcome, String>,
        task: &Task<LogLine>,
    ) -> Result<(), Error> {
        let name = &record.name;
        let asked_for = Change::asked_for(&record.header, wanted);
        if outcome
            .as_ref()
            .is_ok_and(|outcome| outcome.changes.is_empty())
        {
            return Ok(());
        }
        if self.said == MOST_LINES {
            *(if outcome.is_ok() {
                &mut self.changed
            } else {
                &mut self.left
            }) += 1;
            return Ok(());
        }
        self.said += 1;
        match outcome {
            Ok(outcome) => {
                let now = outcome.name.iter().map(|name| format!(", now {name}"));
                let now: String = now.collect();
                task.info(format!(
                    "[dataset] {}{now}",
                    sentence(&outcome.changes, name)
                ))
            }
            Err(reason) if asked_for.is_empty() => {
                task.warn(format!("[dataset] did not look at {name}: {reason}"))
            }
            Err(reason) => task.warn(format!(
                "[dataset] left {name} as it is, which was to be {}: {reason}",
                asked_for
                    .iter()
                    .map(Change::to_string)
                    .collect::<Vec<_>>()
                    .join(", ")
            )),
        }
    }

    fn end(&self, task: &Task<LogLine>) -> Result<(), Error> {
        if self.changed > 0 {
            task.info(format!(
                "[dataset] put {} more photos right: photos.json in the training folder says which",
                self.changed
            ))?;
        }
        if self.left > 0 {
            task.warn(format!(
                "[dataset] {} more photos cannot be decoded and are left as they are: photos.json in the training \
                 folder says which",
                self.left
            ))?;
        }
        Ok(())
    }
}

fn warn_of_sizes(
    records: &mut [PhotoRecord],
    buckets: &[Buckets],
    task: &Task<LogLine>,
) -> Result<(), Error> {
    let mut enlarged = Vec::new();
    let mut refused = Vec::new();
    for record in records {
        let size = (record.header.width, record.header.height);
        let misfit = buckets.iter().find_map(|buckets| buckets.misfit(size));
        if let Some(misfit) = misfit {
            let text = misfit.to_string();
            let named = format!("{} ({text})", record.name);
            (if misfit.is_refused() {
                &mut refused
            } else {
                &mut enlarged
            })
            .push(named);
            record.warnings.push(text);
        }
    }
    if !refused.is_empty() {
        task.warn(format!(
            "[dataset] Musubi Tuner will stop on {}: remove them, put larger ones in their place, or leave \
             bucket_no_upscale out of the dataset TOML",
            listed(&refused)
        ))?;
    }
    if !enlarged.is_empty() {
        task.warn(format!(
            "[dataset] too small for the resolution in the dataset TOML, so that the LoRA learns their blur: {}. Use \
             larger photos, or a smaller resolution",
            listed(&enlarged)
        ))?;
    }
    Ok(())
}

fn warn_of_sights(
    records: &mut [PhotoRecord],
    sights: &[(usize, Sight)],
    task: &Task<LogLine>,
) -> Result<(), Error> {
    for flaw in sight::FLAWS {
        let mut names = Vec::new();
        for (index, _) in sights.iter().filter(|(_, sight)| sight.flaw == Some(flaw)) {
            names.push(records[*index].name.clone());
            records[*index].warnings.push(format!("it is {flaw}"));
        }
        if !names.is_empty() {
            task.warn(format!("[dataset] {flaw}: {}", listed(&names)))?;
        }
    }
    let groups = sight::near_duplicates(sights, task)?;
    let mut alike = Vec::new();
    for group in groups {
        let names: Vec<String> = group
            .iter()
            .map(|index| records[*index].name.clone())
            .collect();
        for index in group {
            let others = names.iter().filter(|name| **name != records[index].name);
            let others: Vec<String> = others.cloned().collect();
            let warning = format!("it is nearly the same as {}", listed(&others));
            records[index].warnings.push(warning);
        }
        alike.push(listed(&names).replace(", ", " = "));
    }
    if !alike.is_empty() {
        task.warn(format!(
            "[dataset] nearly the same photo several times, which counts more than the others: {}",
            listed(&alike)
        ))?;
    }
    Ok(())
}
