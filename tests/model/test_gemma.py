"""What is peculiar to Gemma 3: sliding windows, scaled embeddings, files of GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.tiny import DOMAINS, dense_model, randomise
from tests.model.zoo import picture, processor_of, small_language, small_vision
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from medmoe.backbones.registry import language_backbone
from medmoe.config.schema import ModelSpec
from medmoe.data.collate import Packed, pack_batch
from medmoe.data.tokenize import ConversationTokenizer
from medmoe.errors import ConfigError
from medmoe.inference.chat import ChatBatch, ChatRequest, ChatRow, Turn, prepare
from medmoe.inference.engine import MedMoe
from medmoe.inference.kept import digests
from medmoe.model.build import build_dense, match_embeddings
from medmoe.model.checkpoint import load_model, save_model
from medmoe.model.cost.flops import answer_flops, kv_cache_bytes
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.pretrained import language_of, load_language_model, template_of
from medmoe.model.upcycle import upcycle

PROCESSOR = processor_of("gemma3_270m", "clip_large_336")
TOKENS = ConversationTokenizer(PROCESSOR, image_tokens=16)
QUESTIONS = (("is there a mass?", "yes"), ("what organ is this?", "liver"), ("why?", "no"))
#: Far less than a prompt, of which the image alone is 16.
WINDOW = 6
FORMS = ["sliding_attention", "full_attention", "sliding_attention"]


def gemma(window: int = WINDOW) -> Any:
    values = small_language("gemma3_270m", PROCESSOR.tokenizer)
    values |= {"sliding_window": window, "layer_types": FORMS}
    config = AutoConfig.for_model("gemma3_text", **values)
    return randomise(AutoModelForCausalLM.from_config(config), seed=1)


def dense() -> MedMoeForConditionalGeneration:
    vision = small_vision("clip_large_336")
    tower = AutoModel.from_config(AutoConfig.for_model(vision.model_type, **vision.config))
    tower = randomise(tower, seed=3)
    model = build_dense(tower, gemma(), PROCESSOR.tokenizer, vision, seed=4)
    return randomise(model, seed=5)


def moe() -> MedMoeForConditionalGeneration:
    model = upcycle(dense(), moe_layers=[0, 1], domains=DOMAINS, num_experts_per_tok=2)
    return randomise(model, seed=6)


def features(model: Any) -> torch.Tensor:
    engine = MedMoe(model, PROCESSOR)
    return engine.encode([picture()])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_question_sees_what_it_sees_alone(attention: str) -> None:
    model = moe()
    model.set_attn_implementation(attention)
    image, prefix = features(model), TOKENS.prefix()
    segments = tuple(TOKENS.segment(*question) for question in QUESTIONS)
    packed = pack_batch([Packed(0, prefix, segments)], PROCESSOR.tokenizer.pad_token_id)
    labels = packed.pop("labels")
    with torch.no_grad():
        together = model(**packed, vision_features=image).logits[0]
        at = len(prefix)
        for segment in segments:
            ids = torch.tensor([prefix + segment.ids])
            alone = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), vision_features=image
            ).logits[0, len(prefix) :]
            torch.testing.assert_close(together[at : at + len(segment.ids)], alone)
            at += len(segment.ids)
        model.config.text_config.sliding_window = 512
        without = model(**packed, vision_features=image).logits[0]
    answers = labels[0] >= 0
    assert (together - without)[answers].abs().max() > 1e-2  # the window is felt


def test_answers_are_the_same_with_a_cache_and_without_one_past_the_window() -> None:
    model = moe()
    engine = MedMoe(model, PROCESSOR, max_new_tokens=5)
    image = features(model)
    questions = ["is there a mass?", "why?"]
    answers = [answer.text for answer in engine.answer_features(image, [0, 0], questions)]
    for question, text in zip(questions, answers, strict=True):
        ids = list(TOKENS.prompt(question))
        for _ in range(5):
            with torch.no_grad():
                out = model(input_ids=torch.tensor([ids]), vision_features=image, use_cache=False)
            ids.append(int(out.logits[0, -1].argmax()))
            if ids[-1] == PROCESSOR.tokenizer.eos_token_id:
                break
        new = ids[len(TOKENS.prompt(question)) :]
        assert PROCESSOR.tokenizer.decode(new, skip_special_tokens=True).strip() == text
    rows = [
        prepare(
            ChatRequest((Turn("user", question),), picture(), 5),
            image,
            engine.tokenizer,
            engine.limit,
        )
        for question in questions
    ]
    batch = ChatBatch(engine)
    batch.join(rows[:1])
    said: dict[int, str] = {}
    waiting = rows[1:]
    while batch.rows or waiting:
        chunks = batch.step() if batch.rows else []
        said |= {id(row): chunk.answer.text for row, chunk in chunks if chunk.answer is not None}
        batch.join(waiting)  # while the other is being answered
        waiting = []
    assert [said[id(row)] for row in rows] == answers


def test_rows_of_unlike_beginnings_keep_within_the_window_together() -> None:
    """Each fits, but not with the padding that the other's beginning and question would bring."""
    short, long = "why?", "is there a mass, and what organ is this? "

    def asked(engine: MedMoe, *texts: str) -> ChatRow:
        roles = ("user", "assistant")
        turns = tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts))  # type: ignore[arg-type]
        request = ChatRequest(turns, picture(), 4)
        return prepare(request, features(engine.model), engine.tokenizer, engine.limit)

    def answers(engine: MedMoe, rows: list[ChatRow]) -> list[str]:
        batch, said = ChatBatch(engine), dict[ChatRow, str]()
        batch.join(rows)
        while batch.rows:
            said |= {r: chunk.answer.text for r, chunk in batch.step() if chunk.answer is not None}
        return [said[row] for row in rows]

    model = moe()
    engine, talk = MedMoe(model, PROCESSOR), (long * 2, "liver", short)
    other = short + long * 3  # which has the picture alone in common
    rows = [asked(engine, *talk), asked(engine, other)]
    model.config.text_config.sliding_window = max(len(row.ids) for row in rows) + 5
    answers(engine, [asked(engine, *talk[:1])])  # what the first goes on with
    known = [len(engine.prefixes.longest(r.ids, digests(r.features)).ids) for r in rows]
    tails = [len(row.ids) - n for row, n in zip(rows, known, strict=True)]
    assert min(known) > 0
    assert not engine.reads_apart(max(known) + max(tails) + 4)
    alone = [
        answers(MedMoe(model, PROCESSOR), [asked(engine, *texts)])[0] for texts in (talk, (other,))
    ]
    assert answers(engine, rows) == alone


