"""What replication tools ask a target, through zkeep server: the answers are those of zfs by that name."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from zkeep.cli.main import run

CHAIN = Path(__file__).parents[2] / "data" / "opened" / "chains"
COMMANDS = """
zfs --version
zfs list -H -o name -t filesystem,volume v/alice/home
zfs list -H -o name -t filesystem,volume v/alice/none
zfs list v/alice/home@none
zfs list -t snapshot -d 1 -s createtxg -Hp -o guid,name v/alice/home
zfs list -t snapshot -d 1 -s createtxg -Hp -o guid,name v/alice/none
zfs list -t bookmark,snapshot -s createtxg -s type -d 1 -Hp -o guid,name v/alice/home
zfs list -t filesystem,volume -Hp -o inconsistent v/alice/home
zfs list -t filesystem,volume -s name -Hp -o volblocksize,recordsize,name -r v/alice
zfs list -t filesystem,volume -s name -Hp -o snapshots_changed,name v/alice
zfs list -H -p -o name,guid,createtxg,creation,userrefs -r -d 1 -t bookmark,snapshot -s createtxg v/alice/home
zfs list -H -p -o name,used,avail,refer,mountpoint v/alice/home
zfs get -H name v/alice/home
zfs get -H name v/alice/none
zfs get -H -p -d 0 type v/alice/home
zfs get -Hpd 1 -t snapshot guid,creation v/alice/home
zfs get -H syncoid:sync v/alice/home
zfs get -H -ovalue -p written@s0 v/alice/home
zfs get -Hp -o value -s none receive_resume_token v/alice/home
zfs get -Hp -o name,property,value,source zrepl:placeholder v/alice/home
zfs get -H -p -t filesystem,volume type,mounted,mountpoint,referenced,snapdir,used v/alice/home
zfs get nosuchprop v/alice/home
zpool get -o value -H feature@extensible_dataset v
zpool get -H -p -o value feature@nosuch v
zfs hold tag1 v/alice/home@s0
zfs hold tag1 v/alice/home@s0
zfs holds -H v/alice/home@s0
zfs destroy v/alice/home@s0
zfs release nosuchtag v/alice/home@s0
zfs release tag1 v/alice/home@s0
zfs destroy v/alice/home@none,none2
zfs destroy v/alice/home#none
zfs destroy -nvp v/alice/home@%
zfs bookmark v/alice/home@s1 v/alice/home#b1
zfs bookmark v/alice/home@s1 v/alice/home#b1
zfs set zrepl:placeholder=off foo:bar=1 v/alice/home
zfs inherit zrepl:placeholder v/alice/home
zfs create -p v/alice/a/b/c
zfs create -p v/alice/a/b/c
zfs create v/alice/a
zfs create -o zrepl:placeholder=on -o mountpoint=none -o encryption=off v/alice/a/i
zfs rollback v/alice/home@s0
zfs rollback -r v/alice/home@s0
zfs umount v/alice/home
zfs receive -A v/alice/home
zfs send -nvt 1-deadbeef-0-00
zfs rename v/alice/home@s0 v/alice/home@s00
zfs promote v/alice/home
zfs destroy -r v/alice/a
""".strip().splitlines()


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Path:
    """A pool, of which a copy is made for the other side."""
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert run(["pool", "create", "v", str(tmp_path / "pool")]) == 0
    assert run(["create", "v/alice"]) == 0
    for name in ("full-s0", "inc-s0-s1"):
        with (CHAIN / f"ccm192-lzjb-8k.{name}.zfs").open("rb") as stream:
            saved = os.dup(0)
            os.dup2(stream.fileno(), 0)
            try:
                assert run(["receive", "v/alice/home"]) == 0
            finally:
                os.dup2(saved, 0)
                os.close(saved)
    return tmp_path


def test_the_answers_are_those_of_zfs(
    answers: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from shutil import copytree

    copytree(answers / "pool", answers / "copy")
    words = ["server", "--root", "v/alice", "--allow", "admin"]
    homes = {"zfs": answers / "home", "zkeep": answers / "other"}
    monkeypatch.setenv("ZKEEP_HOME", str(homes["zkeep"]))
    assert run(["pool", "import", str(answers / "copy"), "v"]) == 0

    def said(program: str, arguments: list[str]) -> tuple[int, str, str]:
        capfd.readouterr()
        monkeypatch.setenv("ZKEEP_HOME", str(homes["zkeep" if program == "zkeep" else "zfs"]))
        monkeypatch.setattr(sys, "argv", [program])
        status = run(arguments)
        return status, *capfd.readouterr()

    for line in COMMANDS:
        program, *arguments = line.split()
        monkeypatch.setenv("SSH_ORIGINAL_COMMAND", line)
        there, here = said("zkeep", words), said(program, arguments)
        clock = "used,avail" in line  # what the disk has left changes meanwhile
        assert there[0] == here[0], line
        assert there[1:] == here[1:] or clock, line
