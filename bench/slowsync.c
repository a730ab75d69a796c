/* LD_PRELOAD: every way to sync takes SLOWSYNC_US longer. A way that cannot be slowed ends the process, so that no run is half slow. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static void slow(void)
{
    const char *text = getenv("SLOWSYNC_US");
    long us = text ? atol(text) : 0;
    struct timespec left = {us / 1000000, (us % 1000000) * 1000};
    while (us && nanosleep(&left, &left) != 0) {}
}

static void refuse(const char *what)
{
    static const char text[] = "slowsync: a way to sync that it does not slow: ";
    (void)!write(2, text, sizeof text - 1);
    (void)!write(2, what, strlen(what));
    (void)!write(2, "\n", 1);
    _exit(97);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define SYNCED (O_SYNC | O_DSYNC)

int fsync(int fd) { slow(); return REAL(fsync)(fd); }
int fdatasync(int fd) { slow(); return REAL(fdatasync)(fd); }
void sync(void) { slow(); REAL(sync)(); }
int syncfs(int fd) { slow(); return REAL(syncfs)(fd); }
int msync(void *at, size_t size, int flags) { if (flags & MS_SYNC) slow(); return REAL(msync)(at, size, flags); }

/* Only what waits is a sync; SYNC_FILE_RANGE_WRITE alone begins to write and promises nothing. */
int sync_file_range(int fd, off64_t at, off64_t size, unsigned flags)
{
    if (flags & (SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WAIT_AFTER)) slow();
    return REAL(sync_file_range)(fd, at, size, flags);
}

ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t at, int flags)
{
    if (flags & (RWF_SYNC | RWF_DSYNC)) refuse("pwritev2 with RWF_SYNC or RWF_DSYNC");
    return REAL(pwritev2)(fd, parts, count, at, flags);
}

ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t at, int flags)
{
    if (flags & (RWF_SYNC | RWF_DSYNC)) refuse("pwritev64v2 with RWF_SYNC or RWF_DSYNC");
    return REAL(pwritev64v2)(fd, parts, count, at, flags);
}

/* Around the library's functions: what would sync, or hand work to a ring that may, is refused. */
long syscall(long number, ...)
{
    switch (number) {
    case SYS_fsync: case SYS_fdatasync: case SYS_sync: case SYS_syncfs: case SYS_sync_file_range: case SYS_msync:
    case SYS_pwritev2: case SYS_io_uring_setup: case SYS_io_submit:
        refuse("a system call that syncs, made directly");
    }
    va_list rest;
    va_start(rest, number);
    long a = va_arg(rest, long), b = va_arg(rest, long), c = va_arg(rest, long);
    long d = va_arg(rest, long), e = va_arg(rest, long), f = va_arg(rest, long);
    va_end(rest);
    return REAL(syscall)(number, a, b, c, d, e, f);
}

#define OPEN(name, ...)                                                   \
    mode_t mode = 0;                                                      \
    if (flags & (O_CREAT | O_TMPFILE)) {                                  \
        va_list rest;                                                     \
        va_start(rest, flags);                                            \
        mode = va_arg(rest, mode_t);                                      \
        va_end(rest);                                                     \
    }                                                                     \
    if (flags & SYNCED) refuse("a file opened with O_SYNC or O_DSYNC");   \
    return REAL(name)(__VA_ARGS__, flags, mode)

int open(const char *path, int flags, ...) { OPEN(open, path); }
int open64(const char *path, int flags, ...) { OPEN(open64, path); }
int openat(int folder, const char *path, int flags, ...) { OPEN(openat, folder, path); }
int openat64(int folder, const char *path, int flags, ...) { OPEN(openat64, folder, path); }