def test_image_tokens_come_at_the_size_of_scaled_words() -> None:
    model, image = dense(), torch.randn(3, 16, 32) * 5 + 2
    words = model.get_input_embeddings()
    match_embeddings(model, image)
    with torch.no_grad():
        told = model.model.multi_modal_projector(image)
        size = float(words(torch.arange(words.num_embeddings)).std())
    assert size == pytest.approx(32**0.5 * float(words.weight.detach().std()), rel=1e-5)
    assert float(told.std()) == pytest.approx(size, rel=1e-4)
    assert float(told.mean((0, 1)).abs().max()) < 1e-3 * size


def test_a_projector_stays_as_drawn_where_words_are_not_scaled() -> None:
    model = dense_model("stablelm")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    match_embeddings(model, torch.randn(2, 16, 32))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_sliding_layer_caches_its_window_and_no_more() -> None:
    config = dense().config
    width = 2 * config.text_config.head_dim * 4  # key and value of one head, float32
    assert kv_cache_bytes(config, torch.float32, 3, 40) == 3 * width * (WINDOW + 40 + WINDOW)
    assert kv_cache_bytes(config, torch.float32, 3, 4) == 3 * width * 3 * 4


def test_flops_are_counted_past_the_window() -> None:
    counted = answer_flops(moe().config, question_tokens=WINDOW, answer_tokens=3)
    longer = answer_flops(moe().config, question_tokens=2 * WINDOW, answer_tokens=3)
    assert 0 < counted.decode < longer.decode


