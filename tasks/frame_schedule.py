"""Which sample is seen when: the whole training as numbered pages, so that workers can prepare them in any order.

A page is a run of whole batches. All of it follows from (seed, epoch), so a resumed run sees what the first would have.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pthnet.errors import ModelError

# rng streams of one seed
_ORDER, _COPIES, _PAGE, _SAMPLE = range(4)


class Page(NamedTuple):
    """A run of batches of one epoch: of the training order, or of the validation samples."""

    training: bool
    epoch: int
    number: int


@dataclass(frozen=True, kw_only=True)
class FrameSchedule:
    """The samples of every epoch for one worker.

    Parameters
    ----------
    train, validation
        int64 positions of samples in their tables; either may be empty.
    repeats
        float64, one for each of `train`: how often it is seen in an epoch; the fraction is drawn anew. None: once.
    batch_size
        Samples of a batch of this worker. Training drops what does not fill a batch of every worker.
    epochs, first_epoch
        Epochs in all; the first one still to do.
    rank, world
        This worker among how many. Workers see different samples of the same epoch.
    page_batches
        Batches of a page. Copies of a sample stand in one page and are decoded once.
    """

    train: np.ndarray
    validation: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    repeats: np.ndarray | None = None
    batch_size: int = 32
    epochs: int = 1
    first_epoch: int = 0
    seed: int = 0
    rank: int = 0
    world: int = 1
    page_batches: int = 4

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.page_batches < 1 or not 0 <= self.rank < self.world:
            raise ModelError(f"batch_size {self.batch_size}, rank {self.rank} of {self.world}: not a schedule")
        if len(self.train) and self.steps(0) == 0:
            raise ModelError(
                f"{len(self.train)} training samples do not fill one batch of {self.batch_size} on {self.world} "
                "workers; choose a smaller batch"
            )

    def order(self, epoch: int) -> np.ndarray:
        """Positions in the table in the order of an epoch, for all workers together; copies stand side by side."""
        shuffled = np.random.default_rng([self.seed, _ORDER, epoch]).permutation(len(self.train))
        if self.repeats is not None:
            drawn = np.random.default_rng([self.seed, _COPIES, epoch]).random(len(self.train))
            copies = np.floor(self.repeats + drawn).astype(np.int64)
            shuffled = np.repeat(shuffled, copies[shuffled])
        return self.train[shuffled]

    def steps(self, epoch: int) -> int:
        """Batches of each worker in an epoch."""
        samples = len(self.train) if self.repeats is None else len(self.order(epoch))
        return samples // (self.batch_size * self.world)

    def pages(self) -> list[Page]:
        """All pages of this worker, in the order in which they are needed."""
        pages = []
        for epoch in range(self.first_epoch, self.epochs):
            if len(self.train):
                pages += [Page(True, epoch, n) for n in range(-(-self.steps(epoch) // self.page_batches))]
            pages += [Page(False, epoch, n) for n in self._validation_pages()]
        return pages

    def batches(self, page: Page) -> list[tuple[np.ndarray, np.ndarray]]:
        """Batches of a page: (positions in the table, seeds of the samples' random changes)."""
        if not page.training:
            size = self.page_batches * self.batch_size
            chosen = self.validation[page.number * size : (page.number + 1) * size]
            seeds = np.zeros(len(chosen), np.int64)
        else:
            steps = self.steps(page.epoch)
            start = self.rank * steps * self.batch_size + page.number * self.page_batches * self.batch_size
            stop = min(start + self.page_batches * self.batch_size, (self.rank + 1) * steps * self.batch_size)
            # copies stand side by side in the order; within the page they are dealt to different places
            places = np.random.default_rng([self.seed, _PAGE, page.epoch, start]).permutation(np.arange(start, stop))
            chosen, seeds = self.order(page.epoch)[places], places
        cuts = range(0, len(chosen), self.batch_size)
        return [(chosen[c : c + self.batch_size], seeds[c : c + self.batch_size]) for c in cuts]

    def generator(self, epoch: int, seed: int) -> np.random.Generator:
        """Chance of one sample's sampling and augmentation in one epoch."""
        return np.random.default_rng([self.seed, _SAMPLE, epoch, seed])

    def _validation_pages(self) -> range:
        pages = -(-len(self.validation) // (self.page_batches * self.batch_size))
        return range(self.rank, pages, self.world)


def class_balance(labels: np.ndarray, threshold: float = 0.15) -> np.ndarray:
    """How often each sample is seen: r(c) = max(1, sqrt(threshold / f_c)), f_c the share of its class (CFC-SP).

    Parameters
    ----------
    labels
        int [n], all >= 0.

    Returns
    -------
    float64 [n].
    """
    counts = np.bincount(labels)
    share = counts / max(len(labels), 1)
    factor = np.maximum(1.0, np.sqrt(threshold / np.where(counts > 0, share, 1.0)))
    return factor[labels]
