"""`convert llava`: a stock Llava checkpoint becomes a dense model with the same forward pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.convert.stock_llava import IMAGE_ID, VOCAB, saved, stock
from tests.model.tiny import pixels
from tokenizers import Tokenizer, processors
from torch import Tensor
from transformers import SiglipVisionConfig

from medmoe.backbones.templates import chat_template
from medmoe.data.tokenize import ConversationTokenizer
from medmoe.errors import CheckpointError, ConfigError, MedMoeError
from medmoe.inference.engine import MedMoe
from medmoe.model.checkpoint import MANIFEST, PROVENANCE, verify
from medmoe.model.convert.llava import convert_llava, load_llava
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.upcycle import upcycle

WEIGHTS = "model.safetensors"
LANGUAGES = ("stablelm", "phi", "llama", "qwen3")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(stock("llama"), tmp_path_factory.mktemp("llava") / "source", processor=True)


@pytest.fixture
def source(llama: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for path in llama.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def prompt(count: int = 16) -> Tensor:
    return torch.tensor([[7, 9, *[IMAGE_ID] * count, 30, 31, 200]])


def assert_same_forward(one: Any, other: Any, ids: Tensor) -> None:
    with torch.no_grad():
        logits = [model(input_ids=ids, pixel_values=pixels(1)).logits for model in (one, other)]
    # The same modules on the same weights: only the order of sums may differ.
    assert float((logits[0] - logits[1]).abs().max()) <= 1e-5


@pytest.mark.parametrize("family", LANGUAGES)
def test_the_forward_pass_is_the_stock_one(family: str, tmp_path: Path) -> None:
    model = stock(family)
    account = convert_llava(saved(model, tmp_path / "source"), tmp_path / "model")
    verify(tmp_path / "model")
    assert account.kind == f"llava with {family}"
    assert account.moe_layers == ()
    ours = MedMoeForConditionalGeneration.from_pretrained(tmp_path / "model").eval()
    assert ours.config.moe_layers == []
    assert ours.config.image_seq_length == 16
    assert_same_forward(ours, model, prompt())
    facts = json.loads((tmp_path / "model" / PROVENANCE).read_text())
    assert facts["training"]["converted"] == json.loads(json.dumps(asdict(account)))


@pytest.mark.parametrize("family", LANGUAGES)
def test_it_can_be_the_start_of_phase_3(family: str, tmp_path: Path) -> None:
    dense = load_llava(saved(stock(family), tmp_path)).model
    moe = upcycle(dense, moe_layers=[0, 2], domains=["ct", "mri"], init="function_preserving")
    assert_same_forward(moe, dense, prompt())


@pytest.mark.parametrize(("strategy", "patches"), [("default", 16), ("full", 17)])
def test_image_tokens_are_counted_with_the_class_token(
    strategy: str, patches: int, tmp_path: Path
) -> None:
    model = stock("llama", strategy=strategy)
    made = load_llava(saved(model, tmp_path, processor=True))
    assert made.model.config.image_seq_length == patches
    assert made.processor is not None
    out = made.processor(
        images=torch.zeros(3, 40, 20, dtype=torch.uint8), text="<image>", return_tensors="pt"
    )
    assert int((out["input_ids"] == IMAGE_ID).sum()) == patches
    assert_same_forward(made.model, model, prompt(patches))


def test_a_siglip_encoder_keeps_all_its_patches(tmp_path: Path) -> None:
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    model = stock("qwen3", vision, "full")
    made = load_llava(saved(model, tmp_path, processor=True))
    assert made.model.config.image_seq_length == 16
    assert made.processor is not None
    assert made.processor._get_num_multimodal_tokens([(20, 50)]).num_image_tokens == [16]
    assert_same_forward(made.model, model, prompt())


def test_older_key_names_are_read(source: Path) -> None:
    """As Llava of transformers 4.30 to 4.51 wrote them, and as memory has them now."""
    whole = load_llava(source).model.state_dict()
    state = load_file(source / WEIGHTS)
    assert {name.split(".")[0] for name in state} == {
        "language_model",
        "vision_tower",
        "multi_modal_projector",
    }
    in_memory = {
        name.replace("language_model.model.", "model.language_model.")
        .replace("language_model.lm_head.", "lm_head.")
        .replace("vision_tower.", "model.vision_tower.", 1)
        .replace("multi_modal_projector.", "model.multi_modal_projector."): tensor
        for name, tensor in state.items()
    }
    with_vision_model = {
        name.replace("vision_tower.", "vision_tower.vision_model.", 1): tensor
        for name, tensor in state.items()
    }
    for other in (in_memory, with_vision_model):
        assert other.keys() != state.keys()
        save_file(other, source / WEIGHTS)
        found = load_llava(source).model.state_dict()
        assert found.keys() == whole.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())


def test_a_pickle_gives_the_same_model(source: Path) -> None:
    whole = load_llava(source).model.state_dict()
    torch.save(load_file(source / WEIGHTS), source / "pytorch_model.bin")
    (source / WEIGHTS).unlink()
    found = load_llava(source)
    assert found.account.files == ("pytorch_model.bin",)
    assert all(torch.equal(found.model.state_dict()[n], t) for n, t in whole.items())


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    model = stock("llama", tie_word_embeddings=True)
    convert_llava(saved(model, tmp_path / "source"), tmp_path / "model")
    ours = MedMoeForConditionalGeneration.from_pretrained(tmp_path / "model").eval()
    assert ours.lm_head.weight is ours.get_input_embeddings().weight
    assert_same_forward(ours, model, prompt())


def test_a_heads_bias_of_older_llavas_is_kept(tmp_path: Path) -> None:
    """Phi's head has one; the stock class of today would drop it."""
    folder = saved(stock("phi"), tmp_path)
    state = load_file(folder / WEIGHTS)
    bias = torch.arange(VOCAB) / 100
    save_file(state | {"language_model.lm_head.bias": bias}, folder / WEIGHTS)
    found = load_llava(folder)
    assert torch.equal(found.model.lm_head.bias, bias)
    assert found.account.notes[0].startswith("lm_head.bias is kept")


