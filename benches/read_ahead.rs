//! Reads files ahead for so long, and says what came of it: `read_ahead SECONDS FILE…`.

#![allow(dead_code, reason = "of the modules only what reads ahead is run")]

#[path = "../src/cgroup.rs"]
mod cgroup;
#[path = "../src/read_ahead.rs"]
mod read_ahead;

use std::time::{Duration, Instant};

fn main() {
    let mut words = std::env::args().skip(1);
    let seconds = words.next().and_then(|word| word.parse().ok());
    let files = words.map(Into::into).collect();
    let reading = read_ahead::ReadAhead::start(Vec::new(), files);
    std::thread::sleep(Duration::from_secs_f64(seconds.unwrap_or(0.0)));
    let stopping = Instant::now();
    let outcome = reading.stop();
    println!("{}\t{outcome}", stopping.elapsed().as_secs_f64());
}
