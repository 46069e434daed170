"""Prints one line for each name below a directory, with all that a faithful copy keeps: for diff."""

import hashlib
import os
import stat
import sys


def contents(path, info):
    if stat.S_ISLNK(info.st_mode):
        return os.readlink(path)
    if stat.S_ISREG(info.st_mode):
        with open(path, "rb") as file:
            return f"{info.st_size} {hashlib.file_digest(file, 'sha256').hexdigest()}"
    return f"{info.st_rdev:x}"


def main(top):
    os.chdir(top)
    first = {}
    for where, directories, files in os.walk(b"."):
        directories.sort()
        for name in sorted(directories + files):
            path = os.path.join(where, name)
            info = os.lstat(path)
            link = ""
            if not stat.S_ISDIR(info.st_mode):
                link = f"{info.st_nlink} {first.setdefault(info.st_ino, path)!r}"
            extra = {key: os.getxattr(path, key, follow_symlinks=False) for key in sorted(os.listxattr(path, follow_symlinks=False))}
            print(repr(path), f"{info.st_mode:o} {info.st_uid}:{info.st_gid} {info.st_mtime_ns}", link, contents(path, info), extra)


main(sys.argv[1])
