"""Changes some objects of every kind below a folder, or removes all of them.

python3 every.py change|remove FOLDER
"""

import fcntl
import os
import random
import shutil
import stat
import struct
import sys

GET_FLAGS, SET_FLAGS = 0x80086601, 0x40086602
IMMUTABLE, APPEND_ONLY = 0x10, 0x20
FILES, FOLDERS, OTHERS = 60, 30, 40
"How many of each kind are changed."


def below(root):
    """Paths below a folder, what is in a folder before the folder; not what is mounted there."""
    device = os.lstat(root).st_dev
    for folder, folders, files in os.walk(root, topdown=False):
        if os.lstat(folder).st_dev == device:
            yield from (os.path.join(folder, name) for name in files + folders)


def allow_changes(path):
    """Take the flags away that forbid them."""
    if not stat.S_ISREG(os.lstat(path).st_mode) and not stat.S_ISDIR(os.lstat(path).st_mode):
        return
    fd = os.open(path, os.O_RDONLY)
    flags = struct.unpack("i", fcntl.ioctl(fd, GET_FLAGS, bytes(4)))[0]
    if flags & (IMMUTABLE | APPEND_ONLY):
        fcntl.ioctl(fd, SET_FLAGS, struct.pack("i", flags & ~(IMMUTABLE | APPEND_ONLY)))
    os.close(fd)


def change_file(path):
    with open(path, "r+b") as out:
        out.seek(0, os.SEEK_END)
        out.write(b"appended\n")
        out.truncate(out.tell() - 3)
        out.seek(2100)
        out.write(random.randbytes(700))
    os.link(path, path + ".l")
    os.rename(path + ".l", path + ".m")
    os.rename(path, path + ".m2")
    os.chmod(path + ".m2", stat.S_IMODE(os.stat(path + ".m2").st_mode) ^ 0o060)
    os.utime(path + ".m2")
    for name in os.listxattr(path + ".m2"):
        os.removexattr(path + ".m2", name)
    os.setxattr(path + ".m2", "user.new", b"v" * 500)


def change_folder(path):
    os.mkdir(path + "/sub")
    for number in range(3):
        os.symlink("target", f"{path}/sub/{number}")
    os.mkfifo(path + "/pipe")
    os.chmod(path, 0o750)


def change_other(path):
    os.chown(path, 12, 34, follow_symlinks=False)
    os.rename(path, path + ".moved")


def change(root):
    every = [path for path in below(root) if len(os.path.basename(path)) < 240]
    for path in every:
        allow_changes(path)
    kinds = {path: stat.S_IFMT(os.lstat(path).st_mode) for path in every}
    for path in [path for path in every if kinds[path] == stat.S_IFREG][:FILES]:
        change_file(path)
    for path in [path for path in every if kinds[path] not in (stat.S_IFREG, stat.S_IFDIR)][:OTHERS]:
        change_other(path)
    for path in [root, *(path for path in every if kinds[path] == stat.S_IFDIR)][:FOLDERS]:
        change_folder(path)


def remove(root):
    for path in below(root):
        allow_changes(path)
    for name in os.listdir(root):
        path = os.path.join(root, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.remove(path)
    assert not os.listdir(root)


if __name__ == "__main__":
    {"change": change, "remove": remove}[sys.argv[1]](sys.argv[2])
