"""`register`: what vLLM runs at its start, in each of its processes, to know a ``medmoe`` model.

vLLM's Transformers backend does the rest: with the plugin ``vllm serve MODEL`` takes our folders as
they are. It reads expert counts from the text config, finds a model's class by name in
`transformers`, and swaps every `nn.Linear` for a layer of its own. The classes here meet it there;
outside vLLM they are not used.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers.models.stablelm.modeling_stablelm import StableLmAttention

from medmoe.errors import ConfigError
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration, MedMoeModel
from medmoe.model.moe import PlainExperts, Router


@strict
class VllmConfig(MedMoeConfig):
    """Our config, whose text config says how many experts vLLM's fused layers have."""

    has_no_defaults_at_init: ClassVar[bool] = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill the text config."""
        super().__post_init__(**kwargs)
        self.refuse_routing_by_picture("vLLM")
        if self.moe_layers and getattr(self.text_config, "hidden_act", "") == "silu":
            self.text_config.num_experts = self.num_experts
            self.text_config.num_experts_per_tok = self.num_experts_per_tok


class ReadableExperts(PlainExperts):
    """Plain experts that read one tensor per expert, as they lie on disk.

    vLLM fuses SwiGLU experts only, and would take these for such if their biases were not 2-D.
    They run as in transformers: every process of a tensor-parallel group holds all of them.
    """

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Take tensors named ``{expert}.fc1.weight`` … into the stacks.

        Returns:
            The stacks that are complete.

        Raises:
            ConfigError: A tensor is missing.
        """
        read: dict[str, set[int]] = {name: set() for name, _ in self.named_parameters()}
        for name, tensor in weights:
            expert, part, kind = name.split(".")
            stack: Tensor = getattr(self, f"{part}_{kind}")
            stack.data[int(expert)].copy_(tensor)
            read[f"{part}_{kind}"].add(int(expert))
        for name, experts in read.items():
            if len(experts) != self.num_experts:
                raise ConfigError(
                    f"{name} has {len(experts)} of {self.num_experts} experts; "
                    "copy the model directory again"
                )
        return set(read)


class RouterLayer(nn.Module):
    """A layer of the router that is no `nn.Linear`: vLLM leaves it in float32, as in the paper."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias


class VllmModel(MedMoeModel):
    """Our model as vLLM builds it: the same, but for how experts are read and routers are kept."""

    config_class = VllmConfig
    # vLLM reads these as tensors to leave out, and the head's would stay zeros without a word.
    _keys_to_ignore_on_load_unexpected = (r"^domain_check\.",)

    def __init__(self, config: VllmConfig) -> None:
        super().__init__(config)
        for module in self.modules():
            if type(module) is PlainExperts:
                module.__class__ = ReadableExperts
            elif isinstance(module, Router):
                for i in range(1, module.depth + 1):
                    setattr(module, f"fc{i}", RouterLayer(getattr(module, f"fc{i}")))
            elif isinstance(module, StableLmAttention) and not module.qk_layernorm:
                # It shapes its heads by these numbers; a tensor-parallel process has fewer of them.
                module.num_heads = module.num_key_value_heads = -1


def register() -> None:
    """Make vLLM know our models; safe to call more than once."""
    import transformers
    from transformers import AutoConfig, AutoModel, AutoProcessor

    from medmoe.model import register as register_ours
    from medmoe.model.processing_medmoe import MedMoeProcessor

    register_ours()
    AutoConfig.register("medmoe", VllmConfig, exist_ok=True)
    AutoModel.register(VllmConfig, VllmModel, exist_ok=True)
    AutoProcessor.register(VllmConfig, MedMoeProcessor, exist_ok=True)
    # vLLM looks for the class of a checkpoint by its name there, and nowhere else.
    transformers.MedMoeForConditionalGeneration = MedMoeForConditionalGeneration
