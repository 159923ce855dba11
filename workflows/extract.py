"""Extract VideoMAE V2 features of every clip that lacks them: `pthnet extract videos/ --features features/`.

The whole pipeline, top-down: list -> plan -> probe -> cut -> decode -> forward -> write -> commit. Run again, it does
what is missing.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Literal

from workflows.extract_report import Progress, Report, print_plan, print_report
from workflows.extract_settings import Settings, forward_device, forward_threads, pools_now
from workflows.waiting import waiting_said

if TYPE_CHECKING:
    import pyarrow as pa

    from pthnet.extractor import Extractor
    from storage.features import FeatureTable
    from storage.plan import Plan
    from tasks.shard import Written


DECODE_MEMORY = 512 << 20  # bytes a node must have left for each decoder and its frames
AHEAD_BYTES = 128 << 20  # decoded frames that may lie ready for each decode task and each forward actor
WHOLE_MARGIN = 4  # a clip decoded whole may hold this many times the frames its header led us to expect


def extract(
    sources: list[str],
    /,
    *,
    features: str,
    root: str | None = None,
    backbone: str = "small",
    weights: str | None = None,
    random_weights: int | None = None,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    tail: Literal["cover", "drop"] = "cover",
    normalize: Literal["none", "imagenet"] = "none",
    directions: Literal["both", "forward", "reverse"] = "both",
    fingerprint: Literal["stat", "sha256"] = "stat",
    dry_run: bool = False,
    max_attempts: int = 1,
    retry_quarantined: bool = False,
    max_failure_rate: float = 0.5,
    decode_timeout: float = 120.0,
    device: Literal["auto", "cuda", "cpu"] = "auto",
    micro_batch: int | None = None,
    max_cpus: float | None = None,
    max_gpus: float | None = None,
    decode_on: str | None = None,
    forward_on: str | None = None,
    address: str | None = None,
    json: bool = False,
) -> int:
    """Extract features of every clip that is new, changed, or lacks them from this extractor.

    Parameters
    ----------
    sources
        Video files, globs, directories, folders of frames, s3:// prefixes, or lists (.txt, .csv, .parquet).
    features
        The feature table: a local directory or s3://bucket/prefix. Made when it is not there.
    root
        Directory or prefix that clip names are relative to.
    backbone
        tiny (ours, for trying out), small, base, large, huge or giant.
    weights
        Checkpoint of the backbone: .pth or .safetensors, local or s3://.
    random_weights
        Instead of weights: draw them from this seed. Features of random weights carry little meaning.
    precision
        auto is bf16 on GPUs and on CPUs that have it, else fp32. fp32 is exact.
    tail
        cover: the last window is clamped so that every frame is seen. drop: the tail is left out.
    normalize
        none is what the published features were made with.
    directions
        Which directions of time to extract.
    fingerprint
        How a local clip's content is recognised: stat (size and modification time) or sha256.
    dry_run
        Say what would be done, do nothing.
    max_attempts
        Runs in which a failing clip is tried before it stays in quarantine.
    retry_quarantined
        Try quarantined clips once more.
    max_failure_rate
        Exit code 1 when more than this share of the clips tried failed.
    decode_timeout
        Seconds one clip (or segment of a long one) may take to decode.
    device
        Where the forward pass runs.
    micro_batch
        Windows per forward pass; found for the device by default.
    max_cpus
        Most cores of the cluster that this run may take.
    max_gpus
        Most GPUs of the cluster that this run may take; 0 runs on CPU.
    decode_on
        Nodes that decode: a label (pool=decode) or a custom resource (name:amount).
    forward_on
        Nodes of the forward pass, likewise.
    address
        Ray cluster; by default RAY_ADDRESS, else this machine.
    json
        Print the report as JSON.
    """
    from tasks.resolve import resolve_extractor

    extractor = resolve_extractor(
        backbone,
        weights=weights,
        random_weights=random_weights,
        precision=precision,
        device=forward_device(device, max_gpus, address),
        tail=tail,
        normalize=normalize,
        directions=("forward", "reverse") if directions == "both" else (directions,),
    )
    settings = Settings(
        max_attempts=max_attempts,
        retry_quarantined=retry_quarantined,
        decode_timeout_s=decode_timeout,
        micro_batch=micro_batch,
        max_cpus=max_cpus,
        max_gpus=max_gpus,
        device=device,
        decode_on=decode_on,
        forward_on=forward_on,
    )
    clips = listed(sources, root, fingerprint)
    if dry_run:
        print_plan(planned(clips, features, extractor, settings), features, extractor.id, as_json=json)
        return 0
    report = run(clips, features, extractor, weights=weights, settings=settings, address=address)
    print_report(report, as_json=json)
    return 1 if report.failure_rate > max_failure_rate else 0


def listed(sources: Sequence[str], root: str | None = None, fingerprint: str = "stat") -> "pa.Table":
    """The clips of the sources, schema CLIPS."""
    from storage.sources import list_clips

    return list_clips(sources, root=root, fingerprint=fingerprint)


def planned(clips: "pa.Table", features: str, extractor: "Extractor", settings: Settings) -> "Plan":
    """Judge the clips against what the table and its quarantine hold."""
    from storage import quarantine
    from storage.features import FeatureTable
    from storage.plan import plan

    return plan(
        clips,
        FeatureTable(features).keys(extractor.id, times=True),
        quarantine.read(features, extractor.id),
        extractor.id,
        max_attempts=settings.max_attempts,
        retry_quarantined=settings.retry_quarantined,
    )


def run(
    clips: "pa.Table",
    features: str,
    extractor: "Extractor",
    *,
    weights: str | None = None,
    settings: Settings | None = None,
    address: str | None = None,
    decode: "Callable[..., pa.Table] | None" = None,
) -> Report:
    """Extract what is missing, commit as it goes, and keep a summary beside the table.

    Parameters
    ----------
    clips
        Schema CLIPS.
    decode
        Replaces probing and decoding in benchmarks; called like `tasks.decode_rows.decode_rows`.

    Raises
    ------
    FencedOut
        When another run of this extractor commits to the table meanwhile.
    """
    from cluster.causes import causes
    from cluster.resizing import PoolsMisfit
    from storage.commits import committed
    from storage.features import FeatureTable
    from storage.files import absolute
    from storage.runs import new_run_id, write_run
    from tasks.commit import Committer
    from tasks.segments import begun

    settings = settings or Settings()
    started = time.perf_counter()
    application = f"pthnet/{extractor.id}"
    base = committed(features, application)  # before the plan: what another run commits after it must fence us out
    todo = planned(clips, features, extractor, settings)
    report = Report(
        features=features,
        extractor=extractor.id,
        run_id=new_run_id(),
        clips=clips.num_rows,
        planned=todo.counts,
        weights=absolute(weights) if weights else None,
    )
    table = FeatureTable(features)
    table.put_extractor(extractor.id, extractor.to_json())
    parts = begun(todo.todo, table.keys(extractor.id)) if todo.todo.num_rows else {}
    committer = Committer(features, application, base, report.run_id, parts)
    report.recalled = committer.recall(todo, extractor.id)
    if todo.todo.num_rows:
        left = todo.todo
        with (
            causes(),
            Progress(todo.todo.num_rows) as progress,
            waiting_said(progress.say, "ExtractFeatures", "to run side by side, give each --max-cpus or --max-gpus", 1),
        ):
            while left.num_rows:
                try:
                    for written in _pipeline(left, table, extractor, weights, settings, report.run_id, address, decode):
                        committer.add(written)
                        waits = committer.waiting_bytes >= settings.shard_bytes
                        if waits or committer.waited_s >= settings.commit_every_s:
                            committer.commit()
                            progress.committed(committer.totals)
                        progress.update(committer.totals)
                    left = left.slice(0, 0)
                except PoolsMisfit as misfit:
                    committer.commit()
                    left = planned(clips, features, extractor, settings).todo
                    progress.say(f"{misfit}; the pools are sized again, {left.num_rows} clips to go")
            committer.commit()
            progress.committed(committer.totals)
    report.take(committer.totals, time.time())
    report.version = table.version()
    report.wall_s = time.perf_counter() - started
    write_run(features, report.run_id, asdict(report))
    return report


def _pipeline(
    todo: "pa.Table",
    table: "FeatureTable",
    extractor: "Extractor",
    weights: str | None,
    settings: Settings,
    run_id: str,
    address: str | None,
    decode: "Callable[..., pa.Table] | None",
) -> "Iterator[Written]":
    """The stages and their resources, first to last; yields what each write task did as it ends."""
    import pyarrow as pa
    import ray
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    from cluster.connect import connect, working_nodes
    from cluster.pools import pool_options
    from cluster.resizing import watch
    from pthnet.pixels import shipped_size
    from tasks.decode_rows import decode_rows, in_parts
    from tasks.extract import ExtractFeatures
    from tasks.segments import SegmentLimits, blocks, cut, probe_rows, whole_rows, without_done
    from workflows.extract_stream import bounded, quiet, shards

    resources = connect(address)
    pools = pools_now(settings)
    shipped = shipped_size(extractor.precision, extractor.image_size)
    image_size = shipped[0] if shipped else None
    limits = SegmentLimits(frames=settings.segment_frames)
    where = pool_options(settings.decode_on) if pools.decode_cpus else working_nodes()
    decode_options = {"num_cpus": pools.decode_cpus, **where}

    if decode is None:
        # A core each, also where decoding reserves none later: else Ray starts a process for every block at once.
        probing = ray.remote(probe_rows).options(num_cpus=pools.decode_cpus or 1, **where)
        parts = blocks(todo, pools.decode_tasks, most_rows=256)
        probed = pa.concat_tables(ray.get([probing.remote(part, limits, image_size) for part in parts]))
    else:
        probed = whole_rows(todo)
    segments = without_done(cut(probed), table.keys(extractor.id), extractor.id)
    long = any(count > 1 for count in segments["num_segments"].unique().to_pylist())
    fitting = max(1, AHEAD_BYTES // limits.bytes_at(image_size))

    rows = (
        bounded(
            quiet(ray.data.from_arrow(blocks(segments, pools.decode_tasks + pools.gpu_actors))),
            AHEAD_BYTES * (pools.decode_tasks + pools.gpu_actors),
        )
        .map_batches(
            partial(
                in_parts,
                decode=decode or decode_rows,
                part_rows=max(1, DECODE_MEMORY // limits.bytes_at(image_size)),
                image_size=image_size,
                timeout_s=settings.decode_timeout_s,
                whole_limit=settings.segment_frames * WHOLE_MARGIN,
                tail=extractor.tail,
            ),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=TaskPoolStrategy(size=pools.decode_tasks),
            memory=DECODE_MEMORY,  # and with it unlike the next stage, which Ray Data would else fuse this one into
            **decode_options,
        )
        .map_batches(
            ExtractFeatures,
            fn_constructor_args=(extractor,),
            fn_constructor_kwargs={
                "weights": weights,
                "device": pools.device,
                "threads": forward_threads(resources, pools),
                "micro_batch": settings.micro_batch,
                "measure": settings.measure,
            },
            batch_size=min(settings.batch_clips, fitting) if long else settings.batch_clips,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ActorPoolStrategy(size=pools.gpu_actors),  # fixed: a pool that breathes reloads weights
            num_cpus=pools.actor_cpus,
            num_gpus=pools.actor_gpus,
            **pool_options(settings.forward_on),
        )
    )
    watched = watch(rows, pools, partial(pools_now, settings), settings.patience)
    yield from shards(watched, table.uri, extractor.id, run_id, settings)
