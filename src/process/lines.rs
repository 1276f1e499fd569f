//! Bytes to lines by universal newlines: `\n`, `\r` and `\r\n` each end one (tqdm redraws its bar after a `\r`).

/// A line without end is handed on in pieces of this size, so that memory stays bounded.
const LONGEST_LINE_BYTES: usize = 1 << 20;

#[derive(Default)]
pub struct LineSplitter {
    partial: Vec<u8>,
    after_carriage_return: bool,
}

impl LineSplitter {
    /// Calls `say` with every line that `bytes` completes.
    pub fn feed(&mut self, mut bytes: &[u8], say: &mut impl FnMut(&[u8])) {
        if std::mem::take(&mut self.after_carriage_return) {
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            if self.partial.is_empty() {
                say(&bytes[..end]);
            } else {
                self.partial.extend_from_slice(&bytes[..end]);
                say(&self.partial);
                self.partial.clear();
            }
            let rest = &bytes[end + 1..];
            if bytes[end] == b'\r' {
                self.after_carriage_return = rest.is_empty();
                bytes = rest.strip_prefix(b"\n").unwrap_or(rest);
            } else {
                bytes = rest;
            }
        }
        self.partial.extend_from_slice(bytes);
        if self.partial.len() >= LONGEST_LINE_BYTES {
            let whole = whole_characters(&self.partial);
            say(&self.partial[..whole]);
            self.partial.drain(..whole);
        }
    }

    /// Calls `say` with what came after the last line end, if anything did.
    pub fn finish(&mut self, say: &mut impl FnMut(&[u8])) {
        if !self.partial.is_empty() {
            say(&self.partial);
            self.partial.clear();
        }
    }
}

/// The length of `bytes` without a UTF-8 character that is cut at its end.
fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => error.valid_up_to(),
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(chunks: &[&[u8]]) -> Vec<String> {
        let mut lines = Vec::new();
        let mut splitter = LineSplitter::default();
        let mut say = |line: &[u8]| lines.push(String::from_utf8_lossy(line).into_owned());
        for chunk in chunks {
            splitter.feed(chunk, &mut say);
        }
        splitter.finish(&mut say);
        lines
    }

    #[test]
    fn every_line_end_counts_once_wherever_the_chunks_are_cut() {
        let text = b"a\nb\rc\r\nd\n\n\re\r\r\nf\xc3\xa9";
        let expected = ["a", "b", "c", "d", "", "", "e", "", "f\u{e9}"];
        for cut in 0..=text.len() {
            assert_eq!(
                split(&[&text[..cut], &text[cut..]]),
                expected,
                "cut at {cut}"
            );
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(split(&bytes), expected);
    }

    #[test]
    fn nothing_after_the_last_line_end_is_no_line() {
        assert_eq!(split(&[b"a\n"]), ["a"]);
        assert_eq!(split(&[b"a\r"]), ["a"]);
        assert_eq!(split(&[b""]), [""; 0]);
    }

    #[test]
    fn a_line_without_end_is_passed_on_in_bounded_pieces_of_whole_characters() {
        let text = "é".repeat(LONGEST_LINE_BYTES);
        let chunks: Vec<&[u8]> = text.as_bytes().chunks(65_537).collect();
        let pieces = split(&chunks);
        assert!(pieces.len() > 1);
        assert!(
            pieces
                .iter()
                .all(|piece| piece.len() <= LONGEST_LINE_BYTES + 65_537)
        );
        assert_eq!(pieces.concat(), text);
    }
}
