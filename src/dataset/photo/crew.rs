//! Work on all cores, as much of it at once as memory is meant for it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

use crate::error::Error;
use crate::task::lock_of;

/// For some dozen photos of a phone at once.
const MOST_BYTES: u64 = 1 << 30;

/// Does `work` for each number below `costs.len()`, and hands what came of it to `on_done` in their order. `costs` is what
/// each takes of memory; what takes more than all is done alone.
///
/// # Errors
/// The first of `work` or of `on_done`; what had begun by then has ended.
pub fn run<T: Send>(
    costs: &[u64],
    work: impl Fn(usize) -> Result<T, Error> + Sync,
    mut on_done: impl FnMut(usize, T) -> Result<(), Error>,
) -> Result<(), Error> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let room = Room::default();
    let (next, room, work) = (&next, &room, &work);
    thread::scope(|scope| {
        let (sender, results) = channel();
        for number in 0..cores.min(costs.len()) {
            let sender = sender.clone();
            let work_on = move || {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(cost) = costs.get(at) else { break };
                    let _taken = room.take(*cost);
                    // Nobody listens any more where something has failed.
                    if sender.send((at, work(at))).is_err() {
                        break;
                    }
                }
            };
            let thread = thread::Builder::new().name("photos".to_owned());
            match thread.spawn_scoped(scope, work_on) {
                Err(error) if number == 0 => {
                    return Err(Error::Unusable(format!(
                        "cannot start a thread for the photos: {error}"
                    )));
                }
                Err(_) => break,
                Ok(_) => {}
            }
        }
        drop(sender);
        let mut ahead = BTreeMap::new();
        let mut done = 0;
        for (at, result) in results {
            ahead.insert(at, result?);
            while let Some(result) = ahead.remove(&done) {
                on_done(done, result)?;
                done += 1;
            }
        }
        Ok(())
    })
}

/// The memory that is taken.
#[derive(Default)]
struct Room(Mutex<u64>, Condvar);

impl Room {
    fn take(&self, bytes: u64) -> Taken<'_> {
        let is_full = |taken: &mut u64| *taken > 0 && taken.saturating_add(bytes) > MOST_BYTES;
        let taken = self.1.wait_while(lock_of(&self.0), is_full);
        *taken.unwrap_or_else(PoisonError::into_inner) += bytes;
        Taken { room: self, bytes }
    }
}

struct Taken<'a> {
    room: &'a Room,
    bytes: u64,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *lock_of(&self.room.0) -= self.bytes;
        self.room.1.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn all_is_done_and_told_in_order_within_the_memory() {
        let costs: Vec<u64> = (0..64)
            .map(|number| {
                if number == 7 {
                    2 * MOST_BYTES
                } else {
                    MOST_BYTES / 2
                }
            })
            .collect();
        let (taken, most) = (AtomicU64::new(0), AtomicU64::new(0));
        let mut told = Vec::new();
        let work = |at: usize| {
            let now = taken.fetch_add(costs[at], Ordering::SeqCst) + costs[at];
            most.fetch_max(
                if at == 7 { now - MOST_BYTES } else { now },
                Ordering::SeqCst,
            );
            thread::yield_now();
            taken.fetch_sub(costs[at], Ordering::SeqCst);
            Ok(at * 10)
        };
        run(&costs, work, |at, result| {
            assert_eq!(result, at * 10);
            told.push(at);
            Ok(())
        })
        .unwrap();
        assert_eq!(told, (0..64).collect::<Vec<_>>());
        assert!(most.into_inner() <= MOST_BYTES);
    }

    #[test]
    fn what_fails_ends_it() {
        let begun = AtomicUsize::new(0);
        let work = |at: usize| {
            begun.fetch_add(1, Ordering::SeqCst);
            if at == 3 {
                return Err(Error::Cancelled);
            }
            Ok(())
        };
        let result = run(&vec![1; 100_000], work, |_, ()| Ok(()));
        assert!(matches!(result, Err(Error::Cancelled)));
        assert!(begun.into_inner() < 100_000);
        let told = |_, ()| Err(Error::Cancelled);
        run(&[1; 10], |_| Ok(()), told).unwrap_err();
        run(&[], |_| Ok(()), |_, ()| Ok(())).unwrap();
    }
}
