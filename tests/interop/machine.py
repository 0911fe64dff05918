"""Runs the virtual machine that build.py made, and lets the host run commands in it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parent / "guest"
BOOT = 300
"Seconds that it may take to come up; it takes about 10 without KVM."
PATIENCE = 900
"Seconds for a command; the host may be busy with other things."
DISKS = 2


class GuestError(Exception):
    """A command in the machine failed; tells it, its status and what it said."""


@dataclass(frozen=True)
class Answer:
    status: int
    out: str
    err: str


class Guest:
    """A running machine. Use it as a context manager.

    `share` is a folder that is /mnt inside; disks are /dev/vda1 and /dev/vdb1, empty, and gone afterwards.
    """

    def __init__(self, machine: Path) -> None:
        self._machine = machine
        self._folder = Path(tempfile.mkdtemp(prefix="zkeep-vm-"))
        self.share = self._folder / "share"
        self.share.mkdir()
        for script in SCRIPTS.glob("*.py"):
            shutil.copy(script, self.share)

    def __enter__(self) -> Guest:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        door = str(self._folder / "serial")
        with (self._folder / "qemu.log").open("wb") as log:
            command = self._command(door)
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + BOOT
        self._serial = self._connect(door, end)
        self._waiting = b""
        if not self._answer(end).get("ready"):
            raise GuestError(f"the machine did not come up: {self._console()}")

    def _command(self, door: str) -> list[str]:
        accelerator = (self._machine / "accelerator").read_text().strip()
        cpu = ["-accel", "tcg,thread=multi", "-cpu", "max"]
        if accelerator == "kvm":
            cpu = ["-accel", "kvm", "-cpu", "host"]
        disks = []
        for number in range(DISKS):
            disk = self._folder / f"disk{number}"
            disk.touch()
            os.truncate(disk, 6 << 30)
            disks += ["-drive", f"file={disk},format=raw,if=virtio,cache=unsafe,discard=unmap"]
        return [
            "qemu-system-x86_64", *cpu, "-machine", "q35", "-m", "3072", "-smp", "2", "-display", "none",
            "-monitor", "none", "-nic", "none", "-no-reboot", "-device", "virtio-rng-pci",
            "-kernel", str(self._machine / "vmlinuz"), "-initrd", str(self._machine / "initrd.img"),
            "-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off",
            "-serial", f"file:{self._folder / 'console'}", "-serial", f"unix:{door},server=on,wait=off", *disks,
            "-virtfs", f"local,path={self.share},mount_tag=share,security_model=none,multidevs=remap",
        ]  # fmt: skip

    def _connect(self, door: str, end: float) -> socket.socket:
        while time.monotonic() < end and self._process.poll() is None:
            try:
                serial = socket.socket(socket.AF_UNIX)
                serial.connect(door)
                return serial
            except OSError:
                serial.close()
                time.sleep(0.1)
        raise GuestError(f"qemu did not start: {(self._folder / 'qemu.log').read_text()}")

    def _answer(self, end: float) -> dict[str, Any]:
        while b"\n" not in self._waiting:
            self._serial.settimeout(max(end - time.monotonic(), 0.1))
            try:
                piece = self._serial.recv(1 << 16)
            except TimeoutError:
                piece = b""
            if not piece:
                raise GuestError(f"the machine does not answer: {self._console()}")
            self._waiting += piece
        line, self._waiting = self._waiting.split(b"\n", 1)
        found: dict[str, Any] = json.loads(line)
        return found

    def _console(self) -> str:
        path = self._folder / "console"
        return "\n".join(path.read_text(errors="replace").splitlines()[-15:]) if path.exists() else "no console"

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_serial"):
            self._serial.close()
        if hasattr(self, "_process"):
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    # What tests use

    def call(self, command: str, *, given: str = "", timeout: float = PATIENCE) -> Answer:
        """Run a command of bash as root; it may fail."""
        request = {"command": command, "input": given, "timeout": timeout}
        self._serial.settimeout(None)
        self._serial.sendall(json.dumps(request).encode() + b"\n")
        return Answer(**self._answer(time.monotonic() + timeout + 30))

    def run(self, command: str, *, given: str = "", timeout: float = PATIENCE) -> str:
        """Run a command that must succeed; its output without the last end of line."""
        answer = self.call(command, given=given, timeout=timeout)
        if answer.status:
            raise GuestError(f"{command}: status {answer.status}: {answer.err.strip()} {answer.out.strip()[-500:]}")
        return answer.out.removesuffix("\n")

    def make_pools(self) -> None:
        """tank and back, of a disk each, and the folder for keys."""
        for pool, disk in (("tank", "vda1"), ("back", "vdb1")):
            self.run(f"zpool create -f -O acltype=posix -O xattr=sa -O atime=off {pool} /dev/{disk}")
        self.run("mkdir -p /root/keys")

    def trees(self, places: list[str], digest: str) -> list[dict[str, Any]]:
        """What folders and devices hold there; see guest/tree.py. `digest`: of contents, by its name in hashlib."""
        if not places:
            return []
        self.run(f"python3 /mnt/tree.py /mnt/tree.json {digest} {shlex.join(places)}")
        found: list[dict[str, Any]] = json.loads((self.share / "tree.json").read_text())
        return found

    def work(self, seed: int, count: int, path: str) -> Counter[str]:
        """Change a folder or a disk at random; what was done how often. See guest/work.py."""
        return Counter(json.loads(self.run(f"python3 /mnt/work.py {seed} {count} '{path}'")))

    def device(self, volume: str) -> str:
        return self.run(f"python3 /mnt/voldev.py '{volume}'")
