"""Public weights load whatever wrapped them, and what does not fit is named."""

import json

import pytest
import torch

from pthnet.errors import ModelError
from pthnet.frame_models import FrameModel
from pthnet.frame_weights import load_frame_model, load_frame_weights, read_state, save_frame_model

SPECS = {
    "r3d_18": FrameModel(model="r3d_18", classes=tuple("abc"), image_size=16, width=4, depths=(1, 1)),
    "resnet18": FrameModel(model="resnet18", classes=tuple("abc"), image_size=32, width=4, depths=(1, 1)),
    "swin_s": FrameModel(model="swin_s", classes=tuple("abc"), image_size=56, width=12, depths=(1, 1)),
}


class RecorderMeter:
    """Stands for the class of the authors' training script."""


def frames(spec):
    generator = torch.Generator().manual_seed(1)
    t = 16 if spec.sample == "clip" else 1
    return spec.pixels(torch.randint(0, 256, (2, t, spec.size, spec.size, 3), dtype=torch.uint8, generator=generator))


def pair(name):
    torch.manual_seed(0)
    source, target = SPECS[name].build().eval(), SPECS[name].build().eval()
    return source, target, frames(SPECS[name])


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("layout", ["plain", "module", "authors"])
def test_the_published_layouts_load(tmp_path, name, layout):
    source, target, pixels = pair(name)
    state = source.state_dict()
    if layout != "plain":
        state = {f"module.{key}": value for key, value in state.items()}
    if layout == "authors":
        state = {"epoch": 3, "state_dict": state, "best_acc": 60.0, "optimizer": {}, "recorder": RecorderMeter()}
    torch.save(state, tmp_path / "weights.pth")
    assert load_frame_weights(tmp_path / "weights.pth", target) == []
    assert torch.equal(target(pixels), source(pixels))


def test_older_timm_files_with_their_derived_tables_load(tmp_path):
    source, target, pixels = pair("swin_s")
    old = {}
    for name, value in source.state_dict().items():
        old[name.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc", "head")] = value
    old["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    old["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 49, 49)
    old["norm.weight"] = old["norm.bias"] = torch.ones(24)
    torch.save({"model": old}, tmp_path / "swin.pth")
    assert sorted(load_frame_weights(tmp_path / "swin.pth", target)) == ["norm.bias", "norm.weight"]
    assert torch.equal(target(pixels), source(pixels))


@pytest.mark.parametrize("name", SPECS)
def test_fine_tuning_starts_from_another_number_of_classes(tmp_path, name):
    source, _, _ = pair(name)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    other = FrameModel(**{**vars(SPECS[name]), "classes": tuple("abcde")}).build()
    before = {n: t.clone() for n, t in other.state_dict().items()}
    with pytest.raises(ModelError, match="choose the model, classes and sizes"):
        load_frame_weights(tmp_path / "weights.pth", other)
    load_frame_weights(tmp_path / "weights.pth", other, head="fresh")
    for key, value in other.state_dict().items():
        expected = before[key] if key.startswith(("fc.", "head.")) else source.state_dict()[key]
        assert torch.equal(value, expected), key


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(SPECS["resnet18"].build().state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ModelError, match="holds weights of another network"):
        load_frame_weights(tmp_path / "weights.pth", SPECS["swin_s"].build())


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pdparams"])
def test_what_is_no_weight_file_is_refused_in_one_line(tmp_path, content, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError):
        read_state(path)
    with pytest.raises(ModelError, match="no such weight file"):
        read_state(tmp_path / f"gone{suffix}")


def test_a_saved_model_comes_back_with_its_description(tmp_path):
    source, _, pixels = pair("swin_s")
    save_frame_model(tmp_path, SPECS["swin_s"], source, {"macro_f1": 0.5})
    spec, model, facts = load_frame_model(tmp_path)
    assert (spec, facts) == (SPECS["swin_s"], {"macro_f1": 0.5})
    assert torch.equal(model(pixels), source(pixels))
    (tmp_path / "model.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(ModelError):
        load_frame_model(tmp_path)
    with pytest.raises(ModelError, match="give the folder that finetune wrote"):
        load_frame_model(tmp_path / "gone")
