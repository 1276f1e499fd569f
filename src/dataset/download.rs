//! The zip of photos, from its URL to a file: streamed, retried, resumed, and never two versions spliced.

use std::error::Error as _;
use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use flate2::bufread::GzDecoder;
use flate2::read::{DeflateDecoder, ZlibDecoder};
use reqwest::blocking::{Client, Response};
use reqwest::header::{self, HeaderMap, HeaderName};
use reqwest::{StatusCode, Url, redirect};

use super::{proxy, space, tls};
use crate::error::{DownloadFailure, Error};
use crate::task::{LogLine, Task};

/// How often a waiting download looks for its cancellation; the promise is 100 ms.
const CANCEL_POLL: Duration = Duration::from_millis(50);

/// Bytes handed over at a time, and how many such chunks may wait for the disk: bounds memory for any size of zip.
const CHUNK_BYTES: usize = 256 << 10;
const CHUNKS_WAITING: usize = 4;

const USER_AGENT: &str = concat!("TechTrash_MusubiTraining/", env!("CARGO_PKG_VERSION"));

/// The URL of a zip. Signed links carry their secret in the query, so nothing that this type prints has a query,
/// a fragment, a user or a password.
#[derive(Clone)]
pub struct RedactedUrl {
    url: Url,
    shown: String,
}

impl RedactedUrl {
    /// # Errors
    /// [`Error::InvalidValue`] for what is no `http://` or `https://` URL.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let invalid = |found: &str| {
            Error::InvalidValue(format!(
                "images_zip_url must be the http:// or https:// address of a zip of photos, but {found}"
            ))
        };
        let url = Url::parse(text).map_err(|error| match error {
            _ if text.trim().is_empty() => invalid("it is empty"),
            // "example.com/photos.zip", "/photos.zip"
            _ if !text.contains("://") => invalid("it does not begin with http:// or https://"),
            error => invalid(&format!("it cannot be read as a URL: {error}")),
        })?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(invalid(&format!("its scheme is {:?}", url.scheme())));
        }
        let as_written = text.trim();
        let shown = if url.username().is_empty()
            && url.password().is_none()
            && !as_written.contains(char::is_control)
        {
            as_written
                .split(['?', '#'])
                .next()
                .unwrap_or_default()
                .to_owned()
        } else {
            let mut bare = url.clone();
            bare.set_query(None);
            bare.set_fragment(None);
            // Both can only fail for a URL without a host, which http has not.
            let _ = bare.set_username("");
            let _ = bare.set_password(None);
            bare.to_string()
        };
        Ok(Self { url, shown })
    }

    /// For messages: the host, with its port where one was given.
    #[must_use]
    pub fn host(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        self.url
            .port()
            .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }
}

impl fmt::Display for RedactedUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.shown)
    }
}

impl fmt::Debug for RedactedUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "RedactedUrl({:?})", self.shown)
    }
}

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
            limit_bytes: 64 << 30,
        }
    }
}

/// What arrived.
#[derive(Debug)]
pub struct Downloaded {
    /// Without the `Content-Encoding`.
    pub bytes: u64,
    pub content_type: Option<String>,
}

/// Fetches `url` into the file `to`.
///
/// # Errors
/// [`Error::Download`] when the server or the way to it fails (after the retries, where trying again can help),
/// [`Error::Io`] when the disk does, [`Error::Cancelled`].
pub fn download(
    url: &RedactedUrl,
    to: &Path,
    patience: &Patience,
    task: &Task<LogLine>,
) -> Result<Downloaded, Error> {
    let client = client(url, patience)?;
    let mut partial = Partial::create(to)?;
    let mut fruitless = 0;
    let mut pause = patience.first_pause;
    loop {
        let before = partial.written;
        let failure = match attempt(&client, url, &mut partial, patience, task) {
            Ok(downloaded) => return Ok(downloaded),
            Err(Stop::Final(error)) => return Err(error),
            Err(Stop::Try(failure)) => failure,
        };
        if partial.resumption().is_some()
            && partial.written.saturating_sub(before) >= patience.progress_bytes
        {
            (fruitless, pause) = (0, patience.first_pause);
        }
        fruitless += 1;
        if !failure.worth_retrying || fruitless >= patience.tries {
            return Err(failure.into_error(url, fruitless));
        }
        let wait = failure
            .retry_after
            .map_or_else(|| jittered(pause), |wait| wait.min(patience.longest_pause));
        pause *= 2;
        task.warn(format!(
            "[dataset] download from {} interrupted after {} bytes: {}; trying again in {:.1} s ({} of {})",
            url.host(),
            partial.written,
            failure.reason,
            wait.as_secs_f64(),
            fruitless + 1,
            patience.tries
        ))?;
        task.cancel.pause(wait)?;
    }
}

/// Between half of `pause` and all of it, so that many clients of one server do not come back at the same moment.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(0u8) >> 11;
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    let fraction = random as f64 / (1u64 << 53) as f64;
    pause.mul_f64(0.5 + fraction / 2.0)
}

/// Why one try ended.
enum Stop {
    /// Trying again cannot help.
    Final(Error),
    Try(Failure),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

#[derive(Debug)]
struct Failure {
    kind: DownloadFailure,
    reason: String,
    worth_retrying: bool,
    retry_after: Option<Duration>,
}

impl Failure {
    fn connection(reason: impl Into<String>) -> Self {
        Self {
            kind: DownloadFailure::Connection,
            reason: reason.into(),
            worth_retrying: true,
            retry_after: None,
        }
    }

