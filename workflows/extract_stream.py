"""What the extraction asks of Ray Data beside its stages: how far ahead, how loud, and shards of what comes out."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from cluster.connect import working_nodes
from cluster.resizing import PoolsMisfit

if TYPE_CHECKING:
    from tasks.shard import Written
    from workflows.extract_settings import Settings

BLOCK_BYTES = 32 << 20  # frames that a decode task hands on at once
WRITE_RETRIES = 3  # of a shard whose process or node died; written twice it is one file, named by its content
SALVAGE_S = 60.0  # what an execution that ended early leaves to write must be written by then, or is done again


def shards(rows: Any, uri: str, extractor_id: str, run_id: str, settings: "Settings") -> "Iterator[Written]":
    """Group the pipeline's blocks into shards, written where they lie; only references pass through here.

    On one machine they lie here, and the driver writes them: a process for it would take more memory than the rows.
    """
    import ray

    from tasks.shard import write_rows

    where = {"uri": uri, "extractor_id": extractor_id, "run_id": run_id}
    task = ray.remote(num_cpus=0, max_retries=WRITE_RETRIES, **working_nodes())(cast("Any", write_rows))
    here = one_machine()
    writing: list[Any] = []

    def write(blocks: list[Any]) -> "Iterator[Written]":
        if here:
            yield write_rows(*ray.get(blocks), **where)
        else:
            writing.append(task.remote(*blocks, **where))

    held: list[Any] = []
    size, since = 0, time.monotonic()
    try:
        for bundle in rows.iter_internal_ref_bundles():
            held.extend(entry.ref for entry in bundle.blocks)
            size += bundle.size_bytes()
            if size >= settings.shard_bytes or time.monotonic() - since >= settings.commit_every_s:
                yield from write(held)
                held, size, since = [], 0, time.monotonic()
            ended, writing[:] = ray.wait(writing, num_returns=len(writing), timeout=0) if writing else ([], [])
            yield from ray.get(ended)
    except PoolsMisfit:
        if held:
            writing.append(task.remote(*held, **where))  # by a task in any case: rows may have been lost with a node
        yield from _salvaged(writing)
        raise
    if held:
        yield from write(held)
    while writing:
        ended, writing[:] = ray.wait(writing)
        yield from ray.get(ended)


def one_machine() -> bool:
    """Whether the cluster is this machine alone, as far as it is known now; not where the driver looks on from afar."""
    import ray
    from ray.util.client import ray as afar

    return not afar.is_connected() and sum(node["Alive"] for node in ray.nodes()) == 1


def _salvaged(writing: list[Any]) -> "Iterator[Written]":
    """What of an execution that ended early can still be written; rows that lay on a lost node cannot."""
    import ray

    ended, late = ray.wait(writing, num_returns=len(writing), timeout=SALVAGE_S) if writing else ([], [])
    for task in late:
        ray.cancel(task)
    for task in ended:
        try:
            yield ray.get(task)
        except ray.exceptions.RayError as error:
            if isinstance(error, ray.exceptions.RayTaskError) and not isinstance(error.cause, ray.exceptions.RayError):
                raise  # the disk is full, say


def bounded(dataset: Any, most_bytes: int) -> Any:
    """Ray Data that decodes no further ahead: a long archive would fill the object store, which never shrinks again."""
    from ray.data import ExecutionResources

    dataset.context.target_max_block_size = BLOCK_BYTES
    dataset.context.execution_options.resource_limits = ExecutionResources(object_store_memory=most_bytes)
    return dataset


def quiet(dataset: Any) -> Any:
    """Ray Data without its own progress bars and logs: the workflow has one bar for all stages."""
    import logging

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong is raised
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    return dataset
