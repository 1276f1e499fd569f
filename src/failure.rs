//! Why a step failed, from its lines and its exit. What is known of failures is in [`known`], how Python tells them in
//! [`traceback`].

mod known;
mod traceback;

use std::collections::VecDeque;

use known::{KNOWN, after};
use traceback::Tracebacks;

/// What makes a loss NaN, and what to do.
pub const NAN_MEND: &str = "A learning rate that is too high, damaged weights or caches, or a GPU without bfloat16 make \
                            it so: download the weights again, cache the photos again, or lower the learning rate.";

const LAST_LINES: usize = 50;

/// In characters. The launcher's own error holds the whole command.
const LONGEST_LINE: usize = 2000;

/// In characters.
const LONGEST_EXCEPTION: usize = 500;

/// How a step ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Exit {
    /// Negative for a signal, as Python's `subprocess` has it.
    pub returncode: i32,
    /// How many processes of the cgroup the kernel killed for lack of memory while the step ran.
    pub oom_kills: Option<u64>,
    /// What the cgroup may hold.
    pub memory_limit_bytes: Option<u64>,
    /// The step from which on the loss was NaN to the end, and how many there are.
    pub nan_since: Option<(u64, u64)>,
}

/// Listens to a step's lines and keeps what tells why it failed, in bounded memory.
#[derive(Default)]
pub struct Listener {
    last_lines: VecDeque<Line>,
    tracebacks: Tracebacks,
    /// What was being loaded, as the tuner names it: a path, or a repository of the model hub.
    loading: Option<String>,
    /// The LoRA that is being saved.
    saving: Option<String>,
    /// What a program said of its arguments, or Python of a program that it could not start.
    refusal: Option<String>,
}

struct Line {
    text: String,
    is_bar: bool,
}

impl Listener {
    /// Hears the next line of the step.
    pub fn hear(&mut self, line: &str) {
        let is_blank = line.trim_start().is_empty();
        // A bar that is left behind is wiped with blanks.
        if is_blank && !line.is_empty() {
            return;
        }
        let is_bar = is_progress_bar(line);
        self.keep(line, is_bar);
        if is_bar || is_blank {
            return;
        }
        self.tracebacks.hear(line);
        if !self.tracebacks.chain.is_empty() {
            return;
        }
        if let Some(source) = loaded_from(line) {
            self.loading = Some(cut(source, LONGEST_EXCEPTION));
        } else if line.contains("Loaded ") || line.contains(" weights merged") {
            self.loading = None;
        } else if let Some(path) = after(line, "saving checkpoint: ") {
            self.saving = Some(cut(path.trim(), LONGEST_EXCEPTION));
        }
        if self.refusal.is_none() && is_refusal(line) {
            self.refusal = Some(cut(line, LONGEST_EXCEPTION));
        }
    }

    /// The last lines of the step, of a progress bar only its last state, each line cut to what one can read.
    #[must_use]
    pub fn last_lines(&self) -> String {
        let lines: Vec<&str> = self.last_lines.iter().map(|line| &*line.text).collect();
        lines.join("\n")
    }

    /// What happened and what to do about it, in one line; where that is not known, the step's own exception.
    #[must_use]
    pub fn reason(&self, exit: &Exit) -> Option<String> {
        let reason = self.reason_of_exit(exit);
        match (reason, exit.nan_since.map(known::of_nan_loss)) {
            (Some(reason), Some(nan)) => Some(format!("{reason} Besides, {nan}")),
            (reason, nan) => reason.or(nan),
        }
    }