    fn timeout(reason: impl Into<String>) -> Self {
        Self {
            kind: DownloadFailure::Timeout,
            ..Self::connection(reason)
        }
    }

    fn final_connection(reason: impl Into<String>) -> Self {
        Self {
            worth_retrying: false,
            ..Self::connection(reason)
        }
    }

    fn status(status: StatusCode, headers: &HeaderMap) -> Self {
        let meaning = match status.as_u16() {
            401 | 403 => {
                "; a signed link that has run out answers so: make a new one, or put user and password in the URL"
            }
            404 | 410 => {
                "; the file is not (or no longer) there, or a signed link has run out: check the link"
            }
            407 => "; the proxy wants a user and a password: put them in HTTPS_PROXY",
            _ => "",
        };
        Self {
            kind: DownloadFailure::Status(status.as_u16()),
            reason: format!(
                "the server answered {} {}{meaning}",
                status.as_u16(),
                status.canonical_reason().unwrap_or("(no reason given)")
            ),
            // 408 and 425 ask for it, 429 and 5xx pass.
            worth_retrying: matches!(status.as_u16(), 408 | 425 | 429) || status.is_server_error(),
            retry_after: text(headers, &header::RETRY_AFTER)
                .and_then(|seconds| seconds.trim().parse().ok())
                .map(Duration::from_secs),
        }
    }

    /// The error's own text holds the URL, so only its cause is told.
    fn request(error: &reqwest::Error) -> Self {
        let cause = innermost(error);
        if error.is_redirect() {
            return Self::final_connection(format!("the server's redirects lead nowhere: {cause}"));
        }
        if error.is_builder() {
            return Self::final_connection(format!("the request cannot be made: {cause}"));
        }
        if error.is_timeout() {
            return Self::timeout("no answer in time");
        }
        if cause.contains("certificate") {
            return Self::final_connection(format!(
                "its TLS certificate is not trusted ({cause}); where a company's proxy signs it, point \
                 REQUESTS_CA_BUNDLE or SSL_CERT_FILE at the CA bundle"
            ));
        }
        Self::connection(if error.is_connect() {
            format!("cannot connect: {cause}")
        } else {
            cause
        })
    }

    fn into_error(self, url: &RedactedUrl, tries: u32) -> Error {
        let tries = if tries > 1 {
            format!(" (tried {tries} times)")
        } else {
            String::new()
        };
        Error::Download {
            failure: self.kind,
            message: format!(
                "cannot download the zip of photos from {}: {}{tries}",
                url.host(),
                self.reason
            ),
        }
    }
}

/// The deepest cause's words; those of a `reqwest::Error` itself would hold the URL.
fn innermost(error: &reqwest::Error) -> String {
    let mut cause = error.source();
    let mut words = "the request failed".to_owned();
    while let Some(error) = cause {
        if !error.is::<reqwest::Error>() {
            words = error.to_string();
        }
        cause = error.source();
    }
    words
}

fn client(url: &RedactedUrl, patience: &Patience) -> Result<Client, Error> {
    let trusted = match tls::config() {
        Err(_) if url.url.scheme() == "http" => tls::config_without_bundle()?,
        config => config?,
    };
    Client::builder()
        .user_agent(USER_AGENT)
        .proxy(proxy::of_the_environment())
        // For the connection and the answer's head, then for each read: the total has no limit.
        .timeout(patience.stall)
        .redirect(redirect::Policy::limited(patience.redirects))
        // Some hosts set a cookie on the redirect to the file and ask for it there.
        .cookie_store(true)
        // A Referer would hand the signed query to the host that it redirects to.
        .referer(false)
        // Heads that other clients read, too: blanks before the colon, folded lines, lines that are no header.
        .http1_allow_spaces_after_header_name_in_responses(true)
        .http1_allow_obsolete_multiline_headers_in_responses(true)
        .http1_ignore_invalid_headers_in_responses(true)
        // A retry starts on a fresh connection.
        .pool_max_idle_per_host(0)
        .use_preconfigured_tls(trusted)
        .build()
        .map_err(|error| Error::Unusable(format!("cannot set up HTTPS: {}", innermost(&error))))
}

/// The file so far, and what is needed to go on with it.
struct Partial {
    path: PathBuf,
    file: File,
    written: u64,
    /// Of the version that the bytes so far belong to.
    version: Option<Version>,
}

/// One state of the file on the server.
struct Version {
    total: Option<u64>,
    encodings: Vec<String>,
    validator: Option<String>,
}

impl Partial {
    fn create(path: &Path) -> Result<Self, Error> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .map_err(Error::io("write", path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            written: 0,
            version: None,
        })
    }

    fn restart(&mut self) -> Result<(), Error> {
        self.version = None;
        self.written = 0;
        self.file
            .set_len(0)
            .map_err(Error::io("write", &self.path))?;
        self.file
            .seek(SeekFrom::Start(0))
            .map_err(Error::io("write", &self.path))?;
        Ok(())
    }

    fn append(&mut self, chunk: &[u8]) -> Result<(), Error> {
        self.file
            .write_all(chunk)
            .map_err(space::write_failed(&self.path))?;
        self.written += chunk.len() as u64;
        Ok(())
    }

    /// What `Range` and `If-Range` say to go on, where there is something to go on with and a validator that tells
    /// whether the file is still the same.
    fn resumption(&self) -> Option<(String, String)> {
        let validator = self.version.as_ref()?.validator.clone()?;
        (self.written > 0).then(|| (format!("bytes={}-", self.written), validator))
    }
}

