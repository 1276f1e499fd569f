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
pub struct Tracebacks {
    /// The first exception and those that came of it.
    pub chain: Vec<Raised>,
    /// What the launcher says of how the training ended; negative for a signal.
    pub launched: Option<i32>,
    reading: Option<Block>,
    /// The line before came before a harmless traceback.
    harmless: bool,
    /// The last exception belongs to the chain.
    in_chain: bool,
    /// The next exception came of the last one.
    linked: bool,
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
    /// The exception's line, when its text is still to come.
    text: Option<String>,
}

impl Tracebacks {
    /// Hears the next line that is no progress bar.
    pub fn hear(&mut self, line: &str) {
        let line = line.trim_end();
        if line.ends_with(HEADER) {
            self.begin(line);
            return;
        }
        let harmless = HARMLESS.iter().any(|sign| line.starts_with(sign));
        if harmless || LINKS.contains(&line) {
            self.finish();
            self.harmless = harmless;
            self.linked = !harmless && self.in_chain;
            return;
        }
        if let Some(what) = line
            .strip_prefix("  what():  ")
            .filter(|_| self.chain.is_empty())
        {
            self.chain.push(Raised::new(what, Frames::default()));
        }
        if is_log(line) {
            return;
        }
        let Some(block) = &mut self.reading else {
            self.harmless = false;
            return;
        };
        match &mut block.text {
            Some(text) => {
                text.push(' ');
                text.push_str(&cut(line.trim_start(), LONGEST_LINE));
                self.finish();
            }
            None if line.starts_with(' ') => block.frames.note(line),
            None if is_exception(line) => {
                block.text = Some(cut(line, LONGEST_LINE));
                if block.frames.launcher && line.starts_with("subprocess.CalledProcessError: ") {
                    self.launched = self.launched.or_else(|| exit_of(line));
                    self.reading = None;
                } else if !line.ends_with(':') {
                    self.finish();
                }
            }
            None => {}
        }
    }

    #[cfg(test)]
    pub fn held_bytes(&self) -> usize {
        let reading = self.reading.as_ref().and_then(|block| block.text.as_ref());
        self.chain
            .iter()
            .map(|raised| raised.text.len())
            .sum::<usize>()
            + reading.map_or(0, String::len)
    }

    fn begin(&mut self, header: &str) {
        self.finish();
        // A data loader's worker failed, which its wrapper's line says too.
        if self.in_chain && header.starts_with("Original ") {
            self.chain.pop();
            self.linked = true;
        }
        let in_chain = !self.harmless && (self.chain.is_empty() || self.linked);
        self.reading = Some(Block {
            frames: Frames::default(),
            in_chain,
            text: None,
        });
        (self.harmless, self.linked, self.in_chain) = (false, false, false);
    }

    /// The exception is known as far as it will be.
    fn finish(&mut self) {
        let Some(Block {
            frames,
            in_chain,
            text: Some(text),
        }) = self.reading.take()
        else {
            return;
        };
        self.in_chain = in_chain;
        if in_chain && self.chain.len() < LONGEST_CHAIN {
            self.chain.push(Raised { text, frames });
        }
    }
}

impl Raised {
    pub fn new(text: &str, frames: Frames) -> Self {
        Self {
            text: cut(text, LONGEST_LINE),
            frames,
        }
    }

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
