//! A web page in the place of a file: what a log-in, a licence to accept or a link that has run out is answered with.

/// Whether a file that begins so is a web page.
#[must_use]
pub fn begins(beginning: &[u8]) -> bool {
    let text = String::from_utf8_lossy(beginning).to_ascii_lowercase();
    let text = text.trim_start_matches('\u{feff}').trim_start();
    ["<!doctype html", "<html", "<head", "<body"]
        .iter()
        .any(|tag| text.starts_with(tag))
}

#[cfg(test)]
mod tests {
    use super::begins;

    #[test]
    fn a_page_is_told_from_what_only_mentions_one() {
        for page in [
            "<!DOCTYPE html>",
            "\u{feff}\r\n <HTML lang=en>",
            "<head>",
            "<Body>",
        ] {
            assert!(begins(page.as_bytes()), "{page}");
        }
        for other in [
            "",
            "<?xml version='1.0'?>",
            "about <html>",
            "{\"html\": 1}",
            "PK",
        ] {
            assert!(!begins(other.as_bytes()), "{other}");
        }
    }
}
