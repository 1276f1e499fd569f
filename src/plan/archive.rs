//! The photos: by what their server says of the zip, or by the names of those that are here.

use super::{Check, Question, gigabytes};
use crate::dataset::{Answer, Survey};
use crate::error::Error;

/// What the server says, against what is taken.
#[must_use]
pub fn of_server(host: &str, answer: Answer, limit_bytes: u64) -> Check {
    let question = Question::new(
        "photos",
        format!("a zip of at most {}", gigabytes(limit_bytes)),
    );
    let (bytes, content_type) = match answer {
        Answer::File {
            bytes,
            content_type,
        } => (bytes, content_type),
        Answer::Late => {
            return question.warning(
                format!("{host} gave no answer in time"),
                "see that this machine reaches it, and plan again",
            );
        }
        Answer::Refused(reason) => {
            return question.error(
                format!("{host} does not give it: {reason}"),
                "check the link, or make a new one",
            );
        }
    };
    let kind = content_type
        .as_deref()
        .and_then(|kind| kind.split(';').next())
        .map(|kind| kind.trim().to_ascii_lowercase());
    let size = bytes.map_or_else(|| "a size that is not told".to_owned(), gigabytes);
    let found = match &kind {
        Some(kind) => format!("{size} of {kind} at {host}"),
        None => format!("{size} at {host}"),
    };
    let kind = kind.unwrap_or_default();
    if kind == "text/html" || kind == "application/xhtml+xml" {
        return question.error(
            format!("a web page at {host} ({size})"),
            "use the direct link to the file, not that of the page which offers it",
        );
    }
    if bytes == Some(0) {
        return question.error(found, "upload the zip again: the file there is empty");
    }
    if bytes.is_some_and(|bytes| bytes > limit_bytes) {
        return question.error(
            found,
            "put fewer photos into it, or set trainer.dataset_limits = DatasetLimits(zip_bytes=...)",
        );
    }
    let is_something_else = [
        "text/",
        "image/",
        "video/",
        "audio/",
        "application/json",
        "application/xml",
        "application/pdf",
    ]
    .iter()
    .any(|other| kind.starts_with(other));
    if is_something_else {
        return question.warning(
            found,
            "see that it is a zip: its server calls it something else",
        );
    }
    question.ok(found)
}

fn of_names() -> Question {
    Question::new("photos", "a zip or a folder with photos in it")
}

/// What is here, or `None` where nothing was looked at.
#[must_use]
pub fn here(survey: Option<&Survey>) -> Check {
    let Some(survey) = survey else {
        return of_names().ok("not looked at");
    };
    let found = format!(
        "{} photos ({} with a text beside them), {} other files",
        survey.photos, survey.captioned, survey.others
    );
    if survey.photos == 0 {
        let mend = "put photos into it; DatasetOptions(image_extensions=\"all\") takes other kinds than JPEG too";
        return of_names().error(found, mend);
    }
    if survey.left_out.is_empty() {
        return of_names().ok(found);
    }
    let reasons: Vec<String> = survey
        .left_out
        .iter()
        .take(NAMED)
        .map(|(name, reason)| format!("{name} ({reason})"))
        .collect();
    let more = match survey.left_out.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    of_names().warning(
        format!("{found}; left out: {}{more}", reasons.join(", ")),
        "take them out, or put them right",
    )
}

/// The photos of the dataset that is there, which a run would replace.
#[must_use]
pub fn in_place(survey: &Survey) -> Check {
    of_names().ok(format!(
        "{} photos of an earlier run are in place ({} with a caption); where new ones come from is not given",
        survey.photos, survey.captioned
    ))
}

/// Files that are named, at most.
const NAMED: usize = 5;

/// What is here and cannot be read.
#[must_use]
pub fn unreadable(error: &Error) -> Check {
    of_names().error(error.to_string(), "check the path, and what is there")
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn what_the_server_says_has_its_verdict() {
        let file = |bytes, content_type: &str| Answer::File {
            bytes,
            content_type: (!content_type.is_empty()).then(|| content_type.to_owned()),
        };
        for (answer, verdict) in [
            (file(Some(5), "application/zip"), Verdict::Ok),
            (file(Some(5), "binary/octet-stream"), Verdict::Ok),
            (file(None, ""), Verdict::Ok),
            (file(Some(0), "application/zip"), Verdict::Error),
            (file(Some(101), ""), Verdict::Error),
            (file(Some(5), "Text/HTML; charset=utf-8"), Verdict::Error),
            (file(Some(5), "text/plain"), Verdict::Warning),
            (file(Some(5), "image/jpeg"), Verdict::Warning),
            (Answer::Late, Verdict::Warning),
            (Answer::Refused("404".to_owned()), Verdict::Error),
        ] {
            let check = of_server("photos.example", answer, 100);
            assert_eq!(check.verdict, verdict, "{check:?}");
            assert!(check.found.contains("photos.example"), "{check:?}");
        }
    }
}
