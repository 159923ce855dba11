"""The child process that decodes: `python -P -m tasks.decode_worker FD MEMORY READER`, started by tasks.decode_child.

Native decoders crash, hang and allocate without bound on damaged files, so they run here, where they can be killed.
Requests come over a socket together with a memory file that the parent owns; frames are written there, so nothing
remains when either side dies.
Imports neither torch nor ray: a child starts in a fraction of a second and costs little memory.
"""

import json
import os
import resource
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

import cv2
import numpy as np

READY, ASK, TAKEN = b"ready", b"ask", b"taken"
CHUNK = 32  # frames decoded at once: bounds the memory of native-size frames whatever the segment's length


class Refused(Exception):
    """The clip cannot be decoded; `kind` says in which way."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class FrameSink:
    """Writes frames one after another into the parent's memory file, resized to `size` where one is asked for."""

    def __init__(self, fd: int, size: tuple[int, int] | None, max_frames: int, max_bytes: int) -> None:
        self.fd, self.size, self.max_frames, self.max_bytes = fd, size, max_frames, max_bytes
        self.reset()

    def reset(self) -> None:
        """Forget what a decoder that gave up half-way has written."""
        self.count = self.written = 0
        self.shape: tuple[int, int] = (0, 0)  # height, width as stored
        self.native: tuple[int, int] = (0, 0)  # height, width of the first frame as decoded

    def put(self, frame: np.ndarray) -> None:
        """Take one frame, uint8 [H, W, 3]."""
        if self.count == 0:
            self.native = frame.shape[:2]  # type: ignore[assignment]
        if self.count >= self.max_frames:
            raise too_long(f"more than {self.max_frames}", self.max_frames)
        if self.size is not None and frame.shape[:2] != self.size[::-1]:
            frame = cv2.resize(frame, self.size, interpolation=cv2.INTER_LINEAR)
        if self.count == 0:
            self.shape = frame.shape[:2]  # type: ignore[assignment]
        elif frame.shape[:2] != self.shape:
            (height, width), (first_height, first_width) = frame.shape[:2], self.shape
            raise Refused(
                "decode_error",
                f"frame {self.count} is {width}x{height}, the first is {first_width}x{first_height}; "
                "frames of several sizes need a target size",
            )
        data = np.ascontiguousarray(frame).data.cast("B")
        if self.written + len(data) > self.max_bytes:
            raise Refused("out_of_memory", f"the frames take more than {self.max_bytes >> 20} MB; use shorter segments")
        while data:
            done = os.pwrite(self.fd, data, self.written)
            self.written += done
            data = data[done:]
        self.count += 1


def too_long(found: str, max_frames: int) -> Refused:
    """A clip that was to be decoded whole turned out longer than planned."""
    return Refused(
        "frame_count_mismatch",
        f"{found} frames where at most {max_frames} were expected: its header is wrong; "
        "remux it (ffmpeg -c copy) and run again",
    )


def read(request: dict[str, Any], sink: FrameSink) -> dict[str, Any]:
    """Decode the frames [first, last) of a video, a folder of frames or one image into `sink`.

    Parameters
    ----------
    request
        path, kind ("video" | "frames" | "image"), first, last (None: to the end), num_frames (None: not known),
        max_frames; for frames also total and names.

    Returns
    -------
    dict
        num_frames, fps and decoder.
    """
    found = _read(request, sink)
    if sink.count == 0:
        raise Refused("decode_error", "it holds no frame")
    return found


def _read(request: dict[str, Any], sink: FrameSink) -> dict[str, Any]:
    from tasks import decoders

    if request["kind"] != "video":
        return decoders.read_images(request, sink)
    try:
        return decoders.read_with_decord(request, sink)
    except (ImportError, decoders.DecordGaveUp) as error:
        first_words = str(error)
    sink.reset()
    try:
        return decoders.read_with_av(request, sink)
    except Refused as error:
        if error.kind == "decode_error":
            raise Refused(error.kind, f"pyav: {error}; decord: {first_words}") from None
        raise


def _answer(reader: Callable, request: dict[str, Any], fd: int) -> dict[str, Any]:
    size = tuple(request["size"]) if request["size"] else None
    sink = FrameSink(fd, size, request["max_frames"], request["max_bytes"])
    try:
        found = reader(request, sink)
    except Refused as error:
        return {"status": "failed", "kind": error.kind, "detail": str(error)}
    except MemoryError:
        return {
            "status": "failed",
            "kind": "out_of_memory",
            "detail": "the decoder asked for more memory than it may use",
        }
    except Exception as error:
        return {"status": "failed", "kind": "decode_error", "detail": f"{type(error).__name__}: {error}"}
    return {"status": "ok", "count": sink.count, "shape": sink.shape, "native": sink.native, **found}


def _bound_memory(spare: int) -> None:
    """Let the process grow by `spare` bytes beyond what its libraries have mapped by now."""
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = mapped + spare
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _die_with_parent(sock: socket.socket) -> None:
    poll = select.poll()
    poll.register(sock, 0)  # hang-up is always reported
    poll.poll()
    os._exit(0)


def serve(sock: socket.socket, memory: int, reader: Callable) -> None:
    """Answer requests until the parent closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, args=(sock,), daemon=True).start()
    _bound_memory(memory)
    sock.send(READY)
    while True:
        message, fds, _, _ = socket.recv_fds(sock, 64, 1)
        if not message:
            return
        request = json.loads(os.pread(fds[0], os.fstat(fds[0]).st_size, 0))
        os.ftruncate(fds[0], 0)
        sock.send(TAKEN)
        # The parent kills at the deadline. Should it be gone and a native call hold the interpreter, the kernel does.
        signal.alarm(int(request["timeout_s"]) + 10)
        try:
            answer = _answer(reader, request, fds[0])
        finally:
            os.close(fds[0])
        signal.alarm(0)
        answer["detail"] = answer.get("detail", "")[:2000]
        sock.send(json.dumps(answer).encode())


def main() -> None:
    """Serve the socket that the parent passed."""
    with suppress(ImportError):  # there is none for ARM; PyAV reads everything there
        import_module("decord")
    import_module("tasks.decoders")  # before the memory is bounded: libraries map a lot of it
    fd, memory, dotted = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    cv2.setNumThreads(1)
    module, _, name = dotted.partition(":")
    reader = getattr(import_module(module), name)
    serve(socket.socket(fileno=fd), memory, reader)


if __name__ == "__main__":
    # decoders.py imports this module by its name: let both be the same one, or Refused would be two classes.
    sys.modules["tasks.decode_worker"] = sys.modules["__main__"]
    main()
