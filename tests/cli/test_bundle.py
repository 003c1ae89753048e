"""`medmoe bundle …`: the same bytes each time, every damage found, and an installer that refuses.

Of the packages that a bundle carries only two are taken here: nothing is fetched. The real one is
installed and used without a network in tests/stress/test_stress_bundle.py.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import pytest
from tests.cli.running import refused_by

from medmoe.bundle import FOLDER, SUMS, entry_in_tar
from medmoe.bundle.papers import licence_of, licences
from medmoe.bundle.verify import verify_bundle
from medmoe.bundle.wheels import Wheel, needed
from medmoe.cli.main import main
from medmoe.errors import CheckpointError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bundles are of Linux, for Linux")
refused = refused_by("bundle")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel of one small package, of the files that are installed."""
    folder, dist = tmp_path_factory.mktemp("wheels"), distribution("packaging")
    rows = []
    with zipfile.ZipFile(folder / f"packaging-{dist.version}-py3-none-any.whl", "w") as wheel:
        for file in dist.files or ():
            if file.suffix == ".pyc" or file.name in ("INSTALLER", "RECORD", "REQUESTED"):
                continue
            wheel.writestr(str(file), file.read_binary())
            assert file.hash is not None
            rows.append(f"{file},sha256={file.hash.value},{file.size}\n")
        record = f"packaging-{dist.version}.dist-info/RECORD"
        wheel.writestr(record, "".join([*rows, f"{record},,\n"]))
    return folder


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    few: dict[str, set[str]] = {"medmoe": {"packaging"}, "packaging": set()}
    monkeypatch.setattr("medmoe.bundle.make.needed", lambda: few)


def make(model: Path, out: Path, wheels: Path, *more: object) -> Path:
    words = ("make", model, "--out", out, "--wheels", wheels, *more)
    assert main(["bundle", *map(str, words)]) == 0
    return out


@pytest.fixture
def bundle(model: Path, wheels: Path, tmp_path: Path) -> Path:
    return make(model, tmp_path / "b.tar", wheels)


def contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        files = ((m.name.removeprefix(f"{FOLDER}/"), tar.extractfile(m)) for m in tar)
        return {name: file.read() for name, file in files if file}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_same_model_gives_the_same_bytes(
    model: Path, bundle: Path, wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(
        model, tmp_path / "elsewhere" / "moe" / "model", copy_function=shutil.copy
    )
    for path in copy.iterdir():
        path.chmod(0o600)
        os.utime(path, (1, 1))
    again = make(copy, tmp_path / "again.tar", wheels, "--json", tmp_path / "told.json")
    assert main(["bundle", "verify", str(again)]) == 0
    assert "whole: " in capsys.readouterr().out
    found, wanted = contents(again), contents(bundle)
    name = found.pop("sbom.cdx.json").replace(b'"moe"', model.parent.name.encode())
    assert name  # the model's name stands in it, that of its folder
    assert {k: v for k, v in wanted.items() if k in found and k != SUMS} | {
        SUMS: found[SUMS]
    } == found
    make(model, again, wheels)
    assert again.read_bytes() == bundle.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "again.tar",
        "b.tar",
        "elsewhere",
        "told.json",
    ]


def test_lock_bill_and_licences_say_what_is_in_it(model: Path, bundle: Path) -> None:
    found = contents(bundle)
    carried = {n.removeprefix("wheels/"): sha256(d) for n, d in found.items() if n[:7] == "wheels/"}
    assert len(carried) == 2
    lock = found["requirements.lock"].decode().splitlines()
    assert sorted(line.split("sha256:")[1] for line in lock) == sorted(carried.values())
    bill = json.loads(found["sbom.cdx.json"])
    *libraries, described = bill["components"]
    assert sorted(part["hashes"][0]["content"] for part in libraries) == sorted(carried.values())
    stated = {part["name"]: part["licenses"] for part in libraries}
    assert stated["packaging"] == [{"expression": licence_of(distribution("packaging"))}]
    files = {part["name"]: part["hashes"][0]["content"] for part in described["components"]}
    assert files == {p.name: sha256(p.read_bytes()) for p in model.iterdir() if p.name in files}
    assert {*files} | {"MANIFEST.json"} == {p.name for p in model.iterdir()}
    refs = {part["bom-ref"] for part in bill["components"]} | {"bundle"}
    assert {edge["ref"] for edge in bill["dependencies"]} <= refs
    assert {ref for edge in bill["dependencies"] for ref in edge["dependsOn"]} <= refs
    table = found["licences/LICENCES.md"].decode()
    assert "| medmoe 0.1.0 | Apache-2.0 | in `medmoe-0.1.0/` |" in table
    assert any(name.startswith("licences/packaging-") for name in found)
    lent = [Wheel("x", "1", bundle, distribution(n), "", 0) for n in ("setuptools", "packaging")]
    assert "x-1/licenses/LICENSE.APACHE" in licences(lent[1:], model)
    assert "x-1/licenses/LICENSE.APACHE" not in licences(lent[:1], model)  # of what it vendors
    assert b"not a medical device" in found["README.md"]
    assert not {n for n in ("README.md", "install.sh") if b"@PYTHON@" in found[n]}
    with zipfile.ZipFile(io.BytesIO(found["wheels/medmoe-0.1.0-py3-none-any.whl"])) as wheel:
        assert {"medmoe/bundle/install.sh", "medmoe/py.typed"} <= {*wheel.namelist()}
        assert not [name for name in wheel.namelist() if "__pycache__" in name]


