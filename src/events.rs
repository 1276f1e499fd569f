//! What happens in a run: each event a line of JSON, for `events.jsonl`, for whoever listens, and for the record.
//!
//! The format is that of `run_events.py`, which documents it.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use crate::task::lock_of;

/// In the training folder.
pub const FILE: &str = "events.jsonl";
/// In the training folder, once the run has ended.
pub const RECORD: &str = "run.json";

/// From here on, the record goes without more of what comes by the thousands.
const MOST_KEPT_BYTES: usize = 64 << 20;

/// From here on, a listener that is behind goes without more of it.
const MOST_WAITING: usize = 10_000;

/// Something that happens.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// With members that are ready made.
    Started(&'a Map<String, Value>),
    StepStarted {
        step: &'a str,
        argv: &'a [String],
    },
    StepFinished {
        step: &'a str,
        /// Where its begin had none.
        argv: &'a [String],
        duration: Duration,
        exit_code: Option<i32>,
        photos: &'a [Value],
    },
    Progress(Progress<'a>),
    Checkpoint {
        path: &'a Path,
        step: Option<u64>,
        bytes: u64,
    },
    Sample {
        path: &'a Path,
        step: Option<u64>,
        epoch: Option<u64>,
        prompt: Option<&'a str>,
    },
    Warning(&'a str),
    Gpu {
        used_bytes: u64,
        total_bytes: u64,
        utilisation_percent: Option<u32>,
    },
    Retry {
        attempt: u32,
        wait: Duration,
        reason: &'a str,
    },
    Error {
        is_cancelled: bool,
        class: &'a str,
        message: &'a str,
        reason: Option<&'a str>,
        step: Option<&'a str>,
    },
    Done {
        outputs: &'a [Value],
    },
}

/// How far a step is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress<'a> {
    pub step: &'a str,
    pub done: u64,
    pub total: Option<u64>,
    pub average_loss: Option<f64>,
    /// A second.
    pub rate: Option<f64>,
}

impl Progress<'_> {
    #[must_use]
    pub fn seconds_left(&self) -> Option<f64> {
        let left = self.total?.saturating_sub(self.done);
        #[expect(clippy::cast_precision_loss, reason = "of steps")]
        let seconds = left as f64 / self.rate?;
        Some((seconds * 10.0).round() / 10.0)
    }
}

/// A line in the making.
struct Line(String);

impl Line {
    fn new(event: &str, at: SystemTime, seconds: f64) -> Self {
        let at = iso(at);
        Self(format!(
            r#"{{"event": "{event}", "at": "{at}", "seconds": {seconds:.3}"#
        ))
    }

    fn member(&mut self, name: &str, value: impl Into<Value>) -> &mut Self {
        let value = value.into().to_string();
        for piece in [", \"", name, "\": ", &value] {
            self.0.push_str(piece);
        }
        self
    }

    /// Left out where there is none.
    fn known(&mut self, name: &str, value: Option<impl Into<Value>>) -> &mut Self {
        match value {
            Some(value) => self.member(name, value),
            None => self,
        }
    }

    fn list(&mut self, name: &str, values: &[impl Clone + Into<Value>]) -> &mut Self {
        if values.is_empty() {
            return self;
        }
        self.member(name, values.to_vec())
    }

    fn end(mut self) -> String {
        self.0.push_str("}\n");
        self.0
    }
}

fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e3).round() / 1e3
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

