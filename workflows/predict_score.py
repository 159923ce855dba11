"""Which clips have features and which were refused, and the scores of the former, chunk by chunk into the tables."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from tasks.bundle import Bundle
    from tasks.report_page import PageClip

CHUNK_CLIPS = 512  # clips scored together
CHUNK_BYTES = 4 << 30  # of their files: bounds the windows of long videos held at once


def complete_clips(clips: "pa.Table", table: str, extractor_id: str) -> "pa.Table":
    """The clips whose features, of this very content, are in the table; sorted by clip_id."""
    from storage.columns import complete
    from storage.features import FeatureTable

    keys = complete(FeatureTable(table).keys(extractor_id)).select(["clip_id", "content"])
    return clips.join(keys, keys=["clip_id", "content"], join_type="left semi").sort_by("clip_id")


def divided(clips: "pa.Table", table: str, extractor_id: str) -> tuple["pa.Table", "pa.Table"]:
    """Clips with features, and the others with what quarantine says of them (schema QUARANTINED)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from storage import quarantine
    from storage.features import FeatureTable
    from tasks.predictions import QUARANTINED

    known = complete_clips(clips, table, extractor_id)
    rest = clips.join(known.select(["clip_id"]), keys="clip_id", join_type="left anti").select(["clip_id", "uri"])
    keys = FeatureTable(table).keys(extractor_id, times=True)
    standing = quarantine.standing(quarantine.read(table, extractor_id), keys)
    why = standing.select(["clip_id", "stage", "kind", "detail"])
    refused = rest.join(why, keys="clip_id", join_type="left outer").sort_by("clip_id")
    kind = pc.fill_null(refused["kind"], "not_extracted")
    columns = [refused["clip_id"], refused["uri"], refused["stage"], kind, refused["detail"]]
    return known, pa.table(columns, schema=QUARANTINED)


def score_known(
    known: "pa.Table",
    table: str,
    bundle: "Bundle",
    out: Path,
    device: str,
    context: int,
    evidence: bool,
    shown: "list[tuple[PageClip, str]] | None",
) -> dict[str, Any]:
    """Score all clips with features, holding no more than a chunk's features; fill `shown` if given."""
    from storage.features import FeatureTable
    from tasks.predictions import PredictionFiles, clip_rows, clips_schema, window_rows, windows_schema
    from tasks.score import score_clips
    from workflows.predict_pictures import page_clips

    features = FeatureTable(table)
    version = features.version()
    labels: list[str] = []
    with (
        PredictionFiles(out, "clips", clips_schema(bundle.classes)) as clip_files,
        PredictionFiles(out, "windows", windows_schema(bundle.classes)) as window_files,
    ):
        for chunk in chunks(known):
            ids, contents = chunk["clip_id"].to_pylist(), chunk["content"].to_pylist()
            loaded = {
                direction: features.load(ids, direction, bundle.extractor_id, version, contents=contents)
                for direction in bundle.networks
            }
            scores = score_clips(bundle, loaded, device=device, context=context, evidence=evidence)
            rows = clip_rows(scores, chunk["uri"].to_pylist(), bundle.classes)
            clip_files.add(rows)
            window_files.add(window_rows(scores, bundle.classes))
            labels += rows["label"].to_pylist()
            if shown is not None:
                shown.extend(page_clips(scores, chunk, bundle.classes))
    return {"clips": clip_files.rows, "windows": window_files.rows, "labels": counted(labels)}


def chunks(clips: "pa.Table") -> "Iterator[pa.Table]":
    """Slices of at most CHUNK_CLIPS clips and, beyond the first, CHUNK_BYTES of their files."""
    begin, held = 0, 0
    for index, size in enumerate(clips["size"].to_pylist()):
        if index > begin and (index - begin >= CHUNK_CLIPS or held + size > CHUNK_BYTES):
            yield clips.slice(begin, index - begin)
            begin, held = index, 0
        held += size
    if begin < clips.num_rows:
        yield clips.slice(begin)


def counted(values: Sequence[str]) -> dict[str, int]:
    """How often each value is there, the most frequent first."""
    from collections import Counter

    return dict(Counter(values).most_common())
