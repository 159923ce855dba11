"""Batches of frames: which images a sample needs, decoded once, sampled and augmented, as uint8 arrays.

Runs in any process: a Ray worker, a DataLoader worker, or the caller's.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from pthnet.augment import Augment, resize
from pthnet.snippets import snippet_frames
from storage import files
from storage.clips import frame_names
from tasks.frame_lists import is_clips
from tasks.frame_schedule import FrameSchedule, Page

if TYPE_CHECKING:
    import torch

# B samples, T frames of a sample (16 or 1), S side


@dataclass(frozen=True, kw_only=True)
class FrameBatch:
    """One batch, ready for the device.

    Attributes
    ----------
    training, epoch
        Of the page it belongs to.
    index : int64 [B]
        Rows of the training or the validation table.
    labels : int64 [B]
        -1: unlabelled, or unreadable; such a sample teaches nothing.
    frames : uint8 [B, T, S, S, 3]
        RGB; zeros where unreadable.
    readable : bool [B]
    failures : list of str
        What could not be read, and why.
    """

    training: bool
    epoch: int
    index: np.ndarray
    labels: np.ndarray
    frames: np.ndarray
    readable: np.ndarray
    failures: list[str]

    def to_arrow(self) -> pa.Table:
        """One row; the frames are not copied."""
        flat = np.ascontiguousarray(self.frames).reshape(-1)
        offsets = np.array([0, flat.size], np.int64)
        binary = pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(offsets), pa.py_buffer(flat)])
        return pa.table(
            {
                "training": [self.training],
                "epoch": [self.epoch],
                "index": pa.array([self.index.tolist()], pa.list_(pa.int64())),
                "labels": pa.array([self.labels.tolist()], pa.list_(pa.int64())),
                "shape": pa.array([list(self.frames.shape)], pa.list_(pa.int64())),
                "frames": binary,
                "readable": pa.array([self.readable.tolist()], pa.list_(pa.bool_())),
                "failures": pa.array([self.failures], pa.list_(pa.string())),
            }
        )

    @classmethod
    def from_arrow(cls, table: pa.Table) -> "FrameBatch":
        """Read the one row that `to_arrow` made; the frames stay where they are, and cannot be written to."""
        row = {name: table[name][0] for name in table.column_names if name != "frames"}
        binary = table["frames"].chunk(0)  # a scalar of it would be a copy
        _, offsets, data = binary.buffers()
        start, stop = np.frombuffer(offsets, np.int64)[binary.offset : binary.offset + 2]
        frames = np.frombuffer(data, np.uint8)[start:stop].reshape(row["shape"].as_py())
        return cls(
            training=row["training"].as_py(),
            epoch=row["epoch"].as_py(),
            index=np.array(row["index"].as_py(), np.int64),
            labels=np.array(row["labels"].as_py(), np.int64),
            frames=frames,
            readable=np.array(row["readable"].as_py(), bool),
            failures=row["failures"].as_py(),
        )


@dataclass(frozen=True, kw_only=True)
class FrameLoader:
    """Makes the batches of a schedule's pages.

    Parameters
    ----------
    train, validation
        FRAMES tables.
    train_labels, validation_labels
        int64, one for each of their rows: the label that the model is to learn, -1 for none.
    schedule
        Its positions are rows of these tables.
    size
        Side of the output, pixels.
    augment
        What is done to training samples; None only resizes them.
    """

    train: pa.Table
    validation: pa.Table
    train_labels: np.ndarray
    validation_labels: np.ndarray
    schedule: FrameSchedule
    size: int
    augment: Augment | None = None

    def load(self, page: Page) -> Iterator[FrameBatch]:
        """The batches of one page. A sample that stands in it more than once is decoded once."""
        cv2.setNumThreads(1)  # one core per worker: the pool is what is parallel
        table = self.train if page.training else self.validation
        labels = self.train_labels if page.training else self.validation_labels
        batches = self.schedule.batches(page)
        waiting = Counter(int(i) for chosen, _ in batches for i in chosen)
        kept: dict[int, dict[str, np.ndarray]] = {}
        for chosen, seeds in batches:
            frames = np.zeros((len(chosen), 16 if is_clips(table) else 1, self.size, self.size, 3), np.uint8)
            taught = labels[chosen].copy()
            readable, failures = np.ones(len(chosen), bool), []
            for position, (index, seed) in enumerate(zip(chosen.tolist(), seeds.tolist(), strict=True)):
                waiting[index] -= 1
                decoded = kept.pop(index, {})
                if waiting[index]:
                    kept[index] = decoded
                rng = self.schedule.generator(page.epoch, seed) if page.training else None
                try:
                    frames[position] = self._sample(table, index, rng, decoded)
                except (OSError, ValueError) as error:
                    taught[position], readable[position] = -1, False
                    failures.append(f"{table['uri'][index].as_py()}: {error}")
            yield FrameBatch(
                training=page.training,
                epoch=page.epoch,
                index=chosen,
                labels=taught,
                frames=frames,
                readable=readable,
                failures=failures,
            )

    def _sample(
        self, table: pa.Table, index: int, rng: np.random.Generator | None, decoded: dict[str, np.ndarray]
    ) -> np.ndarray:
        """Frames uint8 [T, S, S, 3] of one sample; `decoded` keeps what was read."""
        return read_sample(
            table["uri"][index].as_py(),
            self.size,
            clips=is_clips(table),
            rng=rng,
            augment=self.augment,
            decoded=decoded,
        )


def read_sample(
    uri: str,
    size: int,
    *,
    clips: bool,
    rng: np.random.Generator | None = None,
    augment: Augment | None = None,
    decoded: dict[str, np.ndarray] | None = None,
) -> np.ndarray:
    """Frames uint8 [T, S, S, 3] of one clip (its folder) or image.

    Parameters
    ----------
    rng
        Draws a clip's frames and the changes of `augment`; None gives evaluation's frames, only resized.
    decoded
        Images read before, by URI; what is read now is added.

    Raises
    ------
    OSError, ValueError
        A file cannot be read, is no image, or the folder holds none.
    """
    decoded = {} if decoded is None else decoded
    wanted = [uri]
    if clips:
        names = _frames_of(uri)
        if not names:
            raise ValueError("the folder holds no images")
        wanted = [files.join(uri, names[n]) for n in snippet_frames(len(names), rng)]
    for place in wanted:
        if place not in decoded:
            decoded[place] = read_image(place)
    if rng is None or augment is None:
        # frames that repeat are resized once
        small = {place: resize(decoded[place][None], size)[0] for place in set(wanted)}
        return np.stack([small[place] for place in wanted])
    frames = [decoded[place] for place in wanted]
    if len({frame.shape for frame in frames}) > 1:
        frames = [resize(frame[None], size)[0] for frame in frames]
    return augment(np.stack(frames), rng)


def read_image(uri: str) -> np.ndarray:
    """One image as uint8 [H, W, 3], RGB.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is no image.
    """
    return decode_image(files.read_bytes(uri))


def decode_image(content: bytes) -> np.ndarray:
    """An encoded image as uint8 [H, W, 3], RGB; ValueError when it is none."""
    data = np.frombuffer(content, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise ValueError("not a readable image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


@lru_cache(maxsize=100_000)
def _frames_of(folder: str) -> tuple[str, ...]:
    """Image names of a clip in natural order; listed once per process."""
    if not files.is_s3(folder):
        return tuple(frame_names(os.listdir(files.local_path(folder))))
    fs, place = files.filesystem(folder)
    return tuple(frame_names(entry.base_name for entry in fs.get_file_info(pafs.FileSelector(place))))


def upload(array: np.ndarray, device: "torch.device | str") -> "torch.Tensor":
    """The array as a tensor on a device; to a GPU from pinned memory, so that the caller need not wait for the copy."""
    import torch

    if torch.device(device).type != "cuda":
        given = array if array.flags.writeable else array.copy()  # torch has no read-only tensors
        return torch.from_numpy(given).to(device)
    host = torch.empty(array.shape, dtype=getattr(torch, array.dtype.name), pin_memory=True)
    np.copyto(host.numpy(), array)
    return host.to(device, non_blocking=True)  # PyTorch gives the pinned memory to nobody else before the copy is done


def local_batches(loader: FrameLoader) -> Iterator[FrameBatch]:
    """The batches of all pages of a loader's schedule in order, made by the caller's own thread."""
    for page in loader.schedule.pages():
        yield from loader.load(page)


def arrow_batches(held: Any) -> Callable[[pa.Table], Iterator[pa.Table]]:
    """A Ray Data function from page numbers (`id`) to batches, one row each.

    Parameters
    ----------
    held
        Object reference of (loader, its pages): a task carries the reference, not the tables.
    """

    def make(ids: pa.Table) -> Iterator[pa.Table]:
        import ray

        loader, pages = ray.get(held)
        for page in ids["id"].to_pylist():
            for batch in loader.load(pages[page]):
                yield batch.to_arrow()

    return make


def ray_batches(
    loader: FrameLoader, *, cpus: int, cpus_each: float = 1.0, ahead_bytes: int = 1 << 30
) -> Iterator[FrameBatch]:
    """The batches of all pages of a loader's schedule in order, made by Ray Data tasks ahead of the consumer.

    One stream runs through all epochs and their validations, so that nothing starts anew between them.

    Parameters
    ----------
    loader
        Put into the object store once.
    cpus
        Most tasks that make batches at a time.
    cpus_each
        CPUs that Ray sets aside for each of them.
    ahead_bytes
        Most bytes of batches made ahead of the consumer.
    """
    import ray
    from ray.data import ExecutionOptions, ExecutionResources, TaskPoolStrategy

    pages = loader.schedule.pages()
    if not pages:
        return
    make = arrow_batches(ray.put((loader, pages)))
    dataset = ray.data.range(len(pages), override_num_blocks=min(len(pages), 4096))
    dataset.context.execution_options = ExecutionOptions(
        preserve_order=True, resource_limits=ExecutionResources(cpu=cpus, object_store_memory=ahead_bytes)
    )
    # a block is a batch: they leave a task one by one
    dataset.context.target_max_block_size = 1 << 16
    dataset.context.enable_progress_bars = False
    stream: Any = dataset.map_batches(
        make,
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=TaskPoolStrategy(size=min(cpus, len(pages))),
        num_cpus=cpus_each,
    )
    for row in stream.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=2):
        yield FrameBatch.from_arrow(row)
