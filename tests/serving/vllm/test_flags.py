"""What `medmoe serve` says of vLLM where it is not installed, or not asked for."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import pytest
from PIL import Image
from tests.model.tiny import moe_model, processor

from medmoe.cli.main import parser_of
from medmoe.cli.serve import _engine, _vllm_options
from medmoe.errors import ConfigError
from medmoe.model.checkpoint import save_model
from medmoe.serving.chat_engine import EngineError
from medmoe.serving.vllm.vllm_engine import VllmEngine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("flags") / "model"
    save_model(moe_model("phi"), processor(), directory, {})
    return str(directory)


@pytest.mark.skipif(
    importlib.util.find_spec("vllm") is not None, reason="vLLM is installed, so nothing is missing"
)
def test_without_vllm_the_engine_is_refused_with_where_to_read(folder: str) -> None:
    args = parser_of("serve").parse_args([folder, "--engine", "vllm"])
    with pytest.raises(ConfigError, match=r"^vllm is not installed.*docs/serving_vllm\.md"):
        _engine(args)


@pytest.mark.parametrize(
    "words", [["--tensor-parallel-size", "2"], ["--vllm", "tensor-parallel-size=2"]]
)
def test_a_flag_of_vllm_is_refused_where_our_engine_answers(folder: str, words: list[str]) -> None:
    args = parser_of("serve").parse_args([folder, *words])
    with pytest.raises(ConfigError, match=r"^--tensor-parallel-size is for vLLM; add --engine"):
        _engine(args)


def test_flags_and_pairs_reach_vllm_by_its_names_with_their_types() -> None:
    words = ["model", "--tensor-parallel-size", "2", "--max-model-len", "2048", "--dtype"]
    words += ["bfloat16", "--gpu-memory-utilization", "0.8", "--vllm", "enforce-eager=true"]
    words += ["--vllm", "block_size=32", "--vllm", "compilation_config={mode: 0}"]
    assert _vllm_options(parser_of("serve").parse_args(words)) == {
        "tensor_parallel_size": 2, "max_model_len": 2048, "dtype": "bfloat16",
        "gpu_memory_utilization": 0.8, "enforce_eager": True, "block_size": 32,
        "compilation_config": {"mode": 0},
    }  # fmt: skip


@pytest.mark.parametrize("pair", ["block_size", "=3", "a=[1"])
def test_a_pair_that_is_none_is_refused(pair: str) -> None:
    args = parser_of("serve").parse_args([str(Path("model")), "--vllm", pair])
    with pytest.raises(ConfigError, match=r"is no KEY=VALUE; e\.g\. --vllm block_size=32"):
        _vllm_options(args)


def test_the_engine_says_that_it_cannot_explain_and_refuses_to() -> None:
    assert VllmEngine.explains is False
    engine = VllmEngine.__new__(VllmEngine)  # a fact of it, whatever it serves
    with pytest.raises(EngineError, match="needs a server with --engine local") as caught:
        asyncio.run(engine.explain(Image.new("RGB", (32, 32)), "Is there a mass?"))
    assert (caught.value.status, caught.value.code) == (501, "no_evidence")
