"""A fused model as a folder: what training leaves, what the registry stores, what evaluation and prediction load.

model.json              classes, mu, level, the extractor's specification, what it was trained and evaluated on
forward.safetensors     weights of the forward network (absent when only the other direction was trained)
reverse.safetensors
backbone.safetensors    weights of the backbone, when they travel with the model
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pthnet.errors import ModelError
from pthnet.pth_net import PTHNet, PTHNetConfig
from tasks.evaluate import fuse, logits_of
from tasks.feature_set import FeatureSet
from tasks.sampling import DeviceTable

FACTS = "model.json"
BACKBONE = "backbone.safetensors"


@dataclass(kw_only=True)
class Bundle:
    """A trained pair of networks and what is needed to use them.

    Attributes
    ----------
    networks : dict of direction to PTHNet
        "forward", "reverse" or both.
    mu : float
        Weight of the forward logits.
    classes : tuple of str
    extractor : dict
        Specification of the extractor whose features the networks read, {} when the table recorded none.
    extractor_id : str
    level : str
        The level that decides.
    facts : dict
        Where it comes from: data, run, scores. Plain JSON.
    backbone_uri : str
        Where the backbone's weights lie when the folder does not hold them.
    folder : Path or None
        Where it was loaded from.
    """

    networks: dict[str, PTHNet]
    mu: float
    classes: tuple[str, ...]
    extractor: dict[str, Any]
    extractor_id: str
    level: str = "high"
    facts: dict[str, Any] = field(default_factory=dict)
    backbone_uri: str = ""
    folder: Path | None = None

    def logits(self, features: dict[str, FeatureSet], rows: np.ndarray, device: Any = "cpu") -> dict[str, np.ndarray]:
        """Logits [n, classes] of each direction and of "fused", for the clips at `rows` of the sets.

        Raises
        ------
        ModelError
            When the features are another extractor's than the networks were trained on.
        """
        import torch

        found: dict[str, np.ndarray] = {}
        for direction, network in self.networks.items():
            given = features[direction]
            self.require_extractor(given.extractor, given.dim)
            table = DeviceTable(given, torch.device(device))
            found[direction] = logits_of(network.to(device), table, rows, level=self.level)[0].numpy()
        found["fused"] = fuse(found.get("forward"), found.get("reverse"), self.mu)
        return found

    def require_extractor(self, extractor_id: str, dim: int) -> None:
        """Refuse features that are not those the networks were trained on."""
        wanted = next(iter(self.networks.values())).config.in_dim
        if (extractor_id and self.extractor_id and extractor_id != self.extractor_id) or dim != wanted:
            trained, given = self.extractor_id or "an unnamed extractor", extractor_id or "an unnamed extractor"
            raise ModelError(
                f"the model reads features of {trained} ({wanted} numbers a window), these are of {given} ({dim}). "
                "Extract them with the model's backbone and weights"
            )


def save_bundle(bundle: Bundle, folder: str | Path) -> Path:
    """Write the folder (made when absent); the backbone's weights are put there by who has them."""
    from safetensors.torch import save_file

    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for direction, network in bundle.networks.items():
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
        save_file(tensors, path / f"{direction}.safetensors")
    facts = {
        "format": 1,
        "networks": {direction: asdict(network.config) for direction, network in bundle.networks.items()},
        "mu": bundle.mu,
        "classes": list(bundle.classes),
        "level": bundle.level,
        "extractor": bundle.extractor,
        "extractor_id": bundle.extractor_id,
        "backbone_uri": bundle.backbone_uri,
        "facts": bundle.facts,
    }
    (path / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
    return path


def load_bundle(folder: str | Path) -> Bundle:
    """Read a folder written by `save_bundle`; the networks are in evaluation mode, on the CPU.

    Raises
    ------
    ModelError
        When it is not such a folder, or its weights do not fit its settings.
    """
    from safetensors.torch import load_file

    path = Path(folder)
    try:
        facts = json.loads((path / FACTS).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError) as error:
        raise ModelError(f"{folder} is no trained model: it needs a readable {FACTS} ({error})") from error
    networks = {}
    for direction, config in facts["networks"].items():
        network = PTHNet(PTHNetConfig(**config))
        try:
            network.load_state_dict(load_file(path / f"{direction}.safetensors"))
        except (FileNotFoundError, RuntimeError) as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise ModelError(f"{path / direction}.safetensors does not fit its settings in {FACTS}: {first}") from error
        networks[direction] = network.eval()
    return Bundle(
        networks=networks,
        mu=facts["mu"],
        classes=tuple(facts["classes"]),
        extractor=facts["extractor"],
        extractor_id=facts["extractor_id"],
        level=facts["level"],
        facts=facts["facts"],
        backbone_uri=facts.get("backbone_uri", ""),
        folder=path,
    )
