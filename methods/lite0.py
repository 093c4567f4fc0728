"""EfficientNet-Lite0: the network of the embedded backbone (Tan & Le 2019, the Lite variant of 2020).

No squeeze-and-excitation, ReLU6 throughout, the "same" padding of the framework it was trained in. Module
names follow the published weights; a test compares the outputs with timm's `tf_efficientnet_lite0`.
"""

import torch.nn.functional as F
from torch import Tensor, nn

# kernel, stride, expansion, channels in, channels out, repeats
STAGES = (
    (3, 1, 1, 32, 16, 1),
    (3, 2, 6, 16, 24, 2),
    (5, 2, 6, 24, 40, 2),
    (3, 2, 6, 40, 80, 3),
    (5, 1, 6, 80, 112, 3),
    (5, 2, 6, 112, 192, 4),
    (3, 1, 6, 192, 320, 1),
)
TAPS = {4: 2, 8: 4, 16: 10, 32: 15}  # stride -> index of the last block at that stride (16: before it halves)
CHANNELS = {4: 24, 8: 40, 16: 112, 32: 320}


class SameConv(nn.Conv2d):
    """A convolution padded so that the output side is ceil(input side / stride), odd pixels at the end."""

    def forward(self, x: Tensor) -> Tensor:
        (k, _), (s, _) = self.kernel_size, self.stride
        pads = [max((-(-side // s) - 1) * s + k - side, 0) for side in (x.shape[3], x.shape[2])]
        x = F.pad(x, [pads[0] // 2, pads[0] - pads[0] // 2, pads[1] // 2, pads[1] - pads[1] // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Block(nn.Module):
    """Inverted residual: expand 1x1, depthwise kxk, project 1x1; a shortcut where the shape stays."""

    def __init__(self, kernel: int, stride: int, expand: int, inside: int, outside: int) -> None:
        super().__init__()
        wide = inside * expand
        if expand > 1:
            self._expand_conv = nn.Conv2d(inside, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, eps=1e-3)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._project_conv = nn.Conv2d(wide, outside, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outside, eps=1e-3)
        self.expands, self.shortcut = expand > 1, stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.shortcut else y


class Lite0(nn.Module):
    """Returns the maps at the wanted strides; blocks behind the last one are not even built."""

    def __init__(self, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.taps = [TAPS[s] for s in strides]
        self._conv_stem = SameConv(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks = [
            Block(k, s if n == 0 else 1, e, i if n == 0 else o, o) for k, s, e, i, o, r in STAGES for n in range(r)
        ]
        self._blocks = nn.ModuleList(blocks[: max(self.taps) + 1])

    def forward(self, x: Tensor) -> list[Tensor]:
        """float (B, 3, S, S) -> one (B, CHANNELS[s], S/s, S/s) for each stride."""
        x = F.relu6(self._bn0(self._conv_stem(x)))
        found = {}
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in self.taps:
                found[index] = x
        return [found[tap] for tap in self.taps]
