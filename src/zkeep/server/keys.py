"""Public keys, and the lines for them in ~/.ssh/authorized_keys.

Source: OpenSSH sshd(8), "AUTHORIZED_KEYS FILE FORMAT"; RFC 4253, 6.6.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from zkeep.errors import Refused
from zkeep.names import printable, shown

KINDS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
_LONGEST = 1 << 16


@dataclass(frozen=True)
class PublicKey:
    kind: str
    blob: str
    comment: str

    @property
    def fingerprint(self) -> str:
        """The fingerprint as `ssh-keygen -l` prints it."""
        digest = sha256(base64.b64decode(self.blob)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def public_keys(text: str, where: str) -> Iterator[PublicKey]:
    """The keys in a file, one a line.

    Raises:
        Refused: it holds something else, such as a private key, or options before a key.
    """
    if len(text) > _LONGEST:
        raise Refused(f"{where}: it is too long for a file with public keys")
    if "PRIVATE KEY" in text:
        raise Refused(f"{where}: this is a private key, which never leaves the client; give its .pub file")
    lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise Refused(f"{where}: there is no public key in it")
    for line in lines:
        yield _parse(line, where)


def _parse(line: str, where: str) -> PublicKey:
    """The key in a line `KIND BASE64 COMMENT`; what is encoded begins with the kind again.

        0        4        4 + n
        +--------+--------+---------------------------
        | n (BE) | kind   | the key's own numbers ...
        +--------+--------+---------------------------
    """
    kind, _, rest = line.partition(" ")
    blob, _, comment = rest.strip().partition(" ")
    if kind not in KINDS:
        raise Refused(f"{where}: {shown(kind, 40)} is no kind of public key; a line is 'ssh-ed25519 AAAA... comment'")
    try:
        content = base64.b64decode(blob, validate=True)
    except (binascii.Error, ValueError):
        content = b""
    # The kind outside and inside must be the same: what is checked here is what sshd will use.
    name = len(kind).to_bytes(4, "big") + kind.encode()
    if not content.startswith(name) or len(content) < len(name) + 32:
        raise Refused(f"{where}: the {kind} key in it is damaged or cut short")
    return PublicKey(kind, blob, printable(comment.strip()))


def authorized_lines(text: str, command: str, where: str) -> Iterator[str]:
    """A line for each key: it may run `command` and nothing else; no terminal, no forwarding.

    In the file a backslash means something only before a quote: OpenSSH misc.c opt_dequote().
    """
    # So quotes are the only characters to escape.
    escaped = command.replace('"', '\\"')
    for key in list(public_keys(text, where)):
        line = escaped.replace("{client}", key.fingerprint)
        yield f'command="{line}",restrict {key.kind} {key.blob} {key.comment}'.rstrip()