def test_half_precision_stays(tmp_path: Path) -> None:
    made = load_llava(saved(stock("llama").bfloat16(), tmp_path)).model
    assert {parameter.dtype for parameter in made.parameters()} == {torch.bfloat16}


def test_the_processor_answers_with_our_template_or_the_folders(
    source: Path, tmp_path: Path
) -> None:
    account = convert_llava(source, tmp_path / "model")
    assert "chat template of this package" in account.processor
    engine = MedMoe.load(tmp_path / "model")
    assert engine.processor.image_token_id == IMAGE_ID
    assert engine.processor.image_processor.do_pad
    answer = engine.answer(torch.zeros(40, 20, 3, dtype=torch.uint8).numpy(), "why?")
    assert answer.routing is None
    own = chat_template("</s>", "Be brief. ")
    (source / "chat_template.jinja").write_text(own)
    made = load_llava(source)
    assert "chat template of the folder" in made.account.processor
    assert made.processor is not None
    assert made.processor.chat_template == own


def test_a_first_token_of_the_tokenizer_stands_in_the_template(source: Path) -> None:
    """Llama's tokenizers put one before every text; our prompts are the template's rendering."""
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.save(str(source / "tokenizer.json"))
    configure_file(source / "tokenizer_config.json", bos_token="<s>")
    made = load_llava(source)
    assert made.processor is not None
    ids = ConversationTokenizer(made.processor, image_tokens=2).prompt("why?")
    assert ids[0] == tokenizer.token_to_id("<s>")
    assert ids.count(ids[0]) == 1
    (source / "chat_template.jinja").write_text("{{ bos_token }}" + chat_template("</s>"))
    own = load_llava(source).processor
    assert own is not None
    assert ConversationTokenizer(own, image_tokens=2).prompt("why?").count(ids[0]) == 1


@pytest.mark.parametrize("lost", ["tokenizer", "preprocessor_config.json"])
def test_without_tokenizer_or_picture_settings_there_is_no_processor(
    lost: str, source: Path
) -> None:
    for path in source.glob(f"{lost}*"):
        path.unlink()
    made = load_llava(source)
    assert made.processor is None
    assert made.account.processor.startswith("none: ")


def change(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    state = load_file(folder / WEIGHTS)
    edit(state)
    save_file(state, folder / WEIGHTS)


def configure_file(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def configure(folder: Path, **values: Any) -> None:
    configure_file(folder / "config.json", **values)


DOWN = "language_model.model.layers.1.mlp.down_proj.weight"
OURS = DOWN.replace("language_model.model", r"model.language_model")
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing tensor": (
        lambda f: change(f, lambda s: s.pop(DOWN)),
        rf"do not fit its config: 1 missing: {OURS}",
    ),
    "extra tensor": (
        lambda f: change(f, lambda s: s.update(extra=torch.ones(1))),
        "1 unexpected: extra",
    ),
    "misshapen tensor": (
        lambda f: change(f, lambda s: s.update({DOWN: s[DOWN][:, :-1].clone()})),
        rf"1 misshapen: {OURS} is \(32, 47\), its config needs \(32, 48\)",
    ),
    "NaN": (
        lambda f: change(f, lambda s: s[DOWN].view(-1)[3:4].fill_(float("nan"))),
        f"not finite .*: {DOWN}",
    ),
    "another architecture": (
        lambda f: configure(f, model_type="llava_next"),
        r"model_type 'llava_next' is no stock Llava .* use `medmoe convert reference`",
    ),
    "an unknown language model": (
        lambda f: configure(f, text_config={"model_type": "nobody"}),
        "not a Llava of this transformers",
    ),
    "an FFN that no expert can copy": (
        lambda f: saved(stock("llama", mlp_bias=True), f),
        "an expert needs gate_proj, up_proj, down_proj without bias",
    ),
    "truncated weights": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-64]),
        "damaged weights",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), r"no model\.safetensors and no pytorch_model"),
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json: no such file"),
    "another image token": (
        lambda f: configure(f, image_token_index=77),
        "its tokenizer has <image> at id 2, its config says 77",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_whole_llava_is_refused(name: str, source: Path, tmp_path: Path) -> None:
    damage, message = REFUSED[name]
    damage(source)
    older = tmp_path / "older"
    older.mkdir()
    (older / MANIFEST).write_text("{}")
    for destination in (tmp_path / "new", older):
        with pytest.raises(MedMoeError, match=message) as caught:
            convert_llava(source, destination)
        assert isinstance(caught.value, CheckpointError | ConfigError)
        assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "older"}
    assert [path.name for path in older.iterdir()] == [MANIFEST]
