"""What this machine offers, as rows of `medmoe doctor`; it measures nothing and changes nothing."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from packaging.requirements import Requirement

Status = Literal["ok", "note", "missing"]

GIB = 2**30
MIN_MEMORY_GIB = 4  # the demo's peak, with room for the rest of the machine
MIN_DISK_GIB = 2  # checkpoints and report of one demo
#: Steps of training on a CPU take 0.55 to 0.8 of the time with it, and twice the memory or more.
KEEPS_HUGE_PAGES = (
    "glibc.malloc.hugetlb=1:"
    "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296"
)
#: The newest release that all verbs were tried on; those after it are allowed, and said to be new.
NEWEST_TRIED = {"transformers": "5.24"}


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the report.

    Attributes:
        name: What was looked at.
        value: What was found.
        status: ``ok``; ``note`` where something optional is absent; ``missing`` where medmoe cannot
            work without it.
        fix: The command or step that mends it, empty where nothing needs mending.
    """

    name: str
    value: str
    status: Status = "ok"
    fix: str = ""


def check_packages() -> list[Check]:
    """Check every dependency that the package declares, and whether each extra is complete."""
    from packaging.requirements import Requirement

    try:
        rows = [Check("medmoe", version("medmoe"))]
    except PackageNotFoundError:
        return [Check("medmoe", "not installed", "missing", "pip install -e .")]
    needs = [Requirement(line) for line in requires("medmoe") or []]
    required = [need for need in needs if _wanted(need, "")]
    rows += [_check_required(need) for need in required]
    for extra in metadata("medmoe").get_all("Provides-Extra") or []:
        mine = [need for need in needs if need not in required and _wanted(need, extra)]
        absent = ", ".join(need.name for need in mine if _fault(need))
        rows.append(
            Check(f"extra {extra}", f"without {absent}", "note", f"pip install 'medmoe[{extra}]'")
            if absent
            else Check(f"extra {extra}", "complete")
        )
    return rows


def _wanted(need: Requirement, extra: str) -> bool:
    return need.marker is None or need.marker.evaluate({"extra": extra})


def _check_required(need: Requirement) -> Check:
    from packaging.version import Version

    fault = _fault(need)
    if fault:
        return Check(need.name, fault, "missing", f"pip install '{need.name}{need.specifier}'")
    found, tried = version(need.name), NEWEST_TRIED.get(need.name)
    if tried and Version(found).release[:2] > Version(tried).release:
        fix = f"should it fail: pip install '{need.name}=={tried}.*'"
        return Check(need.name, f"{found}, newer than {tried}, the newest tried", "note", fix)
    return Check(need.name, found)


def _fault(need: Requirement) -> str:
    """Return what is wrong with the installed version of a requirement, or an empty string."""
    try:
        installed = version(need.name)
    except PackageNotFoundError:
        return "not installed"
    # prereleases: a nightly torch 2.14.0.dev satisfies >=2.11
    if need.specifier.contains(installed, prereleases=True):
        return ""
    return f"{installed}, but {need.specifier} is needed"


def check_torch() -> list[Check]:
    """Check the build of torch: its backend, what the CPU can do, and the GPUs it sees."""
    try:
        import torch
    except Exception as error:  # a broken build fails in many ways, and the report must go on
        why = f"cannot be imported: {error}".splitlines()[0]
        return [Check("torch build", why, "missing", "pip install --force-reinstall torch")]
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    capability = torch.backends.cpu.get_cpu_capability()
    rows = [Check("torch build", f"{build}, CPU capability {capability}")]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            rows.append(Check(f"GPU {index}", f"{card.name}, {card.total_memory / GIB:.0f} GiB"))
    elif torch.backends.mps.is_available():
        rows.append(Check("GPU", "Apple (MPS)"))
    else:
        rows.append(Check("GPU", "none: the tiny models train on the CPU, larger ones need one"))
    return rows


def check_allocation() -> list[Check]:
    """Check how tensors get their memory, where the GNU C library gives it: a matter of speed."""
    if platform.libc_ver()[0] != "glibc":
        return []
    name, set_to = "memory allocation", os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in set_to:
        return [Check(name, set_to)]
    fix = f"export GLIBC_TUNABLES={KEEPS_HUGE_PAGES} (costs memory: docs/training.md)"
    return [
        Check(name, "in small pages: training on a CPU takes up to 1.8 times as long", "note", fix)
    ]


def check_decoder() -> Check:
    """Have a decoder process try what a broken picture may never make it do."""
    from medmoe.data.intake.sandbox import DecoderPool

    try:
        tried = DecoderPool(workers=1).probe()
    except (ImportError, OSError, RuntimeError) as error:
        return Check("decoder", f"does not start: {error}", "missing", "read docs/images.md")
    refused = ", ".join(name for name, no in tried.items() if no)
    allowed = ", ".join(name for name, no in tried.items() if not no)
    value = f"refused to it: {refused or 'nothing'}"
    if not allowed:
        return Check("decoder", value)
    fix = "Linux 5.13 or newer, libseccomp2, and: pip install 'medmoe[serve]'"
    return Check("decoder", f"{value}; not refused: {allowed}", "note", fix)


def check_hardware(out: Path) -> list[Check]:
    """Check cores, memory and the disk that holds `out`."""
    import psutil

    from medmoe.data.intake.sandbox import cores

    memory = psutil.virtual_memory()
    room = shutil.disk_usage(out).free / GIB
    rows = [Check("cores", f"{cores()} ({platform.machine()}, {platform.system()})")]
    total = memory.total / GIB
    value = f"{total:.1f} GiB, {memory.available / GIB:.1f} GiB available"
    low = total < MIN_MEMORY_GIB
    fix = f"the demo wants {MIN_MEMORY_GIB} GiB" if low else ""
    rows.append(Check("memory", value, "note" if low else "ok", fix))
    full = room < MIN_DISK_GIB
    fix = f"free {MIN_DISK_GIB} GiB, or give another disk by --out DIR" if full else ""
    rows.append(Check("disk", f"{room:.1f} GiB free", "note" if full else "ok", fix))
    return rows
