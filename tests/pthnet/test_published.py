"""Published checkpoints: read, written back, and never run."""

import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pthnet.errors import ModelError
from pthnet.htnet import HTNet, HTNetConfig
from pthnet.pth_net import FusedPTHNet, PTHNet, PTHNetConfig
from pthnet.published import export_pthnet, load_htnet, load_pthnet, load_videomae
from pthnet.unpickle import Inert, Named, StoredTensor, read_checkpoint
from pthnet.videomae import VideoMAE, VideoMAEConfig
from pthnet.weights import load_model, read_safetensors, save_model

GOLDEN = Path(__file__).parents[1] / "golden"
PUBLISHED = GOLDEN / "pthnet_small_published.pth"
SMALL = PTHNetConfig(in_dim=24, dim=32, mlp_dim=48)
TINY = VideoMAEConfig(image_size=32, patch_size=16, dim=48, depth=3, heads=4, mlp_dim=48 * 48 // 11)


def golden_weights(name: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / name) as file:
        return {key.removeprefix("weights/"): torch.from_numpy(file[key]) for key in file if key.startswith("weights/")}


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return list(one) == list(two) and all(torch.equal(one[key], two[key]) for key in one)


# PTH-Net


def test_a_published_checkpoint_is_read_with_its_unknown_class_left_inert() -> None:
    saved = read_checkpoint(PUBLISHED)
    assert isinstance(saved["recorder"], Inert)
    assert saved["epoch"] == 3
    weights = golden_weights("pthnet_small.npz")
    assert {key.removeprefix("module.") for key in saved["state_dict"]} == set(weights)
    for key, stored in saved["state_dict"].items():
        assert torch.equal(stored.load(), weights[key.removeprefix("module.")])


def test_settings_are_read_off_the_shapes() -> None:
    model = load_pthnet(PUBLISHED)
    assert model.config == PTHNetConfig(in_dim=24, dim=32, mlp_dim=48, num_classes=7)
    assert not model.training


@pytest.mark.parametrize("layout", ["zip", "legacy", "safetensors", "no prefix", "plain"])
def test_every_layout_of_the_same_weights_gives_the_same_model(tmp_path: Path, layout: str) -> None:
    weights = golden_weights("pthnet_small.npz")
    prefixed = {f"module.{key}": value for key, value in weights.items()}
    path = tmp_path / "model.pth"
    if layout == "safetensors":
        path = tmp_path / "model.safetensors"
        save_file(prefixed, path)
    elif layout == "plain":
        torch.save(OrderedDict(weights), path)
    else:
        state = weights if layout == "no prefix" else prefixed
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=layout != "legacy")
    assert same(load_pthnet(path), load_pthnet(PUBLISHED))


def test_export_is_what_the_published_scripts_load(tmp_path: Path) -> None:
    path = tmp_path / "exported.pth"
    export_pthnet(load_pthnet(PUBLISHED), path, epoch=7)
    saved = torch.load(path, weights_only=True)
    weights = golden_weights("pthnet_small.npz")
    assert saved["epoch"] == 7
    assert set(saved["state_dict"]) == {f"module.{key}" for key in weights}
    for key, value in weights.items():
        written = saved["state_dict"][f"module.{key}"]
        assert written.shape == value.shape
        assert "pos_embed" in key or torch.equal(written, value)


@pytest.mark.parametrize(("downsample", "count"), [("max", 10_419_719), ("avg", 10_682_375)])
def test_export_and_import_return_the_model_at_its_published_size(tmp_path: Path, downsample: str, count: int) -> None:
    model = PTHNet(PTHNetConfig(downsample=downsample))
    export_pthnet(model, tmp_path / "m.pth")
    state = torch.load(tmp_path / "m.pth", weights_only=True)["state_dict"]
    assert sum(value.numel() for value in state.values()) == count
    assert same(load_pthnet(tmp_path / "m.pth"), model)


