//! What is said of the photos: lines for some, then counts; and a warning for each thing that is wrong with some.

use super::bucket::{Buckets, Misfit};
use super::change::{Change, sentence};
use super::sight::{self, Sight};
use super::{MOST_LINES, Outcome, PhotoRecord, Wanted};
use crate::dataset::listed;
use crate::error::Error;
use crate::task::{LogLine, Task};

/// What is said of single photos, of which there may be many.
#[derive(Default)]
pub struct Lines {
    said: usize,
    changed: usize,
    left: usize,
}

impl Lines {
    pub fn tell(
        &mut self,
        record: &PhotoRecord,
        wanted: Wanted,
        outcome: &Result<Outcome, String>,
        task: &Task<LogLine>,
    ) -> Result<(), Error> {
        let name = &record.name;
        let asked_for = Change::asked_for(&record.header, wanted);
        let behind = match outcome {
            Ok(outcome) if outcome.changes.is_empty() => return Ok(()),
            Ok(_) => &mut self.changed,
            Err(_) => &mut self.left,
        };
        if self.said == MOST_LINES {
            *behind += 1;
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
            Err(reason) => {
                let asked_for: Vec<String> = asked_for.iter().map(Change::to_string).collect();
                task.warn(format!(
                    "[dataset] left {name} as it is, which was to be {}: {reason}",
                    asked_for.join(", ")
                ))
            }
        }
    }

    pub fn end(&self, task: &Task<LogLine>) -> Result<(), Error> {
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

pub fn warn_of_sizes(
    records: &mut [PhotoRecord],
    buckets: &[Buckets],
    task: &Task<LogLine>,
) -> Result<(), Error> {
    let mut enlarged = Vec::new();
    let mut refused = Vec::new();
    for record in records {
        let size = (record.header.width, record.header.height);
        if let Some(misfit) = buckets.iter().find_map(|buckets| buckets.misfit(size)) {
            let named = format!("{} ({misfit})", record.name);
            match misfit {
                Misfit::Enlarged { .. } => enlarged.push(named),
                Misfit::Refused { .. } => refused.push(named),
            }
            record.warnings.push(misfit.to_string());
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

pub fn warn_of_sights(
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
