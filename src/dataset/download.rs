//! The zip of photos, from its URL to a file: streamed, retried, resumed, and never two versions spliced.

mod address;
mod ask;
mod encoding;
mod failure;
mod partial;
mod redirect;
#[cfg(test)]
mod tests;
mod transfer;

use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Seek, SeekFrom};
use std::time::Duration;

use reqwest::header;
use reqwest::{Client, StatusCode};

use super::DatasetLimits;
use super::archive::{Arrival, Zip};
use crate::error::Error;
use crate::task::{LogLine, Retry, Task};
pub use address::{RedactedUrl, invalid};
pub use ask::{Answer, ask};
use encoding::undo_encodings;
use failure::{Failure, Stop};
use partial::{Partial, Version, continues, is_whole, text};
use transfer::{Event, Events, client};

/// How patient a download is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Tries in a row that bring nothing; one that brings [`Self::progress_bytes`] starts the count again.
    pub tries: u32,
    pub progress_bytes: u64,
    /// Before the second try; doubles for each one after it.
    pub first_pause: Duration,
    /// The longest `Retry-After` that is obeyed; a longer one is cut to this.
    pub longest_pause: Duration,
    /// This long without a byte, or with fewer than [`Self::window_bytes`], is a stall.
    pub stall: Duration,
    pub window_bytes: u64,
    pub redirects: usize,
    /// The largest zip that is taken.
    pub limit_bytes: u64,
    /// A `Content-Encoding` may inflate without regard to its ratio up to here.
    pub ratio_free_bytes: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            tries: 5,
            progress_bytes: 1 << 20,
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(30),
            stall: Duration::from_secs(60),
            window_bytes: 4 << 10,
            redirects: 30,
            limit_bytes: DatasetLimits::default().zip_bytes,
            ratio_free_bytes: 1 << 30,
        }
    }
}

/// What arrived.
#[derive(Debug)]
pub struct Downloaded {
    /// Without the `Content-Encoding`.
    pub zip: Zip,
    pub content_type: Option<String>,
}

/// Fetches `url`.
///
/// # Errors
/// [`Error::Download`] when the server or the way to it fails (after the retries, where trying again can help),
/// [`Error::Io`] when the disk does, [`Error::Cancelled`].
pub fn download(
    url: &RedactedUrl,
    to: Arrival,
    patience: &Patience,
    task: &Task<LogLine>,
) -> Result<Downloaded, Error> {
    let client = client(url, patience)?;
    let mut partial = Partial::new(to);
    let mut fruitless = 0;
    let mut pause = patience.first_pause;
    let mut furthest = 0;
    let mut cut_at = None;
    loop {
        let failure = match attempt(&client, url, &mut partial, patience, task) {
            Ok(content_type) => {
                // A server that promises too few bytes, or whose own source broke off, passes for one that has sent
                // all. One that does so twice at the same byte has no more than this, which the reader of the zip
                // will say.
                let was_cut_at = cut_at.replace(partial.written());
                if was_cut_at == cut_at
                    || fruitless + 1 >= patience.tries
                    || !is_cut_zip(&mut partial)?
                {
                    let zip = partial.zip.finish()?;
                    return Ok(Downloaded { zip, content_type });
                }
                Failure::connection(
                    "the zip has no end, and the server may have promised too few bytes of it",
                )
            }
            Err(Stop::Final(error)) => return Err(error),
            Err(Stop::Try(failure)) => failure,
        };
        // Only what no try has had before, so that a file that changes with every try is not tried for ever.
        if partial.resumption().is_some()
            && partial.written().saturating_sub(furthest) >= patience.progress_bytes
        {
            (fruitless, pause) = (0, patience.first_pause);
        }
        furthest = furthest.max(partial.written());
        fruitless += 1;
        if !failure.worth_retrying || fruitless >= patience.tries {
            return Err(failure.into_error(url, fruitless));
        }
        let wait = failure
            .retry_after
            .unwrap_or_else(|| jittered(pause))
            .min(patience.longest_pause);
        pause *= 2;
        let text = format!(
            "[dataset] download from {} interrupted: {}; trying again in {:.1} s ({} of {})",
            url.host(),
            failure.reason,
            wait.as_secs_f64(),
            fruitless + 1,
            patience.tries
        );
        let retry = Retry {
            attempt: fruitless + 1,
            wait,
            reason: failure.reason,
        };
        task.warn_of(retry, text)?;
        task.cancel.pause(wait)?;
    }
}

