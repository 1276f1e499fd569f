//! What can be known before a run: each check with what was found, what was expected, and the mend. Nothing is changed.

pub mod archive;
pub mod clone;
pub mod environment;
pub mod folders;
pub mod gpu;
pub mod memory;
pub mod packages;
pub mod tokenizer;
mod versions;
pub mod weights;

use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    /// The run may go wrong, or not do what is meant.
    Warning,
    /// The run will fail.
    Error,
}

/// One row of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: String,
    pub verdict: Verdict,
    pub found: String,
    pub expected: String,
    /// What to do; empty where all is well.
    pub mend: String,
}

impl Check {
    /// For an error or a line of the log.
    #[must_use]
    pub fn in_words(&self) -> String {
        format!(
            "{}: {}; expected {}. To mend it: {}",
            self.name, self.found, self.expected, self.mend
        )
    }
}

/// A check that has no answer yet.
#[derive(Clone, Debug)]
pub struct Question {
    name: String,
    expected: String,
}

impl Question {
    pub fn new(name: impl Into<String>, expected: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            expected: expected.into(),
        }
    }

    pub fn ok(self, found: impl Into<String>) -> Check {
        self.answer(Verdict::Ok, found, "")
    }

    pub fn warning(self, found: impl Into<String>, mend: impl Into<String>) -> Check {
        self.answer(Verdict::Warning, found, mend)
    }

    pub fn error(self, found: impl Into<String>, mend: impl Into<String>) -> Check {
        self.answer(Verdict::Error, found, mend)
    }

    pub fn answer(
        self,
        verdict: Verdict,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) -> Check {
        Check {
            name: self.name,
            verdict,
            found: found.into(),
            expected: self.expected,
            mend: mend.into(),
        }
    }
}

/// Environment variables.
pub type Environment = BTreeMap<String, String>;

/// What of the options decides checks; the defaults are those of `TrainingOptions` and `LaunchOptions`.
#[derive(Clone, Debug)]
pub struct Settings {
    pub network_dim: u64,
    pub optimizer_type: String,
    pub attention: String,
    pub mixed_precision: String,
    pub gradient_checkpointing: bool,
    pub fp8_base: bool,
    pub fp8_llm: bool,
    pub blocks_to_swap: u64,
    pub max_train_steps: u64,
    pub save_every_n_steps: Option<u64>,
    /// Of the launcher.
    pub num_processes: Option<u64>,
    pub gpu_ids: Option<String>,
    pub config_file: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            network_dim: 16,
            optimizer_type: "adamw8bit".to_owned(),
            attention: "sdpa".to_owned(),
            mixed_precision: "bf16".to_owned(),
            gradient_checkpointing: true,
            fp8_base: false,
            fp8_llm: false,
            blocks_to_swap: 0,
            max_train_steps: 2000,
            save_every_n_steps: None,
            num_processes: None,
            gpu_ids: None,
            config_file: None,
        }
    }
}

/// "12.3 GB", as disks and downloads have it.
pub fn gigabytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{bytes} bytes"),
        1_000_000..1_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{}.{} GB", bytes / 1_000_000_000, bytes / 100_000_000 % 10),
    }
}

/// "11.4 GiB", as memory has it.
pub fn gibibytes(bytes: u64) -> String {
    let tenths = ((bytes >> 20) * 10) >> 10;
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_in_the_units_of_their_kind() {
        for (bytes, disk, memory) in [
            (0, "0 bytes", "0.0 GiB"),
            (999_999, "999999 bytes", "0.0 GiB"),
            (140_000_000, "140 MB", "0.1 GiB"),
            (12_309_866_400, "12.3 GB", "11.4 GiB"),
            (u64::MAX, "18446744073.7 GB", "17179869183.9 GiB"),
        ] {
            assert_eq!(
                (gigabytes(bytes), gibibytes(bytes)),
                (disk.to_owned(), memory.to_owned())
            );
        }
    }
}
