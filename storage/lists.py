r"""Annotation lists: which clip has which label.

Forms read:
- text, "<path> <count> <label>" a line, split from the right, so that paths may hold spaces. The path ends in .npy
  (count = windows) or names a folder of frames or a video (count = frames).
- CSV with the columns filePath,expression (images), or clip_id or uri, and label, split, count as they come.
- Parquet with the latter columns.

clip_id of a path: "\" becomes "/", a drive letter, "./" and leading "/" go, and so do the suffix of a feature file,
video or image and everything up to and including "get_features/<dataset>/th14_vit_g_16_<stride>..../". What `strip`
names is then taken off the front. "D:\get_features\FERV39k\th14_vit_g_16_16\Crime\Angry\0063.npy" is
"Crime/Angry/0063", the id that a source whose root holds Crime/ gives the video.
"""

import csv
import hashlib
import io
import os
import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from storage import files
from storage.clips import stem
from storage.errors import StorageError

LIST = pa.schema([("clip_id", pa.string()), ("label", pa.int32()), ("count", pa.int32())])
_FEATURE_FOLDER = re.compile(r"(?:^|/)th14_vit_g_16_(\d+)[^/]*/")
_FEATURE_ROOT = re.compile(r"^.*?(?:^|/)get_features/[^/]+/")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a list, as it stands there."""

    clip_id: str
    uri: str | None  # the path as written
    label: str | None
    count: int | None
    split: str | None
    line: int  # where it stands, from 1


def clip_id_of(path: str, strip: str = "") -> str:
    """The clip id that a list's path names (see above)."""
    path = re.sub(r"^[A-Za-z]:", "", path.strip().replace("\\", "/"))
    if match := _FEATURE_FOLDER.search(path):
        path = path[match.end() :]
    else:
        path = _FEATURE_ROOT.sub("", path)
    while path.startswith(("./", "/")):
        path = path[2:] if path.startswith("./") else path[1:]
    path = path.removesuffix(".npy").rstrip("/")
    prefix = _without_scheme(strip).replace("\\", "/").strip("/")
    if prefix and path.startswith(prefix + "/"):
        path = path[len(prefix) + 1 :]
    return stem(path)


def read_rows(path: str, *, strip: str = "") -> list[Row]:
    """The rows of a list in any of the forms; absolute paths lose `strip`, by default the folder of the list.

    Raises
    ------
    StorageError
        For a missing or empty list, or a row that cannot be read; it names the line.
    """
    if not strip:
        folder = path.rpartition("/")[0]
        strip = folder if files.is_s3(path) else os.path.abspath(files.local_path(folder))
    try:
        data = files.read_bytes(path)
    except FileNotFoundError:
        raise StorageError(f"{path}: no such list") from None
    if path.lower().endswith(".parquet"):
        rows = _parquet_rows(path, data, strip)
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise StorageError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from None
        rows = _csv_rows(path, text, strip) if path.lower().endswith(".csv") else _text_rows(path, text, strip)
    if not rows:
        raise StorageError(f"{path} holds no rows")
    return rows


def _text_rows(path: str, text: str, strip: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        parts = line.strip().rsplit(None, 2)
        if len(parts) != 3 or not re.fullmatch(r"\d+", parts[1]) or not re.fullmatch(r"-?\d+", parts[2]):
            raise StorageError(
                f"{path}, line {number}: expected '<path> <count> <label>', found {line.strip()[:120]!r}"
            )
        rows.append(Row(clip_id_of(parts[0], strip), parts[0], parts[2], int(parts[1]), None, number))
    return rows


_COLUMNS = {"filepath": "uri", "path": "uri", "uri": "uri", "expression": "label", "label": "label"}
_COLUMNS |= {"clip_id": "clip_id", "split": "split", "count": "count"}


def _csv_rows(path: str, text: str, strip: str) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""))
    header = next(reader, [])
    names = [_COLUMNS.get(name.strip().lower(), "") for name in header]
    if "uri" not in names and "clip_id" not in names:
        raise StorageError(
            f"{path}: expected a CSV header with filePath, uri or clip_id, found {','.join(header)[:120]!r}"
        )
    rows = []
    for values in reader:
        if not any(value.strip() for value in values):
            continue
        if len(values) != len(header):
            raise StorageError(
                f"{path}, line {reader.line_num}: {len(values)} fields under {len(header)} names; quote its commas"
            )
        fields = {name: value.strip() for name, value in zip(names, values, strict=True) if name}
        rows.append(_row(path, fields, reader.line_num, strip))
    return rows


def _parquet_rows(path: str, data: bytes, strip: str) -> list[Row]:
    try:
        table = pq.read_table(io.BytesIO(data))
    except pa.ArrowInvalid as error:
        raise StorageError(f"{path} is no Parquet file ({files.scrub(str(error))})") from None
    names = {name: _COLUMNS.get(name.lower(), "") for name in table.column_names}
    if not {"uri", "clip_id"} & set(names.values()):
        raise StorageError(f"{path}: expected a column clip_id or uri, found {', '.join(table.column_names)}")
    rows = []
    for number, values in enumerate(table.to_pylist(), 1):
        fields = {names[name]: "" if value is None else str(value) for name, value in values.items() if names[name]}
        rows.append(_row(path, fields, number, strip))
    return rows


