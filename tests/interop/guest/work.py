"""Changes a folder or a disk at random, the same for the same seed.

python3 work.py SEED COUNT FOLDER|DEVICE

Prints as JSON what was done how often.
"""

import json
import os
import random
import shutil
import stat
import sys

SIZES = [0, 1, 100, 511, 512, 513, 4096, 5000, 16384, 60000, 131072, 131073, 300000]


class Work:
    def __init__(self, seed, root):
        self.random = random.Random(seed)
        self.root = root

    def content(self):
        size = self.random.choice(SIZES)
        kind = self.random.randrange(3)
        if kind == 0:
            return (b"%08x some text that shrinks\n" % self.random.getrandbits(32)) * (size // 30 + 1)
        return self.random.randbytes(size) if kind == 1 else bytes(size)

    def walk(self):
        """os.walk() without what is mounted below."""
        device = os.lstat(self.root).st_dev
        for folder, folders, files in os.walk(self.root):
            folders[:] = [name for name in folders if os.lstat(os.path.join(folder, name)).st_dev == device]
            yield folder, files

    def files(self):
        found = [os.path.join(folder, name) for folder, names in self.walk() for name in names]
        return sorted(path for path in found if stat.S_ISREG(os.lstat(path).st_mode))

    def folder(self):
        return self.random.choice(sorted(folder for folder, _ in self.walk()))

    def name(self, kind):
        return os.path.join(self.folder(), f"{kind}{self.random.getrandbits(24):06x}")

    def some(self):
        files = self.files()
        if not files:
            self.create()
            files = self.files()
        return self.random.choice(files)

    def create(self):
        with open(self.name("file-"), "wb") as out:
            out.write(self.content())

    def many(self):
        folder = self.name("many-")
        os.mkdir(folder)
        for number in range(self.random.choice([5, 60, 300])):
            with open(f"{folder}/{number:04d}-{'x' * (number % 40)}", "wb") as out:
                out.write(b"%d" % number)

    def remove(self):
        os.remove(self.some())

    def overwrite(self):
        path = self.some()
        with open(path, "r+b") as out:
            out.seek(self.random.randrange(os.path.getsize(path) + 1))
            out.write(self.random.randbytes(self.random.randrange(1, 20000)))

    def append(self):
        with open(self.some(), "ab") as out:
            out.write(self.content())

    def truncate(self):
        path = self.some()
        os.truncate(path, self.random.randrange(os.path.getsize(path) * 2 + 10))

    def far(self):
        with open(self.some(), "r+b") as out:
            out.seek(self.random.choice([1 << 20, 1 << 22, 1 << 24]) + self.random.randrange(99999))
            out.write(b"far away")

    def punch(self):
        path = self.some()
        size = os.path.getsize(path)
        if size > 1:
            start = self.random.randrange(size)
            length = self.random.randrange(1, size - start + 1)
            os.system(f"fallocate -p -o {start} -l {length} '{path}'")

    def rename(self):
        os.rename(self.some(), self.name("moved-"))

    def link(self):
        os.link(self.some(), self.name("link-"))

    def symlink(self):
        os.symlink("t" * self.random.choice([3, 60, 200, 900]), self.name("symlink-"))

    def mkdir(self):
        os.mkdir(self.name("dir-"))

    def fifo(self):
        os.mkfifo(self.name("fifo-"))

    def rmdir(self):
        folder = self.folder()
        if folder != self.root and not any(os.path.ismount(d) for d, _, _ in os.walk(folder)):
            shutil.rmtree(folder)

    def chmod(self):
        path = self.some()
        os.chown(path, self.random.randrange(2000), self.random.randrange(2000))
        os.chmod(path, self.random.choice([0o600, 0o644, 0o755, 0o4711]))

    def xattr(self):
        """No more than ext4 can take, where it may be extracted: 4 KiB in all."""
        value = self.random.randbytes(self.random.choice([3, 40, 300, 1500]))
        os.setxattr(self.some(), f"user.n{self.random.randrange(2)}", value)

    def unxattr(self):
        path = self.some()
        for name in os.listxattr(path)[:1]:
            os.removexattr(path, name)

    OPS = ["create"] * 4 + ["overwrite"] * 2 + ["append", "truncate", "far", "punch", "remove", "rename", "link"]
    OPS += ["symlink", "mkdir", "fifo", "rmdir", "chmod", "xattr", "xattr", "unxattr", "many"]

    def run(self, count):
        done = {}
        for _ in range(count):
            name = self.random.choice(self.OPS)
            getattr(self, name)()
            done[name] = done.get(name, 0) + 1
        return done


def scribble(chance, count, device):
    """Writes blocks of a disk here and there, and trims some."""
    with open(device, "r+b", buffering=0) as out:
        size = out.seek(0, os.SEEK_END)
        for _ in range(count):
            at = chance.randrange(size // 4096) * 4096
            length = min(4096 * chance.choice([1, 1, 2, 5, 16, 64]), size - at)
            if chance.random() < 0.2:
                os.system(f"blkdiscard -o {at} -l {length} {device}")
                continue
            out.seek(at)
            out.write(chance.randbytes(length) if chance.random() < 0.5 else b"disk" * (length // 4))
        os.fsync(out.fileno())
    return {"write": count}


if __name__ == "__main__":
    seed, count, where = sys.argv[1:]
    if os.path.isdir(where):
        done = Work(int(seed), where).run(int(count))
    else:
        done = scribble(random.Random(int(seed)), int(count), where)
    print(json.dumps(done))
