"""Builds a virtual machine with the real OpenZFS kernel module, from Debian packages alone.

    python tests/interop/build.py            OpenZFS 2.3 (bookworm-backports)
    python tests/interop/build.py --zfs 2.1  OpenZFS 2.1 (bookworm)
    python tests/interop/build.py --zfs 2.4  OpenZFS 2.4 (trixie-backports; needs root and debootstrap)

Nothing of the host's apt is changed: package lists of our own lie in the cache. What is built lies in
`$ZKEEP_VM` or ~/.cache/zkeep-openzfs, by version; each finished step leaves a stamp, so that a second call does only
what is missing. Needs apt, and on the host: qemu, cpio, gcc-12, make, bc, gawk, kmod (installed if we are root).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

GUEST = Path(__file__).parent / "guest"
OURS = ("init", "agent.py")
FLAVOUR = "amd64"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
HOST = {
    "qemu-system-x86_64": "qemu-system-x86",
    "cpio": "cpio",
    "gcc-12": "gcc-12",
    "make": "make",
    "bc": "bc",
    "gawk": "gawk",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "apt-get": "apt",
}
"""Programs that the host needs, and the Debian packages that have them."""
LIBRARIES = {"/usr/lib/x86_64-linux-gnu/libelf.so.1": "libelf1", str(KEYRING): "debian-archive-keyring"}
USERLAND = [
    *(
        "acl",
        "attr",
        "base-files",
        "bash",
        "busybox-static",
        "coreutils",
        "diffutils",
        "e2fsprogs",
        "fdisk",
        "findutils",
    ),
    *("gawk", "grep", "gzip", "kmod", "libc-bin", "mount", "procps", "python3", "sed", "tar", "util-linux"),
    "zfsutils-linux",
]
UNNEEDED = re.compile(
    r"(perl|perl-modules-.*|libperl.*|lib.*-perl|usrmerge|dpkg|debconf|libdb5.*|libgdbm.*|readline-common)$"
)
DOCS = ["doc", "man", "locale", "info", "i18n", "bash-completion"]
MODULES = [
    *(
        "drivers/virtio",
        "drivers/block/virtio_blk.ko",
        "drivers/block/virtio_blk.ko.xz",
        "net/9p",
        "fs/9p",
        "fs/netfs",
        "fs/fscache",
        "lib",
        "crypto",
    ),
    *("arch/x86/crypto", "drivers/char/hw_random", "fs/nls"),
]
PASSWD = "root:x:0:0:root:/root:/bin/bash\nalice:x:1000:1000::/:/bin/false\nbob:x:1001:1001::/:/bin/false\n"
GROUP = "root:x:0:\ndisk:x:6:\nalice:x:1000:\nbob:x:1001:\n"


class CannotBuild(Exception):
    """Says in one line what is missing."""


@dataclass(frozen=True)
class Release:
    """The Debian suites that a machine is made of."""

    debian: str
    """The suite of kernel and userland."""
    zfs: str
    """The suite that has this series of OpenZFS: `debian` itself, or its backports."""
    chroot: bool = False
    """Whether the module is compiled in a chroot: where the suite's kbuild tools need a newer libc than the host's."""


RELEASES = {
    "2.1": Release("bookworm", "bookworm"),
    "2.3": Release("bookworm", "bookworm-backports"),
    "2.4": Release("trixie", "trixie-backports", chroot=True),
}
CHROOT_TOOLS = "gcc,gcc-14,libc6-dev,make,bc,gawk,kmod,perl-base,libelf1t64,pahole"


def cache() -> Path:
    """Where machines lie."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ZKEEP_VM") or Path(base) / "zkeep-openzfs")


def run(command: Sequence[str | Path], log: Path, cwd: Path | None = None) -> str:
    """Run a command; its standard output. Raises CannotBuild with its last line."""
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, check=False, stdin=subprocess.DEVNULL, capture_output=True,
        env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
    )  # fmt: skip
    with log.open("ab") as out:
        out.write(f"\n$ {' '.join(map(str, command))}\n".encode() + done.stdout + done.stderr)
    if done.returncode:
        last = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()[-1:] or ["it failed"]
        raise CannotBuild(f"{command[0]}: {last[0]} (see {log})")
    return done.stdout.decode(errors="surrogateescape")