def test_what_serve_needs_is_carried_and_nothing_for_gpus() -> None:
    found = needed()
    assert {"torch", "transformers", "uvicorn", "pydicom", "medmoe"} <= {*found}
    assert not {"pytest", "ruff", "openvino", "triton"} & {*found}
    assert not [name for name in found if name.startswith("nvidia")]
    assert {need for needs in found.values() for need in needs} <= {*found}


def test_a_licence_is_an_spdx_expression_where_there_is_one() -> None:
    dists = [distribution(name) for name in needed()]
    for dist in dists:
        expression = dist.metadata.get_all("License-Expression")
        assert licence_of(dist) == (expression or [licence_of(dist)])[0]
        assert licence_of(dist) != "not stated"
        assert "\n" not in licence_of(dist)
    both = [d for d in dists if {"License-Expression", "Classifier"} <= {*d.metadata}]
    assert any("License ::" in c for d in both for c in d.metadata.get_all("Classifier") or ())


Change = Callable[[dict[str, bytes], list[tarfile.TarInfo]], None]


def special(kind: bytes, name: str = f"{FOLDER}/model/x") -> Change:
    def change(files: dict[str, bytes], more: list[tarfile.TarInfo]) -> None:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, "/etc/passwd"
        more.append(entry)

    return change


def altered(files: dict[str, bytes], more: list[tarfile.TarInfo]) -> None:
    files["model/config.json"] = b"{ }"


def lacking(files: dict[str, bytes], more: list[tarfile.TarInfo]) -> None:
    del files["model/config.json"]


def added(files: dict[str, bytes], more: list[tarfile.TarInfo]) -> None:
    files["model/more.py"] = b""


def without_sums(files: dict[str, bytes], more: list[tarfile.TarInfo]) -> None:
    del files[SUMS]


def setuid(files: dict[str, bytes], more: list[tarfile.TarInfo]) -> None:
    more.append(entry_in_tar("model/more", 0))
    more[-1].mode = 0o4755
    files[SUMS] += f"{sha256(b'')}  model/more\n".encode()


