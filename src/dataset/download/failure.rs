//! Why a try has failed, in words without secrets, and whether another one can help.

use std::error::Error as _;
use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{self, HeaderMap};

use super::address::RedactedUrl;
use super::partial::{date, text};
use crate::error::{DownloadFailure, Error};

const PROXY_WANTS_A_PASSWORD: &str = "; the proxy wants a user and a password: put them in HTTPS_PROXY (http://user:password@host:port)";

/// Why one try ended.
pub enum Stop {
    /// Trying again cannot help.
    Final(Error),
    Try(Failure),
}

impl Stop {
    /// In the middle of the file.
    pub fn after(self, written: u64, total: Option<u64>) -> Self {
        match self {
            Self::Try(failure) => Self::Try(Failure {
                reason: match total {
                    Some(total) => format!("{} after {written} of {total} bytes", failure.reason),
                    None => format!("{} after {written} bytes", failure.reason),
                },
                ..failure
            }),
            Self::Final(error) => Self::Final(error),
        }
    }
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

    pub fn too_many_redirects(allowed: usize) -> Self {
        Self {
            kind: DownloadFailure::TooManyRedirects,
            ..Self::final_connection(format!(
                "the server's redirects lead nowhere: there are more than {allowed}"
            ))
        }
    }

    /// Where to is not told: it may be a secret.
    pub fn redirect_to_no_address() -> Self {
        Self {
            kind: DownloadFailure::InvalidSchema,
            ..Self::final_connection(
                "the server redirects to what is no http:// or https:// address",
            )
        }
    }

    pub fn redirected_to(self, host: &str) -> Self {
        Self {
            reason: format!("it redirects to {host}: {}", self.reason),
            ..self
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
            407 => PROXY_WANTS_A_PASSWORD,
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
            retry_after: retry_after(headers),
        }
    }

    /// The error's own text holds the URL, so only its cause is told.
    pub fn request(error: &reqwest::Error) -> Self {
        let cause = innermost(error);
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
        // The proxy's 407 to CONNECT.
        if cause.ends_with("proxy authorization required") {
            return Self::final_connection(format!("{cause}{PROXY_WANTS_A_PASSWORD}"));
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

/// `Retry-After`, in seconds or as a date, which counts by the server's clock where it tells it (RFC 9110, 10.2.3).
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = text(headers, &header::RETRY_AFTER)?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let then = httpdate::parse_http_date(value).ok()?;
    let now = date(headers).unwrap_or_else(SystemTime::now);
    // A date that has passed means: now.
    Some(then.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        const NOON: &str = "Tue, 02 Jan 2024 12:00:00 GMT";
        for (value, date, expected) in [
            ("7", None, Some(7)),
            (" 0 ", None, Some(0)),
            ("Tue, 02 Jan 2024 12:00:09 GMT", Some(NOON), Some(9)),
            ("Tuesday, 02-Jan-24 12:00:09 GMT", Some(NOON), Some(9)),
            ("Tue Jan  2 12:00:09 2024", Some(NOON), Some(9)),
            ("Tue, 02 Jan 2024 11:00:00 GMT", Some(NOON), Some(0)),
            (NOON, None, Some(0)),
            ("-1", None, None),
            ("1.5", None, None),
            ("soon", None, None),
            ("", None, None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, value.parse().unwrap());
            if let Some(date) = date {
                headers.insert(header::DATE, date.parse().unwrap());
            }
            let expected = expected.map(Duration::from_secs);
            assert_eq!(retry_after(&headers), expected, "{value:?}");
        }
        // Without the server's clock, ours.
        let mut headers = HeaderMap::new();
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(600));
        headers.insert(header::RETRY_AFTER, soon.parse().unwrap());
        let wait = retry_after(&headers).unwrap();
        assert!((500..=600).contains(&wait.as_secs()), "{wait:?}");
    }
}
