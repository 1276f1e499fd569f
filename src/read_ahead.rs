//! Brings files into the page cache before they are needed, in the background, as long as there is memory for it.
//!
//! Nobody waits for it, and nothing depends on it: what it cannot read, it leaves out.

use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
#[cfg(target_os = "linux")]
use rustix::{
    fs::{Advice, fadvise, fstatfs},
    io::{ReadWriteFlags, preadv2},
};

use crate::cgroup::{self, MemoryCgroup};

/// Read at once: at most so much is under way when it is stopped.
const CHUNK_BYTES: usize = 1 << 20;

/// Left to everything else.
const MARGIN_BYTES: u64 = 1 << 30;

/// How long a read that is under way is waited for. One that hangs ends by itself, or with the process.
const STOP_TIME: Duration = Duration::from_millis(50);

/// How often is looked whether somebody else has read on.
const GATE_POLL: Duration = Duration::from_millis(100);

/// File systems that are memory already: `tmpfs`, `ramfs`.
#[cfg(target_os = "linux")]
const IN_MEMORY: [u32; 2] = [0x0102_1994, 0x8584_58f6];

/// Files that are being read ahead; dropped, it gives up at once.
pub struct ReadAhead {
    shared: Arc<Shared>,
    outcome: Receiver<Outcome>,
}

/// With the thread.
#[derive(Default)]
struct Shared {
    is_stopped: AtomicBool,
    read_bytes: AtomicU64,
    cached_bytes: AtomicU64,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Read from the disk.
    pub read_bytes: u64,
    /// Found in the page cache.
    pub cached_bytes: u64,
    pub end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All was read that can be.
    Done,
    /// It was no longer wanted.
    Stopped,
    /// More would have displaced what is in memory.
    NoMemory { available_bytes: u64 },
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [read, cached] = [self.read_bytes, self.cached_bytes].map(|bytes| bytes >> 20);
        write!(formatter, "{read} MiB read, {cached} MiB were in memory: ")?;
        match self.end {
            End::Done => write!(formatter, "complete"),
            End::Stopped => write!(formatter, "stopped, as the step begins"),
            End::NoMemory { available_bytes } => write!(
                formatter,
                "no more, as {} MiB of memory are left, with these",
                available_bytes >> 20
            ),
        }
    }
}

impl ReadAhead {
    /// Begins to read `files`, the first first, once somebody else has read all of those in `after`: two that read at the
    /// same time slow down one another.
    #[must_use]
    pub fn start(after: Vec<PathBuf>, files: Vec<PathBuf>) -> Self {
        let cgroup = MemoryCgroup::of_this_process();
        Self::start_within(after, files, move || {
            cgroup::available_bytes(cgroup.as_ref())
        })
    }

    /// `available_bytes`: what the kernel could give, page cache included.
    fn start_within(
        after: Vec<PathBuf>,
        files: Vec<PathBuf>,
        available_bytes: impl FnMut() -> Option<u64> + Send + 'static,
    ) -> Self {
        let shared = Arc::<Shared>::default();
        let (sender, outcome) = sync_channel(1);
        let mut reader = Reader {
            shared: Arc::clone(&shared),
            available_bytes,
            chunk: vec![0; CHUNK_BYTES],
        };
        // Without a thread nothing is read ahead. It is not joined: a read from a dead network disk ends when it may.
        let _ = std::thread::Builder::new()
            .name("read-ahead".to_owned())
            .spawn(move || {
                let read = reader.await_read(&after).and_then(|()| reader.read(&files));
                let end = read.err().unwrap_or(End::Done);
                let _ = sender.send(reader.shared.outcome(end));
            });
        Self { shared, outcome }
    }

    /// Gives up at once, whatever it is at.
    #[must_use]
    pub fn stop(self) -> Outcome {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        let outcome = self.outcome.recv_timeout(STOP_TIME);
        outcome.unwrap_or_else(|_| self.shared.outcome(End::Stopped))
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn outcome(&self, end: End) -> Outcome {
        Outcome {
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            cached_bytes: self.cached_bytes.load(Ordering::Relaxed),
            end,
        }
    }
}

/// The thread's own.
struct Reader<M> {
    shared: Arc<Shared>,
    available_bytes: M,
    chunk: Vec<u8>,
}

impl<M: FnMut() -> Option<u64>> Reader<M> {
    /// Waits until somebody has read these files, which shows in places that were never looked at: to look brings a page in.
    fn await_read(&mut self, files: &[PathBuf]) -> Result<(), End> {
        for (file, length) in files.iter().filter_map(|path| open_on_disk(path)) {
            let places = (1..).map(|place| length.saturating_sub(place * CHUNK_BYTES as u64));
            for place in places.take_while(|place| length > 0 && !is_cached(&file, *place)) {
                if self.shared.is_stopped.load(Ordering::Relaxed) {
                    return Err(End::Stopped);
                }
                if place == 0 {
                    break;
                }
                std::thread::sleep(GATE_POLL);
            }
        }
        Ok(())
    }

    fn read(&mut self, files: &[PathBuf]) -> Result<(), End> {
        for file in files {
            if let Some((file, length)) = open_on_disk(file) {
                self.read_file(&file, length)?;
            }
        }
        Ok(())
    }

