//! Photos put right, as Musubi Tuner takes every photo to be: upright, opaque, RGB of 8 bits. And what else is to be
//! said of them before they are trained on.

mod bucket;
mod change;
mod crew;
mod picture;
mod sight;
mod told;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::json;

use super::image::{Format, Header};
use crate::disk;
use crate::error::Error;
use crate::task::{LogLine, Task};
pub use bucket::Buckets;
use change::Change;
use picture::Picture;
use sight::Sight;
use told::Lines;

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
    told::warn_of_sizes(records, buckets, task)?;
    told::warn_of_sights(records, &sights, task)
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
            let stem = record.name.rsplit_once('.').map(|(stem, _)| stem);
            name = stem.map(|stem| format!("{stem}.png"));
        }
        let to = images.join(name.as_ref().unwrap_or(&record.name));
        fs::rename(aside, &to).map_err(Error::io("name a photo", &to))?;
        if name.is_some() {
            disk::remove(&path)?;
        }
    }
    Ok(Ok(Outcome {
        changes,
        name,
        size: picture.size(),
        sight: wanted.is_looked_at.then(|| picture.sight()),
    }))
}
