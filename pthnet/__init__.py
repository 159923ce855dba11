"""The science of facial expressions in video: models, windows, losses, metrics, published checkpoints.

Names load on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "PTHNet": "pth_net",
    "PTHNetConfig": "pth_net",
    "FusedPTHNet": "pth_net",
    "VideoMAE": "videomae",
    "VideoMAEConfig": "videomae",
    "HTNet": "htnet",
    "HTNetConfig": "htnet",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pthnet' has no attribute {name!r}")
    return getattr(import_module(f"pthnet.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
