//! The folders of a run: there, readable, writable.

use std::path::Path;

use rustix::fs::{Access, access};

use super::{Check, Question};

/// The folder of the weights, or the clone: it must be there and readable.
#[must_use]
pub fn readable(name: &str, folder: &Path) -> Check {
    let shown = folder.display();
    let question = Question::new(name, "a folder that can be read");
    if !folder.exists() {
        return question.error(
            format!("{shown} does not exist"),
            format!("check the path of the {name}"),
        );
    }
    if !folder.is_dir() {
        return question.error(
            format!("{shown} is not a folder"),
            format!("check the path of the {name}"),
        );
    }
    match access(folder, Access::READ_OK | Access::EXEC_OK) {
        Ok(()) => question.ok(shown.to_string()),
        Err(errno) => question.error(
            format!("{shown} cannot be read: {errno}"),
            "give this user the right to read it, or run as its owner",
        ),
    }
}

/// The training folder, or the output folder: it must be writable, or such that it can be made.
#[must_use]
pub fn writable(name: &str, folder: &Path) -> Check {
    let shown = folder.display();
    let question = Question::new(name, "a folder that can be written to, or created");
    let Some(existing) = folder
        .ancestors()
        .find(|part| part.symlink_metadata().is_ok())
    else {
        return question.error(
            format!("{shown}: no part of it exists"),
            "write a whole path",
        );
    };
    if !existing.is_dir() {
        return question.error(
            format!("{} is not a folder", existing.display()),
            "remove what is there, or choose another path",
        );
    }
    match access(existing, Access::WRITE_OK | Access::EXEC_OK) {
        Err(errno) => question.error(
            format!("{} cannot be written to: {errno}", existing.display()),
            "give this user the right to write there, or choose another path",
        ),
        Ok(()) if existing == folder => question.ok(shown.to_string()),
        Ok(()) => question.ok(format!("{shown}, which will be created")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn what_stands_in_the_way_is_named() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        std::fs::write(&file, "").unwrap();
        let link = root.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        for (check, verdict, found) in [
            (readable("models folder", root.path()), Verdict::Ok, ""),
            (
                readable("models folder", &root.path().join("no")),
                Verdict::Error,
                "does not exist",
            ),
            (
                readable("models folder", &file),
                Verdict::Error,
                "is not a folder",
            ),
            (writable("output folder", root.path()), Verdict::Ok, ""),
            (
                writable("output folder", &root.path().join("a/b")),
                Verdict::Ok,
                "will be created",
            ),
            (
                writable("output folder", &file),
                Verdict::Error,
                "file is not a folder",
            ),
            (
                writable("output folder", &file.join("a")),
                Verdict::Error,
                "file is not a folder",
            ),
            (
                writable("output folder", &link),
                Verdict::Error,
                "link is not a folder",
            ),
        ] {
            assert_eq!(check.verdict, verdict, "{check:?}");
            assert!(check.found.contains(found), "{check:?}");
        }
    }
}
