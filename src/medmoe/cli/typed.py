"""Paths as people type them, or drag them into a terminal, also amid a question."""

from __future__ import annotations

import os
import re
from pathlib import Path

#: In quotes, or with its spaces behind a \\ as terminals write a file that is dragged in.
_WORDS = re.compile(r"""'[^']*'|"[^"]*"|(?:\\.|\S)+""")


def typed_path(text: str) -> Path:
    """Return a path as it is typed: quoted or not, from one's home or not."""
    return Path(os.path.expanduser(text.strip("'\"")))


def pictures_amid(line: str) -> tuple[list[Path], str]:
    """Return the files that a line names, and its other words."""
    files, others = [], []
    for word in _WORDS.findall(line):
        whole = os.path.isfile(typed_path(word))
        name = word if whole else word.rstrip("?!.,;:").replace("\\ ", " ")
        if ("/" in name or "." in name) and os.path.isfile(typed_path(name)):
            files.append(typed_path(name))
        else:
            others.append(word)
    return files, " ".join(others) if files else line
