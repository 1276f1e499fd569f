//! The memory cgroup that a process is in: what it may hold, and how often the kernel killed in it for lack of memory.

use std::fs;
use std::path::{Path, PathBuf};

/// A cgroup that accounts for memory, of either version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryCgroup {
    folder: PathBuf,
    /// Where the hierarchy is mounted: `folder` or above it.
    mount_point: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// Version 1 has no word for "no limit" but the largest number of pages.
const NO_LIMIT_BYTES: u64 = 1 << 60;

impl MemoryCgroup {
    /// Of this process; a step that it runs starts in the same. `None` where there is none to be seen.
    #[must_use]
    pub fn of_this_process() -> Option<Self> {
        Self::below(Path::new("/"))
    }

    /// With `/proc` and the mounts looked for below `root`.
    fn below(root: &Path) -> Option<Self> {
        let cgroups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
        let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
        let lines = || cgroups.lines().filter_map(Membership::parse);
        let (membership, version) = lines()
            .find(|membership| {
                membership
                    .controllers
                    .split(',')
                    .any(|name| name == "memory")
            })
            .map(|membership| (membership, Version::V1))
            .or_else(|| {
                let unified = lines().find(|membership| membership.controllers.is_empty())?;
                Some((unified, Version::V2))
            })?;
        let mount = mounts
            .lines()
            .filter_map(Mount::parse)
            .find(|mount| mount.is_of_memory(version))?;
        let mount_point = root.join(mount.point.trim_start_matches('/'));
        // A container may see its own cgroup alone, mounted as if it were the root.
        let inner = Path::new(membership.path)
            .strip_prefix(mount.root)
            .or_else(|_| Path::new(membership.path).strip_prefix("/"))
            .unwrap_or(Path::new(""));
        let inner = mount_point.join(inner);
        Some(Self {
            folder: if inner.is_dir() {
                inner
            } else {
                mount_point.clone()
            },
            mount_point,
            version,
        })
    }

    /// The lowest limit of this cgroup and those around it; `None` without one.
    #[must_use]
    pub fn limit_bytes(&self) -> Option<u64> {
        self.limits().map(|(_, limit)| limit).min()
    }

    /// What its processes can still be given, the page cache that can be dropped for it included, by the limits of this
    /// cgroup and those around it; `None` without a limit.
    #[must_use]
    pub fn available_bytes(&self) -> Option<u64> {
        let (usage, prefix) = match self.version {
            Version::V1 => ("memory.usage_in_bytes", "total_"),
            Version::V2 => ("memory.current", ""),
        };
        self.limits()
            .filter_map(|(folder, limit)| {
                let used = number(&folder.join(usage))?;
                let cache = fs::read_to_string(folder.join("memory.stat")).ok()?;
                let cache = |name: &str| value(&cache, &format!("{prefix}{name} "));
                let cache = cache("inactive_file").unwrap_or(0) + cache("active_file").unwrap_or(0);
                Some(limit.saturating_sub(used.saturating_sub(cache)))
            })
            .min()
    }

    /// Each cgroup from this one up that has a limit.
    fn limits(&self) -> impl Iterator<Item = (&Path, u64)> {
        let file = match self.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        self.folder
            .ancestors()
            .take_while(|folder| folder.starts_with(&self.mount_point))
            .filter_map(move |folder| Some((folder, number(&folder.join(file))?)))
            .filter(|&(_, limit)| limit < NO_LIMIT_BYTES)
    }

    /// How many of its processes the kernel's OOM killer has killed since the cgroup was made; `None` where the kernel
    /// does not say.
    #[must_use]
    pub fn oom_kills(&self) -> Option<u64> {
        let file = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        value(
            &fs::read_to_string(self.folder.join(file)).ok()?,
            "oom_kill ",
        )
    }
}

/// What this process can still be given, the page cache that can be dropped for it included: by its cgroup and by the
/// system. `None` where neither says.
#[must_use]
pub fn available_bytes(cgroup: Option<&MemoryCgroup>) -> Option<u64> {
    let of_system = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|told| value(&told, "MemAvailable:"))
        .map(|kibibytes| kibibytes << 10);
    let of_cgroup = cgroup.and_then(MemoryCgroup::available_bytes);
    of_system.into_iter().chain(of_cgroup).min()
}

