"""The networks that look at frames themselves, under one description: what to build, and how pixels enter it.

spec = FrameModel(model="r3d_18", classes=("Happy", "Sad"))
logits = spec.build()(spec.pixels(frames))          # frames: uint8 [B, T, S, S, 3]
"""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from pthnet.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# model -> (what a sample is, image side, pixel normalisation): as published
PUBLISHED: dict[str, tuple[str, int, str]] = {
    "r3d_18": ("clip", 112, "none"),
    "resnet18": ("image", 224, "none"),
    "swin_s": ("image", 224, "imagenet"),
}


@dataclass(frozen=True, kw_only=True)
class FrameModel:
    """Which network, for which classes, from which pixels.

    Parameters
    ----------
    model
        "r3d_18" (EC-STFL, clips of 16 frames), "resnet18" (EC-STFL, images) or "swin_s" (CFC-SP, images).
    classes
        Class names; a label is a position in them.
    head
        What the classes are: "all", or CFC-SP's "coarse" or "negative".
    image_size
        Side of the square input, pixels; None takes the published one.
    width, depths
        Channels of the first stage and blocks per stage; None takes the published ones. For trials and tests.
    normalize
        "none": RGB / 255. "imagenet": that, less ImageNet's mean, over its deviation. None takes the published one.
    """

    model: Literal["r3d_18", "resnet18", "swin_s"]
    classes: tuple[str, ...]
    head: Literal["all", "coarse", "negative"] = "all"
    image_size: int | None = None
    width: int | None = None
    depths: tuple[int, ...] | None = None
    normalize: Literal["none", "imagenet"] | None = None

    def __post_init__(self) -> None:
        if self.model not in PUBLISHED:
            raise ModelError(f"no frame model {self.model!r}; known: {', '.join(PUBLISHED)}")
        if len(self.classes) < 2:
            raise ModelError(f"a classifier needs at least two classes, found {self.classes}")
        if self.normalize not in (None, "none", "imagenet"):
            raise ModelError(f"normalize is 'none' or 'imagenet', found {self.normalize!r}")

    @property
    def sample(self) -> str:
        """What one sample is: "clip" or "image"."""
        return PUBLISHED[self.model][0]

    @property
    def size(self) -> int:
        """Side of the square input, pixels."""
        return self.image_size or PUBLISHED[self.model][1]

    def build(self) -> "nn.Module":
        """The network with fresh weights; it has `features`, `classify` and `forward`."""
        from pthnet.r3d import R3D18, R3DConfig
        from pthnet.resnet import ResNet18, ResNetConfig
        from pthnet.swin import Swin, SwinConfig

        sizes: dict[str, Any] = {"num_classes": len(self.classes)}
        if self.depths is not None:
            sizes["depths"] = tuple(self.depths)
        if self.model == "swin_s":
            if self.width is not None:
                sizes["dim"] = self.width
            if self.depths is not None:
                sizes["heads"] = tuple(3 * 2**stage for stage in range(len(self.depths)))
            return Swin(SwinConfig(image_size=self.size, **sizes))
        if self.width is not None:
            sizes["width"] = self.width
        return R3D18(R3DConfig(**sizes)) if self.model == "r3d_18" else ResNet18(ResNetConfig(**sizes))

    def pixels(self, frames: "Tensor") -> "Tensor":
        """Input of the network from uint8 frames [B, T, S, S, 3], on their device.

        Returns
        -------
        float32 [B, 3, T, S, S] for clips, [B, 3, S, S] for images (T = 1).
        """
        import torch

        x = frames.permute(0, 4, 1, 2, 3).to(torch.float32).div_(255)
        if (self.normalize or PUBLISHED[self.model][2]) == "imagenet":
            shape = (1, 3, 1, 1, 1)
            mean = torch.tensor(IMAGENET_MEAN, device=x.device).view(shape)
            std = torch.tensor(IMAGENET_STD, device=x.device).view(shape)
            x = (x - mean) / std
        return x if self.sample == "clip" else x[:, :, 0]

    def to_json(self) -> str:
        """One JSON object; `from_json` reads it back."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "FrameModel":
        """Read what `to_json` wrote."""
        try:
            fields = json.loads(text)
            for name in ("classes", "depths"):
                fields[name] = None if fields.get(name) is None else tuple(fields[name])
            return cls(**fields)
        except (ValueError, TypeError, AttributeError) as error:
            raise ModelError(f"this is no description of a frame model ({error}); expected its model.json") from None
