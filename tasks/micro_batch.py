"""How many windows go through the backbone at once: found once per device, then remembered on the node."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES = (8, 16, 32, 64, 128)
WORTH = 1.03  # a larger micro-batch must be this much faster: it costs memory and padding


def fastest(rate: Callable[[int], float], sizes: tuple[int, ...] = SIZES) -> int:
    """The smallest size that is nearly as fast as the fastest; one that measured slow by chance ends nothing.

    Parameters
    ----------
    rate
        Windows per second at a size; raises torch.OutOfMemoryError where the size does not fit.
    sizes
        Ascending; the first must fit.
    """
    import torch

    rates = {sizes[0]: rate(sizes[0])}
    for size in sizes[1:]:
        try:
            rates[size] = rate(size)
        except torch.OutOfMemoryError:
            break
    best = max(rates.values())
    return next(size for size, found in rates.items() if found * WORTH >= best)


def remembered(key: str, find: Callable[[], int], path: Path | None = None) -> int:
    """What was found for a device before, else find it and keep it.

    Parameters
    ----------
    key
        Device, encoder, precision and library version.
    path
        JSON file; by default in the user's cache directory. One that cannot be read or written is done without.
    """
    path = path or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pthnet" / "micro_batch.json"
    known = _read(path)
    if isinstance(known.get(key), int):
        return int(known[key])
    found = find()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps({**_read(path), key: found}, indent=1))
        os.replace(unfinished, path)
    except OSError as error:
        print(f"micro-batch {found} is not remembered: {error}")
    return found


def micro_batch_of(backbone: Any) -> int:
    """The micro-batch for a backbone on a GPU, measured eagerly: compiling every candidate would take longer."""
    import torch

    from pthnet.backbone import NullBackbone

    if isinstance(backbone, NullBackbone):
        return backbone.micro_batch
    name = torch.cuda.get_device_name(backbone.device)
    extractor = backbone.extractor
    key = f"{name}, {extractor.backbone} {extractor.image_size} {extractor.precision}, torch {torch.__version__}"

    def find() -> int:
        found = fastest(lambda size: backbone.rate(size, compiled=False, seconds=0.3))
        torch.cuda.empty_cache()  # what the largest took
        return found

    return remembered(key, find)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