def test_standardisation_has_no_place_in_the_published_layout(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="save_model"):
        export_pthnet(PTHNet(PTHNetConfig(in_dim=24, dim=32, mlp_dim=48, standardize=True)), tmp_path / "m.pth")


# The other systems


@pytest.mark.parametrize("layout", ["model", "module", "top", "safetensors"])
def test_videomae_weights_in_half_precision_load_from_every_published_layout(tmp_path: Path, layout: str) -> None:
    weights = {key: value.half() for key, value in golden_weights("videomae_small.npz").items()}
    path = tmp_path / ("encoder.safetensors" if layout == "safetensors" else "encoder.pth")
    if layout == "safetensors":
        save_file({f"model.{key}": value for key, value in weights.items()}, path)
    else:
        torch.save(weights if layout == "top" else {layout: weights}, path)
    model = load_videomae(path, TINY)
    assert model.fc_norm.weight.dtype == torch.float32
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key].float())


def test_a_published_width_tells_the_encoder(tmp_path: Path) -> None:
    config = VideoMAEConfig.named("small", depth=2)
    torch.save(VideoMAE(config).state_dict(), tmp_path / "small.pth")
    assert load_videomae(tmp_path / "small.pth").config == config
    torch.save(golden_weights("videomae_small.npz"), tmp_path / "odd.pth")
    with pytest.raises(ModelError, match=r"48 wide.*give a VideoMAEConfig"):
        load_videomae(tmp_path / "odd.pth")


def test_htnet_loads_with_its_settings_read_off(tmp_path: Path) -> None:
    torch.save(golden_weights("htnet_small.npz"), tmp_path / "htnet.pth")
    model = load_htnet(tmp_path / "htnet.pth")
    assert model.config == HTNetConfig(dim=12, depths=(1, 1, 2))
    with np.load(GOLDEN / "htnet_small.npz") as golden:
        output = model(torch.from_numpy(golden["input"]))
        assert np.abs(output.detach().numpy() - golden["output"]).max() <= 1e-5


# Our own files


