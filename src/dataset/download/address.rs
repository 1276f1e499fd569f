//! The address of a zip, printable without its secrets.

use std::fmt;

use reqwest::Url;

use crate::error::Error;

/// The URL of a zip. Signed links carry their secret in the query, so nothing that this type prints has a query,
/// a fragment, a user or a password.
#[derive(Clone)]
pub struct RedactedUrl {
    pub url: Url,
    shown: String,
}

impl RedactedUrl {
    /// # Errors
    /// [`Error::InvalidUrl`] for what is no `http://` or `https://` URL.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let url = Url::parse(text).map_err(|error| match error {
            _ if text.trim().is_empty() => invalid("it is empty"),
            // "example.com/photos.zip", "/photos.zip"
            _ if !text.contains("://") => invalid("it does not begin with http:// or https://"),
            error => invalid(&format!("it cannot be read as a URL: {error}")),
        })?;
        if !matches!(url.scheme(), "http" | "https") {
            // "user:password@host/a.zip" reads as a scheme of that user's name.
            if !text.contains("://") {
                return Err(invalid("it does not begin with http:// or https://"));
            }
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

    /// For messages.
    #[must_use]
    pub fn host(&self) -> String {
        host_of(&self.url)
    }
}

/// What is no address, and no path either.
pub fn invalid(found: &str) -> Error {
    Error::InvalidUrl(format!(
        "images_zip_url must be the http:// or https:// address of a zip of photos, or the path or file:// URL of a zip \
         or folder that is here, but {found}"
    ))
}

/// With its port where one was given.
pub fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
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