def _row(path: str, fields: dict[str, str], line: int, strip: str) -> Row:
    uri = fields.get("uri") or None
    clip_id = fields.get("clip_id") or (clip_id_of(_without_scheme(uri), strip) if uri else "")
    if not clip_id:
        raise StorageError(f"{path}, line {line}: neither clip_id nor uri")
    count = fields.get("count") or None
    if count is not None and not count.isdecimal():
        raise StorageError(f"{path}, line {line}: count is a whole number, not {count!r}")
    label = fields.get("label") or None
    return Row(clip_id, uri, label, int(count) if count else None, fields.get("split") or None, line)


def _without_scheme(uri: str) -> str:
    return files.split_s3(uri)[1] if files.is_s3(uri) else uri.removeprefix("file://")


def read_list(
    path: str, *, split: str | None = None, strip: str = "", class_names: tuple[str, ...] | list[str] = ()
) -> pa.Table:
    """A list as a table of clip_id, label (int32) and count (int32, null where the list has none).

    Parameters
    ----------
    path
        The list, local or s3://.
    split
        Keep the rows of this split only (CSV, Parquet).
    strip
        Folder to take off the front of every path.
    class_names
        Lets labels be written as names.

    Returns
    -------
    pa.Table
        LIST. Its schema's metadata say what count counts: unit ("windows", "frames" or ""), and for windows the stride.

    Raises
    ------
    StorageError
        For rows that cannot be read, and a clip that stands in the list twice with different labels.
    """
    rows = read_rows(path, strip=strip)
    if split is not None:
        present = sorted({row.split for row in rows if row.split})
        rows = [row for row in rows if row.split == split]
        if not rows:
            raise StorageError(f"{path} has no split {split!r}; present: {', '.join(present) or 'none'}")
    by_name = {name.lower(): index for index, name in enumerate(class_names)}
    seen: dict[str, tuple[int, Row]] = {}
    for row in rows:
        label = _label(path, row, by_name)
        other = seen.setdefault(row.clip_id, (label, row))
        if other[0] != label:
            raise StorageError(
                f"{path}, line {row.line}: {row.clip_id!r} has label {label}, but {other[0]} in line {other[1].line}"
            )
    labels, kept = zip(*seen.values(), strict=True)
    counts = [row.count for row in kept]
    table = pa.table(
        [
            pa.array(list(seen), pa.string()),
            pa.array(labels, pa.int32()),
            pa.array(counts, pa.int32()),
        ],
        schema=LIST,
    )
    return table.replace_schema_metadata(_unit(kept[0]))


def _unit(row: Row) -> dict[str, str]:
    if row.count is None or row.uri is None:
        return {"unit": "", "stride": ""}
    match = _FEATURE_FOLDER.search(row.uri.replace("\\", "/"))
    return {"unit": "windows" if row.uri.endswith(".npy") else "frames", "stride": match.group(1) if match else ""}


def _label(path: str, row: Row, by_name: dict[str, int]) -> int:
    text = row.label or ""
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if text.lower() in by_name:
        return by_name[text.lower()]
    expected = f"a number or one of {', '.join(by_name)}" if by_name else "a number (or name the classes)"
    raise StorageError(f"{path}, line {row.line}: label {text!r} of {row.clip_id!r}; expected {expected}")


def check_labels(
    table: pa.Table, num_classes: int, class_names: tuple[str, ...] | list[str] = (), path: str = "list"
) -> None:
    """Refuse labels outside 0 .. num_classes - 1.

    Raises
    ------
    StorageError
        Naming the first row (clip and place in the list) and the label.
    """
    for index, (clip_id, label) in enumerate(
        zip(table["clip_id"].to_pylist(), table["label"].to_pylist(), strict=True)
    ):
        if not 0 <= label < num_classes:
            names = f" ({', '.join(class_names)})" if class_names else ""
            raise StorageError(
                f"{path}, row {index + 1}: clip {clip_id!r} has label {label}; expected 0 to {num_classes - 1}{names}"
            )


def list_digest(table: pa.Table) -> str:
    """SHA-256 of a list's clips and labels, whatever their order and form."""
    pairs = sorted(zip(table["clip_id"].to_pylist(), table["label"].to_pylist(), strict=True))
    return hashlib.sha256("".join(f"{clip_id}\t{label}\n" for clip_id, label in pairs).encode()).hexdigest()


def write_list(table: pa.Table, path: str) -> None:
    """Write a list, its form by the suffix: .csv or .parquet with all its columns, else text in the published form."""
    if path.lower().endswith(".parquet"):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        files.write_atomic(path, sink.getvalue())
        return
    rows = table.to_pylist()
    out = io.StringIO(newline="")
    if path.lower().endswith(".csv"):
        writer = csv.DictWriter(out, table.column_names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        if bad := [row["clip_id"] for row in rows if row.get("count") is None]:
            raise StorageError(f"a text list needs a count for every clip; {bad[0]!r} has none. Write .csv instead")
        out.writelines(f"{row['clip_id']} {row['count']} {row['label']}\n" for row in rows)
    files.write_atomic(path, out.getvalue().encode())
