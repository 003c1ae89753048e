"""The model card that lies beside the weights as README.md, written from config and provenance.

No number in it is typed by hand. It is what the Hugging Face hub shows of an uploaded model folder:
``huggingface_hub.upload_folder`` takes the folder as it is (``push_to_hub`` of a loaded model sends
the weights alone). Scores come into it where a run that scores leaves a model (`medmoe demo`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from yaml import YAMLError

from medmoe.model.cost.parameters import activated_parameters, total_parameters
from medmoe.model.domain_check import check_sentence
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration

CARD = "README.md"
_UNKNOWN = "not recorded"
_TEMPLATE = Path(__file__).with_name("model_card.md.j2")


def model_card(
    model: MedMoeForConditionalGeneration, provenance: Mapping[str, Any], *, complete: bool = True
) -> str:
    """Return the card of a model, with the metadata that the hub reads at its top.

    Args:
        provenance: As `medmoe.model.checkpoint.save_model` writes it. Read are ``base_model``
            (``name``, ``hub_id`` and ``revision`` of ``language_model`` and ``vision_encoder``),
            ``phases`` (name to steps), ``data``, ``licences`` (data set to licence), ``seed``,
            ``commit``, ``config_sha256`` and ``notes``; what is missing is said to be. A row on
            ``shared_images`` (scored set to its pictures that were trained on) where there are any.
        complete: Whether a processor lies beside the weights, without which nobody can ask.
    """
    base: Mapping[str, Any] = provenance.get("base_model") or {}
    hub_ids = [part["hub_id"] for part in base.values() if part.get("hub_id")]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=hub_ids or None,
        datasets=list(provenance.get("licences") or {}) or None,
        **licence_of(base, provenance.get("licences") or {}),
        tags=["medical", "medmoe", "mixture-of-experts", "visual-question-answering"],
    )
    card = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        title="Med-MoE" if model.config.moe_layers else "Dense medical vision-language model",
        shape=_shape(model, base),
        training=_training(provenance),
        notes=provenance.get("notes", []),
        complete=complete,
    )
    return str(card)


def licence_of(base: Mapping[str, Any], licences: Mapping[str, str]) -> dict[str, Any]:
    """Return the licence for the hub: that of all data and base models, where it is one."""
    names = set(licences.values())
    if not names:
        return {}
    where_from = ("hub_id", "source", "licence")
    foreign = [part for part in base.values() if any(map(part.get, where_from))]
    names |= {part.get("licence") or "" for part in foreign}
    if base and len(names) == 1 and not names & {""}:
        return {"license": names.pop().lower()}
    return {"license": "other", "license_name": "of-its-base-models-and-data-sets"}


def licence_in(folder: Path) -> str | None:
    """Return the licence that the card in a model's folder names, None where none does."""
    try:
        text = (folder / CARD).read_text(encoding="utf-8")
        data: Any = ModelCard(text).data if text.startswith("---") else {}
    except (OSError, ValueError, YAMLError):
        return None
    licence = data.get("license_name") or data.get("license")
    return str(licence) if licence else None


def _shape(model: MedMoeForConditionalGeneration, base: Mapping[str, Any]) -> dict[str, str]:
    config = model.config
    cells = f", each of {n} × {n} cells" if (n := config.image_pool) > 1 else ""
    rows = {
        "language model": _origin(base.get("language_model"), config.text_config),
        "vision encoder": _origin(base.get("vision_encoder"), config.vision_config),
        "image tokens": f"{config.image_seq_length:,}{cells}",
        "parameters in all": f"{total_parameters(model):,}",
        "activated per token": f"{activated_parameters(model):,}",
    }
    if config.moe_layers:
        rows |= {
            "domain experts": ", ".join(config.domains or []),
            "experts per token": f"{config.num_experts_per_tok}, and the meta expert",
            "MoE layers": f"{', '.join(map(str, config.moe_layers))} "
            f"of {config.text_config.num_hidden_layers}",
            "router": f"{config.router_layers} layer(s), one decision for each {config.routing}",
            "out-of-domain check": check_sentence(config.domain_check or {}),
        }
    return rows


def _origin(part: Mapping[str, Any] | None, config: Any) -> str:
    """Return where a part comes from: hub id and commit, or that it was trained from scratch."""
    if part is None:
        return f"{config.model_type}, origin {_UNKNOWN}"
    licence = f"; {part['licence']}" if part.get("licence") else ""
    if not part.get("hub_id"):
        own = "own folder" if part.get("source") else "trained from scratch"
        return f"{part['name']}, {'published weights' if licence else own}{licence}"
    hub = f"[{part['hub_id']}](https://huggingface.co/{part['hub_id']})"
    return f"{hub}, commit {part.get('revision') or _UNKNOWN}{licence}"


def _training(provenance: Mapping[str, Any]) -> dict[str, str]:
    phases = provenance.get("phases") or {}
    licences = provenance.get("licences") or {}
    commit = provenance.get("commit")
    shared = provenance.get("shared_images") or {}
    rows = {
        "phases": ", ".join(f"{name} ({steps:,} steps)" for name, steps in phases.items())
        or _UNKNOWN,
        "data": str(provenance.get("data", _UNKNOWN)),
        "licences of the data": ", ".join(f"{name}: {what}" for name, what in licences.items())
        or _UNKNOWN,
        "seed": str(provenance.get("seed", _UNKNOWN)),
        "commit": f"{commit}{' with local changes' if provenance.get('dirty') else ''}"
        if commit
        else _UNKNOWN,
        "config SHA-256": str(provenance.get("config_sha256", _UNKNOWN)),
    }
    if shared:
        rows["**scored pictures that were trained on**"] = ", ".join(
            f"at least {count:,} of {name}" for name, count in shared.items()
        )
    return rows
