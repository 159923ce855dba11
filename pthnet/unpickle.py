"""Read what torch.save wrote, and run nothing.

Published checkpoints hold pickled instances of classes from their training scripts. `pickle` would import and call what
such a file names. This reader is a machine of its own for pickle's instructions: a name in the file stays a name
(`Named`), calling one of the few tensor rebuilders yields a description of a tensor, and calling, building or updating
anything else yields `Inert`. It looks up no attribute, imports nothing and calls nothing the file chose, so there is
nothing for a file to get hold of.
"""

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from pthnet.errors import ModelError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DAMAGE = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    struct.error,
)
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_V3_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES.values()}
_TENSOR_V2 = {("torch._utils", "_rebuild_tensor"), ("torch._utils", "_rebuild_tensor_v2")}
_TENSOR_V3 = ("torch._utils", "_rebuild_tensor_v3")
_PARAMETER = {("torch._utils", "_rebuild_parameter"), ("torch._utils", "_rebuild_parameter_with_state")}


@dataclass(frozen=True)
class Named:
    """A global the file mentions; never looked up."""

    module: str
    name: str


class Inert:
    """Stands where the file wanted an object of some class."""


@dataclass(frozen=True, eq=False)
class _Storage:
    key: str
    dtype: torch.dtype | None
    numel: int


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor of the file; its bytes are read when `load` is called."""

    storage: _Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    read: Callable[[str], bytes]

    def load(self) -> Tensor:
        """Read it from the file, which must still be there."""
        data = bytearray(self.read(self.storage.key))
        if not data:
            return torch.empty(self.shape, dtype=self.dtype)
        try:
            return torch.frombuffer(data, dtype=self.dtype).as_strided(self.shape, self.stride, self.offset).clone()
        except (ValueError, RuntimeError) as error:
            raise ModelError(
                f"tensor data {self.storage.key} does not hold a tensor {list(self.shape)}: {error}"
            ) from error


def read_checkpoint(path: str | Path) -> Any:
    """Read a file of torch.save, in the zip layout or the one before 1.6.

    Parameters
    ----------
    path : path of the file

    Returns
    -------
    What was saved, as dicts, lists, tuples, sets, numbers, strings, `StoredTensor` and, for everything else, `Named`
    and `Inert`.

    Raises
    ------
    ModelError
        Not such a file, or a damaged one.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                return _read_zip(path)
            file.seek(0)
            return _read_legacy(path, file)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (*_DAMAGE, zipfile.BadZipFile) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"{path}: not a PyTorch checkpoint, or a damaged one ({error}); fetch the file again"
        ) from error


