"""One expert of a model folder: listed, shipped, taken in, exchanged, taken out; the rest stays."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.model.growing import ALL, FACTS_OF, NONE, grown, hashes, new_expert, run, saved
from tests.model.tiny import DOMAINS, FAMILIES, Family, moe_model, processor

from medmoe.errors import CheckpointError, ConfigError, MedMoeError
from medmoe.model.checkpoint import load_model, save_model
from medmoe.model.committed import committed
from medmoe.model.expert_pack import export_expert, read_pack
from medmoe.model.expert_tensors import tensors_hash
from medmoe.model.experts import Expert, MoeFolder, put_in, take_out
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("depth", [1, 2])
def test_a_new_expert_leaves_old_logits_weights_and_kept_tokens(
    family: Family, depth: int, tmp_path: Path
) -> None:
    model = saved(tmp_path / "old", family, router_layers=depth)
    grown(model, tmp_path / "some")
    (_, before), (_, after) = run(model), run(tmp_path / "some")
    first = before.layers[0]  # what it reads no expert has changed
    old, new = before.logits(first), after.logits(first)
    assert new.shape[1] == 5
    torch.testing.assert_close(torch.tensor(new[:, :4]), torch.tensor(old), rtol=0, atol=1e-6)
    kept = after.experts(first)[:, 0] == before.experts(first)[:, 0]
    assert 0 < kept.sum() < len(kept)
    assert (after.experts(first)[~kept] == 4).all()
    assert abs(after.weights(first)[kept] - before.weights(first)[kept]).max() <= 1e-6
    # The new one's weight is the softmax over all five rows.
    own = after.probabilities(first)[~kept, 4]
    assert abs(after.weights(first)[~kept, 0] - own).max() <= 1e-6


@pytest.mark.parametrize("shape", [{}, {"top_k": 2}, {"routing": "image"}])
def test_answers_are_the_old_ones_where_all_routing_is_kept(
    shape: dict[str, Any], tmp_path: Path
) -> None:
    model = saved(tmp_path / "old", **shape)
    grown(model, tmp_path / "none", NONE)
    grown(model, tmp_path / "all", ALL)
    before, kept, lost = (
        run(p)[0].softmax(-1) for p in (model, tmp_path / "none", tmp_path / "all")
    )
    torch.testing.assert_close(kept, before, rtol=0, atol=1e-6)
    assert (lost - before).abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_new_expert_and_its_rows_are_other_bytes(family: Family, tmp_path: Path) -> None:
    model = saved(tmp_path / "old", family)
    files = MoeFolder(model)
    tensors = new_expert(files)
    told = put_in(
        files, tmp_path / "new", Expert("ultrasound", tensors, [*DOMAINS, "ultrasound"], {})
    )
    old, new = (load_file(p / "model.safetensors") for p in (model, tmp_path / "new"))
    for name, tensor in old.items():
        same = new[name][:4] if ".mlp.gate." in name else new[name]
        assert tensor.dtype == same.dtype
        assert tensor.equal(same), name
    came = new.keys() - old.keys()
    assert all(".mlp.experts.4." in name for name in came)
    assert len(told["tensors"]["came"]) == len(came) + 4  # a row and a bias of each layer
    assert not told["tensors"]["changed"] + told["tensors"]["went"]
    assert told["config"]["domains"] == [[*DOMAINS], [*DOMAINS, "ultrasound"]]
    assert told["files"] == ["README.md", "config.json", "medmoe.json", "model.safetensors"]
    assert (tmp_path / "new" / "tokenizer.json").read_bytes() == (
        model / "tokenizer.json"
    ).read_bytes()


@pytest.mark.parametrize("to", ["meta", "next"])
def test_an_added_expert_that_is_removed_leaves_the_old_answers(to: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "old")
    files = grown(model, tmp_path / "new", ALL)
    take_out(files, tmp_path / "less", "ultrasound", to)
    if to == "next":  # nothing was trained beside it: it is gone altogether
        assert (tmp_path / "less" / "config.json").read_text() == (
            model / "config.json"
        ).read_text()
        assert hashes(MoeFolder(tmp_path / "less")) == hashes(MoeFolder(model))
        return
    loaded, _ = load_model(tmp_path / "less")
    _, trace = run(loaded)
    assert all((trace.weights(layer) == 0).all() for layer in trace.layers)
    with torch.no_grad():  # the meta expert alone
        for block in moe_blocks(model_of := load_model(model)[0]):
            for parameter in block.experts.parameters():
                parameter.zero_()
    torch.testing.assert_close(run(loaded)[0], run(model_of)[0], rtol=0, atol=1e-6)


def moe_blocks(model: MedMoeForConditionalGeneration) -> list[Any]:
    return list(model.moe_blocks.values())


@pytest.mark.parametrize("to", ["meta", "next"])
def test_the_others_weights_stay_when_one_they_were_trained_with_goes(
    to: str, tmp_path: Path
) -> None:
    model = saved(tmp_path / "old")
    take_out(MoeFolder(model), tmp_path / "less", "mri", to)
    config = json.loads((tmp_path / "less" / "config.json").read_text())
    assert config["domains"] == ["ct", "pathology", "xray"]
    assert config["removed_experts"] == {"mri": to}
    (_, before), (_, after) = run(model), run(tmp_path / "less")
    first = before.layers[0]
    went = before.experts(first)[:, 0] == 1
    assert 0 < went.sum() < len(went)
    renamed = [{0: 0, 2: 1, 3: 2}[e] for e in before.experts(first)[~went, 0].tolist()]
    assert after.experts(first)[~went, 0].tolist() == renamed
    assert (after.weights(first)[~went] == before.weights(first)[~went]).all()
    assert ((after.weights(first)[went] == 0).all()) == (to == "meta")
    best = [max((v, k) for k, v in enumerate(row))[1] for row in after.logits(first)[went].tolist()]
    assert after.experts(first)[went, 0].tolist() == best
    with pytest.raises(ConfigError, match="was removed from"):
        grown(tmp_path / "less", tmp_path / "again", name="mri")


def test_two_experts_of_one_base_are_put_beside_each_other(tmp_path: Path) -> None:
    model = saved(tmp_path / "old")
    for name in ("ultrasound", "angiography"):
        export_expert(
            grown(model, tmp_path / name, name=name), name, tmp_path / f"{name}.pack", None
        )
    folder = model
    for name in ("ultrasound", "angiography"):
        files = MoeFolder(folder)
        folder = tmp_path / f"with_{name}"
        put_in(files, folder, read_pack(tmp_path / f"{name}.pack", files, None))
    files = MoeFolder(folder)
    assert files.config.rows_of("angiography") == [*DOMAINS, "angiography"]
    for name in ("ultrasound", "angiography"):
        alone = MoeFolder(tmp_path / name)
        assert tensors_hash(files.expert(name)) == tensors_hash(alone.expert(name))
        assert files.base_hash(DOMAINS) == alone.base_hash(DOMAINS)
    run(folder)


def test_an_expert_of_the_base_is_exchanged_and_restored(tmp_path: Path) -> None:
    model = saved(tmp_path / "old")
    files = MoeFolder(model)
    export_expert(files, "ct", tmp_path / "pack", None)
    rows = {k: t for k, t in files.expert("ct").items() if k.endswith("]")}
    other = new_expert(files, name="ct") | rows
    told = put_in(files, tmp_path / "new", Expert("ct", other, [*DOMAINS], FACTS_OF), swap=True)
    assert not told["tensors"]["came"] + told["tensors"]["went"]
    assert all(".experts.ct." in name for name in told["tensors"]["changed"])
    new = MoeFolder(tmp_path / "new")
    put_in(new, tmp_path / "new", read_pack(tmp_path / "pack", new, None), swap=True)
    assert hashes(MoeFolder(tmp_path / "new")) == hashes(files)
    with pytest.raises(ConfigError, match="were trained with the router's row of ct"):
        put_in(
            files,
            tmp_path / "no",
            Expert("ct", new_expert(files, name="ct"), [*DOMAINS], {}),
            swap=True,
        )
    assert not (tmp_path / "no").exists()


def test_what_has_no_experts_is_refused(tmp_path: Path) -> None:
    from tests.model.tiny import dense_model

    save_model(dense_model("phi"), processor(), tmp_path / "dense", {})
    with pytest.raises(CheckpointError, match="a dense model has no experts"):
        MoeFolder(tmp_path / "dense")
    files = MoeFolder(saved(tmp_path / "moe", top_k=2))
    with pytest.raises(ConfigError, match="unknown expert 'ctt'"):
        take_out(files, tmp_path / "x", "ctt", "next")
    for name in ("ct", "mri"):
        take_out(files, tmp_path / "less", name, "next")
        files = MoeFolder(tmp_path / "less")
    with pytest.raises(ConfigError, match="chooses 2 experts for a token; xray must stay"):
        take_out(files, tmp_path / "x", "xray", "next")


def test_a_sharded_model_stays_sharded(tmp_path: Path) -> None:
    model, parts = moe_model("stablelm"), tmp_path / "old"
    with committed(parts) as staging:
        model.save_pretrained(staging, max_shard_size="60KB")
        processor().save_pretrained(staging)
    assert len(list(parts.glob("*.safetensors"))) > 2
    new = grown(parts, tmp_path / "new", NONE)
    index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
    assert len({*index["weight_map"].values()}) > 2
    assert new.domains == [*DOMAINS, "ultrasound"]
    torch.testing.assert_close(run(tmp_path / "new")[0], run(parts)[0], rtol=0, atol=1e-6)


def in_a_fork(work: Callable[[], object]) -> int:
    """Do something in a process of its own; return how it ended, as ``os.waitpid`` says it."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        work()
        os._exit(0)
    except MedMoeError as error:
        os._exit(error.exit_code)
    finally:
        os._exit(99)


