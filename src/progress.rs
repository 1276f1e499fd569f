//! What the lines of a step say of its progress, and what they prove. The texts are those of Musubi Tuner 0.2.15 to
//! 0.3.4 and of tqdm's bar.

/// What a line says. A log line may follow a bar without a line end, so that one line can say several things.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Said<'line> {
    /// A dataset has this many images.
    Images(u64),
    /// This adapter comes next to be merged.
    Merging(&'line str),
    /// So many modules of the adapter or of the new LoRA match the model.
    Modules(u64),
    Step {
        step: u64,
        total: u64,
        /// The mean loss of the last epoch's worth of steps.
        average_loss: Option<f64>,
        /// Steps a second, as the bar has it.
        rate: Option<f64>,
    },
    /// A bar that knows no total is at `done`.
    Count { done: u64, rate: Option<f64> },
    /// Weights are being written to this path.
    Saving(&'line str),
    /// Images are made after this training step.
    Sampling(u64),
    /// What the next of them is made from.
    Prompt(&'line str),
    /// A line that the tuner's logging has as a warning or an error.
    Warning(&'line str),
}

type Reader = fn(&str) -> Option<Said<'_>>;

/// What a line that says something contains, and who reads it.
const SIGNS: [(&str, Reader); 10] = [
    ("merging module: ", merging),
    ("found ", images),
    ("create LoRA for U-Net/DiT: ", modules),
    ("steps:", step),
    ("it [", count),
    ("saving checkpoint: ", saving),
    ("generating sample images at step", sampling),
    (":prompt: ", prompt),
    ("WARNING:", |line| warning(line, "WARNING:")),
    ("ERROR:", |line| warning(line, "ERROR:")),
];

/// Everything that `line` says.
pub fn read(line: &str) -> impl Iterator<Item = Said<'_>> {
    // Most lines say nothing, and to see that they contain no sign is several times faster than to split them at it.
    SIGNS
        .into_iter()
        .filter(|(sign, _)| line.contains(sign))
        .filter_map(|(_, read)| read(line))
}

/// `found 12 images`, at the beginning of a message, with what names its logger or without; behind it a dataset in JSON
/// lines says how many control images each has. Some terminals' colours may stand around it.
fn images(line: &str) -> Option<Said<'_>> {
    let (before, rest) = line.split_once("found ")?;
    let (number, rest) = rest.split_once(" images")?;
    let is_coloured = before.ends_with('m') && before.contains("\u{1b}[");
    let is_message = before.is_empty() || before.ends_with(':') || is_coloured;
    let rest = rest.trim_end_matches("\u{1b}[0m").trim_end();
    (is_message && (rest.is_empty() || rest.starts_with(" with ")))
        .then(|| number.parse().ok())
        .flatten()
        .map(Said::Images)
}

/// `merging module: /models/adapter.safetensors with multiplier 1.0`
fn merging(line: &str) -> Option<Said<'_>> {
    let (path, _) = line
        .split_once("merging module: ")?
        .1
        .rsplit_once(" with multiplier ")?;
    Some(Said::Merging(path))
}

/// `create LoRA for U-Net/DiT: 210 modules.`
fn modules(line: &str) -> Option<Said<'_>> {
    let (_, rest) = line.split_once("create LoRA for U-Net/DiT: ")?;
    let (number, _) = rest.split_once(" modules")?;
    number.parse().ok().map(Said::Modules)
}

/// `steps:  25%|██▌       | 1/4 [00:00<00:00, 5.57it/s, avr_loss=1.11]`
fn step(line: &str) -> Option<Said<'_>> {
    let (_, bar) = line.rsplit_once("steps:")?;
    let (_, bar) = bar.split_once('|')?.1.split_once('|')?;
    let (count, rest) = bar.strip_prefix(' ')?.split_once('[')?;
    let (step, total) = count.split_once('/')?;
    let average_loss = rest.split_once("avr_loss=").and_then(|(_, loss)| {
        loss.split([',', ']'])
            .next()
            .and_then(|loss| loss.trim().parse().ok())
    });
    Some(Said::Step {
        step: step.trim().parse().ok()?,
        total: total.trim().parse().ok()?,
        average_loss,
        rate: rate(rest),
    })
}

/// `12it [00:03,  3.51it/s]`
fn count(line: &str) -> Option<Said<'_>> {
    let (before, rest) = line.rsplit_once("it [")?;
    let digits = before.trim_end_matches(|letter: char| letter.is_ascii_digit());
    Some(Said::Count {
        done: before[digits.len()..].parse().ok()?,
        rate: rate(rest),
    })
}

