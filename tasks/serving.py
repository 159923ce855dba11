"""What a server of predictions does with a request: read it, refuse it in words, score many at once.

A request is {"instances": [...]}. An instance names a video, {"video": "..."}, or brings window features,
{"forward": W, "reverse": W}, with W a list of windows, each a list of numbers, or {"shape": [windows, dim],
"float32": "<base64, little endian>"}.
"""

import base64
import binascii
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pthnet.windows import SLOTS
from storage import files
from tasks.bundle import Bundle
from tasks.evaluate import fuse

Instance = dict[str, np.ndarray]  # direction -> float32 [windows, dim]


class Refusal(Exception):
    """A request that cannot be answered: an HTTP status and what to do about it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may ask for.

    Attributes
    ----------
    bytes
        Most bytes of its body.
    instances
        Most instances.
    windows
        Most windows of an instance.
    videos
        Folders and s3:// prefixes below which videos may be named; none: features only.
    """

    bytes: int = 32 << 20
    instances: int = 64
    windows: int = 100_000
    videos: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """The instances of a request in order: features, or the URI of a video."""

    instances: list[Instance | str] = field(default_factory=list)


def read_request(body: bytes, bundle: Bundle, limits: Limits) -> Asked:
    """Parse and check a request's body.

    Raises
    ------
    Refusal
        400 for what is no JSON, 413 for too much, 403 for a video that may not be named, 422 for what does not fit.
    """
    if len(body) > limits.bytes:
        raise Refusal(413, f"a request may have {limits.bytes} bytes; this one has more. Send fewer instances")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is no JSON: {str(error)[:200]}") from error
    given = found.get("instances") if isinstance(found, dict) else None
    if not isinstance(given, list) or not given:
        raise Refusal(422, 'expected {"instances": [...]} with at least one instance')
    if len(given) > limits.instances:
        raise Refusal(413, f"a request may have {limits.instances} instances; this one has {len(given)}")
    return Asked([_instance(number, each, bundle, limits) for number, each in enumerate(given)])


def _instance(number: int, given: Any, bundle: Bundle, limits: Limits) -> Instance | str:
    wanted = " and ".join(bundle.networks)
    if not isinstance(given, dict):
        raise Refusal(422, f"instance {number} must be an object with {wanted}, or with video")
    if "video" in given:
        return allowed_video(given["video"], limits)
    missing = [direction for direction in bundle.networks if direction not in given]
    if missing:
        raise Refusal(422, f"instance {number} lacks {' and '.join(missing)}: the model needs {wanted}, or a video")
    found = {direction: _matrix(number, direction, given[direction], bundle, limits) for direction in bundle.networks}
    if len({len(matrix) for matrix in found.values()}) > 1:
        raise Refusal(422, f"instance {number} has different numbers of windows forward and reverse")
    return found


def _matrix(number: int, direction: str, given: Any, bundle: Bundle, limits: Limits) -> np.ndarray:
    dim = bundle.networks[direction].config.in_dim
    where = f"instance {number}: {direction}"
    try:
        if isinstance(given, dict):
            raw = base64.b64decode(given["float32"], validate=True)
            shape = [int(side) for side in given["shape"]]
            matrix = np.frombuffer(raw, "<f4").reshape(shape)
        else:
            matrix = np.asarray(given, np.float32)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise Refusal(422, f"{where} is no matrix of numbers: {str(error)[:200]}") from error
    if matrix.ndim != 2 or matrix.shape[1] != dim or not len(matrix):
        raise Refusal(422, f"{where} must be [windows, {dim}] with at least one window; found {list(matrix.shape)}")
    if len(matrix) > limits.windows:
        raise Refusal(413, f"{where} has {len(matrix)} windows; at most {limits.windows} are taken")
    if not np.isfinite(matrix).all():
        raise Refusal(422, f"{where} holds NaN or infinity")
    return matrix


def allowed_video(given: Any, limits: Limits) -> str:
    """The URI of a video that may be read, links followed; Refusal 403 for others."""
    if not isinstance(given, str) or not given or "\0" in given:
        raise Refusal(422, "video must be a path or an s3:// URI")
    if not limits.videos:
        raise Refusal(403, "this server takes features only; start it with --videos FOLDER to let requests name videos")
    for top in limits.videos:
        if files.is_s3(given):
            if files.is_s3(top) and given.startswith(top.rstrip("/") + "/") and ".." not in given.split("/"):
                return given
        elif not files.is_s3(top):
            root = os.path.realpath(top)
            path = os.path.realpath(os.path.join(root, given))
            if path.startswith(root.rstrip("/") + "/"):
                return path
    raise Refusal(403, "that video does not lie in a folder this server may read")


class Scorer:
    """Scores instances in one batch per direction.

    Parameters
    ----------
    bundle
        The model.
    device
        "cpu" or "cuda".
    """

    def __init__(self, bundle: Bundle, device: str = "cpu") -> None:
        self.bundle = bundle
        self.networks = {
            name: DirectionScorer(network, bundle.level, device) for name, network in bundle.networks.items()
        }

    def __call__(self, instances: Sequence[Instance]) -> list[dict[str, Any]]:
        """Expression, confidence and probabilities by class name of each instance."""
        return self.answers({name: one.logits(self.slots(instances, name)) for name, one in self.networks.items()})

    def slots(self, instances: Sequence[Instance], direction: str) -> list[np.ndarray]:
        """The windows of each instance that the published evaluation samples."""
        from pthnet.slots import sample_slots

        count = SLOTS[self.bundle.level]
        return [each[direction][sample_slots(len(each[direction]), count)] for each in instances]

    def answers(self, logits: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """What is said of each instance, from its logits by direction [B, classes]."""
        fused = fuse(logits.get("forward"), logits.get("reverse"), self.bundle.mu).astype(np.float64)
        shares = np.exp(fused - fused.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        classes = self.bundle.classes
        return [
            {
                "expression": classes[int(row.argmax())],
                "confidence": float(row.max()),
                "probabilities": dict(zip(classes, row.tolist(), strict=True)),
            }
            for row in shares
        ]


class DirectionScorer:
    """One direction's network.

    Parameters
    ----------
    network
        A PTH-Net.
    level
        That decides.
    device
        "cpu" or "cuda".
    threads
        For a process that does nothing else: how many compute, on the CPU by the fastest exact products.
    """

    def __init__(self, network: Any, level: str, device: str = "cpu", threads: int | None = None) -> None:
        if threads:
            import torch

            from pthnet.matmul import use_fastest_exact_matmul

            use_fastest_exact_matmul(device)
            torch.set_num_threads(threads)
        self.network, self.level, self.device = network.to(device).eval(), level, device

    def logits(self, slots: Sequence[np.ndarray]) -> np.ndarray:
        """Logits [B, classes] of B instances' sampled windows."""
        import torch

        from pthnet.matmul import exact_float32

        x = np.zeros((len(slots), SLOTS[self.level], self.network.config.in_dim), np.float32)  # [B, T, D]
        mask = np.zeros(x.shape[:2], bool)
        for row, windows in enumerate(slots):
            x[row, : len(windows)], mask[row, : len(windows)] = windows, True
        with torch.inference_mode(), exact_float32(self.device):
            given = torch.from_numpy(x).to(self.device).transpose(1, 2), torch.from_numpy(mask).to(self.device)
            return self.network({self.level: given})[self.level].float().cpu().numpy()
