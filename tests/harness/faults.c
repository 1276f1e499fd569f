/* Counts the calls that change the file system below one folder, and strikes at the one it is told to.
 *
 * Preloaded into a process (LD_PRELOAD), it lets everything through until the process calls `faults_arm`. A program
 * started from there comes up unarmed. What it sees is what the C library is asked for: Rust's standard library and
 * Python ask for all their work on files there.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { KILL, CUT, FAIL, FAIL_ON, FAIL_LOOK };

static char folder[PATH_MAX];
static int notes = -1, kind, number;
static long at, calls;

/* Every call is noted in the file `notes_path`, a line each. The call number `at`, counted from 1, is struck:
 * kind 0: the process is killed before it; 1: in the middle of it, if it is a write, with half of the bytes written;
 * 2: it fails with `error`; 3: so do all after it. With kind 4, what only looks is counted instead, and fails. */
void faults_arm(const char *folder_path, const char *notes_path, int how, long call, int error) {
    snprintf(folder, sizeof folder, "%s/", folder_path);
    kind = how, at = call, number = error, calls = 0;
    notes = open(notes_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static int lies_below(const char *path) { return strncmp(path, folder, strlen(folder)) == 0; }

static int is_below(int parent, const char *path) {
    char whole[2 * PATH_MAX], link[64];
    if (notes < 0) return 0;
    if (path && path[0] == '/') return lies_below(path);
    if (parent == AT_FDCWD) {
        if (!getcwd(whole, PATH_MAX)) return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", parent);
        ssize_t length = readlink(link, whole, PATH_MAX - 1);
        if (length < 0) return 0;
        whole[length] = 0;
    }
    if (path) {
        strcat(whole, "/");
        strncat(whole, path, PATH_MAX - 1);
    }
    return lies_below(whole);
}

/* Counts and notes a call; true when it is to fail. */
static int strikes(int looks, const char *call, const char *path) {
    if (looks != (kind == FAIL_LOOK)) return 0;
    int error = errno;
    long now = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    char line[2 * PATH_MAX];
    int length = snprintf(line, sizeof line, "%s %s\n", call, path ? path : "");
    syscall(SYS_write, notes, line, length);
    errno = error;
    if (kind == KILL && now == at) die();
    if (now == at ? kind != CUT : kind == FAIL_ON && now > at) {
        errno = number;
        return 1;
    }
    return 0;
}

static int cuts(void) { return kind == CUT && __atomic_load_n(&calls, __ATOMIC_SEQ_CST) == at; }

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define CALLS(looks, type, failed, name, parameters, parent, path, arguments) \
    type name parameters { \
        REAL(name); \
        return is_below(parent, path) && strikes(looks, #name, path) ? failed : real arguments; \
    }

#define CHANGES(type, name, parameters, parent, path, arguments) \
    CALLS(0, type, -1, name, parameters, parent, path, arguments)

#define LOOKS(type, name, parameters, parent, path, arguments) \
    CALLS(1, type, -1, name, parameters, parent, path, arguments)

#define OPENS(name, parameters, parent, arguments) \
    int name parameters { \
        REAL(name); \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { \
            va_list rest; \
            va_start(rest, flags); \
            mode = va_arg(rest, mode_t); \
            va_end(rest); \
        } \
        int looks = !(flags & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR)); \
        return is_below(parent, path) && strikes(looks, #name, path) ? -1 : real arguments; \
    }

#define WRITES(name, parameters, whole, half) \
    ssize_t name parameters { \
        REAL(name); \
        if (is_below(file, NULL)) { \
            if (strikes(0, #name, NULL)) return -1; \
            if (cuts()) { \
                real half; \
                die(); \
            } \
        } \
        return real whole; \
    }

OPENS(open, (const char *path, int flags, ...), AT_FDCWD, (path, flags, mode))
OPENS(open64, (const char *path, int flags, ...), AT_FDCWD, (path, flags, mode))
OPENS(openat, (int parent, const char *path, int flags, ...), parent, (parent, path, flags, mode))
OPENS(openat64, (int parent, const char *path, int flags, ...), parent, (parent, path, flags, mode))
CHANGES(int, creat, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
CHANGES(int, creat64, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))

WRITES(write, (int file, const void *data, size_t size), (file, data, size), (file, data, size / 2))
WRITES(pwrite, (int file, const void *data, size_t size, off_t where), (file, data, size, where),
       (file, data, size / 2, where))
WRITES(pwrite64, (int file, const void *data, size_t size, off64_t where), (file, data, size, where),
       (file, data, size / 2, where))
WRITES(writev, (int file, const struct iovec *data, int count), (file, data, count), (file, data, count / 2))
WRITES(sendfile, (int file, int from, off_t *where, size_t size), (file, from, where, size),
       (file, from, where, size / 2))
WRITES(sendfile64, (int file, int from, off64_t *where, size_t size), (file, from, where, size),
       (file, from, where, size / 2))
WRITES(copy_file_range, (int from, off64_t *start, int file, off64_t *where, size_t size, unsigned flags),
       (from, start, file, where, size, flags), (from, start, file, where, size / 2, flags))
WRITES(splice, (int from, off64_t *start, int file, off64_t *where, size_t size, unsigned flags),
       (from, start, file, where, size, flags), (from, start, file, where, size / 2, flags))

CHANGES(int, ftruncate, (int file, off_t size), file, NULL, (file, size))
CHANGES(int, ftruncate64, (int file, off64_t size), file, NULL, (file, size))
CHANGES(int, truncate, (const char *path, off_t size), AT_FDCWD, path, (path, size))
CHANGES(int, truncate64, (const char *path, off64_t size), AT_FDCWD, path, (path, size))
CHANGES(int, posix_fallocate, (int file, off_t from, off_t size), file, NULL, (file, from, size))
CHANGES(int, posix_fallocate64, (int file, off64_t from, off64_t size), file, NULL, (file, from, size))
CHANGES(int, fallocate, (int file, int mode, off_t from, off_t size), file, NULL, (file, mode, from, size))
CHANGES(int, fallocate64, (int file, int mode, off64_t from, off64_t size), file, NULL, (file, mode, from, size))
CHANGES(int, fsync, (int file), file, NULL, (file))
CHANGES(int, fdatasync, (int file), file, NULL, (file))
CHANGES(int, rename, (const char *from, const char *path), AT_FDCWD, path, (from, path))
CHANGES(int, renameat, (int from_parent, const char *from, int parent, const char *path), parent, path,
        (from_parent, from, parent, path))
CHANGES(int, renameat2, (int from_parent, const char *from, int parent, const char *path, unsigned flags), parent, path,
        (from_parent, from, parent, path, flags))
CHANGES(int, link, (const char *from, const char *path), AT_FDCWD, path, (from, path))
CHANGES(int, linkat, (int from_parent, const char *from, int parent, const char *path, int flags), parent, path,
        (from_parent, from, parent, path, flags))
CHANGES(int, symlink, (const char *from, const char *path), AT_FDCWD, path, (from, path))
CHANGES(int, symlinkat, (const char *from, int parent, const char *path), parent, path, (from, parent, path))
CHANGES(int, mkdir, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
CHANGES(int, mkdirat, (int parent, const char *path, mode_t mode), parent, path, (parent, path, mode))
CHANGES(int, unlink, (const char *path), AT_FDCWD, path, (path))
CHANGES(int, unlinkat, (int parent, const char *path, int flags), parent, path, (parent, path, flags))
CHANGES(int, rmdir, (const char *path), AT_FDCWD, path, (path))
CHANGES(int, remove, (const char *path), AT_FDCWD, path, (path))
CHANGES(int, chmod, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
CHANGES(int, fchmod, (int file, mode_t mode), file, NULL, (file, mode))
CHANGES(int, fchmodat, (int parent, const char *path, mode_t mode, int flags), parent, path,
        (parent, path, mode, flags))
CHANGES(int, futimens, (int file, const struct timespec times[2]), file, NULL, (file, times))
CHANGES(int, utimensat, (int parent, const char *path, const struct timespec times[2], int flags), parent, path,
        (parent, path, times, flags))

LOOKS(int, statx, (int parent, const char *restrict path, int flags, unsigned mask, struct statx *restrict found),
      parent, path, (parent, path, flags, mask, found))
LOOKS(int, stat64, (const char *restrict path, struct stat64 *restrict found), AT_FDCWD, path, (path, found))
LOOKS(int, lstat64, (const char *restrict path, struct stat64 *restrict found), AT_FDCWD, path, (path, found))
LOOKS(int, fstat64, (int file, struct stat64 *found), file, NULL, (file, found))
LOOKS(int, fstatat64, (int parent, const char *restrict path, struct stat64 *restrict found, int flags), parent, path,
      (parent, path, found, flags))
LOOKS(ssize_t, read, (int file, void *data, size_t size), file, NULL, (file, data, size))
LOOKS(ssize_t, pread64, (int file, void *data, size_t size, off64_t where), file, NULL, (file, data, size, where))
CALLS(1, DIR *, NULL, opendir, (const char *path), AT_FDCWD, path, (path))
CALLS(1, DIR *, NULL, fdopendir, (int folder_file), folder_file, NULL, (folder_file))
CALLS(1, struct dirent64 *, NULL, readdir64, (DIR *entries), dirfd(entries), NULL, (entries))
