"""The 3-D ResNet-18 of EC-STFL, with torchvision's r3d_18 parameter names, so that public weights load."""

from dataclasses import dataclass

from torch import Tensor, nn

from pthnet.resnet import ResNetConfig

# B batch, C channels, T frames, H W image, D pooled feature


@dataclass(frozen=True, kw_only=True)
class R3DConfig(ResNetConfig):
    """Sizes of an 18-layer residual network over clips: those of the one over images."""


class R3D18(nn.Module):
    """Clip [B, 3, T, H, W] -> logits [B, num_classes]; 33,169,863 parameters with 7 classes.

    Parameters
    ----------
    config
        Sizes; None takes the published ones.
    """

    def __init__(self, config: R3DConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or R3DConfig()
        self.stem = nn.Sequential(
            nn.Conv3d(3, config.width, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False),
            nn.BatchNorm3d(config.width),
            nn.ReLU(inplace=True),
        )
        channels = config.width
        for stage, depth in enumerate(config.depths):
            out = config.width * 2**stage
            blocks = [_Block(channels, out, 1 if stage == 0 else 2), *(_Block(out, out, 1) for _ in range(depth - 1))]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            channels = out
        self.fc = nn.Linear(channels, config.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                nn.init.zeros_(module.bias)

    def features(self, clips: Tensor) -> Tensor:
        """Pooled feature [B, D] of clips [B, 3, T, H, W]."""
        x = self.stem(clips)
        for stage in range(len(self.config.depths)):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x.mean(dim=(2, 3, 4))

    def classify(self, features: Tensor) -> Tensor:
        """Logits [B, num_classes] of pooled features [B, D]."""
        return self.fc(features)

    def forward(self, clips: Tensor) -> Tensor:
        return self.classify(self.features(clips))


def _conv(channels: int, out: int, stride: int) -> nn.Conv3d:
    return nn.Conv3d(channels, out, 3, stride=stride, padding=1, bias=False)


class _Block(nn.Module):
    """Two 3 x 3 x 3 convolutions beside a shortcut; the first may halve time and space together."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(_conv(channels, out, stride), nn.BatchNorm3d(out), nn.ReLU(inplace=True))
        self.conv2 = nn.Sequential(_conv(out, out, 1), nn.BatchNorm3d(out))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(nn.Conv3d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm3d(out))
            if stride != 1 or channels != out
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.conv2(self.conv1(x)) + shortcut)
