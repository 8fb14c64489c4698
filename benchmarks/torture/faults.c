/* File calls that fail on demand, loaded before the C library: what a process writes below one folder is counted by call
   site, and one chosen call goes wrong. Sites are `write`, `fsync` or `rename` and the path, its digits as one '#'. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static char below[4096], site[4096], kind[16];
static long nth, seen;
static int fired, logfd = -1;

static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static int (*real_fsync)(int), (*real_fdatasync)(int), (*real_rename)(const char *, const char *);

static void told(char *place, size_t size, const char *name) {
    const char *value = getenv(name);
    snprintf(place, size, "%s", value ? value : "");
}

/* Read the environment (again): the child of a fork sets its own. */
void torture_arm(void) {
    told(below, sizeof below, "TORTURE_BELOW");
    told(site, sizeof site, "TORTURE_SITE");
    told(kind, sizeof kind, "TORTURE_KIND");
    const char *number = getenv("TORTURE_NTH"), *file = getenv("TORTURE_LOG");
    nth = number ? atol(number) : 1;
    seen = fired = 0;
    logfd = file ? open(file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666) : -1;
}

__attribute__((constructor)) static void begin(void) {
    real_write = dlsym(RTLD_NEXT, "write");
    real_writev = dlsym(RTLD_NEXT, "writev");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_rename = dlsym(RTLD_NEXT, "rename");
    torture_arm();
}

int torture_fired(void) { return fired; }

/* Is this call the chosen one? After a full disk every later one is. */
static int goes_wrong(const char *call, const char *path) {
    char here[4200];
    size_t at = 0, length = strlen(below);
    if (!length || strncmp(path, below, length)) return 0;
    if (fired && !strcmp(kind, "full") && !strcmp(call, "write")) return 1;
    at = (size_t)snprintf(here, sizeof here, "%s ", call);
    for (const char *c = path + length; *c && at < sizeof here - 1; c++)
        if (*c >= '0' && *c <= '9') {
            if (here[at - 1] != '#') here[at++] = '#';
        } else here[at++] = *c;
    here[at] = 0;
    if (logfd >= 0) {
        char line[4300];
        int size = snprintf(line, sizeof line, "%s\n", here);
        real_write(logfd, line, (size_t)size);
    }
    if (!*kind || strcmp(here, site) || ++seen != nth) return 0;
    fired = 1;
    if (logfd >= 0) real_write(logfd, "FIRED\n", 6);
    return 1;
}

static int of_open(const char *call, int fd) {
    char link[64], path[4096];
    int before = errno, found;
    if (fd <= 2 || fd == logfd || !*below) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    errno = before;
    if (size < 0) return 0;
    path[size] = 0;
    found = goes_wrong(call, path);
    errno = before;
    return found;
}

static ssize_t odd(int fd, const void *content, size_t size) {
    if (!strcmp(kind, "short") && size > 1) return real_write(fd, content, size / 2);
    if (!strcmp(kind, "short")) return real_write(fd, content, size);
    if (!strcmp(kind, "full") && seen == nth && size > 1) {
        seen++; /* what still fitted; the next one finds no room */
        return real_write(fd, content, size / 2);
    }
    errno = strcmp(kind, "full") ? EIO : ENOSPC;
    return -1;
}

ssize_t write(int fd, const void *content, size_t size) {
    return of_open("write", fd) ? odd(fd, content, size) : real_write(fd, content, size);
}

ssize_t pwrite64(int fd, const void *content, size_t size, off_t at) {
    if (!of_open("write", fd)) return real_pwrite(fd, content, size, at);
    if (!strcmp(kind, "short")) return real_pwrite(fd, content, size > 1 ? size / 2 : size, at);
    errno = strcmp(kind, "full") ? EIO : ENOSPC;
    return -1;
}

ssize_t pwrite(int fd, const void *content, size_t size, off_t at) { return pwrite64(fd, content, size, at); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    return count && of_open("write", fd) ? odd(fd, parts[0].iov_base, parts[0].iov_len) : real_writev(fd, parts, count);
}

static int failed(int wrong) {
    if (wrong) errno = EIO;
    return wrong;
}

int fsync(int fd) { return failed(of_open("fsync", fd)) ? -1 : real_fsync(fd); }

int fdatasync(int fd) { return failed(of_open("fsync", fd)) ? -1 : real_fdatasync(fd); }

int rename(const char *from, const char *to) { return failed(goes_wrong("rename", to)) ? -1 : real_rename(from, to); }
