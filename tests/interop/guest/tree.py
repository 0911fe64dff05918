"""What folders and disks hold, as JSON: run in the machine on the kernel's mounts, outside on what zkeep gave back.

python3 tree.py OUT DIGEST FOLDER|DEVICE...       DIGEST: of hashlib, or `data`
"""

import errno
import hashlib
import json
import os
import stat
import sys

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "chr",
    stat.S_IFBLK: "blk",
}


CHUNK = 64 << 10
LARGE = 64 << 20
"Bytes from which on a file gets the digest `data` in any case: sparse ones may have gigabytes of holes."
ZEROS = bytes(CHUNK)


def data_digest(path):
    """MD5 of all chunks that are not zeros, and where they lie: holes are not read, and count as zeros."""
    found = hashlib.md5()
    with open(path, "rb", buffering=0) as source:
        for start, end in data_ranges(source.fileno()):
            for at in range(start, end, CHUNK):
                piece = os.pread(source.fileno(), CHUNK, at)
                if piece != ZEROS[: len(piece)]:
                    found.update(b"%d " % at + piece)
    return found.hexdigest()


def data_ranges(file):
    """Yield (start, end) of what is no hole, rounded to whole chunks. A device is read whole: it tells of no holes."""
    if stat.S_ISBLK(os.fstat(file).st_mode):
        yield 0, os.lseek(file, 0, os.SEEK_END)
        return
    end = 0
    while True:
        try:
            data = os.lseek(file, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # ENXIO: nothing but a hole until the end
                raise
            return
        start = max(data // CHUNK * CHUNK, end)
        end = -(-max(os.lseek(file, data, os.SEEK_HOLE), start + 1) // CHUNK) * CHUNK
        yield start, end


def digest(path, name):
    if name == "data":
        return data_digest(path)
    with open(path, "rb") as source:
        return hashlib.file_digest(source, name).hexdigest()


def entry(path, digest_name):
    status = os.lstat(path)
    kind = KINDS[stat.S_IFMT(status.st_mode)]
    told = {
        "type": kind,
        "mode": f"{stat.S_IMODE(status.st_mode):o}",
        "uid": status.st_uid,
        "gid": status.st_gid,
        "nlink": status.st_nlink,
        "mtime_ns": status.st_mtime_ns,
    }
    if kind == "file":
        name = "data" if status.st_size >= LARGE else digest_name
        told |= {"size": status.st_size, name: digest(path, name)}
    if kind == "symlink":
        told["target"] = os.fsdecode(os.readlink(path))
    if kind in ("chr", "blk"):
        told["rdev"] = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    names = sorted(os.listxattr(path, follow_symlinks=False))
    told["xattrs"] = {name: os.getxattr(path, name, follow_symlinks=False).hex() for name in names}
    return told


def tree(top, digest_name):
    root = os.fsencode(top)
    paths = [root]
    for folder, folders, files in os.walk(root):
        paths += [os.path.join(folder, name) for name in [*folders, *files]]
    return {os.fsdecode(os.path.relpath(path, root)): entry(path, digest_name) for path in paths}


if __name__ == "__main__":
    out, name, *places = sys.argv[1:]
    found = [tree(place, name) if os.path.isdir(place) else {name: digest(place, name)} for place in places]
    with open(out, "w", encoding="ascii") as sink:
        json.dump(found, sink)
