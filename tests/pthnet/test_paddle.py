"""Paddle's files give up their arrays and nothing else."""

import io
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from pthnet.errors import ModelError
from pthnet.paddle import read_pdparams, swin_from_paddle
from pthnet.swin import Swin, SwinConfig

ARRAYS = {"fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "fc.bias": np.ones(3, np.float32)}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        OrderedDict,
        lambda a: {"state_dict": a, "epoch": 3},
        lambda a: {**a, "StructuredToParameterName@@": {"fc.weight": "linear_0.w_0"}},
        lambda a: {k: (f"param_{k}", v) for k, v in a.items()},
    ],
)
def test_every_layout_of_paddle_save_is_read(tmp_path, protocol, wrap):
    path = tmp_path / "x.pdparams"
    path.write_bytes(pickle.dumps(wrap(ARRAYS), protocol=protocol))
    got = read_pdparams(path)
    assert list(got) == list(ARRAYS)
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(got[name], value)


def test_arrays_cut_into_slices_are_joined():
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    saved = {
        "w@@.0": whole.ravel()[:7],
        "w@@.1": whole.ravel()[7:],
        "UnpackBigParamInfor@@": {"w": {"OriginShape": (3, 4), "slices": ["w@@.0", "w@@.1"]}},
    }
    got = read_pdparams(pickle.dumps(saved, protocol=2))
    np.testing.assert_array_equal(got["w"], whole)
    assert list(got) == ["w"]


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_file_is_refused_and_not_run(tmp_path):
    trap = tmp_path / "made_by_the_file"
    with pytest.raises(ModelError, match="was not run"):
        read_pdparams(pickle.dumps({**ARRAYS, "x": Harmful(str(trap))}))
    assert not trap.exists()


@pytest.mark.parametrize(
    "data", [b"", b"no pickle", pickle.dumps(ARRAYS)[:40], pickle.dumps([1]), pickle.dumps({"epoch": 3})]
)
def test_what_is_no_parameter_file_is_refused_in_one_line(data):
    with pytest.raises(ModelError):
        read_pdparams(data)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"cannot read .*gone\.pdparams"):
        read_pdparams(tmp_path / "gone.pdparams")


@pytest.mark.parametrize("naming", ["paddlevit", "original"])
def test_a_swin_comes_back_from_paddle_as_it_was(naming):
    """Written in Paddle's layout ([in, out] weights, merging at the end of a stage), read back: equal outputs."""
    from pthnet.frame_weights import fit_state

    torch.manual_seed(0)
    model = Swin(SwinConfig(num_classes=4, image_size=56, dim=8, depths=(2, 2), heads=(2, 4))).eval()
    paddle = {}
    for name, value in model.state_dict().items():
        array = value.numpy()
        if array.ndim == 2 and name.endswith(".weight"):
            array = array.T
        name = name.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc", "head")
        if naming == "paddlevit":
            name = name.replace("patch_embed.", "patch_embedding.").replace("embedding.proj", "embedding.patch_embed")
            name = name.replace("layers.", "stages.").replace("head.", "fc.")
        paddle[name] = array
    paddle["norm.weight"] = paddle["norm.bias"] = np.ones(16, np.float32)
    stream = io.BytesIO()
    pickle.dump(paddle, stream, protocol=4)
    again = Swin(model.config).eval()
    fit_state(again, swin_from_paddle(read_pdparams(stream.getvalue())), source="paddle")
    images = torch.rand(1, 3, 56, 56)
    assert torch.equal(again(images), model(images))
