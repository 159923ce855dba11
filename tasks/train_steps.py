"""The steps of an epoch, one after another; on a GPU one is recorded and then replayed.

A step is more than a thousand small kernels. Launched one by one they keep a GPU waiting for Python most of the time; a
recorded step (a CUDA graph) is launched whole, draws its random numbers as if it were not recorded, and needs to be
told only which clips it is about.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from pthnet.pth_net import PTHNet
from tasks.sampling import DeviceTable, Shard, seed_generator
from tasks.train_settings import TrainSettings

WARM_UP = 3  # steps that run unrecorded first: libraries set themselves up, and the optimizer makes its buffers


class Steps:
    """What a training does with every batch.

    Parameters
    ----------
    module
        `ModelWithLoss`, within DDP or not.
    model
        The network in it.
    average
        Follows the network's weights, where the settings want that.
    table
        Clips on the device.
    settings, optimizer, shard
        As in `tasks.train.train`.
    replay
        Whether steps are recorded and replayed where they can be: on a GPU that holds the features, with one worker.
    """

    def __init__(
        self,
        module: nn.Module,
        model: PTHNet,
        average: PTHNet | None,
        table: DeviceTable,
        settings: TrainSettings,
        optimizer: torch.optim.Optimizer,
        shard: Shard,
        *,
        replay: bool = True,
    ) -> None:
        self.module, self.model, self.average, self.optimizer = module, model, average, optimizer
        self.table, self.settings, self.shard = table, settings, shard
        self.generator = torch.Generator(table.device)
        self.sums = torch.zeros(6, device=table.device)
        self._drops = [part for part in model.modules() if hasattr(part, "draws")] if settings.model.drop_path else []
        self._record = replay and table.device.type == "cuda" and table.resident and shard.world == 1
        self._stream = torch.cuda.Stream(table.device) if self._record else None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._rows = torch.zeros(settings.batch, dtype=torch.int64, device=table.device)  # what the record reads
        self._unrecorded = 0

    def epoch(self, order: np.ndarray, epoch: int, on_step: Callable[[float], None] | None = None) -> Tensor:
        """One pass over the clips of `order`: what `ModelWithLoss` counts [6], summed over this worker's clips."""
        seed_generator(self.generator, self.settings.seed, epoch, 1)
        with self._own_stream():
            self.sums.zero_()
            for rows in torch.from_numpy(order).to(self.table.device).split(self.settings.batch):
                if on_step is not None:
                    on_step(float(self._step(rows)))
                elif len(rows) == self.settings.batch and self._recorded():
                    self._rows.copy_(rows)
                    self._graph.replay()  # type: ignore[union-attr]
                else:
                    self._step(rows)
        for part in self._drops:
            part.draws = None  # type: ignore[assignment]
        return self.sums

    def _step(self, rows: Tensor) -> Tensor:
        """Train on a batch; its loss, without waiting for it."""
        settings, device = self.settings, self.table.device
        mine = self.shard.slice(len(rows))
        keep = mine if mine.stop > mine.start else slice(0, 1)  # an empty shard still takes part in DDP's reductions
        pyramid = self.table.pyramid(rows, settings.levels, generator=self.generator, noise=settings.noise, keep=keep)
        if self._drops:
            shape = (len(self._drops), len(rows), len(settings.levels))
            draws = torch.rand(shape, generator=self.generator, device=device)
            for part, drawn in zip(self._drops, draws, strict=True):
                part.draws = drawn[keep]  # type: ignore[assignment]
        loss, share = self.module(pyramid, self.table.labels[rows[keep]], len(rows))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.sums += share
        if self.average is not None:
            _blend(self.average, self.model, settings.ema)
        self._unrecorded += 1
        return loss.detach()

    def _recorded(self) -> bool:
        """Whether there is a record to replay; makes it when its time has come."""
        if self._graph is None and self._record and self._unrecorded >= WARM_UP:
            self._make_record()
        return self._graph is not None

    def _make_record(self) -> None:
        """Record a step; nothing of it runs, and where it cannot be recorded steps go on one by one."""
        graph, drawn = torch.cuda.CUDAGraph(), self.generator.get_state()
        graph.register_generator_state(self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._step(self._rows)
        except RuntimeError as error:
            self._record = False
            self.generator = torch.Generator(self.table.device)  # the old one may think that it is still being recorded
            self.generator.set_state(drawn)
            warnings.warn(f"steps run one by one: {str(error).splitlines()[0]}", RuntimeWarning, stacklevel=2)
        else:
            self._graph = graph

    @contextmanager
    def _own_stream(self) -> Iterator[None]:
        """Steps run where they are recorded, so that no kernel of a record waits for another stream."""
        if self._stream is None:
            yield
            return
        around = torch.cuda.current_stream(self.table.device)
        self._stream.wait_stream(around)
        with torch.cuda.stream(self._stream):
            yield
        around.wait_stream(self._stream)


@torch.no_grad()
def _blend(average: PTHNet, model: PTHNet, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for kept, new in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(new)
