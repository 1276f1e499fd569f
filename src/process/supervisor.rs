//! The small process between this one and a command, which outlives this one to end the command's whole tree.
//!
//! A killed host cannot end its training, `PR_SET_PDEATHSIG` follows the thread that forked and does not cover
//! grandchildren, and a signal to `accelerate` alone leaves the training running. So the command's parent is a fork
//! of this process that does nothing but wait: for the command's end, or for the end of its lifeline, a socket whose
//! other end this process holds and which the kernel closes however it dies. On Linux the supervisor is also the
//! subreaper of the tree: what the command leaves behind becomes its child, sessions of their own included.
//!
//! It writes two numbers into the lifeline: the command's process, and at the end the command's wait status.
#![allow(
    unsafe_code,
    reason = "fork, and between fork and exec only raw, async-signal-safe system calls are sound"
)]

#[cfg(target_os = "linux")]
mod memory;

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use libc::{c_int, pid_t};

/// How a tree is ended: each signal, and how long it has before the next; `SIGKILL` is last. Musubi Tuner was seen
/// to end 2 to 4 s after a `SIGINT` to its group, and 0.3 s after a `SIGTERM`.
const STOP: [(c_int, u32); 2] = [(libc::SIGINT, 5_000), (libc::SIGTERM, 3_000)];

/// The same for what a command leaves behind when it has ended by itself: first nothing, as workers end on their own.
const SWEEP: [(c_int, u32); 2] = [(0, 200), (libc::SIGTERM, 300)];

/// How long `SIGKILL` is repeated: processes that fork while they are killed, or hang in the kernel.
const KILL_MS: u32 = 5_000;

/// Between two looks at a tree that is being ended.
const LOOK_MS: u32 = 10;

/// The same while it is killed: a tree comes up level by level, one at a look.
const KILL_LOOK_MS: u32 = 1;

/// How long a supervisor watches.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// Until the command has ended; what it leaves behind is ended then.
    Command,
    /// Until all of its tree has: the command may leave behind what is to go on.
    Tree,
}

/// Puts a supervisor between this process and what `command` will start; `lifeline` is its end of the socket. It keeps
/// `locks` open until the tree is gone.
pub fn supervise(command: &mut Command, lifeline: RawFd, mut locks: Vec<RawFd>, watch: Watch) {
    locks.sort_unstable();
    // SAFETY: getpid has no preconditions.
    let host = unsafe { libc::getpid() };
    // SAFETY: the closure runs in the forked child and keeps to async-signal-safe calls: no allocation, no locks.
    unsafe { command.pre_exec(move || fork_supervised(lifeline, &locks, Some(host), watch)) };
}

/// Makes this process, a single-threaded fork of a warm interpreter, the supervisor of a fork of its own, in which this
/// returns. It goes by its lifeline alone, as the interpreter may end before it.
///
/// # Errors
/// What forking gives.
pub fn supervise_here(lifeline: RawFd, mut locks: Vec<RawFd>) -> io::Result<()> {
    locks.sort_unstable();
    fork_supervised(lifeline, &locks, None, Watch::Command)
}

/// Runs in the child that was forked for it: this becomes the supervisor and never returns; its own fork, the command
/// itself, returns to be executed.
fn fork_supervised(
    lifeline: RawFd,
    locks: &[RawFd],
    host: Option<pid_t>,
    watch: Watch,
) -> io::Result<()> {
    // SAFETY: raw system calls on this process's own, single-threaded state.
    unsafe {
        // Out of the terminal's foreground group: its Ctrl-C is for the host, which then decides.
        libc::setsid();
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut());
        #[cfg(target_os = "linux")]
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, libc::c_ulong::from(true));
        // Where the host ignores it, the kernel would throw the command's status away.
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        let supervisor = libc::getpid();
        let forked = if host.is_some() {
            fork_without_handlers()
        } else {
            libc::fork()
        };
        match forked {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                libc::setpgid(0, 0);
                #[cfg(target_os = "linux")]
                libc::prctl(
                    libc::PR_SET_PDEATHSIG,
                    libc::c_ulong::from(libc::SIGKILL.unsigned_abs()),
                );
                if libc::getppid() != supervisor {
                    libc::_exit(1);
                }
                // A host started in the background ignores SIGINT; the command must not, or it cannot be asked to end.
                for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGCHLD, libc::SIGXFSZ] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                inherit_standard_streams_only();
                let mut none = std::mem::zeroed();
                libc::sigemptyset(&raw mut none);
                libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
                Ok(())
            }
            command => {
                libc::setpgid(command, command);
                tell(lifeline, command);
                Supervisor {
                    command,
                    host,
                    watch,
                    sees_tree: sees_own_processes(),
                }
                .watch(lifeline, locks)
            }
        }
    }
}

