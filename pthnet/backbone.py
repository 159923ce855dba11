"""The backbone as the extraction stage holds it: weights on a device, decoded frames in, window features out.

Windows run in micro-batches of one fixed size, the last one padded. So the same kernels see every window, and a clip
gets the same features alone as in company.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pthnet.errors import ModelError
from pthnet.extractor import Extractor, digest_state_dict
from pthnet.matmul import fastest_exact_matmul
from pthnet.pixels import resize_frames, windows_to_pixels
from pthnet.videomae import VideoMAE, VideoMAEConfig, flops, run_block
from pthnet.windows import DIRECTIONS, WINDOW

NULL = "null"
_PREFIX = "videomae-"
_ATTENTION = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
_RESIZE_CHUNK = 32  # frames: bounds what the exact rule needs beside its result


class FeatureBackbone(Protocol):
    """What the extraction stage needs of a backbone."""

    extractor: Extractor
    micro_batch: int
    copy_s: float  # seconds this host spent handing frames to the device, since it was made

    def features(self, frames: Tensor, index: Tensor) -> Tensor:
        """Features [B, dim] float32 of windows index [B, 16] into frames uint8 [N, H, W, 3]."""

    def extract(self, segments: Sequence[np.ndarray], indices: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Features of several segments, each [n, dim] float32, on the host."""

    def rate(self, micro_batch: int, *, compiled: bool = True, seconds: float = 1.0) -> float:
        """Windows per second of a bare forward loop of so many seconds; 0 where that says nothing."""


