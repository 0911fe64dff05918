from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkeep.format.records import (
    HEADER,
    LAYOUTS,
    SUPPORTED,
    Begin,
    ByteOrder,
    Feature,
    Free,
    Layout,
    RecordType,
    Redact,
    Write,
)

_RANGES = {"B": 8, "I": 32, "Q": 64}


def values(layout: type[Layout]) -> st.SearchStrategy[dict[str, Any]]:
    fields: dict[str, st.SearchStrategy[Any]] = {"payloadlen": st.integers(0, 2**32 - 1)}
    for field in layout._fields:
        if field.code == "s":
            fields[field.name] = st.binary(min_size=field.count, max_size=field.count)
        else:
            number = st.integers(0, 2 ** _RANGES[field.code] - 1)
            fields[field.name] = number if field.count == 1 else st.tuples(*[number] * field.count)
    return st.fixed_dictionaries(fields)


def test_every_type_is_declared() -> None:
    assert set(LAYOUTS) == set(RecordType)


@pytest.mark.parametrize("rtype", RecordType)
@pytest.mark.parametrize("byteorder", ["little", "big"])
@given(data=st.data())
def test_a_header_comes_back_as_it_was(rtype: RecordType, byteorder: ByteOrder, data: st.DataObject) -> None:
    layout = LAYOUTS[rtype]
    fields = data.draw(values(layout))
    if "toname" in fields:
        fields["toname"] = fields["toname"].rstrip(b"\0")
    record = layout(**fields)
    packed = record.pack(byteorder)
    assert len(packed) == HEADER
    assert int.from_bytes(packed[:4], byteorder) == rtype
    assert layout.unpack(packed, byteorder) == record
    row = np.frombuffer(packed, layout.dtype(byteorder))[0]
    for name, value in fields.items():
        column = row[name].tolist()
        expected = list(value) if isinstance(value, tuple | bytes) and name != "toname" else value
        assert column == expected


def test_a_header_of_another_type_is_not_read() -> None:
    with pytest.raises(ValueError, match="not WRITE"):
        Write.unpack(Begin().pack())


@given(rtype=st.sampled_from(RecordType), data=st.data())
def test_headers_are_equal_if_their_fields_are(rtype: RecordType, data: st.DataObject) -> None:
    layout = LAYOUTS[rtype]
    one, other = (data.draw(values(layout)) for _ in range(2))
    assert layout(**one) == layout(**one)
    assert hash(layout(**one)) == hash(layout(**one))
    assert (layout(**one) == layout(**other)) == (one == other)
    assert all(f"{name}={value!r}" in repr(layout(**one)) for name, value in one.items())


def test_records_of_two_types_are_never_equal() -> None:
    same = {"object": 1, "offset": 2, "length": 3, "toguid": 4}
    assert Free(**same) != Redact(**same)
    assert Free(**same) != tuple(same.values())


def test_versioninfo_holds_header_type_and_features() -> None:
    begin = Begin(versioninfo=0x1420004 << 2 | 1)
    assert begin.hdrtype == 1
    assert begin.features == Feature.RAW | Feature.COMPRESSED | Feature.LZ4 | Feature.SA_SPILL
    assert begin.raw
    assert not SUPPORTED & Feature.DEDUP


def test_a_name_ends_at_its_first_zero() -> None:
    begin = Begin(toname=b"a@b\0rest")
    assert begin.name == b"a@b"
    assert Begin.unpack(begin.pack()).toname == b"a@b\0rest"
