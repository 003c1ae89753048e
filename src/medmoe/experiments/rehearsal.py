"""A rehearsal of table 1 at the paper's size: its own commands, on copies a thousandth as large.

A server on this machine stands in for the hub and for where LLaVA-Med is published. What it has is
of the layouts, file names and key names that are published, ``.bin`` included: the LLaVA-Med files
and the archives of its pictures, SLAKE, PathVQA, StableLM-2, Phi-2 and CLIP. VQA-RAD, which comes
by hand, lies there already. What is in them is drawn by a seed and means nothing; neither does a
score. Widths are a thirty-second, so that weights are about a thousandth; depth and picture size
stay.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from medmoe.backbones.published import HOME_VARIABLE
from medmoe.backbones.registry import LANGUAGE_BACKBONES, VISION_BACKBONES
from medmoe.backbones.spec import LanguageBackbone, VisionBackbone
from medmoe.data.fetch import MIRROR_VARIABLE
from medmoe.data.registry import READERS
from medmoe.data.tokenize import train_tokenizer
from medmoe.errors import MedMoeError

#: The recipes of table 1, and the backbones that they start from.
RECIPES = ("stablelm2", "phi2")
LANGUAGE, VISION = ("stablelm2_1_6b", "phi2_2_7b"), "clip_large_336"
#: The commands of docs/reproduce.md, in order; DIR is the folder of the data sets.
COMMANDS = (
    "medmoe data get llava_med slake path_vqa --data DIR",
    *(f"medmoe weights get {name}" for name in (*LANGUAGE, VISION)),
    "medmoe train stablelm2 --data DIR --plan --hardware 1xH100",
    "medmoe reproduce table1 --size paper --data DIR",
)
#: Widths are divided by this; layers, heads' proportions and pictures are not.
_NARROWER = 32
#: A picture's 576 tokens and some words: a model that has learned nothing answers till it is full.
_POSITIONS = 832
#: bf16 is emulated, and a hundred times slower, on processors without units for it; processes that
#: load pictures take longer to start than these few pictures to load. Steps are small as the sets.
SETTINGS = (
    "run.precision=float32",
    "run.loader_workers=0",
    "run.gradient_accumulation=2",
    f"max_length={_POSITIONS}",
    *(f"phases.{phase}.batch_size=8" for phase in ("phase1_alignment", "phase2_instruction")),
    "phases.phase3_moe.batch_size=8",
)
_SIDE = 64
_MODALITIES = {"chest_xray": "X-Ray", "ct_scan": "CT", "mri": "MRI"}
_ASKED = (("Is there a mass?", ("Yes", "No")), ("Where is it?", ("left lung", "liver")))
_COMMIT = "0" * 40


def rehearse(folder: Path, say: Callable[[str], object]) -> Path:
    """Run all `COMMANDS` but the last, which is the caller's, and return the data folder.

    Args:
        folder: What they fetch is published, and lands, below it.
        say: Is told every command before it runs, the last one too.

    Raises:
        MedMoeError: A command failed.
    """
    data, weights, published = (folder / name for name in ("data", "weights", "published"))
    os.environ[HOME_VARIABLE] = str(weights)
    with _serving(published) as address:
        write_sources(published, data, address)
        own = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        own |= {MIRROR_VARIABLE: f"{address}/llava-med/", "no_proxy": "127.0.0.1"}
        for command in COMMANDS:
            words = [str(data) if word == "DIR" else word for word in command.split()]
            say(f"$ {shlex.join(words)}")
            if command != COMMANDS[-1]:
                done = subprocess.run([sys.executable, "-m", *words], env=os.environ | own)
                if done.returncode:
                    raise MedMoeError(f"the rehearsal ends here: {shlex.join(words)} has failed")
    return data


@contextmanager
def _serving(folder: Path) -> Iterator[str]:
    """Serve a folder as the hub and the web do while it is used, and yield the address."""
    handler = partial(_Published, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Published(SimpleHTTPRequestHandler):
    """Answers as the hub does: which files a repository has, and each of them."""

    def do_GET(self) -> None:
        """Send a file, or what a repository has: ``/api/models/OWNER/NAME``, ``…/tree/COMMIT``."""
        if not self.path.startswith("/api/"):
            super().do_GET()
            return
        name = "/".join(self.path.partition("?")[0].split("/")[3:5])
        files = []
        for path in (file for file in Path(self.directory, name).rglob("*") if file.is_file()):
            digest, size = sha256(path.read_bytes()).hexdigest(), path.stat().st_size
            inside = path.relative_to(Path(self.directory, name)).as_posix()
            lfs = {"sha256": digest, "oid": digest, "size": size, "pointerSize": 1}
            names = {"rfilename": inside, "path": inside, "type": "file", "oid": digest}
            files.append(names | {"size": size, "lfs": lfs})
        whole = {"id": name, "sha": _COMMIT, "siblings": files}
        content = json.dumps(files if "/tree/" in self.path else whole).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def translate_path(self, path: str) -> str:
        """Return the file of ``/OWNER/NAME/resolve/COMMIT/FILE``, for data sets after theirs."""
        plain = re.sub(r"^/(?:datasets/)?([^/]+/[^/]+)/resolve/[^/]+/", r"/\1/", path)
        return super().translate_path(plain)

    def end_headers(self) -> None:
        """Add what the hub says of every file."""
        self.send_header("X-Repo-Commit", _COMMIT)
        self.send_header("ETag", f'"{_COMMIT}"')
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def write_sources(published: Path, data: Path, address: str) -> None:
    """Write what is published, by repository, and the one set that comes by hand.

    Args:
        address: Of the server that has ``published``.
    """
    disable_progress_bars()
    sources = {name: str(READERS[name].SOURCE.hub) for name in ("slake", "path_vqa")}
    texts = [*_write_llava_med(published / "llava-med", address), *_write_vqa_rad(data / "vqa-rad")]
    texts += _write_slake(published / sources["slake"])
    texts += _write_path_vqa(published / sources["path_vqa"])
    for name in LANGUAGE:
        entry = LANGUAGE_BACKBONES[name]
        _write_language(entry, published / str(entry.hub_id), texts)
    vision = VISION_BACKBONES[VISION]
    _write_vision(vision, published / str(vision.hub_id))


def _picture(*seed: int) -> bytes:
    """Return a JPEG of smooth blobs, far by its hash from those of other seeds."""
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (10, 10), dtype=np.uint8))
    file = BytesIO()
    coarse.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    return file.getvalue()


def _save(path: Path, *seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_picture(*seed))


def _write_rows(path: Path, rows: Sequence[Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")


def _questions(number: int) -> list[tuple[str, str, str]]:
    """Return question, answer and type of answer of one picture."""
    kinds = ("CLOSED", "OPEN")
    return [(q, a[number % len(a)], kind) for (q, a), kind in zip(_ASKED, kinds, strict=True)]


def _write_llava_med(folder: Path, address: str) -> Iterable[str]:
    """Write captions and conversations as LLaVA-Med's JSON files, and their pictures' archive."""
    listed = []
    for kind, (part, file) in enumerate(
        (
            ("alignment", "llava_med_alignment_500k.json"),
            ("instruct", "llava_med_instruct_60k_inline_mention.json"),
        )
    ):
        rows = []
        for number in range(6):
            name = f"{kind}_{number}"
            # As of the real ones, an archive is gone, and its picture with it.
            place, archive = f"PMC/{name}.jpg", "PMC" if number < 5 else "gone"
            _save(folder / place, 1 + kind, number)
            listed.append(
                {
                    "pair_id": name,
                    "pmc_tar_url": f"{address}/{folder.name}/{archive}.tar.gz",
                    "image_file_path": place,
                }
            )
            flag = [*_MODALITIES, "histology", "gross"][number % 5]
            shown = f"This is picture {number} of a {flag.replace('_', ' ')}."
            said = ["<image>\nDescribe the picture.", shown]
            if kind:
                said += ["What is seen?", "Nothing that means anything."]
            yield from said
            turns = [
                {"from": ("human", "gpt")[place % 2], "value": text}
                for place, text in enumerate(said)
            ]
            domain = {known: known == flag for known in (*_MODALITIES, "histology", "gross")}
            rows.append(
                {"id": name, "image": f"{name}.jpg", "domain": domain, "conversations": turns}
            )
        _write_rows(folder / part / file, rows)
    lines = "".join(f"{json.dumps(row)}\n" for row in listed)
    (folder / "llava_med_image_urls.jsonl").write_text(lines, encoding="utf-8")
    shutil.make_archive(str(folder / "PMC"), "gztar", folder, "PMC")


def _write_vqa_rad(folder: Path) -> Iterable[str]:
    """Write VQA-RAD's two files; as in the published ones, test pictures stand in train too."""
    parts: dict[str, list[Any]] = {"trainset": [], "testset": []}
    for number in range(2):
        name = f"synpic{number}.jpg"
        _save(folder / "images" / name, 3, number)
        for place, (question, answer, kind) in enumerate(_questions(number)):
            row: dict[str, Any] = {
                "qid": 10 * number + place,
                "image_name": name,
                "image_organ": "CHEST",
            }
            row |= {"question": question, "answer": answer, "answer_type": kind}
            parts["trainset"].append(row | {"question_type": "PRES"})
            if number:
                asked = {"qid": f"{row['qid']} of test", "question": f"{question[:-1]} here?"}
                parts["testset"].append(row | asked | {"question_type": "PRES"})
            yield from (question, answer)
    for part, rows in parts.items():
        _write_rows(folder / f"{part}.json", rows)