impl Event<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Started(_) => "started",
            Self::StepStarted { .. } => "step_started",
            Self::StepFinished { .. } => "step_finished",
            Self::Progress(_) => "progress",
            Self::Checkpoint { .. } => "checkpoint",
            Self::Sample { .. } => "sample",
            Self::Warning(_) => "warning",
            Self::Gpu { .. } => "gpu",
            Self::Retry { .. } => "retry",
            Self::Error { .. } => "error",
            Self::Done { .. } => "done",
        }
    }

    /// Of which there are so many that one may be missed.
    fn is_one_of_many(&self) -> bool {
        matches!(self, Self::Progress(_) | Self::Gpu { .. })
    }

    fn line(&self, at: SystemTime, since_start: Duration) -> String {
        let mut line = Line::new(self.name(), at, since_start.as_secs_f64());
        match *self {
            Self::Started(members) => {
                for (name, value) in members {
                    line.member(name, value.clone());
                }
            }
            Self::StepStarted { step, argv } => {
                line.member("step", step).list("argv", argv);
            }
            Self::StepFinished {
                step,
                argv,
                duration,
                exit_code,
                photos,
            } => {
                line.member("step", step)
                    .list("argv", argv)
                    .member("duration", seconds(duration))
                    .known("exit_code", exit_code)
                    .list("photos", photos);
            }
            Self::Progress(progress) => {
                line.member("step", progress.step)
                    .member("done", progress.done)
                    .known("total", progress.total)
                    .known("average_loss", progress.average_loss)
                    .known("rate", progress.rate)
                    .known("seconds_left", progress.seconds_left());
            }
            Self::Checkpoint { path, step, bytes } => {
                line.member("path", shown(path))
                    .known("step", step)
                    .member("bytes", bytes);
            }
            Self::Sample {
                path,
                step,
                epoch,
                prompt,
            } => {
                line.member("path", shown(path))
                    .known("step", step)
                    .known("epoch", epoch)
                    .known("prompt", prompt);
            }
            Self::Warning(message) => {
                line.member("message", message);
            }
            Self::Gpu {
                used_bytes,
                total_bytes,
                utilisation_percent,
            } => {
                line.member("used_bytes", used_bytes)
                    .member("total_bytes", total_bytes)
                    .known("utilisation_percent", utilisation_percent);
            }
            Self::Retry {
                attempt,
                wait,
                reason,
            } => {
                line.member("what", "download")
                    .member("attempt", attempt)
                    .member("wait", seconds(wait))
                    .member("reason", reason);
            }
            Self::Error {
                is_cancelled,
                class,
                message,
                reason,
                step,
            } => {
                let outcome = if is_cancelled { "cancelled" } else { "failed" };
                line.member("outcome", outcome)
                    .member("type", class)
                    .member("message", message)
                    .known("reason", reason)
                    .known("step", step);
            }
            Self::Done { outputs } => {
                line.list("outputs", outputs);
            }
        }
        line.end()
    }
}

/// `2026-11-23T15:23:12.445000Z`
fn iso(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days to a date, in years that begin in March and eras of 400 (Howard Hinnant, chrono-compatible algorithms).
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let micros = since.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// Where a run is, for whoever asks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    pub step: Option<String>,
    pub done: Option<u64>,
    pub total: Option<u64>,
    pub average_loss: Option<f64>,
    pub seconds_left: Option<f64>,
}

/// Takes down what happens in one run, from any thread. Nothing that it meets ends the run.
pub struct Recorder {
    began: Instant,
    status: Mutex<Status>,
    book: Mutex<Book>,
}

struct Book {
    /// What the record needs of the lines.
    kept: String,
    /// The last of them, if it is progress: its step, how far that was, and where in `kept` it begins.
    last_progress: Option<(String, u64, usize)>,
    /// `None` until the training folder is the run's.
    file: Option<File>,
    /// The end of the file is no end of a line.
    is_torn: bool,
    trouble: Trouble,
    /// For those who listen, if anybody does.
    waiting: Option<VecDeque<String>>,
    open: Vec<OpenStep>,
    last_step: Option<String>,
    /// When the run ended, once it has.
    ended: Option<(SystemTime, Duration)>,
    is_closed: bool,
}

enum Trouble {
    None,
    Untold(String),
    Told,
}

struct OpenStep {
    name: String,
    began: Instant,
    /// Opened for a method that is not ours, and may run the step of this name in it.
    is_around: bool,
    /// Of that step, where it is still to be told.
    argv: Vec<String>,
    is_argv_told: bool,
}

impl Recorder {
    #[must_use]
    pub fn new(is_listened_to: bool) -> Self {
        Self {
            began: Instant::now(),
            status: Mutex::default(),
            book: Mutex::new(Book {
                kept: String::new(),
                last_progress: None,
                file: None,
                is_torn: false,
                trouble: Trouble::None,
                waiting: is_listened_to.then(VecDeque::new),
                open: Vec::new(),
                last_step: None,
                ended: None,
                is_closed: false,
            }),
        }
    }

    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    #[must_use]
    pub fn status(&self) -> Status {
        lock_of(&self.status).clone()
    }