/// Forks the child of a host that has threads. `fork` would run what libraries have registered for it
/// (`pthread_atfork`), and wait for ever for a lock that another thread of the host had when this process was forked:
/// OpenBLAS, which NumPy brings, takes one while two steps start at once.
///
/// # Safety
/// As after `fork` in such a process: only what is async-signal-safe may follow.
unsafe fn fork_without_handlers() -> pid_t {
    // SAFETY: without flags but the signal at its end, and on a copy of the same stack, this is what `fork` is made of.
    #[cfg(target_os = "linux")]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a process's number is a pid_t"
    )]
    unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::c_long::from(libc::SIGCHLD),
            0,
            0,
            0,
            0,
        ) as pid_t
    }
    // SAFETY: as the caller promises.
    #[cfg(not(target_os = "linux"))]
    unsafe {
        libc::fork()
    }
}

struct Supervisor {
    command: pid_t,
    /// Whose end ends the tree, besides that of the lifeline.
    host: Option<pid_t>,
    watch: Watch,
    sees_tree: bool,
}

impl Supervisor {
    fn watch(&self, lifeline: RawFd, locks: &[RawFd]) -> ! {
        keep_only(lifeline, locks);
        #[cfg(target_os = "linux")]
        memory::give_back(&NOTED);
        // SAFETY: as above.
        unsafe {
            #[cfg(target_os = "linux")]
            libc::prctl(libc::PR_SET_NAME, c"musubi-guard".as_ptr());
            for signal in HEARD {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = note as extern "C" fn(c_int) as libc::sighandler_t;
                libc::sigaction(signal, &raw const action, ptr::null_mut());
            }
        }
        loop {
            self.reap_others();
            if self.has_ended() && (self.watch == Watch::Command || self.others() == 0) {
                self.end_tree(&SWEEP);
                break;
            }
            match NOTED.swap(0, Ordering::Relaxed) {
                0 => {}
                // Whoever signals the host's child means the command.
                signal => self.signal_tree(signal),
            }
            if lifeline_ended_within_a_second() || self.host_is_gone() {
                self.end_tree(&STOP);
                break;
            }
        }
        self.tell_status()
    }

    /// Whether the command has ended. It is not reaped before the very end, so that its process group's number, which
    /// is its own, cannot pass to strangers while we signal it.
    fn has_ended(&self) -> bool {
        // SAFETY: waitid writes to `info` alone.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            libc::waitid(
                libc::P_PID,
                self.command.unsigned_abs(),
                &raw mut info,
                options,
            ) != 0
                || info.si_pid() == self.command
        }
    }

    /// For a host whose forks keep the lifeline open.
    fn host_is_gone(&self) -> bool {
        // SAFETY: no preconditions.
        let parent = unsafe { libc::getppid() };
        self.host.is_some_and(|host| parent != host)
    }

    fn end_tree(&self, steps: &[(c_int, u32)]) {
        for &(signal, grace_ms) in steps {
            self.signal_tree(signal);
            if self.is_gone_within(grace_ms, signal) {
                return;
            }
        }
        let end_ms = now_ms() + u64::from(KILL_MS);
        while now_ms() < end_ms {
            self.signal_tree(libc::SIGKILL);
            if self.is_gone_within(KILL_LOOK_MS, libc::SIGKILL) {
                return;
            }
        }
    }

    fn signal_tree(&self, signal: c_int) {
        // SAFETY: the group's leader is our unreaped child: no stranger is hit.
        unsafe { libc::kill(-self.command, signal) };
        self.signal_others(signal);
    }

    fn signal_others(&self, signal: c_int) {
        // SAFETY: they are our unreaped children: no stranger is hit.
        self.for_each_other(|pid| unsafe {
            libc::kill(pid, signal);
        });
    }

    /// Passes `signal` on to what comes to us when the command ends: until then it was out of reach.
    fn is_gone_within(&self, milliseconds: u32, signal: c_int) -> bool {
        let end_ms = now_ms() + u64::from(milliseconds);
        let mut ended_before = self.has_ended();
        loop {
            self.reap_others();
            let ended = self.has_ended();
            // Looked at twice, as the kernel's list may leave out what is just coming to us.
            if ended && self.others() == 0 && self.others() == 0 {
                return true;
            }
            if ended && !ended_before {
                self.signal_others(signal);
            }
            ended_before = ended;
            if now_ms() >= end_ms {
                return false;
            }
            let look_ms = if signal == libc::SIGKILL {
                KILL_LOOK_MS
            } else {
                LOOK_MS
            };
            // SAFETY: no preconditions.
            unsafe { libc::usleep(look_ms * 1_000) };
        }
    }

    fn others(&self) -> u32 {
        let mut others = 0;
        self.for_each_other(|_| others += 1);
        others
    }

    fn reap_others(&self) {
        self.for_each_other(|pid| {
            // SAFETY: a null status is allowed.
            unsafe { libc::waitpid(pid, ptr::null_mut(), libc::WNOHANG) };
        });
    }

    /// Calls `act` with each process that the tree left to its subreaper. A tree deeper than that comes up level by
    /// level as its parents are ended.
    #[cfg(target_os = "linux")]
    fn for_each_other(&self, mut act: impl FnMut(pid_t)) {
        if !self.sees_tree {
            return;
        }
        let mut list = [0_u8; 4096];
        // SAFETY: read writes at most `list.len()` bytes into `list`.
        let length = unsafe {
            let file = libc::open(c"/proc/thread-self/children".as_ptr(), libc::O_RDONLY);
            let length = libc::read(file, list.as_mut_ptr().cast(), list.len());
            libc::close(file);
            usize::try_from(length).unwrap_or(0)
        };
        let mut pid: pid_t = 0;
        for &byte in &list[..length] {
            if byte.is_ascii_digit() {
                pid = pid
                    .saturating_mul(10)
                    .saturating_add(pid_t::from(byte - b'0'));
            } else {
                if pid > 0 && pid != self.command {
                    act(pid);
                }
                pid = 0;
            }
        }
    }

    /// Without a subreaper nothing comes to us but the command itself: its process group is all that can be ended.
    #[cfg(not(target_os = "linux"))]
    fn for_each_other(&self, _act: impl FnMut(pid_t)) {}

    fn tell_status(&self) -> ! {
        let mut status: c_int = 0;
        // SAFETY: waitpid writes to `status` alone.
        unsafe { libc::waitpid(self.command, &raw mut status, 0) };
        tell(0, status);
        // SAFETY: no preconditions.
        unsafe { libc::_exit(0) }
    }
}

