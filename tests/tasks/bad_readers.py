"""Readers that stand in for a native decoder gone wrong; tests name them to a DecodePool."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from tasks.decode_worker import FrameSink, read


def by_name(request: dict[str, Any], sink: FrameSink) -> dict[str, Any]:
    """Misbehave as the file's name says; read all others."""
    name = os.path.basename(request["path"])
    if name.startswith("segfault"):
        os.kill(os.getpid(), signal.SIGSEGV)
    elif name.startswith("abort"):
        os.abort()
    elif name.startswith("hang"):
        Path(request["path"] + ".entered").touch()
        time.sleep(1e6)
    elif name.startswith("half"):
        sink.put(np.zeros((64, 64, 3), np.uint8))
        os.kill(os.getpid(), signal.SIGSEGV)
    elif name.startswith("bomb"):
        hoard = [np.ones(1 << 24, np.uint8) for _ in range(64)]  # 1 GiB, more than the test allows
        raise AssertionError(f"{len(hoard)} blocks were given")
    elif name.startswith("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    return read(request, sink)


def replaced_while_read(request: dict[str, Any], sink: FrameSink) -> dict[str, Any]:
    """Read the clip, then let somebody else write it anew."""
    found = read(request, sink)
    with open(request["path"], "ab") as file:
        file.write(b"more")
    return found
