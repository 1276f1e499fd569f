//! Versions of Python packages, and what a requirement asks of them: as much of PEP 440 and 508 as `pyproject.toml` files use.

/// The numbers of a release: those of `2.9.1+cu128` are 2, 9, 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release(Vec<u64>);

impl Release {
    /// `None` where it does not begin with a number.
    #[must_use]
    pub fn parse(version: &str) -> Option<Self> {
        let version = version.trim().trim_start_matches('v');
        let end = version
            .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
            .unwrap_or(version.len());
        let numbers: Option<Vec<u64>> = version[..end]
            .trim_end_matches('.')
            .split('.')
            .map(|number| number.parse().ok())
            .collect();
        numbers.map(Self)
    }

    fn part(&self, index: usize) -> u64 {
        self.0.get(index).copied().unwrap_or(0)
    }
}

impl PartialOrd for Release {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        let length = self.0.len().max(other.0.len());
        (0..length)
            .map(|index| self.part(index).cmp(&other.part(index)))
            .find(|ordering| ordering.is_ne())
            .or(Some(std::cmp::Ordering::Equal))
    }
}

/// `accelerate==1.6.0`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// In small letters, with `-`.
    pub name: String,
    /// As written: `==1.6.0`; empty where any version will do.
    pub specifier: String,
}

impl Requirement {
    /// `None` for what is none, and for one that holds under a condition only.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.contains(';') || text.contains('@') {
            return None;
        }
        let end = text
            .find(|letter: char| !letter.is_ascii_alphanumeric() && !"-_.".contains(letter))
            .unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        if name.is_empty() {
            return None;
        }
        let rest = match rest.trim_start().strip_prefix('[') {
            Some(extras) => extras.split_once(']')?.1,
            None => rest,
        };
        Some(Self {
            name: name.to_ascii_lowercase().replace(['_', '.'], "-"),
            specifier: rest.trim().trim_matches(['(', ')']).to_owned(),
        })
    }

    /// Whether this version will do. One that cannot be read is not accused.
    #[must_use]
    pub fn is_met_by(&self, version: &str) -> bool {
        is_met(&self.specifier, version)
    }
}

/// Whether `version` is in the range that `specifier` gives: `>=3.10, <3.13`.
#[must_use]
pub fn is_met(specifier: &str, version: &str) -> bool {
    let Some(found) = Release::parse(version) else {
        return true;
    };
    specifier
        .split(',')
        .map(str::trim)
        .filter(|clause| !clause.is_empty())
        .all(|clause| is_clause_met(clause, &found))
}

fn is_clause_met(clause: &str, found: &Release) -> bool {
    const OPERATORS: [&str; 8] = ["===", "==", "!=", "~=", ">=", "<=", ">", "<"];
    let Some((operator, wanted)) = OPERATORS
        .into_iter()
        .find_map(|operator| Some((operator, clause.strip_prefix(operator)?)))
    else {
        return true;
    };
    let prefix = wanted.trim().strip_suffix(".*");
    let Some(wanted) = Release::parse(prefix.unwrap_or(wanted)) else {
        return true;
    };
    let begins = |length: usize| (0..length).all(|index| found.part(index) == wanted.part(index));
    let is_equal = match prefix {
        Some(_) => begins(wanted.0.len()),
        None => *found == wanted || found.partial_cmp(&wanted) == Some(std::cmp::Ordering::Equal),
    };
    match operator {
        "===" | "==" => is_equal,
        "!=" => !is_equal,
        "~=" => *found >= wanted && begins(wanted.0.len().saturating_sub(1)),
        ">=" => *found >= wanted,
        "<=" => *found <= wanted,
        ">" => *found > wanted,
        _ => *found < wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_are_read_as_pyproject_files_write_them() {
        for (text, name, specifier) in [
            ("accelerate==1.6.0", "accelerate", "==1.6.0"),
            ("bitsandbytes", "bitsandbytes", ""),
            ("sensecraft[dinov3]>=0.3.11", "sensecraft", ">=0.3.11"),
            ("Huggingface_Hub (==0.34.3)", "huggingface-hub", "==0.34.3"),
            ("gradio>=4.0.0, <6.0.0", "gradio", ">=4.0.0, <6.0.0"),
        ] {
            let expected = Requirement {
                name: name.to_owned(),
                specifier: specifier.to_owned(),
            };
            assert_eq!(Requirement::parse(text), Some(expected), "{text}");
        }
        for text in [
            "",
            "a @ https://x/a.whl",
            "tomli; python_version < '3.11'",
            "[x]",
        ] {
            assert_eq!(Requirement::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_version_is_in_the_range_or_not() {
        for (specifier, version, expected) in [
            ("", "1.0", true),
            ("==1.6.0", "1.6.0", true),
            ("==1.6", "1.6.0", true),
            ("==1.6.0", "1.6.1", false),
            ("==1.6.*", "1.6.1", true),
            ("==1.6.*", "1.7.0", false),
            ("!=1.6.0", "1.6.0", false),
            (">=3.10, <3.13", "3.12.4", true),
            (">=3.10, <3.13", "3.13.0", false),
            (">=3.10", "3.9.18", false),
            (">=2.5.1", "2.9.1+cu128", true),
            ("~=1.4.2", "1.4.9", true),
            ("~=1.4.2", "1.5.0", false),
            (">1", "1.0.1", true),
            ("<=2", "2.0", true),
            (">=1.0", "unknown", true),
            ("~~1.0", "2", true),
        ] {
            assert_eq!(
                is_met(specifier, version),
                expected,
                "{specifier} {version}"
            );
        }
    }
}
