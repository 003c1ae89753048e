"""`medmoe expert add`: one expert more, trained beside a model that stays what it is."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.experiments.own_set import write_pictures, write_table
from tests.model.growing import hashes
from tests.model.tiny import DOMAINS, FAMILIES, Family, dense_model, moe_model, processor

from medmoe.cli.main import main
from medmoe.data.schema import images_of
from medmoe.experiments.data import read_data
from medmoe.experiments.expert import _tensors, expert_recipe
from medmoe.model.checkpoint import load_model, save_model
from medmoe.model.experts import Expert, MoeFolder, put_in
from medmoe.routing import record_routing
from medmoe.training.new_expert import NewExpert, calibrate

torch.set_num_threads(1)
SETTINGS = (
    "phases.phase4_expert.epochs=null",
    "phases.phase4_expert.steps=6",
    "phases.phase4_expert.learning_rate=3e-3",
    "expert.row_steps=40",
    "run.save_every=2",
)


def table(folder: Path, numbers: range, modalities: tuple[str, ...]) -> Path:
    """Write a table of two questions a picture."""
    lines = ["image,question,answer,modality"]
    for number, name in enumerate(write_pictures(folder / "images", numbers)):
        modality = modalities[number % len(modalities)]
        lines.append(f"images/{name},Is there a mass?,{('yes', 'no')[number % 2]},{modality}")
        lines.append(f"images/{name},What organ is this?,liver,{modality}")
    path = folder / "data.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Pictures of the new domain, one of another among them, and of the old ones."""
    folder = tmp_path_factory.mktemp("sets")
    new = table(folder / "new", range(300, 326), (*["ultrasound"] * 25, "ct"))
    return new, table(folder / "old", range(24), ("ct", "mri", "xray"))


def add(model: Path, sets: tuple[Path, Path], out: Path, *more: str) -> int:
    words = ["--records", sets[0], "--old", sets[1], "--out", out]
    settings = [word for value in SETTINGS for word in ("--set", value)]
    return main(["expert", "add", str(model), "ultrasound", *map(str, words), *settings, *more])


def base(folder: Path, family: Family = "stablelm", **shape: Any) -> Path:
    save_model(moe_model(family, **shape), processor(), folder, {"data": "own/train"})
    return folder


@pytest.mark.parametrize(
    ("family", "shape"),
    [("stablelm", {}), ("phi", {"top_k": 2}), ("phi", {"routing": "image"})],
)
def test_an_expert_is_added_and_the_rest_is_the_same_bytes(
    family: Family,
    shape: dict[str, Any],
    sets: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = base(tmp_path / "base", family, **shape)
    assert add(model, sets, tmp_path / "run", "--json", str(tmp_path / "told.json")) == 0
    assert "tensors and rows are the same bytes" in capsys.readouterr().out
    old, new = (load_file(p / "model.safetensors") for p in (model, tmp_path / "run" / "model"))
    for name, tensor in old.items():
        assert tensor.equal(new[name][: len(tensor)]), name
    assert all(".mlp.experts.4." in name for name in new.keys() - old.keys())
    told = json.loads((tmp_path / "told.json").read_text())["phases"]["phase4_expert"]["expert"]
    kept = told["calibration"]
    assert kept["kept"] >= 0.995 * kept["decisions"] > 100
    assert 0 < kept["all_kept"] <= kept["rows"]
    assert kept["difference"] <= 1e-6
    assert 0 <= kept["chosen"] <= 1
    entry = MoeFolder(tmp_path / "run" / "model").experts()[4]
    assert entry["provenance"]["origin"] == "added"
    assert len(entry["provenance"]["data_sha256"]) == 2
    assert entry["provenance"]["started_as"] == "the meta expert"
    # It learned: its FFNs are no longer the meta expert's.
    prefix = next(n for n in old if ".meta_expert." in n)
    assert not old[prefix].equal(new[prefix.replace("meta_expert", "experts.4")])


def test_it_starts_as_the_ffn_of_phase_2_and_is_refused_one_of_another_shape(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = base(tmp_path / "base")
    for family in FAMILIES:
        save_model(dense_model(family), processor(), tmp_path / family, {})
    still = ("--set", "phases.phase4_expert.learning_rate=1e-12")
    words = ("--from-ffn", str(tmp_path / "stablelm"), *still)
    assert add(model, sets, tmp_path / "run", *words) == 0
    dense = load_file(tmp_path / "stablelm" / "model.safetensors")
    new = load_file(tmp_path / "run" / "model" / "model.safetensors")
    name = "model.language_model.layers.2.mlp.up_proj.weight"
    torch.testing.assert_close(new[name.replace("mlp", "mlp.experts.4")], dense[name])
    capsys.readouterr()
    assert add(model, sets, tmp_path / "no", "--from-ffn", str(tmp_path / "phi")) == 2
    assert "its activation is gelu_new, the model's silu" in capsys.readouterr().err


@pytest.mark.parametrize("step", [3, 5])
def test_a_killed_addition_resumes_to_the_same_bytes(
    step: int, sets: tuple[Path, Path], tmp_path: Path
) -> None:
    model = base(tmp_path / "base")
    assert add(model, sets, tmp_path / "whole") == 0
    child = os.fork()
    if not child:
        _die_at(step)
        os._exit(add(model, sets, tmp_path / "run"))
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not (tmp_path / "run" / "model").exists()
    assert add(model, sets, tmp_path / "run", "--resume") == 0
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "run")]
    assert files[0].read_bytes() == files[1].read_bytes()
    told = json.loads((tmp_path / "run" / "phase4_expert" / "run.json").read_text())["finished"]
    assert told["resumed_from"] == step // 2 * 2