impl Version {
    fn of(headers: &HeaderMap) -> Self {
        Self {
            total: text(headers, &header::CONTENT_LENGTH).and_then(|length| length.parse().ok()),
            encodings: encodings(headers),
            validator: validator(headers),
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn encodings(headers: &HeaderMap) -> Vec<String> {
    let values = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(|encoding| encoding.trim().to_ascii_lowercase())
        .filter(|encoding| !encoding.is_empty() && encoding != "identity")
        .collect()
}

/// A strong validator: an `ETag` that is not weak, else a `Last-Modified` that is older than the answer (a file may
/// change twice within its one second of resolution; RFC 9110, 8.8.2.2).
fn validator(headers: &HeaderMap) -> Option<String> {
    if let Some(etag) = text(headers, &header::ETAG).filter(|etag| etag.starts_with('"')) {
        return Some(etag.to_owned());
    }
    let modified = text(headers, &header::LAST_MODIFIED)?;
    (text(headers, &header::DATE) != Some(modified)).then(|| modified.to_owned())
}

/// What the thread that waits for the network hands over.
enum Event {
    Head {
        status: StatusCode,
        headers: HeaderMap,
    },
    Chunk(Vec<u8>),
    End,
    Failed(Failure),
}

/// One request, its answer written behind what is there already.
fn attempt(
    client: &Client,
    url: &RedactedUrl,
    partial: &mut Partial,
    patience: &Patience,
    task: &Task<LogLine>,
) -> Result<Downloaded, Stop> {
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
        let version = Version::of(&headers);
        if let Some(total) = version.total {
            check_limit(total, patience)?;
            space::require(&partial.path, total, "the download")?;
        }
        partial.version = Some(version);
    }
    loop {
        match events.next()? {
            Event::Chunk(chunk) => {
                partial.append(&chunk)?;
                check_limit(partial.written, patience)?;
            }
            Event::End => break,
            Event::Head { .. } | Event::Failed(_) => {}
        }
    }
    let total = partial.version.as_ref().and_then(|version| version.total);
    if let Some(total) = total.filter(|total| *total != partial.written) {
        let reason = format!("{} of {total} bytes arrived", partial.written);
        return Err(Stop::Try(Failure::connection(reason)));
    }
    let encodings = partial
        .version
        .take()
        .map(|version| version.encodings)
        .unwrap_or_default();
    let bytes = undo_encodings(partial, encodings, patience, task)?;
    Ok(Downloaded {
        bytes,
        content_type: text(&headers, &header::CONTENT_TYPE).map(str::to_owned),
    })
}

fn check_limit(bytes: u64, patience: &Patience) -> Result<(), Stop> {
    if bytes > patience.limit_bytes {
        return Err(Stop::Try(Failure::final_connection(format!(
            "the zip is larger than what is taken: {bytes} bytes so far or promised, {} allowed",
            patience.limit_bytes
        ))));
    }
    Ok(())
}

/// Whether a 206 that nobody asked for brings all of the file: some servers and proxies always answer so.
fn is_whole(headers: &HeaderMap) -> bool {
    let Some(range) = headers.get(header::CONTENT_RANGE) else {
        return true;
    };
    let whole = |range: &str| {
        let (span, total) = range.strip_prefix("bytes ")?.split_once('/')?;
        let (start, end) = span.split_once('-')?;
        let after_end = end.trim().parse::<u64>().ok()?.checked_add(1)?;
        let is_total = total.trim() == "*" || total.trim().parse() == Ok(after_end);
        Some(start.trim() == "0" && is_total)
    };
    range.to_str().ok().and_then(whole).unwrap_or_default()
}

/// Whether a 206 goes on exactly where the file ends, with the same version of it.
fn continues(partial: &Partial, headers: &HeaderMap) -> Result<(), String> {
    let Some(version) = partial.version.as_ref().filter(|_| partial.written > 0) else {
        return Err("the server sent a part of the file where all of it was asked for".to_owned());
    };
    let range = text(headers, &header::CONTENT_RANGE).unwrap_or_default();
    let parsed = range.strip_prefix("bytes ").and_then(|range| {
        let (span, total) = range.split_once('/')?;
        Some((
            span.split_once('-')?.0.trim().parse::<u64>().ok()?,
            total.trim().parse::<u64>().ok(),
        ))
    });
    let Some((start, total)) = parsed else {
        return Err(format!(
            "the server resumed with an unreadable Content-Range {range:?}"
        ));
    };
    if start != partial.written {
        return Err(format!(
            "the server resumed at byte {start} where byte {} was asked for",
            partial.written
        ));
    }
    if total.is_some_and(|total| version.total.is_some_and(|known| known != total)) {
        return Err("the file on the server has another length now".to_owned());
    }
    let etag = text(headers, &header::ETAG);
    if etag.is_some_and(|etag| {
        version
            .validator
            .as_ref()
            .is_some_and(|known| known.starts_with('"') && known != etag)
    }) || encodings(headers) != version.encodings
    {
        return Err("the file on the server is another one now".to_owned());
    }
    Ok(())
}

/// A request in the hands of a thread of its own, since a read from the network cannot be interrupted: on
/// cancellation the thread is left alone, and ends at its next word or at its time-out.
struct Events<'a> {
    receiver: Receiver<Event>,
    stall: Duration,
    window: Window,
    task: &'a Task<LogLine>,
}

/// The bytes of the last while.
struct Window {
    since: Instant,
    bytes: u64,
    wanted_bytes: u64,
}

impl<'a> Events<'a> {
    fn start(
        client: &Client,
        url: &RedactedUrl,
        resumption: Option<(String, String)>,
        patience: &Patience,
        task: &'a Task<LogLine>,
    ) -> Result<Self, Error> {
        // Without an encoding of the way the bytes are the file's, and can be resumed.
        let mut request = client
            .get(url.url.clone())
            .header(header::ACCEPT_ENCODING, "identity");
        if let Some((range, validator)) = resumption {
            request = request
                .header(header::RANGE, range)
                .header(header::IF_RANGE, validator);
        }
        let (sender, receiver) = sync_channel(CHUNKS_WAITING);
        std::thread::Builder::new()
            .name("download".to_owned())
            .spawn(move || match request.send() {
                Ok(response) => relay(response, &sender),
                Err(error) => drop(sender.send(Event::Failed(Failure::request(&error)))),
            })
            .map_err(|error| {
                Error::Unusable(format!("cannot start a thread for the download: {error}"))
            })?;
        let window = Window {
            since: Instant::now(),
            bytes: 0,
            wanted_bytes: patience.window_bytes,
        };
        Ok(Self {
            receiver,
            stall: patience.stall,
            window,
            task,
        })
    }

