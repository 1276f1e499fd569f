//! One run at a time on a training folder.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::getppid;

use crate::error::Error;
use crate::task::{Cancel, lock_of};

/// Keeps other runs off a training folder, in this process and in any other, until it is dropped or its process ends,
/// however that ends. What the same thread locks once more while it holds a lock shares it.
pub struct FolderLock {
    held: Arc<Held>,
}

/// What a run does with a training folder.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Writes its dataset or caches.
    Alone,
    /// Trains on what is there, as others may at the same time.
    Reading,
}

struct Held {
    /// Device and inode.
    folder: (u64, u64),
    thread: ThreadId,
    /// `None` in a fork of the process that holds the lock.
    file: Mutex<Option<File>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(file) = lock_of(&self.file).take() {
            // What a thread forks at this very moment holds a duplicate, which would keep the lock beyond the closing.
            let _ = flock(&file, FlockOperation::Unlock);
        }
    }
}

static LOCKS: Mutex<Vec<Weak<Held>>> = Mutex::new(Vec::new());

impl FolderLock {
    /// Locks `folder`, which exists.
    ///
    /// # Errors
    /// [`Error::Unusable`] when another run has it, [`Error::Io`] when it cannot be opened.
    pub fn take(folder: &Path, access: Access) -> Result<Self, Error> {
        let file = File::open(folder).map_err(Error::io("open", folder))?;
        let found = file.metadata().map_err(Error::io("open", folder))?;
        let key = (found.dev(), found.ino());
        let thread = thread::current().id();
        let mut locks = lock_of(&LOCKS);
        locks.retain(|lock| lock.strong_count() > 0);
        let shared = locks
            .iter()
            .filter_map(Weak::upgrade)
            .find(|held| held.folder == key && held.thread == thread);
        if let Some(held) = shared {
            return Ok(Self { held });
        }
        lock(&file, key, folder, access)?;
        let held = Arc::new(Held {
            folder: key,
            thread,
            file: Mutex::new(Some(file)),
        });
        locks.push(Arc::downgrade(&held));
        Ok(Self { held })
    }

    /// Whether this thread had the folder before.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.held) > 1
    }

    /// For another process to hold as well: the folder is locked until both have let it go, or this one has unlocked it.
    #[must_use]
    pub fn duplicate(&self) -> Option<OwnedFd> {
        // Out of the way of the standard streams, where the host has closed its own.
        fcntl_dupfd_cloexec(lock_of(&self.held.file).as_ref()?, 3).ok()
    }

    /// Changes what this run does with `folder`.
    ///
    /// # Errors
    /// [`Error::Unusable`] when another run has it.
    pub fn change(&self, folder: &Path, access: Access) -> Result<(), Error> {
        match lock_of(&self.held.file).as_ref() {
            Some(file) => lock(file, self.held.folder, folder, access),
            None => Ok(()),
        }
    }
}

fn lock(file: &File, key: (u64, u64), folder: &Path, access: Access) -> Result<(), Error> {
    let operation = match access {
        Access::Alone => FlockOperation::NonBlockingLockExclusive,
        Access::Reading => FlockOperation::NonBlockingLockShared,
    };
    match flock(file, operation) {
        Err(Errno::WOULDBLOCK) => {
            let owner =
                owner(key).map_or_else(String::new, |process| format!(" (process {process})"));
            Err(in_use(folder, &owner))
        }
        // A file system without locks goes without.
        _ => Ok(()),
    }
}

/// What a second run in a folder is told.
#[must_use]
pub fn in_use(folder: &Path, owner: &str) -> Error {
    Error::Unusable(format!(
        "another run{owner} has the training folder {}: wait for its end, or give each run a training folder of its own",
        folder.display()
    ))
}

/// For a process that was just forked: the locks are its parent's, and must not outlive that.
pub fn leave_to_parent() {
    // A lock that another thread held at the fork is never released here: better to keep a duplicate than to wait.
    let Ok(mut locks) = LOCKS.try_lock() else {
        return;
    };
    for held in locks.drain(..).filter_map(|lock| lock.upgrade()) {
        if let Ok(mut file) = held.file.try_lock() {
            drop(file.take());
        }
    }
}

/// How long the processes of a run take to end once it was killed.
const ENDING: Duration = Duration::from_secs(15);