/// A second, of `00:10<00:03, 3.51it/s]` or `00:10, 2.00s/it, …]`.
fn rate(rest: &str) -> Option<f64> {
    let (_, rest) = rest.split_once(',')?;
    let text = rest.split([',', ']']).next()?.trim();
    let rate = match text.strip_suffix("it/s") {
        Some(rate) => rate.parse::<f64>().ok()?,
        None => 1.0 / text.strip_suffix("s/it")?.parse::<f64>().ok()?,
    };
    (rate.is_finite() && rate > 0.0).then_some(rate)
}

/// `saving checkpoint: /output/lora-step00000200.safetensors`
fn saving(line: &str) -> Option<Said<'_>> {
    let (_, path) = line.split_once("saving checkpoint: ")?;
    Some(Said::Saving(path.trim_end()))
}

/// `INFO:…:generating sample images at step / サンプル画像生成 ステップ: 200`
fn sampling(line: &str) -> Option<Said<'_>> {
    let (_, rest) = line.split_once("generating sample images at step")?;
    let (_, step) = rest.rsplit_once(": ")?;
    plain(step).parse().ok().map(Said::Sampling)
}

/// `INFO:…:prompt: a cat`
fn prompt(line: &str) -> Option<Said<'_>> {
    let (_, prompt) = line.split_once(":prompt: ")?;
    Some(Said::Prompt(plain(prompt)))
}

/// `WARNING:musubi_tuner.dataset.bucket:no caption`, whatever is before it on the line: a bar.
fn warning<'line>(line: &'line str, level: &str) -> Option<Said<'line>> {
    let (before, rest) = line.split_once(level)?;
    let (logger, message) = rest.split_once(':')?;
    let is_coloured = before.ends_with('m') && before.contains("\u{1b}[");
    let is_level =
        is_coloured || !before.ends_with(|letter: char| letter.is_alphanumeric() || letter == '_');
    let is_logger = !logger.is_empty()
        && logger
            .chars()
            .all(|letter| letter.is_alphanumeric() || matches!(letter, '.' | '_'));
    (is_level && is_logger && !plain(message).is_empty())
        .then(|| Said::Warning(plain(&line[before.len()..])))
}

/// Without what ends a colour, and blanks.
fn plain(text: &str) -> &str {
    text.trim_end_matches("\u{1b}[0m").trim()
}

/// What a worker of a data loader says when it can neither hand over a batch nor its own error: the first for want of
/// shared memory, the second on a cut cache. Seen with torch 2.9.
const OF_A_STUCK_WORKER: [&str; 2] = [
    "RuntimeError: unable to write to file </torch_",
    "PicklingError: Can't pickle <class 'safetensors_rust.SafetensorError'>",
];

/// What the lines of one step have proved so far.
#[derive(Debug, Default)]
pub struct Heard {
    datasets: u64,
    empty_datasets: u64,
    merging: Option<String>,
    nan_since: Option<(u64, u64)>,
    has_stuck_worker: bool,
}

/// What is worth a word the moment it is heard.
#[derive(Debug, PartialEq)]
pub enum Alarm {
    /// The adapter at this path changes nothing.
    NothingMerged { adapter: String },
    /// The mean loss is NaN, at this step of so many.
    LossIsNan { step: u64, total: u64 },
    /// A data loader's worker could not hand over what it had, which the training may wait for without end.
    WorkerFailed,
}

impl Heard {
    /// Takes a line in.
    pub fn hear(&mut self, line: &str) -> Option<Alarm> {
        let mut alarm = None;
        if !self.has_stuck_worker
            && line.contains("Error: ")
            && OF_A_STUCK_WORKER.iter().any(|error| line.contains(error))
        {
            self.has_stuck_worker = true;
            alarm = Some(Alarm::WorkerFailed);
        }
        for said in read(line) {
            match said {
                Said::Images(count) => {
                    self.datasets += 1;
                    self.empty_datasets += u64::from(count == 0);
                }
                Said::Merging(path) => self.merging = Some(path.to_owned()),
                Said::Modules(count) => {
                    let merged = self.merging.take();
                    alarm = merged
                        .filter(|_| count == 0)
                        .map(|adapter| Alarm::NothingMerged { adapter })
                        .or(alarm);
                }
                Said::Step {
                    step,
                    total,
                    average_loss: Some(loss),
                    ..
                } if loss.is_nan() => {
                    if self.nan_since.is_none() {
                        self.nan_since = Some((step, total));
                        alarm = Some(Alarm::LossIsNan { step, total });
                    }
                }
                Said::Step {
                    average_loss: Some(_),
                    ..
                } => self.nan_since = None,
                Said::Step { .. }
                | Said::Count { .. }
                | Said::Saving(_)
                | Said::Sampling(_)
                | Said::Prompt(_)
                | Said::Warning(_) => {}
            }
        }
        alarm
    }