def test_our_own_files_rebuild_the_model_without_being_told_which(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    standardised = PTHNet(PTHNetConfig(in_dim=24, dim=32, mlp_dim=48, standardize=True))
    standardised.set_standardization(torch.randn(24), torch.rand(24) + 1)
    fused = FusedPTHNet(load_pthnet(PUBLISHED), PTHNet(SMALL), 0.6)
    for model in (standardised, fused, VideoMAE(TINY), HTNet(HTNetConfig(dim=12, depths=(1, 1, 2)))):
        save_model(model, path, {"classes": "Happy Sad"})
        again = load_model(path)
        assert type(again) is type(model)
        assert same(again, model)
        assert not again.training
    assert read_safetensors(path)[1]["classes"] == "Happy Sad"


def test_a_file_of_ours_cannot_name_another_class(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for metadata in (None, {"model": "os.system", "config": "{}"}, {"model": "PTHNet", "config": '{"widths": 3}'}):
        save_file({"a": torch.zeros(1)}, path, metadata)
        with pytest.raises(ModelError, match="does not say which model"):
            load_model(path)
    with pytest.raises(ModelError, match="cannot save a Linear"):
        save_model(torch.nn.Linear(1, 1), path)


# Files that attack


class Calls:
    """Pickles as a call of `function` with `args`, then BUILD with `state`."""

    def __init__(self, function: Any, args: tuple[Any, ...], state: Any = None) -> None:
        self.recipe = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.recipe


@pytest.fixture
def trap(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An importable module whose every use leaves a mark."""
    sprung: list[str] = []
    room = types.ModuleType("sprung_trap")

    class Trap:
        def __new__(cls, *args: Any) -> Any:
            sprung.append("new")
            return super().__new__(cls)

        def __setstate__(self, state: Any) -> None:
            sprung.append("setstate")

        def __setitem__(self, key: Any, value: Any) -> None:
            sprung.append("setitem")

        def __hash__(self) -> int:
            sprung.append("hash")
            return 0

        def append(self, item: Any) -> None:
            sprung.append("append")

    def spring(*args: Any) -> Any:
        sprung.append("call")
        return Trap()

    Trap.__module__ = spring.__module__ = "sprung_trap"
    Trap.__qualname__, spring.__qualname__ = "Trap", "spring"
    room.Trap, room.spring = Trap, spring  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sprung_trap", room)
    return sprung


def attacks(marker: Path) -> dict[str, Any]:
    import os

    room = sys.modules["sprung_trap"]
    command = f"touch {marker}"
    return {
        "os.system": Calls(os.system, (command,)),
        "eval": Calls(eval, (f"open({str(marker)!r}, 'w')",)),
        "exec nested": {"deep": [({"er": Calls(exec, (f"open({str(marker)!r}, 'w')",))},)]},
        "getattr chain": Calls(getattr, (Calls(__import__, ("os",)), "system")),
        "numpy": Calls(np.frombuffer, (Calls(room.spring, ()),), Calls(room.spring, ())),
        "setstate": Calls(room.Trap, (), {"a": 1}),
        "call then state": Calls(room.spring, (), {"__class__": "x"}),
        "state on a rebuilder": Calls(OrderedDict, (), {"__reduce__": Calls(room.spring, ())}),
        "as a tensor": Calls(torch._utils._rebuild_parameter, (Calls(room.spring, ()), False, OrderedDict())),
    }


ATTACKS = ["os.system", "eval", "exec nested", "getattr chain", "numpy", "setstate", "call then state"]


@pytest.mark.parametrize("attack", [*ATTACKS, "state on a rebuilder", "as a tensor"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_hostile_checkpoint_runs_nothing_and_still_yields_its_weights(
    tmp_path: Path, trap: list[str], attack: str, zipped: bool
) -> None:
    marker, path = tmp_path / "marker", tmp_path / "hostile.pth"
    state = {f"module.{key}": value for key, value in golden_weights("pthnet_small.npz").items()}
    saved = {"before": attacks(marker)[attack], "state_dict": state, "after": attacks(marker)[attack]}
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    trap.clear()
    model = load_pthnet(path)
    assert same(model, load_pthnet(PUBLISHED))
    assert not marker.exists()
    assert trap == []


def run_pickle(path: Path, body: bytes) -> Any:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", body)
    return read_checkpoint(path)


@pytest.mark.parametrize(
    "body",
    [
        b"csprung_trap\nspring\n)R.",
        b"csprung_trap\nspring\nq\x00h\x00)R0h\x00)R.",  # through the memo
        b"csprung_trap\nTrap\n)\x81}b.",  # NEWOBJ, BUILD
        b"csprung_trap\nTrap\n)}\x92}b.",  # NEWOBJ_EX
        b"(isprung_trap\nTrap\n.",  # INST
        b"(csprung_trap\nTrap\no.",  # OBJ
        b"\x80\x04\x8c\x0bsprung_trap\x8c\x06spring\x93)R.",  # STACK_GLOBAL
        b"csprung_trap\nTrap\n)R(K\x01e.",  # APPENDS on an object
        b"csprung_trap\nTrap\n)R(K\x01K\x02u.",  # SETITEMS on an object
        b"}csprung_trap\nTrap\n)RK\x01s.",  # an object as key
        b"ctorch._utils\n_rebuild_tensor_v2\n}b.",  # BUILD on an allowed name
        b"ctorch._utils\n_rebuild_tensor_v2\n(csprung_trap\nspring\n)RK\x00)))tR.",  # a rebuilder fed an object
        b"ccollections\nOrderedDict\n(csprung_trap\nspring\n)RtR.",
    ],
)
def test_no_pickle_instruction_reaches_an_object(tmp_path: Path, trap: list[str], body: bytes) -> None:
    run_pickle(tmp_path / "x.pth", body)
    assert trap == []


@given(body=st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_random_instructions_end_in_data_or_an_error(tmp_path_factory: pytest.TempPathFactory, body: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.pth"
    for data in (body, body + b"."):
        try:
            run_pickle(path, data)
        except ModelError:
            continue


def test_numbers_and_containers_come_back_as_pickle_gives_them(tmp_path: Path) -> None:
    value = {"a": [1, -(2**70), 2.5, None, True, "é"], "b": (1, (2,), ()), 3: {"x": []}, "long": list(range(2000))}
    for protocol in range(2, 6):
        assert run_pickle(tmp_path / "x.pth", pickle.dumps(value, protocol)) == value


def test_tensors_of_every_kind_come_back(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "transposed": base.T,
        "slice": base[1:, ::2],
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.0, dtype=torch.float64),
        "parameter": torch.nn.Parameter(base),
        **{str(kind): base.to(kind) for kind in (torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)},
    }
    for zipped in (True, False):
        torch.save(tensors, tmp_path / "t.pth", _use_new_zipfile_serialization=zipped)
        for name, stored in read_checkpoint(tmp_path / "t.pth").items():
            assert isinstance(stored, StoredTensor)
            torch.testing.assert_close(stored.load(), tensors[name].detach())


# Files that are damaged, or something else


def test_a_name_stays_a_name(tmp_path: Path) -> None:
    assert run_pickle(tmp_path / "x.pth", b"cos\nsystem\n.") == Named("os", "system")


@pytest.mark.parametrize("keep", [0, 1, 10, 1000, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, keep: float, zipped: bool) -> None:
    buffer = io.BytesIO()
    torch.save(golden_weights("pthnet_small.npz"), buffer, _use_new_zipfile_serialization=zipped)
    path = tmp_path / "truncated.pth"
    path.write_bytes(buffer.getvalue()[: keep if isinstance(keep, int) else int(len(buffer.getvalue()) * keep)])
    with pytest.raises(ModelError, match=r"truncated\.pth"):
        load_pthnet(path)


@pytest.mark.parametrize("name", ["noise.pth", "noise.safetensors"])
def test_random_bytes_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(ModelError, match=name):
        load_pthnet(tmp_path / name)
    with pytest.raises(ModelError, match="no such file"):
        load_pthnet(tmp_path / f"absent-{name}")


@pytest.mark.parametrize("load", [load_pthnet, load_videomae, load_htnet])
def test_another_system_s_weights_are_refused_by_each(tmp_path: Path, load: Any) -> None:
    path = tmp_path / "other.pth"
    for content in ({"fc.weight": torch.zeros(2, 2)}, {"epoch": 3}, [1, 2], "text"):
        torch.save(content, path)
        with pytest.raises(ModelError, match=r"other\.pth"):
            load(path)


def test_a_missing_key_and_a_wrong_shape_are_named_with_both_shapes(tmp_path: Path) -> None:
    path, weights = tmp_path / "m.pth", golden_weights("pthnet_small.npz")
    torch.save({key: value for key, value in weights.items() if key != "stem.1.psi.weight"}, path)
    with pytest.raises(ModelError, match=r"m\.pth: no stem\.1\.psi\.weight \[32, 1, 1\]"):
        load_pthnet(path)
    torch.save({**weights, "branch_2.0.ln.weight": torch.zeros(1, 16, 1)}, path)
    with pytest.raises(ModelError, match=r"ln\.weight is \[1, 16, 1\], the model expects \[1, 32, 1\]"):
        load_pthnet(path)
    torch.save({**weights, "extra.weight": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match=r"extra\.weight \[2\] has no place"):
        load_pthnet(path)


def test_tensor_data_that_does_not_hold_the_tensor_is_refused(tmp_path: Path) -> None:
    source, path = tmp_path / "m.pth", tmp_path / "short.pth"
    torch.save(golden_weights("pthnet_small.npz"), source)
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(path, "w") as short:
        for name in archive.namelist():
            short.writestr(name, archive.read(name)[:8] if name.endswith("/data/5") else archive.read(name))
    with pytest.raises(ModelError, match="does not hold a tensor"):
        load_pthnet(path)
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    with pytest.raises(ModelError, match="compressed"):
        load_pthnet(path)