def written(folder: Path, **more: Any) -> Path:
    """Write a tiny Gemma as a GGUF file, as its maker's converter names things."""
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    model, tokenizer = gemma(), PROCESSOR.tokenizer
    config = model.config
    path = folder / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_context_length(256)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(WINDOW)
    writer.add_vocab_size(config.vocab_size)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    words += [f"<spare{n}>" for n in range(config.vocab_size - len(words))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([-float(n) for n in range(len(words))])
    writer.add_token_types([1] * len(words))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(words.index("<eos>"))
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        kept = tensor + 1 if name.endswith("norm.weight") else tensor
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), kept.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def spec_of(source: Path) -> ModelSpec:
    return ModelSpec(
        language_model="gemma3_270m",
        vision_encoder="clip_large_336",
        moe_layers=(0,),
        domains=("ct", "mri"),
        num_experts_per_tok=1,
        router_layers=1,
        upcycle_init="copy",
        language_source=str(source),
    )


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_model_from_gguf_is_saved_and_loaded_like_any_other(
    as_folder: bool, tmp_path: Path
) -> None:
    path = written(tmp_path)
    spec = spec_of(tmp_path if as_folder else path)
    language = language_of(spec)
    assert (language.model_type, language.hub_id) == ("gemma3_text", None)
    assert language.name == (tmp_path.name if as_folder else "tiny.gguf")
    model, _ = load_language_model(language, spec.language_source)
    wanted = gemma().state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name])  # a norm's weight is stored plus one
    model.save_pretrained(tmp_path / "again")
    assert "quantization_config" not in (tmp_path / "again" / "config.json").read_text()
    vision = small_vision("clip_large_336")
    tower = AutoModel.from_config(AutoConfig.for_model(vision.model_type, **vision.config))
    whole = build_dense(tower, model, PROCESSOR.tokenizer, vision, seed=4)
    save_model(whole, PROCESSOR, tmp_path / "model", {})
    reloaded, _ = load_model(tmp_path / "model")
    state = whole.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in reloaded.state_dict().items())


def test_the_first_layers_of_a_model_are_kept_as_they_are(tmp_path: Path) -> None:
    model = gemma()
    model.save_pretrained(tmp_path)
    PROCESSOR.tokenizer.save_pretrained(tmp_path)
    spec = spec_of(tmp_path).model_copy(update={"language_layers": 2})
    language = language_of(spec)
    assert language.config["num_hidden_layers"] == 2
    kept, _ = load_language_model(language, spec.language_source)
    wanted = model.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in kept.state_dict().items())
    left_out = wanted.keys() - kept.state_dict().keys()
    assert left_out == {name for name in wanted if ".layers.2." in name}
    ids = torch.tensor([[5, 6, 7]])
    first: Any = model.base_model(ids, output_hidden_states=True).hidden_states[2]
    # The model norms what its last layer gives.
    torch.testing.assert_close(kept.base_model(ids)[0], model.base_model.norm(first))
    assert len(kept.config.layer_types) == kept.config.num_hidden_layers == 2
    deeper = spec.model_copy(update={"language_layers": 4})
    with pytest.raises(ConfigError, match=r"language_layers \(4\) must not exceed the 3 layers"):
        language_of(deeper)


def test_a_gguf_file_without_a_template_of_its_own_has_the_entrys(tmp_path: Path) -> None:
    path, entry = written(tmp_path), language_backbone("gemma3_270m")
    assert template_of(PROCESSOR.tokenizer, entry, str(path)) == entry.chat_template


def test_several_gguf_files_or_none_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.gguf").touch()
    monkeypatch.setattr("medmoe.model.pretrained.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"a\.gguf: reading it needs the package gguf; run `pip"):
        language_of(spec_of(tmp_path))
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ConfigError, match=r"holds 2 \.gguf files, first: a\.gguf; name one"):
        language_of(spec_of(tmp_path))
    monkeypatch.setattr("medmoe.model.pretrained.find_spec", lambda name: name)
    with pytest.raises(ConfigError, match="cannot load"):
        language_of(spec_of(tmp_path / "none.gguf"))


def test_logits_that_are_changed_behind_the_head_are_refused(tmp_path: Path) -> None:
    model = gemma()
    model.config.final_logit_softcapping = 30.0
    model.save_pretrained(tmp_path)
    spec = spec_of(tmp_path)
    with pytest.raises(ConfigError, match=r"with final_logit_softcapping 30\.0, which is not kept"):
        load_language_model(language_of(spec), spec.language_source)