    /// How many datasets there are, as far as they say how many images they have.
    #[must_use]
    pub fn datasets(&self) -> u64 {
        self.datasets
    }

    /// How many of them have none.
    #[must_use]
    pub fn empty_datasets(&self) -> u64 {
        self.empty_datasets
    }

    /// The step from which on the loss was NaN to the end, and how many there are.
    #[must_use]
    pub fn nan_since(&self) -> Option<(u64, u64)> {
        self.nan_since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tuners_lines_are_understood() {
        let step = |step, total, average_loss, rate| Said::Step {
            step,
            total,
            average_loss,
            rate,
        };
        let count = |done, rate| Said::Count { done, rate };
        for (line, expected) in [
            (
                "INFO:musubi_tuner.dataset.datasources:found 12 images",
                vec![Said::Images(12)],
            ),
            ("found 0 images  ", vec![Said::Images(0)]),
            (
                "found 3 images with 1 control images per image in JSONL data",
                vec![Said::Images(3)],
            ),
            (
                "found multiple-target images, max targets per image: 2",
                vec![],
            ),
            ("found 3 matching control images for 1 images", vec![]),
            ("found -1 images", vec![]),
            (
                "INFO:musubi_tuner.dataset.datasources:glob images in /data/found 0 images",
                vec![],
            ),
            ("INFO:x:caption: found 0 images", vec![]),
            (
                "\u{1b}[32mINFO:x:\u{1b}[1mfound 0 images\u{1b}[0m",
                vec![Said::Images(0)],
            ),
            (
                "merging module: /my models/with multiplier 2/a.safetensors with multiplier 1.0",
                vec![Said::Merging("/my models/with multiplier 2/a.safetensors")],
            ),
            (
                "INFO:musubi_tuner.networks.lora:create LoRA for U-Net/DiT: 0 modules.",
                vec![Said::Modules(0)],
            ),
            (
                "steps:   0%|          | 0/4 [00:00<?, ?it/s]",
                vec![step(0, 4, None, None)],
            ),
            (
                "steps:  25%|██▌       | 1/4 [00:00<00:00, 584.57it/s, avr_loss=1.11]",
                vec![step(1, 4, Some(1.11), Some(584.57))],
            ),
            (
                "steps: 100%|██████████| 2000/2000 [1:06:40<00:00,  2.00s/it, Average key norm=0.1, avr_loss=1e+03]  ",
                vec![step(2000, 2000, Some(1000.0), Some(0.5))],
            ),
            (
                "\u{1b}[Asteps:  50%|#####     | 2/4 [00:01<00:01,  1.9it/s, avr_loss=inf]INFO:x:found 2 images",
                vec![Said::Images(2), step(2, 4, Some(f64::INFINITY), Some(1.9))],
            ),
            ("steps: many", vec![]),
            ("0it [00:00, ?it/s]", vec![count(0, None)]),
            ("12it [00:03,  3.50it/s]", vec![count(12, Some(3.5))]),
            (
                "\u{1b}[A7it [1:00:03,  4.00s/it]",
                vec![count(7, Some(0.25))],
            ),
            ("3 with it [00:03, 1it/s]", vec![]),
            ("1it [00:03, 0it/s]", vec![count(1, None)]),
            (
                "saving checkpoint: /my out/a-step00000002.safetensors ",
                vec![Said::Saving("/my out/a-step00000002.safetensors")],
            ),
            (
                "INFO:musubi_tuner.x:generating sample images at step / サンプル画像生成 ステップ: 200",
                vec![Said::Sampling(200)],
            ),
            (
                "INFO:musubi_tuner.x:prompt: a cat: WARNING of prompt: dogs",
                vec![Said::Prompt("a cat: WARNING of prompt: dogs")],
            ),
            (
                "steps:   0%|          | 0/4 [00:00<?, ?it/s]WARNING:musubi_tuner.x:no caption",
                vec![
                    step(0, 4, None, None),
                    Said::Warning("WARNING:musubi_tuner.x:no caption"),
                ],
            ),
            (
                "\u{1b}[31mERROR:root:it went wrong\u{1b}[0m",
                vec![Said::Warning("ERROR:root:it went wrong")],
            ),
            ("MY_WARNING:x:y", vec![]),
            ("FutureWARNING: x is gone: use y", vec![]),
            ("WARNING:x:", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(read(line).collect::<Vec<_>>(), expected, "{line:?}");
        }
    }

    fn heard(lines: &[&str]) -> (Heard, Vec<Alarm>) {
        let mut heard = Heard::default();
        let alarms = lines.iter().filter_map(|line| heard.hear(line)).collect();
        (heard, alarms)
    }

    #[test]
    fn an_adapter_of_which_nothing_is_merged_is_named_at_once() {
        let adapter = |modules| {
            [
                "merging module: /a with multiplier 1.0".to_owned(),
                "create LoRA network from weights".to_owned(),
                format!("create LoRA for U-Net/DiT: {modules} modules."),
                "create LoRA network. base dim (rank): 16, alpha: 16.0".to_owned(),
                "create LoRA for U-Net/DiT: 0 modules.".to_owned(),
            ]
        };
        let alarms = |modules| {
            let lines = adapter(modules);
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            heard(&lines).1
        };
        assert_eq!(
            alarms(0),
            [Alarm::NothingMerged {
                adapter: "/a".to_owned()
            }]
        );
        assert_eq!(alarms(14), []);
    }

    #[test]
    fn a_worker_that_the_training_may_wait_for_is_named_once() {
        for error in [
            "RuntimeError: unable to write to file </torch_27381_150964783_2>: No space left on device (28)",
            "_pickle.PicklingError: Can't pickle <class 'safetensors_rust.SafetensorError'>: import of module failed",
        ] {
            assert_eq!(heard(&[error, error]).1, [Alarm::WorkerFailed]);
        }
    }

    #[test]
    fn a_loss_is_nan_to_the_end_or_not() {
        let bar = |step: u64, loss: &str| {
            format!("steps: 1%|# | {step}/9 [0:0<0:0, 1it/s, avr_loss={loss}]")
        };
        let lines = |losses: &[&str]| {
            let lines: Vec<String> = (1..)
                .zip(losses)
                .map(|(step, loss)| bar(step, loss))
                .collect();
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let (heard, alarms) = heard(&lines);
            (heard.nan_since(), alarms)
        };
        let alarm = |step| Alarm::LossIsNan { step, total: 9 };
        assert_eq!(lines(&["0.1", "0.2"]), (None, vec![]));
        assert_eq!(
            lines(&["0.1", "nan", "nan"]),
            (Some((2, 9)), vec![alarm(2)])
        );
        assert_eq!(lines(&["nan", "0.1"]), (None, vec![alarm(1)]));
        assert_eq!(
            lines(&["nan", "0.1", "nan"]),
            (Some((3, 9)), vec![alarm(1), alarm(3)])
        );
    }

    mod properties {
        use proptest::prelude::*;

        use super::super::*;

        /// Words of the lines above in any order, cut anywhere.
        fn lines() -> impl Strategy<Value = String> {
            let word = prop_oneof![
                Just("steps: ".to_owned()),
                Just("50%|##  | ".to_owned()),
                Just("| ".to_owned()),
                Just(" [00:01<?, ".to_owned()),
                Just("avr_loss=".to_owned()),
                Just("3it [".to_owned()),
                Just("WARNING:".to_owned()),
                Just("x:prompt: ".to_owned()),
                Just("generating sample images at step".to_owned()),
                Just("saving checkpoint: ".to_owned()),
                Just("found ".to_owned()),
                Just(" images".to_owned()),
                Just("merging module: ".to_owned()),
                Just(" with multiplier ".to_owned()),
                Just("create LoRA for U-Net/DiT: ".to_owned()),
                Just(" modules".to_owned()),
                Just("nan".to_owned()),
                "[0-9/]{0,22}",
                ".{0,8}",
            ];
            prop::collection::vec(word, 0..12).prop_map(|words| words.concat())
        }

        proptest! {
            #[test]
            fn no_line_is_too_strange(lines in prop::collection::vec(lines(), 0..20)) {
                let mut heard = Heard::default();
                for line in &lines {
                    heard.hear(line);
                }
                prop_assert!(heard.empty_datasets() <= heard.datasets());
            }

            #[test]
            fn a_bar_is_read_whatever_stands_around_it(
                step in 0..u64::MAX, total in 0..u64::MAX, loss in 1e-9..1e9f64, before in "[^s]{0,20}", after in "[^:]{0,20}"
            ) {
                let line = format!("{before}steps:  9%|▏   | {step}/{total} [00:01<?, 1it/s, avr_loss={loss}]{after}");
                let said: Vec<_> = read(&line).collect();
                prop_assert!(said.contains(&Said::Step { step, total, average_loss: Some(loss), rate: Some(1.0) }), "{said:?}");
            }
        }
    }
}
