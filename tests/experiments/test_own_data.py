"""Training on one's own pictures: `--records`, `--modality`, and going on with a trained model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.data.pictures import picture
from tests.experiments.micro_train import micro_recipe, silent
from tests.experiments.own_set import write_classes, write_pictures, write_table
from tests.model.test_locate import in_the_cache

from medmoe.errors import CheckpointError, ConfigError, DataError
from medmoe.evaluation.ask.records import task_records
from medmoe.evaluation.tasks import task_spec
from medmoe.experiments.data import TrainData, _is_of_one_domain, read_data
from medmoe.experiments.estimate import estimate
from medmoe.experiments.plan import plan_train
from medmoe.experiments.recipe import Recipe, load_recipe, origin_settings, record_settings
from medmoe.experiments.run import run_train
from medmoe.model.checkpoint import load_model, provenance


def own_recipe(*records: object, more: tuple[str, ...] = ()) -> Recipe:
    """Return the micro recipe with its data replaced."""
    replaced = record_settings(micro_recipe().spec, list(map(str, records)))
    return micro_recipe(*replaced, *more)


def data_of(recipe: Recipe, *phases: str, **flags: bool) -> TrainData:
    return read_data(recipe.spec, [p for p in recipe.spec.phases if p in phases], None, 7, **flags)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("own") / "clinic")


@pytest.fixture(scope="module")
def run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of all phases on the table."""
    out = tmp_path_factory.mktemp("runs") / "clinic"
    run_train(plan_train(own_recipe(table), (), None, out, 7), silent, None)
    return out


def test_records_replace_the_data_of_every_phase_and_are_kept_apart(table: Path) -> None:
    spec = own_recipe(table).spec
    assert {phase.data for phase in spec.phases.values()} == {(str(table),)}
    assert spec.data.apart_from == (str(table),)
    assert spec.router is not None
    assert spec.router.test == (str(table),)
    one_part = own_recipe(f"{table}:train").spec
    assert one_part.phases["phase3_moe"].data == (f"{table}:train",)
    assert one_part.data.apart_from == ()


def test_a_folder_right_here_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path / "tiles")
    monkeypatch.chdir(tmp_path)
    assert own_recipe("tiles").spec.phases["phase3_moe"].data == ("./tiles",)


def test_a_set_is_trained_on_by_its_training_part_and_named_by_set_and_split(table: Path) -> None:
    data = data_of(own_recipe(table), "phase2_instruction", "phase2_router")
    assert set(data.sets) == {"clinic/train", "clinic/validation", "clinic/test"}
    assert data.trained("phase2_instruction") == ["clinic/train"]
    assert list(data.hashes("phase2_instruction")) == ["clinic/train"]
    tested = {image.id for image in data.router_test()}
    assert tested == {r.image.id for r in data.sets["clinic/test"]}
    assert not tested & {r.image.id for r in data.records("phase2_instruction")}


def test_a_copy_of_an_own_test_picture_is_dropped(tmp_path: Path) -> None:
    folder = tmp_path / "copies"
    write_pictures(folder, range(12))
    shutil.copy(folder / "000.png", folder / "copy.png")
    rows = [f"{n:03d}.png,a question,yes,{'test' if n < 3 else 'train'}" for n in range(12)]
    rows = ["image,question,answer,split", *rows, "copy.png,a question,yes,train"]
    (folder / "data.csv").write_text("\n".join(rows) + "\n")
    data = data_of(own_recipe(folder), "phase2_instruction")
    assert data.dropped == {"copies/train": 1}
    assert len(data.records("phase2_instruction")) == 9


def test_a_modality_labels_the_sets_that_name_none_and_no_other(
    table: Path, tmp_path: Path
) -> None:
    classes = write_classes(tmp_path / "tiles")
    recipe = own_recipe(table, classes, more=("data.modality=Histology",))
    data = data_of(recipe, "phase2_router")
    found = {(r.dataset, r.image.modality) for r in data.records("phase2_router")}
    assert found == {
        ("clinic", "ct"),
        ("clinic", "mri"),
        ("clinic", "xray"),
        ("tiles", "pathology"),
    }
    assert {i.modality for i in data.router_test()} >= {"pathology"}


def test_without_a_modality_the_router_names_the_flag(tmp_path: Path) -> None:
    data = data_of(own_recipe(write_classes(tmp_path / "tiles")), "phase2_router")
    with pytest.raises(DataError, match="--modality X labels all pictures of a set that names non"):
        data.check(["phase2_router"], (), 7)


