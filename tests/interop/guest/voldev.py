"""Prints the device of a volume or of a volume's snapshot; there is no udev here to make /dev/zvol.

python3 voldev.py POOL/VOLUME[@SNAPSHOT]
"""

import fcntl
import os
import re
import sys
import time

BLKZNAME = 0x8100127D
"_IOR(0x12, 125, char[256]): OpenZFS include/os/linux/spl/sys/fcntl.h's neighbour, sys/zvol_impl.h."


def name_of(device):
    content = bytearray(256)
    handle = os.open(device, os.O_RDONLY)
    try:
        fcntl.ioctl(handle, BLKZNAME, content)
    finally:
        os.close(handle)
    return bytes(content).split(b"\0")[0].decode()


for _ in range(100):
    for device in sorted(os.listdir("/dev")):
        try:
            if re.fullmatch(r"zd\d+", device) and name_of("/dev/" + device) == sys.argv[1]:
                print("/dev/" + device)
                sys.exit(0)
        except OSError:
            pass
    time.sleep(0.2)
sys.exit(f"there is no device for {sys.argv[1]}")
