//! What a photo needs, and how that is said.

use std::fmt::{self, Display};

use super::Wanted;
use crate::dataset::image::Header;

/// What a photo needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// By EXIF's number.
    Turned(u8),
    Opaque,
    Rgb,
    Shallow,
}

impl Change {
    /// What the header asks for. Whether anything is transparent shows in the pixels alone.
    pub fn asked_for(header: &Header, wanted: Wanted) -> Vec<Self> {
        let turned = wanted.upright && header.orientation > 1;
        let changes = [
            (turned, Self::Turned(header.orientation)),
            (header.has_alpha, Self::Opaque),
            (header.is_cmyk, Self::Rgb),
            (header.is_deep, Self::Shallow),
        ];
        let asked_for = changes
            .into_iter()
            .filter(|(is_asked_for, _)| *is_asked_for);
        asked_for.map(|(_, change)| change).collect()
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Turned(_) => "turned upright",
            Self::Opaque => "laid on white",
            Self::Rgb => "converted to RGB",
            Self::Shallow => "converted to 8 bits",
        }
    }

    fn reason(self) -> String {
        match self {
            Self::Turned(orientation) => format!("EXIF orientation {orientation}"),
            Self::Opaque => "transparency".to_owned(),
            Self::Rgb => "CMYK".to_owned(),
            Self::Shallow => "16 bits".to_owned(),
        }
    }
}

impl Display for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.verb(), self.reason())
    }
}

/// All of them around a name: "turned upright a.jpg (EXIF orientation 6)".
pub fn sentence(changes: &[Change], name: &str) -> String {
    let verbs: Vec<&str> = changes.iter().map(|change| change.verb()).collect();
    let reasons: Vec<String> = changes.iter().map(|change| change.reason()).collect();
    format!("{} {name} ({})", verbs.join(" and "), reasons.join(", "))
}
