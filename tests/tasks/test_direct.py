"""Features for single requests."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pthnet import backbone
from pthnet.backbone import build_backbone
from pthnet.extractor import Extractor
from tasks.direct import DirectExtractor
from tests import videos


@pytest.mark.parametrize(
    ("device", "expected"),
    [("cpu", {}), ("cuda", {"micro_batch": 8, "compile": False}), ("cuda:1", {"compile": False})],
)
def test_a_request_on_a_gpu_is_not_padded_to_the_pipelines_batch_nor_kept_waiting_for_a_compiler(
    device: str, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny: Extractor = build_backbone("tiny", seed=1).extractor
    asked: dict[str, Any] = {}

    def on_the_host(extractor: Extractor, **options: Any) -> Any:
        asked.update(options)
        return build_backbone(extractor, **{**options, "device": "cpu"})

    monkeypatch.setattr(backbone, "build_backbone", on_the_host)
    direct = DirectExtractor(tiny, device=device)
    direct.close()
    assert asked.pop("device") == device
    assert asked.items() >= expected.items()
    assert bool(asked) == bool(expected)


def test_a_video_has_the_same_features_on_every_device(tmp_path: Path, device: str) -> None:
    tiny: Extractor = build_backbone("tiny", seed=1, precision="fp32").extractor
    videos.encode(tmp_path / "a.mp4", frames=70)
    found = []
    for place in ("cpu", device):
        direct = DirectExtractor(tiny, device=place)
        found.append(direct.features(str(tmp_path / "a.mp4")))
        direct.close()
    for name, wanted in found[0].items():
        assert len(wanted) == 15
        np.testing.assert_allclose(found[1][name], wanted, atol=1e-4)
