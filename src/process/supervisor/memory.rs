//! The host's memory, which a fork of it holds on to.
//!
//! What the host frees while a step runs would stay with the supervisor, a model of many gigabytes perhaps; and the
//! kernel, short of memory, would kill the supervisor for it. So it gives back what it will not touch: the large
//! anonymous mappings, and the stack of the host's main thread. That also holds the host's arguments: without these the
//! supervisor goes by its own name, and is not taken for the host by who looks for that.

use std::ptr;

use libc::c_int;

/// Tensors and pictures take more; what the dynamic linker and the libraries keep for themselves takes less, and
/// stays, as does the heap.
const LARGE_BYTES: usize = 16 << 20;

/// Unmaps the host's memory, but for the mappings of this thread's stack and of `variable`, one of this library's. To
/// be called in a single-threaded fork that allocates nothing from here on.
pub fn give_back<T>(variable: &T) {
    let on_the_stack = 0_u8;
    let own = [
        (&raw const on_the_stack).addr(),
        ptr::from_ref(variable).addr(),
    ];
    let mut line = Line::default();
    let mut chunk = [0_u8; 4096];
    // SAFETY: read writes at most `chunk.len()` bytes into `chunk`. Nothing that is unmapped is used again: it is not
    // this function's stack, and neither code nor a library's variables.
    unsafe {
        let maps = libc::open(c"/proc/self/maps".as_ptr(), libc::O_RDONLY);
        while let Ok(length @ 1..) = usize::try_from(read(maps, &mut chunk)) {
            for &byte in &chunk[..length] {
                if byte != b'\n' {
                    line.push(byte);
                    continue;
                }
                if line.is_givable() && !own.iter().any(|own| (line.start..line.end).contains(own))
                {
                    libc::munmap(
                        ptr::without_provenance_mut(line.start),
                        line.end - line.start,
                    );
                }
                line = Line::default();
            }
        }
        libc::close(maps);
    }
}

unsafe fn read(file: c_int, chunk: &mut [u8; 4096]) -> isize {
    // SAFETY: the caller's, and the length is the buffer's.
    unsafe { libc::read(file, chunk.as_mut_ptr().cast(), chunk.len()) }
}

/// A line of `/proc/self/maps`: `7f00-7f10 rw-p 00000000 00:00 0    [heap]`.
#[derive(Default)]
struct Line {
    start: usize,
    end: usize,
    is_private: bool,
    inode: usize,
    name_start: [u8; 6],
    name_length: usize,
    field: usize,
}

impl Line {
    fn push(&mut self, byte: u8) {
        match (self.field, byte) {
            // The name is the last field, after any number of blanks.
            (6, b' ') if self.name_length == 0 => {}
            (6, _) => {
                if let Some(slot) = self.name_start.get_mut(self.name_length) {
                    *slot = byte;
                }
                self.name_length += 1;
            }
            (0, b'-') | (_, b' ') => self.field += 1,
            (0, _) => self.start = (self.start << 4) | hex(byte),
            (1, _) => self.end = (self.end << 4) | hex(byte),
            (2, _) => self.is_private = byte == b'p',
            (5, _) => self.inode = self.inode.saturating_mul(10).saturating_add(hex(byte)),
            _ => {}
        }
    }

    fn is_givable(&self) -> bool {
        let is_large = self.end.saturating_sub(self.start) >= LARGE_BYTES;
        let is_anonymous = self.name_length == 0 || self.name_start.starts_with(b"[anon");
        let is_the_hosts = self.name_start == *b"[stack" || (is_anonymous && is_large);
        self.is_private && self.inode == 0 && is_the_hosts
    }
}

fn hex(digit: u8) -> usize {
    char::from(digit).to_digit(16).unwrap_or(0) as usize
}

#[cfg(test)]
mod tests {
    use super::Line;

    fn line(text: &str) -> Line {
        let mut line = Line::default();
        text.bytes().for_each(|byte| line.push(byte));
        line
    }

    #[test]
    fn only_large_anonymous_memory_and_the_stack_are_given_back() {
        for (mapping, is_givable) in [
            ("7f0000000000-7f0001000000 rw-p 00000000 00:00 0 ", true),
            ("7f0000000000-7f0001000000 rw-p 00000000 00:00 0", true),
            (
                "7f0000000000-7f0001000000 rw-p 00000000 00:00 0  [anon: a name]",
                true,
            ),
            (
                "7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0  [stack]",
                true,
            ),
            ("7f0000000000-7f0000fff000 rw-p 00000000 00:00 0 ", false),
            (
                "55d000000000-55d004000000 rw-p 00000000 00:00 0  [heap]",
                false,
            ),
            (
                "7ffc00000000-7ffc04000000 r--p 00000000 00:00 0  [vvar]",
                false,
            ),
            (
                "7ffc00000000-7ffc04000000 r-xp 00000000 00:00 0  [vdso]",
                false,
            ),
            (
                "7f0000000000-7f0004000000 rw-s 00000000 00:01 2050  /dev/zero (deleted)",
                false,
            ),
            ("7f0000000000-7f0004000000 rw-s 00000000 00:00 0 ", false),
            (
                "7f0000000000-7f0004000000 r-xp 00001000 fe:00 131  /usr/lib/libc.so.6",
                false,
            ),
            (
                "7f0000000000-7f0004000000 rw-p 00001000 fe:00 131  /usr/lib/a b.so",
                false,
            ),
        ] {
            assert_eq!(line(mapping).is_givable(), is_givable, "{mapping}");
        }
        let parsed = line("7f0000000000-7f0001000000 rw-p 00000000 00:00 0");
        assert_eq!(
            (parsed.start, parsed.end),
            (0x7f00_0000_0000, 0x7f00_0100_0000)
        );
    }
}
