"""Runs in the machine: a line of JSON comes on the second serial port, a command is run, a line of JSON goes back."""

import json
import os
import subprocess
import termios
import tty

PORT = "/dev/ttyS1"


def answer(request):
    command = ["bash", "-o", "pipefail", "-c", request["command"]]
    given = request["input"].encode()
    try:
        done = subprocess.run(
            command, check=False, input=given, capture_output=True, cwd="/root", timeout=request["timeout"]
        )
    except subprocess.TimeoutExpired:
        return {"status": 124, "out": "", "err": "it took too long"}
    out, err = (text.decode("utf-8", "surrogateescape") for text in (done.stdout, done.stderr))
    return {"status": done.returncode, "out": out, "err": err}


def main():
    port = os.open(PORT, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(port)
    termios.tcflush(port, termios.TCIOFLUSH)
    lines = os.fdopen(port, "r+b", buffering=0)
    lines.write(b'{"ready": true}\n')
    waiting = b""
    while True:
        piece = os.read(port, 4096)
        waiting += piece
        while b"\n" in waiting:
            line, waiting = waiting.split(b"\n", 1)
            request = json.loads(line)
            if request.get("stop"):
                return
            content = json.dumps(answer(request)).encode() + b"\n"
            while content:
                content = content[os.write(port, content) :]


main()
