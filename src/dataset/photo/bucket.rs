//! The size that a photo is trained in, and whether the photo is large enough for it.

use std::fmt::{self, Display};

/// Z-Image's buckets, and photos that are not enlarged, have sides that are multiples of it.
const STEP: u32 = 16;

/// A photo that is enlarged by more shows it: 1024x683 is taken for 1248x832 without a word, 800x533 is not.
const MOST_ENLARGED: f64 = 1.5;

/// How a dataset's photos are brought to size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    sizes: Vec<(u32, u32)>,
    area: u64,
    no_upscale: bool,
}

impl Buckets {
    /// Those that Musubi Tuner makes for the resolution; `None` for one that it makes none for.
    #[must_use]
    pub fn new((width, height): (u32, u32), enable_bucket: bool, no_upscale: bool) -> Option<Self> {
        /// A picture is nowhere near as large, and every step below it is a bucket.
        const MOST_SIDE: u32 = 1 << 15;
        if width.min(height) == 0 || width.max(height) > MOST_SIDE {
            return None;
        }
        let area = width * height;
        let mut sizes = Vec::new();
        if enable_bucket {
            let root = area.isqrt();
            let least = root / 2 / STEP * STEP;
            for side in (least.max(STEP)..root + STEP).step_by(STEP as usize) {
                let other = area / side / STEP * STEP;
                sizes.extend([(side, other), (other, side)]);
            }
            sizes.retain(|(width, height)| width.min(height) > &0);
            sizes.sort_unstable();
            sizes.dedup();
        } else {
            sizes.push((width, height));
        }
        (!sizes.is_empty()).then_some(Self {
            sizes,
            area: u64::from(area),
            no_upscale: enable_bucket && no_upscale,
        })
    }

    /// What is wrong with a photo of that size; nothing where the size is not known.
    #[must_use]
    pub fn misfit(&self, size: (u32, u32)) -> Option<Misfit> {
        let (width, height) = size;
        if width == 0 || height == 0 {
            return None;
        }
        if self.no_upscale && u64::from(width) * u64::from(height) <= self.area {
            return (width.min(height) < STEP).then_some(Misfit::Refused { size });
        }
        let bucket = self.bucket(size)?;
        let (to_width, to_height) = (f64::from(bucket.0), f64::from(bucket.1));
        let times = (to_width / f64::from(width)).max(to_height / f64::from(height));
        (times > MOST_ENLARGED).then_some(Misfit::Enlarged {
            size,
            bucket,
            times,
        })
    }

    /// The one of the nearest ratio.
    fn bucket(&self, (width, height): (u32, u32)) -> Option<(u32, u32)> {
        let ratio = |(width, height): (u32, u32)| f64::from(width) / f64::from(height);
        let distance = |bucket: (u32, u32)| (ratio(bucket) - ratio((width, height))).abs();
        let nearest = self
            .sizes
            .iter()
            .min_by(|left, right| distance(**left).total_cmp(&distance(**right)));
        nearest.copied()
    }
}

/// A photo that is too small.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Misfit {
    Enlarged {
        size: (u32, u32),
        bucket: (u32, u32),
        times: f64,
    },
    /// With what Musubi Tuner calls "Image size too small", or OpenCV without a word on the photo.
    Refused { size: (u32, u32) },
}

impl Display for Misfit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enlarged {
                size: (width, height),
                bucket: (to_width, to_height),
                times,
            } => write!(
                formatter,
                "{width}x{height} is enlarged {times:.1} times to {to_width}x{to_height}"
            ),
            Self::Refused {
                size: (width, height),
            } => write!(
                formatter,
                "{width}x{height}, {STEP} is the least side where it is not enlarged"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn photos_come_into_musubi_tuners_buckets() {
        let buckets = Buckets::new((1024, 1024), true, false).unwrap();
        assert_eq!(buckets.sizes.len(), 65);
        assert_eq!(buckets.sizes[0], (512, 2048));
        assert_eq!(
            Buckets::new((512, 512), true, false).unwrap().sizes.len(),
            33
        );
        for (size, bucket) in [
            ((1920, 1080), (1360, 768)),
            ((3000, 2000), (1248, 832)),
            ((2000, 20), (2048, 512)),
        ] {
            assert_eq!(buckets.bucket(size), Some(bucket), "{size:?}");
        }
        let one = Buckets::new((960, 544), false, true).unwrap();
        assert_eq!(one.bucket((10, 5000)), Some((960, 544)));
        assert!(!one.no_upscale);
    }

    #[test]
    fn photos_that_are_too_small_say_by_how_much() {
        let buckets = |enable, no_upscale| Buckets::new((1024, 1024), enable, no_upscale).unwrap();
        for (buckets, size, wanted) in [
            (buckets(true, false), (3000, 2000), None),
            (buckets(true, false), (0, 0), None),
            (buckets(true, false), (1024, 683), None),
            (
                buckets(true, false),
                (600, 400),
                Some("600x400 is enlarged 2.1 times to 1248x832"),
            ),
            (
                buckets(false, false),
                (3000, 500),
                Some("3000x500 is enlarged 2.0 times to 1024x1024"),
            ),
            (buckets(true, true), (600, 400), None),
            (
                buckets(true, true),
                (600, 15),
                Some("600x15, 16 is the least side where it is not enlarged"),
            ),
        ] {
            let misfit = buckets.misfit(size).map(|misfit| misfit.to_string());
            assert_eq!(misfit.as_deref(), wanted, "{size:?}");
        }
        for resolution in [(0, 10), (10, 0), (u32::MAX, u32::MAX)] {
            assert_eq!(Buckets::new(resolution, true, false), None);
        }
        assert_eq!(Buckets::new((3, 3), true, false), None);
    }
}
