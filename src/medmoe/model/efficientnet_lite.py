"""EfficientNet-Lite as a vision encoder: inverted residuals without squeeze-and-excitation.

Built from its published description (Tan and Le 2019, and the Lite models' release notes): ReLU6,
"same" padding as TensorFlow has it, stem and head of one size whatever the width. Batch norms are
folded into the convolutions when the published file is read, so there are none here; weights and
maps are channels-last. It does not classify: the file's last layer is left out.

Shapes: B pictures, H height and width in pixels, P cells of the last map, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from medmoe.errors import ConfigError

#: Repeats, kernel, stride of the first, expansion and channels of each stage; at width and depth 1.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _STRIDE, _EPSILON = 32, 32, 1e-3


@strict
class EfficientNetLiteConfig(PreTrainedConfig):
    """Shape of an EfficientNet-Lite.

    Attributes:
        width, depth: Multipliers of channels and of repeats.
        hidden_size: Channels of the last map.
        image_size: Side of a picture in pixels.
        patch_size: Side in pixels of what one token stands for: 32, or a multiple of it, for which
            cells of the last map are averaged.
    """

    model_type = "efficientnet_lite"

    width: float = 1.0
    depth: float = 1.0
    hidden_size: int = 1280
    image_size: int = 320
    patch_size: int = 32

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the rule between the sizes."""
        super().__post_init__(**kwargs)
        if self.patch_size % _STRIDE or self.image_size % self.patch_size:
            raise ConfigError(
                f"patch_size ({self.patch_size}) must be a multiple of {_STRIDE} and divide "
                f"image_size ({self.image_size})"
            )


class SameConv(nn.Conv2d):
    """A convolution whose output is the input's size over the stride, rounded up.

    Where the padding is odd the greater half lies right and below, as in TensorFlow. Under autocast
    on a processor one that convolves each channel apart is trained in float32: oneDNN's way back
    through it takes three times as long in bfloat16, the way there half as long.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H / stride, H / stride) of a square map (B, C, H, H)."""
        if self.groups > 1 and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self._convolved(x.float()).to(x.dtype)
        return self._convolved(x)

    def _convolved(self, x: Tensor) -> Tensor:
        side, stride, kernel = x.shape[-1], self.stride[0], self.kernel_size[0]
        total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        before, odd = divmod(total, 2)
        if odd:
            x = functional.pad(x, (before, before + 1) * 2)
            before = 0
        return functional.conv2d(x, self.weight, self.bias, stride, before, groups=self.groups)


class InvertedResidual(nn.Module):
    """Expand, convolve each channel apart, project back; added to its input where they fit."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = SameConv(inputs, wide) if expansion > 1 else None
        self.depthwise = SameConv(wide, wide, kernel, stride, groups=wide)
        self.project = SameConv(wide, outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map."""
        y: Tensor = x if self.expand is None else functional.relu6(self.expand(x), inplace=True)
        y = self.project(functional.relu6(self.depthwise(y), inplace=True))
        return y.add_(x) if self.residual else y


class EfficientNetLiteModel(PreTrainedModel):
    """The encoder: pictures (B, 3, H, H) to cells (B, P, C), in rows from the upper left."""

    config_class = EfficientNetLiteConfig
    config: EfficientNetLiteConfig
    main_input_name = "pixel_values"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = SameConv(3, _STEM, 3, 2)
        shapes = list(_blocks(config))
        self.blocks = nn.ModuleList(InvertedResidual(*shape) for shape in shapes)
        self.head = SameConv(shapes[-1][1], config.hidden_size)
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutput:
        """Return the cells, also as the only hidden state.

        Args:
            pixel_values: (B, 3, H, H), normalised by the image processor.
            kwargs: Of other encoders; of no effect.
        """
        x = pixel_values.to(self.dtype).contiguous(memory_format=torch.channels_last)
        x = functional.relu6(self.stem(x), inplace=True)
        for block in self.blocks:
            x = block(x)
        x = functional.relu6(self.head(x), inplace=True)
        cells = functional.avg_pool2d(x, self.config.patch_size // _STRIDE)
        states = cells.flatten(2).transpose(1, 2)
        return BaseModelOutput(last_hidden_state=states, hidden_states=(states,))


def _blocks(config: EfficientNetLiteConfig) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield inputs, outputs, kernel, stride and expansion of each block."""
    inputs = _STEM
    for place, (repeats, kernel, stride, expansion, channels) in enumerate(_STAGES):
        if 0 < place < len(_STAGES) - 1:  # the Lite models leave the first and the last alone
            repeats = math.ceil(config.depth * repeats)
        outputs = _rounded(config.width * channels)
        for number in range(repeats):
            yield inputs, outputs, kernel, 1 if number else stride, expansion
            inputs = outputs


def _rounded(channels: float) -> int:
    """Return the nearest multiple of 8, the next one where that is more than a tenth below."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def folded(published: Mapping[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """Return the weights of `EfficientNetLiteModel` from those of the published file.

    A batch norm behind a convolution multiplies its channels and adds to them: both go into it.

    Args:
        published: ``_conv_stem.weight``, ``_bn0.running_mean``, ``_blocks.0._bn1.bias`` ….
        blocks: How many there are.

    Raises:
        KeyError: A tensor is missing; its name.
    """
    pairs = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for index in range(blocks):
        for name, norm in (("expand", "_bn0"), ("depthwise", "_bn1"), ("project", "_bn2")):
            there = f"_blocks.{index}."
            if index or name != "expand":
                pairs[f"blocks.{index}.{name}"] = (f"{there}_{name}_conv", there + norm)
    state = {}
    for name, (conv, norm) in pairs.items():
        scale = published[f"{norm}.weight"] / (published[f"{norm}.running_var"] + _EPSILON).sqrt()
        weight = published[f"{conv}.weight"] * scale[:, None, None, None]
        state[f"{name}.weight"] = weight.contiguous(memory_format=torch.channels_last)
        shift = published[f"{norm}.running_mean"] * scale
        state[f"{name}.bias"] = published[f"{norm}.bias"] - shift
    return state
