from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medmoe.domains import DOMAINS
from medmoe.errors import ConfigError
from medmoe.model.configuration_medmoe import MedMoeConfig

TEXT = {"model_type": "phi", "num_hidden_layers": 4, "hidden_size": 32, "vocab_size": 99}


def config(**changes: Any) -> MedMoeConfig:
    values = {"text_config": TEXT, "vision_config": {"model_type": "clip_vision_model"}}
    return MedMoeConfig(**(values | changes))


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "more experts per token than domains": (
        {"num_experts_per_tok": 5},
        r"^num_experts_per_tok \(5\) must lie between 1 and the number of domains \(4\); "
        r"use --set model\.num_experts_per_tok=1$",
    ),
    "no expert per token": ({"num_experts_per_tok": 0}, r"^num_experts_per_tok \(0\) must lie"),
    "no domain": ({"domains": []}, r"^num_experts_per_tok \(1\) .* number of domains \(0\)"),
    "a number in words": ({"num_experts_per_tok": "2"}, r"^num_experts_per_tok \('2'\) must be a"),
    "a truth value": ({"router_layers": True}, r"^router_layers \(True\) must be a whole number"),
    "a router too deep": ({"router_layers": 4}, r"^router_layers \(4\) must be 1, 2 or 3"),
    "no router": ({"router_layers": 0}, r"^router_layers \(0\) must be 1, 2 or 3"),
    "a layer too many": (
        {"moe_layers": [0, 4]},
        r"^moe_layers \[0, 4\] must lie in 0\.\.3, the layers of this language model",
    ),
    "a negative layer": ({"moe_layers": [-1]}, r"^moe_layers \[-1\] must lie in 0\.\.3"),
    "a layer twice": ({"moe_layers": [2, 0, 2]}, r"^moe_layers \[0, 2, 2\] name one layer twice"),
    "one layer, no list": ({"moe_layers": 2}, r"^moe_layers \(2\) must be a list of whole numb"),
    "layers in words": ({"moe_layers": ["0"]}, r"^moe_layers \(\['0'\]\) must be a list of whole"),
    "a domain twice": ({"domains": ["ct", "ct"]}, r"^domains \['ct', 'ct'\] name one domain twice"),
    "one domain, no list": ({"domains": "ct"}, r"^domains \('ct'\) must be a list of names"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_gives_our_own_one_line(name: str) -> None:
    changes, message = BROKEN[name]
    for build in (lambda: config(**changes), lambda: MedMoeConfig.from_dict(as_dict(changes))):
        with pytest.raises(ConfigError, match=message) as caught:
            build()
        assert "\n" not in str(caught.value)


def as_dict(changes: dict[str, Any]) -> dict[str, Any]:
    return config().to_dict() | changes


def test_the_default_is_dense_with_the_papers_domains() -> None:
    default = config()
    assert default.moe_layers == []
    assert default.domains == list(DOMAINS)
    assert (default.num_experts, default.num_experts_per_tok, default.router_layers) == (4, 1, 1)


def test_layers_may_be_a_tuple_in_any_order_and_are_sorted() -> None:
    assert config(moe_layers=(2, 0)).moe_layers == [0, 2]


def test_a_config_survives_saving(tmp_path: Path) -> None:
    before = config(moe_layers=[0, 2], domains=["ct", "mri"], num_experts_per_tok=2)
    before.save_pretrained(tmp_path)
    after = MedMoeConfig.from_pretrained(tmp_path)
    assert after.to_dict() == before.to_dict()
    assert after.num_experts == 2


def test_two_configs_share_no_list() -> None:
    domains = ["ct", "mri"]
    first, second = config(domains=domains), config(domains=domains)
    assert first.domains is not None
    first.domains.append("xray")
    assert second.domains == ["ct", "mri"]
