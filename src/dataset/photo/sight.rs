//! What a glance at a photo tells: whether it is blurred, empty, or nearly another one. The thresholds were chosen on some
//! thirty photos (people, animals, rooms, streets, textures, a moon, a page), as they are and blurred, cropped, saved anew.

use ::image::imageops::thumbnail;
use ::image::{DynamicImage, GrayImage};

use crate::error::Error;
use crate::task::{LogLine, Task};

/// The longer side that a photo is looked at in: what is blurred in it is blurred in every bucket.
const SIDE: u32 = 512;

/// The sharpest part of a photo counts, since the rest may be out of focus with intent.
const TILES: u32 = 4;

/// How much pixels differ from the next ones, against how much from those four further, squared: 1/16 where there is no
/// detail between. Photos have 0.14 to 0.7, and below 0.09 when they are blurred over two pixels of [`SIDE`].
const LEAST_SHARPNESS: f64 = 0.09;

/// Tiles with less contrast than a fourth of the greatest show their noise.
const LEAST_SHARE_OF_CONTRAST: f64 = 0.25;

/// Squared, of brightness: what compressing does to an even area.
const LEAST_CONTRAST: f64 = 9.0;

/// Of 255, for 99 of 100 pixels.
const BLACK: u8 = 24;
const WHITE: u8 = 231;

/// Of the 128 bits: saving anew, resizing, brightening change up to 9, cutting off a fiftieth up to 15; photos of the same
/// thing from two sides differ in 20, others in 34 and more.
const MOST_BITS_APART: u32 = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    Black,
    White,
    Even,
    Blurred,
}

pub const FLAWS: [Flaw; 4] = [Flaw::Black, Flaw::White, Flaw::Even, Flaw::Blurred];

impl std::fmt::Display for Flaw {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Black => "nearly all black",
            Self::White => "nearly all white",
            Self::Even => "nearly all of one brightness",
            Self::Blurred => "very blurred",
        })
    }
}

/// What was seen in a photo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    pub flaw: Option<Flaw>,
    /// Which of two neighbouring areas is the brighter, across and down, eight times eight.
    hash: u128,
}

impl Sight {
    #[must_use]
    pub fn of(image: &DynamicImage) -> Self {
        let (width, height) = (image.width(), image.height());
        let small = if width.max(height) > SIDE {
            image.thumbnail(SIDE, SIDE).into_luma8()
        } else {
            image.to_luma8()
        };
        Self {
            flaw: flaw(&small),
            hash: hash(&small),
        }
    }
}

fn flaw(image: &GrayImage) -> Option<Flaw> {
    let count_of =
        |is: &dyn Fn(u8) -> bool| image.as_raw().iter().filter(|pixel| is(**pixel)).count();
    let nearly_all = image.as_raw().len() * 99 / 100;
    if count_of(&|pixel| pixel < BLACK) > nearly_all {
        return Some(Flaw::Black);
    }
    if count_of(&|pixel| pixel > WHITE) > nearly_all {
        return Some(Flaw::White);
    }
    let mut tiles = Vec::new();
    let (width, height) = image.dimensions();
    for row in 0..TILES {
        for column in 0..TILES {
            let part = |number: u32, side: u32| side * number / TILES..side * (number + 1) / TILES;
            let (columns, rows) = (part(column, width), part(row, height));
            // Too small to tell.
            if columns.len().min(rows.len()) > 2 * FAR as usize {
                tiles.push(contrasts(image, columns, rows));
            }
        }
    }
    let greatest = tiles.iter().map(|(_, far)| *far).fold(0.0, f64::max);
    if tiles.is_empty() {
        return None;
    }
    if greatest < LEAST_CONTRAST {
        return Some(Flaw::Even);
    }
    let with_contrast = tiles
        .iter()
        .filter(|(_, far)| *far >= greatest * LEAST_SHARE_OF_CONTRAST);
    let sharpest = with_contrast
        .map(|(near, far)| near / far)
        .fold(0.0, f64::max);
    (sharpest < LEAST_SHARPNESS).then_some(Flaw::Blurred)
}

const FAR: u32 = 4;

/// The mean squared difference between pixels that are next to each other, and between those that are [`FAR`] apart.
fn contrasts(
    image: &GrayImage,
    columns: std::ops::Range<u32>,
    rows: std::ops::Range<u32>,
) -> (f64, f64) {
    let mut sums = [0_u32; 2];
    let mut counts = [0_u32; 2];
    let at = |x: u32, y: u32| i32::from(image.get_pixel(x, y)[0]);
    for y in rows.clone() {
        for x in columns.clone() {
            for (place, distance) in [1, FAR].into_iter().enumerate() {
                let beside = [(x + distance, y), (x, y + distance)];
                for (to_x, to_y) in beside {
                    if columns.contains(&to_x) && rows.contains(&to_y) {
                        sums[place] += (at(to_x, to_y) - at(x, y)).pow(2).unsigned_abs();
                        counts[place] += 1;
                    }
                }
            }
        }
    }
    let mean = |place: usize| f64::from(sums[place]) / f64::from(counts[place].max(1));
    (mean(0), mean(1))
}

fn hash(image: &GrayImage) -> u128 {
    const AREAS: u32 = 8;
    let areas = thumbnail(image, AREAS + 1, AREAS + 1);
    let mut bits = 0;
    for y in 0..AREAS {
        for x in 0..AREAS {
            let here = areas.get_pixel(x, y);
            for next in [(x + 1, y), (x, y + 1)] {
                bits = bits << 1 | u128::from(here[0] < areas.get_pixel(next.0, next.1)[0]);
            }
        }
    }
    bits
}

/// Those that look like an earlier one, with it. Empty ones all look alike.
///
/// # Errors
/// [`Error::Cancelled`].
pub fn near_duplicates(
    sights: &[(usize, Sight)],
    task: &Task<LogLine>,
) -> Result<Vec<Vec<usize>>, Error> {
    let mut groups: Vec<(u128, Vec<usize>)> = Vec::new();
    for (index, sight) in sights {
        task.check()?;
        if sight.flaw.is_some_and(|flaw| flaw != Flaw::Blurred) {
            continue;
        }
        let is_near = |hash: u128| (hash ^ sight.hash).count_ones() <= MOST_BITS_APART;
        match groups.iter_mut().find(|(hash, _)| is_near(*hash)) {
            Some((_, group)) => group.push(*index),
            None => groups.push((sight.hash, vec![*index])),
        }
    }
    let groups = groups.into_iter().map(|(_, group)| group);
    Ok(groups.filter(|group| group.len() > 1).collect())
}
