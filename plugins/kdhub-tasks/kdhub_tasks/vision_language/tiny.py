"""A tiny model of images and texts, for trying methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WIDTH = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}


def configuration(layers: int, patch: int = 8) -> dict[str, Any]:
    """Of a LLaVA of `layers` layers that sees pictures of 16 x 16."""
    vision = {
        **WIDTH,
        "model_type": "siglip_vision_model",
        "num_hidden_layers": 1,
        "image_size": 16,
        "patch_size": patch,
    }
    text = {
        **WIDTH, "model_type": "llama", "num_hidden_layers": layers, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "tie_word_embeddings": True,
    }  # fmt: skip
    how = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1, "tie_word_embeddings": True}
    return {"model_type": "llava", "vision_config": vision, "text_config": text, **how}


def recipe(folder: Path) -> dict[str, Any]:
    """`ImageTextToText.tiny_recipe`."""
    from kdhub.student import BuildContext
    from kdhub_tasks.vision_language.students import from_config

    made = folder / "teacher"
    made.mkdir(exist_ok=True)
    from_config(configuration(2), BuildContext(None, None, 3)).save(made)
    data = {"source": "digit-questions:which,sum", "options": {"rows": 48, "held_out": 16}}
    return {
        "teacher": {"source": f"path:{made}"},
        "student": f"config:{json.dumps(configuration(1))}",
        "data": {"train": [data]},
        "evaluation": {"data": [data], "cost": False},
    }