def missing(release: Release) -> list[str]:
    """Return the packages that the host lacks."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    wanted = HOST | {"debootstrap": "debootstrap"} if release.chroot else HOST
    programs = [package for name, package in wanted.items() if not shutil.which(name, path=path)]
    return programs + [package for file, package in LIBRARIES.items() if not Path(file).exists()]


@dataclass
class Builder:
    """One machine in the making, in its folder `at`."""

    series: str
    at: Path

    @property
    def release(self) -> Release:
        return RELEASES[self.series]

    @property
    def log(self) -> Path:
        return self.at / "build.log"

    def build(self) -> None:
        """Do what is not done yet. Raises CannotBuild."""
        (self.at / "stamps").mkdir(parents=True, exist_ok=True)
        steps = [self.host, self.lists, self.download, self.unpack, self.module, self.rootfs, self.initrd, self.probe]
        for step in steps:
            self._once(step)
        (self.at / "ready").touch()

    def _once(self, step: Callable[[], None]) -> None:
        stamp = self.at / "stamps" / step.__name__
        made_from = _digest_of_ours() if step.__name__ == "initrd" else ""
        if stamp.exists() and made_from in stamp.read_text():
            return
        began = time.monotonic()
        print(f"{step.__name__} ...", end=" ", flush=True)
        step()
        took = f"{time.monotonic() - began:.0f} s"
        stamp.write_text(f"{took}\n{made_from}\n")
        print(took, flush=True)

    def host(self) -> None:
        """What the host needs."""
        packages = missing(self.release)
        if packages and os.geteuid() == 0 and shutil.which("apt-get"):
            run(["apt-get", "-qq", "update"], self.log)
            run(["apt-get", "-qq", "install", "-y", "--no-install-recommends", *packages], self.log)
            packages = missing(self.release)
        if packages:
            raise CannotBuild(f"these packages are not installed: {' '.join(sorted(packages))}")
        if self.release.chroot and os.geteuid() != 0:
            raise CannotBuild(f"OpenZFS {self.series} is compiled in a chroot, which needs root")

    # Packages

    def apt(self, tool: str, *words: str, cwd: Path | None = None) -> str:
        """apt on lists of our own, as on a machine with nothing installed."""
        own = self.at / "apt"
        options = {
            "Dir::Etc::sourcelist": own / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State": own / "state",
            "Dir::State::status": own / "status",
            "Dir::Cache": own / "cache",
            "APT::Architecture": FLAVOUR,
            "APT::Default-Release": "",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",
            "Debug::NoLocking": "true",
        }
        flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return run([tool, "-q", *flags, *words], self.log, cwd)

    def lists(self) -> None:
        own = self.at / "apt"
        for name in ("state/lists/partial", "cache/archives/partial"):
            (own / name).mkdir(parents=True, exist_ok=True)
        (own / "status").write_text("")
        debian, security = mirrors()
        trusted = f"[signed-by={KEYRING}]"
        suite = self.release.debian
        lines = [
            f"deb {trusted} {debian} {name} main contrib" for name in (suite, f"{suite}-updates", f"{suite}-backports")
        ]
        lines.append(f"deb {trusted} {security} {suite}-security main")
        (own / "sources.list").write_text("\n".join(lines) + "\n")
        self.apt("apt-get", "update")

    def download(self) -> None:
        kernel = self._kernel()
        abi = kernel.removesuffix(f"-{FLAVOUR}")
        kbuild = f"linux-kbuild-{abi.split('.0-')[0]}"
        zfs = self._zfs()
        module = [f"linux-image-{kernel}", f"linux-headers-{kernel}", f"linux-headers-{abi}-common", kbuild]
        self._fetch("module", [*module, f"zfs-dkms={zfs}"])
        self._fetch("userland", self._closure(zfs))
        (self.at / "kernel").write_text(kernel)
        (self.at / "openzfs").write_text(zfs)

    def _kernel(self) -> str:
        depends = self.apt("apt-cache", "depends", f"linux-image-{FLAVOUR}")
        found = re.search(r"Depends: linux-image-(\S+)", depends)
        if not found:
            raise CannotBuild("the package lists have no kernel")
        return found[1]

    def _zfs(self) -> str:
        for line in self.apt("apt-cache", "madison", "zfs-dkms").splitlines():
            _, version, source = (part.strip() for part in line.split("|"))
            if f" {self.release.zfs}/" in source:
                return version
        raise CannotBuild(f"the package lists have no OpenZFS {self.series}")

    def _closure(self, zfs: str) -> list[str]:
        """The userland and all that it depends on."""
        pinned = [f"{name}={zfs}" if name.startswith("zfs") else name for name in USERLAND]
        libraries = [f"{name}={zfs}" for name in self._libraries(zfs)]
        planned = self.apt("apt-get", "install", "-s", *pinned, *libraries)
        every = re.findall(r"^Inst (\S+) \((\S+)", planned, re.MULTILINE)
        return [f"{name}={version}" for name, version in every if not UNNEEDED.match(name)]

    def _libraries(self, zfs: str) -> list[str]:
        """Return the libraries that the userland depends on: apt takes those of backports only where they are named."""
        shown = self.apt("apt-cache", "show", f"zfsutils-linux={zfs}")
        depends = re.search(r"^Depends: (.*)$", shown, re.MULTILINE)
        return re.findall(r"\blib(?:nvpair|uutil|zfs|zpool)[\w.-]*", depends[1]) if depends else []

    def _fetch(self, room: str, packages: list[str]) -> None:
        folder = self.at / "packages" / room
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.apt("apt-get", "download", *packages, cwd=folder)

    # The kernel module

    @property
    def tree(self) -> Path:
        return self.at / "kernel-tree"

    def unpack(self) -> None:
        """Unpack kernel, headers and the module's source."""
        shutil.rmtree(self.tree, ignore_errors=True)
        if self.release.chroot:
            base = ["--variant=minbase", f"--include={CHROOT_TOOLS}", f"--keyring={KEYRING}"]
            run(["debootstrap", *base, self.release.debian, self.tree, mirrors()[0]], self.log)
        for package in (self.at / "packages" / "module").glob("*.deb"):
            run(["dpkg-deb", "-x", package, self.tree], self.log)
        kernel = (self.at / "kernel").read_text()
        if not self.release.chroot:
            self._relocate(kernel)
        shutil.copy(self.tree / f"boot/vmlinuz-{kernel}", self.at / "vmlinuz")

    def _relocate(self, kernel: str) -> None:
        """Turn the headers' absolute paths to where they lie now."""
        sources = self.tree / "usr/src"
        makefile = sources / f"linux-headers-{kernel}/Makefile"
        makefile.write_text(makefile.read_text().replace("/usr/src/", f"{sources}/"))
        modules = self.tree / "lib/modules" / kernel
        for link, target in (("build", f"linux-headers-{kernel}"), ("source", _common(kernel))):
            (modules / link).unlink(missing_ok=True)
            (modules / link).symlink_to(sources / target)

    def module(self) -> None:
        """Compile the module: on the host, or in the chroot, whose paths are then the packages' own."""
        kernel = (self.at / "kernel").read_text()
        (source,) = (self.tree / "usr/src").glob("zfs-*")
        headers = Path("/usr/src") if self.release.chroot else self.tree / "usr/src"
        where = [f"--with-linux={headers / _common(kernel)}", f"--with-linux-obj={headers}/linux-headers-{kernel}"]
        configure = ["./configure", "--disable-dependency-tracking", "--with-config=kernel", *where]
        make = ["make", f"-j{os.cpu_count() or 1}", "-s"]
        if self.release.chroot:
            script = f"cd /usr/src/{source.name} && {shlex.join(configure)} && {shlex.join(make)}"
            run(["chroot", self.tree, "sh", "-c", script], self.log)
        else:
            run(configure, self.log, source)
            run(make, self.log, source)

    # What the machine boots

    @property
    def root(self) -> Path:
        return self.at / "root"

    def rootfs(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            (self.root / "usr" / name).mkdir(parents=True)
            (self.root / name).symlink_to(f"usr/{name}")
        how = ["--keep-directory-symlink", "--no-same-owner"]
        unwanted = [f"--exclude=./usr/share/{name}/*" for name in DOCS]
        for package in sorted((self.at / "packages" / "userland").glob("*.deb")):
            files = self.at / "package.tar"
            with files.open("wb") as out:
                subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, stdout=out)
            run(["tar", *how, "-xf", files, "-C", self.root, *unwanted], self.log)
            files.unlink()
        for name in ("proc", "sys", "dev", "run", "tmp", "mnt", "root", "var/tmp", "etc/zfs"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self._etc()
        self._modules()

    def _etc(self) -> None:
        etc = self.root / "etc"
        for name, text in (("passwd", PASSWD), ("group", GROUP), ("fstab", ""), ("hostname", "openzfs\n")):
            (etc / name).write_text(text)
        (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
        (etc / "mtab").unlink(missing_ok=True)
        (etc / "mtab").symlink_to("/proc/self/mounts")
        awk = self.root / "usr/bin/awk"
        if not awk.is_symlink():
            awk.symlink_to("gawk")

    def _modules(self) -> None:
        kernel = (self.at / "kernel").read_text()
        source, target = self.tree / "lib/modules" / kernel, self.root / "usr/lib/modules" / kernel
        for name in MODULES:
            if (source / "kernel" / name).exists():
                (target / "kernel" / name).parent.mkdir(parents=True, exist_ok=True)
                run(["cp", "-a", source / "kernel" / name, (target / "kernel" / name).parent], self.log)
        for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
            shutil.copy(source / name, target / name)
        (zfs,) = (self.tree / "usr/src").glob("zfs-*")
        (target / "extra").mkdir(parents=True, exist_ok=True)
        for built in (*zfs.glob("module/*.ko"), *zfs.glob("module/*/*.ko")):
            run(["strip", "--strip-debug", "-o", target / "extra" / built.name, built], self.log)
        depmod = shutil.which("depmod", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        run([depmod or "depmod", "-b", self.root / "usr", kernel], self.log)

    def initrd(self) -> None:
        for name in OURS:
            shutil.copy(GUEST / name, self.root / name)
            (self.root / name).chmod(0o755)
        names = subprocess.run(["find", ".", "-print0"], cwd=self.root, check=True, capture_output=True).stdout
        with (self.at / "initrd.img").open("wb") as out:
            command = ["cpio", "-0", "--quiet", "--owner=0:0", "-o", "-H", "newc"]
            subprocess.run(command, cwd=self.root, check=True, input=names, stdout=out)

    def probe(self) -> None:
        """Whether KVM runs a guest here: the bare kernel must get as far as the panic for want of a root."""
        found = "tcg"
        if os.access("/dev/kvm", os.W_OK):
            machine = ["-accel", "kvm", "-machine", "q35", "-cpu", "host", "-m", "512", "-nographic", "-no-reboot"]
            boot = ["-kernel", str(self.at / "vmlinuz"), "-append", "console=ttyS0 panic=-1"]
            try:
                command = ["timeout", "20", "qemu-system-x86_64", *machine, *boot]
                done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True)
                found = "kvm" if b"Kernel panic" in done.stdout else "tcg"
            except OSError:
                pass
        (self.at / "accelerator").write_text(found)


def _common(kernel: str) -> str:
    """Return the package of headers that all flavours of this kernel share."""
    return f"linux-headers-{kernel.removesuffix(f'-{FLAVOUR}')}-common"


def _digest_of_ours() -> str:
    """Return the digest of our files that the guest boots: where they changed, the machine is packed again."""
    return hashlib.sha256(b"\0".join((GUEST / name).read_bytes() for name in OURS)).hexdigest()


def mirrors() -> tuple[str, str]:
    """The host's own Debian mirror and that of security, where it has one."""
    text = ""
    for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        text += path.read_text(errors="replace") if path.is_file() else ""
    found = re.findall(r"https?://\S+/debian/?(?=\s)", text) or ["http://deb.debian.org/debian"]
    security = re.findall(r"https?://\S+/debian-security/?(?=\s)", text) or ["http://deb.debian.org/debian-security"]
    return found[0], security[0]


def machine(series: str) -> Path:
    """The folder of a machine, whether or not it was built."""
    return cache() / series


def main() -> int:
    parser = argparse.ArgumentParser(description="Build a virtual machine with the real OpenZFS module.")
    parser.add_argument("--zfs", choices=sorted(RELEASES), default="2.3", help="the series of OpenZFS (default 2.3)")
    parser.add_argument("--clean", action="store_true", help="build it from the start")
    given = parser.parse_args()
    at = machine(given.zfs)
    if given.clean:
        shutil.rmtree(at, ignore_errors=True)
    try:
        Builder(given.zfs, at).build()
    except CannotBuild as error:
        print(f"\ncannot build the machine: {error}", file=sys.stderr)
        return 1
    versions = [(at / name).read_text().strip() for name in ("openzfs", "kernel", "accelerator")]
    print("OpenZFS {}, Linux {}, {}: {}".format(*versions, at))
    return 0


if __name__ == "__main__":
    sys.exit(main())