def test_one_modality_only_trains_and_says_which_experts_see_nothing(tmp_path: Path) -> None:
    recipe = own_recipe(write_classes(tmp_path / "tiles"), more=("data.modality=pathology",))
    notes = data_of(recipe, "phase2_router").check(["phase2_router"], (), 7)
    assert "of ct, mri, xray: their experts see nothing" in notes["phase2_router"]
    assert "(--domains pathology leaves them out)" in notes["phase2_router"]


def test_two_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    twins = [write_classes(tmp_path / name / "tiles") for name in ("a", "b")]
    with pytest.raises(DataError, match="another set is called tiles too; rename"):
        data_of(own_recipe(*twins), "phase2_instruction")


def test_a_path_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.csv: no such file or folder"):
        own_recipe(tmp_path / "nothing.csv")


def test_a_picture_outside_the_folder_needs_the_flag(tmp_path: Path) -> None:
    write_pictures(tmp_path, range(10))
    (tmp_path / "set").mkdir()
    rows = [f"../{n:03d}.png,a question,yes" for n in range(10)]
    path = tmp_path / "set" / "data.csv"
    path.write_text("\n".join(["image,question,answer", *rows]) + "\n")
    with pytest.raises(DataError, match=r"data\.csv row 2: .* lies outside .* --allow-outside"):
        data_of(own_recipe(path), "phase2_instruction")
    data = data_of(own_recipe(path), "phase2_instruction", allow_outside=True)
    assert data.records("phase2_instruction")
    phases = ("phase2_instruction",)
    for allowed, samples in ((False, None), (True, 8)):
        plan = estimate(own_recipe(path), phases, None, 7, allow_outside=allowed)
        assert plan["phases"]["phase2_instruction"]["samples"] == samples


def test_how_a_set_was_read_is_said_once(table: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "medmoe")
    data_of(own_recipe(table), "phase2_instruction", "phase2_router")
    assert [line for line in caplog.messages if "parted by picture" in line] == caplog.messages
    assert len(caplog.messages) == 1
    caplog.clear()
    task_records(task_spec(str(table)), None, split=None, limit=None, seed=7)
    assert len(caplog.messages) == 1


def test_a_run_names_its_sets_by_name_not_by_path(table: Path, run: Path) -> None:
    facts = provenance(run / "phase3_moe" / "model")
    assert facts["data"] == "clinic/train"
    assert list(facts["data_sha256"]) == ["clinic/train"]
    assert "The data hold no captions: phase 1 aligned on the questions." in facts["notes"]
    assert str(table.parent) not in json.dumps(facts)
    config = load_recipe(str(run / "phase3_moe" / "config.yaml")).spec
    assert config.phases["phase3_moe"].data == (str(table),)


# ---- going on with a trained model ----


def going_on(table: Path, model: Path, *phases: str, more: tuple[str, ...] = ()) -> Recipe:
    recipe = own_recipe(table, more=more)
    extra = origin_settings(recipe, model, phases)
    return own_recipe(table, more=(*more, *extra))


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "model.safetensors")


@pytest.mark.parametrize(
    ("origin", "chosen", "phases", "starts"),
    [
        ("phase3_moe", (), ["phase3_moe"], "phase3_moe"),
        ("phase2_instruction", (), ["phase2_router", "phase3_moe"], "phase2_instruction"),
        (
            "phase1_alignment",
            (),
            ["phase2_instruction", "phase2_router", "phase3_moe"],
            "phase2_instruction",
        ),
        (
            "phase2_instruction",
            ("phase2_instruction", "phase2_router"),
            ["phase2_instruction", "phase2_router"],
            "phase2_instruction",
        ),
        ("phase2_instruction", ("phase1_alignment",), ["phase1_alignment"], "phase1_alignment"),
    ],
)
def test_what_a_model_goes_on_with_follows_from_the_phase_that_made_it(
    table: Path,
    run: Path,
    origin: str,
    chosen: tuple[str, ...],
    phases: list[str],
    starts: str,
) -> None:
    spec = going_on(table, run / origin, *chosen).spec
    assert list(spec.phases) == phases
    assert spec.starts == {starts: str(run / origin)}


def test_a_med_moe_trains_its_experts_further_with_the_router_it_has(
    table: Path, run: Path, tmp_path: Path
) -> None:
    recipe = going_on(table, run / "phase3_moe")
    summary = run_train(plan_train(recipe, (), None, tmp_path / "more", 7), silent, None)
    before = weights(run / "phase3_moe" / "model")
    after = weights(tmp_path / "more" / summary["model"])
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("expert" in name for name in changed)
    facts = provenance(tmp_path / "more" / "phase3_moe" / "model")
    assert set(facts["starts"]) == {"phase3_moe"}


