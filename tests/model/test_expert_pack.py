"""One expert shipped as a pack: it goes into its base, and everything else is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.growing import grown, hashes, saved
from tests.model.tiny import moe_model, processor

from medmoe.errors import CheckpointError, ConfigError
from medmoe.model.checkpoint import save_model
from medmoe.model.committed import MANIFEST, committed, write_json
from medmoe.model.expert_pack import FACTS, TENSORS, export_expert, read_pack
from medmoe.model.expert_tensors import tensors_hash
from medmoe.model.experts import MoeFolder, put_in


def test_a_pack_goes_into_its_base_and_gives_the_same_model(tmp_path: Path) -> None:
    model = saved(tmp_path / "old")
    files = grown(model, tmp_path / "new")
    export_expert(files, "ultrasound", tmp_path / "pack", None)
    base = MoeFolder(model)
    put_in(base, tmp_path / "again", read_pack(tmp_path / "pack", base, None))
    again = MoeFolder(tmp_path / "again")
    assert hashes(again) == hashes(files)
    assert again.experts()[4]["sha256"] == files.experts()[4]["sha256"]
    assert again.facts["experts"]["ultrasound"]["data"] == "clinic/train"
    assert again.config.to_dict() == files.config.to_dict()
    facts = json.loads((tmp_path / "pack" / FACTS).read_text())
    assert facts["base_provenance"]["data"] == "phantom/train"
    assert facts["provenance"]["licences"] == {"clinic": "CC-BY-4.0"}


def resealed(pack: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change a pack's facts and tensors and give it a manifest that fits."""
    facts, tensors = json.loads((pack / FACTS).read_text()), load_file(pack / TENSORS)
    change(facts, tensors)
    with committed(pack) as staging:
        save_file(tensors, staging / TENSORS)
        write_json(staging / FACTS, facts)


def _renamed(facts: dict[str, Any], tensors: dict[str, Any]) -> None:
    facts["shape"]["activation"] = "gelu"


def _other_bytes(facts: dict[str, Any], tensors: dict[str, Any]) -> None:
    next(iter(tensors.values())).add_(1)


def _wider(facts: dict[str, Any], tensors: dict[str, Any]) -> None:
    facts["shape"]["intermediate_size"] = 64


def _foreign(facts: dict[str, Any], tensors: dict[str, Any]) -> None:
    facts["trained_with"] = ["dermoscopy", *facts["trained_with"]]


def _not_finite(facts: dict[str, Any], tensors: dict[str, Any]) -> None:
    next(iter(tensors.values())).fill_(torch.nan)
    facts["sha256"] = tensors_hash(tensors)


def _other_names(facts: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors["x"] = tensors.popitem()[1]
    facts["sha256"] = tensors_hash(tensors)


def _incomplete(facts: dict[str, Any], tensors: dict[str, Any]) -> None:
    del facts["base"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_renamed, "an expert of activation gelu, and the model has silu"),
        (_wider, "an expert of intermediate_size 64, and the model has 48"),
        (_other_bytes, "its tensors are not those that expert.json names"),
        (_foreign, "was trained beside dermoscopy, which is not here"),
        (_not_finite, "or are not finite"),
        (_other_names, "other names, types or shapes than the model's experts"),
        (_incomplete, "its expert.json is incomplete"),
    ],
)
def test_a_pack_that_does_not_fit_is_refused(
    change: Callable[[dict[str, Any], dict[str, Any]], None], said: str, tmp_path: Path
) -> None:
    model = saved(tmp_path / "old")
    export_expert(grown(model, tmp_path / "new"), "ultrasound", tmp_path / "pack", None)
    resealed(tmp_path / "pack", change)
    with pytest.raises(CheckpointError, match=said):
        read_pack(tmp_path / "pack", MoeFolder(model), None)


def test_a_pack_of_another_base_or_with_a_broken_file_is_refused(tmp_path: Path) -> None:
    model = saved(tmp_path / "old")
    export_expert(grown(model, tmp_path / "new"), "ultrasound", tmp_path / "pack", None)
    other = moe_model("stablelm")
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    save_model(other, processor(), tmp_path / "other", {})
    with pytest.raises(CheckpointError, match="was trained on another base"):
        read_pack(tmp_path / "pack", MoeFolder(tmp_path / "other"), None)
    phi = saved(tmp_path / "phi", "phi")
    with pytest.raises(CheckpointError, match="activation silu, and the model has gelu_new"):
        read_pack(tmp_path / "pack", MoeFolder(phi), None)
    content = bytearray((tmp_path / "pack" / TENSORS).read_bytes())
    content[-1] ^= 1
    (tmp_path / "pack" / TENSORS).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"its SHA-256 differs from {MANIFEST}"):
        read_pack(tmp_path / "pack", MoeFolder(model), None)


def test_a_signature_is_checked_against_the_key_that_is_trusted(tmp_path: Path) -> None:
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    from cryptography.hazmat.primitives import serialization as form

    def key(name: str) -> tuple[Path, Path]:
        private, secret = ed25519.Ed25519PrivateKey.generate(), form.NoEncryption()
        kind = form.PublicFormat.SubjectPublicKeyInfo
        files = tmp_path / name, tmp_path / f"{name}.pub"
        files[0].write_bytes(
            private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, secret)
        )
        files[1].write_bytes(private.public_key().public_bytes(form.Encoding.PEM, kind))
        return files

    (ours, public), (_, theirs) = key("ours"), key("theirs")
    model = saved(tmp_path / "old")
    new = grown(model, tmp_path / "new")
    pack, files = tmp_path / "pack", MoeFolder(model)
    export_expert(new, "ultrasound", pack, ours)
    assert len(read_pack(pack, files, public).facts["imported"]["signed_by"]) == 64
    with pytest.raises(CheckpointError, match="its signature is not one by"):
        read_pack(pack, files, theirs)
    with pytest.raises(ConfigError, match="not readable as a key"):
        read_pack(pack, files, ours)
    # Whoever changes it can make the hashes fit, and not the signature.
    signature = (pack / "signature.json").read_bytes()
    resealed(pack, lambda facts, tensors: facts.update(licence={"license": "mine"}))
    with pytest.raises(CheckpointError, match="is not signed"):
        read_pack(pack, files, public)
    copy = shutil.copytree(pack, tmp_path / "copy")
    with committed(pack) as staging:
        for name in (TENSORS, FACTS):
            shutil.copy(copy / name, staging / name)
        (staging / "signature.json").write_bytes(signature)
    with pytest.raises(CheckpointError, match="its signature is not one by"):
        read_pack(pack, files, public)