    /// Takes down that something has happened.
    pub fn say(&self, event: &Event<'_>) {
        self.take(&mut lock_of(&self.book), event);
    }

    fn take(&self, book: &mut Book, event: &Event<'_>) {
        if !book.is_closed {
            self.note(event);
            book.take(event, SystemTime::now(), self.began.elapsed());
        }
    }

    fn note(&self, event: &Event<'_>) {
        let mut status = lock_of(&self.status);
        match *event {
            Event::StepStarted { step, .. } => {
                *status = Status {
                    step: Some(step.to_owned()),
                    ..Status::default()
                };
            }
            Event::Progress(progress) => {
                if status.step.as_deref() != Some(progress.step) {
                    status.step = Some(progress.step.to_owned());
                }
                status.done = Some(progress.done);
                status.total = progress.total;
                status.average_loss = progress.average_loss;
                status.seconds_left = progress.seconds_left();
            }
            _ => {}
        }
    }

    /// A step begins. What begins within a method that is not ours, under its name, is that method's step.
    pub fn begin_step(&self, step: &str, argv: &[String]) {
        self.open(step, argv, false);
    }

    /// A method that is not ours begins, which is to do this step in its own way.
    pub fn begin_around(&self, step: &str, argv: &[String]) {
        self.open(step, argv, true);
    }

    fn open(&self, step: &str, argv: &[String], is_around: bool) {
        let mut book = lock_of(&self.book);
        book.last_step = Some(step.to_owned());
        let around = |open: &&mut OpenStep| open.is_around && open.name == step;
        if let Some(open) = book.open.iter_mut().find(around) {
            if !open.is_argv_told {
                argv.clone_into(&mut open.argv);
            }
            return;
        }
        book.open.push(OpenStep {
            name: step.to_owned(),
            began: Instant::now(),
            is_around,
            argv: Vec::new(),
            is_argv_told: !argv.is_empty(),
        });
        self.take(&mut book, &Event::StepStarted { step, argv });
    }

    /// A step has ended; nothing happens where it is not open.
    pub fn end_step(
        &self,
        step: &str,
        duration: Option<Duration>,
        exit_code: Option<i32>,
        photos: &[Value],
    ) {
        let mut book = lock_of(&self.book);
        if let Some(place) = book.open.iter().rposition(|open| open.name == step) {
            let open = book.open.remove(place);
            let event = Event::StepFinished {
                step,
                argv: &open.argv,
                duration: duration.unwrap_or_else(|| open.began.elapsed()),
                exit_code,
                photos,
            };
            self.take(&mut book, &event);
        }
    }

    /// Ends the steps that are open still, as the run ends; tells which one it ends in.
    pub fn end_steps(&self) -> Option<String> {
        let mut book = lock_of(&self.book);
        let open = std::mem::take(&mut book.open);
        for open in &open {
            let event = Event::StepFinished {
                step: &open.name,
                argv: &open.argv,
                duration: open.began.elapsed(),
                exit_code: None,
                photos: &[],
            };
            self.take(&mut book, &event);
        }
        let last = open.into_iter().next_back().map(|open| open.name);
        last.or_else(|| book.last_step.clone())
    }

    /// The training folder is there and this run's: what has happened and what will is written there. The files of an
    /// earlier run go.
    pub fn settle(&self, training_folder: &Path) {
        let mut book = lock_of(&self.book);
        if book.file.is_none() && !book.is_closed {
            book.settle(training_folder);
        }
    }

