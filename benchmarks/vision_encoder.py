"""How much faster EfficientNet-Lite2 reads pictures than its plain form (bar: 2.5 with bf16).

Plain: eager float32, batch norms apart, padding apart, channels first. Ours: folded, channels-last,
and in bfloat16 where the processor has units for it. Random weights, pictures of 320 px.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from support.timing import options, ratios
from torch import Tensor
from torch.nn import functional

from medmoe.backbones.registry import vision_backbone
from medmoe.model.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel, SameConv

BAR, SIDE, EPSILON = 2.5, 320, 1e-3


def plain_layer(conv: SameConv, x: Tensor, *, relu: bool = True) -> Tensor:
    """Return a convolution, its batch norm and its activation, one after the other."""
    kernel, stride, side = conv.kernel_size[0], conv.stride[0], x.shape[-1]
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    if total:
        x = functional.pad(x, (total // 2, total - total // 2) * 2)
    x = functional.conv2d(x, conv.weight.contiguous(), None, stride, groups=conv.groups)
    zero, one = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
    x = functional.batch_norm(x, zero, one - EPSILON, one, conv.bias, eps=EPSILON)
    return functional.relu6(x) if relu else x


def plain(model: Any, x: Tensor) -> Tensor:
    """Return the cells (B, P, C) by the description, layer by layer."""
    x = plain_layer(model.stem, x)
    for block in model.blocks:
        y = x if block.expand is None else plain_layer(block.expand, x)
        y = plain_layer(block.project, plain_layer(block.depthwise, y), relu=False)
        x = y + x if block.residual else y
    return plain_layer(model.head, x).flatten(2).transpose(1, 2)


def main() -> None:
    values = options(__doc__.splitlines()[0])
    torch.manual_seed(0)
    config = EfficientNetLiteConfig(**vision_backbone("efficientnet_lite2").config)
    model = EfficientNetLiteModel(config).eval().to(memory_format=torch.channels_last)
    for conv in model.modules():
        if isinstance(conv, SameConv):
            torch.nn.init.kaiming_normal_(conv.weight)
    has_bf16 = torch.cpu._is_avx512_bf16_supported()
    print(f"{'pictures':<10}{'plain ÷ folded':<24}plain ÷ folded, bf16")
    best = 0.0
    with torch.inference_mode():
        for count in (1, 16):
            pixels = torch.rand(count, 3, SIDE, SIDE) * 2 - 1

            def ours(pixels: Tensor = pixels) -> Tensor:
                cells: Tensor = model(pixels).last_hidden_state
                return cells

            def in_bf16(run: Callable[[], Tensor] = ours) -> Tensor:
                with torch.autocast("cpu", torch.bfloat16):
                    return run()

            torch.testing.assert_close(ours(), plain(model, pixels), atol=1e-3, rtol=1e-3)
            ways: dict[str, Callable[[], Any]] = {
                "plain": partial(plain, model, pixels),
                "ours": ours,
            }
            line = f"{count:<10}"
            for name, way in (("ours", ours), ("bf16", in_bf16)):
                if name == "bf16" and not has_bf16:
                    line += "not measured: no bf16 units"
                    continue
                found = ratios({"plain": ways["plain"], name: way}, name, values.repeats)["plain"]
                best = max(best, found.median)
                line += f"{found!s:<24}"
            print(line)
    print(f"best median: {best:.2f}, {'reaches' if best >= BAR else 'BELOW'} the bar of {BAR:g}")


if __name__ == "__main__":
    main()