    fn next(&mut self) -> Result<Event, Stop> {
        let waiting_since = Instant::now();
        loop {
            self.task.check()?;
            match self.receiver.recv_timeout(CANCEL_POLL) {
                Ok(Event::Failed(failure)) => return Err(Stop::Try(failure)),
                Ok(Event::Chunk(chunk)) => {
                    self.window.bytes += chunk.len() as u64;
                    self.check_speed()?;
                    return Ok(Event::Chunk(chunk));
                }
                Ok(event) => return Ok(event),
                Err(RecvTimeoutError::Timeout) if waiting_since.elapsed() < self.stall => {}
                Err(RecvTimeoutError::Timeout) => {
                    let reason =
                        format!("the server sent nothing for {} s", self.stall.as_secs_f32());
                    return Err(Stop::Try(Failure::timeout(reason)));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Stop::Try(Failure::connection("the download broke off")));
                }
            }
        }
    }

    fn check_speed(&mut self) -> Result<(), Stop> {
        if self.window.since.elapsed() >= self.stall {
            if self.window.bytes < self.window.wanted_bytes {
                return Err(Stop::Try(Failure::timeout(format!(
                    "the server sent {} bytes in {} s",
                    self.window.bytes,
                    self.stall.as_secs_f32()
                ))));
            }
            (self.window.since, self.window.bytes) = (Instant::now(), 0);
        }
        Ok(())
    }
}

/// Reads the answer to its end. An error in sending means that nobody wants it any more.
fn relay(mut response: Response, sender: &SyncSender<Event>) {
    let head = Event::Head {
        status: response.status(),
        headers: std::mem::take(response.headers_mut()),
    };
    if sender.send(head).is_err() {
        return;
    }
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let event = match response.read(&mut buffer) {
            Ok(0) => Event::End,
            Ok(count) => Event::Chunk(buffer[..count].to_vec()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Event::Failed(body_failure(&error)),
        };
        let more = matches!(event, Event::Chunk(_));
        if sender.send(event).is_err() || !more {
            return;
        }
    }
}

fn body_failure(error: &io::Error) -> Failure {
    match error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<reqwest::Error>())
    {
        Some(error) if error.is_timeout() => Failure::timeout("the server stopped sending"),
        Some(error) => Failure::connection(innermost(error)),
        None => Failure::connection(error.kind().to_string()),
    }
}

/// Undoes `Content-Encoding` on the finished file, the last encoding first: kept as sent until here, so that a cut
/// download of an encoded file resumes too.
fn undo_encodings(
    partial: &mut Partial,
    encodings: Vec<String>,
    patience: &Patience,
    task: &Task<LogLine>,
) -> Result<u64, Stop> {
    for encoding in encodings.into_iter().rev() {
        let encoded = File::open(&partial.path).map_err(Error::io("read", &partial.path))?;
        let mut encoded = io::BufReader::with_capacity(CHUNK_BYTES, encoded);
        let mut decoder: Box<dyn Read> = match encoding.as_str() {
            "gzip" | "x-gzip" => Box::new(GzipMembers::new(encoded)),
            // "deflate" means zlib, but some servers send it bare (RFC 9110, 8.4.1.2).
            "deflate"
                if has_zlib_header(&mut encoded).map_err(Error::io("read", &partial.path))? =>
            {
                Box::new(ZlibDecoder::new(encoded))
            }
            "deflate" => Box::new(DeflateDecoder::new(encoded)),
            // Stores keep whatever an upload named there ("utf-8", "aws-chunked"), and send it along with a file that
            // is in no encoding at all.
            other => {
                task.info(format!(
                    "[dataset] the server names the encoding {other:?}, which is unknown: the zip is read as it came"
                ))?;
                continue;
            }
        };
        let path = partial.path.with_extension("decoded");
        let mut plain = Partial::create(&path)?;
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            task.check()?;
            match decoder.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => plain.append(&buffer[..count])?,
                Err(error) => {
                    partial.restart()?;
                    let reason =
                        format!("its {encoding} encoding breaks off or is damaged: {error}");
                    return Err(Stop::Try(Failure::connection(reason)));
                }
            }
            check_limit(plain.written, patience)?;
        }
        std::fs::rename(&path, &partial.path).map_err(Error::io("rename", &path))?;
        plain.path.clone_from(&partial.path);
        *partial = plain;
    }
    Ok(partial.written)
}

