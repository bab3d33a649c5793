"""Two tasks whose best pruning policy is known, with networks that solve them unpruned.

An image has four channels: what its label looks like at first sight (LOOKS_YES, LOOKS_NO)
and, on hard images, what it really is (IS_YES, IS_NO). Easy images look like what they are;
hard ones look like the opposite. First sight takes the first two channels of each layer,
the truth all of them: every further channel adds to it, and half of them are too few.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from rlprune.data import ImageArrays, ImageSet
from rlprune.pruning import GatedNetwork

SIDE = 8
LOOKS_YES, LOOKS_NO, IS_YES, IS_NO = range(4)


def task(share_hard: float, count: int = 1800, seed: int = 0) -> ImageSet:
    """Images of which ``share_hard`` are hard, in three equal splits."""
    generator = torch.Generator().manual_seed(seed)
    hard = torch.rand(count, generator=generator) < share_hard
    label = torch.rand(count, generator=generator) < 0.5
    levels = torch.zeros(count, 4)
    levels[:, LOOKS_YES] = (label ^ hard).float()
    levels[:, LOOKS_NO] = (~(label ^ hard)).float()
    levels[:, IS_YES] = (hard & label).float()
    levels[:, IS_NO] = (hard & ~label).float()
    noise = torch.rand(count, 4, SIDE, SIDE, generator=generator)
    pixels = (255 * (0.8 * levels[:, :, None, None] + 0.2 * noise)).to(torch.uint8).numpy()
    labels = label.long().numpy()
    parts = [
        ImageArrays(pixels[index], labels[index]) for index in np.array_split(np.arange(count), 3)
    ]
    return ImageSet("synthetic", *parts, ("no", "yes"), (0.0,) * 4, (1.0,) * 4, "none")


def is_hard(images: ImageArrays) -> Tensor:
    """Whether the truth differs from first sight, bool [N]."""
    pixels = torch.from_numpy(images.images[:, [IS_YES, IS_NO]]).float()
    return pixels.mean((2, 3)).amax(1) > 127


class TwoLayers(nn.Module):
    """Two 3x3 convolutions without BatchNorm and a linear layer; weights set by hand.

    The first layer's channels: two for first sight, three times two for the truth. The
    second layer hands on what it gets, the truth in 14 channels, or (``narrow``) in two,
    so that the 12 others are of no use.
    """

    def __init__(self, narrow: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.classifier = nn.Linear(16, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            # 0.5 lies between a channel that is on (0.8 to 1) and one that is off (0 to 0.2).
            self.conv1.bias.fill_(-0.5)
            for channel, source in enumerate([LOOKS_YES, LOOKS_NO, *[IS_YES, IS_NO] * 3]):
                self.conv1.weight[channel, source, 1, 1] = 1.0
            for channel in range(4 if narrow else 16):
                sources = [channel]
                if channel >= 2:
                    first, group = 2 + channel % 2, channel // 2 % 3
                    sources = [first + 2 * i for i in (range(3) if narrow else [group])]
                self.conv2.weight[channel, sources, 1, 1] = 1.0 / len(sources)
                truth = 10.0 if narrow else 10.0 / 7.0
                sign = 1.0 if channel % 2 == 0 else -1.0
                self.classifier.weight[1, channel] = sign * (5.0 if channel < 2 else truth)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.classifier(x.mean((2, 3)))


def narrow_second_layer() -> TwoLayers:
    """Of the second layer only four channels are of use, of the first all."""
    return TwoLayers(narrow=True)


@torch.no_grad()
def rank_channels(network: GatedNetwork) -> None:
    """The first channel of each layer is the most important, the last the least."""
    for layer in network.layers:
        order = torch.linspace(1.01, 0.99, layer.layer.out_channels)
        layer.runtime_predictor.bias.copy_(order)
        layer.static_importance.copy_(order)
