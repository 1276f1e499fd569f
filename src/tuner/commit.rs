//! The commit of a clone, read from its `.git` without git.

use std::fs;
use std::path::{Path, PathBuf};

/// In hexadecimal digits; `None` for what is no clone, as an unpacked archive.
#[must_use]
pub fn commit(clone: &Path) -> Option<String> {
    let git = git_folder(&clone.join(".git"))?;
    let head = fs::read_to_string(git.join("HEAD")).ok()?;
    let Some(name) = head.trim().strip_prefix("ref: ") else {
        return digits(&head);
    };
    // A work tree of its own has its HEAD, and shares the branches.
    let shared = match fs::read_to_string(git.join("commondir")) {
        Ok(path) => git.join(path.trim()),
        Err(_) => git.clone(),
    };
    [&git, &shared]
        .into_iter()
        .find_map(|folder| digits(&fs::read_to_string(folder.join(name)).ok()?))
        .or_else(|| packed(&shared, name))
}

/// The folder itself, or the one that a file in its place names.
fn git_folder(path: &Path) -> Option<PathBuf> {
    if path.is_dir() {
        return Some(path.to_owned());
    }
    let text = fs::read_to_string(path).ok()?;
    let named = text.trim().strip_prefix("gitdir: ")?;
    Some(path.parent()?.join(named))
}

fn packed(git: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(git.join("packed-refs")).ok()?;
    text.lines().find_map(|line| {
        let (commit, of) = line.split_once(' ')?;
        (of.trim() == name).then(|| digits(commit))?
    })
}

fn digits(text: &str) -> Option<String> {
    let text = text.trim();
    let is_hash =
        matches!(text.len(), 40 | 64) && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_hash.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "30c658c4f4b0bf05038b3346eff9670259b10fc7";
    const B: &str = "85e689580b80a746d2fd5cf76847ad5eaac17df4";

    fn clone(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn wherever_git_keeps_it() {
        let packed =
            format!("# pack-refs with: peeled\n{B} refs/tags/main\n{A} refs/heads/main\n^{B}\n");
        let loose = format!("{A}\n");
        for (files, expected) in [
            (vec![(".git/HEAD", loose.as_str())], Some(A)),
            (
                vec![
                    (".git/HEAD", "ref: refs/heads/main\n"),
                    (".git/refs/heads/main", &loose),
                ],
                Some(A),
            ),
            (
                vec![
                    (".git/HEAD", "ref: refs/heads/main\n"),
                    (".git/packed-refs", &packed),
                ],
                Some(A),
            ),
            (
                vec![
                    (".git", "gitdir: real/worktrees/a\n"),
                    ("real/worktrees/a/HEAD", "ref: refs/heads/a/b\n"),
                    ("real/worktrees/a/commondir", "../..\n"),
                    ("real/refs/heads/a/b", &loose),
                ],
                Some(A),
            ),
            (vec![(".git/HEAD", "ref: refs/heads/none\n")], None),
            (vec![(".git/HEAD", "what is this")], None),
            (vec![(".git", "no such thing")], None),
            (vec![("pyproject.toml", "")], None),
        ] {
            let folder = clone(&files);
            assert_eq!(commit(folder.path()).as_deref(), expected, "{files:?}");
        }
    }
}
