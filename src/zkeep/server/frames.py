"""What TrueNAS's replication engine (zettarepl) writes around the commands that it runs in a shell.

It learns from one the number of the process that sends, and from the other the exit status of each program of a
pipeline, in any sh. Here neither is needed: the number tells nothing, and a pipeline ends as its first failure does.

Source: zettarepl, utils/shlex.py `pipe` and transport/progress_report_mixin.py `_wrap_send`.
"""

from __future__ import annotations

import shlex
from contextlib import suppress

_SEND = "(", ' & PID=$!; echo "zettarepl: zfs send PID is $PID" 1>&2; wait $PID)'
_BEGIN, _END = "exec 3>&1; eval $(exec 4>&1 >&3 3>&-; ", "exit 0"
_MOST = 8
"Programs of a pipeline."


def unframed(line: str) -> str:
    """The command, or the pipeline, within; any other line as it is.

    What comes out is parsed and judged as whatever a client says.
    """
    if (command := _within(line, *_SEND)) is not None:
        return command
    rest = _within(line, _BEGIN, _END)
    if rest is None:
        return line
    # 1. { A 4>&-; echo "pipestatus0=$?;" >&4; } | { B 4>&-; echo "pipestatus1=$?;" >&4; }
    commands: list[str] = []
    while rest.startswith("{ ") and len(commands) < _MOST:
        command, _, rest = rest[2:].partition(f' 4>&-; echo "pipestatus{len(commands)}=$?;" >&4; }}')
        commands.append(_inner(command))
        rest = rest.removeprefix(" | ")
    # 2. ); [ $pipestatus0 -ne 0 ] && exit $pipestatus0; [ $pipestatus1 -ne 0 ] && exit $pipestatus1;
    asked = (f"[ $pipestatus{at} -ne 0 ] && exit $pipestatus{at}; " for at in range(len(commands)))
    return " | ".join(commands) if commands and rest == f"); {''.join(asked)}" else line


def _within(line: str, begin: str, end: str) -> str | None:
    """What stands between; None: it is not between them."""
    framed = line.startswith(begin) and line.endswith(end) and len(line) >= len(begin) + len(end)
    return line[len(begin) : -len(end)] if framed else None


def _inner(command: str) -> str:
    """The command of a `sh -c` that stands in a pipeline only for its frame."""
    with suppress(ValueError):
        words = shlex.split(command)
        if len(words) == 3 and words[:2] == ["sh", "-c"]:
            return _within(words[2], *_SEND) or command
    return command