    fn reason_of_exit(&self, exit: &Exit) -> Option<String> {
        let returncode = self.tracebacks.launched.unwrap_or(exit.returncode);
        let chain = &self.tracebacks.chain;
        if let Some(reason) = known::of_kill(returncode, chain, exit) {
            return Some(reason);
        }
        let known = KNOWN.iter().find_map(|known| {
            let raised = chain.iter().find(|raised| (known.is_told_by)(raised))?;
            Some(known.reason(raised, self))
        });
        let refusal = self.refusal.as_deref().filter(|_| chain.is_empty());
        known
            .or_else(|| known::of_end(returncode))
            .or_else(|| refusal.map(known::of_refusal))
            .or_else(|| Some(shown(&chain.first()?.text)))
    }

    fn keep(&mut self, line: &str, is_bar: bool) {
        let text = cut(line, LONGEST_LINE);
        match self.last_lines.back_mut() {
            Some(last) if is_bar && last.is_bar => last.text = text,
            _ => {
                if self.last_lines.len() == LAST_LINES {
                    self.last_lines.pop_front();
                }
                self.last_lines.push_back(Line { text, is_bar });
            }
        }
    }
}

/// Whether a line is a state of one of tqdm's bars and nothing else: `steps:  25%|██▌       | 1/4 [00:01<00:03, 1.0it/s]`,
/// or, where no total is known, `6it [00:01, 5.4it/s]`.
fn is_progress_bar(line: &str) -> bool {
    // Nested bars end with what moves the cursor up.
    let line = line.trim_end_matches(['\u{1b}', '[', 'A', ' ']);
    line.ends_with(']') && (line.contains("%|") || line.contains("it ["))
}

/// `/models/ae.safetensors` of `…Loading VAE from /models/ae.safetensors, device=cpu`.
fn loaded_from(line: &str) -> Option<&str> {
    let source = after(line, "merging module: ").and_then(|rest| rest.split(" with ").next());
    let source = source.or_else(|| after(after(line, "Loading ")?, " from "))?;
    Some(source.split(", ").next().unwrap_or(source).trim())
}

/// What argparse says of arguments, and Python of a script or a module that is not there.
fn is_refusal(line: &str) -> bool {
    if line.contains(": error: ") {
        return !traceback::is_log(line);
    }
    if !line.contains("python") {
        return false;
    }
    // Python calls itself by its path.
    line.split_once(": ").is_some_and(|(program, said)| {
        program.contains("python")
            && [
                "can't open file ",
                "Error while finding module ",
                "No module named ",
            ]
            .iter()
            .any(|sign| said.starts_with(sign))
    })
}

/// Text that fits into a message: one line, bounded, and without what a URL has of secrets.
fn shown(text: &str) -> String {
    let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    cut(&without_secrets(&one_line), LONGEST_EXCEPTION)
}

/// The text with no user, no password and no query in its URLs.
fn without_secrets(text: &str) -> String {
    let words = text.split(' ').map(|word| {
        // Also of a path alone, which is how `requests` names what it could not get.
        let Some(query) = word.find('?').filter(|_| word.contains('/')) else {
            return without_credentials(word);
        };
        let end = word.len()
            - word
                .trim_end_matches(['\'', '"', ')', ',', '.', ':', ';', '>'])
                .len();
        let tail = if word.len() - end > query {
            &word[word.len() - end..]
        } else {
            ""
        };
        format!("{}{tail}", without_credentials(&word[..query]))
    });
    words.collect::<Vec<_>>().join(" ")
}

fn without_credentials(word: &str) -> String {
    let Some((scheme, rest)) = word.split_once("://") else {
        return word.to_owned();
    };
    let authority = rest.find('/').unwrap_or(rest.len());
    let start = rest[..authority].rfind('@').map_or(0, |at| at + 1);
    format!("{scheme}://{}", &rest[start..])
}