def killed_at(number: int, work: Callable[[], object]) -> Callable[[], object]:
    """Return the same work, which is killed as it is about to touch the file system once more."""

    def doomed() -> object:
        seen = 0

        def count(event: str, _: object) -> None:
            nonlocal seen
            seen += event == "open" or event.startswith(("os.", "shutil.", "ctypes."))
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        return work()

    return doomed


def test_killed_at_any_step_the_folder_is_the_old_model_or_the_new_one(tmp_path: Path) -> None:
    model = saved(tmp_path / "run" / "model")
    grown(model, model, ALL)
    pristine = shutil.copytree(model, tmp_path / "pristine")
    take_out(MoeFolder(pristine), tmp_path / "less", "ultrasound", "meta")
    old, new = (hashes(MoeFolder(p)) for p in (pristine, tmp_path / "less"))
    outcomes = []
    for number in range(1, 1000):
        work = killed_at(number, lambda: take_out(MoeFolder(model), model, "ultrasound", "meta"))
        status = in_a_fork(work)
        found = hashes(MoeFolder(model))
        assert found in (old, new), number
        outcomes.append((status, found == new))
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        if found == new:
            shutil.rmtree(model)
            shutil.copytree(pristine, model)
    assert len(outcomes) > 30
    assert sum(done for _, done in outcomes) > 1  # kills before the and behind it
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_a_disk_that_takes_no_more_leaves_the_old_model(tmp_path: Path) -> None:
    model = saved(tmp_path / "model")
    before = {p.name: p.read_bytes() for p in model.iterdir()}

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        grown(model, model)

    assert os.waitstatus_to_exitcode(in_a_fork(full)) == 3
    assert {p.name: p.read_bytes() for p in model.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
