"""Folders that transformers, the Trainer and PEFT leave are taken in, asked and scored."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.model.tiny import moe_model, pixels, processor, prompt_ids
from tests.serving.support import ask, running
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from medmoe.cli.chat_session import printable
from medmoe.cli.main import main
from medmoe.errors import CheckpointError, ConfigError, MedMoeError
from medmoe.inference.engine import LONG_ANSWER, MedMoe
from medmoe.model.adopt import adopt
from medmoe.model.checkpoint import (
    identity,
    load_model,
    provenance,
    read_config,
    save_model,
    verify,
)
from medmoe.model.committed import MANIFEST
from medmoe.model.locate import find_model

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'medmoe[dev]'")

LORA: dict[str, Any] = {
    "r": 2,
    "lora_alpha": 4,
    "target_modules": r".*language_model\.layers\.\d+\.self_attn\.[qkv]_proj",
    "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model directory that adapters are trained on."""
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model(moe_model("stablelm", 2), processor(), folder, {"seed": 7, "data": "phantom"})
    return folder


@pytest.fixture(scope="module")
def tuned(base: Path) -> Any:
    """A PEFT model on the base, its adapters moved away from zero."""
    adapted = peft.get_peft_model(load_model(base)[0], peft.LoraConfig(**LORA))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return adapted.eval()


