"""What may import what, and what an import may cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "accelerate",
    "jinja2",
    "matplotlib",
    "nltk",
    "numpy",
    "PIL",
    "pydantic",
    "rich",
    "scipy",
    "sklearn",
    "torch",
    "transformers",
}


def modules_after(code: str) -> list[str]:
    """Return the modules that a fresh interpreter holds after running `code`."""
    probe = f"{code}\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=240
    )
    modules: list[str] = json.loads(done.stdout.splitlines()[-1])
    return modules


def loaded_after(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after running `code`."""
    return {name.split(".")[0] for name in modules_after(code)}


def lint_imports(folder: Path, config: Path) -> subprocess.CompletedProcess[str]:
    """Run the import rule of `config` on the package that stands in `folder`."""
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [program, "--no-cache", "--no-logo", "--config", config],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def copy_of_the_tree(source: Path, folder: Path) -> Path:
    """Make a package of the same modules as ours, all of them empty."""
    for path in source.rglob("*.py"):
        twin = folder / "medmoe" / path.relative_to(source)
        twin.parent.mkdir(parents=True, exist_ok=True)
        twin.touch()
    return folder / "medmoe"


def test_imports_go_down_only_and_siblings_stay_apart(repository: Path) -> None:
    done = lint_imports(repository / "src", repository / "pyproject.toml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("data/schema.py", "import medmoe.model"),
        ("config/__init__.py", "import medmoe.training"),
        ("training/__init__.py", "import medmoe.evaluation"),
        ("errors.py", "import medmoe.config"),
        ("evaluation/pairs/measure.py", "import medmoe.evaluation.pages.table"),
        ("evaluation/score/table.py", "import medmoe.evaluation.reliability.measure"),
    ],
)
def test_the_rule_refuses_an_upward_or_sideways_import(
    repository: Path, source: Path, tmp_path: Path, where: str, what: str
) -> None:
    (copy_of_the_tree(source, tmp_path) / where).write_text(what + "\n")
    done = lint_imports(tmp_path, repository / "pyproject.toml")
    assert done.returncode == 1
    assert "is not allowed to import" in done.stdout


def test_the_rule_refuses_a_package_that_stands_in_no_layer(
    repository: Path, source: Path, tmp_path: Path
) -> None:
    copy_of_the_tree(source, tmp_path).joinpath("helpers.py").touch()
    done = lint_imports(tmp_path, repository / "pyproject.toml")
    assert done.returncode == 1
    assert "medmoe.helpers" in done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import medmoe",
        "import medmoe.cli.main as m; m.main(['--help'])",
        "import medmoe.cli.main as m; m.main(['--version'])",
        "import medmoe.cli.main as m; m.main(['no-such-verb'])",
    ],
)
def test_a_light_start_loads_nothing_heavy(code: str) -> None:
    assert not loaded_after(code) & HEAVY


def test_pictures_and_answers_load_no_recipes() -> None:
    assert "pydantic" not in loaded_after("import medmoe.data.images, medmoe.model.checkpoint")


def test_every_verb_shows_its_flags_without_loading_torch() -> None:
    code = "import medmoe.cli.main as m\nfor verb in m.VERBS: m.parser_of(verb).format_help()"
    assert not loaded_after(code) & {"torch", "transformers", "matplotlib", "sklearn"}


@pytest.mark.parametrize(
    ("code", "times"),
    [("import medmoe", 3), ("import medmoe.cli.main as m; m.main(['--help'])", 6)],
)
def test_a_light_start_loads_few_modules(code: str, times: int) -> None:
    """A start costs its imports: they are counted, since clocks differ between machines."""
    assert len(modules_after(code)) < times * len(modules_after("import json"))


def test_public_names_are_lazy_and_a_wrong_one_is_refused() -> None:
    import medmoe

    assert set(medmoe._LAZY) <= set(dir(medmoe))
    with pytest.raises(AttributeError, match="has no attribute 'MedMoE'"):
        _ = medmoe.MedMoE
