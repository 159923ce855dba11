"""ResNet-18 for face images, with torchvision's parameter names, so that public weights load."""

from dataclasses import dataclass

from torch import Tensor, nn

from pthnet.errors import ModelError

# B batch, C channels, H W image, D pooled feature


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Sizes of an 18-layer residual network; the defaults are the published ones.

    Parameters
    ----------
    num_classes
        Outputs.
    width
        Channels of the first stage; they double at each further one. The pooled feature has `width * 2**(stages - 1)`.
    depths
        Blocks of the stages.
    """

    num_classes: int = 7
    width: int = 64
    depths: tuple[int, ...] = (2, 2, 2, 2)

    def __post_init__(self) -> None:
        if self.num_classes < 1 or self.width < 1 or not self.depths or min(self.depths) < 1:
            raise ModelError(f"num_classes, width and every depth must be at least 1, found {self}")

    @property
    def feature_dim(self) -> int:
        """Length of the pooled feature."""
        return self.width * 2 ** (len(self.depths) - 1)


class ResNet18(nn.Module):
    """Image [B, 3, H, W] -> logits [B, num_classes]; 11,180,103 parameters with 7 classes.

    Parameters
    ----------
    config
        Sizes; None takes the published ones.
    """

    def __init__(self, config: ResNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ResNetConfig()
        self.conv1 = nn.Conv2d(3, config.width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(config.width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = config.width
        for stage, depth in enumerate(config.depths):
            out = config.width * 2**stage
            blocks = [_Block(channels, out, 1 if stage == 0 else 2), *(_Block(out, out, 1) for _ in range(depth - 1))]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            channels = out
        self.fc = nn.Linear(channels, config.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images: Tensor) -> Tensor:
        """Pooled feature [B, D] of images [B, 3, H, W]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in range(len(self.config.depths)):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x.mean(dim=(2, 3))

    def classify(self, features: Tensor) -> Tensor:
        """Logits [B, num_classes] of pooled features [B, D]."""
        return self.fc(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))


class _Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = (
            nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))
            if stride != 1 or channels != out
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)
