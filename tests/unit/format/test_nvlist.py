from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streamkit import STREAMS, keydata

from zkeep.format.events import Package, SubBegin
from zkeep.format.nvlist import MAX_DEPTH, BadNvlist, Encoding, NvForm, NvList, NvType, decode, encode
from zkeep.format.reader import Reader

FORMS = [NvForm(encoding, little) for encoding in (Encoding.XDR, Encoding.NATIVE) for little in (True, False)]

text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
names = text.filter(bool)


def integers(bits: int, signed: bool) -> st.SearchStrategy[int]:
    return st.integers(-(1 << bits - 1), (1 << bits - 1) - 1) if signed else st.integers(0, (1 << bits) - 1)


NUMBERS = {
    NvType[f"{'' if signed else 'U'}INT{bits}"]: integers(bits, signed)
    for bits in (8, 16, 32, 64)
    for signed in (False, True)
}
SCALARS: dict[NvType, st.SearchStrategy[Any]] = NUMBERS | {
    NvType.BYTE: integers(8, False),
    NvType.BOOLEAN: st.just(True),
    NvType.BOOLEAN_VALUE: st.booleans(),
    NvType.STRING: text,
    NvType.HRTIME: integers(64, True),
    NvType.DOUBLE: st.floats(allow_nan=False),
}
ARRAYS: dict[NvType, st.SearchStrategy[Any]] = {
    NvType[f"{kind.name}_ARRAY"]: st.lists(values, max_size=6).map(tuple) for kind, values in NUMBERS.items()
} | {
    NvType.UINT8_ARRAY: st.binary(max_size=20),
    NvType.BYTE_ARRAY: st.binary(max_size=20),
    NvType.BOOLEAN_ARRAY: st.lists(st.integers(0, 1), max_size=5).map(tuple),
    NvType.STRING_ARRAY: st.lists(text, max_size=5).map(tuple),
}
leaves = st.one_of([values.map(lambda value, kind=kind: (kind, value)) for kind, values in (SCALARS | ARRAYS).items()])


def lists(form: NvForm) -> st.SearchStrategy[NvList]:
    def build(pairs: dict[str, tuple[NvType, Any]]) -> NvList:
        made = NvList(form=form)
        for name, (kind, value) in pairs.items():
            made.set(name, value, kind)
        return made

    def extend(inner: st.SearchStrategy[NvList]) -> st.SearchStrategy[NvList]:
        one = inner.map(lambda value: (NvType.NVLIST, value))
        many = st.lists(inner, max_size=3).map(lambda values: (NvType.NVLIST_ARRAY, tuple(values)))
        return st.dictionaries(names, leaves | one | many, max_size=6).map(build)

    return st.recursive(st.dictionaries(names, leaves, max_size=6).map(build), extend, max_leaves=12)


def plain(nvlist: NvList) -> list[Any]:
    def value(pair: Any) -> Any:
        if pair.type == NvType.NVLIST:
            return plain(pair.value)
        return [plain(inner) for inner in pair.value] if pair.type == NvType.NVLIST_ARRAY else pair.value

    return [(pair.name, pair.type, value(pair)) for pair in nvlist.pairs]


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
def test_values_come_back_and_so_do_the_bytes(form: NvForm, data: st.DataObject) -> None:
    made = data.draw(lists(form))
    packed = encode(made)
    found = decode(packed)
    assert plain(found) == plain(made)
    assert found.form == form
    assert encode(found) == packed
    assert encode(decode(packed + b"\0\0\0\0")) == packed + b"\0\0\0\0"


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
def test_a_change_leaves_the_rest_as_it_was(form: NvForm, data: st.DataObject) -> None:
    made = data.draw(lists(form))
    found = decode(encode(made))
    found["zkeep:new"] = 5
    again = decode(encode(found))
    assert plain(again)[:-1] == plain(made)
    del again["zkeep:new"]
    assert encode(again) == encode(made).ljust(len(encode(again)), b"\0")
    assert "zkeep:new" not in again


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_a_kernels_nvlists_come_back_exactly(path: Path) -> None:
    for event in Reader().feed(path.read_bytes()):
        if isinstance(event, SubBegin) and event.payload:
            assert event.nvlist is not None
            assert encode(event.nvlist) == event.payload
        if isinstance(event, Package):
            assert encode(event.nvlist) == event.raw[312:-312]


