"""send -nv -t TOKEN tells what the token says, as zfs does, whether or not its snapshot is here."""

from __future__ import annotations

from pathlib import Path

import pytest

from zkeep.cli.main import run
from zkeep.format.records import Feature
from zkeep.pool.transfer.token import Token

FULL = Path(__file__).parent.parent / "data" / "opened" / "chains" / "ccm192-lzjb-8k.full-s0.zfs"
GONE = Token("tank/x\x1b@s1", 0xABC, 0x80, 0x2000, 0x1234, fromguid=0xDEF, features=Feature.RAW | Feature.COMPRESSED)
Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZKEEP_HOME", str(tmp_path / "home"))
    assert run(["pool", "create", "v", str(tmp_path / "pool")]) == 0


def test_of_a_snapshot_that_is_not_here(capfd: Output) -> None:
    assert run(["send", "-nvt", GONE.encode()]) == 1
    out, err = capfd.readouterr()
    assert out.splitlines() == [
        "resume token contents:",
        "nvlist version: 0",
        "\tfromguid = 0xdef",
        "\tobject = 0x80",
        "\toffset = 0x2000",
        "\tbytes = 0x1234",
        "\ttoguid = 0xabc",
        "\ttoname = tank/x\\x1b@s1",
        "\tcompressok = 1",
        "\trawok = 1",
    ]
    assert "used in the initial send no longer exists" in err
    assert err.count("\n") == 1
    assert run(["send", "-nt", GONE.encode()]) == 1
    assert capfd.readouterr().out == ""


def test_of_one_whose_source_is_gone_and_of_one_that_can_go_on(
    capfd: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zkeep.names import SnapshotName
    from zkeep.pool.datasets.model import Pool
    from zkeep.pool.transfer.receive import ReceiveOptions, receive

    with Pool.open(tmp_path / "pool") as pool, FULL.open("rb") as source:
        receive(pool, source, "v/a", ReceiveOptions())
        guid = pool.snapshot(SnapshotName.parse("v/a@s0")).guid
    orphan = Token("v/a@s0", guid, 0, 0, 0, fromguid=0xDEF, features=Feature.RAW)
    assert run(["send", "-nvt", orphan.encode()]) == 1
    out, err = capfd.readouterr()
    assert out.startswith("resume token contents:\nnvlist version: 0\n\tfromguid = 0xdef\n")
    assert "incremental source 0xdef no longer exists" in err
    sizes = []
    for arrived in (0, 100_000):
        token = Token("v/a@s0", guid, 1, 0, arrived, features=Feature.RAW)
        assert run(["send", "-nPvt", token.encode()]) == 0
        lines = capfd.readouterr().out.splitlines()
        assert lines[0] == "resume token contents:"
        assert lines[-2].startswith("full\tv/a@s0\t")
        sizes.append(int(lines[-1].removeprefix("size\t")))
    assert sizes[0] - sizes[1] == 100_000