def _die_at(step: int) -> None:
    """Kill this process when the phase has done a step."""
    from medmoe.cli import train_display

    shown: Callable[..., None] = train_display.Display.progress

    def progress(self: Any, phase: str, number: int, *more: Any) -> None:
        shown(self, phase, number, *more)  # type: ignore[arg-type]
        if number == step:
            os.kill(os.getpid(), signal.SIGKILL)

    train_display.Display.progress = progress  # type: ignore[method-assign]


def test_a_second_expert_stands_beside_the_first(sets: tuple[Path, Path], tmp_path: Path) -> None:
    model = base(tmp_path / "base")
    assert add(model, sets, tmp_path / "one") == 0
    first = tmp_path / "one" / "model"
    other = table(tmp_path / "xa", range(400, 420), ("angiography",))
    words = ["--records", other, "--old", sets[1], "--out", tmp_path / "two"]
    settings = [word for value in SETTINGS for word in ("--set", value)]
    assert main(["expert", "add", *map(str, [first, "XA", *words]), *settings]) == 0
    files = MoeFolder(tmp_path / "two" / "model")
    assert files.domains == [*DOMAINS, "ultrasound", "angiography"]
    assert files.config.rows_of("ultrasound") == [*DOMAINS, "ultrasound"]
    assert set(files.facts["experts"]) == {"ultrasound", "angiography"}
    old, new = hashes(MoeFolder(first)), hashes(files)
    assert all(new[name] == found for name, found in old.items())


def apart(family: Family) -> NewExpert:
    """Return a model with one expert more, which starts as the meta expert."""
    model = moe_model(family)
    ffns = {n: copy.deepcopy(block.meta_expert) for n, block in model.moe_blocks.items()}
    return NewExpert(model, "ultrasound", ffns)


@pytest.mark.parametrize("family", FAMILIES)
def test_while_it_trains_the_model_is_what_its_files_will_be(
    family: Family, tmp_path: Path
) -> None:
    folder, trained = base(tmp_path / "base", family), apart(family)
    ids = torch.tensor([[processor().image_token_id] * 16 + list(range(20, 40))])
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 32, 32)}
    with torch.no_grad():
        before = load_model(folder)[0](**inputs).logits
        torch.testing.assert_close(trained(**inputs).logits, before, rtol=1e-5, atol=1e-5)
    for row in trained.rows():
        row["weight"].copy_(torch.randn(32))
        row["bias"].zero_()
    now = trained(**inputs, labels=ids)
    now.loss.backward()
    own = list(trained.new_experts.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in own)
    model, name = MoeFolder(folder), "ultrasound"
    expert = Expert(name, _tensors(trained, model, name), [*DOMAINS, name], {})
    put_in(model, tmp_path / "new", expert)
    written, _ = load_model(tmp_path / "new")
    with record_routing(written) as trace, torch.no_grad():
        after = written(**inputs).logits
    assert any((trace.experts(layer) == 4).any() for layer in trace.layers)
    torch.testing.assert_close(after, now.logits.detach(), rtol=1e-4, atol=1e-4)


def test_a_row_that_takes_everything_is_lowered_until_old_decisions_are_kept() -> None:
    trained = apart("phi")
    for row in trained.rows():
        row["weight"].fill_(1)
        row["bias"].fill_(50)
    ids = torch.randint(10, 60, (6, 40), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    told = calibrate(trained, [batch], 0.9)
    assert told["decisions"] == 6 * 40 * 2
    assert 0.9 * told["decisions"] <= told["kept"] < told["decisions"]


def test_a_labelled_set_gives_its_own_pictures_and_an_unlabelled_one_all(
    sets: tuple[Path, Path], tmp_path: Path
) -> None:
    model, plain = base(tmp_path / "base"), write_table(tmp_path / "plain", 12, modality=False)
    for new, modality, count in ((sets[0], "ultrasound", 22), (plain, None, 9)):
        names = [str(new), str(sets[1])]
        recipe = expert_recipe(model, "ultrasound", names[:1], names, None, SETTINGS)
        data = read_data(recipe.spec, ["phase4_expert"], None, 7)
        images = images_of(data.records("phase4_expert"))
        assert {image.modality for image in images} == {modality}
        assert len(images) >= count - 3
        old = images_of(data.old_records())
        assert {image.modality for image in old} <= {"ct", "mri", "xray"}
        assert not {image.id for image in old} & {image.id for image in images}


def test_what_cannot_be_added_is_one_line(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = base(tmp_path / "base")

    def refused(*words: object) -> str:
        assert main(["expert", "add", *map(str, words), "--out", str(tmp_path / "run")]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    assert "unknown domain 'sonar'" in refused(model, "sonar", "--records", sets[0])
    assert "has an expert ct already" in refused(model, "CT", "--records", sets[0])
    assert "--old SET" in refused(model, "ultrasound", "--records", sets[0])
    assert "name both: --records SET --out DIR" in refused(model, "ultrasound")
    shutil.rmtree(tmp_path / "base")
    save_model(dense_model("phi"), processor(), tmp_path / "base", {})
    assert "a dense model has no experts" in refused(model, "ultrasound", "--records", sets[0])
