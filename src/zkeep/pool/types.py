"""What all rooms of the pool share: the type of its documents, and the largest number that ZFS has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Doc = dict[str, Any]
"""A document of the catalog, as JSON."""
ReadOnlyDoc = Mapping[str, Any]
MAX_UINT64 = (1 << 64) - 1
"""ZFS's numbers have 64 bits. Where a range may end here it means "to the end" (UINT64_MAX, DMU_OBJECT_END)."""