fn cut(text: &str, characters: usize) -> String {
    // No character is shorter than a byte.
    if text.len() <= characters {
        return text.to_owned();
    }
    match text.char_indices().nth(characters) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    /// A failure as tests/recorded/failures has it.
    struct Record {
        name: String,
        exit: Exit,
        reason: String,
        lines: Vec<String>,
    }

    fn records() -> Vec<Record> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/recorded/failures");
        let mut files: Vec<PathBuf> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        files
            .iter()
            .map(|file| {
                let text = fs::read_to_string(file).unwrap();
                let header = |name: &str| {
                    let sign = format!("# {name}: ");
                    text.lines()
                        .find_map(|line| line.strip_prefix(&sign))
                        .map(str::to_owned)
                };
                let mut heard = crate::progress::Heard::default();
                for line in text.lines() {
                    heard.hear(line);
                }
                let number = |name: &str| header(name).map(|number| number.parse().unwrap());
                Record {
                    name: file.file_name().unwrap().to_string_lossy().into_owned(),
                    exit: Exit {
                        returncode: header("exit code").unwrap().parse().unwrap(),
                        oom_kills: number("OOM kills"),
                        memory_limit_bytes: number("memory limit"),
                        nan_since: heard.nan_since(),
                    },
                    reason: header("reason").unwrap_or_default(),
                    lines: text
                        .lines()
                        .filter(|line| !line.starts_with("# "))
                        .map(str::to_owned)
                        .collect(),
                }
            })
            .collect()
    }

    fn listener<'a>(lines: impl IntoIterator<Item = &'a str>) -> Listener {
        let mut listener = Listener::default();
        for line in lines {
            listener.hear(line);
        }
        listener
    }

    fn reason(lines: &[&str], returncode: i32) -> Option<String> {
        let exit = Exit {
            returncode,
            ..Exit::default()
        };
        listener(lines.iter().copied()).reason(&exit)
    }

    #[test]
    fn every_recorded_failure_has_the_reason_that_stands_in_its_record() {
        let records = records();
        assert!(records.len() > 40, "{} records", records.len());
        let mut wrong = Vec::new();
        for record in &records {
            let found = listener(record.lines.iter().map(String::as_str)).reason(&record.exit);
            if found.as_deref().unwrap_or("none") != record.reason {
                wrong.push(format!(
                    "{}\n  # reason: {}",
                    record.name,
                    found.unwrap_or("none".to_owned())
                ));
            }
        }
        assert!(
            wrong.is_empty(),
            "not what the records have:\n{}",
            wrong.join("\n")
        );
    }

    #[test]
    fn every_known_failure_has_a_record() {
        let records = records();
        for known in KNOWN {
            assert!(
                records
                    .iter()
                    .any(|record| record.reason.starts_with(known.what)),
                "no record in tests/recorded/failures: {}",
                known.what
            );
        }
    }

    const LAUNCHER: [&str; 3] = [
        "Traceback (most recent call last):",
        "  File \"/env/lib/python3.11/site-packages/accelerate/commands/launch.py\", line 795, in simple_launcher",
        "subprocess.CalledProcessError: Command '['python', 'train.py']' returned non-zero exit status 1.",
    ];

    #[test]
    fn the_last_lines_hold_one_state_of_each_run_of_a_bar() {
        let mut lines: Vec<String> = (0..60).map(|number| format!("line {number}")).collect();
        lines.extend(
            (0..9_999).map(|step| format!("steps:   0%|   | {step}/9999 [00:01<00:03, 1.0it/s]")),
        );
        lines.push("steps: 100%|███| 9999/9999 [00:01<00:00, 1.0it/s]\u{1b}[A".to_owned());
        lines.push(" ".repeat(60));
        lines.push("6it [00:01, 5.42it/s]".to_owned());
        lines.push("é".repeat(3000));
        let last = listener(lines.iter().map(String::as_str)).last_lines();
        let last: Vec<&str> = last.split('\n').collect();
        assert_eq!(last.len(), 50);
        assert_eq!((last[0], last[47]), ("line 12", "line 59"));
        assert_eq!(last[48], "6it [00:01, 5.42it/s]");
        assert_eq!(last[49], format!("{}…", "é".repeat(2000)));
        assert_eq!(Listener::default().last_lines(), "");
    }

    #[test]
    fn what_is_not_known_is_told_as_python_told_it_first() {
        let mut lines = vec![
            "Traceback (most recent call last):",
            "  File \"/clone/train.py\", line 1, in <module>",
            "    KeyError: what a line of code may look like",
            "musubi.Surprise: the cause",
            "",
            "During handling of the above exception, another exception occurred:",
            "",
            "Traceback (most recent call last):",
            "ValueError: what came of it",
        ];
        lines.extend(LAUNCHER);
        assert_eq!(reason(&lines, 1).unwrap(), "musubi.Surprise: the cause");
        assert_eq!(reason(&LAUNCHER, 1), None);
        assert_eq!(reason(&["nothing of use"], 1), None);
        assert_eq!(reason(&[lines[0], "OddError: "], 1).unwrap(), "OddError:");
        let endless = format!("ValueError: {}", "x".repeat(10_000));
        let told = reason(&[lines[0], &endless], 1).unwrap();
        assert_eq!(told.chars().count(), LONGEST_EXCEPTION + 1);
    }

    #[test]
    fn an_exception_that_ended_nothing_is_no_reason() {
        for harmless in [
            "Exception ignored in: <function f at 0x1>",
            "--- Logging error ---",
            "Exception in thread T:",
        ] {
            let lines = [
                harmless,
                "Traceback (most recent call last):",
                "OSError: [Errno 28] No space left on device",
                "Traceback (most recent call last):",
                "KeyError: 'fatal'",
            ];
            assert_eq!(
                reason(&lines, 1).unwrap(),
                "KeyError: 'fatal'",
                "{harmless}"
            );
            assert_eq!(reason(&lines[..3], 1), None, "{harmless}");
        }
    }

    #[test]
    fn of_a_data_loaders_worker_its_own_exception_is_told() {
        let lines = [
            "steps:   0%|          | 0/4 [00:00<?, ?it/s]Traceback (most recent call last):",
            "KeyError: Caught KeyError in DataLoader worker process 0.",
            "Original Traceback (most recent call last):",
            "  File \"/env/lib/python3.11/site-packages/torch/utils/data/_utils/worker.py\", line 349, in _worker_loop",
            "KeyError: 'latents'",
        ];
        assert_eq!(reason(&lines, 1).unwrap(), "KeyError: 'latents'");
    }

    #[test]
    fn what_a_library_says_as_it_aborts_counts() {
        let lines = [
            "terminate called after throwing an instance of 'c10::Error'",
            "  what():  CUDA error: out of memory",
        ];
        let told = reason(&lines, -libc::SIGABRT).unwrap();
        assert!(told.starts_with("out of GPU memory"), "{told}");
        let told = reason(&lines[..1], -libc::SIGABRT).unwrap();
        assert!(told.contains("SIGABRT"), "{told}");
    }

    #[test]
    fn a_kill_is_told_with_what_the_cgroup_knows() {
        let told = |oom_kills, memory_limit_bytes| {
            let exit = Exit {
                returncode: -libc::SIGKILL,
                oom_kills,
                memory_limit_bytes,
                nan_since: None,
            };
            Listener::default().reason(&exit).unwrap()
        };
        let counted = told(Some(2), Some(24 << 30));
        assert!(
            counted.contains("2 processes of this cgroup, whose memory limit is 24.00 GiB"),
            "{counted}"
        );
        assert!(
            counted.contains("kernel's OOM killer") && counted.contains("--memory"),
            "{counted}"
        );
        let unlimited = told(Some(1), None);
        assert!(
            unlimited.contains("1 process of this cgroup. "),
            "{unlimited}"
        );
        assert!(told(Some(0), Some(1)).contains("this cgroup did not"));
        assert!(told(None, None).contains("most often by the kernel's OOM killer"));
    }

    #[test]
    fn a_loss_that_is_no_number_is_told_behind_what_ended_the_step() {
        let lines = [
            "Traceback (most recent call last):",
            "OSError: [Errno 28] No space left on device",
        ];
        let exit = Exit {
            returncode: 1,
            nan_since: Some((3, 2000)),
            ..Exit::default()
        };
        let told = listener(lines).reason(&exit).unwrap();
        assert!(
            told.starts_with("the disk is full") && told.contains("NaN from step 3 of 2000"),
            "{told}"
        );
        let alone = Listener::default().reason(&exit).unwrap();
        assert!(alone.starts_with("the loss was NaN"), "{alone}");
    }

    #[test]
    fn a_warning_of_a_missing_module_is_no_refusal() {
        let lines = [
            "WARNING:bitsandbytes.backends.cpu.ops:Failed to load a kernel: No module named 'kernels'. Please install it",
            "INFO:x: error: none",
        ];
        assert_eq!(reason(&lines, 1), None);
    }

    #[test]
    fn no_reason_has_what_a_url_has_of_secrets() {
        let lines = [
            "Traceback (most recent call last):",
            "OddError: GET https://me:secret@host.example/a/b?token=secret, then ('/blob/x?sig=secret', why?) of http://host:8/?secret",
        ];
        assert_eq!(
            reason(&lines, 1).unwrap(),
            "OddError: GET https://host.example/a/b, then ('/blob/x', why?) of http://host:8/"
        );
    }

    mod properties {
        use std::sync::LazyLock;

        use proptest::collection::vec;
        use proptest::prelude::*;
        use proptest::sample::{Index, select};

        use super::*;

        /// What a step may write at any time, in another thread or process than the one that fails.
        const NOISE: [&str; 6] = [
            "steps:  25%|██▌       | 1/4 [00:00<00:00, 584.57it/s]",
            "\u{1b}[A12it [00:01,  9.30it/s]",
            "Loading model.safetensors:   0%|          | 0/73 [00:00<?, ?it/s]",
            "                                                    ",
            "INFO:musubi_tuner.dataset.cache_io:epoch is incremented. current_epoch: 0, epoch: 1",
            "WARNING:bitsandbytes.backends.cpu.ops:Failed to load a kernel: No module named 'kernels'.",
        ];

        /// What the listener looks for, in any order.
        const PARTS: [&str; 16] = [
            "Traceback (most recent call last):",
            "Original Traceback (most recent call last):",
            "  File \"/env/site-packages/accelerate/commands/launch.py\", line 1, in f",
            "    raise",
            "subprocess.CalledProcessError: Command '[]' died with <Signals.SIGKILL: 9>.",
            "subprocess.CalledProcessError: Command '[]' returned non-zero exit status 99999999999.",
            "During handling of the above exception, another exception occurred:",
            "Exception ignored in: f",
            "MemoryError",
            "ImportError: ",
            "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of",
            "train.py: error: ",
            "python: No module named ",
            "steps:  0%| | | avr_loss=nan]",
            "Loading  from , ",
            "x://y@?z/?",
        ];

        fn line() -> impl Strategy<Value = String> {
            prop_oneof![
                any::<String>(),
                select(PARTS.as_slice()).prop_map(str::to_owned),
                (
                    select(PARTS.as_slice()),
                    any::<String>(),
                    select(PARTS.as_slice())
                )
                    .prop_map(|(one, between, other)| format!("{one}{between}{other}")),
                "[A-Za-z.]{1,9}Error: .{0,40}",
                (select(PARTS.as_slice()), 1_usize..200)
                    .prop_map(|(part, times)| part.repeat(times)),
            ]
        }

        fn held_bytes(listener: &Listener) -> usize {
            let texts = [&listener.loading, &listener.saving, &listener.refusal];
            listener
                .last_lines
                .iter()
                .map(|line| line.text.len())
                .sum::<usize>()
                + texts.into_iter().flatten().map(String::len).sum::<usize>()
                + listener.tracebacks.held_bytes()
        }

        /// What holds for any lines.
        fn check(lines: &[String], exit: &Exit) {
            let listener = listener(lines.iter().map(String::as_str));
            let last = listener.last_lines();
            assert!(
                last.split('\n').count() <= LAST_LINES
                    || lines.iter().any(|line| line.contains('\n'))
            );
            assert!(last.chars().count() <= LAST_LINES * (LONGEST_LINE + 2));
            // Four bytes a character.
            assert!(held_bytes(&listener) < 4 * LONGEST_LINE * (LAST_LINES + 30));
            if let Some(reason) = listener.reason(exit) {
                assert!(!reason.is_empty() && !reason.contains('\n'), "{reason:?}");
                assert!(reason.chars().count() < 3 * LONGEST_EXCEPTION, "{reason}");
            }
        }

        /// The same lines with noise before some of them, and with the code that Python shows under each frame.
        fn noisy<'a>(lines: &'a [String], noise: &[Option<&'a str>]) -> Vec<&'a str> {
            let mut noise = noise.iter().cycle();
            let with_code = |line: &'a String| {
                let code = line
                    .starts_with("  File \"")
                    .then_some(["    raise Odd(\"x: y\")", "    ^^^^^"]);
                std::iter::once(line.as_str()).chain(code.into_iter().flatten())
            };
            lines
                .iter()
                .flat_map(with_code)
                .flat_map(|line| noise.next().copied().flatten().into_iter().chain([line]))
                .collect()
        }

        static RECORDS: LazyLock<Vec<Record>> = LazyLock::new(records);

        fn corpus() -> Vec<Vec<String>> {
            let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/lines");
            let files = fs::read_dir(folder)
                .unwrap()
                .map(|entry| fs::read(entry.unwrap().path()).unwrap());
            files
                .map(|bytes| {
                    String::from_utf8_lossy(&bytes)
                        .split(['\n', '\r'])
                        .map(str::to_owned)
                        .collect()
                })
                .collect()
        }

        fn exits() -> impl Strategy<Value = Exit> {
            let number = || proptest::option::of(any::<u64>());
            let returncode = prop_oneof![-64..3, any::<i32>()];
            (returncode, number(), number()).prop_map(
                |(returncode, oom_kills, memory_limit_bytes)| Exit {
                    returncode,
                    oom_kills,
                    memory_limit_bytes,
                    nan_since: None,
                },
            )
        }

        #[test]
        fn the_corpus_is_heard() {
            let corpus = corpus();
            assert!(corpus.len() > 5);
            for lines in &corpus {
                for returncode in [-9, -4, 0, 1, 2] {
                    let exit = Exit {
                        returncode,
                        ..Exit::default()
                    };
                    check(lines, &exit);
                }
            }
        }

        proptest! {
            #[test]
            fn any_lines_are_heard_in_bounded_memory(lines in vec(line(), 0..80), exit in exits()) {
                check(&lines, &exit);
            }

            #[test]
            fn noise_between_the_lines_changes_no_reason(
                record in any::<Index>(),
                noise in vec(proptest::option::of(select(NOISE.as_slice())), 1..30),
            ) {
                let record = record.get(&RECORDS);
                let lines = noisy(&record.lines, &noise);
                prop_assert_eq!(
                    listener(lines).reason(&record.exit).unwrap_or("none".to_owned()),
                    &*record.reason,
                    "{}", record.name
                );
            }

            #[test]
            fn no_secret_of_a_url_is_told(
                before in "[ -~]{0,20}",
                user in "[a-z]{0,5}",
                path in "[a-z/.]{0,9}",
                after in "[\"'),.:; ]{0,4}",
            ) {
                let text = format!("{before} https://{user}:SECRET@host/{path}?sig=SECRET{after}");
                prop_assert!(!shown(&text).contains("SECRET"), "{}", shown(&text));
            }
        }
    }
}