    /// Up to the length that the file had: it may grow without end, or shrink.
    fn read_file(&mut self, file: &File, length: u64) -> Result<(), End> {
        let mut offset = 0;
        while offset < length {
            if self.shared.is_stopped.load(Ordering::Relaxed) {
                return Err(End::Stopped);
            }
            let wanted = usize::try_from(length - offset).unwrap_or(CHUNK_BYTES);
            let wanted = wanted.min(CHUNK_BYTES);
            let cached = self.read_cached(file, offset, wanted);
            if cached > 0 {
                self.shared
                    .cached_bytes
                    .fetch_add(cached, Ordering::Relaxed);
                offset += cached;
                continue;
            }
            self.check_memory()?;
            match file.read_at(&mut self.chunk[..wanted], offset) {
                Ok(0) => break,
                Ok(read) => {
                    self.shared
                        .read_bytes
                        .fetch_add(read as u64, Ordering::Relaxed);
                    offset += read as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// How much of a chunk is at its beginning in the page cache, as far as the file system tells.
    #[cfg(target_os = "linux")]
    fn read_cached(&mut self, file: &File, offset: u64, wanted: usize) -> u64 {
        let mut chunk = [std::io::IoSliceMut::new(&mut self.chunk[..wanted])];
        preadv2(file, &mut chunk, offset, ReadWriteFlags::NOWAIT).unwrap_or(0) as u64
    }

    #[cfg(not(target_os = "linux"))]
    fn read_cached(&mut self, _file: &File, _offset: u64, _wanted: usize) -> u64 {
        0
    }

    /// What has been read counts as available, and is not to be displaced by what comes.
    fn check_memory(&mut self) -> Result<(), End> {
        let Some(available_bytes) = (self.available_bytes)() else {
            return Ok(());
        };
        let Outcome {
            read_bytes,
            cached_bytes,
            ..
        } = self.shared.outcome(End::Done);
        if available_bytes < read_bytes + cached_bytes + MARGIN_BYTES {
            return Err(End::NoMemory { available_bytes });
        }
        Ok(())
    }
}

/// Whether the byte at `place` is in the page cache. A file system that cannot tell holds up nothing.
#[cfg(target_os = "linux")]
fn is_cached(file: &File, place: u64) -> bool {
    let mut byte = [0];
    let mut buffer = [std::io::IoSliceMut::new(&mut byte)];
    let found = preadv2(file, &mut buffer, place, ReadWriteFlags::NOWAIT);
    !matches!(found, Err(rustix::io::Errno::AGAIN))
}

#[cfg(not(target_os = "linux"))]
fn is_cached(_file: &File, _place: u64) -> bool {
    true
}

/// A file and its length; `None` for what is no file on a disk.
fn open_on_disk(path: &Path) -> Option<(File, u64)> {
    // A pipe is not waited for.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(open(path, flags, Mode::empty()).ok()?);
    let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    #[cfg(target_os = "linux")]
    {
        let kind = fstatfs(&file).ok()?.f_type;
        if IN_MEMORY
            .iter()
            .any(|&magic| i128::from(kind) == i128::from(magic))
        {
            return None;
        }
        // Reads then bring in what they ask for, all of it at once, instead of a little more each time.
        let _ = fadvise(&file, 0, None, Advice::Random);
    }
    Some((file, metadata.len()))
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::fs;
    use std::sync::mpsc;

    use rustix::fs::mknodat;
    use rustix::fs::{CWD, FileType};

    use super::*;

    const LENGTH: usize = 3 * CHUNK_BYTES + 4321;

    /// A folder where the tests were built: the temporary folder may be in memory.
    fn folder() -> tempfile::TempDir {
        let tests = std::env::current_exe().unwrap();
        tempfile::tempdir_in(tests.parent().unwrap()).unwrap()
    }

    /// A file that is on the disk alone; `None` where that cannot be had.
    fn cold_file(folder: &Path) -> Option<PathBuf> {
        let path = folder.join("weights");
        fs::write(&path, vec![7; LENGTH]).unwrap();
        let file = File::open(&path).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        let first = preadv2(
            &file,
            &mut [std::io::IoSliceMut::new(&mut [0])],
            LENGTH as u64 - 1,
            ReadWriteFlags::NOWAIT,
        );
        let is_cold = first.is_err() && open_on_disk(&path).is_some();
        if !is_cold {
            eprintln!("left out: no file of this disk leaves the memory");
        }
        is_cold.then_some(path)
    }

    /// What comes of it when nobody stops it.
    fn ended(reading: &ReadAhead) -> Outcome {
        reading.outcome.recv().unwrap()
    }

    fn outcome(read: usize, cached: usize, end: End) -> Outcome {
        Outcome {
            read_bytes: read as u64,
            cached_bytes: cached as u64,
            end,
        }
    }

    #[allow(clippy::unnecessary_wraps, reason = "as it is asked for")]
    fn enough() -> Option<u64> {
        Some(u64::MAX)
    }

    #[test]
    fn a_file_is_read_once() {
        let folder = folder();
        let Some(path) = cold_file(folder.path()) else {
            return;
        };
        let first = ended(&ReadAhead::start_within(
            Vec::new(),
            vec![path.clone()],
            enough,
        ));
        assert_eq!(first.end, End::Done);
        assert_eq!(first.read_bytes + first.cached_bytes, LENGTH as u64);
        assert!(
            first.read_bytes >= LENGTH as u64 - 2 * CHUNK_BYTES as u64,
            "{first}"
        );
        let second = ended(&ReadAhead::start_within(Vec::new(), vec![path], enough));
        assert_eq!(second, outcome(0, LENGTH, End::Done));
    }

    #[test]
    fn what_comes_first_is_waited_for() {
        let (folder, other) = (folder(), folder());
        let (Some(first), Some(path)) = (cold_file(folder.path()), cold_file(other.path())) else {
            return;
        };
        let (wait, files) = (vec![first.clone()], vec![path]);
        let given_up = ReadAhead::start_within(wait.clone(), files.clone(), enough);
        std::thread::sleep(2 * GATE_POLL);
        assert_eq!(given_up.stop().read_bytes, 0);
        let reading = ReadAhead::start_within(wait, files, enough);
        fs::read(first).unwrap();
        let outcome = ended(&reading);
        assert_eq!(outcome.end, End::Done);
        assert_eq!(outcome.read_bytes + outcome.cached_bytes, LENGTH as u64);
    }

    #[test]
    fn what_is_no_file_on_a_disk_is_left_out() {
        let folder = folder();
        let pipe = folder.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let mut files = vec![
            folder.path().join("missing"),
            folder.path().to_owned(),
            pipe,
            PathBuf::from("/dev/zero"),
            PathBuf::from("nul\0"),
        ];
        let in_memory = tempfile::NamedTempFile::new_in("/dev/shm");
        if let Ok(file) = &in_memory {
            fs::write(file, "in memory").unwrap();
            files.push(file.path().to_owned());
        }
        let left_out = ended(&ReadAhead::start_within(Vec::new(), files, enough));
        assert_eq!(left_out, outcome(0, 0, End::Done));
    }

    #[test]
    fn a_file_that_shrinks_or_grows_ends_where_it_ends() {
        let folder = folder();
        let path = folder.path().join("weights");
        let bytes_of = |length_now: usize, length_before: usize| {
            fs::write(&path, vec![7; length_now]).unwrap();
            let mut reader = Reader {
                shared: Arc::default(),
                available_bytes: enough,
                chunk: vec![0; CHUNK_BYTES],
            };
            let file = File::open(&path).unwrap();
            reader.read_file(&file, length_before as u64).unwrap();
            let Outcome {
                read_bytes,
                cached_bytes,
                ..
            } = reader.shared.outcome(End::Done);
            read_bytes + cached_bytes
        };
        assert_eq!(bytes_of(CHUNK_BYTES + 1, LENGTH), CHUNK_BYTES as u64 + 1);
        assert_eq!(bytes_of(LENGTH, CHUNK_BYTES + 1), CHUNK_BYTES as u64 + 1);
        assert_eq!(bytes_of(0, LENGTH), 0);
    }

    #[test]
    fn it_ends_where_memory_would_run_out() {
        let folder = folder();
        let Some(path) = cold_file(folder.path()) else {
            return;
        };
        let none_left = Some(MARGIN_BYTES - 1);
        let reading = ReadAhead::start_within(Vec::new(), vec![path.clone()], move || none_left);
        let end = End::NoMemory {
            available_bytes: MARGIN_BYTES - 1,
        };
        assert_eq!(ended(&reading), outcome(0, 0, end));
        // What has been read is still available, to the kernel.
        let reading = ReadAhead::start_within(Vec::new(), vec![path], || Some(MARGIN_BYTES));
        let Outcome {
            read_bytes, end, ..
        } = ended(&reading);
        assert!(matches!(end, End::NoMemory { .. }) && read_bytes <= CHUNK_BYTES as u64);
    }

    #[test]
    fn it_is_given_up_while_a_read_hangs() {
        let folder = folder();
        let Some(path) = cold_file(folder.path()) else {
            return;
        };
        let (hanging, is_hanging) = mpsc::channel();
        let (go_on, hang) = mpsc::channel::<()>();
        let hangs = move || {
            hanging.send(()).unwrap();
            let _ = hang.recv();
            enough()
        };
        let reading = ReadAhead::start_within(Vec::new(), vec![path], hangs);
        is_hanging.recv().unwrap();
        assert_eq!(reading.stop(), outcome(0, 0, End::Stopped));
        drop(go_on);
    }

    #[test]
    fn dropped_it_ends() {
        let folder = folder();
        let Some(path) = cold_file(folder.path()) else {
            return;
        };
        let (asking, asked) = mpsc::channel();
        let reading =
            ReadAhead::start_within(Vec::new(), vec![path.clone(); 1_000_000], move || {
                let _ = asking.send(());
                enough()
            });
        asked.recv().unwrap();
        drop(reading);
        // Until the thread is over, which it would not be for long.
        while asked.recv().is_ok() {}
    }
}
