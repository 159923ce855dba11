"""Features of one short clip in this process, without a cluster and without a table: what answers a request.

The same decode child, pixel rule and windows as the extraction pipeline, so the features are the pipeline's.
"""

import threading
from typing import Any

import numpy as np

from pthnet.errors import ModelError
from pthnet.extractor import Extractor
from pthnet.windows import frame_indices, pyramid
from storage.errors import StorageError
from storage.sources import list_clips

MOST_FRAMES = 1024  # of a clip in one request; longer ones are for `pthnet predict`
# A clip of a few seconds has some ten windows: padding them to the pipeline's 64 would take several times as long, and
# compiling the encoder's blocks would keep the first request waiting for seconds.
GPU_MICRO_BATCH = 8


class DirectExtractor:
    """A backbone and a decode child, kept warm. Calls from several threads wait for each other.

    Parameters
    ----------
    extractor
        What to compute.
    weights
        Path or URI of the backbone's weights; None draws them from the extractor's seed.
    device
        "cuda" or "cpu".
    timeout_s
        Seconds a clip may take to decode.
    """

    def __init__(
        self, extractor: Extractor, *, weights: str | None = None, device: str = "cpu", timeout_s: float = 60.0
    ) -> None:
        from pthnet.backbone import build_backbone
        from storage.copies import local_copy
        from tasks.decode import DecodePool

        how = backbone_options(device)
        if weights is None:
            self.backbone = build_backbone(extractor, **how)
        else:
            with local_copy(weights) as path:
                self.backbone = build_backbone(extractor, weights=path, **how)
        self.extractor = extractor
        self._pool = DecodePool(workers=1, timeout_s=timeout_s)
        self._lock = threading.Lock()

    def features(self, uri: str, level: str = "high") -> dict[str, np.ndarray]:
        """Window features [windows, dim] of a clip at a level, by direction, in the direction's order.

        Raises
        ------
        ModelError
            When the clip is missing, cannot be decoded, or is longer than `MOST_FRAMES`; the message says which.
        """
        from pthnet.pixels import shipped_size
        from tasks.decode import DecodeRequest

        try:
            (clip,) = list_clips([uri]).to_pylist()
        except StorageError as error:
            raise ModelError(str(error)) from error
        except ValueError:
            raise ModelError(f"{uri} holds several clips; name one") from None
        shipped = shipped_size(self.extractor.precision, self.extractor.image_size)
        request = DecodeRequest(
            uri=clip["uri"],
            kind=clip["kind"],
            size=(shipped[1], shipped[0]) if shipped else None,
            max_frames=MOST_FRAMES,
        )
        with self._lock:
            (decoded,) = self._pool.decode([request])
            if decoded.frames is None:
                raise ModelError(f"{uri}: {decoded.kind}: {decoded.detail}")
            windows = pyramid(decoded.num_frames, self.extractor.tail)
            starts = windows.starts[windows.level(level)]
            directions = self.extractor.directions
            index = [frame_indices(starts, decoded.num_frames, name == "reverse") for name in directions]
            found = self.backbone.extract([decoded.frames], [np.concatenate(index)])[0]
        return dict(zip(directions, np.split(found, len(directions)), strict=True))

    def close(self) -> None:
        """End the decode child."""
        self._pool.close()


def backbone_options(device: str) -> dict[str, Any]:
    """How `build_backbone` makes the backbone of single requests."""
    if device.startswith("cuda"):
        return {"device": device, "micro_batch": GPU_MICRO_BATCH, "compile": False}
    return {"device": device}


def direct_extractor(bundle: Any, *, weights: str | None = None, device: str = "cpu") -> DirectExtractor:
    """The extractor whose features a model reads, ready to run here.

    Raises
    ------
    ModelError
        When the model does not know its backbone, or its weights are not there.
    """
    from tasks.model_source import backbone_weights, extractor_of

    extractor = extractor_of(bundle)
    return DirectExtractor(extractor, weights=backbone_weights(bundle, extractor, weights), device=device)