    /// Whether there is a file of these events.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        lock_of(&self.book).file.is_some()
    }

    /// The lines so far that the record needs, and that of the last event, which comes.
    #[must_use]
    pub fn lines_with(&self, last: &Event<'_>) -> String {
        let mut book = lock_of(&self.book);
        let (at, since_start) = self.end(&mut book);
        let last = last.line(at, since_start);
        book.kept.clone() + &last
    }

    /// Takes down the last event.
    pub fn close(&self, last: &Event<'_>) {
        let mut book = lock_of(&self.book);
        let (at, since_start) = self.end(&mut book);
        book.take(last, at, since_start);
        book.is_closed = true;
    }

    /// The same for the record and the event.
    fn end(&self, book: &mut Book) -> (SystemTime, Duration) {
        let now = || (SystemTime::now(), self.began.elapsed());
        *book.ended.get_or_insert_with(now)
    }

    /// Whether the last event is taken down.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        lock_of(&self.book).is_closed
    }

    /// The next line for those who listen.
    pub fn next_waiting(&self) -> Option<String> {
        lock_of(&self.book).waiting.as_mut()?.pop_front()
    }

    /// What keeps the events from being written, once.
    pub fn trouble(&self) -> Option<String> {
        let mut book = lock_of(&self.book);
        if !matches!(book.trouble, Trouble::Untold(_)) {
            return None;
        }
        match std::mem::replace(&mut book.trouble, Trouble::Told) {
            Trouble::Untold(trouble) => Some(trouble),
            _ => None,
        }
    }

    /// Whether [`Self::trouble`] has told of something, so that more of it need not be told.
    #[must_use]
    pub fn has_told_trouble(&self) -> bool {
        matches!(lock_of(&self.book).trouble, Trouble::Told)
    }
}

impl Book {
    fn take(&mut self, event: &Event<'_>, at: SystemTime, since_start: Duration) {
        let line = event.line(at, since_start);
        self.keep(event, &line);
        self.write(&line);
        self.hand_on(event, line);
    }

    fn keep(&mut self, event: &Event<'_>, line: &str) {
        let last = self.last_progress.take();
        if let Event::Progress(progress) = event {
            // Of a bar that is drawn again and again, the last counts; without a loss it tells nothing later.
            if progress.average_loss.is_none() {
                self.last_progress = last;
                return;
            }
            match last {
                Some((step, done, from)) if done == progress.done && step == progress.step => {
                    self.kept.truncate(from);
                }
                _ => {}
            }
            self.last_progress = Some((progress.step.to_owned(), progress.done, self.kept.len()));
        }
        if !event.is_one_of_many() || self.kept.len() < MOST_KEPT_BYTES {
            self.kept.push_str(line);
        }
    }

    fn hand_on(&mut self, event: &Event<'_>, line: String) {
        if let Some(waiting) = &mut self.waiting
            && (!event.is_one_of_many() || waiting.len() < MOST_WAITING)
        {
            waiting.push_back(line);
        }
    }

    fn settle(&mut self, training_folder: &Path) {
        let path = training_folder.join(FILE);
        // A new file, not the old one emptied: whoever follows that one sees that it is another.
        let made = remove(&training_folder.join(RECORD))
            .and_then(|()| remove(&path))
            .and_then(|()| OpenOptions::new().append(true).create_new(true).open(&path));
        match made {
            Ok(file) => {
                self.file = Some(file);
                let kept = std::mem::take(&mut self.kept);
                self.write(&kept);
                self.kept = kept;
            }
            Err(error) => self.fail(&path, &error),
        }
    }

    fn write(&mut self, line: &str) {
        let Some(file) = &mut self.file else {
            return;
        };
        let written = if self.is_torn {
            file.write_all(b"\n")
                .and_then(|()| file.write_all(line.as_bytes()))
        } else {
            file.write_all(line.as_bytes())
        };
        self.is_torn = written.is_err();
        if let Err(error) = written {
            self.fail(Path::new(FILE), &error);
        }
    }

    fn fail(&mut self, path: &Path, error: &io::Error) {
        if matches!(self.trouble, Trouble::None) {
            self.trouble = Trouble::Untold(format!(
                "the events of this run cannot be written to {} ({error}): the run goes on without",
                path.display()
            ));
        }
    }
}

