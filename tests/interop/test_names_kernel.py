"""Datasets whose names are one where they differ in case or normal form: the kernel finds each by any of them (P8)."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from lab import LONG, RAW, Lab, assert_same
from sourcekit import create

MANY = 20_000 if LONG else 1_000
WORDS = [
    *("Stra\u00dfe", "\u00c4rger \u00e0 l\u2019H\u00f4tel", "\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2"),
    *("\u0401\u043b\u043a\u0430 \u0457\u0436\u0430\u043a", "k\u0131s \u0130zmir", "\ufb01ne \ufb04uff"),
    *("\u1ebft a\u0323\u0301o", "\uac00\ub098\ub2e4 \u110b\u1161", "\u00b5 \u017ft \u01c5", "\u1fb3\u1f80"),
    *("\u2c65\u0250\u1e9e", "plain Name.TXT", "\u0e01\u0e33 \u0627\u0644\u0644\u064f\u063a\u0629", "x" * 70),
    *("\U00010428\U0001f600", "\u30ac\u30d0 \uff76\uff9e"),
]
"Letters with one, several and no capital, of scripts that have none, newer than Unicode 5.0, ligatures, many marks."
OTHER_CASE = {
    "Stra\u00dfe": ["sTRA\u00dfE", "STRA\u00dfe"],
    "\u00c4rger \u00e0 l\u2019H\u00f4tel": ["\u00e4RGER \u00c0 L\u2019h\u00d4TEL"],
    "\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2": ["\u03c2\u038a\u03a3\u03a5\u03a6\u039f\u03c3"],
    "\u0401\u043b\u043a\u0430 \u0457\u0436\u0430\u043a": ["\u0451\u041b\u041a\u0410 \u0407\u0416\u0410\u041a"],
    "k\u0131s \u0130zmir": ["KIS \u0130ZMIR", "kis \u0130zM\u0131r"],
    "plain Name.TXT": ["PLAIN nAME.txt"],
    "\u00b5 \u017ft \u01c5": ["\u03bc sT \u01c6", "\u039c ST \u01c4"],
    "\u1fb3\u1f80": ["\u1fbc\u1f88"],
    "\u2c65\u0250\u1e9e": ["\u023a\u0250\u1e9e"],
    "x" * 70: ["X" * 70],
    "x" * 30: ["X" * 30],
    "\U00010428\U0001f600": ["\U00010400\U0001f600"],
}
IOTA, LIGATURES = "\u0345", "\ufb01ne \ufb04uff"
ABSENT = ["STRASSE 0", "strasse 0", "\u2c65\u2c6f\u00df 11", "fine ffluff 5"]
"Equal only by rules that a kernel does not go by: full case mappings, letters of later versions."


@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse")
def test_the_kernel_finds_names_by_others_that_are_equal(lab: Lab) -> None:
    key = lab.key(RAW)
    kinds: dict[str, tuple[str, ...]] = {
        "ci": ("casesensitivity=insensitive", "utf8only=on"),
        "formd": ("normalization=formD",),
        "both": ("casesensitivity=insensitive", "normalization=formC"),
        "kd": ("casesensitivity=insensitive", "normalization=formKD"),
        "mixed": ("casesensitivity=mixed", "normalization=formKC"),
    }
    plan = []
    kinds = kinds if LONG else {kind: kinds[kind] for kind in ("ci", "formd")}
    for kind, options in kinds.items():
        create(lab, f"v/{kind}", key, *options)
        # A small folder is one block as long as no name has more than 49 bytes.
        folders = {"few": 32, "many": MANY if kind == "ci" or LONG else 300 if kind == "formd" else 60}
        source = lab.folder / f"source-{kind}"
        stored = {name: _made(source / name, number, kind) for name, number in folders.items()}
        lab.zkeep("snapshot", "--from", str(source), f"v/{kind}@one")
        _change_live(lab, kind, stored["many"])
        for name, names in stored.items():
            absent = ABSENT if kind in ("ci", "formd", "kd") else []
            plan.append({"path": f"/back/{kind}/{name}", "names": names, "absent": absent, "work": 20})
        lab.send(f"{kind}.zfs", "-w", f"v/{kind}@one")
        lab.send(f"{kind}-more.zfs", "-w", "-i", "@one", f"v/{kind}@two")
        lab.kernel_takes(f"{kind}.zfs", f"back/{kind}")
        lab.kernel_takes(f"{kind}-more.zfs", f"back/{kind}")
        lab.kernel_opens(f"back/{kind}", key)
        told = lab.guest.run(f"zfs get -H -o value utf8only,normalization,casesensitivity back/{kind}")
        assert told == lab.zkeep("get", "-H", "-o", "value", "utf8only,normalization,casesensitivity", f"v/{kind}")
    (lab.share / "names.json").write_text(json.dumps(plan))
    assert json.loads(lab.guest.run("python3 /mnt/names.py /mnt/names.json")) == []
    lab.kernel_finds_no_fault()
    # What the kernel made of it is read here, by the same names.
    lab.guest.run("zfs snapshot -r back@three")
    for kind in kinds:
        lab.kernel_sends(f"{kind}-back.zfs", f"-w back/{kind}@three")
        lab.receive(f"{kind}-back.zfs", f"v/{kind}-back")
        assert_same(kind, lab.extracted(f"v/{kind}-back@three", key), lab.seen([f"back/{kind}@three"])[0])
    lab.zkeep("unload-key", "-a")


def _made(folder: Path, count: int, kind: str) -> dict[str, list[str]]:
    """Make files, and return their names with others that are equal to them."""
    folder.mkdir(parents=True)
    names: dict[str, list[str]] = {}
    for number in range(count):
        # Half a voiced mark is refused where names are composed.
        word = WORDS[number % len(WORDS)].replace("\uff9e", "" if kind == "mixed" else "\uff9e")
        if folder.name == "few":
            word = word.replace("x" * 70, "x" * 30)
        others = OTHER_CASE.get(word, []) if kind in ("ci", "both", "kd") else []
        form = {"formd": "NFD", "both": "NFC", "kd": "NFKD", "mixed": "NFKC"}.get(kind)
        stored = f"{word} {number}"
        typed = [f"{other} {number}" for other in others]
        if form is not None:
            for each in ("NFD", "NFC", *(("NFKD", "NFKC") if "K" in form else ())):
                typed += [unicodedata.normalize(each, name) for name in (stored, *typed[: len(others)])]  # type: ignore[arg-type]
        (folder / stored).write_text(stored)
        # Where names are hashed in capitals, what has none does not equal its parts: ligatures, iotas.
        if kind in ("both", "kd", "mixed"):
            typed = [name for name in typed if IOTA not in name and (word != LIGATURES or name[:8] == word[:8])]
        names[stored] = sorted({*typed} - {stored})
    return names


def _change_live(lab: Lab, kind: str, names: dict[str, Any]) -> None:
    """Remove, rename and make files in the large folder by names that are equal to theirs, and take a snapshot."""
    place = lab.folder / f"mounted-{kind}"
    place.mkdir()
    lab.zkeep("mount", f"v/{kind}", str(place))
    many = place / "many"
    for stored, typed in list(names.items())[:60:3]:
        if typed:
            (many / typed[0]).unlink()
            del names[stored]
            (many / f"new {stored}").write_text(stored)
            names[f"new {stored}"] = [f"new {other}" for other in typed]
    lab.zkeep("unmount", str(place))
    lab.zkeep("snapshot", f"v/{kind}@two")
