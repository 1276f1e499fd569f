//! What the lines of a step say of it, as events.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::config;
use crate::events::{Event, Progress};
use crate::progress::{self, Said};

/// A clock of the file system may be this much behind that of the machine.
const SLACK: Duration = Duration::from_secs(2);

/// The warnings of a step that are told; one that repeats counts once.
const MOST_WARNINGS: usize = 100;

/// Follows a step by its lines.
pub struct StepEvents {
    step: String,
    began: SystemTime,
    /// Of photos that are cached at once, where this step caches.
    batch: Option<u64>,
    images: u64,
    /// Batches of the datasets that are cached.
    earlier_batches: u64,
    batches: u64,
    /// What the last progress was, the loss in its bits.
    told: Option<(u64, Option<u64>, Option<u64>)>,
    training_step: Option<u64>,
    saving: Option<PathBuf>,
    samples: Option<Samples>,
    warnings: HashSet<String>,
}

/// The images that a training makes.
struct Samples {
    folder: PathBuf,
    output_name: String,
    known: HashSet<PathBuf>,
    /// The training step after which the tuner makes some, once it has.
    step: Option<u64>,
    prompts: Vec<String>,
}

impl StepEvents {
    /// Of the step of this name and command.
    #[must_use]
    pub fn new(step: &str, argv: &[OsString]) -> Self {
        let value = |option: &str| {
            let place = argv.iter().position(|word| word == option)?;
            argv.get(place + 1)
        };
        let number = |word: &OsString| word.to_str()?.parse().ok();
        let batch_of_dataset = || {
            let text = fs::read_to_string(value("--dataset_config")?).ok()?;
            Some(config::parse(&text).ok()?.largest().1)
        };
        let samples = value("--output_dir")
            .zip(value("--output_name"))
            .map(|(folder, name)| Samples::new(Path::new(folder).join("sample"), name));
        Self {
            step: step.to_owned(),
            began: SystemTime::now(),
            batch: step.starts_with("precache:").then(|| {
                let of_argv = value("--batch_size").and_then(number);
                of_argv.or_else(batch_of_dataset).unwrap_or(1).max(1)
            }),
            images: 0,
            earlier_batches: 0,
            batches: 0,
            told: None,
            training_step: None,
            saving: None,
            samples,
            warnings: HashSet::new(),
        }
    }

