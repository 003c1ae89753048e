"""What `medmoe cost` prints: the systems side by side, training by phase, the paper's figures."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.markup import escape

from medmoe.cli.parser import FOOTER
from medmoe.cli.tables import Screen
from medmoe.experiments.cost import LORA_RANK, PAPER_GPUS, CostReport, SystemCost, paper_lines
from medmoe.experiments.measure import Measured


def show(report: CostReport, measured: Measured | None) -> None:
    """Print a report, and what was measured if anything was."""
    console = Console(highlight=False)
    experts = f"top-{report.top_k} + meta expert, " if report.top_k else "dense, "
    console.print(
        f"[bold]{escape(report.systems[0].system)}[/]: {experts}{report.dtype}, "
        f"batch {report.batch}, context {report.context:,}\n",
        soft_wrap=not console.is_terminal,
    )
    screen = Screen()
    _systems(screen, report)
    _training(screen, report.systems[0])
    console.print(
        "sum = weights + gradients + AdamW (12 bytes a trained weight in mixed precision, 8 in "
        "float32) + activations with gradient checkpointing (chkpt); ZeRO-2 divides "
        "gradients and AdamW's states among the GPUs. Without the runtime's own memory.\n"
    )
    if report.paper is not None:
        title = "The paper's Table 8 and sizes, in units of 10⁹"
        screen.draw(title, ["", "paper", "counted"], paper_lines(report))
    if measured is not None:
        console.print(_measured(measured))
    console.print()
    for note in report.notes:
        console.print(escape(note))
    console.print(FOOTER)


def _systems(screen: Screen, report: CostReport) -> None:
    flops = report.systems[0].flops
    prompt = flops.image_tokens + flops.question_tokens
    rows: dict[str, Callable[[SystemCost], str]] = {
        "weights in all": lambda s: _size(s.total),
        "activated per token": lambda s: _size(s.activated),
        "  vision encoder": lambda s: _size(s.parts["vision_encoder"]),
        "  meta experts": lambda s: _size(s.parts["meta_experts"]),
        "domain experts, all": lambda s: _size(s.parts["domain_experts"]),
        "to load": lambda s: _bytes(s.load_bytes),
        "KV cache": lambda s: _bytes(s.kv_cache_bytes),
        f"to tune, {PAPER_GPUS} GPUs": lambda s: _tuned(s, None),
        f"  LoRA, rank {LORA_RANK}": lambda s: _tuned(s, LORA_RANK),
        "FLOPs per answer": lambda s: _flops(s.flops.total),
        "  image": lambda s: _flops(s.flops.vision),
        f"  prompt, {prompt:,} tokens": lambda s: _flops(s.flops.prefill),
        f"  answer, {flops.answer_tokens} tokens": lambda s: _flops(s.flops.decode),
    }
    screen.draw(
        "",
        ["", *(system.system for system in report.systems)],
        [(name, *map(cell, report.systems)) for name, cell in rows.items()],
    )


def _training(screen: Screen, system: SystemCost) -> None:
    titles = [
        "phase", "trains", "weights", "gradients + AdamW", "activations all / chkpt", "sum",
        f"{PAPER_GPUS} GPUs ZeRO-2",
    ]  # fmt: skip
    rows = [
        (
            row.phase if row.lora_rank is None else f"  LoRA, rank {row.lora_rank}",
            _size(row.trained),
            _giga(row.weights),
            _giga(row.gradients + row.optimizer),
            f"{_giga(row.activations)} / {_giga(row.checkpointed)}",
            _giga(row.sharded()),
            _giga(row.sharded(PAPER_GPUS)),
        )
        for row in system.training
    ]
    screen.draw("Training memory, GB", titles, rows)


def _tuned(system: SystemCost, rank: int | None) -> str:
    """Return what the last phase of a system takes on each of the paper's GPUs."""
    rows = [row for row in system.training if row.lora_rank == rank]
    return _bytes(rows[-1].sharded(PAPER_GPUS)) if rows else "–"


def _measured(measured: Measured) -> str:
    of_files = measured.mapped_bytes
    mapped = "" if of_files is None else f" ({_bytes(of_files)} of it mapped from files)"
    return (
        f"\n[bold]Measured[/] on {measured.device}, {measured.threads} threads, medians of "
        f"{measured.repeats}: load {_bytes(measured.load_bytes)}, once it has "
        f"answered {_bytes(measured.answering_bytes)}{mapped}; first token "
        f"{1000 * measured.first_token_seconds:.0f} ms ({measured.prompt_tokens} tokens of prompt, "
        f"the image's encoding included); each further token "
        f"{1000 * measured.per_token_seconds:.1f} ms"
    )


def _size(count: int) -> str:
    if count >= 10_000_000:
        return f"{count / 1e9:.2f} B"
    return f"{count / 1e6:.2f} M" if count else "–"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10_000_000 else f"{count / 1e6:.2f} MB"


def _giga(count: int) -> str:
    return f"{count / 1e9:.2f}"


def _flops(count: int) -> str:
    return f"{count / 1e12:.2f} T" if count >= 1e10 else f"{count / 1e9:.2f} G"
