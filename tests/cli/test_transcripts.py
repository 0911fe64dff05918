"""What a person types and what zkeep answers, as transcripts: `$ command`, its output, `[status]` if not 0."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from zkeep.cli.main import run
from zkeep.names import DatasetName, SnapshotName
from zkeep.pool.datasets.model import Pool, txg_key
from zkeep.pool.datasets.registry import Registry

Shell = Callable[[str], str]


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    """Runs `zkeep ARGUMENTS`; what it printed, standard error last, then the status if it is not 0."""
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZKEEP_WAIT", "0.05")
    monkeypatch.chdir(tmp_path)

    def call(line: str) -> str:
        status = run([word.replace("~", " ") for word in line.split()])
        out, err = capfd.readouterr()
        return out + err + (f"[{status}]\n" if status else "")

    return call


def play(shell: Shell, transcript: str) -> None:
    """Figures of the disk below are not ours to foretell: written as `?` in the transcript."""
    for part in re.split(r"^\$ zkeep ", transcript, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        pattern = re.escape(expected).replace(r"\?", r"\S+")
        answer = shell(command)
        assert re.fullmatch(pattern, answer), f"$ zkeep {command}\n{answer}"


def add(name: str, created: int = 1_700_000_000, **run_fields: object) -> None:
    """A snapshot as a receive would leave it."""
    wanted = SnapshotName.parse(name)
    with Registry(Path(os.environ["ZKEEP_HOME"])).open(wanted.dataset.pool) as pool, pool.transaction() as t:
        dataset = pool.find(wanted.dataset) or pool.create_dataset(t, wanted.dataset)
        txg = t.next_txg()
        content = {"txg": txg, "segments": [], "bytes": 1 << 20, "logical": 3 << 19, "dead": {}, **run_fields}
        content |= {"file_bytes": 1 << 20, "records": 0, "features": 0, "fromguid": 0, "from_txg": 0}
        content |= {"whole": True, "maxblkid": 0}
        t.put("run", txg_key(dataset.id, txg), content)
        pool.add_snapshot(t, dataset, wanted.name, txg, txg * 1000, creation=created)


def test_the_first_minutes(shell: Shell) -> None:
    play(
        shell,
        """
$ zkeep list
no datasets available
$ zkeep pool list
no pools available
$ zkeep pool create vault srv/vault
$ zkeep pool list -o name,health
NAME   HEALTH
vault  ONLINE
$ zkeep list
NAME    USED  AVAIL  REFER  MOUNTPOINT
vault     0B  ?     0B  /vault
$ zkeep create vault/a/b
zkeep: cannot create vault/a/b: parent does not exist; -p makes it, too
[1]
$ zkeep create -p -o quota=1G -o org.x:owner=ann vault/a/b
$ zkeep list -r vault/a
NAME        USED  AVAIL  REFER  MOUNTPOINT
vault/a       0B  ?     0B  /vault/a
vault/a/b     0B  1024M     0B  /vault/a/b
$ zkeep get quota,org.x:owner,blind vault/a/b
NAME       PROPERTY     VALUE        SOURCE
vault/a/b  quota        1G           local
vault/a/b  org.x:owner  ann          local
vault/a/b  blind        on           default
$ zkeep get -Hp -o value quota vault/a/b
1073741824
$ zkeep set org.x:owner=bob vault/a
$ zkeep inherit org.x:owner vault/a/b
$ zkeep get -s inherited -o name,value,source org.x:owner vault/a/b
NAME       VALUE        SOURCE
vault/a/b  bob          inherited from vault/a
$ zkeep rename vault/a vault/c
$ zkeep list -H -o name
vault
vault/c
vault/c/b
$ zkeep destroy vault/c
zkeep: cannot destroy vault/c: filesystem has children; use -r to destroy also vault/c/b
[1]
$ zkeep destroy -rnv vault/c
would destroy vault/c/b
would destroy vault/c
$ zkeep destroy -r vault/c
$ zkeep list -H -o name
vault
$ zkeep pool export vault
$ zkeep list vault
zkeep: cannot open vault: no such pool; 'zkeep pool list' shows those known
[1]
$ zkeep pool import srv/vault
$ zkeep list -H -o name
vault
$ zkeep pool export vault
""",
    )


def test_snapshots(shell: Shell) -> None:
    shell("pool create vault vault")
    add("vault/a@mon")
    add("vault/a@tue", 1_700_100_000, dead={"3": [1 << 19, 1 << 19]})
    add("vault/a/b@mon")
    play(
        shell,
        """