def _read_zip(path: Path) -> Any:
    archive = zipfile.ZipFile(path)  # stays open as long as a StoredTensor may ask for its bytes
    names = archive.namelist()
    root = next((name.removesuffix("data.pkl") for name in sorted(names) if name.endswith("/data.pkl")), None)
    if root is None:
        raise ModelError(f"{path}: a zip file without data.pkl, so not a PyTorch checkpoint")
    if f"{root}byteorder" in names and _entry(archive, f"{root}byteorder") != b"little":
        raise ModelError(f"{path}: written on a big-endian machine; save it again on a little-endian one")

    def read(key: str) -> bytes:
        try:
            return _entry(archive, f"{root}data/{key}")
        except (KeyError, ValueError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise ModelError(
                f"{path}: tensor data {key} is missing or damaged ({error}); fetch the file again"
            ) from error

    return _run(io.BytesIO(_entry(archive, f"{root}data.pkl")), read)


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:  # torch never compresses; a small file must not unfold to a huge one
        raise ValueError(f"{name} is compressed")
    return archive.read(info)


def _read_legacy(path: Path, file: BinaryIO) -> Any:
    found: dict[str, tuple[int, int]] = {}
    sizes: dict[str, int] = {}

    def read(key: str) -> bytes:
        if key not in found:
            raise ModelError(f"{path}: tensor data {key} is missing; fetch the file again")
        at, length = found[key]
        with path.open("rb") as again:
            again.seek(at)
            data = again.read(length)
        if len(data) != length:
            raise ModelError(f"{path}: ends within tensor data {key}; fetch the file again")
        return data

    if _run(file, read) != LEGACY_MAGIC:
        raise ValueError("no PyTorch signature")
    _run(file, read), _run(file, read)  # protocol version, sizes of C types
    saved = _run(file, read, sizes)
    keys = _run(file, read)
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        length = count * sizes[key]
        found[key] = (file.tell(), length)
        file.seek(length, io.SEEK_CUR)
    return saved


def _run(file: BinaryIO, read: Callable[[str], bytes], sizes: dict[str, int] | None = None) -> Any:
    """Execute one pickle as data; `sizes` collects the bytes an element of each storage takes."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    def update(target: Any, items: list[Any]) -> None:
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                if isinstance(key, str | int | float | bytes | None):
                    target[key] = value

    for opcode, arg, _ in pickletools.genops(file):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "POP":
                stack.pop()
            case "POP_MARK":
                since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_SET":
                stack.append(Inert())
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                if len(stack) < count:
                    raise ValueError("a tuple of more items than there are")
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "LIST":
                stack.append(since_mark())
            case "DICT":
                made: dict[Any, Any] = {}
                update(made, since_mark())
                stack.append(made)
            case "FROZENSET" | "INST" | "OBJ":
                since_mark()
                stack.append(Inert())
            case "APPEND":
                item = stack.pop()
                if isinstance(stack[-1], list):
                    stack[-1].append(item)
            case "APPENDS":
                items = since_mark()
                if isinstance(stack[-1], list):
                    stack[-1].extend(items)
            case "SETITEM":
                pair = stack[-2:]
                del stack[-2:]
                update(stack[-1], pair)
            case "SETITEMS":
                items = since_mark()
                update(stack[-1], items)
            case "ADDITEMS":
                since_mark()
            case "BUILD":  # what an object would have taken as its state
                stack.pop()
            case "GLOBAL":
                module, name = str(arg).split(" ", 1)
                stack.append(Named(module, name))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(
                    Named(str(module), str(name)) if isinstance(name, str) and isinstance(module, str) else Inert()
                )
            case "REDUCE" | "NEWOBJ":
                args, called = stack.pop(), stack.pop()
                stack.append(_called(called, args, read))
            case "NEWOBJ_EX":
                del stack[-3:]
                stack.append(Inert())
            case "BINPERSID":
                stack.append(_storage(stack.pop(), sizes))
            case "PERSID" | "EXT1" | "EXT2" | "EXT4" | "NEXT_BUFFER" | "READONLY_BUFFER":
                raise ValueError(f"pickle instruction {opcode.name}, which torch.save never writes")
            case _:  # numbers, strings and bytes: the operand is the value
                stack.append(arg)
    raise ValueError("the pickle has no end")


def _called(called: Any, args: Any, read: Callable[[str], bytes]) -> Any:
    """What a call in the file stands for. Only these few have a meaning."""
    if not isinstance(called, Named) or not isinstance(args, tuple):
        return Inert()
    name = (called.module, called.name)
    if name == ("collections", "OrderedDict") and not args:
        return {}
    if name in _PARAMETER and args:
        return args[0]
    if name == ("torch", "Size") and len(args) == 1:
        return args[0]
    if (name in _TENSOR_V2 or name == _TENSOR_V3) and len(args) >= 4 and isinstance(args[0], _Storage):
        storage, offset, shape, stride = args[:4]
        dtype = storage.dtype
        if name == _TENSOR_V3:
            dtype = _V3_DTYPES.get(args[6].name) if len(args) > 6 and isinstance(args[6], Named) else None
        integers = [offset, *shape, *stride]
        if any(type(value) is not int or value < 0 for value in integers) or len(shape) != len(stride):
            raise ValueError("a tensor whose shape is not made of whole numbers")
        if dtype is None or math.prod(shape) > max(
            storage.numel, 1
        ):  # strides of 0 could unfold a byte into a terabyte
            return Inert()
        return StoredTensor(storage, dtype, offset, tuple(shape), tuple(stride), read)
    return Inert()


def _storage(persistent: Any, sizes: dict[str, int] | None) -> _Storage:
    if not isinstance(persistent, tuple) or len(persistent) < 5 or persistent[0] != "storage":
        raise ValueError("an unknown kind of tensor data")
    kind, key, numel = persistent[1], persistent[2], persistent[4]
    if not isinstance(kind, Named) or not isinstance(key, str) or type(numel) is not int:
        raise ValueError("an unknown kind of tensor data")
    if len(persistent) > 5 and persistent[5] is not None:
        raise ValueError("views of tensor data, a layout of PyTorch before 0.4; save the file again with a newer one")
    dtype = _DTYPES.get(kind.name)
    if sizes is not None:
        sizes[key] = dtype.itemsize if dtype is not None else 1
    return _Storage(key, dtype, numel)
