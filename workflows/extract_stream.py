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
SALVAGE_S = 60.0  # what an execution that ended early leaves to write must be written by then, or is done again


def shards(rows: Any, uri: str, extractor_id: str, run_id: str, settings: "Settings") -> "Iterator[Written]":
    """Group the pipeline's blocks into shards, written where they lie; only references pass through here."""
    import ray

    from tasks.shard import write_rows

    write = ray.remote(num_cpus=0, **working_nodes())(cast("Any", write_rows))
    keywords = {"uri": uri, "extractor_id": extractor_id, "run_id": run_id}
    held: list[Any] = []
    writing: list[Any] = []
    size, since = 0, time.monotonic()
    try:
        for bundle in rows.iter_internal_ref_bundles():
            held.extend(entry.ref for entry in bundle.blocks)
            size += bundle.size_bytes()
            if size >= settings.shard_bytes or time.monotonic() - since >= settings.commit_every_s:
                writing.append(write.remote(*held, **keywords))
                held, size, since = [], 0, time.monotonic()
            ended, writing = ray.wait(writing, num_returns=len(writing), timeout=0) if writing else ([], [])
            yield from ray.get(ended)
    except PoolsMisfit:
        if held:
            writing.append(write.remote(*held, **keywords))
        yield from _salvaged(writing)
        raise
    if held:
        writing.append(write.remote(*held, **keywords))
    while writing:
        ended, writing = ray.wait(writing)
        yield from ray.get(ended)


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
