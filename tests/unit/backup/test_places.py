"""SRC and DEST, parsed."""

from __future__ import annotations

import os
from pathlib import Path as FilePath

import pytest

from zkeep.backup.places import Host, Path, Place, parse_destination, parse_source
from zkeep.errors import Refused, WrongUsage
from zkeep.names import DatasetName


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("vault/me", Place(DatasetName("vault/me"))),
        ("zfs:tank/me", Place(DatasetName("tank/me"), "zfs")),
        ("ssh://box/vault/me", Place(DatasetName("vault/me"), "zkeep", Host("box"))),
        ("ssh://me@box:2222/vault/me", Place(DatasetName("vault/me"), "zkeep", Host("box", "me", 2222))),
        ("ssh://[::1]:22/vault/me", Place(DatasetName("vault/me"), "zkeep", Host("::1", "", 22))),
        ("ssh://box/zfs:tank/a/b", Place(DatasetName("tank/a/b"), "zfs", Host("box"))),
    ],
)
def test_destinations(text: str, place: Place) -> None:
    assert parse_destination(text) == place
    assert str(place) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "vault", "ssh://box", "ssh://box/", "ssh://box/vault", "ssh:///vault/me", "zfs:tank"),
        *("ssh://-oProxyCommand=id/vault/me", "ssh://-l@box/vault/me", "ssh://a b/vault/me", "ssh://b;id/vault/me"),
        *("ssh://box:0/vault/me", "ssh://box:99999/vault/me", "ssh://box:x/vault/me", "ssh://box:/vault/me"),
        *("ssh://[::1/vault/me", "ssh://@box/vault/me", "ssh://box/vault/../me", "ssh://box/vault/me@snap", "a/b#c"),
        *("ssh://box/vault/%00", "ssh://box/vault/a%0Ab", "ssh://box//vault/me", "vault/me/"),
    ],
)
def test_what_is_no_destination(text: str) -> None:
    with pytest.raises((Refused, WrongUsage)):
        parse_destination(text)


def test_sources(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_source("/srv/", []) == Path("/srv")
    assert parse_source("docs", ["vault"]) == Path(str(tmp_path / "docs"))
    assert parse_source("~", []) == Path(os.path.expanduser("~"))
    assert parse_source("vault/docs", ["vault"]) == Place(DatasetName("vault/docs"))
    assert parse_source("./vault/docs", ["vault"]) == Path(str(tmp_path / "vault/docs"))
    assert parse_source("zfs:tank/home", []) == Place(DatasetName("tank/home"), "zfs")
    (tmp_path / "vault").mkdir()
    (tmp_path / "vault/docs").touch()
    with pytest.raises(Refused, match="also a file here"):
        parse_source("vault/docs", ["vault"])