@pytest.fixture(scope="module")
def adapter(tuned: Any, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    tuned.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    return folder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder as `save_pretrained` leaves it."""
    moe_model("stablelm", 2).save_pretrained(tmp_path / "saved")
    processor().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.linear_gradient("L").save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([prompt_ids("which organ is seen?")])
    found: torch.Tensor = model(input_ids=ids, pixel_values=pixels(1, seed=1)).logits
    return found


def assert_equal_but_for_one_sum(found: Any, tuned: Any, base: Path) -> None:
    """Compare merged and unmerged: far closer than the adapters move the base."""
    wanted = logits(tuned)
    assert (wanted - logits(load_model(base)[0])).abs().max() > 0.1
    torch.testing.assert_close(logits(found), wanted, rtol=1e-4, atol=1e-4)


def test_a_saved_folder_is_refused_with_the_way_and_then_adopted(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no MANIFEST\.json.*`medmoe adopt .*saved`"):
        find_model(saved)
    (saved / "README.md").write_text("what its makers say")
    (saved / "training_args.bin").write_bytes(b"no pickle is ever opened")
    done = adopt(saved)
    assert done.removed == ("training_args.bin",)
    assert done.added == (MANIFEST, "medmoe.json")
    assert (saved / "README.md").read_text() == "what its makers say"
    assert torch.equal(logits(load_model(saved)[0]), logits(moe_model("stablelm", 2)))


def test_lora_merged_saved_and_adopted_is_asked(
    tuned: Any, base: Path, tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "merged"
    again = peft.PeftModel.from_pretrained(load_model(base)[0], _stored(tuned, tmp_path))
    again.merge_and_unload().save_pretrained(folder)
    assert main(["adopt", str(folder)]) == 2
    assert "--processor MODEL" in capsys.readouterr().err
    assert main(["adopt", str(folder), "--processor", str(base)]) == 0
    assert "none missing and none left over" in capsys.readouterr().out
    assert_equal_but_for_one_sum(load_model(folder)[0], tuned, base)
    assert main(["ask", str(folder), str(picture), "is there a mass?"]) == 0
    wanted = (
        MedMoe.load(folder, max_new_tokens=LONG_ANSWER).answer(picture, "is there a mass?").text
    )
    assert capsys.readouterr().out.splitlines()[0] == wanted


def _stored(tuned: Any, tmp_path: Path) -> Path:
    tuned.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


class OneConversation(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = torch.tensor(prompt_ids("is there a mass?"))
        return {"input_ids": ids, "labels": ids, "pixel_values": pixels(1)[0]}


def test_what_the_trainer_saves_is_adopted_and_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "trained"
    settings = TrainingArguments(
        output_dir=str(folder), max_steps=1, save_strategy="no", report_to=[], use_cpu=True
    )
    trainer = Trainer(
        moe_model("stablelm", 2),
        settings,
        train_dataset=OneConversation(),
        processing_class=processor(),
    )
    trainer.train()
    trainer.save_model()
    assert (folder / "training_args.bin").is_file()
    assert main(["adopt", str(folder), "--json", str(tmp_path / "done.json")]) == 0
    assert json.loads((tmp_path / "done.json").read_text())["removed"] == ["training_args.bin"]
    verify(folder)
    out = tmp_path / "eval"
    words = ["--task", "phantom_vqa", "--limit", "2", "--out", str(out)]
    assert main(["eval", str(folder), *words]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["asked"] == 2
    assert summary["scores"]


def test_an_adapter_is_asked_as_it_is_and_merged_by_adopt(
    adapter: Path, tuned: Any, base: Path, tmp_path: Path
) -> None:
    assert find_model(adapter) == adapter
    verify(adapter)
    assert identity(adapter) != identity(base)
    assert read_config(adapter).domains == read_config(base).domains
    assert_equal_but_for_one_sum(load_model(adapter)[0], tuned, base)
    with pytest.raises(ConfigError, match=r"is an adapter; .* --out DIR"):
        adopt(adapter)
    done = adopt(adapter, tmp_path / "out")
    assert done.base == str(base)
    assert_equal_but_for_one_sum(load_model(tmp_path / "out")[0], tuned, base)
    facts = provenance(tmp_path / "out")
    assert facts["seed"] == 7
    assert facts["notes"] == [f"The LoRA adapter {adapter.name} is merged in."]


@pytest.fixture(params=["adopted", "adapter"])
def taken(request: pytest.FixtureRequest, adapter: Path, saved: Path) -> Path:
    """A folder that was adopted, and an adapter as PEFT leaves it."""
    if request.param == "adapter":
        return adapter
    adopt(saved)
    return saved


def test_it_is_scored_talked_with_and_served_as_any_model(
    taken: Path,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    question = "is there a mass?"
    wanted = MedMoe.load(taken, max_new_tokens=8).answer(picture, question).text
    words = ["--task", "phantom_vqa", "--limit", "2", "--out", str(tmp_path / "eval")]
    assert main(["eval", str(taken), *words]) == 0
    assert json.loads((tmp_path / "eval" / "summary.json").read_text())["asked"] == 2
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{question}\n"))
    assert main(["chat", str(taken), str(picture), "--max-new-tokens", "8"]) == 0
    assert printable(wanted) in capsys.readouterr().out.splitlines()
    with running(taken, tmp_path / "server", "--no-page", "--name", "taken") as server:
        image = picture.read_bytes()
        reply = ask(server.address, text=question, image=image, model="taken", max_tokens=8)
        assert reply.json()["choices"][0]["message"]["content"] == wanted


def test_a_moved_base_is_named_by_the_flag(adapter: Path, base: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(adapter, tmp_path / "moved"))
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": str(tmp_path / "gone")})
    )
    with pytest.raises(CheckpointError, match=r"base model cannot be used .*gone.* --base MODEL"):
        load_model(moved)
    adopt(moved, tmp_path / "out", base=base)
    verify(tmp_path / "out")


def test_an_adapter_of_which_a_part_would_be_lost_is_refused(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    save_model(moe_model("phi", 2), processor(), other, {})
    with pytest.raises(CheckpointError, match="does not fit its base"):
        adopt(adapter, tmp_path / "out", base=other)
    # As a release of PEFT would that drops the adapters on merging.
    monkeypatch.setattr(peft.PeftModel, "merge_and_unload", lambda self: self.unload(), False)
    with pytest.raises(CheckpointError, match="merged, the model answers unlike with its adapter"):
        adopt(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def pickles_alone(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def checkpoints_beside(folder: Path) -> None:
    (folder / "checkpoint-5").mkdir()


def optimizer_beside(folder: Path) -> None:
    (folder / "optimizer.pt").touch()


def code_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "x.Y"}}))


def another_picture(folder: Path) -> None:
    path = folder / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"patch_size": 16}))


def half_an_expert(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.language_model.layers.0.mlp.gate.fc1.bias")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (pickles_alone, "holds no weights in safetensors"),
        (checkpoints_beside, r"checkpoint-5 too, .* --out DIR"),
        (optimizer_beside, r"optimizer\.pt too, .* --out DIR"),
        (code_named, "foreign code"),
        (another_picture, "the processor does not fit the model, number of image tokens"),
        (half_an_expert, r"1 missing keys, first: .*gate\.fc1\.bias"),
    ],
)
def test_what_cannot_be_taken_in_is_refused_and_left_alone(
    damage: Any, line: str, saved: Path
) -> None:
    damage(saved)
    before = {path.name for path in saved.iterdir()}
    with pytest.raises(MedMoeError, match=line) as caught:
        adopt(saved)
    assert "\n" not in str(caught.value)
    assert {path.name for path in saved.iterdir()} == before


def test_a_trainers_checkpoint_is_adopted_into_a_folder_of_its_own(
    saved: Path, tmp_path: Path
) -> None:
    optimizer_beside(saved)
    done = adopt(saved, tmp_path / "out")
    assert done.removed == ("optimizer.pt",)
    assert (saved / "optimizer.pt").exists()
    verify(tmp_path / "out")