/// The file's only number.
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The number behind `name` at the beginning of a line.
fn value(text: &str, name: &str) -> Option<u64> {
    let told = text.lines().find_map(|line| line.strip_prefix(name))?;
    told.trim().trim_end_matches(" kB").parse().ok()
}

/// A line of `/proc/self/cgroup`: `4:memory:/docker/1f2e`, or `0::/user.slice` of version 2.
struct Membership<'a> {
    controllers: &'a str,
    path: &'a str,
}

impl<'a> Membership<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        Some(Self { controllers, path })
    }
}

/// A line of `/proc/self/mountinfo`.
struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let mut file_system = file_system.split(' ');
        Some(Self {
            root: mount.next()?,
            point: mount.next()?,
            kind: file_system.next()?,
            options: file_system.nth(1)?,
        })
    }

    fn is_of_memory(&self, version: Version) -> bool {
        match version {
            Version::V1 => {
                self.kind == "cgroup" && self.options.split(',').any(|name| name == "memory")
            }
            Version::V2 => self.kind == "cgroup2",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    const V2: &str =
        "31 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";

    /// A machine of files.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let file = root.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, content).unwrap();
        }
        root
    }

    #[test]
    fn version_2_the_lowest_limit_up_the_hierarchy_holds() {
        let root = machine(&[
            ("proc/self/cgroup", "0::/pod/container\n"),
            ("proc/self/mountinfo", V2),
            ("sys/fs/cgroup/pod/memory.max", "2147483648\n"),
            ("sys/fs/cgroup/pod/container/memory.max", "max\n"),
            (
                "sys/fs/cgroup/pod/container/memory.events",
                "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n",
            ),
        ]);
        let cgroup = MemoryCgroup::below(root.path()).unwrap();
        assert_eq!(cgroup.limit_bytes(), Some(2 << 30));
        assert_eq!(cgroup.oom_kills(), Some(2));
        fs::write(
            root.path().join("sys/fs/cgroup/pod/container/memory.max"),
            "1024",
        )
        .unwrap();
        assert_eq!(cgroup.limit_bytes(), Some(1024));
    }

    #[test]
    fn what_is_available_counts_the_page_cache_and_every_limit() {
        let v2 = machine(&[
            ("proc/self/cgroup", "0::/pod/container\n"),
            ("proc/self/mountinfo", V2),
            ("sys/fs/cgroup/pod/memory.max", "5000\n"),
            ("sys/fs/cgroup/pod/memory.current", "4500\n"),
            (
                "sys/fs/cgroup/pod/memory.stat",
                "anon 1\nfile 2000\nshmem 1500\ninactive_file 200\nactive_file 300\n",
            ),
            ("sys/fs/cgroup/pod/container/memory.max", "3000\n"),
            ("sys/fs/cgroup/pod/container/memory.current", "100\n"),
            ("sys/fs/cgroup/pod/container/memory.stat", ""),
        ]);
        let cgroup = MemoryCgroup::below(v2.path()).unwrap();
        assert_eq!(cgroup.available_bytes(), Some(1000));
        let pod = v2.path().join("sys/fs/cgroup/pod");
        fs::write(pod.join("memory.max"), "max").unwrap();
        assert_eq!(cgroup.available_bytes(), Some(2900));
        fs::write(pod.join("container/memory.current"), "3001").unwrap();
        assert_eq!(cgroup.available_bytes(), Some(0));
        fs::write(pod.join("container/memory.max"), "max").unwrap();
        assert_eq!(cgroup.available_bytes(), None);

        let v1 = machine(&[
            ("proc/self/cgroup", "4:memory:/a\n"),
            (
                "proc/self/mountinfo",
                "36 31 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
            ),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "5000\n"),
            ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "4500\n"),
            (
                "sys/fs/cgroup/memory/a/memory.stat",
                "inactive_file 1\nactive_file 1\ntotal_inactive_file 200\ntotal_active_file 300\n",
            ),
        ]);
        let cgroup = MemoryCgroup::below(v1.path()).unwrap();
        assert_eq!(cgroup.available_bytes(), Some(1000));
    }

    #[test]
    fn this_machine_says_what_it_has_left() {
        let available = available_bytes(MemoryCgroup::of_this_process().as_ref());
        assert!(!cfg!(target_os = "linux") || available > Some(1 << 20));
    }

    #[test]
    fn version_1_is_found_by_its_controller_and_its_largest_number_is_no_limit() {
        let root = machine(&[
            (
                "proc/self/cgroup",
                "5:cpu,cpuacct:/a\n4:hugetlb,memory:/a\n1:name=systemd:/\n0::/b\n",
            ),
            (
                "proc/self/mountinfo",
                "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                 35 31 0:32 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                 36 31 0:33 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,hugetlb,memory\n",
            ),
            (
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            (
                "sys/fs/cgroup/memory/a/memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
            ),
        ]);
        let cgroup = MemoryCgroup::below(root.path()).unwrap();
        assert_eq!(cgroup.limit_bytes(), None);
        assert_eq!(cgroup.oom_kills(), Some(1));
        fs::write(
            root.path()
                .join("sys/fs/cgroup/memory/memory.limit_in_bytes"),
            "4096\n",
        )
        .unwrap();
        assert_eq!(cgroup.limit_bytes(), Some(4096));
    }

    #[test]
    fn a_container_that_sees_its_own_cgroup_as_the_root() {
        let limit = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n");
        let mount = "36 31 0:33 /docker/1f2e /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
        for path in ["/docker/1f2e", "/elsewhere/1f2e", "/../1f2e"] {
            let membership = format!("4:memory:{path}\n");
            let files = [
                ("proc/self/cgroup", membership.as_str()),
                ("proc/self/mountinfo", mount),
                limit,
            ];
            let root = machine(&files);
            let cgroup = MemoryCgroup::below(root.path()).unwrap();
            assert_eq!(cgroup.limit_bytes(), Some(1 << 30), "{path}");
        }
    }

    #[test]
    fn what_is_not_there_is_none() {
        let cases: [&[(&str, &str)]; 4] = [
            &[],
            &[("proc/self/cgroup", "0::/\n")],
            &[
                ("proc/self/cgroup", "0::/\n"),
                ("proc/self/mountinfo", "nonsense - x"),
            ],
            &[
                ("proc/self/cgroup", "nonsense"),
                ("proc/self/mountinfo", V2),
            ],
        ];
        for files in cases {
            assert_eq!(
                MemoryCgroup::below(machine(files).path()),
                None,
                "{files:?}"
            );
        }
        let root = machine(&[("proc/self/cgroup", "0::/\n"), ("proc/self/mountinfo", V2)]);
        let cgroup = MemoryCgroup::below(root.path()).unwrap();
        assert_eq!((cgroup.limit_bytes(), cgroup.oom_kills()), (None, None));
    }

    /// A cgroup of this machine, made in ours, with a limit; `None` where that is not allowed.
    fn small_cgroup(limit_bytes: u64) -> Option<MemoryCgroup> {
        let ours = MemoryCgroup::of_this_process()?;
        let folder = ours
            .folder
            .join(format!("musubitraining-test-{}", std::process::id()));
        fs::create_dir(&folder).ok()?;
        let limit = match ours.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        if fs::write(folder.join(limit), limit_bytes.to_string()).is_err() {
            fs::remove_dir(&folder).unwrap();
            return None;
        }
        Some(MemoryCgroup { folder, ..ours })
    }

    #[test]
    fn a_process_that_the_kernel_kills_is_counted() {
        let limit_bytes = 64 << 20;
        let Some(cgroup) = small_cgroup(limit_bytes) else {
            eprintln!("left out: no memory cgroup can be made here");
            return;
        };
        assert_eq!(cgroup.limit_bytes(), Some(limit_bytes));
        assert_eq!(cgroup.oom_kills(), Some(0));
        // It keeps the line that it reads in memory, and the line has no end.
        let status = Command::new("sh")
            .args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec tail /dev/zero"])
            .arg(&cgroup.folder)
            .status()
            .unwrap();
        let kills = cgroup.oom_kills();
        fs::remove_dir(&cgroup.folder).unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        assert_eq!(kills, Some(1));
    }
}
