//! How many lines a second the reader and the parser alone take in: `cargo run --release --example lines`.
//!
//! Prints one line a kind of output: its name, lines a second with the reader alone, and with all that hears a line.

#![allow(dead_code, reason = "of the modules only what hears lines is run")]

#[path = "../src"]
mod src {
    pub mod failure;
    #[path = "process/lines.rs"]
    pub mod lines;
    pub mod progress;
}

use std::hint::black_box;
use std::time::Instant;

use src::failure::Listener;
use src::lines::LineSplitter;
use src::progress::Heard;

/// What a pipe gives at once.
const CHUNK_BYTES: usize = 16 * 1024;
const LINES: usize = 400_000;
const ROUNDS: usize = 7;

fn main() {
    let log = "INFO:musubi_tuner.dataset.image_video_dataset:bucket: (960, 544), count: 123, batch index 45 of 678";
    let photo =
        "Encoding photo 0123 of 4567 [960x544]: 12 crops, 3.4 GB free, 0.123 s, next one is 0124";
    let bar = "steps:  25%|██▌       | 512/2000 [10:21<31:05,  1.26s/it, avr_loss=0.111]";
    for (name, line, end) in [
        ("log lines", log, "\n"),
        ("plain lines", photo, "\n"),
        ("progress bars", bar, "\r"),
    ] {
        let text = format!("{line}{end}").repeat(LINES);
        let reader = best(&text, |line| {
            black_box(line);
        });
        let (mut heard, mut listener) = (Heard::default(), Listener::default());
        let all = best(&text, |line| {
            black_box(heard.hear(line));
            listener.hear(line);
        });
        println!("{name}\t{reader:.0}\t{all:.0}");
    }
}

/// Lines a second in the best of some rounds.
fn best(text: &str, mut hear: impl FnMut(&str)) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut splitter = LineSplitter::default();
        for chunk in text.as_bytes().chunks(CHUNK_BYTES) {
            splitter.feed(chunk, &mut |line| hear(&String::from_utf8_lossy(line)));
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    #[allow(clippy::cast_precision_loss, reason = "a count of lines")]
    let lines = LINES as f64;
    lines / best
}