/// Whether `/proc` numbers processes as this one does: it may be that of another PID namespace, and name strangers.
#[cfg(target_os = "linux")]
fn sees_own_processes() -> bool {
    let mut name = [0_u8; 16];
    // SAFETY: readlink writes at most `name.len()` bytes into `name`; getpid has no preconditions.
    let (length, own) = unsafe {
        let length = libc::readlink(c"/proc/self".as_ptr(), name.as_mut_ptr().cast(), name.len());
        (usize::try_from(length).unwrap_or(0), libc::getpid())
    };
    let digits = name[..length].iter();
    let number = digits.fold(0, |number: pid_t, digit| {
        number
            .wrapping_mul(10)
            .wrapping_add(pid_t::from(digit.wrapping_sub(b'0')))
    });
    number == own
}

#[cfg(not(target_os = "linux"))]
fn sees_own_processes() -> bool {
    false
}

/// By a clock that nobody sets.
fn now_ms() -> u64 {
    // SAFETY: clock_gettime writes to `now` alone.
    let now = unsafe {
        let mut now: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now);
        now
    };
    now.tv_sec.unsigned_abs() * 1_000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

fn tell(lifeline: RawFd, number: c_int) {
    // SAFETY: reads the bytes of `number` alone.
    unsafe { libc::write(lifeline, (&raw const number).cast(), size_of::<c_int>()) };
}

/// What a waiting supervisor hears.
const HEARD: [c_int; 4] = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// The last signal heard; SIGCHLD only has to interrupt the waiting, and never takes the place of another.
static NOTED: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(signal: c_int) {
    if signal != libc::SIGCHLD {
        NOTED.store(signal, Ordering::Relaxed);
    }
}

/// Closes everything but `lifeline`, which becomes descriptor 0, and `locks`, which are in order: the command's output
/// must end with the command.
fn keep_only(lifeline: RawFd, locks: &[RawFd]) {
    // SAFETY: this process uses no other descriptor from here on.
    unsafe { libc::dup2(lifeline, 0) };
    let mut first = 1;
    for &lock in locks {
        close_all(first, lock - 1);
        first = lock + 1;
    }
    close_all(first, c_int::MAX);
}

fn close_all(first: c_int, last: c_int) {
    if first > last {
        return;
    }
    // SAFETY: as above.
    unsafe {
        #[cfg(target_os = "linux")]
        if libc::syscall(libc::SYS_close_range, first, last, 0) == 0 {
            return;
        }
        for descriptor in first..=last.min(most_descriptors()) {
            libc::close(descriptor);
        }
    }
}

/// Marks everything but stdin, stdout and stderr to be closed by exec, as Python's `subprocess` does: what the host
/// has made inheritable is not for its training.
fn inherit_standard_streams_only() {
    // SAFETY: a flag on this process's own descriptors.
    unsafe {
        #[cfg(target_os = "linux")]
        if libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        ) == 0
        {
            return;
        }
        for descriptor in 3..most_descriptors() {
            libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
}

fn most_descriptors() -> c_int {
    // SAFETY: no preconditions.
    let limit = unsafe { libc::sysconf(libc::_SC_OPEN_MAX) };
    c_int::try_from(limit.clamp(256, 65_536)).unwrap_or(65_536)
}

/// Waits for the lifeline's end or a byte in it, interrupted by what is [`HEARD`], for a second at most.
fn lifeline_ended_within_a_second() -> bool {
    // SAFETY: descriptor 0 is the lifeline; all sets are initialised before use.
    unsafe {
        let mut readable: libc::fd_set = std::mem::zeroed();
        libc::FD_ZERO(&raw mut readable);
        libc::FD_SET(0, &raw mut readable);
        let mut blocked = std::mem::zeroed();
        libc::sigfillset(&raw mut blocked);
        for signal in HEARD {
            libc::sigdelset(&raw mut blocked, signal);
        }
        let second = libc::timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        libc::pselect(
            1,
            &raw mut readable,
            ptr::null_mut(),
            ptr::null_mut(),
            &raw const second,
            &raw const blocked,
        ) > 0
    }
}
