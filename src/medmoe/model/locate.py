"""Finds the folder that MODEL names: a model, a finished run, a LoRA adapter or a model of the hub.

Nothing is loaded here. What else a folder may be is said in one line, with the way out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from medmoe.errors import CheckpointError, first_line
from medmoe.files import json_object
from medmoe.model.committed import MANIFEST, replaced_by

CONFIG, PROVENANCE, ADAPTER = "config.json", "medmoe.json", "adapter_config.json"
#: Stands in a folder of exported graphs and says what they are.
EXPORT = "export.json"
#: Stands in a site's folder and names the model that its experts belong to.
BASE = "base.json"
MODEL_TYPE = "medmoe"
#: Endings of files that may hold pickles, which can run code when they are read.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+))?")


def find_model(source: Path | str) -> Path:
    """Return the folder of a model or of a LoRA adapter, as `load_model` takes it.

    Args:
        source: Folder of a model, of a finished run (its ``model/``) or of an adapter, or a hub id
            ``owner/name``, ``@revision`` behind it if need be.

    Raises:
        CheckpointError: It is none of these; the line says what it is and what to do.
    """
    folder = folder_of(source)
    if not is_adapter(folder):
        refuse_other(folder)
    return folder


def find_seeing(source: Path | str) -> Path:
    """Return the folder of a model that may be asked about a picture, as `find_model`.

    Raises:
        CheckpointError: As there; or it is a blind twin, whose answers would pass for seen ones.
    """
    folder = find_model(source)
    if training_of(folder).get("blind"):
        raise CheckpointError(
            f"{source} is a blind twin, which sees no picture and only stands for what questions "
            "give away; give the model that it is the twin of"
        )
    return folder


def site_folder(model: Path, name: str) -> Path:
    """Return where the experts of a site lie: beside the model's folder, which stays as it is."""
    return model.parent / "sites" / name


def sites_of(model: Path) -> list[str]:
    """Return the names of a model's sites."""
    return sorted(path.parent.name for path in model.parent.glob(f"sites/*/{BASE}"))


def find_site(source: Path | str, name: str) -> Path:
    """Return the folder of a site's model: that of ``source`` with the site's own experts.

    Raises:
        CheckpointError: There is no such model, or it has no such site.
    """
    model = find_model(source)
    if not (site_folder(model, name) / BASE).is_file():
        known = ", ".join(sites_of(model)) or "none yet"
        raise CheckpointError(
            f"{source} has no site {name} (its sites: {known}); make one by `medmoe expert import "
            f"{source} PACK --site {name}`"
        )
    return site_folder(model, name)


def find_other(source: Path | str) -> Path | None:
    """Return the folder of a model of another kind that transformers can ask; None of any else."""
    from transformers.models.auto import modeling_auto

    folder = folder_of(source)
    kind = (json_object(folder / CONFIG) or {}).get("model_type")
    known = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return folder if kind in known and kind != MODEL_TYPE else None


def folder_of(source: Path | str) -> Path:
    """Return the folder that a source names, whatever it holds: a model of the hub is fetched.

    Raises:
        CheckpointError: The hub has no such model, or cannot be reached.
    """
    folder, hub = Path(source), _HUB_ID.fullmatch(str(source))
    # `runs/dmeo` has the form of a hub id, but where `runs` is a folder it is a path.
    if hub is None or folder.exists() or folder.parent.exists():
        return model_of(folder)
    return _snapshot(*hub.groups())


def model_of(directory: Path) -> Path:
    """Return the model directory of a run directory; a model directory is its own."""
    return directory / "model" if (directory / "model").is_dir() else directory


def name_of(directory: Path) -> str:
    """Return what to call a model by its folder: ``…/model`` by its run, of the hub by its name.

    A site's is the model's name, ``@`` and the site's.
    """
    path = directory.resolve()
    if path.parent.name == "sites" and (path / BASE).is_file():
        return f"{path.parent.parent.name}@{path.name}"
    folder = path.parent if path.name == "model" else path
    if folder.parent.name == "snapshots":  # of the hub's cache, whose folders are commits
        folder = folder.parent.parent
    return folder.name.rpartition("--")[2] if folder.name.startswith("models--") else folder.name


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds a LoRA adapter, as PEFT saves one."""
    return (folder / ADAPTER).is_file()


def refuse_site(folder: Path, who: str) -> None:
    """Raise a `CheckpointError` of what needs all weights in one folder."""
    if (folder / BASE).is_file():
        raise CheckpointError(
            f"{folder} holds a site's own experts only, and {who} all weights in one folder; write "
            "that by `medmoe expert import MODEL PACK --out DIR`"
        )


def find_twin(model: Path) -> Path | None:
    """Return the blind twin of a model, trained in its run or in one beside it; None without any.

    After the same phase, where the twin has it; else after all: a Med-MoE's is dense to the end.

    Args:
        model: Folder of a seeing model.
    """
    facts = training_of(model)
    if facts.get("blind") or not facts.get("blind_twin"):
        return None
    run = model.parent.parent if model.parent.name == facts.get("phase") else model.parent
    wanted = [facts.get(name) for name in ("blind_twin", "seed")]
    names, bases = (f"*/{facts.get('phase')}/model", "*/model"), (run, run.parent)
    found = (path for name in names for base in bases for path in sorted(base.glob(name)))
    for folder in found:
        known = training_of(folder)
        if known.get("blind") and [known.get(n) for n in ("blind_twin", "seed")] == wanted:
            return folder
    return None


def training_of(folder: Path) -> dict[str, Any]:
    """Return what a model's own folder says about its training; empty where it says nothing."""
    training = (json_object(folder / PROVENANCE) or {}).get("training")
    return training if isinstance(training, dict) else {}


