"""`import medmoe` makes the model known to transformers, whichever is imported first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.model.tiny import moe_model, processor

LOADS = """\
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
for auto in (AutoConfig, AutoModelForImageTextToText, AutoProcessor):
    print(type(auto.from_pretrained(sys.argv[1])).__name__)
"""
STARTS = {
    "medmoe first": "import sys, medmoe",
    "transformers first": "import sys, transformers, medmoe",
    "a spec looked for in between": (
        "import sys, medmoe, importlib.util\nassert importlib.util.find_spec('transformers')"
    ),
    "through another module of ours": "import sys, medmoe.data.tokenize",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `save_pretrained` leaves it."""
    path = tmp_path_factory.mktemp("saved")
    moe_model("stablelm", 2).save_pretrained(path)
    processor().save_pretrained(path)
    return path


def run(code: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("start", STARTS)
def test_the_auto_classes_load_after_a_bare_import(start: str, folder: Path) -> None:
    said = run(f"{STARTS[start]}\n{LOADS}", str(folder))
    assert said.split() == ["MedMoeConfig", "MedMoeForConditionalGeneration", "MedMoeProcessor"]


def test_transformers_imports_even_where_the_model_cannot_be_registered() -> None:
    said = run(
        "import sys, warnings, medmoe\n"
        "sys.modules['medmoe.model'] = None  # as where a part of it cannot be imported\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    import transformers\n"
        "print([str(w.message) for w in seen if 'medmoe' in str(w.message)])\n"
    )
    assert "not registered with transformers" in said
    assert "medmoe doctor" in said
