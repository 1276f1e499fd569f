//! User and password for a host from the caller's netrc file, as `requests` takes them.

use std::env;
use std::path::PathBuf;

use pyo3::prelude::*;
use reqwest::Url;

/// `url` with the user and password that `$NETRC`, `~/.netrc` or `~/_netrc` has for its host, unless it has its own.
/// A file that cannot be read, or an address that is none, changes nothing.
pub fn with_credentials(py: Python<'_>, url: String) -> String {
    credentials(py, &url).unwrap_or(url)
}

fn credentials(py: Python<'_>, url: &str) -> Option<String> {
    let mut url = Url::parse(url).ok()?;
    if !url.username().is_empty() || url.password().is_some() {
        return None;
    }
    let file = file()?;
    let entries = py
        .import("netrc")
        .ok()?
        .call_method1("netrc", (file.as_os_str(),))
        .ok()?;
    let entry = entries
        .call_method1("authenticators", (url.host_str()?,))
        .ok()?;
    let (login, account, password): (Option<String>, Option<String>, Option<String>) =
        entry.extract().ok()?;
    let user = login.filter(|login| !login.is_empty()).or(account)?;
    url.set_username(&user).ok()?;
    url.set_password(password.as_deref()).ok()?;
    Some(url.into())
}

fn file() -> Option<PathBuf> {
    if let Some(named) = env::var_os("NETRC") {
        return Some(named.into());
    }
    let home = env::home_dir()?;
    [".netrc", "_netrc"]
        .into_iter()
        .map(|name| home.join(name))
        .find(|file| file.exists())
}
