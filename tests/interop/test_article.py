"""The story that zkeep exists for, with a real kernel as the source and zkeep as the backup server; three ends.

A pool of plain datasets with snapshots is encrypted under a raw key of 32 bytes, replicated raw, then only changes
travel; the server shows keystatus unavailable; in an emergency the key comes and the files are there.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab import RAW, Key, Lab
from machine import Guest

YEARS = ["2018", "2019", "2020", "migration"]
CHILDREN = ["blanc", "pays"]


class Story:
    """Told up to the day's increment; what follows is an end of its own."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.run = lab.guest.run
        self.key: Key = lab.key(RAW)
        self.production()
        self.migration()
        self.replication()
        self.day_of_work()

    def production(self) -> None:
        self.run("zfs create tank/jambon")
        for child in CHILDREN:
            self.run(f"zfs create -o compression=lz4 tank/jambon/{child}")
        for number, year in enumerate(YEARS[:-1]):
            self.lab.guest.work(number, 30, "/tank/jambon/blanc")
            self.run(f"zfs snapshot -r tank/jambon@{year}")

    def migration(self) -> None:
        """Plain to encrypted: a full stream, later an increment, both with the encryption of the new parent."""
        self.run(f"zfs create -o encryption=on {self.key.creating} tank/encrypted")
        self.run("zfs send -R tank/jambon@2020 | zfs receive -u -x encryption tank/encrypted/jambon")
        self.lab.guest.work(9, 10, "/tank/jambon/pays")
        self.run("zfs snapshot -r tank/jambon@migration")
        self.run("zfs send -R -I @2020 tank/jambon@migration | zfs receive -F -u tank/encrypted/jambon")
        self.run("for d in '' /blanc /pays; do zfs mount tank/encrypted/jambon$d || true; done")

    def replication(self) -> None:
        self.run("zfs snapshot -r tank/encrypted/jambon@to-remote-server")
        self.lab.kernel_sends("full.zfs", "-Rw tank/encrypted/jambon@to-remote-server")
        self.lab.receive("full.zfs", "v/jambon")

    def day_of_work(self) -> None:
        self.run("dd if=/dev/urandom of=/tank/encrypted/jambon/blanc/another-file bs=64k count=5 status=none")
        self.run("zfs snapshot tank/encrypted/jambon/blanc@work-of-the-day")
        self.lab.kernel_sends("day.zfs", "-w -i @to-remote-server tank/encrypted/jambon/blanc@work-of-the-day")
        self.lab.receive("day.zfs", "v/jambon/blanc")

    @property
    def snapshots(self) -> list[str]:
        """Below the top: dataset@snapshot, as the source has them."""
        names = self.run("zfs list -H -o name -t snapshot -r tank/encrypted/jambon").splitlines()
        return [name.removeprefix("tank/encrypted/jambon") for name in names]

    def equal(self, top: str) -> None:
        """Every snapshot below a dataset of the kernel is as at the source."""
        self.lab.same([top + name for name in self.snapshots], self.at_source)
        (newest,) = self.lab.seen([f"{top}/blanc@work-of-the-day"])
        assert "another-file" in newest

    @property
    def at_source(self) -> list[str]:
        return [f"tank/encrypted/jambon{name}" for name in self.snapshots]


@pytest.fixture(scope="module")
def story(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Told once; its ends do not disturb one another."""
    lab = Lab(guest, tmp_path_factory.mktemp("story"))
    yield Story(lab)
    lab.clean()


def test_the_server_cannot_read_it(story: Story) -> None:
    shown = story.lab.zkeep("get", "-r", "-t", "filesystem", "-H", "-o", "value", "keystatus", "v/jambon")
    assert set(shown.splitlines()) == {"unavailable"}


def test_a_fresh_pool_of_the_kernel_takes_it_back(story: Story, report: object) -> None:
    lab = story.lab
    lab.send("back.zfs", "-R", "-w", "v/jambon@to-remote-server")
    lab.send("back-day.zfs", "-w", "-i", "@to-remote-server", "v/jambon/blanc@work-of-the-day")
    lab.kernel_takes("back.zfs", "-u back/jambon")
    lab.kernel_takes("back-day.zfs", "-u back/jambon/blanc")
    assert story.run("zfs get -H -o value keystatus back/jambon") == "unavailable"
    story.run(f"zfs set keylocation={story.key.inside} back/jambon")
    story.run("zfs load-key back/jambon; for d in '' /blanc /pays; do zfs mount back/jambon$d || exit 1; done")
    story.equal("back/jambon")
    lab.kernel_finds_no_fault()
    options = "-H -o value compression,encryption,keyformat,recordsize,encryptionroot"
    for child in ("", "/blanc", "/pays"):
        here = story.run(f"zfs get {options} back/jambon{child}").replace("back/jambon", "TOP")
        there = story.run(f"zfs get {options} tank/encrypted/jambon{child}").replace("tank/encrypted", "TOP")
        assert here.splitlines()[:-1] == there.splitlines()[:-1]
        assert here.splitlines()[-1] == "TOP", "the tree has fallen into several encryption roots"
    report.add(f"the article: a fresh pool takes it back, {len(story.snapshots)} snapshots equal")  # type: ignore[attr-defined]


def test_zkeep_opens_it_without_zfs(story: Story, report: object) -> None:
    story.lab.opens([f"v/jambon{name}" for name in story.snapshots], story.at_source, story.key)
    report.add(f"the article: zkeep extract gives {len(story.snapshots)} snapshots as the kernel shows them")  # type: ignore[attr-defined]


def test_a_server_with_zfs_hands_its_copy_over(story: Story, report: object) -> None:
    lab = story.lab
    story.run("zfs receive -u back/server < /mnt/full.zfs && zfs receive -u back/server/blanc < /mnt/day.zfs")
    assert story.run("zfs get -H -o value keystatus back/server") == "unavailable"
    lab.kernel_sends("handed.zfs", "-Rw back/server@to-remote-server")
    lab.kernel_sends("handed-day.zfs", "-w -i @to-remote-server back/server/blanc@work-of-the-day")
    lab.receive("handed.zfs", "v/handed")
    lab.receive("handed-day.zfs", "v/handed/blanc")
    lab.opens([f"v/handed{name}" for name in story.snapshots], story.at_source, story.key)
    report.add("the article: what a server with ZFS handed over opens, too")  # type: ignore[attr-defined]