$ zkeep list -t snapshot -r -o name,used,refer,written,creation vault/a
NAME            USED  REFER  WRITTEN  CREATION
vault/a@mon     512K     1M       1M  Tue Nov 14 22:13 2023
vault/a@tue       0B  1.50M       1M  Thu Nov 16  2:00 2023
vault/a/b@mon     0B     1M       1M  Tue Nov 14 22:13 2023
$ zkeep list -t snapshot vault/a
NAME          USED  AVAIL  REFER  MOUNTPOINT
vault/a@mon   512K      -     1M  -
vault/a@tue     0B      -  1.50M  -
$ zkeep list vault/a@tue
NAME          USED  AVAIL  REFER  MOUNTPOINT
vault/a@tue     0B      -  1.50M  -
$ zkeep list -d 1 -t all -H -o name,type vault
vault	filesystem
vault/a	filesystem
$ zkeep list -H -o name -t snapshot -S refer -s name vault/a
vault/a@tue
vault/a@mon
$ zkeep list -Hp -o name,guid,createtxg,used -t snap vault/a
vault/a@mon	3000	3	524288
vault/a@tue	4000	4	0
$ zkeep get -Hp -o value used,usedbysnapshots,usedbydataset,usedbychildren,compressratio vault/a
3145728
524288
1572864
1048576
1.50
$ zkeep get -H -o value written@mon vault/a
1M
$ zkeep destroy -nv vault/a@mon
would destroy vault/a@mon
would reclaim 512K
$ zkeep destroy -np vault/a@%
destroy	vault/a@mon
destroy	vault/a@tue
reclaim	2097152
$ zkeep hold -r keep vault/a@mon
""",
    )
    assert re.fullmatch(
        r"NAME +TAG +TIMESTAMP\nvault/a@mon +keep +\S.*\nvault/a/b@mon +keep +\S.*\n", shell("holds -r vault/a@mon")
    )
    play(
        shell,
        """
$ zkeep destroy vault/a@mon,tue
zkeep: cannot destroy vault/a@mon: it is held (keep); release it or use -d
[1]
$ zkeep release keep vault/a@mon
$ zkeep bookmark vault/a@mon #sunday
$ zkeep destroy -v vault/a@mon
will destroy vault/a@mon
will reclaim 512K
$ zkeep list -H -o name,used,refer,guid -t bookmark vault/a
vault/a#sunday	-	-	3000
$ zkeep rename vault/a@tue @wed
$ zkeep list -H -r -t all -o name vault/a
vault/a
vault/a@wed
vault/a#sunday
vault/a/b
vault/a/b@mon
$ zkeep destroy vault/a#sunday
$ zkeep destroy vault/a#sunday
zkeep: cannot open vault/a#sunday: bookmark does not exist
[1]
$ zkeep snapshot vault/a@now
zkeep: cannot create snapshot vault/a@now: nothing is written to it here but by 'zkeep receive'; take it on the \
sending side and send it here, or mark @wed with 'zkeep bookmark' or 'zkeep hold'
[1]
""",
    )


def test_json(shell: Shell) -> None:
    shell("pool create vault vault")
    add("vault/a@mon")
    shell("set atime=off vault")
    listed = json.loads(shell("list -j -t all -o name,used,atime -r vault/a"))
    none = {"type": "NONE", "data": "-"}
    assert listed == {
        "output_version": {"command": "zfs list", "vers_major": 0, "vers_minor": 1},
        "datasets": {
            "vault/a": {
                "name": "vault/a",
                "type": "FILESYSTEM",
                "pool": "vault",
                "createtxg": "2",
                "properties": {
                    "used": {"value": "1M", "source": none},
                    "atime": {"value": "off", "source": {"type": "INHERITED", "data": "vault"}},
                },
            },
            "vault/a@mon": {
                "name": "vault/a@mon",
                "type": "SNAPSHOT",
                "pool": "vault",
                "createtxg": "3",
                "dataset": "vault/a",
                "snapshot_name": "mon",
                "properties": {"used": {"value": "0B", "source": none}, "atime": {"value": "-", "source": none}},
            },
        },
    }
    got = json.loads(shell("get -jp --json-int used,quota vault/a"))["datasets"]["vault/a"]
    assert got["createtxg"] == 2
    assert got["properties"]["used"]["value"] == 1 << 20
    assert got["properties"]["quota"] == {"value": 0, "source": {"type": "DEFAULT", "data": "-"}}
    pools = json.loads(shell("pool list -j"))["pools"]
    assert pools["vault"]["state"] == "ONLINE"
    assert json.loads(shell("pool status -j"))["pools"]["vault"]["scrub"] is None


def test_pools(shell: Shell, tmp_path: Path) -> None:
    play(
        shell,
        """
