"""What tells what is in a bundle: the licences, and the bill of materials."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from medmoe.bundle.wheels import Wheel
from medmoe.model.card import licence_in

_TEXTS = re.compile(r"licen[cs]e|copying|notice|terms", re.IGNORECASE)


def licences(wheels: Sequence[Wheel], model: Path) -> dict[str, bytes]:
    """Return the files of the folder of licences: a table of all, and the texts of the packages."""
    files, table = dict[str, bytes](), ""
    for wheel in wheels:
        folder = f"{wheel.name}-{wheel.version}"
        for file in wheel.dist.files or ():
            top, *names = file.parts
            if top.endswith("-info") and _TEXTS.search("/".join(names)):
                files[f"{folder}/{'/'.join(names)}"] = file.read_binary()
        known = (
            f"in `{folder}/`"
            if any(n.startswith(f"{folder}/") for n in files)
            else "none in its wheel"
        )
        table += f"| {wheel.name} {wheel.version} | {licence_of(wheel)} | {known} |\n"
    notices = [f"`model/{p.name}`" for p in sorted(model.iterdir()) if _TEXTS.search(p.name)]
    known = ", ".join([*notices, "`model/README.md`"])
    table += f"| the model | {licence_in(model) or 'not recorded'} | {known} |\n"
    head = "# Licences\n\nAs packages and model say.\n\n| what | licence | texts |\n|---|---|---|\n"
    return {**files, "LICENCES.md": (head + table).encode()}


def licence_of(wheel: Wheel) -> str:
    """Return what a package says of its licence, in one line."""
    facts = wheel.dist.metadata
    classes = [c.rpartition(" :: ")[2] for c in facts.get_all("Classifier") or () if "License" in c]
    said = (facts[key] for key in ("License-Expression", "License") if key in facts)
    return (", ".join(classes) or next(said, "not stated")).strip().partition("\n")[0]


def bill_of_materials(
    wheels: Sequence[Wheel], needs: Mapping[str, set[str]], model: str, sums: Mapping[str, str]
) -> str:
    """Return what is in a bundle as CycloneDX 1.6, without a date: the same gives the same.

    Args:
        needs: What each package asks for.
        model: Its name.
        sums: SHA-256 of its files, by name.
    """
    refs = {w.name: f"pkg:pypi/{w.name}@{quote(w.version, safe='')}" for w in wheels}
    parts: list[dict[str, Any]] = []
    for wheel in wheels:
        named = {"type": "library", "name": wheel.name, "version": wheel.version}
        ref, licence = refs[wheel.name], licence_of(wheel)
        spdx = "License-Expression" in wheel.dist.metadata
        stated = [{"expression": licence} if spdx else {"license": {"name": licence}}]
        more = {"licenses": stated, "hashes": _hashes(wheel.sha256)}
        parts.append({**named, "bom-ref": ref, "purl": ref, **more})
    files = [{"type": "file", "name": n, "hashes": _hashes(h)} for n, h in sorted(sums.items())]
    described = {"type": "machine-learning-model", "bom-ref": "model", "name": model}
    whole = {"type": "application", "bom-ref": "bundle", "name": "medmoe-bundle"}
    edges = [
        {"ref": r, "dependsOn": sorted(refs[n] for n in needs[name])} for name, r in refs.items()
    ]
    content = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": whole},
        "components": [*parts, {**described, "components": files}],
        "dependencies": [{"ref": "bundle", "dependsOn": ["model", refs["medmoe"]]}, *edges],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]