    /// Takes a line in.
    pub fn hear(&mut self, line: &str, say: &mut impl FnMut(&Event<'_>)) {
        // What a line is about is done by the time of the next one.
        self.saved(say);
        for said in progress::read(line) {
            match said {
                Said::Images(count) => self.images = self.images.saturating_add(count),
                Said::Step {
                    step,
                    total,
                    average_loss,
                    rate,
                } => {
                    self.tell_samples(false, say);
                    self.training_step = Some(step);
                    self.tell(
                        step,
                        Some(total),
                        average_loss,
                        after_the_first(step, rate),
                        say,
                    );
                }
                Said::Count { done, rate } => self.cached(done, rate, say),
                Said::Saving(path) => self.saving = Some(PathBuf::from(path)),
                Said::Sampling(step) => {
                    self.tell_samples(false, say);
                    if let Some(samples) = &mut self.samples {
                        samples.step = Some(step);
                        samples.prompts.clear();
                    }
                }
                Said::Prompt(prompt) => {
                    // The tuner may be ahead of what is heard of it: the image of a prompt to come may be there.
                    self.tell_samples(true, say);
                    if let Some(samples) = &mut self.samples {
                        samples.prompts.push(prompt.to_owned());
                    }
                }
                Said::Warning(warning) => self.warn(warning, say),
                Said::Merging(_) | Said::Modules(_) => {}
            }
        }
    }

    /// Nothing more comes.
    pub fn end(&mut self, say: &mut impl FnMut(&Event<'_>)) {
        self.saved(say);
        self.tell_samples(false, say);
    }

    fn tell(
        &mut self,
        done: u64,
        total: Option<u64>,
        average_loss: Option<f64>,
        rate: Option<f64>,
        say: &mut impl FnMut(&Event<'_>),
    ) {
        let now = (done, total, average_loss.map(f64::to_bits));
        if self.told != Some(now) {
            self.told = Some(now);
            say(&Event::Progress(Progress {
                step: &self.step,
                done,
                total,
                average_loss,
                rate,
            }));
        }
    }

    /// A bar of a caching step counts batches, and each dataset has its own.
    fn cached(&mut self, batches: u64, rate: Option<f64>, say: &mut impl FnMut(&Event<'_>)) {
        let Some(batch) = self.batch else {
            return;
        };
        if batches < self.batches {
            self.earlier_batches = self.earlier_batches.saturating_add(self.batches);
        }
        self.batches = batches;
        let total = (self.images > 0).then_some(self.images);
        let photos = (self.earlier_batches.saturating_add(batches)).saturating_mul(batch);
        let done = photos.min(total.unwrap_or(photos));
        #[expect(clippy::cast_precision_loss, reason = "of photos")]
        let rate = rate.map(|rate| rate * batch as f64);
        self.tell(done, total, None, rate, say);
    }

    fn saved(&mut self, say: &mut impl FnMut(&Event<'_>)) {
        let Some(path) = &self.saving else {
            return;
        };
        if let Some(bytes) = self.written(path) {
            say(&Event::Checkpoint {
                path,
                step: step_in_name(path).or(self.training_step),
                bytes,
            });
            self.saving = None;
        }
    }

    /// The size of a file, if it is of this step.
    fn written(&self, path: &Path) -> Option<u64> {
        let found = fs::metadata(path).ok()?;
        let since = self.began.checked_sub(SLACK)?;
        (found.is_file() && found.modified().ok()? >= since).then_some(found.len())
    }

    /// Tells of new images; `with_prompt`: of those alone whose prompt is known.
    fn tell_samples(&mut self, with_prompt: bool, say: &mut impl FnMut(&Event<'_>)) {
        let Some(samples) = self.samples.as_mut().filter(|found| found.step.is_some()) else {
            return;
        };
        let mut new: Vec<PathBuf> = images_in(&samples.folder)
            .filter(|path| !samples.known.contains(path))
            .collect();
        new.sort();
        for path in new {
            let named = samples.named(&path);
            let prompt = named.and_then(|(_, number)| samples.prompts.get(number));
            if with_prompt && prompt.is_none() {
                continue;
            }
            say(&Event::Sample {
                path: &path,
                step: samples.step,
                epoch: named.and_then(|(epoch, _)| epoch),
                prompt: prompt.map(String::as_str),
            });
            samples.known.insert(path);
        }
    }

    fn warn(&mut self, warning: &str, say: &mut impl FnMut(&Event<'_>)) {
        if self.warnings.len() < MOST_WARNINGS && self.warnings.insert(warning.to_owned()) {
            say(&Event::Warning(&format!("[{}] {warning}", self.step)));
        }
    }
}

/// The bar's clock starts anew after the first step, which it counts.
fn after_the_first(step: u64, rate: Option<f64>) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "of steps")]
    let rate = rate? * (step.saturating_sub(1) as f64) / step.max(1) as f64;
    (rate > 0.0).then(|| (rate * 1e4).round() / 1e4)
}

impl Samples {
    fn new(folder: PathBuf, output_name: &OsString) -> Self {
        Self {
            known: images_in(&folder).collect(),
            folder,
            output_name: output_name.to_string_lossy().into_owned(),
            step: None,
            prompts: Vec::new(),
        }
    }

    /// `<name>_e000002_01_20261123152312_42_000.png`: the epoch, if it is one, and the number of the prompt.
    fn named(&self, path: &Path) -> Option<(Option<u64>, usize)> {
        let stem = path.file_stem()?.to_str()?;
        let rest = stem.strip_prefix(&self.output_name)?.strip_prefix('_')?;
        let mut parts = rest.split('_');
        let when = parts.next()?;
        let epoch = when.strip_prefix('e').and_then(|epoch| epoch.parse().ok());
        Some((epoch, parts.next()?.parse().ok()?))
    }
}

fn images_in(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| extension.eq_ignore_ascii_case("png"))
    })
}

/// Of `lora-step00000200.safetensors`; the bar, which is not redrawn at each step, may be behind it.
fn step_in_name(path: &Path) -> Option<u64> {
    let (_, step) = path.file_stem()?.to_str()?.rsplit_once("-step")?;
    step.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::events::Recorder;

    fn heard(step: &str, argv: &[&str], lines: &[&str]) -> Vec<Value> {
        let argv: Vec<OsString> = argv.iter().map(OsString::from).collect();
        let mut events = StepEvents::new(step, &argv);
        told(&mut events, lines)
    }

    fn told(events: &mut StepEvents, lines: &[&str]) -> Vec<Value> {
        let recorder = Recorder::new(true);
        let mut say = |event: &Event<'_>| recorder.say(event);
        for line in lines {
            events.hear(line, &mut say);
        }
        events.end(&mut say);
        std::iter::from_fn(|| recorder.next_waiting())
            .map(|line| {
                let mut value: Value = serde_json::from_str(&line).unwrap();
                let members = value.as_object_mut().unwrap();
                members.retain(|name, _| !["at", "seconds"].contains(&name.as_str()));
                value
            })
            .collect()
    }

    #[test]
    fn a_training_is_as_far_as_its_bar() {
        let lines = [
            "steps:   0%|  | 0/4 [00:00<?, ?it/s]",
            "steps:  25%|# | 1/4 [00:00<00:00, 584.57it/s]",
            "steps:  25%|# | 1/4 [00:00<00:00, 580.57it/s, avr_loss=1.11]",
            "steps:  25%|# | 1/4 [00:00<00:00, 570.57it/s, avr_loss=1.11]",
            "steps:  50%|##| 2/4 [00:02<00:02, 1.00s/it, avr_loss=nan]INFO:x:found 2 images",
        ];
        let progress =
            |done: u64| json!({"event": "progress", "step": "train", "done": done, "total": 4});
        let with = |mut value: Value, more: Value| {
            let more = more.as_object().unwrap().clone();
            value.as_object_mut().unwrap().extend(more);
            value
        };
        assert_eq!(
            heard("train", &[], &lines),
            [
                progress(0),
                progress(1),
                with(progress(1), json!({"average_loss": 1.11})),
                with(
                    progress(2),
                    json!({"average_loss": null, "rate": 0.5, "seconds_left": 4.0})
                ),
            ]
        );
    }

    #[test]
    fn a_caching_step_is_told_in_photos() {
        let lines = [
            "INFO:x:found 40 images",
            "INFO:x:found 3 images",
            "0it [00:00, ?it/s]",
            "2it [00:01,  2.00it/s]",
            "3it [00:01,  2.00it/s]",
            "1it [00:00,  4.00it/s]",
        ];
        let events = heard("precache:text_encoder", &["--batch_size", "16"], &lines);
        let done: Vec<(u64, u64)> = events
            .iter()
            .map(|event| {
                (
                    event["done"].as_u64().unwrap(),
                    event["total"].as_u64().unwrap(),
                )
            })
            .collect();
        assert_eq!(done, [(0, 43), (32, 43), (43, 43)]);
        assert_eq!(events[1]["rate"], 32.0);
        assert_eq!(heard("train", &[], &lines[2..]), Vec::<Value>::new());
    }

    #[test]
    fn the_batch_of_the_latents_is_the_datasets() {
        let folder = tempfile::tempdir().unwrap();
        let toml = folder.path().join("dataset.toml");
        fs::write(
            &toml,
            "[general]\nbatch_size = 2\n[[datasets]]\nbatch_size = 4\n",
        )
        .unwrap();
        let argv = ["--dataset_config", toml.to_str().unwrap()];
        let events = heard("precache:latents", &argv, &["3it [00:01, 1it/s]"]);
        assert_eq!(events[0]["done"], 12);
        assert!(events[0].get("total").is_none());
    }

    #[test]
    fn a_checkpoint_is_told_once_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a-step00000002.safetensors");
        let saving = format!("saving checkpoint: {}", path.display());
        // As it was last drawn.
        let bar = "steps:  25%|#| 1/4 [00:01<00:03, 1.00s/it]";
        let mut events = StepEvents::new("train", &[]);
        assert_eq!(told(&mut events, &[bar, &saving, "."]).len(), 1);
        fs::write(&path, "12345").unwrap();
        let checkpoint =
            json!({"event": "checkpoint", "path": path.to_str(), "step": 2, "bytes": 5});
        assert_eq!(told(&mut events, &["model saved."]), [checkpoint]);
        assert_eq!(told(&mut events, &["and on"]), Vec::<Value>::new());
    }

