/*
 * Preloaded into the suites by the script 'conformance', for what they cannot be told otherwise.
 *
 * SHIM_LINK_MAX: what pathconf answers for the largest link count. The C library has a list of filesystems for
 * this and answers 127, "unknown", for FUSE; pjdfstest leaves its case out then.
 *
 * SHIM_DIRECT: every second open for reading and writing gets O_DIRECT, which fsx has no option for. It opens its
 * file again and again, so direct I/O takes turns with the page cache, mappings and all else.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

long pathconf(const char *path, int name)
{
    static long (*next)(const char *, int);
    const char *links = getenv("SHIM_LINK_MAX");

    if (links && name == _PC_LINK_MAX)
        return atol(links);
    if (!next)
        next = (long (*)(const char *, int))dlsym(RTLD_NEXT, "pathconf");
    return next(path, name);
}

int open64(const char *path, int flags, ...)
{
    static int (*next)(const char *, int, ...);
    static unsigned opened;
    unsigned mode = 0;

    if (flags & (O_CREAT | __O_TMPFILE)) {
        va_list list;
        va_start(list, flags);
        mode = va_arg(list, unsigned);
        va_end(list);
    }
    if (!next)
        next = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
    if (getenv("SHIM_DIRECT") && (flags & O_ACCMODE) == O_RDWR && ++opened % 2 == 0)
        flags |= O_DIRECT;
    return next(path, flags, mode);
}
