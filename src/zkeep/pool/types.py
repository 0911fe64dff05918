"""The type of a document, which all rooms of the pool share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Doc = dict[str, Any]
"A document of the catalog, as JSON."
ReadOnlyDoc = Mapping[str, Any]