    #[test]
    fn a_file_of_an_earlier_run_is_no_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let old = fs::File::create(&path).unwrap();
        old.set_modified(SystemTime::now() - Duration::from_secs(60))
            .unwrap();
        let saving = format!("saving checkpoint: {}", path.display());
        assert_eq!(heard("train", &[], &[&saving, "next"]), Vec::<Value>::new());
    }

    #[test]
    fn samples_are_told_with_what_they_were_made_from() {
        let folder = tempfile::tempdir().unwrap();
        let samples = folder.path().join("sample");
        fs::create_dir(&samples).unwrap();
        fs::write(
            samples.join("lo_ra_e000001_00_20260101000000_000.png"),
            "old",
        )
        .unwrap();
        let argv = [
            "--output_dir",
            folder.path().to_str().unwrap(),
            "--output_name",
            "lo_ra",
        ];
        let argv: Vec<OsString> = argv.iter().map(OsString::from).collect();
        let mut events = StepEvents::new("train", &argv);
        let bar = |step: u64| format!("steps: 1%|#| {step}/9 [00:02<00:02, 1.00s/it]");
        let sampling = "INFO:x:generating sample images at step / \u{30b9}: 2";
        let said = told(
            &mut events,
            &[
                &bar(2),
                sampling,
                "INFO:x:prompt: a cat",
                "INFO:x:prompt: dogs",
            ],
        );
        assert_eq!(said.len(), 1);
        for name in [
            "lo_ra_000002_01_20260101000001_42_000.png",
            "lo_ra_e000002_00_20260101000001_000.png",
        ] {
            fs::write(samples.join(name), "new").unwrap();
        }
        let said = told(&mut events, &[&bar(3)]);
        let of = |field: &str| -> Vec<Value> {
            said[..2].iter().map(|event| event[field].clone()).collect()
        };
        assert_eq!(of("event"), ["sample", "sample"]);
        assert_eq!(of("step"), [2, 2]);
        assert_eq!(of("epoch"), [Value::Null, json!(2)]);
        assert_eq!(of("prompt"), ["dogs", "a cat"]);
        assert_eq!(said[2]["event"], "progress");
    }

    #[test]
    fn a_warning_of_the_tuner_is_told_once() {
        let line = "steps: 1%|#| 1/9 [00:02<00:02, 1.00s/it]WARNING:musubi_tuner.x:slow";
        let said = heard("train", &[], &[line, line]);
        let warning = json!({"event": "warning", "message": "[train] WARNING:musubi_tuner.x:slow"});
        assert_eq!(said.iter().filter(|event| **event == warning).count(), 1);
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;

        proptest! {
            #[test]
            fn no_line_is_too_strange(lines in prop::collection::vec(
                prop_oneof![
                    ".{0,40}",
                    "(steps: |WARNING:|:prompt: |saving checkpoint: ).{0,20}",
                    "[0-9]{0,22}it \\[.{0,20}",
                    "steps: x\\|x\\| [0-9]{1,21}/[0-9]{1,21} \\[0<0, [0-9.e]{1,8}(it/s|s/it), avr_loss=[a-z0-9.]{0,5}\\]",
                ],
                0..20,
            )) {
                for step in ["precache:latents", "train"] {
                    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
                    for event in heard(step, &["--output_dir", "/none", "--output_name", "a"], &lines) {
                        prop_assert!(event["event"].is_string());
                    }
                }
            }
        }
    }
}
