"""Read Paddle's .pdparams files: pickled dicts of NumPy arrays. Arrays come out, no code is run.

state = swin_from_paddle(read_pdparams("coarse.pdparams"))
"""

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from pthnet.errors import ModelError

_NUMPY_NAMES = {"ndarray", "dtype", "_reconstruct", "_frombuffer", "scalar"}
_NUMPY_MODULES = {
    "numpy",
    "numpy.core.multiarray",
    "numpy._core.multiarray",
    "numpy.core.numeric",
    "numpy._core.numeric",
}


def read_pdparams(source: str | Path | bytes) -> dict[str, np.ndarray]:
    """Arrays of a .pdparams file by their Paddle names.

    Parameters
    ----------
    source
        Path, or the file's bytes.

    Returns
    -------
    dict of name -> array, in the file's order. A dict inside a dict ("model", "state_dict") is opened.

    Raises
    ------
    ModelError
        The file is no pickle, asks for anything but arrays and plain containers, or holds no array.
    """
    name = "the given bytes" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {name}: {error.strerror}; give the path of a .pdparams file") from None
    try:
        loaded = _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
    except ModelError:
        raise
    except Exception as error:  # a malformed pickle may raise nearly anything
        raise ModelError(
            f"{name} is no readable .pdparams ({type(error).__name__}: {error}); expected what paddle.save writes"
        ) from None
    while isinstance(loaded, Mapping):
        inner = [loaded[key] for key in ("state_dict", "model", "network") if isinstance(loaded.get(key), Mapping)]
        if not inner:
            break
        loaded = inner[0]
    if not isinstance(loaded, Mapping):
        raise ModelError(f"{name} holds a {type(loaded).__name__}, expected a dict of arrays")
    arrays = {key: array for key, value in loaded.items() if (array := _array(value)) is not None}
    arrays = _joined(arrays, loaded.get("UnpackBigParamInfor@@"))
    if not arrays:
        raise ModelError(f"{name} holds no arrays; expected the parameters that paddle.save wrote")
    return arrays


def swin_from_paddle(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Paddle Swin parameters under torch names and in torch layout.

    Linear weights are stored [in, out] by Paddle and [out, in] here, so every two-dimensional `weight` is transposed.
    Reads PaddleViT's names (patch_embedding, stages, fc) and the original ones (patch_embed, layers, head).

    Parameters
    ----------
    arrays
        What `read_pdparams` gave.
    """
    state = {}
    for key, value in arrays.items():
        name = re.sub(r"^(_layers|module|model|backbone)\.", "", key)
        name = name.replace("patch_embedding.patch_embed.", "patch_embed.proj.")
        name = name.replace("patch_embedding.", "patch_embed.")
        name = re.sub(r"^stages\.", "layers.", name)
        name = re.sub(r"^(fc|head\.fc|head)\.(weight|bias)$", r"head.fc.\2", name)
        name = re.sub(r"\._mean$", ".running_mean", re.sub(r"\._variance$", ".running_var", name))
        linear = value.ndim == 2 and name.endswith(".weight")
        state[name] = np.ascontiguousarray(value.T if linear else value)
    return state


class _ArraysOnly(pickle.Unpickler):
    """Finds NumPy's array constructors and plain containers; any other name is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        if module in _NUMPY_MODULES and name in _NUMPY_NAMES:
            if name in ("ndarray", "dtype"):
                return getattr(np, name)
            home = "numpy._core.numeric" if name == "_frombuffer" else "numpy._core.multiarray"
            return getattr(import_module(home), name)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module in ("builtins", "__builtin__") and name == "tuple":
            return tuple
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise ModelError(f"a .pdparams file holds arrays only, this one asks for {module}.{name}; it was not run")

    def persistent_load(self, pid: Any) -> Any:
        raise ModelError("a .pdparams file has no persistent ids; this is another kind of pickle")


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """How protocol 2 spells bytes; no other codec is looked up."""
    if encoding not in ("latin1", "latin-1"):
        raise ModelError(f"unexpected codec {encoding!r} in a .pdparams file")
    return text.encode("latin1")


def _array(value: Any) -> np.ndarray | None:
    """The array of an entry; newer Paddle pairs it with the tensor's name."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        value = value[1]
    return value if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" else None


def _joined(arrays: dict[str, np.ndarray], plan: Any) -> dict[str, np.ndarray]:
    """Put the slices of arrays over 1 GB, which older pickle protocols cannot hold, together again."""
    for name, info in plan.items() if isinstance(plan, Mapping) else ():
        try:
            parts = [arrays.pop(part) for part in info["slices"]]
            arrays[name] = np.concatenate([part.ravel() for part in parts]).reshape(info["OriginShape"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the slices of {name!r} do not fit together: {error}; the file is damaged") from None
    return arrays
