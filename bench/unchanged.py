"""A backup over ssh of a folder in which nothing changed, beside restic over sftp, in turns.

    python bench/unchanged.py --folder FOLDER --files 66000 --restic PATH

Both go to an sshd on loopback that this starts, with a key of its own: zkeep to `zkeep server` as its forced command,
restic to sftp. Files have 100 to 30,000 bytes of noise, 50 in a folder.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

CONFIG = """Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/keys
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
Subsystem sftp internal-sftp
"""
ZKEEP = (sys.executable, "-P", "-m", "zkeep")


def make_tree(folder: Path, files: int) -> int:
    """Returns the bytes of all files."""
    chance, total = random.Random(1), 0
    noise = chance.randbytes(1 << 20)
    for number in range(files):
        path = folder / f"{number // 2500}" / f"{number // 50}" / f"{number}"
        if number % 50 == 0:
            path.parent.mkdir(parents=True)
        size, start = chance.randrange(100, 30_000), chance.randrange(1 << 19)
        path.write_bytes(noise[start : start + size])
        total += size
    return total


class Bench:
    """An sshd with a pool, and a client with a home of its own."""

    def __init__(self, folder: Path, restic: str) -> None:
        self.folder, self.tree = folder, folder / "tree"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._env = {**os.environ, "ZKEEP_HOME": str(folder / "client"), "XDG_RUNTIME_DIR": str(folder)}
        self._env |= {"RESTIC_PASSWORD": "x", "RESTIC_CACHE_DIR": str(folder / "cache")}
        for name in ("host", "zkeep", "restic"):
            self.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
        server = {**self._env, "ZKEEP_HOME": str(folder / "server")}
        for words in (("pool", "create", "vault", str(folder / "pool")), ("create", "vault/me")):
            subprocess.run([*ZKEEP, *words], env=server, check=True)
        command = f"env ZKEEP_HOME={folder / 'server'} {' '.join(ZKEEP)} server --root vault/me"
        own, other = ((folder / f"{name}.pub").read_text() for name in ("zkeep", "restic"))
        (folder / "keys").write_text(f'command="{command}",restrict {own}{other}')
        (folder / "config").write_text(CONFIG.format(port=self.port, folder=folder))
        os.makedirs("/run/sshd", exist_ok=True)
        sshd = shutil.which("sshd", path="/usr/sbin:/usr/bin") or "sshd"
        self.sshd = subprocess.Popen([sshd, "-D", "-f", str(folder / "config"), "-E", str(folder / "log")])
        ssh = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "IdentitiesOnly=yes"]
        self._ssh = [word for option in ssh for word in ("-o", option)]
        sftp = ["ssh", *self._ssh, "-i", str(folder / "restic"), "-p", str(self.port), "127.0.0.1", "-s", "sftp"]
        repository = f"sftp:127.0.0.1:{folder / 'repo'}"
        self._restic = [restic, "-q", "-r", repository, "-o", f"sftp.command={' '.join(sftp)}"]
        time.sleep(1)
        self.run(*self._restic, "init")

    def run(self, *words: str) -> tuple[float, float, int]:
        """Wall seconds, CPU seconds here, and the peak of memory in MB; what runs behind sshd is not counted."""
        began = time.monotonic()
        process = subprocess.Popen(words, env=self._env)
        _, status, usage = os.wait4(process.pid, 0)
        assert not status, words
        return time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss // 1024

    def zkeep(self) -> tuple[float, float, int]:
        options = [word.replace("-o", "--ssh-option") for word in self._ssh]
        key = ["--sshkey", str(self.folder / "zkeep"), "--yes", "--key-file", str(self.folder / "secret")]
        return self.run(*ZKEEP, "backup", *options, *key, str(self.tree), f"ssh://127.0.0.1:{self.port}/vault/me/tree")

    def restic(self) -> tuple[float, float, int]:
        return self.run(*self._restic, "backup", str(self.tree))


def line(name: str, of_zkeep: Sequence[tuple[float, float, int]], of_restic: Sequence[tuple[float, float, int]]) -> str:
    (wall, cpu, peak), (other, other_cpu, other_peak) = (
        [statistics.median(run[at] for run in runs) for at in range(3)] for runs in (of_zkeep, of_restic)
    )
    load = os.getloadavg()[0]
    ours, theirs = f"{wall:.1f} s ({cpu:.1f}), {peak:.0f}", f"{other:.1f} s ({other_cpu:.1f}), {other_peak:.0f}"
    return f"| {name} | {load:.0f} | {ours} | {theirs} | {other / wall:.2f} (CPU {other_cpu / cpu:.2f}) |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--files", type=int, default=66_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--restic", default="restic")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        bench = Bench(folder, options.restic)
        try:
            print(f"{options.files} files, {make_tree(bench.tree, options.files) / 1e6:.0f} MB")
            print("| | load | zkeep | restic | restic / zkeep |\n| --- | --- | --- | --- | --- |")
            print(line("first", [bench.zkeep()], [bench.restic()]), flush=True)
            turns = [(bench.zkeep(), bench.restic()) for _ in range(options.turns)]
            print(line("unchanged", [ours for ours, _ in turns], [theirs for _, theirs in turns]), flush=True)
        finally:
            bench.sshd.terminate()
            bench.sshd.wait()


if __name__ == "__main__":
    main()
