"""Encoders whose attention is not as wide as their states: heads keep their width when the network gets narrower.

Networks that are cut out of larger ones have such shapes (5 heads of 64 at a width of 192). The library gives each head
`hidden_size / num_attention_heads`; so a family of it (BERT, RoBERTa, XLM-R) has a second one here, whose configuration
says the width of a head under `head_dim` and whose `model_type` nobody else knows: without kdhub such a folder is
refused, not read as something else.
"""

from __future__ import annotations

from typing import Any

import transformers
from torch import nn

from kdhub_tasks.attention import registered
from kdhub_tasks.long import NARROW


def _config_class(source: str) -> type:
    base = transformers.models.auto.configuration_auto.CONFIG_MAPPING[source]
    # The library refuses heads that do not divide the width unless there is such an attribute.
    return type(f"Narrow{base.__name__}", (base,), {"model_type": NARROW + source, "embedding_size": None})


def _model_class(base: type, config: type) -> type:
    def init(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, config, *args, **kwargs)
        inner = config.num_attention_heads * config.head_dim
        for attention in [m for m in self.modules() if hasattr(getattr(m, "self", None), "query")]:
            own = attention.self
            own.attention_head_size, own.all_head_size = config.head_dim, inner
            own.scaling = config.head_dim**-0.5
            for name in ("query", "key", "value"):
                setattr(own, name, nn.Linear(config.hidden_size, inner))
            attention.output.dense = nn.Linear(inner, config.hidden_size)
            for layer in (own.query, own.key, own.value, attention.output.dense):
                self._init_weights(layer)

    return type(f"Narrow{base.__name__}", (base,), {"__init__": init, "config_class": config, "__module__": __name__})


CONFIGS = registered(_config_class, _model_class)


def narrow_config(config: Any, **settings: Any) -> Any:
    """The configuration of a network of `CONFIGS` with the settings of another one of its family, and some changed.

    Args:
        config: of the library's family, or of the one here.
    """
    source = config.model_type.removeprefix(NARROW)
    known = {k: v for k, v in config.to_dict().items() if k not in ("model_type", "architectures", "dtype")}
    return CONFIGS[source](**{"head_dim": config.hidden_size // config.num_attention_heads, **known, **settings})
