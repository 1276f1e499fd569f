//! What was up when a photo was taken, from its EXIF data: TIFF's header and first directory.

use std::io;

use super::{Photo, read_exact_at};

const ORIENTATION: u16 = 0x0112;

/// The first directory of a photo has some dozens.
const MOST_ENTRIES: usize = 512;

const ENTRY_BYTES: usize = 12;

/// The orientation that the EXIF data between `start` and `end` have, 1 to 8; 0 where they have none.
///
/// # Errors
/// What reading gives.
pub fn orientation(photo: &impl Photo, start: u64, end: u64) -> io::Result<u8> {
    match orientation_in(photo, start, end) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
        found => found,
    }
}

fn orientation_in(photo: &impl Photo, start: u64, end: u64) -> io::Result<u8> {
    let within = |buffer: &mut [u8], at: u64| {
        if at.saturating_add(buffer.len() as u64) > end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        read_exact_at(photo, buffer, at)
    };
    let mut head = [0; 6];
    within(&mut head, start)?;
    // In JPEG always, in WebP sometimes, in PNG never.
    let tiff = if head == *b"Exif\0\0" {
        start + 6
    } else {
        start
    };
    let mut head = [0; 8];
    within(&mut head, tiff)?;
    let [a, b, c, d, offset @ ..] = head;
    let is_little = match [a, b, c, d] {
        [b'I', b'I', 42, 0] => true,
        [b'M', b'M', 0, 42] => false,
        _ => return Ok(0),
    };
    let short = |bytes: [u8; 2]| {
        if is_little {
            u16::from_le_bytes(bytes)
        } else {
            u16::from_be_bytes(bytes)
        }
    };
    let long = |bytes: [u8; 4]| {
        if is_little {
            u32::from_le_bytes(bytes)
        } else {
            u32::from_be_bytes(bytes)
        }
    };
    let directory = tiff + u64::from(long(offset));
    let mut count = [0; 2];
    within(&mut count, directory)?;
    let room = usize::try_from(end - directory - 2).unwrap_or(usize::MAX) / ENTRY_BYTES;
    let count = usize::from(short(count)).min(room).min(MOST_ENTRIES);
    let mut entries = vec![0; count * ENTRY_BYTES];
    within(&mut entries, directory + 2)?;
    for entry in entries.chunks_exact(ENTRY_BYTES) {
        if short([entry[0], entry[1]]) != ORIENTATION {
            continue;
        }
        let value = match short([entry[2], entry[3]]) {
            1 => u32::from(entry[8]),
            3 => u32::from(short([entry[8], entry[9]])),
            4 => long([entry[8], entry[9], entry[10], entry[11]]),
            _ => 0,
        };
        return Ok(u8::try_from(value)
            .ok()
            .filter(|value| (1..=8).contains(value))
            .unwrap_or_default());
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// A directory at `offset`, of some other entry and the orientation.
    fn tiff(is_little: bool, offset: u32, kind: u16, value: u32) -> Vec<u8> {
        let short = |value: u16| {
            if is_little {
                value.to_le_bytes()
            } else {
                value.to_be_bytes()
            }
        };
        let long = |value: u32| {
            if is_little {
                value.to_le_bytes()
            } else {
                value.to_be_bytes()
            }
        };
        let value = match kind {
            1 => [u8::try_from(value).unwrap(), 0, 0, 0],
            3 => {
                let [a, b] = short(u16::try_from(value).unwrap());
                [a, b, 0, 0]
            }
            _ => long(value),
        };
        let mut bytes = if is_little {
            b"II*\0".to_vec()
        } else {
            b"MM\0*".to_vec()
        };
        bytes.extend(long(offset));
        bytes.resize(usize::try_from(offset).unwrap(), 0xff);
        bytes.extend(short(2));
        bytes.extend([short(0x010f), short(2)].concat());
        bytes.extend([long(4), long(0)].concat());
        bytes.extend([short(ORIENTATION), short(kind)].concat());
        bytes.extend(long(1));
        bytes.extend(value);
        bytes
    }

    fn found(before: &[u8], data: &[u8]) -> u8 {
        let content = [before, data, b"what follows"].concat();
        let start = before.len() as u64;
        let end = start + data.len() as u64;
        orientation(&Cursor::new(content.as_slice()), start, end).unwrap()
    }

    #[test]
    fn the_orientation_is_found_in_both_orders_and_all_kinds_of_numbers() {
        for is_little in [true, false] {
            for (offset, kind, value) in [(8, 3, 6), (8, 4, 6), (8, 1, 6), (400, 3, 8)] {
                let data = tiff(is_little, offset, kind, value);
                let wanted = u8::try_from(value).unwrap();
                assert_eq!(found(b"", &data), wanted, "{is_little} {offset} {kind}");
                let prefixed = [b"Exif\0\0".as_slice(), &data].concat();
                assert_eq!(found(b"before", &prefixed), wanted);
                // What lies behind the data is not theirs.
                assert_eq!(found(b"", &data[..data.len() - 1]), 0);
            }
            for value in [0, 9, 65535] {
                assert_eq!(found(b"", &tiff(is_little, 8, 3, value)), 0);
            }
        }
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;

        proptest! {
            #[test]
            fn any_data_are_read(data in prop::collection::vec(any::<u8>(), 0..200), is_little: bool, at in 0_u32..300) {
                let head = tiff(is_little, 8, 3, 6);
                let with_offset = [&head[..4], &at.to_le_bytes(), &data].concat();
                for data in [&data, &[&head[..8], &data].concat(), &with_offset] {
                    prop_assert!(found(b"", data) <= 8);
                }
            }
        }
    }
}