class Backbone:
    """A VideoMAE encoder on one device.

    Parameters
    ----------
    model : VideoMAE
        float32 weights; moved and cast here, once.
    extractor : Extractor
        What the features will be recorded under; its precision and normalisation are applied.
    device : str
    micro_batch : int, optional
        Windows per forward pass; `default_micro_batch` when left out.
    compile : bool, optional
        torch.compile the encoder's blocks. On CUDA by default, ignored elsewhere. Where that fails (it takes a C
        compiler), the encoder runs uncompiled.
    on_warning : callable, optional
        Told in one line when the micro-batch had to be halved or compiling failed; `warnings.warn` by default.
    """

    def __init__(
        self,
        model: VideoMAE,
        extractor: Extractor,
        *,
        device: str | torch.device = "cpu",
        micro_batch: int | None = None,
        compile: bool | None = None,
        on_warning: Callable[[str], None] | None = None,
    ) -> None:
        self.extractor = extractor
        self.device = torch.device(device)
        self.dtype = torch.bfloat16 if extractor.precision == "bf16" else torch.float32
        self.micro_batch = micro_batch or default_micro_batch(model.config, self.device)
        self._warn = on_warning or _warn
        self._model = model.to(self.device, self.dtype).eval().requires_grad_(False)
        on_cuda = self.device.type == "cuda"
        self._forward: Callable[[Tensor], Tensor] = self._model
        if on_cuda and (compile is None or compile):
            self._forward = partial(self._model, step=torch.compile(run_block, dynamic=False))
        self._copies = torch.cuda.Stream(self.device) if on_cuda else None
        self.copy_s = 0.0

    @torch.inference_mode()
    def features(self, frames: Tensor, index: Tensor) -> Tensor:
        """Features of windows.

        Parameters
        ----------
        frames : uint8 [N, H, W, 3]
            On the device. Of another size than the backbone's, they are resized there by the exact rule.
        index : int64 [B, 16]
            Frames of each window; see `pthnet.windows.frame_indices`.

        Returns
        -------
        float32 [B, dim]
            On the device.

        Raises
        ------
        torch.OutOfMemoryError
            When even one window at a time does not fit.
        """
        if index.dim() != 2 or index.shape[1] != WINDOW:
            raise ModelError(f"windows are indexed as [B, {WINDOW}] frames; found {list(index.shape)}")
        done: list[Tensor] = []
        self._run(self._at_size(frames), index.to(self.device), done, final=True)
        return torch.cat(done) if done else torch.empty(0, self.extractor.dim, device=self.device)

    @torch.inference_mode()
    def extract(self, segments: Sequence[np.ndarray], indices: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Features of the windows of several segments, run together.

        Parameters
        ----------
        segments : sequence of uint8 [T, H, W, 3]
            Decoded frames; sizes may differ from segment to segment.
        indices : sequence of int [n, 16]
            Windows of each segment, as indexes into its own frames.

        Returns
        -------
        list of float32 [n, dim]
            On the host.
        """
        if not segments:
            return []
        frame_ends = np.cumsum([len(frames) for frames in segments])
        window_ends = np.cumsum([len(index) for index in indices])
        offsets = frame_ends - [len(frames) for frames in segments]
        windows = [np.asarray(index, np.int64) + offset for index, offset in zip(indices, offsets, strict=True)]
        index = torch.from_numpy(np.concatenate(windows)).to(self.device)
        size = self.extractor.image_size
        if all(frames.shape[1:3] == (size, size) for frames in segments):
            held = torch.empty(int(frame_ends[-1]), size, size, 3, dtype=torch.uint8, device=self.device)
        else:
            held = torch.empty(int(frame_ends[-1]), 3, size, size, dtype=self.dtype, device=self.device)
        done: list[Tensor] = []
        for frames, start, end, known in zip(segments, offsets, frame_ends, window_ends, strict=True):
            began = time.perf_counter()
            uploaded = self._upload(frames)
            self.copy_s += time.perf_counter() - began
            held[start:end] = uploaded if held.dtype == torch.uint8 else self._resized(uploaded)
            # Whole micro-batches start while the next segment is still being copied; the remainder waits for company.
            self._run(held, index[:known], done, final=known == window_ends[-1])
        found = torch.cat(done).cpu().numpy() if done else np.empty((0, self.extractor.dim), np.float32)
        return np.split(found, window_ends[:-1])

    @torch.inference_mode()
    def rate(self, micro_batch: int, *, compiled: bool = True, seconds: float = 1.0, least: int = 3) -> float:
        """Windows per second of a bare forward loop over one resident clip, once it is warm."""
        size = self.extractor.image_size
        draw = np.random.default_rng(0).integers(0, 256, (4 * WINDOW, size, size, 3), np.uint8)  # zeros would be faster
        frames = torch.from_numpy(draw).to(self.device)
        starts = torch.arange(micro_batch, device=self.device) % (3 * WINDOW)
        index = starts[:, None] + torch.arange(WINDOW, device=self.device)
        forward = self._encode if compiled else self._model

        def once() -> float:
            started = time.perf_counter()
            forward(windows_to_pixels(frames, index, self.extractor.normalize, self.dtype)).cpu()
            return time.perf_counter() - started

        with self._kernels():
            once()  # kernels are chosen, code is compiled
            spent, done = 0.0, 0
            while done < least or spent < seconds:
                spent, done = spent + once(), done + 1
        return micro_batch * done / spent

    def _run(self, frames: Tensor, index: Tensor, done: list[Tensor], *, final: bool) -> None:
        """Append the features of windows not yet done, in whole micro-batches; the last is padded if final."""
        position = sum(map(len, done))
        while position < len(index) and (final or position + self.micro_batch <= len(index)):
            rows = index[position : position + self.micro_batch]
            try:
                with self._kernels():
                    done.append(self._micro_batch(frames, rows))
            except torch.OutOfMemoryError:
                if self.micro_batch == 1:
                    raise
                self.micro_batch //= 2
                self._warn(f"out of memory on {self.device}: micro-batch halved to {self.micro_batch} windows")
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            position += len(rows)

    def _micro_batch(self, frames: Tensor, rows: Tensor) -> Tensor:
        padding = self.micro_batch - len(rows)
        padded = torch.cat([rows, rows[-1:].expand(padding, -1)]) if padding else rows
        pixels = windows_to_pixels(frames, padded, self.extractor.normalize, self.dtype)
        return self._encode(pixels)[: len(rows)]

    def _encode(self, pixels: Tensor) -> Tensor:
        try:
            return self._forward(pixels)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if self._forward is self._model:
                raise
            self._warn(f"the encoder could not be compiled and runs slower: {str(error).splitlines()[0]}")
            self._forward = self._model
            return self._model(pixels)

    @contextmanager
    def _kernels(self) -> Iterator[None]:
        """Exact float32 products, and the faster attention where there is a choice."""
        with fastest_exact_matmul(self.device):
            if self.device.type == "cuda":
                with sdpa_kernel(_ATTENTION, set_priority=True):
                    yield
            else:
                yield

    def _upload(self, frames: np.ndarray) -> Tensor:
        host = torch.empty(frames.shape, dtype=torch.uint8, pin_memory=self._copies is not None)
        np.copyto(host.numpy(), frames)  # read-only arrays (shared memory) are fine here, torch.from_numpy minds them
        if self._copies is None:
            return host.to(self.device)
        compute = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            uploaded = host.to(self.device, non_blocking=True)
        compute.wait_stream(self._copies)
        uploaded.record_stream(compute)  # made on one stream, used on the other: the allocator must know
        return uploaded

    def _at_size(self, frames: Tensor) -> Tensor:
        size = self.extractor.image_size
        return frames if frames.shape[1:3] == (size, size) else self._resized(frames)

    def _resized(self, frames: Tensor) -> Tensor:
        chunks = frames.split(_RESIZE_CHUNK)
        return torch.cat([resize_frames(chunk, self.extractor.image_size).to(self.dtype) for chunk in chunks])


class NullBackbone:
    """Features of zeros at no cost, to measure everything of a pipeline but its backbone."""

    def __init__(self, extractor: Extractor, *, device: str | torch.device = "cpu", micro_batch: int = 64) -> None:
        self.extractor = extractor
        self.device = torch.device(device)
        self.micro_batch = micro_batch
        self.copy_s = 0.0

    def rate(self, micro_batch: int, *, compiled: bool = True, seconds: float = 1.0) -> float:
        """0: a bare loop over nothing has no rate."""
        return 0.0

    def features(self, frames: Tensor, index: Tensor) -> Tensor:
        """Zeros [B, dim]."""
        return torch.zeros(len(index), self.extractor.dim, device=self.device)

    def extract(self, segments: Sequence[np.ndarray], indices: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Zeros [n, dim] for every segment."""
        return [np.zeros((len(index), self.extractor.dim), np.float32) for index in indices]


def build_backbone(
    name: "str | Extractor",
    *,
    weights: str | Path | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    precision: str | None = None,
    tail: str = "cover",
    normalize: str = "none",
    directions: Sequence[str] = DIRECTIONS,
    micro_batch: int | None = None,
    compile: bool | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> "Backbone | NullBackbone":
    """Load (or seed) weights and put them on a device.

    Parameters
    ----------
    name : str or Extractor
        "small" ... "giant", "tiny" or "null" (with or without the "videomae-" prefix), or the extractor the features
        are wanted for. An extractor brings its own settings, and the weights must be the ones it names.
    weights : path, optional
        A published checkpoint; without it the weights are random, drawn from `seed`.
    device : str
    precision : {"fp32", "bf16"}, optional
        `default_precision(device)` when left out.
    tail, normalize, directions
        As in `Extractor`.
    micro_batch, compile, on_warning
        As in `Backbone`.

    Raises
    ------
    ModelError
        For an unknown name, or weights that are not those the extractor (or the name) stands for.
    """
    if isinstance(name, Extractor):
        wanted = name
        if wanted.backbone == NULL:
            return NullBackbone(wanted, device=device, micro_batch=micro_batch or 64)
        model = _load(VideoMAEConfig(**wanted.config), weights, wanted.seed or 0)
        found = digest_state_dict(model.state_dict())
        if found != wanted.weights:
            source = weights if weights is not None else f"random weights of seed {wanted.seed}"
            raise ModelError(
                f"extractor {wanted.id} was made with weights {wanted.weights[:8]}, but {source} are {found[:8]}; "
                "give the same weight file"
            )
        extractor = wanted
    else:
        short = name.removeprefix(_PREFIX)
        settings: dict[str, Any] = {"tail": tail, "normalize": normalize, "directions": tuple(directions)}
        settings["precision"] = precision or default_precision(device)
        if short == NULL:
            config = {"image_size": 224, "dim": 1408}
            nothing = Extractor(backbone=NULL, config=config, weights=digest_state_dict({}), **settings)
            return NullBackbone(nothing, device=device, micro_batch=micro_batch or 64)
        model = _load(VideoMAEConfig.named(short), weights, seed)
        extractor = Extractor(
            backbone=_PREFIX + short,
            config=asdict(model.config),
            weights=digest_state_dict(model.state_dict()),
            seed=seed if weights is None else None,
            **settings,
        )
    return Backbone(model, extractor, device=device, micro_batch=micro_batch, compile=compile, on_warning=on_warning)


def default_precision(device: str | torch.device) -> str:
    """bf16 where it is faster than fp32: on CUDA, and on CPUs with bfloat16 instructions (AVX512-BF16, AMX)."""
    if torch.device(device).type == "cuda":
        return "bf16"
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch we take
    return "bf16" if any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16")) else "fp32"


def default_micro_batch(config: VideoMAEConfig, device: str | torch.device) -> int:
    """Windows per forward pass where nobody chose: 64 on an accelerator, 8 on a CPU if the encoder is small, else 1.

    A CPU gains nothing from company once a window is worth a GFLOP, and padding would be paid in full.
    """
    if torch.device(device).type != "cpu":
        return 64
    return 8 if flops(config) < 2e9 else 1


def _load(config: VideoMAEConfig, weights: str | Path | None, seed: int) -> VideoMAE:
    if weights is None:
        return VideoMAE.seeded(config, seed)
    from pthnet.published import load_videomae  # the reader of foreign files; not needed for random weights

    return load_videomae(weights, config)


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)
