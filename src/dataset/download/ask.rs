//! What a server says of a file, without the file.

use std::time::Duration;

use reqwest::header::{self, HeaderMap};
use reqwest::{Client, Method, StatusCode, Url};
use tokio::runtime;

use super::Patience;
use super::address::RedactedUrl;
use super::failure::Failure;
use super::partial::text;
use super::redirect::follow_with;
use super::transfer::client;
use crate::error::{DownloadFailure, Error};
use crate::task::{Cancel, within};

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    File {
        bytes: Option<u64>,
        content_type: Option<String>,
    },
    /// Nothing came in time.
    Late,
    /// Why not, without secrets.
    Refused(String),
}

/// Asks for the size and type of what is at `url`, for no longer than `limit`.
///
/// # Errors
/// [`Error::Unusable`] when there are no means to ask, [`Error::Cancelled`].
pub fn ask(url: &RedactedUrl, limit: Duration, cancel: &Cancel) -> Result<Answer, Error> {
    let patience = Patience {
        stall: limit,
        ..Patience::default()
    };
    let client = client(url, &patience)?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Unusable(format!("cannot ask {}: {error}", url.host())))?;
    let url = url.url.clone();
    let answer = within(limit, cancel, move || {
        let answer = runtime.block_on(async {
            tokio::time::timeout(limit, answer_of(&client, &url, patience.redirects)).await
        });
        // Not waiting for a host name that is still looked up.
        runtime.shutdown_background();
        answer.unwrap_or(Answer::Late)
    });
    Ok(answer?.unwrap_or(Answer::Late))
}

async fn answer_of(client: &Client, url: &Url, redirects: usize) -> Answer {
    let request = |method: Method| {
        move |at| {
            let request = client
                .request(method.clone(), at)
                .header(header::ACCEPT_ENCODING, "identity");
            if method == Method::GET {
                request.header(header::RANGE, "bytes=0-0")
            } else {
                request
            }
        }
    };
    let mut answered = follow_with(url, redirects, request(Method::HEAD)).await;
    // A signed link is signed for one method, and some servers know no other than GET. Its body is not read.
    if answered
        .as_ref()
        .is_ok_and(|response| is_refusal(response.status()))
    {
        answered = follow_with(url, redirects, request(Method::GET)).await;
    }
    match answered {
        Err(failure) if failure.kind == DownloadFailure::Timeout => Answer::Late,
        Err(failure) => Answer::Refused(failure.reason),
        // An empty file has no first byte.
        Ok(response) if response.status() == StatusCode::RANGE_NOT_SATISFIABLE => Answer::File {
            bytes: total(response.headers()).or(Some(0)),
            content_type: None,
        },
        Ok(response) if is_refusal(response.status()) => {
            Answer::Refused(Failure::status(response.status(), response.headers()).reason)
        }
        Ok(response) => Answer::File {
            bytes: total(response.headers()),
            content_type: text(response.headers(), &header::CONTENT_TYPE).map(str::to_owned),
        },
    }
}

fn is_refusal(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}

/// The size of the whole file.
fn total(headers: &HeaderMap) -> Option<u64> {
    if let Some(range) = text(headers, &header::CONTENT_RANGE) {
        return range.rsplit_once('/')?.1.trim().parse().ok();
    }
    text(headers, &header::CONTENT_LENGTH)?.trim().parse().ok()
}