def refuse_other(folder: Path) -> None:
    """Refuse what is no finished model folder.

    Raises:
        CheckpointError: The line says what it is and what to do.
    """
    refuse_foreign(folder)
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(
            f"{folder}: no {MANIFEST}, so another program saved it; check and accept it by "
            f"`medmoe adopt {folder}`"
        )


def refuse_foreign(folder: Path) -> None:
    """Refuse what is no folder of a whole model of ours; its manifest may be missing.

    Raises:
        CheckpointError: The line says what it is and what to do.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: {_no_folder(folder)}")
    kind = (json_object(folder / CONFIG) or {}).get("model_type")
    part = _part(folder)
    if part is not None:
        raise CheckpointError(f"{folder}: {part}")
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder}: {_without_config(folder)}")
    if kind is not None and kind != MODEL_TYPE:
        how = f"convert llava {folder} DST" if kind == "llava" else ""
        how = f"convert reference {folder} DST" if kind.startswith("llava_") else how
        fix = f"make one of ours by `medmoe {how}`" if how else "give the folder of a medmoe model"
        raise CheckpointError(
            f"{folder / CONFIG}: describes a model of type {kind!r}, not {MODEL_TYPE!r}; {fix}"
        )


def _no_folder(path: Path) -> str:
    if path.suffix == ".gguf":
        return "a GGUF file, which llama.cpp reads; give the model folder that it was made of"
    if path.exists():
        return f"a file; give its folder, {path.parent}"
    if replaced_by(path).is_dir():
        return f"no such model directory; rename {replaced_by(path)} back to it"
    return "no such model directory; give the folder of a model, or a hub id owner/name"


def _part(folder: Path) -> str | None:
    """Say which part of a model a phase has left here, if it is no whole model."""
    phase = training_of(folder).get("phase")
    parts = {
        "phase0_encoder": "a vision encoder",
        "phase0_adapt": "a vision encoder",
        "phase0_language": "a language model",
        "phase2_router": "a router",
    }
    if phase not in parts:
        return None
    return (
        f"{parts[phase]} of {phase}, not a whole model; "
        "give the run of phase2_instruction, phase3_moe or sft"
    )


def _without_config(folder: Path) -> str:
    phases = sorted(path.parent for path in folder.glob("*/model"))
    if phases:
        names = ", ".join(path.name for path in phases)
        return f"an unfinished run with the phases {names}; give one of them, e.g. {phases[-1]}"
    if (folder / "checkpoints").is_dir():
        return (
            "a run with checkpoints and no model yet; finish it by `medmoe train … --resume`, "
            "or give another run"
        )
    saved = sorted(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    if saved:
        return f"holds checkpoints of a Trainer; accept one by `medmoe adopt {saved[-1]} --out DIR`"
    if any(folder.glob("*.gguf")):
        return "holds a GGUF file, which llama.cpp reads; give the folder that it was made of"
    if not (folder / MANIFEST).is_file():
        return (
            f"no {MANIFEST} and no {CONFIG}; this is not a finished medmoe model directory "
            "(the model/ folder of a run is)"
        )
    return f"its {MANIFEST} stands without {CONFIG}; copy the model directory again"


def _snapshot(name: str, revision: str | None) -> Path:
    """Return a hub model's folder in the cache: no pickles, no code, no sub-folders."""
    from huggingface_hub import snapshot_download

    left_out = [*(f"*{ending}" for ending in PICKLES), "*.py", ".git*", "*/*"]
    try:
        folder = snapshot_download(name, revision=revision, ignore_patterns=left_out)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name}: no such folder, and no model that the hub gives ({first_line(error)}); give "
            "a folder, or fetch it into the cache where there is a network"
        ) from None
    return Path(folder)


def read_json(path: Path, whole: str = "a whole checkpoint") -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        whole: What the folder that is given should be of, for the error.

    Raises:
        CheckpointError: The file is missing, is no JSON, or holds something else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the folder of {whole}")
    content = json_object(path)
    if content is None:
        raise CheckpointError(f"{path}: not readable as JSON of an object; copy it again")
    return content
