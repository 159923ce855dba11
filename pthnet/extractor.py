"""What features are a fact about, beside the clip: backbone, weights, window and pixel rules, precision."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pthnet.errors import ModelError
from pthnet.windows import DIRECTIONS, STRIDES, TAILS

if TYPE_CHECKING:
    from torch import Tensor

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """Everything that decides the value of a feature. Two extractors with the same id give the same features.

    Attributes
    ----------
    backbone : str
        Readable name, as "videomae-giant".
    config : dict
        The backbone's sizes; `image_size` and `dim` at least.
    weights : str
        `digest_state_dict` of the weights.
    precision : {"fp32", "bf16"}
    stride : int
        Of the extracted grid. The levels are 4, 8 and 16, so it is 4.
    tail : {"cover", "drop"}
    normalize : {"none", "imagenet"}
    directions : tuple of "forward", "reverse"
    seed : int or None
        Of random weights; None for weights that were loaded.
    """

    backbone: str
    config: dict[str, Any] = field(hash=False)
    weights: str
    precision: str
    stride: int = 4
    tail: str = "cover"
    normalize: str = "none"
    directions: tuple[str, ...] = DIRECTIONS
    seed: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "directions", tuple(d for d in DIRECTIONS if d in self.directions) or self.directions)
        checks: list[tuple[str, Any, tuple[Any, ...]]] = [
            ("precision", self.precision, PRECISIONS),
            ("tail", self.tail, TAILS),
            ("normalize", self.normalize, ("none", "imagenet")),
            ("stride", self.stride, (STRIDES["high"],)),
            *(("directions", direction, DIRECTIONS) for direction in self.directions or ("",)),
        ]
        for name, value, allowed in checks:
            if value not in allowed:
                raise ModelError(f"{name} must be {' or '.join(map(str, allowed))}; found {value!r}")
        missing = {"image_size", "dim"} - set(self.config)
        if missing:
            raise ModelError(
                f"an extractor's config needs {' and '.join(sorted(missing))}; found {sorted(self.config)}"
            )

    @property
    def id(self) -> str:
        """Readable name that ends in 8 hex digits of the spec's digest: "videomae-giant-224-bf16-1a2b3c4d"."""
        readable = "".join(c if c.isascii() and c.isalnum() else "-" for c in self.backbone.lower()).strip("-")
        digest = hashlib.sha256(self.to_json().encode()).hexdigest()[:8]
        return f"{readable}-{self.image_size}-{self.precision}-{digest}"

    @property
    def dim(self) -> int:
        """Length of a feature."""
        return int(self.config["dim"])

    @property
    def image_size(self) -> int:
        """Side of the backbone's input, in pixels."""
        return int(self.config["image_size"])

    def to_json(self) -> str:
        """The full spec, canonical: equal extractors give equal text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Extractor":
        """Read back what `to_json` wrote."""
        try:
            fields = json.loads(text)
            fields["directions"] = tuple(fields["directions"])
            return cls(**fields)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ModelError(f"not an extractor's spec ({error}): {text[:80]!r}") from error


def digest_state_dict(state: "Mapping[str, Tensor]") -> str:
    """Fingerprint of weights: sha256 over names, types, shapes and bytes, in the order of the names.

    Take it before weights are cast, so that one set of weights has one fingerprint whatever it runs in.

    Returns
    -------
    str
        64 hex digits; the same whether the weights came from a pickle or from safetensors.
    """
    import torch

    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        sha.update(f"{name}:{str(tensor.dtype).removeprefix('torch.')}:{list(tensor.shape)};".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
