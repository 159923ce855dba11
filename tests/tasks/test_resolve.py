"""Which extractor is meant: the same names give the same id, and what cannot be meant is refused with a remedy."""

from pathlib import Path

import pytest
import torch

from pthnet.errors import ModelError
from pthnet.extractor import digest_state_dict
from pthnet.videomae import VideoMAE, VideoMAEConfig
from tasks.resolve import resolve_extractor


def test_the_same_choice_has_the_same_id_and_another_choice_another() -> None:
    plain = resolve_extractor("tiny", random_weights=0, precision="fp32")
    assert plain == resolve_extractor("tiny", random_weights=0, precision="fp32")
    others = [
        resolve_extractor("tiny", random_weights=1, precision="fp32"),
        resolve_extractor("tiny", random_weights=0, precision="bf16"),
        resolve_extractor("tiny", random_weights=0, precision="fp32", tail="drop"),
        resolve_extractor("tiny", random_weights=0, precision="fp32", normalize="imagenet"),
        resolve_extractor("tiny", random_weights=0, precision="fp32", directions=("forward",)),
    ]
    assert len({plain.id, *(other.id for other in others)}) == 6


def test_a_file_of_weights_is_known_by_what_it_holds(tmp_path: Path) -> None:
    state = VideoMAE.seeded(VideoMAEConfig.named("tiny"), 3).state_dict()
    for name, layout in (("one.pth", {"model": state}), ("two.pth", {"module": state})):
        torch.save(layout, tmp_path / name)
    paths = (str(tmp_path / name) for name in ("one.pth", "two.pth"))
    one, two = (resolve_extractor("tiny", weights=path, precision="fp32") for path in paths)
    assert one == two
    assert one.weights == digest_state_dict(state)
    assert one.seed is None


def test_auto_precision_is_that_of_the_device_named_not_of_this_machine() -> None:
    assert resolve_extractor("tiny", random_weights=0, device="cuda").precision == "bf16"
    assert resolve_extractor("tiny", random_weights=0, device="cpu").precision in ("fp32", "bf16")


@pytest.mark.parametrize("given", [{}, {"weights": "w.pth", "random_weights": 0}])
def test_weights_are_given_in_one_way(given: dict) -> None:
    with pytest.raises(ModelError, match=r"give either --weights FILE .* or --random-weights SEED"):
        resolve_extractor("tiny", **given)


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    torch.save({"model": VideoMAE.seeded(VideoMAEConfig.named("tiny"), 0).state_dict()}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"w\.pth: patch_embed\.proj\.weight is .* the model expects"):
        resolve_extractor("small", weights=str(tmp_path / "w.pth"))
    with pytest.raises(ModelError, match="unheard-of"):
        resolve_extractor("unheard-of", random_weights=0)