$ zkeep pool create -O blind=off -O compression=zstd one disk/one
$ zkeep pool create one other
zkeep: cannot create pool one: it lies in ? already
[1]
$ zkeep pool create two disk/one
zkeep: cannot create pool two: there is a pool in disk/one already
[1]
$ zkeep pool create two disk
zkeep: cannot create pool two: disk is not empty ('one' is there)
[1]
$ zkeep pool create mirror disk/two
zkeep: bad pool name 'mirror': the name is reserved
[1]
$ zkeep get -H blind,compression one
one	blind	off	local
one	compression	zstd	local
$ zkeep pool status one
  pool: one
 state: ONLINE
  scan: none requested
config: ?

errors: No known data errors
$ zkeep pool export one
$ zkeep pool import -d disk one renamed
$ zkeep list -H -o name
renamed
$ zkeep pool import disk/one
zkeep: cannot import disk/one: it is known already, as renamed
[1]
$ zkeep pool upgrade -v
VER  DESCRIPTION
  1  Documents, journal and index; segments of records as received
$ zkeep pool status -x
all pools are healthy
""",
    )
    (tmp_path / "disk/one").rename(tmp_path / "elsewhere")
    play(
        shell,
        """
$ zkeep pool list -H -o name,health,free
renamed	UNAVAIL	-
$ zkeep pool create here here
$ zkeep list -H -o name
here
zkeep: there is no pool in ?
[1]
$ zkeep list renamed
zkeep: there is no pool in ?
[1]
$ zkeep pool status -x
  pool: renamed
 state: UNAVAIL
status: there is no pool in ?
action: Attach the disk that it lies on, or see in the system's log why it
	fails. Where its folder was moved, 'zkeep pool export renamed' and 'zkeep pool
	import PATH'.
  scan: none requested
config: ?

errors: No known data errors
""",
    )


def test_hostile_values_do_not_reach_the_terminal(shell: Shell) -> None:
    shell("pool create vault vault")
    with Registry(Path(os.environ["ZKEEP_HOME"])).open("vault") as pool, pool.transaction() as t:
        top = pool.dataset(DatasetName("vault"))
        pool.update_dataset(t, top, received={"x:y": "a\x1b[2J\nb\u202e\udcff", "mountpoint": "/a\x07"})
    play(
        shell,
        r"""
$ zkeep get -H x:y vault
vault	x:y	a\x1b[2J\x0ab\u202e\xff	received
$ zkeep get -H -o value mountpoint vault
/a\x07
""",
    )


def test_every_help_text_has_a_line_for_every_option(shell: Shell) -> None:
    from zkeep.cli.main import VERBS

    overview = shell("--help")
    for verb in VERBS:
        assert f"  {verb} " in overview
        page = shell(f"{verb} --help")
        assert page.startswith(f"Usage: zkeep {verb}"), page
    for verb in ("create", "import", "export", "list", "status", "scrub", "upgrade", "destroy"):
        assert shell(f"pool {verb} --help").startswith(f"Usage: zkeep pool {verb}")


def test_a_pool_opens_under_another_name(tmp_path: Path) -> None:
    Pool.create(tmp_path / "p", "one").close()
    with Pool.open(tmp_path / "p", "two") as pool:
        assert list(pool.tree().by_name) == ["two"]
