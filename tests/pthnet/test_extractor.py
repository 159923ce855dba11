import re

import numpy as np
import pytest
import torch

import pthnet.backbone as backbone_module
from pthnet.backbone import NullBackbone, build_backbone, default_precision
from pthnet.errors import ModelError
from pthnet.extractor import Extractor, digest_state_dict
from pthnet.pixels import to_pixels
from pthnet.videomae import VideoMAE, VideoMAEConfig
from pthnet.windows import frame_indices, window_starts
from tests.devices import DEVICES


def spec(**changes):
    fields = {"backbone": "videomae-giant", "config": {"image_size": 224, "dim": 1408}, "weights": "ab" * 32}
    return Extractor(**{**fields, "precision": "bf16", **changes})


def clip(num_frames, size=64, seed=0):
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, size, size, 3), dtype=np.uint8)
    return frames, frame_indices(window_starts(num_frames, 4), num_frames)


@pytest.fixture(scope="module", params=DEVICES)
def tiny(request):
    return build_backbone("tiny", seed=1, precision="fp32", micro_batch=4, device=request.param)


def test_an_extractor_is_named_readably_and_ends_in_its_digest():
    assert re.fullmatch(r"videomae-giant-224-bf16-[0-9a-f]{8}", spec().id)
    assert re.fullmatch(r"[a-z0-9-]+", spec(backbone="My_Model v2.1").id)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "cd" * 32},
        {"tail": "drop"},
        {"normalize": "imagenet"},
        {"directions": ("forward",)},
        {"seed": 3},
        {"config": {"image_size": 224, "dim": 1408, "depth": 39}},
    ],
)
def test_whatever_changes_features_changes_the_id(change):
    assert spec(**change).id != spec().id


def test_an_extractor_survives_being_written_down():
    again = Extractor.from_json(spec(seed=7).to_json())
    assert again == spec(seed=7)
    assert again.id == spec(seed=7).id
    assert (again.dim, again.image_size) == (1408, 224)
    assert spec(directions=("reverse", "forward")).id == spec().id


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "fp16"},
        {"tail": "pad"},
        {"stride": 8},
        {"directions": ("up",)},
        {"directions": ()},
        {"config": {}},
    ],
)
def test_settings_that_mean_nothing_are_refused(change):
    with pytest.raises(ModelError, match="found"):
        spec(**change)
    with pytest.raises(ModelError, match="not an extractor's spec"):
        Extractor.from_json('{"dim": 3}')


def test_weights_have_one_fingerprint_however_they_are_held():
    state = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor(1.5), "c": torch.ones(3, dtype=torch.bfloat16)}
    digest = digest_state_dict(state)
    assert re.fullmatch("[0-9a-f]{64}", digest)
    strided = torch.arange(6.0).view(2, 3).t().contiguous().t()
    assert digest_state_dict({"c": state["c"], "a": state["a"], "b": strided}) == digest
    assert digest_state_dict({**state, "b": state["b"].view(3, 2)}) != digest
    assert digest_state_dict({**state, "a": torch.tensor(1.25)}) != digest


def test_seeded_backbones_carry_one_id_on_every_machine(tiny):
    assert tiny.extractor.id == build_backbone("videomae-tiny", seed=1, precision="fp32").extractor.id
    assert tiny.extractor.seed == 1
    assert tiny.extractor.id != build_backbone("tiny", seed=2, precision="fp32").extractor.id


def test_features_are_those_of_the_bare_encoder(tiny):
    frames, index = clip(27)
    model = VideoMAE.seeded(VideoMAEConfig.named("tiny"), 1)
    with torch.no_grad():
        expected = model(torch.stack([to_pixels(frames[rows], 64) for rows in index]))
    found = tiny.features(torch.from_numpy(frames).to(tiny.device), torch.from_numpy(index))
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-5)


def test_a_clip_has_the_same_features_alone_and_in_company(tiny):
    clips = [clip(n, seed=n) for n in (40, 5, 21, 17, 16)]
    together = tiny.extract([frames for frames, _ in clips], [index for _, index in clips])
    for (frames, index), features in zip(clips, together, strict=True):
        assert features.shape == (len(index), 192)
        assert np.array_equal(features, tiny.extract([frames], [index])[0])


def test_frames_of_any_size_are_resized_by_the_exact_rule(tiny):
    clips = [clip(18, size) for size in (64, 96, 50)]
    clips[0][0].flags.writeable = False  # as shared memory gives them
    together = tiny.extract([frames for frames, _ in clips], [index for _, index in clips])
    for (frames, index), features in zip(clips, together, strict=True):
        pixels = torch.stack([to_pixels(frames[rows], 64) for rows in index])
        with torch.no_grad():
            expected = VideoMAE.seeded(VideoMAEConfig.named("tiny"), 1)(pixels)
        np.testing.assert_allclose(features, expected, rtol=0, atol=1e-5)


