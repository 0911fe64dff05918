"""What folders and disks hold, as JSON: run in the machine on the kernel's mounts, outside on what zkeep gave back.

python3 tree.py OUT DIGEST FOLDER|DEVICE...
"""

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


def digest(path, name):
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
        told |= {"size": status.st_size, digest_name: digest(path, digest_name)}
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