/// The members of a gzip file, one after the other (RFC 1952, 2.2). What follows them and is none is ignored.
struct GzipMembers<R> {
    /// `None` behind the last one.
    member: Option<GzDecoder<R>>,
    /// A later member than the first that has brought nothing so far, so that it may be none.
    is_doubtful: bool,
}

impl<R: BufRead> GzipMembers<R> {
    fn new(reader: R) -> Self {
        Self {
            member: Some(GzDecoder::new(reader)),
            is_doubtful: false,
        }
    }
}

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(mut member) = self.member.take() {
            match member.read(buffer) {
                Ok(0) => {
                    let mut rest = member.into_inner();
                    if !rest.fill_buf()?.is_empty() {
                        self.member = Some(GzDecoder::new(rest));
                        self.is_doubtful = true;
                    }
                }
                Err(error) if self.is_doubtful && error.raw_os_error().is_none() => {}
                result => {
                    self.is_doubtful &= result.is_err();
                    self.member = Some(member);
                    return result;
                }
            }
        }
        Ok(0)
    }
}

/// RFC 1950, 2.2: compression method 8, and the first two bytes a multiple of 31.
fn has_zlib_header(reader: &mut (impl Read + Seek)) -> io::Result<bool> {
    let mut head = [0; 2];
    let read = reader.read(&mut head)?;
    reader.rewind()?;
    Ok(read == 2 && head[0] & 0x0f == 8 && u16::from_be_bytes(head) % 31 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::samples::{Reply, Server, answer, lines, ok, silence, task};
    use crate::task::Level;

    const SECRET: &str = "s3cr3t";

    fn impatient() -> Patience {
        let moment = Duration::from_millis(1);
        Patience {
            first_pause: moment,
            longest_pause: moment,
            progress_bytes: 1 << 10,
            ..Patience::default()
        }
    }

    /// Fetches from the server's URL with `suffix`; what arrived, or the error.
    fn fetch(
        server: &Server,
        suffix: &str,
        patience: &Patience,
    ) -> (Result<Vec<u8>, Error>, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("images.zip");
        let (task, said) = task();
        let url = RedactedUrl::parse(&format!("{}{suffix}", server.url())).unwrap();
        let result = download(&url, &to, patience, &task).map(|downloaded| {
            let content = std::fs::read(&to).unwrap();
            assert_eq!(downloaded.bytes, content.len() as u64);
            content
        });
        (result, lines(&said, Level::Warning))
    }

    fn failure(error: &Error) -> DownloadFailure {
        match error {
            Error::Download { failure, .. } => *failure,
            other => panic!("a download error is wanted: {other:?}"),
        }
    }

    fn body() -> Vec<u8> {
        (0..40_000u32).flat_map(u32::to_le_bytes).collect()
    }

    #[test]
    fn a_url_is_shown_without_its_secrets() {
        for (text, shown) in [
            ("http://host/a.zip", "http://host/a.zip"),
            (
                "https://host:8443/a%20b.zip?sig=s3cr3t",
                "https://host:8443/a%20b.zip",
            ),
            ("http://host/a.zip#s3cr3t", "http://host/a.zip"),
            (
                "http://me:s3cr3t@host/a.zip?x=s3cr3t#s3cr3t",
                "http://host/a.zip",
            ),
            ("http://s3cr3t@host", "http://host/"),
            ("http://me:s3cr3t@host\\@a", "http://host/@a"),
            ("ht\ntp://me:s3cr3t@host/a?s3cr3t", "http://host/a"),
        ] {
            let url = RedactedUrl::parse(text).unwrap();
            assert_eq!(url.to_string(), shown, "{text}");
            assert!(
                !format!("{url:?} {}", url.host()).contains(SECRET),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_http_url_is_a_value_error_without_secrets() {
        for text in [
            "",
            " ",
            "photos.zip",
            "/a.zip?s3cr3t",
            "ftp://me:s3cr3t@host/a.zip",
            "file:///a?s3cr3t",
            "http://",
            "http://h:s3cr3t/",
        ] {
            let error = RedactedUrl::parse(text).unwrap_err();
            assert!(matches!(error, Error::InvalidValue(_)), "{text}");
            assert!(
                error.to_string().contains("http://") && !error.to_string().contains(SECRET),
                "{error}"
            );
        }
    }

    #[test]
    fn a_file_arrives_whole_with_one_request() {
        let server = Server::start(vec![ok("", &body())]);
        assert_eq!(fetch(&server, "", &impatient()).0.unwrap(), body());
        let requests = server.requests();
        assert_eq!(requests.len(), 1);
        assert!(
            requests[0].contains("user-agent: techtrash_musubitraining/1.0.0"),
            "{}",
            requests[0]
        );
    }

    #[test]
    fn user_and_password_of_the_url_are_used() {
        let server = Server::start(vec![ok("", b"x")]);
        let url = RedactedUrl::parse(&format!("http://me:{SECRET}@{}/a", server.address)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        download(&url, &folder.path().join("a"), &impatient(), &task().0).unwrap();
        assert!(
            server.requests()[0].contains("authorization: basic bwu6cznjcjn0"),
            "{:?}",
            server.requests()
        );
    }

    #[test]
    fn a_refusal_is_told_at_once_and_without_secrets() {
        for (status, hint) in [
            ("404 Not Found", "link"),
            ("403 Forbidden", "run out"),
            ("410 Gone", "link"),
            ("400 Bad", "400"),
        ] {
            let server = Server::start(vec![answer(status, b"no")]);
            let (result, warnings) = fetch(&server, &format!("?sig={SECRET}"), &impatient());
            let error = result.unwrap_err();
            let DownloadFailure::Status(code) = failure(&error) else {
                panic!("{error:?}")
            };
            assert!(
                status.starts_with(&code.to_string()) && error.to_string().contains(hint),
                "{error}"
            );
            assert!(
                error.to_string().contains("127.0.0.1") && !format!("{error:?}").contains(SECRET),
                "{error:?}"
            );
            assert_eq!(
                (server.requests().len(), warnings.len()),
                (1, 0),
                "{status}"
            );
        }
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        for status in [
            "500 Oops",
            "503 Busy",
            "429 Slow\r\nRetry-After: 1",
            "408 Late",
            "425 Early",
        ] {
            let server = Server::start(vec![answer(status, b""), ok("", &body())]);
            let (result, warnings) = fetch(&server, &format!("?sig={SECRET}"), &impatient());
            assert_eq!(result.unwrap(), body(), "{status}");
            assert_eq!(
                (server.requests().len(), warnings.len()),
                (2, 1),
                "{status}"
            );
            assert!(
                warnings[0].contains(&status[..3]) && !warnings[0].contains(SECRET),
                "{warnings:?}"
            );
        }
    }

    #[test]
    fn tries_are_bounded() {
        let server = Server::start(vec![answer("500 Oops", b"")]);
        let error = fetch(&server, "", &impatient()).0.unwrap_err();
        assert_eq!(failure(&error), DownloadFailure::Status(500));
        assert_eq!(server.requests().len(), 5);
        // Cut behind each byte that counts as progress, but without a way to go on from there.
        let server = Server::start(vec![answer(
            "200 OK\r\nContent-Length: 160000",
            &body()[..90_000],
        )]);
        assert_eq!(
            failure(&fetch(&server, "", &impatient()).0.unwrap_err()),
            DownloadFailure::Connection
        );
        assert_eq!(server.requests().len(), 5);
    }

    #[test]
    fn nobody_listening_is_a_connection_failure() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = RedactedUrl::parse(&format!(
            "http://{}/?{SECRET}",
            listener.local_addr().unwrap()
        ))
        .unwrap();
        drop(listener);
        let folder = tempfile::tempdir().unwrap();
        let error = download(&url, &folder.path().join("a"), &impatient(), &task().0).unwrap_err();
        assert_eq!(failure(&error), DownloadFailure::Connection);
        assert!(
            error.to_string().contains("refused") && !format!("{error:?}").contains(SECRET),
            "{error}"
        );
    }

    #[test]
    fn a_cut_body_is_resumed_where_it_ended() {
        let whole = body();
        for validator in [
            "ETag: \"one\"",
            "Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\nDate: Tue, 02 Jan 2024 00:00:00 GMT",
        ] {
            let rest = format!(
                "206 Partial\r\nContent-Length: 100000\r\nContent-Range: bytes 60000-159999/160000\r\n{validator}"
            );
            let server = Server::start(vec![
                answer(
                    &format!("200 OK\r\nContent-Length: 160000\r\n{validator}"),
                    &whole[..60_000],
                ),
                answer(&rest, &whole[60_000..]),
            ]);
            assert_eq!(
                fetch(&server, "", &impatient()).0.unwrap(),
                whole,
                "{validator}"
            );
            let again = &server.requests()[1];
            assert!(
                again.contains("range: bytes=60000-\r\n") && again.contains("if-range: "),
                "{again}"
            );
        }
    }

    #[test]
    fn two_versions_are_never_spliced() {
        let (old, new) = (vec![1; 160_000], body());
        let cut = |etag: &str| {
            answer(
                &format!("200 OK\r\nContent-Length: 160000\r\n{etag}"),
                &old[..60_000],
            )
        };
        let part = |headers: &str| {
            answer(
                &format!("206 Partial\r\nContent-Length: 100000\r\n{headers}"),
                &new[60_000..],
            )
        };
        let whole = || ok("\r\nETag: \"two\"", &new);
        for (name, replies) in [
            (
                "the server sends the new file",
                vec![cut("ETag: \"one\""), whole()],
            ),
            (
                "another ETag",
                vec![
                    cut("ETag: \"one\""),
                    part("Content-Range: bytes 60000-159999/160000\r\nETag: \"two\""),
                    whole(),
                ],
            ),
            (
                "another place",
                vec![
                    cut("ETag: \"one\""),
                    part("Content-Range: bytes 50000-149999/160000"),
                    whole(),
                ],
            ),
            (
                "another length",
                vec![
                    cut("ETag: \"one\""),
                    part("Content-Range: bytes 60000-159999/170000"),
                    whole(),
                ],
            ),
            (
                "no place",
                vec![cut("ETag: \"one\""), part("X: y"), whole()],
            ),
            (
                "no range any more",
                vec![cut("ETag: \"one\""), answer("416 No", b""), whole()],
            ),
            (
                "a part unasked for",
                vec![part("Content-Range: bytes 60000-159999/160000"), whole()],
            ),
            ("weak ETag", vec![cut("ETag: W/\"one\""), whole()]),
            (
                "too fresh",
                vec![
                    cut(
                        "Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT",
                    ),
                    whole(),
                ],
            ),
        ] {
            let server = Server::start(replies);
            assert_eq!(fetch(&server, "", &impatient()).0.unwrap(), new, "{name}");
            let last = server.requests().pop().unwrap();
            assert_eq!(
                last.contains("range:"),
                name == "the server sends the new file",
                "{name}: {last}"
            );
        }
    }

    #[test]
    fn a_part_unasked_for_that_is_all_of_the_file_is_taken() {
        for range in [
            "X: y",
            "Content-Range: bytes 0-159999/160000",
            "Content-Range: bytes 0-159999/*",
        ] {
            let head = format!("206 Partial\r\nContent-Length: 160000\r\nETag: \"one\"\r\n{range}");
            // Cut, and then as asked for: the part counts as a beginning like any other.
            let rest = "206 Partial\r\nContent-Range: bytes 60000-159999/160000\r\nETag: \"one\"";
            for replies in [
                vec![answer(&head, &body())],
                vec![
                    answer(&head, &body()[..60_000]),
                    answer(rest, &body()[60_000..]),
                ],
            ] {
                let tries = replies.len();
                let server = Server::start(replies);
                assert_eq!(
                    fetch(&server, "", &impatient()).0.unwrap(),
                    body(),
                    "{range}"
                );
                assert_eq!(server.requests().len(), tries, "{range}");
            }
        }
        for range in [
            "bytes 0-159999/170000",
            "bytes 1-160000/160001",
            "bytes */160000",
            "pages 0-1/2",
        ] {
            let part = format!("206 Partial\r\nContent-Range: {range}");
            let server = Server::start(vec![answer(&part, &body()), ok("", b"whole")]);
            assert_eq!(
                fetch(&server, "", &impatient()).0.unwrap(),
                b"whole",
                "{range}"
            );
        }
    }

    #[test]
    fn a_sloppy_head_is_read() {
        for sloppy in [
            "X-Foo : 1",
            "X-Foo: a\r\n b",
            "no header",
            "X-Foo: \u{e9}",
            "Bad Name: 1",
        ] {
            let server = Server::start(vec![ok(&format!("\r\n{sloppy}\r\nX-Bar: 1"), &body())]);
            assert_eq!(
                fetch(&server, "", &impatient()).0.unwrap(),
                body(),
                "{sloppy:?}"
            );
        }
    }

    #[test]
    fn a_cut_chunked_body_is_not_taken_for_whole() {
        let server = Server::start(vec![
            answer("200 OK\r\nTransfer-Encoding: chunked", b"4\r\nabcd\r\n"),
            answer(
                "200 OK\r\nTransfer-Encoding: chunked",
                b"4\r\nabcd\r\n2\r\nef\r\n0\r\n\r\n",
            ),
        ]);
        assert_eq!(fetch(&server, "", &impatient()).0.unwrap(), b"abcdef");
        assert_eq!(server.requests().len(), 2);
    }

    #[test]
    fn a_content_encoding_is_undone_and_a_cut_one_resumed() {
        use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
        let level = flate2::Compression::default();
        let mut gzip = GzEncoder::new(Vec::new(), level);
        gzip.write_all(&body()).unwrap();
        let gzip = gzip.finish().unwrap();
        let mut zlib = ZlibEncoder::new(Vec::new(), level);
        zlib.write_all(&body()).unwrap();
        let mut bare = DeflateEncoder::new(Vec::new(), level);
        bare.write_all(&body()).unwrap();
        let half = gzip.len() / 2;
        let range = format!(
            "206 Partial\r\nContent-Encoding: gzip\r\nContent-Range: bytes {half}-/{}",
            gzip.len()
        );
        let range = range.replace("-/", &format!("-{}/", gzip.len() - 1));
        let cut = format!(
            "200 OK\r\nContent-Encoding: gzip\r\nETag: \"one\"\r\nContent-Length: {}",
            gzip.len()
        );
        for (name, replies) in [
            ("gzip", vec![ok("\r\nContent-Encoding: gzip", &gzip)]),
            (
                "zlib",
                vec![ok("\r\nContent-Encoding: deflate", &zlib.finish().unwrap())],
            ),
            (
                "bare",
                vec![ok("\r\nContent-Encoding: Deflate", &bare.finish().unwrap())],
            ),
            (
                "resumed",
                vec![answer(&cut, &gzip[..half]), answer(&range, &gzip[half..])],
            ),
            (
                "cut, its length unknown",
                vec![
                    answer("200 OK\r\nContent-Encoding: gzip", &gzip[..half]),
                    answer("200 OK\r\nContent-Encoding: gzip", &gzip),
                ],
            ),
        ] {
            let server = Server::start(replies);
            assert_eq!(
                fetch(&server, "", &impatient()).0.unwrap(),
                body(),
                "{name}"
            );
        }
    }

    #[test]
    fn what_follows_the_members_of_a_gzip_file_is_ignored() {
        use flate2::write::GzEncoder;
        let member = |content: &[u8]| {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        };
        let (first, second) = (member(b"first "), member(b"second"));
        let both = [&first[..], &second].concat();
        for (name, encoded, expected) in [
            ("two", both.clone(), Some(&b"first second"[..])),
            (
                "an empty one between",
                [&first[..], &member(b""), &second].concat(),
                Some(b"first second"),
            ),
            (
                "zeros",
                [&both[..], &[0; 512]].concat(),
                Some(b"first second"),
            ),
            (
                "junk",
                [&both[..], b"\r\n<!-- served by -->"].concat(),
                Some(b"first second"),
            ),
            (
                "half a signature",
                [&both[..], b"\x1f"].concat(),
                Some(b"first second"),
            ),
            ("none", b"no gzip".to_vec(), None),
            ("a cut one", first[..first.len() - 9].to_vec(), None),
        ] {
            let server = Server::start(vec![ok("\r\nContent-Encoding: gzip", &encoded)]);
            let result = fetch(&server, "", &impatient()).0;
            assert_eq!(result.ok().as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn an_unknown_content_encoding_leaves_the_bytes_as_they_are() {
        use flate2::write::GzEncoder;
        for encoding in [
            "utf-8",
            "aws-chunked",
            "application/zip",
            "none",
            "br",
            "UTF-8, binary",
        ] {
            let server = Server::start(vec![ok(
                &format!("\r\nContent-Encoding: {encoding}"),
                &body(),
            )]);
            assert_eq!(
                fetch(&server, "", &impatient()).0.unwrap(),
                body(),
                "{encoding}"
            );
        }
        let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(&body()).unwrap();
        let server = Server::start(vec![ok(
            "\r\nContent-Encoding: gzip, aws-chunked",
            &gzip.finish().unwrap(),
        )]);
        assert_eq!(fetch(&server, "", &impatient()).0.unwrap(), body());
    }

    #[test]
    fn redirects_are_followed_boundedly_and_tell_no_secrets() {
        let target = Server::start(vec![ok("", &body())]);
        let server = Server::start(vec![answer(
            &format!("302 Found\r\nLocation: {}?new", target.url()),
            b"",
        )]);
        assert_eq!(
            fetch(&server, &format!("?sig={SECRET}"), &impatient())
                .0
                .unwrap(),
            body()
        );
        assert!(
            !target.requests()[0].contains(SECRET),
            "{:?}",
            target.requests()
        );

        let server = Server::start(vec![answer("302 Found\r\nLocation: /again?s3cr3t", b"")]);
        let patience = Patience {
            redirects: 3,
            ..impatient()
        };
        let error = fetch(&server, "", &patience).0.unwrap_err();
        assert!(
            error.to_string().contains("redirect") && !format!("{error:?}").contains(SECRET),
            "{error:?}"
        );
        assert_eq!(server.requests().len(), 4);
    }

    #[test]
    fn silence_is_a_timeout_and_cancelled_at_once() {
        for head in [
            "",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        ] {
            let (reply, _) = silence(head.into());
            let server = Server::start(vec![reply]);
            let patience = Patience {
                stall: Duration::from_millis(200),
                tries: 2,
                ..impatient()
            };
            assert_eq!(
                failure(&fetch(&server, "", &patience).0.unwrap_err()),
                DownloadFailure::Timeout,
                "{head:?}"
            );

            let (reply, silent) = silence(head.into());
            let server = Server::start(vec![reply]);
            let (task, _said) = task();
            let cancel = task.cancel.clone();
            let canceller = std::thread::spawn(move || {
                silent.recv().unwrap();
                cancel.cancel();
            });
            let folder = tempfile::tempdir().unwrap();
            let url = RedactedUrl::parse(&server.url()).unwrap();
            // With the usual patience of a minute, only the cancellation can end this.
            let result = download(&url, &folder.path().join("a"), &Patience::default(), &task);
            assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
            canceller.join().unwrap();
        }
    }

    #[test]
    fn a_drip_is_a_stall() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n";
        let server = Server::start(vec![Reply::Drip(head.to_vec())]);
        let patience = Patience {
            stall: Duration::from_millis(300),
            tries: 1,
            ..impatient()
        };
        let error = fetch(&server, "", &patience).0.unwrap_err();
        assert_eq!(failure(&error), DownloadFailure::Timeout);
        assert!(error.to_string().contains("bytes in 0.3 s"), "{error}");
    }

    #[test]
    fn a_zip_larger_than_the_limit_is_refused_with_both_numbers() {
        let patience = Patience {
            limit_bytes: 100_000,
            ..impatient()
        };
        let unknown_length = answer("200 OK", &body());
        for reply in [ok("", &body()), unknown_length] {
            let server = Server::start(vec![reply, answer("500 Not again", b"")]);
            let error = fetch(&server, "", &patience).0.unwrap_err().to_string();
            assert!(error.contains("100000 allowed"), "{error}");
        }
        let server = Server::start(vec![answer(
            "200 OK\r\nContent-Length: 999999999999999",
            b"",
        )]);
        let patience = Patience {
            limit_bytes: u64::MAX,
            ..impatient()
        };
        let error = fetch(&server, "", &patience).0.unwrap_err();
        assert!(
            matches!(&error, Error::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull),
            "{error:?}"
        );
        assert!(
            error.to_string().contains("needs 999999999999999 bytes"),
            "{error}"
        );
    }

    #[test]
    fn a_reply_that_is_no_http_is_a_connection_failure() {
        let server = Server::start(vec![Reply::Bytes(b"220 this is mail\r\n".to_vec())]);
        assert_eq!(
            failure(&fetch(&server, "", &impatient()).0.unwrap_err()),
            DownloadFailure::Connection
        );
    }
}