def test_a_dense_model_is_trained_further_before_it_is_upcycled(
    table: Path, run: Path, tmp_path: Path
) -> None:
    chosen = ("phase2_instruction", "phase2_router", "phase3_moe")
    recipe = going_on(table, run / "phase2_instruction", *chosen, more=("model.domains=[ct,mri]",))
    run_train(plan_train(recipe, (), None, tmp_path / "more", 7), silent, None)
    old = weights(run / "phase2_instruction" / "model")
    new = weights(tmp_path / "more" / "phase2_instruction" / "model")
    assert any(not torch.equal(old[name], new[name]) for name in old)
    # The router and phase 3 start from this run's phase 2, not from the model it went on with.
    starts = provenance(tmp_path / "more" / "phase3_moe" / "model")["starts"]
    assert starts["phase2_instruction"].startswith(str(tmp_path / "more"))


def test_other_experts_than_the_recipes_are_one_line_with_the_flag(table: Path, run: Path) -> None:
    message = "has the experts ct, mri, pathology, xray, .* has ct, mri; use --domains ct,mri,path"
    with pytest.raises(ConfigError, match=message):
        going_on(table, run / "phase3_moe", more=("model.domains=[ct,mri]",))


def test_a_phase_that_cannot_go_on_with_a_model_is_one_line(table: Path, run: Path) -> None:
    message = "is a Med-MoE, which phase3_moe can go on with, and tiny_phantom would begin with"
    with pytest.raises(ConfigError, match=message):
        going_on(table, run / "phase3_moe", "phase2_router")


def test_a_hub_id_is_gone_on_with_from_the_cache(
    table: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = in_the_cache(tmp_path, run / "phase3_moe" / "model", "clinic/med-moe")
    recipe = going_on(table, Path("clinic/med-moe"))
    assert recipe.spec.starts == {"phase3_moe": str(snapshot)}
    plan = plan_train(recipe, (), None, tmp_path / "more", 7)
    assert plan.where("phase3_moe", "phase3_moe") == snapshot
    with pytest.raises(CheckpointError, match="clinic/other: no such folder, and no model that th"):
        going_on(table, Path("clinic/other"))
    (snapshot / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match=r"accept it by `medmoe adopt "):
        going_on(table, Path("clinic/med-moe"))


def test_an_adapter_is_merged_into_what_is_gone_on_with(
    table: Path, run: Path, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'medmoe[dev]'")
    base = run / "phase3_moe" / "model"
    settings = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"])
    adapted = peft.get_peft_model(load_model(base)[0], settings)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_" in name:
                parameter.fill_(0.01)
    adapted.save_pretrained(tmp_path / "adapter")
    recipe = going_on(table, tmp_path / "adapter")
    run_train(plan_train(recipe, (), None, tmp_path / "more", 7), silent, None)
    trained = tmp_path / "more" / "phase3_moe" / "model"
    old, new = weights(base), weights(trained)
    query = next(name for name in old if name.endswith("q_proj.weight"))
    merged = load_model(tmp_path / "adapter")[0].state_dict()[query]
    assert torch.equal(new[query], merged)
    assert not torch.equal(new[query], old[query])
    assert "The LoRA adapter adapter is merged in." in provenance(trained)["notes"]


def test_every_picture_of_a_row_counts_in_what_a_run_reads(tmp_path: Path) -> None:
    for seed, name in enumerate("abcd"):
        Image.fromarray(picture(seed, 40)).save(tmp_path / f"{name}.png")
    shown = (("ab", "CT|MR"), ("ba", "MR|CT"), ("cd", "X-ray"))
    rows = [
        {"image": [f"{n}.png" for n in names], "modality": modality, "split": "train"}
        | {"question": f"What is it, {names}?", "answer": "a lung"}
        for names, modality in shown
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    recipe = own_recipe(f"{path}:train", more=("data.apart_from=[]", "router.test=[]"))
    data = data_of(recipe, "phase2_instruction", "phase2_router")
    assert [image.id for image in data.images("phase2_instruction")] == [
        *(f"pairs/{name}.png" for name in "abcd"),
    ]
    assert data.samples("phase2_instruction") == 3
    one_of_each = [
        r
        for r in data.records("phase2_instruction")
        if _is_of_one_domain(r, recipe.spec.model.domains)
    ]
    assert [r.image.id for r in one_of_each] == ["pairs/c.png"]
    hashes = data.hashes("phase2_instruction")
    rows[0]["image"] = rows[0]["image"][::-1]
    rows[0]["modality"] = "MR|CT"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert data_of(recipe, "phase2_instruction").hashes("phase2_instruction") != hashes
