"""One decoding child process, seen from its parent: started, asked, waited for, killed."""

import json
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.decode_worker import ASK, READY, TAKEN

START_SECONDS = 120.0  # a child imports its decoders in 0.4 s; a machine under load may need far longer


@dataclass(frozen=True)
class Answer:
    """What a child sent back: its words, and the frames [T, H, W, 3] where it decoded some."""

    words: dict[str, Any]
    frames: np.ndarray | None


class DecodeChild:
    """A process that decodes one clip at a time and may be killed at any moment.

    A subprocess with a socket rather than multiprocessing: the spawn and forkserver start methods import the parent's
    main module again, which in a Ray worker is Ray itself, and fork is unsafe beside its threads.
    """

    def __init__(self, memory_bytes: int, reader: str) -> None:
        self.memory_bytes, self.reader = memory_bytes, reader
        self.deadline = 0.0
        self._frames_fd = -1
        self._start()

    def _start(self) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # What native libraries print: shown when they crash, else dropped.
        self._words = tempfile.TemporaryFile()  # noqa: SIM115
        # The child sees the packages that the parent sees, also those a runtime environment put on its path.
        path = os.pathsep.join(p or os.getcwd() for p in sys.path)
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "tasks.decode_worker",
                str(theirs.fileno()),
                str(self.memory_bytes),
                self.reader,
            ],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=self._words,
            stderr=self._words,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        theirs.close()
        self._ready = False

    def ask(self, request: dict[str, Any], timeout_s: float) -> None:
        """Hand over a request; its time starts once the child has taken it."""
        for _ in range(3):  # a child that was killed while idle has no part in it: a fresh one gets the request
            try:
                self._hand_over({**request, "timeout_s": timeout_s})
            except ConnectionError:
                self._drop_frames()
                self._restart()
            else:
                self.deadline = time.monotonic() + timeout_s
                return
        raise RuntimeError(
            "three decoding processes in a row ended before they took a request; is something killing them?"
        )

    def _hand_over(self, request: dict[str, Any]) -> None:
        if not self._ready:
            self._expect(READY)
            self._ready = True
        self._words.seek(0)
        self._words.truncate()
        # Anonymous memory: gone with the last process that holds it, however the two of them end. The request travels
        # in it too, because a socket bounds the length of a message.
        self._frames_fd = os.memfd_create("frames", os.MFD_CLOEXEC)
        os.pwrite(self._frames_fd, json.dumps(request).encode(), 0)
        socket.send_fds(self.sock, [ASK], [self._frames_fd])
        self._expect(TAKEN)

    def _expect(self, word: bytes) -> None:
        self.sock.settimeout(START_SECONDS)
        try:
            heard = self.sock.recv(64)
        except TimeoutError:
            raise RuntimeError(f"the decoding process said nothing for {START_SECONDS:.0f} s") from None
        self.sock.settimeout(None)
        if heard != word:
            if word == READY and self.process.wait() > 0:  # not killed: it cannot start at all
                raise RuntimeError(f"the decoding process did not start: {self._last_words()}")
            raise ConnectionResetError("the decoding process ended")

    def answer(self) -> Answer:
        """Take the answer that the socket has ready; a child that died answers with how it died."""
        try:
            message = self.sock.recv(1 << 20)
        except ConnectionResetError:
            message = b""
        try:
            if not message:
                return Answer(self._obituary(), None)
            words = json.loads(message)
            return Answer(words, self._map(words) if words.get("count") else None)
        finally:
            self._drop_frames()

    def call(self, request: dict[str, Any], timeout_s: float) -> Answer:
        """Ask and wait."""
        self.ask(request, timeout_s)
        if select.select([self.sock], [], [], timeout_s)[0]:
            return self.answer()
        return self.give_up(timeout_s)

    def give_up(self, timeout_s: float) -> Answer:
        """Kill it for having passed its deadline; a fresh one takes its place."""
        self._restart()
        self._drop_frames()
        detail = f"not decoded within {timeout_s:g} s"
        return Answer({"status": "failed", "kind": "decode_timeout", "detail": detail}, None)

    def _map(self, words: dict[str, Any]) -> np.ndarray:
        height, width = words["shape"]
        shape = (words["count"], height, width, 3)
        # The mapping keeps the memory alive after its file is closed, and frees it with the array.
        return np.frombuffer(mmap.mmap(self._frames_fd, int(np.prod(shape))), np.uint8).reshape(shape)

    def _obituary(self) -> dict[str, Any]:
        code = self.process.wait()
        last = self._last_words()
        if code == -signal.SIGKILL or "bad_alloc" in last:
            kind, how = "out_of_memory", "the decoder ran out of memory or was killed"
        elif code < 0:
            kind, how = "decode_crash", f"the decoder died of {signal.Signals(-code).name}"
        else:
            kind, how = "decode_crash", f"the decoder ended with exit status {code}"
        self._restart()
        return {"status": "failed", "kind": kind, "detail": f"{how}: {last}" if last else how}

    def _last_words(self) -> str:
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""

    def _drop_frames(self) -> None:
        if self._frames_fd >= 0:
            os.close(self._frames_fd)
            self._frames_fd = -1

    def _restart(self) -> None:
        self.close()
        self._start()

    def __del__(self) -> None:
        if self.process.poll() is None:
            self.close()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        self.sock.close()
        self._words.close()
