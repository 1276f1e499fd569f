/* launch DESCRIPTOR COMMAND…: runs the command and writes to the descriptor what the kernel says of it: wall and
 * CPU in ns, peak memory in KiB, status.
 *
 * In C, as a process starts with the peak memory of the one that spawns it: no Python could measure a smaller one. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long nanoseconds(struct timeval time) {
    return time.tv_sec * 1000000000LL + time.tv_usec * 1000LL;
}

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(int count, char **words) {
    if (count < 3)
        return 2;
    int told = atoi(words[1]);
    long long start = now();
    pid_t child = fork();
    if (child < 0) {
        perror("fork");
        return 2;
    }
    if (child == 0) {
        close(told);
        execvp(words[2], words + 2);
        perror(words[2]);
        _exit(127);
    }
    int status;
    struct rusage used;
    if (wait4(child, &status, 0, &used) != child)
        return 2;
    long long end = now();
    dprintf(told, "%lld %lld %ld %d", end - start, nanoseconds(used.ru_utime) + nanoseconds(used.ru_stime),
            used.ru_maxrss, WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
    return 0;
}