def write(path: Path, change: Change | None) -> Path:
    """Write a bundle of three files, changed when its checksums stood."""
    files = {"README.md": b"Read", "install.sh": b"exit", "model/config.json": b"{}"}
    files[SUMS] = "".join(f"{sha256(data)}  {n}\n" for n, data in files.items()).encode()
    more = list[tarfile.TarInfo]()
    if change is not None:
        change(files, more)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in sorted(files.items()):
            tar.addfile(entry_in_tar(name, len(data)), io.BytesIO(data))
        for entry in more:
            tar.addfile(entry)
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (altered, f"the SHA-256 of model/config.json is not the one in {SUMS}"),
        (lacking, "model/config.json is missing"),
        (added, f"model/more.py is not in {SUMS}"),
        (without_sums, f"{SUMS} is missing"),
        (setuid, "bytes that belong to no file"),
        (special(tarfile.SYMTYPE), "'medmoe-bundle/model/x' is a link"),
        (special(tarfile.LNKTYPE), "is a link"),
        (special(tarfile.CHRTYPE), "a device"),
        (special(tarfile.DIRTYPE), "a folder"),
        (special(tarfile.REGTYPE, "/etc/cron.d/x"), "would not be unpacked into medmoe-bundle"),
        (special(tarfile.REGTYPE, f"{FOLDER}/../../x"), "would not be unpacked into"),
        (special(tarfile.REGTYPE, "elsewhere/x"), "would not be unpacked into"),
        (special(tarfile.REGTYPE, f"{FOLDER}/README.md"), "README.md is in it twice"),
    ],
)
def test_what_no_bundle_holds_is_refused(
    change: Change, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify_bundle(write(tmp_path / "good.tar", None))["files"] == 3
    line = refused(capsys, "verify", write(tmp_path / "bad.tar", change))
    assert said in line
    assert "copy it again" in line


def test_any_byte_that_differs_is_found_and_any_cut(tmp_path: Path) -> None:
    good = write(tmp_path / "good.tar", None).read_bytes()
    path, numbers = tmp_path / "bad.tar", random.Random(7)
    for _ in range(400):
        place = numbers.randrange(len(good))
        path.write_bytes(
            good[:place] + bytes([good[place] ^ 1 << numbers.randrange(8)]) + good[place + 1 :]
        )
        with pytest.raises(CheckpointError):
            verify_bundle(path)
    for length in (0, 1, 511, 512, 700, len(good) // 2, len(good) - 512, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(CheckpointError):
            verify_bundle(path)
    path.write_bytes(good + bytes(512))
    with pytest.raises(CheckpointError, match="belong to no file"):
        verify_bundle(path)


def test_what_is_no_bundle_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "No such file" in refused(capsys, "verify", tmp_path / "none.tar")
    assert "Is a directory" in refused(capsys, "verify", tmp_path)
    (tmp_path / "text").write_text("hello")
    assert "no whole bundle" in refused(capsys, "verify", tmp_path / "text")
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz"):
        pass
    assert "no whole bundle" in refused(capsys, "verify", tmp_path / "b.tar.gz")


def test_what_make_cannot_use_is_one_line(
    model: Path, wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", tmp_path / "b.tar")
    assert "name it: --out FILE.tar" in refused(capsys, "make", model)
    assert "name it: --out FILE.tar" in refused(capsys, "make", model, "--out", tmp_path)
    assert "no such model directory" in refused(capsys, "make", tmp_path / "none", *out)
    said = refused(capsys, "make", model, *out, "--wheels", tmp_path / "none")
    assert "no such folder; give one" in said
    copy = shutil.copytree(model, tmp_path / "model")
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert "its SHA-256 differs" in refused(capsys, "make", copy, *out)
    assert not list(tmp_path.glob("*b.tar*"))


def test_a_wheel_must_be_there_and_what_is_installed(
    model: Path, wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, empty = ("--out", tmp_path / "b.tar"), tmp_path / "empty"
    empty.mkdir()
    words = ["bundle", "make", *map(str, (model, *out, "--wheels"))]
    assert main([*words, str(empty)]) == 2
    line = capsys.readouterr().err
    assert "No matching distribution found for packaging" in line
    assert line.count("\n") == 1
    (whole,) = wheels.iterdir()
    with zipfile.ZipFile(whole) as good, zipfile.ZipFile(empty / whole.name, "w") as bad:
        for name in good.namelist():
            more = b"\nimport this" if name == "packaging/tags.py" else b""
            bad.writestr(name, good.read(name) + more)
    assert main([*words, str(empty)]) == 2
    assert "packaging/tags.py is not what is installed here" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty"]


def test_on_a_full_disk_the_old_file_stays(
    model: Path,
    bundle: Path,
    wheels: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, written = bundle.read_bytes(), tarfile.TarFile.addfile

    def full(tar: tarfile.TarFile, entry: tarfile.TarInfo, file: object = None) -> None:
        if entry.name.endswith("install.sh"):
            raise OSError(errno.ENOSPC, "No space left on device")
        written(tar, entry, file)  # type: ignore[arg-type]

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    words = ("bundle", "make", model, "--out", bundle, "--wheels", wheels)
    assert main([*map(str, words)]) == 3
    assert "free some space" in capsys.readouterr().err
    assert bundle.read_bytes() == before
    assert [p.name for p in bundle.parent.iterdir()] == ["b.tar"]


def test_interrupted_or_killed_the_old_file_stays(
    model: Path, bundle: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bundle.read_bytes()
    words = ["bundle", "make", *map(str, (model, "--out", bundle, "--wheels", wheels))]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupted)
        assert main(words) == 130
    assert [p.name for p in bundle.parent.iterdir()] == ["b.tar"]
    code = (
        "import os, sys\n"
        "import medmoe.bundle.make as m\n"
        "from medmoe.cli.main import main\n"
        "m.needed = lambda: {'medmoe': {'packaging'}, 'packaging': set()}\n"
        "os.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        "main(sys.argv[1:])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], timeout=300)
    assert done.returncode == -9
    assert bundle.read_bytes() == before
    assert {p.name for p in bundle.parent.iterdir()} == {"b.tar", ".b.tar.staging"}
    make(model, bundle, wheels)  # what was left goes
    assert [p.name for p in bundle.parent.iterdir()] == ["b.tar"]
    assert bundle.read_bytes() == before


# --- the installer


@pytest.fixture
def unpacked(bundle: Path, tmp_path: Path) -> Path:
    with tarfile.open(bundle) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / FOLDER


def install(
    folder: Path, *words: object, **environment: object
) -> subprocess.CompletedProcess[str]:
    plain = {"PATH": "/usr/bin:/bin", "HOME": str(folder.parent), "PYTHON": sys.executable}
    return subprocess.run(
        ["sh", str(folder / "install.sh"), *map(str, words)],
        env=plain | {name: str(value) for name, value in environment.items()},
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )


def not_installed(folder: Path, *words: object, **environment: object) -> str:
    """Return the one line of a refusal, which leaves nothing."""
    before = sorted(folder.parent.iterdir())
    done = install(folder, *words, **environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("install.sh: ")
    assert done.stderr.count("\n") == 1
    assert sorted(folder.parent.iterdir()) == before
    return done.stderr


def test_install_makes_one_folder_in_which_medmoe_starts(unpacked: Path, tmp_path: Path) -> None:
    done = install(unpacked, "in stalled")
    assert done.returncode == 0, done.stderr
    target = tmp_path / "in stalled"
    assert "installed: " in done.stdout
    said = subprocess.run([target / "medmoe", "--version"], capture_output=True, text=True, cwd="/")
    assert said.stdout == "medmoe 0.1.0\n"
    left = {"docs", "licences", "medmoe", "model", "README.md", "venv"}
    assert left <= {p.name for p in target.iterdir()}
    assert "is not empty" in not_installed(unpacked, "in stalled")


def test_install_refuses_what_is_not_as_it_was_packed(unpacked: Path) -> None:
    assert "give one new folder" in not_installed(unpacked)
    (unpacked / "more").write_text("x")
    assert "SHA256SUMS has" in not_installed(unpacked, "t")
    (unpacked / "more").unlink()
    (unpacked / "more").symlink_to("/etc/passwd")
    assert "./more is no plain file" in not_installed(unpacked, "t")
    (unpacked / "more").unlink()
    config = unpacked / "model" / "config.json"
    config.write_text(config.read_text() + " ")
    assert "model/config.json: FAILED (SHA-256)" in not_installed(unpacked, "t")
    config.unlink()
    assert "model/config.json: FAILED" in not_installed(unpacked, "t")


def test_install_says_what_does_not_fit(unpacked: Path, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()

    def says(program: str, text: str) -> str:
        for path in programs.iterdir():
            path.unlink()
        (programs / program).write_text(f"#!/bin/sh\necho '{text}'\n")
        (programs / program).chmod(0o755)
        return f"{programs}:/usr/bin:/bin"

    assert "needs Python 3." in not_installed(unpacked, "t", PYTHON="/bin/false")
    assert "is for Linux on" in not_installed(unpacked, "t", PATH=says("uname", "Darwin"))
    said = not_installed(unpacked, "t", PATH=says("df", "Filesystem\ndisk 9 9 9 1% /"))
    assert "free some space" in said
    without = tmp_path / "programs" / "python"
    without.write_text(
        f'#!/bin/sh\ncase $2 in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"\n'
    )
    without.chmod(0o755)
    assert "has no venv; install" in not_installed(unpacked, "t", PYTHON=without)
    without.write_text(
        f'#!/bin/sh\ncase $2 in *libc_ver*) echo; exit;; esac\nexec {sys.executable} "$@"\n'
    )
    assert "needs glibc 2." in not_installed(unpacked, "t", PYTHON=without)
    lock, sums = unpacked / "requirements.lock", unpacked / SUMS
    before = sha256(lock.read_bytes())
    lock.write_text(f"{lock.read_text()}absent==1 --hash=sha256:{'0' * 64}\n")
    sums.write_text(sums.read_text().replace(before, sha256(lock.read_bytes())))
    assert "pip has failed: ERROR: No matching distribution" in not_installed(unpacked, "t")
