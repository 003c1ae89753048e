"""The report of `medmoe cost`: the paper's true counts, and what stands beside them."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.configs.test_models import recipe_model
from tests.model.tiny import dense_model, moe_model, processor

from medmoe.errors import CheckpointError, ConfigError
from medmoe.experiments.cost import CostReport, cost_report, llava_med_config, paper_lines
from medmoe.experiments.measure import measure
from medmoe.model.blueprint import meta_model
from medmoe.model.checkpoint import save_model
from medmoe.model.cost.parameters import activated_parameters, count_by_part, total_parameters

# Billions of weights: in all, activated with top-1 and with top-2.
PAPER = {"phi2_2_7b": (6.45, 3.93, 4.77), "stablelm2_1_6b": (3.62, 2.37, 2.78)}
LISTINGS = {"phi2_2_7b": "phi2", "stablelm2_1_6b": "stablelm2_1_6b"}


@cache
def counted(name: str) -> CostReport:
    """Return the report of a recipe; it takes seconds, and nobody changes it."""
    return cost_report(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "model"
    save_model(moe_model("stablelm", 2), processor(), path, {})
    return path


@pytest.mark.parametrize("name", PAPER)
def test_counts_are_the_reference_classes_own(name: str, shared: Path) -> None:
    path = shared / "reference" / "keys" / f"{LISTINGS[name]}_stage3_keys.json"
    reference = json.loads(path.read_text())["summary"]
    model = recipe_model(name)
    counts = count_by_part(model)
    # The reference drops the bias of Phi-2's head, and counts no router among the activated.
    bias = model.lm_head.bias.numel() if name == "phi2_2_7b" else 0
    assert total_parameters(model) == reference["total"] + bias
    assert counts["vision_encoder"] == reference["image_tower"]
    assert counts["domain_experts"] == 4 * reference["one_expert_all_layers"]
    activated = reference["activated_top1_plus_meta"] + bias + counts["routers"]
    assert activated_parameters(model) == activated


def test_phi2_report_holds_the_papers_true_sizes_beside_its_own() -> None:
    report = counted("phi2_2_7b")
    moe, twin, llava = report.systems
    assert (round(moe.total / 1e9, 2), round(moe.activated / 1e9, 2)) == PAPER["phi2_2_7b"][:2]
    assert (
        twin.total
        == twin.activated
        == moe.total - sum(moe.parts[part] for part in ("domain_experts", "routers"))
    )
    # LLaMA-7B has 6.74 billion weights.
    assert llava.total == 6_738_415_616 + llava.parts["vision_encoder"] + llava.parts["projector"]
    assert [row.phase for row in moe.training if row.lora_rank is None] == [
        "phase1_alignment",
        "phase2_instruction",
        "phase2_router",
        "phase3_moe",
    ]
    assert moe.load_bytes == 2 * moe.total + 2 * moe.parts["routers"]
    assert {name for name, _, _ in paper_lines(report)} == {
        f"{system}: {what}"
        for system in ("phi2_2_7b", "LLaVA-Med-7B")
        for what in ("activated weights", "load", "training", "LoRA training")
    } - {"LLaVA-Med-7B: LoRA training"}
    assert any("51,200" in note for note in report.notes)
    # The paper's training memory is one of eight GPUs under ZeRO-2.
    ((_, paper, ours),) = [row for row in paper_lines(report) if row[0] == "phi2_2_7b: training"]
    assert float(ours) == pytest.approx(float(paper), rel=0.1)


@pytest.mark.parametrize("name", PAPER)
def test_sizes_with_top1_and_top2_are_the_true_ones(name: str) -> None:
    model = recipe_model(name)
    found = [total_parameters(model)]
    for top_k in (1, 2):
        model.config.num_experts_per_tok = top_k
        found.append(activated_parameters(model))
    assert tuple(round(count / 1e9, 2) for count in found) == PAPER[name]


@pytest.mark.parametrize(("name", "place"), [("phi2_2_7b", 0), ("stablelm2_1_6b", 1)])
def test_the_document_gives_what_is_counted(name: str, place: int, repository: Path) -> None:
    document = (repository / "docs" / "paper_to_code.md").read_text(encoding="utf-8")

    def row(begin: str) -> str:
        (line,) = re.findall(rf"^\| {begin}.*$", document, re.MULTILINE)
        return str(line)

    own = counted(name).systems[0]
    sizes = row(f"{('Phi-2', 'StableLM')[place]}, in all")
    assert f"{own.total / 1e9:.2f} / {own.activated / 1e9:.2f} /" in sizes
    pair = r"([\d.]+) and ([\d.]+) GB"
    assert re.findall(pair, row("to load"))[1][place] == f"{own.load_bytes / 1e9:.2f}"
    full, lora = (found for found in own.training if found.phase == "phase3_moe")
    _, shards, single = re.findall(pair, row("to train phase 3"))
    assert shards[place] == f"{full.sharded(8) / 1e9:.1f}"
    assert single[place] == f"{full.sharded() / 1e9:.1f}"
    flops = own.flops.total / 1e12
    assert f"{flops:.2f}{(' TFLOPs with Phi-2', ' with StableLM')[place]}" in document
    _, adapters = re.findall(pair, row("the same with LoRA"))
    assert adapters[place] == f"{lora.sharded(8) / 1e9:.1f}"


def test_a_folder_is_counted_as_it_was_saved(folder: Path) -> None:
    report = cost_report(str(folder), batch=3, context=40)
    model = moe_model("stablelm", 2)
    own = report.systems[0].to_dict()
    assert (report.dtype, report.top_k, report.context) == ("float32", 2, 40)
    assert own["total"] == total_parameters(model)
    assert own["load_bytes"] == 4 * own["total"]
    assert own["kv_cache_bytes"] == 3 * 40 * 3 * 2 * 32 * 4
    assert own["flops"]["total"] == sum(
        own["flops"][part] for part in ("vision", "prefill", "decode")
    )
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_dense_folder_has_no_twin_and_no_expert_phases(tmp_path: Path) -> None:
    save_model(dense_model("phi"), processor(), tmp_path / "model", {})
    report = cost_report(str(tmp_path / "model"), context=40)
    assert [system.system for system in report.systems] == ["model", "LLaVA-Med-7B"]
    assert {row.phase for row in report.systems[0].training} == {
        "phase1_alignment",
        "phase2_instruction",
    }
    assert report.top_k is None
    with pytest.raises(ConfigError, match="a dense model has none"):
        cost_report(str(tmp_path / "model"), top_k=1)


def test_llava_med_reads_fewer_tokens_at_224_pixels() -> None:
    large, small = llava_med_config(336), llava_med_config(224)
    assert (large.image_seq_length, small.image_seq_length) == (576, 256)
    counts = count_by_part(meta_model(small))
    assert counts["domain_experts"] == counts["routers"] == 0


def test_a_model_behind_siglip_is_counted() -> None:
    """Its weights are drawn by a function that cannot be run on shapes alone."""
    phases = {row.phase for row in cost_report("qwen3_0_6b_medsiglip").systems[0].training}
    assert {"phase1_alignment", "phase2_instruction", "phase3_moe"} <= phases


@pytest.mark.parametrize(
    ("model", "flags", "message"),
    [
        ("phi2", {}, "unknown model 'phi2'; .*did you mean 'phi2_2_7b'.*or give the folder"),
        ("no/such/folder", {}, "unknown model 'no/such/folder'"),
        (__file__, {}, "test_cost.py is a file; cost reads the name of a model recipe .*phi2_2_7b"),
        ("qwen3_0_6b", {"top_k": 5}, r"--top-k 5 must not exceed the number of domains \(4\)"),
        ("qwen3_0_6b", {"context": 576}, "--context 576 must lie above the 576 tokens"),
        ("phi2_2_7b", {"context": 4096}, "not above the 2048 positions"),
    ],
)
def test_what_does_not_fit_is_refused(model: str, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        cost_report(model, **flags)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config.json: no such file"),
        ("{", "not readable as JSON"),
        ('{"model_type": "llava"}', "of type 'llava', not 'medmoe'"),
        ("[]", "not readable as JSON of an object"),
        ('{"model_type": "medmoe", "text_config": 3}', "not a complete config"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(
    content: str | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        cost_report(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_measuring_runs_the_model_in_a_process_of_its_own(folder: Path, tmp_path: Path) -> None:
    found = measure(folder, repeats=2)
    assert found.repeats == 2
    # Of a tiny model both are mostly what the libraries take when they are first used.
    assert min(found.load_bytes, found.answering_bytes) > 0
    assert 0 < found.per_token_seconds < found.first_token_seconds * 10
    assert found.first_token_seconds > 0
    assert found.prompt_tokens > 16
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no MANIFEST\.json"):
        measure(tmp_path, repeats=1)
