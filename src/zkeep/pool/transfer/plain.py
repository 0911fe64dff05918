"""The BEGIN of a plain stream of an encrypted snapshot, from the BEGIN of its raw stream.

Source: OpenZFS module/zfs/dmu_send.c setup_featureflags(), create_begin_record().
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from zkeep.errors import Refused
from zkeep.format.nvlist import encode
from zkeep.format.records import Feature, HeaderType
from zkeep.pool.datasets.begin import Opening

OLD_LARGEST = 128 << 10
"The largest block in a stream without large blocks (SPA_OLD_MAXBLOCKSIZE)."
_AS_RAW = Feature.SA_SPILL | Feature.REDACTED | Feature.LARGE_DNODE | Feature.LONGNAME | Feature.LARGE_MICROZAP
"Features that do not depend on how the snapshot is sent."


@dataclass(frozen=True)
class SendForm:
    """How blocks are sent: `large` (-L), as large as they are; `compressed` (-c), as they are stored."""

    large: bool = False
    compressed: bool = False

    def features(self, raw: Feature) -> Feature:
        """The features of the plain stream; `raw`: those of the raw one.

        An encrypted dataset has no embedded blocks, so -e adds none.
        """
        wanted = _AS_RAW
        if self.large:
            wanted |= Feature.LARGE_BLOCKS
        if self.compressed:
            wanted |= Feature.LZ4 | Feature.ZSTD | Feature.COMPRESSED
        return raw & wanted | (Feature.COMPRESSED if self.compressed else Feature(0))


def plain_opening(stored: Opening, form: SendForm, name: object) -> Opening:
    """The BEGIN without keys. `name`: the snapshot's, for errors.

    Raises:
        Refused: the snapshot cannot be sent in this form.
    """
    begin = stored.begin
    features = form.features(begin.features)
    if features & Feature.LARGE_MICROZAP and not features & Feature.LARGE_BLOCKS:
        raise Refused(f"cannot send {name}: it has large directories (large_microzap), which are sent with -L only")
    # The raw BEGIN's payload without its keys; what remains (resume point, redaction) goes along.
    nvlist = stored.nvlist
    if nvlist is not None:
        nvlist.remove("crypt_keydata")
    payload = encode(nvlist) if nvlist is not None and len(nvlist) else b""
    changed = replace(begin, payloadlen=len(payload), versioninfo=HeaderType.SUBSTREAM | int(features) << 2)
    return Opening(changed.pack(stored.byteorder), payload, stored.byteorder)
