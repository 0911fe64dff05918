"""Looks for files by other names than those that they are stored by, and changes them by these.

python3 names.py PLAN.json

A plan is a list of folders: {"path": ..., "names": {stored: [typed, ...]}, "absent": [...], "work": count}. Each typed
name must lead to the stored one's file, and no absent one to any. The first `work` of the names are then created again
by a typed name, which must fail, removed by it, and made again. Prints what is wrong, as JSON.
"""

import errno
import json
import os
import sys


def check(folder):
    path, names = folder["path"], folder["names"]
    found = {entry.name: entry.inode() for entry in os.scandir(path)}
    if set(found) != set(names):
        yield f"{path}: {len(set(found) ^ set(names))} names differ: {sorted(set(found) ^ set(names))[:3]!a}"
        return
    for stored, typed in names.items():
        for name in [stored, *typed]:
            try:
                inode = os.lstat(os.path.join(path, name)).st_ino
            except OSError as error:
                yield f"{path}: {stored!a} by {name!a}: {error.strerror}"
                continue
            if inode != found[stored]:
                yield f"{path}: {stored!a} by {name!a}: another file"
    for name in folder["absent"]:
        if os.path.lexists(os.path.join(path, name)):
            yield f"{path}: there is {name!a}"


def change(folder):
    path = folder["path"]
    chosen = [(stored, typed[-1]) for stored, typed in folder["names"].items() if typed][: folder["work"]]
    for stored, typed in chosen:
        # Both are one file, and rename(2) of a file to itself does nothing.
        os.rename(os.path.join(path, stored), os.path.join(path, typed))
        place = os.path.join(path, typed)
        try:
            os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            yield f"{path}: {typed!a} was created beside {stored!a}"
        except FileExistsError:
            pass
    yield from check(folder)
    for _, typed in chosen:
        os.unlink(os.path.join(path, typed))
    forget()
    for stored, typed in chosen:
        if os.path.lexists(os.path.join(path, stored)):
            yield f"{path}: {stored!a} is there after {typed!a} was removed"
    for stored, typed in chosen:
        with open(os.path.join(path, stored), "w") as file:
            file.write(typed)
    forget()


def forget():
    """Let the kernel drop names that it keeps, there or not: with normalization alone it goes on to answer by these."""
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("2")


def main():
    with open(sys.argv[1]) as file:
        folders = json.load(file)
    faults = []
    for folder in folders:
        for step in (check, change, check):
            faults += step(folder)
    try:
        os.close(os.open(os.path.join(os.fsencode(folders[0]["path"]), b"\xff\xfe"), os.O_CREAT | os.O_WRONLY))
        faults.append("a name that is not UTF-8 was taken")
    except OSError as error:
        if error.errno != errno.EILSEQ:
            faults.append(f"a name that is not UTF-8: {error.strerror}")
    print(json.dumps(faults[:20]))


main()
