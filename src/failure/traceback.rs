//! The exception that ended a Python program, among the tracebacks that it wrote.
//!
//! The last line of a failed training is not its error: behind the training's own traceback comes that of the launcher,
//! which says no more than that the training failed.

use super::{LONGEST_LINE, cut};

const HEADER: &str = "Traceback (most recent call last):";

/// Behind an exception: the next one came of it.
const LINKS: [&str; 2] = [
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
];

/// Before tracebacks of what does not end the program.
const HARMLESS: [&str; 3] = [
    "Exception ignored in",
    "Exception in thread ",
    "--- Logging error ---",
];

const LOG_LEVELS: [&str; 5] = ["DEBUG:", "INFO:", "WARNING:", "ERROR:", "CRITICAL:"];

const LONGEST_CHAIN: usize = 16;

#[derive(Default)]
#[allow(clippy::struct_excessive_bools, reason = "each can be with any other")]
pub struct Tracebacks {
    /// The first exception and those that came of it.
    pub chain: Vec<Raised>,
    /// What the launcher says of how the training ended; negative for a signal.
    pub launched: Option<i32>,
    reading: Option<Block>,
    /// The line before announced a traceback that ended nothing.
    is_harmless: bool,
    /// The last exception belongs to the chain.
    is_in_chain: bool,
    /// The next exception came of the last one.
    is_linked: bool,
    /// The chain's last exception has its text on the line to come.
    is_text_to_come: bool,
}

/// An exception: its line, and where it came from.
#[derive(Debug)]
pub struct Raised {
    pub text: String,
    pub frames: Frames,
}

/// What a traceback leads through.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "a set")]
pub struct Frames {
    pub dataset: bool,
    pub safetensors: bool,
    pub multiprocessing: bool,
    pub tokenizer: bool,
    launcher: bool,
}

struct Block {
    frames: Frames,
    in_chain: bool,
}

impl Tracebacks {
    /// Hears the next line that is no progress bar.
    pub fn hear(&mut self, line: &str) {
        let line = line.trim_end();
        if line.ends_with(HEADER) {
            self.begin(line);
        } else if HARMLESS.iter().any(|sign| line.starts_with(sign)) {
            self.is_harmless = true;
        } else if LINKS.contains(&line) {
            self.is_linked = self.is_in_chain;
        } else if !is_log(line) {
            self.hear_of_exception(line);
            self.is_harmless = false;
        }
    }

    fn begin(&mut self, header: &str) {
        // A data loader's worker failed, which its wrapper's line says too.
        if self.is_in_chain && header.starts_with("Original ") {
            self.chain.pop();
            self.is_linked = true;
        }
        self.reading = Some(Block {
            frames: Frames::default(),
            in_chain: !self.is_harmless && (self.chain.is_empty() || self.is_linked),
        });
        self.is_harmless = false;
        self.is_linked = false;
        self.is_in_chain = false;
        self.is_text_to_come = false;
    }

    fn hear_of_exception(&mut self, line: &str) {
        if std::mem::take(&mut self.is_text_to_come) {
            if let Some(raised) = self.chain.last_mut() {
                raised.text.push(' ');
                raised.text.push_str(&cut(line.trim_start(), LONGEST_LINE));
            }
            return;
        }
        // What C++ says of an exception that nothing caught.
        if let Some(what) = line.strip_prefix("  what():  ") {
            self.raise(what, Frames::default(), self.chain.is_empty());
        }
        let Some(block) = &mut self.reading else {
            return;
        };
        if line.starts_with(' ') {
            block.frames.note(line);
        } else if is_exception(line) {
            let Block { frames, in_chain } = *block;
            self.reading = None;
            if frames.launcher && line.starts_with("subprocess.CalledProcessError: ") {
                self.launched = self.launched.or_else(|| exit_of(line));
            } else {
                self.raise(line, frames, in_chain);
            }
        }
    }

    fn raise(&mut self, text: &str, frames: Frames, in_chain: bool) {
        self.is_in_chain = in_chain;
        if in_chain && self.chain.len() < LONGEST_CHAIN {
            self.is_text_to_come = text.ends_with(':');
            self.chain.push(Raised {
                text: cut(text, LONGEST_LINE),
                frames,
            });
        }
    }

    #[cfg(test)]
    pub fn held_bytes(&self) -> usize {
        self.chain.iter().map(|raised| raised.text.len()).sum()
    }
}

impl Raised {
    /// Whether the exception has one of the texts.
    pub fn says(&self, texts: &[&str]) -> bool {
        texts.iter().any(|text| self.text.contains(text))
    }
}

impl Frames {
    fn note(&mut self, line: &str) {
        let Some(file) = line.strip_prefix("  File \"") else {
            return;
        };
        let file = file.split('"').next().unwrap_or_default();
        self.dataset |= file.contains("/musubi_tuner/dataset/");
        self.safetensors |= file.contains("safetensors");
        self.multiprocessing |= file.contains("/multiprocessing/");
        self.tokenizer |= file.contains("/transformers/") && file.contains("token");
        self.launcher |= file.ends_with("/accelerate/commands/launch.py");
    }
}

/// Whether a line is one that Python's `logging` writes by default.
pub fn is_log(line: &str) -> bool {
    LOG_LEVELS.iter().any(|level| line.starts_with(level))
}

/// Whether an unindented line of a traceback is its exception: `ValueError: …`, `struct.error: …`, `MemoryError`.
fn is_exception(line: &str) -> bool {
    let (kind, _) = line
        .split_once(": ")
        .unwrap_or((line.trim_end_matches(':'), ""));
    let name = kind.rsplit('.').next().unwrap_or(kind);
    let is_path = kind
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_'));
    let is_dotted_class =
        name.len() < kind.len() && name.starts_with(|first: char| first.is_ascii_uppercase());
    is_path
        && (is_dotted_class
            || ["rror", "xception", "Interrupt", "Exit", "Iteration"]
                .iter()
                .any(|part| name.contains(part)))
}

/// The end of `… returned non-zero exit status 1.` or `… died with <Signals.SIGKILL: 9>.`
fn exit_of(line: &str) -> Option<i32> {
    let digits = |text: &str| text.trim_end_matches(['.', '>']).parse().ok();
    if let Some((_, status)) = line.rsplit_once(" returned non-zero exit status ") {
        return digits(status);
    }
    let (_, signal) = line.rsplit_once(" died with <Signals.")?;
    digits(signal.rsplit(": ").next()?).map(|signal: i32| -signal)
}