def test_a_change_deep_inside_is_packed() -> None:
    found = decode(keydata(a=1))
    inner = found["crypt_keydata"]
    assert isinstance(inner, NvList)
    assert not found.changed
    inner["x"] = b"\1\2"
    assert found.changed
    again = decode(encode(found))
    assert again["crypt_keydata"]["x"] == b"\1\2"  # type: ignore[index,call-overload]
    assert again["a"] == 1


def test_a_value_keeps_the_type_it_had() -> None:
    made = NvList()
    made.set("a", 1, NvType.INT32)
    made["a"] = 7
    made["b"] = ("x", "y")
    made["b"] = (1, 2)
    assert [(pair.type, pair.value) for pair in made.pairs] == [(NvType.INT32, 7), (NvType.UINT64_ARRAY, (1, 2))]


def nested(depth: int, form: NvForm) -> NvList:
    made = NvList(form=form)
    for _ in range(depth):
        outer = NvList(form=form)
        outer["x"] = made
        made = outer
    return made


@pytest.mark.parametrize("form", FORMS)
def test_depth_is_bounded(form: NvForm) -> None:
    assert decode(encode(nested(MAX_DEPTH, form)))
    with pytest.raises(BadNvlist, match="deeper"):
        decode(encode(nested(MAX_DEPTH + 1, form)))


def test_the_number_of_pairs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zkeep.format._nvcodec.MAX_PAIRS", 10)
    made = NvList()
    for i in range(10):
        made[str(i)] = i
    assert len(decode(encode(made))) == 10
    made["more"] = 1
    with pytest.raises(BadNvlist, match="more than 10 pairs"):
        decode(encode(made))


def test_the_size_is_bounded() -> None:
    with pytest.raises(BadNvlist, match="more than 16"):
        decode(keydata(), max_size=16)


def test_a_name_may_occur_once() -> None:
    made = NvList()
    made["a"] = 1
    packed = encode(made)
    pair = packed[12:-8]
    with pytest.raises(BadNvlist, match="twice"):
        decode(packed[:12] + pair + pair + packed[-8:])


@pytest.mark.parametrize("count", [1 << 20, (1 << 31) - 1, -1])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "kind", [NvType.UINT64_ARRAY, NvType.STRING_ARRAY, NvType.NVLIST_ARRAY, NvType.BYTE_ARRAY, NvType.STRING]
)
def test_a_count_that_is_not_there_is_refused(kind: NvType, form: NvForm, count: int) -> None:
    made = NvList(form=form)
    value: Any = "a" if kind == NvType.STRING else NvList() if kind == NvType.NVLIST_ARRAY else b"a"
    value = (5,) if kind == NvType.UINT64_ARRAY else ("s",) if kind == NvType.STRING_ARRAY else value
    made.set("n", (value,) if kind == NvType.NVLIST_ARRAY else value, kind)
    packed = bytearray(encode(made))
    xdr = form.encoding == Encoding.XDR
    struct.pack_into(">i" if xdr or not form.little else "<i", packed, 12 + (20 if xdr else 8), count)
    with pytest.raises(BadNvlist):
        decode(packed)


@settings(max_examples=300)
@given(st.sampled_from(FORMS).flatmap(lambda form: lists(form).map(encode)), st.data())
def test_damaged_bytes_are_an_error_or_another_list(packed: bytes, data: st.DataObject) -> None:
    damaged = bytearray(packed)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    try:
        found = decode(damaged)
    except BadNvlist as bad:
        error = bad
    else:
        assert encode(found) == bytes(damaged)
        return
    assert 0 <= error.offset <= len(damaged)
    assert "\n" not in str(error)


@given(st.binary(max_size=300), st.sampled_from([b"\0\1\0\0", b"\0\0\0\0", b"\1\1\0\0"]))
def test_garbage_is_an_error_or_a_list(data: bytes, head: bytes) -> None:
    with contextlib.suppress(BadNvlist):
        decode(head + bytes(8) + data)