def test_bfloat16_features_are_close_and_delivered_in_float32(tiny):
    frames, index = clip(24)
    half = build_backbone("tiny", seed=1, precision="bf16", device=tiny.device)
    found = half.extract([frames], [index])[0]
    reference = tiny.extract([frames], [index])[0]
    assert found.dtype == np.float32
    assert half.extractor.weights == tiny.extractor.weights
    cosine = (found * reference).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(reference, axis=1)
    assert cosine.min() > 0.999


def test_running_out_of_memory_halves_the_micro_batch_and_says_so(tiny):
    said: list[str] = []
    backbone = build_backbone(
        "tiny", seed=1, precision="fp32", micro_batch=8, device=tiny.device, on_warning=said.append
    )
    forward = backbone._forward

    def small_device(pixels):
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("no room")
        return forward(pixels)

    backbone._forward = small_device
    frames, index = clip(50)
    found = backbone.extract([frames], [index])[0]
    np.testing.assert_allclose(found, tiny.extract([frames], [index])[0], rtol=0, atol=1e-5)
    assert [message.rsplit(" ", 2)[1] for message in said] == ["4", "2"]
    assert backbone.micro_batch == 2

    def no_device(pixels):
        raise torch.OutOfMemoryError("no room")

    backbone._forward = no_device
    with pytest.raises(torch.OutOfMemoryError):
        backbone.extract([frames], [index])


def test_an_encoder_that_cannot_be_compiled_runs_all_the_same_and_says_so(tiny):
    said: list[str] = []
    backbone = build_backbone(
        "tiny", seed=1, precision="fp32", micro_batch=4, device=tiny.device, on_warning=said.append
    )

    def no_compiler(pixels):
        raise RuntimeError("Failed to find C compiler\nand more")

    backbone._forward = no_compiler
    frames, index = clip(24)
    found = backbone.extract([frames], [index])[0]
    np.testing.assert_allclose(found, tiny.extract([frames], [index])[0], rtol=0, atol=1e-5)
    assert said == ["the encoder could not be compiled and runs slower: Failed to find C compiler"]


def test_an_extractor_accepts_only_the_weights_it_names(tiny):
    again = build_backbone(tiny.extractor)
    assert again.extractor == tiny.extractor
    forged = Extractor.from_json(tiny.extractor.to_json().replace(tiny.extractor.weights, "0" * 64))
    with pytest.raises(ModelError, match="give the same weight file"):
        build_backbone(forged)


def test_a_weight_file_must_hold_the_backbone_that_was_asked_for(tmp_path):
    with_head = VideoMAE.seeded(VideoMAEConfig.named("tiny", num_classes=5), 3)
    torch.save({"model": with_head.state_dict()}, tmp_path / "vit.pth")
    with pytest.raises(ModelError, match=r"patch_embed\.proj"):
        build_backbone("small", weights=tmp_path / "vit.pth", precision="fp32")
    loaded = build_backbone("tiny", weights=tmp_path / "vit.pth", precision="fp32")
    assert loaded.extractor.seed is None
    assert not any(name.startswith("head") for name in loaded._model.state_dict())


def test_the_null_backbone_costs_nothing_and_claims_nothing():
    null = build_backbone("null", precision="fp32")
    assert isinstance(null, NullBackbone)
    frames, index = clip(20)
    assert null.extract([frames], [index])[0].shape == (2, 1408)
    assert not null.extract([frames], [index])[0].any()
    assert null.features(torch.from_numpy(frames), torch.from_numpy(index)).shape == (2, 1408)
    assert build_backbone(null.extractor).extractor.id.startswith("null-224-")


def test_nothing_to_extract_is_no_error(tiny):
    assert tiny.extract([], []) == []
    frames = torch.from_numpy(clip(3)[0]).to(tiny.device)
    assert tiny.features(frames, torch.zeros(0, 16, dtype=torch.int64)).shape == (0, 192)
    with pytest.raises(ModelError, match=r"\[B, 16\] frames; found \[2, 8\]"):
        tiny.features(frames, torch.zeros(2, 8, dtype=torch.int64))


def test_precision_follows_the_hardware(monkeypatch):
    assert default_precision("cuda") == "bf16"
    for supported, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(
            backbone_module.torch.cpu, "get_capabilities", lambda s=supported: {"avx512_bf16": s}, raising=False
        )
        assert default_precision("cpu") == precision