/// Whether a file begins as a zip does and has no such end: a record of 22 bytes, and maybe a comment behind it.
fn is_cut_zip(partial: &mut Partial) -> Result<bool, Error> {
    let zip = partial.zip.so_far()?;
    let look = || -> io::Result<bool> {
        let mut reader = zip.reader();
        let mut head = Vec::new();
        reader.by_ref().take(4).read_to_end(&mut head)?;
        reader.seek(SeekFrom::Start(zip.bytes().saturating_sub(22 + 0xffff)))?;
        let mut tail = Vec::new();
        reader.read_to_end(&mut tail)?;
        Ok(head == b"PK\x03\x04" && !tail.windows(22).any(|end| end.starts_with(b"PK\x05\x06")))
    };
    look().map_err(Error::io("read", zip.path()))
}

/// Between half of `pause` and all of it, so that many clients of one server do not come back at the same moment.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(0u8) >> 11;
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    let fraction = random as f64 / (1u64 << 53) as f64;
    pause.mul_f64(0.5 + fraction / 2.0)
}

/// One request, its answer written behind what is there already; the `Content-Type`.
fn attempt(
    client: &Client,
    url: &RedactedUrl,
    partial: &mut Partial,
    patience: &Patience,
    task: &Task<LogLine>,
) -> Result<Option<String>, Stop> {
    let resumption = partial.resumption();
    if resumption.is_none() {
        partial.restart()?;
    }
    let mut events = Events::start(client, url, resumption.clone(), patience, task)?;
    let Event::Head { status, headers } = events.next()? else {
        return Err(Stop::Try(Failure::connection(
            "the server answered nothing",
        )));
    };
    if status == StatusCode::RANGE_NOT_SATISFIABLE && resumption.is_some() {
        partial.restart()?;
        return Err(Stop::Try(Failure::connection(
            "the file on the server is another one now",
        )));
    }
    if status.is_client_error() || status.is_server_error() {
        return Err(Stop::Try(Failure::status(status, &headers)));
    }
    if status == StatusCode::PARTIAL_CONTENT && !(resumption.is_none() && is_whole(&headers)) {
        if let Err(reason) = continues(partial, &headers) {
            partial.restart()?;
            return Err(Stop::Try(Failure::connection(reason)));
        }
    } else {
        partial.restart()?;
        let version = Version::of(status, &headers);
        if let Some(total) = version.total {
            check_limit(total, patience)?;
        }
        partial.begin(version)?;
    }
    let total = partial.version.as_ref().and_then(|version| version.total);
    loop {
        let event = events.next();
        match event.map_err(|stop| stop.after(partial.written(), total))? {
            Event::Chunk(chunk) => {
                let chunk = (*chunk).as_ref();
                check_limit(partial.written() + chunk.len() as u64, patience)?;
                partial.append(chunk)?;
            }
            Event::End => break,
            Event::Head { .. } | Event::Failed(_) => {}
        }
    }
    if let Some(total) = total.filter(|total| *total != partial.written()) {
        let reason = format!("{} of {total} bytes arrived", partial.written());
        if partial.written() > total {
            partial.restart()?;
        }
        return Err(Stop::Try(Failure::connection(reason)));
    }
    let encodings = partial
        .version
        .take()
        .map(|version| version.encodings)
        .unwrap_or_default();
    undo_encodings(partial, encodings, patience, task)?;
    Ok(text(&headers, &header::CONTENT_TYPE).map(str::to_owned))
}

/// # Errors
/// When `bytes` are more than are taken.
fn check_limit(bytes: u64, patience: &Patience) -> Result<(), Stop> {
    if bytes > patience.limit_bytes {
        return Err(Stop::Try(Failure::final_connection(format!(
            "the zip is larger than what is taken: {bytes} bytes so far or promised, {} allowed: put fewer photos into \
             it, or set trainer.dataset_limits = DatasetLimits(zip_bytes=...)",
            patience.limit_bytes
        ))));
    }
    Ok(())
}
