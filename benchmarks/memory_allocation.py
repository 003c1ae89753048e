"""What a CPU training step takes where glibc asks for huge pages, and where it keeps freed memory.

A step makes and frees gigabytes of tensors. By default each large one is mapped anew in pages of
4 KiB, which the kernel zeroes one at a time. `GLIBC_TUNABLES` is read when a process starts, so
each repeat starts one for each setting. Random weights; bf16 where the processor has units for it.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from support.timing import Ratio, options
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from medmoe.backbones.registry import language_backbone, vision_backbone
from medmoe.cli.machine import KEEPS_HUGE_PAGES
from medmoe.model.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel, SameConv

SETTINGS = {
    "default": "",
    "huge pages": "glibc.malloc.hugetlb=1",
    "huge pages, memory kept": KEEPS_HUGE_PAGES,
}
WARM, STEPS = 3, 6


def encoder() -> tuple[torch.nn.Module, Callable[[], Tensor]]:
    """Return EfficientNet-Lite2 and its loss on 32 pictures of 320 px."""
    config = EfficientNetLiteConfig(**vision_backbone("efficientnet_lite2").config)
    model = EfficientNetLiteModel(config).to(memory_format=torch.channels_last)
    for conv in model.modules():
        if isinstance(conv, SameConv):
            torch.nn.init.kaiming_normal_(conv.weight)
    pixels = torch.rand(32, 3, 320, 320)
    return model, lambda: model(pixels).last_hidden_state.float().square().mean()


def language() -> tuple[torch.nn.Module, Callable[[], Tensor]]:
    """Return Gemma 3 270M's layers with few words, and their loss on 8 rows of 160 tokens."""
    shape = language_backbone("gemma3_270m").config | {"vocab_size": 8192}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3_text", **shape))
    ids = torch.randint(4, 8192, (8, 160))
    return model, lambda: model(input_ids=ids, labels=ids).loss


WORK = {"EfficientNet-Lite2": encoder, "Gemma 3 270M": language}


def steps(work: str) -> dict[str, float]:
    """Return the median seconds of a step, the last loss, and the most memory (GiB)."""
    torch.manual_seed(0)
    model, loss_of = WORK[work]()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0)
    bf16, seconds, loss = torch.cpu._is_avx512_bf16_supported(), [], torch.tensor(0.0)
    for _ in range(WARM + STEPS):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "seconds": statistics.median(seconds[WARM:]),
        "loss": float(loss.detach()),
        "memory": peak,
    }


def in_process(work: str, setting: str, threads: int) -> dict[str, float]:
    """Return `steps` of a process of its own."""
    command = [sys.executable, __file__, "--work", work, str(threads)]
    environment = os.environ | {"GLIBC_TUNABLES": SETTINGS[setting]}
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(said.stdout.splitlines()[-1])
    return found


def main() -> None:
    values = options(__doc__.splitlines()[0])
    if platform.libc_ver()[0] != "glibc":
        print("not measured: this system's C library is not glibc")
        return
    print(f"{'a step of':<22}{'setting':<26}{'default ÷ it':<22}memory, GiB")
    for work in WORK:
        runs: dict[str, list[dict[str, float]]] = {setting: [] for setting in SETTINGS}
        for _ in range(max(1, values.repeats // 3)):
            for setting, own in runs.items():
                own.append(in_process(work, setting, values.threads))
        losses = {run["loss"] for own in runs.values() for run in own}
        assert len(losses) == 1, f"not the same training: losses {losses}"
        for setting, own in runs.items():
            pairs = zip(runs["default"], own, strict=True)
            each = [plain["seconds"] / mine["seconds"] for plain, mine in pairs]
            ratio = Ratio(statistics.median(each), min(each), max(each))
            memory = statistics.median(run["memory"] for run in own)
            print(f"{work:<22}{setting:<26}{ratio!s:<22}{memory:.1f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        torch.set_num_threads(int(sys.argv[3]))
        print(json.dumps(steps(sys.argv[2])))
    else:
        main()