fn remove(path: &PathBuf) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(done: u64, average_loss: Option<f64>) -> Event<'static> {
        Event::Progress(Progress {
            step: "train",
            done,
            total: Some(10),
            average_loss,
            rate: Some(0.5),
        })
    }

    fn read(path: &Path) -> Vec<Value> {
        let text = fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn a_time_is_written_as_iso_8601_has_it() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_795_447_392, "2026-11-23T15:23:12.000000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(iso(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
        let half = UNIX_EPOCH + Duration::from_millis(1500);
        assert_eq!(iso(half), "1970-01-01T00:00:01.500000Z");
    }

    #[test]
    fn what_happens_before_there_is_a_folder_is_written_when_there_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = Recorder::new(false);
        recorder.begin_step("dataset", &[]);
        fs::write(folder.path().join(FILE), "of another run").unwrap();
        fs::write(folder.path().join(RECORD), "of another run").unwrap();
        recorder.settle(folder.path());
        recorder.say(&progress(1, Some(f64::NAN)));
        let lines = read(&folder.path().join(FILE));
        assert_eq!(lines[0]["event"], "step_started");
        assert_eq!(lines[1]["average_loss"], Value::Null);
        assert_eq!(lines[1]["seconds_left"], 18.0);
        assert!(lines[1].as_object().unwrap().contains_key("average_loss"));
        assert!(!folder.path().join(RECORD).exists());
        assert_eq!(recorder.status().done, Some(1));
        assert!(recorder.trouble().is_none());
    }

    #[test]
    fn strange_text_stays_one_line() {
        let recorder = Recorder::new(true);
        recorder.say(&Event::Warning("a\nb\u{0}\"\\\u{2028}é"));
        let line = recorder.next_waiting().unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["message"], "a\nb\u{0}\"\\\u{2028}é");
    }

    #[test]
    fn of_a_bar_that_is_drawn_again_the_record_has_the_last() {
        let recorder = Recorder::new(false);
        for loss in [None, Some(0.5), Some(0.25)] {
            recorder.say(&progress(1, loss));
        }
        recorder.say(&Event::Warning("w"));
        recorder.say(&progress(1, Some(0.125)));
        let kept = recorder.lines_with(&Event::Done { outputs: &[] });
        let losses: Vec<&str> = kept
            .lines()
            .filter_map(|line| Some(line.split_once("average_loss\": ")?.1.split_once(',')?.0))
            .collect();
        assert_eq!(losses, ["0.25", "0.125"]);
        assert!(kept.ends_with("}\n") && kept.contains("\"done\", "));
    }

    #[test]
    fn a_step_within_a_method_of_its_name_is_that_step() {
        let recorder = Recorder::new(true);
        recorder.begin_around("train", &[]);
        recorder.begin_step("train", &["a".to_owned()]);
        recorder.end_step("train", Some(Duration::from_secs(1)), Some(0), &[]);
        recorder.end_step("train", None, None, &[]);
        recorder.begin_step("precache:latents", &[]);
        assert_eq!(recorder.end_steps().as_deref(), Some("precache:latents"));
        let lines: Vec<String> = std::iter::from_fn(|| recorder.next_waiting()).collect();
        assert!(lines[1].contains(r#""argv": ["a"]"#));
        let names: Vec<String> = lines
            .iter()
            .map(|line| line.split('"').nth(3).unwrap().to_owned())
            .collect();
        assert_eq!(
            names,
            [
                "step_started",
                "step_finished",
                "step_started",
                "step_finished"
            ]
        );
    }

    #[test]
    fn what_cannot_be_written_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(FILE)).unwrap();
        let recorder = Recorder::new(false);
        recorder.settle(folder.path());
        recorder.say(&Event::Warning("w"));
        recorder.settle(folder.path());
        assert!(recorder.trouble().unwrap().contains(FILE));
        assert!(recorder.trouble().is_none());
        assert!(recorder.has_told_trouble());
    }

    #[test]
    fn nothing_comes_after_the_end() {
        let recorder = Recorder::new(true);
        recorder.close(&Event::Done { outputs: &[] });
        recorder.say(&Event::Warning("late"));
        assert!(recorder.next_waiting().unwrap().contains("\"done\""));
        assert!(recorder.next_waiting().is_none());
    }

    #[test]
    fn who_is_behind_misses_progress_alone() {
        let recorder = Recorder::new(true);
        for done in 0..2 * MOST_WAITING as u64 {
            recorder.say(&progress(done, None));
        }
        recorder.close(&Event::Done { outputs: &[] });
        let lines: Vec<String> = std::iter::from_fn(|| recorder.next_waiting()).collect();
        assert_eq!(lines.len(), MOST_WAITING + 1);
        assert!(lines[MOST_WAITING].contains("\"done\", \"at\""));
    }
}
