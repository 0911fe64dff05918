"""Where this program is, for what starts it later: a timer, or sshd."""

from __future__ import annotations

import os
import shutil
import sys


def own_path() -> str:
    """The program's file: what ssh runs has another PATH than a terminal."""
    named = sys.argv[0] if os.path.basename(sys.argv[0]) == "zkeep" else "zkeep"
    beside = os.path.join(os.path.dirname(sys.executable), "zkeep")
    found = shutil.which(named) or shutil.which(beside)
    return os.path.abspath(found) if found else "zkeep"
