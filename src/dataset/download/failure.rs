//! Why a try has failed, in words without secrets, and whether another one can help.

use std::error::Error as _;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{self, HeaderMap};

use super::address::RedactedUrl;
use super::partial::text;
use crate::error::{DownloadFailure, Error};

/// Why one try ended.
pub enum Stop {
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
pub struct Failure {
    pub kind: DownloadFailure,
    pub reason: String,
    pub worth_retrying: bool,
    pub retry_after: Option<Duration>,
}

impl Failure {
    pub fn connection(reason: impl Into<String>) -> Self {
        Self {
            kind: DownloadFailure::Connection,
            reason: reason.into(),
            worth_retrying: true,
            retry_after: None,
        }
    }

    pub fn timeout(reason: impl Into<String>) -> Self {
        Self {
            kind: DownloadFailure::Timeout,
            ..Self::connection(reason)
        }
    }

    pub fn final_connection(reason: impl Into<String>) -> Self {
        Self {
            worth_retrying: false,
            ..Self::connection(reason)
        }
    }

    pub fn status(status: StatusCode, headers: &HeaderMap) -> Self {
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
    pub fn request(error: &reqwest::Error) -> Self {
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

    pub fn into_error(self, url: &RedactedUrl, tries: u32) -> Error {
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
pub fn innermost(error: &reqwest::Error) -> String {
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