/// Whether a lock on the folder is that of a process that is gone: what it had started is being ended, and holds it still.
#[must_use]
pub fn is_of_the_dead(folder: &Path) -> bool {
    match key(folder).map(owner) {
        Some(Some(process)) => !Path::new("/proc").join(process.to_string()).exists(),
        // In a container, the kernel does not tell the number of a process that is gone.
        Some(None) => fs::exists("/proc/locks").unwrap_or(false),
        None => false,
    }
}

/// Waits until the processes that a dead one has started are gone; not for ever.
///
/// # Errors
/// [`Error::Cancelled`].
pub fn wait_for_the_dead(folder: &Path, cancel: &Cancel) -> Result<(), Error> {
    const LOOK: Duration = Duration::from_millis(50);
    let until = Instant::now() + ENDING;
    while Instant::now() < until {
        let is_free = File::open(folder)
            .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok());
        if is_free || !is_of_the_dead(folder) {
            return Ok(());
        }
        cancel.pause(LOOK)?;
    }
    Ok(())
}

#[must_use]
pub fn is_of_this_process_or_its_parent(folder: &Path) -> bool {
    let Some(owner) = key(folder).and_then(owner) else {
        return false;
    };
    let parent = getppid().map(|parent| parent.as_raw_nonzero().get().unsigned_abs());
    owner == std::process::id() || Some(owner) == parent
}

fn key(folder: &Path) -> Option<(u64, u64)> {
    let found = fs::metadata(folder).ok()?;
    Some((found.dev(), found.ino()))
}

/// The process that holds a lock on the folder, as far as the kernel tells.
fn owner((_, inode): (u64, u64)) -> Option<u32> {
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        // 1: FLOCK  ADVISORY  WRITE 1234 fe:00:56789 0 EOF
        let mut words = line.split_whitespace();
        let process = words.nth(4)?.parse().ok()?;
        let found: u64 = words.next()?.rsplit(':').next()?.parse().ok()?;
        (found == inode && line.contains("FLOCK")).then_some(process)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_elsewhere(folder: &Path, access: Access) -> Result<(), Error> {
        thread::scope(|scope| {
            let elsewhere = scope.spawn(|| FolderLock::take(folder, access).map(drop));
            elsewhere.join().unwrap()
        })
    }

    #[test]
    fn one_run_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let lock = FolderLock::take(folder.path(), Access::Alone).unwrap();
        for access in [Access::Alone, Access::Reading] {
            let error = take_elsewhere(folder.path(), access)
                .unwrap_err()
                .to_string();
            assert!(error.contains("has the training folder"), "{error}");
            assert!(
                !cfg!(target_os = "linux") || error.contains(&std::process::id().to_string()),
                "{error}"
            );
        }
        drop(lock);
        take_elsewhere(folder.path(), Access::Alone).unwrap();
    }

    #[test]
    fn several_may_read_while_none_writes() {
        let folder = tempfile::tempdir().unwrap();
        let reading = FolderLock::take(folder.path(), Access::Reading).unwrap();
        take_elsewhere(folder.path(), Access::Reading).unwrap();
        take_elsewhere(folder.path(), Access::Alone).unwrap_err();
        drop(reading);
        let writing = FolderLock::take(folder.path(), Access::Alone).unwrap();
        take_elsewhere(folder.path(), Access::Reading).unwrap_err();
        writing.change(folder.path(), Access::Reading).unwrap();
        take_elsewhere(folder.path(), Access::Reading).unwrap();
    }

    #[test]
    fn a_run_within_a_run_shares_its_lock() {
        let folder = tempfile::tempdir().unwrap();
        let outer = FolderLock::take(folder.path(), Access::Alone).unwrap();
        assert!(!outer.is_shared());
        let inner = FolderLock::take(folder.path(), Access::Alone).unwrap();
        assert!(inner.is_shared());
        drop(inner);
        take_elsewhere(folder.path(), Access::Alone).unwrap_err();
        drop(outer);
        take_elsewhere(folder.path(), Access::Alone).unwrap();
    }

    #[test]
    fn a_run_that_is_over_keeps_nobody_off_whoever_has_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let lock = FolderLock::take(folder.path(), Access::Alone).unwrap();
        let _duplicate = lock_of(&lock.held.file)
            .as_ref()
            .unwrap()
            .try_clone()
            .unwrap();
        take_elsewhere(folder.path(), Access::Alone).unwrap_err();
        drop(lock);
        take_elsewhere(folder.path(), Access::Alone).unwrap();
    }
}
