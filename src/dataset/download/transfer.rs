//! One request in the hands of a thread of its own.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use reqwest::header::{self, HeaderMap};
use reqwest::{Client, Response, StatusCode, redirect};
use tokio::runtime;

use super::super::{proxy, tls};
use super::Patience;
use super::address::RedactedUrl;
use super::failure::{Failure, Stop, innermost};
use super::redirect::follow;
use crate::error::Error;
use crate::task::{LogLine, Task};

/// How often a waiting download looks for its cancellation; the promise is 100 ms.
const CANCEL_POLL: Duration = Duration::from_millis(50);

/// Bytes handed over at a time, and how many such chunks may wait for the disk: bounds memory for any size of zip.
pub const CHUNK_BYTES: usize = 256 << 10;
const CHUNKS_WAITING: usize = 4;

const USER_AGENT: &str = concat!("TechTrash_MusubiTraining/", env!("CARGO_PKG_VERSION"));

pub fn client(url: &RedactedUrl, patience: &Patience) -> Result<Client, Error> {
    let trusted = match tls::config() {
        Err(_) if url.url.scheme() == "http" => tls::config_without_bundle()?,
        config => config?,
    };
    Client::builder()
        .user_agent(USER_AGENT)
        .proxy(proxy::of_the_environment())
        // For the connection and the answer's head, then for each read: the total has no limit.
        .read_timeout(patience.stall)
        // Followed in `redirect`.
        .redirect(redirect::Policy::none())
        // Some hosts set a cookie on the redirect to the file and ask for it there.
        .cookie_store(true)
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

/// What the thread that waits for the network hands over.
pub enum Event {
    Head {
        status: StatusCode,
        headers: HeaderMap,
    },
    /// As it was read, without a copy.
    Chunk(Box<dyn AsRef<[u8]> + Send>),
    End,
    Failed(Failure),
}

/// A request in the hands of a thread of its own, since a read from the network cannot be interrupted: on
/// cancellation the thread is left alone, and ends at its next word or at its time-out.
pub struct Events<'a> {
    receiver: Receiver<Event>,
    stall: Duration,
    window: Window,
    task: &'a Task<LogLine>,
}

/// The bytes of the last while.
pub struct Window {
    since: Instant,
    bytes: u64,
    wanted_bytes: u64,
}

impl<'a> Events<'a> {
    pub fn start(
        client: &Client,
        url: &RedactedUrl,
        resumption: Option<(String, String)>,
        patience: &Patience,
        task: &'a Task<LogLine>,
    ) -> Result<Self, Error> {
        let (client, url, redirects) = (client.clone(), url.url.clone(), patience.redirects);
        let (sender, receiver) = sync_channel(CHUNKS_WAITING);
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime
            .map_err(|error| Error::Unusable(format!("cannot start the download: {error}")))?;
        std::thread::Builder::new()
            .name("download".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    match follow(&client, &url, resumption.as_ref(), redirects).await {
                        Ok(response) => relay(response, &sender).await,
                        Err(failure) => drop(sender.send(Event::Failed(failure))),
                    }
                });
                // Not waiting for a host name that is still looked up.
                runtime.shutdown_background();
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

    pub fn next(&mut self) -> Result<Event, Stop> {
        let waiting_since = Instant::now();
        loop {
            self.task.check()?;
            match self.receiver.recv_timeout(CANCEL_POLL) {
                Ok(Event::Failed(failure)) => return Err(Stop::Try(failure)),
                Ok(Event::Chunk(chunk)) => {
                    self.window.bytes += (*chunk).as_ref().len() as u64;
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
async fn relay(mut response: Response, sender: &SyncSender<Event>) {
    let headers = std::mem::take(response.headers_mut());
    let ends_with_the_connection = !headers.contains_key(header::CONTENT_LENGTH)
        && !headers.contains_key(header::TRANSFER_ENCODING);
    let head = Event::Head {
        status: response.status(),
        headers,
    };
    if sender.send(head).is_err() {
        return;
    }
    loop {
        let event = match response.chunk().await {
            Ok(None) => Event::End,
            Ok(Some(chunk)) => Event::Chunk(Box::new(chunk)),
            Err(error) => match body_failure(&error) {
                // Many a server hangs up without the goodbye of TLS. Whether that was all, the zip tells.
                failure if ends_with_the_connection && failure.reason.contains("close_notify") => {
                    Event::End
                }
                failure => Event::Failed(failure),
            },
        };
        let more = matches!(event, Event::Chunk(_));
        if sender.send(event).is_err() || !more {
            return;
        }
    }
}

pub fn body_failure(error: &reqwest::Error) -> Failure {
    if error.is_timeout() {
        Failure::timeout("the server stopped sending")
    } else {
        Failure::connection(innermost(error))
    }
}
