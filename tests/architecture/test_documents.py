"""The documents tell the truth: every name they give exists, and their example works."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from medmoe.backbones.ffn import GATED, ffn_family
from medmoe.config.load import check, parse_yaml
from medmoe.config.schema import ModelSpec

ROOT = Path(__file__).resolve().parents[2]
PAPER = (ROOT / "docs" / "paper_to_code.md").read_text(encoding="utf-8")
ADD = (ROOT / "docs" / "add_a_backbone.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)(?::([\w.]+))?`", PAPER)))


@lru_cache
def names_of(path: Path) -> frozenset[str]:
    """Return the names a file defines at its top, and `Class.method` for each method."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (part for part in node.body if isinstance(part, ast.FunctionDef))
            found |= {f"{node.name}.{method.name}" for method in methods}
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        found |= {name.id for t in targets for name in ast.walk(t) if isinstance(name, ast.Name)}
    return frozenset(found)


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[":".join(pair) for pair in NAMED])
def test_every_name_that_the_paper_is_mapped_to_exists(path: str, name: str) -> None:
    top = ROOT if path.split("/")[0] in {"tests", "scripts"} else ROOT / "src" / "medmoe"
    assert (top / path).is_file()
    assert not name or name in names_of(top / path)


def test_every_table_and_every_measuring_figure_is_listed() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \|", PAPER, re.MULTILINE)
    numbers = [int(number) for row in rows for number in row.split(",")]
    assert numbers[:13] == list(range(1, 14))
    assert sorted(numbers[13:]) == [3, 4, 5, 6, 10, 11]


def test_a_name_that_does_not_exist_would_be_found() -> None:
    assert len(NAMED) > 50
    assert "MoeBlock.forward" in names_of(ROOT / "src" / "medmoe" / "model" / "moe.py")
    assert "MoeBlock.backward" not in names_of(ROOT / "src" / "medmoe" / "model" / "moe.py")


def test_the_example_backbone_is_what_its_card_says() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", ADD, re.MULTILINE | re.DOTALL)
    made: dict[str, Any] = {}
    exec(compile(code, "docs/add_a_backbone.md", "exec"), made)
    backbone = made["QWEN2_5_0_5B"]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(backbone.model_type, **backbone.config)
        )
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert f"{weights:,} here" in ADD
    assert ffn_family(model.model.layers[0].mlp) is GATED
    assert max(map(len, code.splitlines())) <= 100, "ruff would refuse the file"


def test_the_example_recipe_is_one() -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```", ADD, re.MULTILINE | re.DOTALL)
    spec = check(ModelSpec, parse_yaml(text, "docs/add_a_backbone.md"), "example")
    assert spec.moe_layers == tuple(range(0, 24, 2))
