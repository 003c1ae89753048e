"""What tells what is in a bundle: the licences, and the bill of materials."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any
from urllib.parse import quote

from medmoe.bundle.wheels import Wheel
from medmoe.model.card import licence_in

_TEXTS = re.compile(r"licen[cs]e|copying|notice|terms", re.IGNORECASE)
_SPDX = "License-Expression"


def licences(wheels: Sequence[Wheel], model: Path) -> dict[str, bytes]:
    """Return the files of the folder of licences: a table of all, and the texts of the packages."""
    files, table = dict[str, bytes](), ""
    for wheel in wheels:
        folder = f"{wheel.name}-{wheel.version}"
        paths = [(file, *file.as_posix().partition("-info/")) for file in wheel.dist.files or ()]
        own = ((name, file) for file, top, _, name in paths if "/" not in top)  # none of vendored
        texts = [(name, file) for name, file in own if _TEXTS.search(name)]
        files |= {f"{folder}/{name}": file.read_binary() for name, file in texts}
        known = f"in `{folder}/`" if texts else "none in its wheel"
        table += f"| {wheel.name} {wheel.version} | {licence_of(wheel.dist)} | {known} |\n"
    notices = [f"`model/{p.name}`" for p in sorted(model.iterdir()) if _TEXTS.search(p.name)]
    known = ", ".join([*notices, "`model/README.md`"])
    table += f"| the model | {licence_in(model) or 'not recorded'} | {known} |\n"
    head = "# Licences\n\nAs packages and model say.\n\n| what | licence | texts |\n|---|---|---|\n"
    return {**files, "LICENCES.md": (head + table).encode()}


def licence_of(dist: Distribution) -> str:
    """Return what a package says of its licence, in one line: an SPDX expression where it can."""
    said = {key: dist.metadata.get_all(key) or [""] for key in (_SPDX, "Classifier", "License")}
    classes = [c.rpartition(" :: ")[2] for c in said["Classifier"] if c.startswith("License")]
    text = said[_SPDX][0] or ", ".join(classes) or said["License"][0] or "not stated"
    return str(text).strip().partition("\n")[0]


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
        ref, licence = refs[wheel.name], licence_of(wheel.dist)
        spdx = _SPDX in wheel.dist.metadata
        stated = [{"expression": licence} if spdx else {"license": {"name": licence}}]
        more = {"licenses": stated, "hashes": _hashes(wheel.sha256)}
        parts.append({**named, "bom-ref": ref, "purl": ref, **more})
    files = [{"type": "file", "name": n, "hashes": _hashes(h)} for n, h in sorted(sums.items())]
    described = {"type": "machine-learning-model", "bom-ref": "model", "name": model}
    whole = {"type": "application", "bom-ref": "bundle", "name": "medmoe-bundle"}
    edges = [{"ref": refs[n], "dependsOn": sorted(refs[o] for o in needs[n])} for n in refs]
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
