//! Where an answer sends the request on to, and whether the password may go there.

use reqwest::header;
use reqwest::{Client, RequestBuilder, Response, Url};

use super::address::host_of;
use super::failure::Failure;

/// Asks for `url`, from the byte that the resumption says on, and again wherever the answers send to.
///
/// # Errors
/// When no answer comes, or more than `redirects` send on.
pub async fn follow(
    client: &Client,
    url: &Url,
    resumption: Option<&(String, String)>,
    redirects: usize,
) -> Result<Response, Failure> {
    follow_with(url, redirects, |at| {
        // Without an encoding of the way the bytes are the file's, and can be resumed.
        let request = client.get(at).header(header::ACCEPT_ENCODING, "identity");
        match resumption {
            None => request,
            Some((range, validator)) => request
                .header(header::RANGE, range)
                .header(header::IF_RANGE, validator),
        }
    })
    .await
}

/// [`follow`] with requests of another kind.
///
/// # Errors
/// As [`follow`].
pub async fn follow_with(
    url: &Url,
    redirects: usize,
    request: impl Fn(Url) -> RequestBuilder,
) -> Result<Response, Failure> {
    let mut at = url.clone();
    for _ in 0..=redirects {
        let response = request(at.clone()).send().await.map_err(|error| {
            let failure = Failure::request(&error);
            if host_of(&at) == host_of(url) {
                failure
            } else {
                failure.redirected_to(&host_of(&at))
            }
        })?;
        match target(&at, &response)? {
            Some(next) => at = next,
            None => return Ok(response),
        }
    }
    Err(Failure::too_many_redirects(redirects))
}

/// Where to go from `at`. A redirect without an address is an answer like any other.
fn target(at: &Url, response: &Response) -> Result<Option<Url>, Failure> {
    let is_redirect = matches!(response.status().as_u16(), 301..=303 | 307 | 308);
    let Some(location) = response
        .headers()
        .get(header::LOCATION)
        .filter(|_| is_redirect)
    else {
        return Ok(None);
    };
    // With blanks and accents, as servers that were told a file's name send it.
    let mut next = at
        .join(&String::from_utf8_lossy(location.as_bytes()))
        .ok()
        .filter(|next| matches!(next.scheme(), "http" | "https"))
        .ok_or_else(Failure::redirect_to_no_address)?;
    let (user, password) = if is_same_party(at, &next) {
        (at.username(), at.password())
    } else {
        ("", None)
    };
    // Both can only fail for a URL without a host, which http has not.
    let _ = next.set_username(user);
    let _ = next.set_password(password);
    Ok(Some(next))
}

/// As `requests` decides it: the same host, scheme and port, or a step up to TLS on the usual ports.
fn is_same_party(from: &Url, to: &Url) -> bool {
    let is_step_up = (from.scheme(), to.scheme()) == ("http", "https")
        && (from.port(), to.port()) == (None, None);
    let is_same =
        from.scheme() == to.scheme() && from.port_or_known_default() == to.port_or_known_default();
    from.host_str() == to.host_str() && (is_same || is_step_up)
}

#[cfg(test)]
mod tests {
    use super::is_same_party;

    /// Each as `requests.Session.should_strip_auth` answers.
    #[test]
    fn the_password_goes_to_the_same_party_alone() {
        for (from, to, expected) in [
            ("http://a/x", "http://a/y", true),
            ("http://a/x", "http://a:80/y", true),
            ("https://a/x", "https://a:443/y", true),
            ("http://a:8000/x", "http://a:8000/y", true),
            ("http://a/x", "https://a/y", true),
            ("http://a:80/x", "https://a:443/y", true),
            ("https://a/x", "http://a/y", false),
            ("http://a:8000/x", "https://a/y", false),
            ("http://a/x", "https://a:8000/y", false),
            ("http://a/x", "http://a:8000/y", false),
            ("http://a/x", "http://b/y", false),
            ("http://a/x", "https://b.a/y", false),
        ] {
            let found = is_same_party(&from.parse().unwrap(), &to.parse().unwrap());
            assert_eq!(found, expected, "{from} {to}");
        }
    }
}
