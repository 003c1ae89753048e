"""The router: which images it sees, what it can learn, and where it ends up."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tests.model.tiny import DOMAINS, IMAGE_TOKENS, MOE_LAYERS, WIDTH
from tests.training import toy

from medmoe.data.schema import ImageRecord
from medmoe.errors import ConfigError, DataError
from medmoe.inference.engine import MedMoe
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.upcycle import moe_config, upcycle
from medmoe.training.context import PhaseContext
from medmoe.training.phases.phase2_router import (
    TOKENS_KEPT,
    RouterTraining,
    choose_labelled,
    collect_states,
    fit_router,
    labelled_states,
    route,
)
from medmoe.training.trainer import PhaseResult


def images(**counts: int) -> list[ImageRecord]:
    return [
        ImageRecord(f"{name}/{n}", Path("none.png"), modality=name)
        for name, count in counts.items()
        for n in range(count)
    ]


def chosen(found: list[ImageRecord]) -> Counter[str | None]:
    return Counter(image.modality for image in found)


def test_domains_are_balanced_up_to_the_limit() -> None:
    pool = images(ct=50, mri=20, pathology=9, xray=30)
    assert chosen(choose_labelled(pool, DOMAINS, 40, 1)) == {
        "ct": 10,
        "mri": 10,
        "pathology": 9,
        "xray": 10,
    }


@pytest.mark.parametrize("limit", [4, 7, 30, 1000])
def test_never_more_than_the_limit(limit: int) -> None:
    found = choose_labelled(images(ct=50, mri=50, xray=50, pathology=50), DOMAINS, limit, 1)
    assert len(found) == len({image.id for image in found}) <= limit


def test_images_of_no_domain_are_left_out() -> None:
    pool = [*images(ct=5, mri=5, ultrasound=5), ImageRecord("x", Path("none.png"))]
    assert set(chosen(choose_labelled(pool, DOMAINS, 100, 1))) == {"ct", "mri"}


def test_choice_is_the_seeds() -> None:
    pool = images(ct=50, mri=50)
    ids = [[i.id for i in choose_labelled(pool, DOMAINS, 20, seed)] for seed in (1, 1, 2)]
    assert ids[0] == ids[1] != ids[2]


def test_a_router_may_know_one_domain_only() -> None:
    assert set(chosen(choose_labelled(images(ct=9), DOMAINS, 100, 1))) == {"ct"}


def test_pictures_of_no_domain_are_an_error_with_the_flag() -> None:
    message = "none of its data is of ct, mri, pathology, xray; --modality X labels all pictures"
    with pytest.raises(DataError, match=message):
        choose_labelled(images(ultrasound=9), DOMAINS, 100, 1)


def separable(model: MedMoeForConditionalGeneration, count: int = 40) -> PhaseContext:
    """Return a context whose image features tell the domain, and whose labels do too."""
    records = toy.phantom_records(count)
    context = toy.context(model, steps=150, records=records, phase="phase2_router")
    domains = {r.image.id: DOMAINS.index(str(r.image.modality)) for r in records}
    mean = 3 * torch.randn(len(DOMAINS), WIDTH, generator=torch.Generator().manual_seed(8))
    rows = torch.tensor([domains[name] for name in context.rows])
    features = mean[rows][:, None, :].expand(-1, IMAGE_TOKENS, -1) + 0.1 * context.features
    spec = toy.SPEC.model_copy(update={"learning_rate": 3e-2, "batch_size": 16})
    return replace(context, features=features.contiguous(), spec=spec)


def config_of(model: MedMoeForConditionalGeneration, depth: int = 1):  # type: ignore[no-untyped-def]
    return moe_config(model.config, moe_layers=MOE_LAYERS, domains=DOMAINS, router_layers=depth)


def labelled(context: PhaseContext) -> list[ImageRecord]:
    return list({r.image.id: r.image for r in context.records}.values())


def trained(context: PhaseContext, config: MedMoeConfig) -> tuple[Any, PhaseResult]:
    return fit_router(context, config, labelled_states(context, config, labelled(context)))


@pytest.mark.parametrize("depth", [1, 2])
def test_router_learns_separable_domains_to_the_last_image(depth: int) -> None:
    dense = toy.dense()
    context = separable(dense)
    router, result = trained(context, config_of(dense, depth))
    assert result.curve[-1][1] < 0.5 * result.curve[0][1]
    moe = upcycle(dense, moe_layers=MOE_LAYERS, domains=DOMAINS, router=router, router_layers=depth)
    routings = MedMoe(moe, context.processor).route(context.features)
    truth = {r.image.id: r.image.modality for r in context.records}
    found = {name: routings[row] for name, row in context.rows.items()}
    assert {name: r.domain for name, r in found.items() if r} == truth


def test_one_router_serves_every_moe_layer() -> None:
    dense = toy.dense()
    context = toy.context(dense, steps=2, phase="phase2_router")
    router, _ = trained(context, config_of(dense))
    moe = upcycle(dense, moe_layers=MOE_LAYERS, domains=DOMAINS, router=router)
    assert sorted(moe.moe_blocks) == list(MOE_LAYERS)
    for block in moe.moe_blocks.values():
        state = block.gate.state_dict()
        assert state.keys() == router.keys()
        assert all(torch.equal(state[name], router[name]) for name in router)


def test_training_the_router_leaves_the_phase_2_model_alone() -> None:
    dense = toy.dense()
    before = toy.weights(dense)
    context = toy.context(dense, steps=3, phase="phase2_router")
    trained(context, config_of(dense))
    assert not toy.changed(before, toy.weights(dense))
    assert not any(module._forward_pre_hooks for module in dense.modules()), (
        "hooks stay on the model"
    )


def test_same_seed_gives_the_same_router() -> None:
    dense = toy.dense()
    routers = []
    for seed in (5, 5, 6):
        context = replace(toy.context(dense, steps=3, phase="phase2_router"), seed=seed)
        routers.append(trained(context, config_of(dense))[0])
    same, other = (
        [torch.equal(routers[0][name], routers[i][name]) for name in routers[0]] for i in (1, 2)
    )
    assert all(same)
    assert not all(other)


def test_tokens_of_every_moe_layer_are_kept_and_the_image_is_seen() -> None:
    dense = toy.dense()
    context = toy.context(dense, phase="phase2_router")
    states = collect_states(context, MOE_LAYERS, labelled(context))
    assert states.shape == (len(context.rows), len(MOE_LAYERS), TOKENS_KEPT, WIDTH)
    assert states.dtype == torch.float32
    blank = replace(context, features=torch.zeros_like(context.features))
    unseen = collect_states(blank, MOE_LAYERS, labelled(context))
    assert not torch.allclose(states, unseen, atol=1e-3)


def test_an_image_without_questions_is_asked_a_plain_one() -> None:
    dense = toy.dense()
    context = toy.context(dense, phase="phase2_router")
    bare = replace(context, records=[])
    states = collect_states(bare, MOE_LAYERS, labelled(context))
    assert torch.isfinite(states).all()


def test_a_limit_below_the_number_of_domains_is_refused() -> None:
    message = r"router.labels \(3\) must be at least the number of domains \(4\); use --set router"
    with pytest.raises(ConfigError, match=message):
        choose_labelled(images(ct=9, mri=9), DOMAINS, 3, 1)


def test_a_smaller_limit_chooses_from_a_larger_ones_images() -> None:
    pool = images(ct=50, mri=50, xray=50, pathology=50)
    few, many = ({i.id for i in choose_labelled(pool, DOMAINS, limit, 1)} for limit in (20, 100))
    assert few < many


def test_a_coarse_domain_takes_the_images_of_its_modalities() -> None:
    pool = images(ct=4, mri=4, pathology=4, ultrasound=4, fundus=4)
    found = chosen(choose_labelled(pool, ("radiology", "pathology"), 100, 1))
    assert found == {"ct": 4, "mri": 4, "ultrasound": 4, "pathology": 4}


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("loss", ["token", "pooled"])
def test_every_kind_of_router_learns_and_is_scored(
    loss: Literal["token", "pooled"], per_layer: bool
) -> None:
    dense = toy.dense()
    context = separable(dense)
    config = config_of(dense)
    states = labelled_states(context, config, labelled(context))
    router, _ = fit_router(context, config, states, loss, per_layer)
    assert (len(router) if isinstance(router, list) else 1) == (len(MOE_LAYERS) if per_layer else 1)
    assert torch.equal(route(config, router, states.states), states.domains)
    moe = upcycle(dense, moe_layers=MOE_LAYERS, domains=DOMAINS, router=router)
    gates = [block.gate.state_dict() for block in moe.moe_blocks.values()]
    assert torch.equal(gates[0]["fc1.weight"], gates[1]["fc1.weight"]) != per_layer


def test_the_pooled_loss_is_that_of_the_mean_state() -> None:
    config = config_of(toy.dense())
    torch.manual_seed(0)
    model = RouterTraining(config, "pooled", per_layer=False)
    states = torch.randn(3, 2, 5, WIDTH)
    domain = torch.tensor([0, 3, 1])
    logits = [model.router[0].logits(states[:, layer].mean(dim=1)) for layer in (0, 1)]
    wanted = sum(torch.nn.functional.cross_entropy(x, domain) for x in logits) / 2
    # The mean of six terms, summed in another order.
    torch.testing.assert_close(model(states, domain)["loss"], wanted, rtol=1e-6, atol=1e-6)