def _write_slake(folder: Path) -> Iterable[str]:
    """Write SLAKE as its copy on the hub has it."""
    for part, file in enumerate(("train", "validation", "test")):
        rows = []
        for number in range(1 if part else len(_MODALITIES)):
            name = f"xmlab{10 * part + number}/source.jpg"
            _save(folder / "imgs" / name, 4, part, number)
            for place, (question, answer, kind) in enumerate(_questions(number)):
                row = {"qid": 100 * part + 10 * number + place, "img_name": name, "q_lang": "en"}
                row |= {"question": question, "answer": answer, "answer_type": kind}
                row |= {"modality": [*_MODALITIES.values()][number], "location": "Lung"}
                rows.append(row | {"content_type": "Abnormality"})
                yield from (question, answer)
        _write_rows(folder / f"{file}.json", rows)
    shutil.make_archive(str(folder / "imgs"), "zip", folder, "imgs")


def _write_path_vqa(folder: Path) -> Iterable[str]:
    """Write PathVQA's Parquet files of the hub."""
    for part, split in enumerate(("train", "validation", "test")):
        rows = []
        for number in range(1 if part else 2):
            picture = {"bytes": _picture(5, part, number), "path": None}
            for question, answer, _ in _questions(number):
                rows.append({"image": picture, "question": question, "answer": answer.lower()})
                yield from (question, answer)
        path = folder / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows).to_parquet(path)


def _write_language(entry: LanguageBackbone, folder: Path, texts: Sequence[str]) -> None:
    """Write a language model of an entry's architecture, a thousandth as large, and a tokenizer."""
    tokenizer, known = train_tokenizer(texts, 512), entry.config
    tokenizer.model_max_length = _POSITIONS
    small = {name: known[name] // _NARROWER for name in ("hidden_size", "intermediate_size")}
    heads = dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 4)
    tokens = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    tokens["max_position_embeddings"] = _POSITIONS
    tokens |= dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id)
    config = AutoConfig.for_model(entry.model_type, **(known | small | heads | tokens))
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_vision(entry: VisionBackbone, folder: Path) -> None:
    """Write a whole CLIP as it is published: both towers, pickled tensors in one ``.bin`` file."""
    known = entry.config
    small = {name: known[name] // _NARROWER for name in ("hidden_size", "intermediate_size")}
    vision = known | small | {"num_attention_heads": 2}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1}
    config = AutoConfig.for_model("clip", vision_config=vision, text_config=text, projection_dim=16)
    torch.manual_seed(2)
    folder.mkdir(parents=True, exist_ok=True)
    model: Any = AutoModel.from_config(config)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    config.save_pretrained(folder)
