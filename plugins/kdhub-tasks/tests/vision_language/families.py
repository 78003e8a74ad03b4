"""Tiny models of the three ways in which the library joins the pixels of images."""

from __future__ import annotations

import torch
import transformers as library
from kdhub_tasks.language.students import byte_tokenizer
from kdhub_tasks.vision_language.model import VisionLanguage
from kdhub_tasks.vision_language.reader import Reader

from kdhub.student import BuildContext

TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}


def tokenizer(*special):
    made = byte_tokenizer(512)
    made.add_special_tokens({"additional_special_tokens": list(special)})
    return made


def llava(layers=2, **how):
    from kdhub_tasks.vision_language.students import from_config
    from kdhub_tasks.vision_language.tiny import configuration

    return from_config(configuration(layers, **how), BuildContext(None, None, 3))


def qwen():
    """Patches of all images one after the other, and `image_grid_thw`; positions in three dimensions. Its processor
    needs torchvision for videos, so files alone say how it sees images."""
    made = tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    ids = {name: made.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    config = library.Qwen2VLConfig(
        text_config={
            **TEXT, "num_hidden_layers": 3, "vocab_size": len(made), "max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        },
        vision_config={"embed_dim": 16, "hidden_size": 16, "depth": 1, "num_heads": 2, "patch_size": 4, "mlp_ratio": 1},
        image_token_id=made.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=made.convert_tokens_to_ids("<|video_pad|>"),
        **{f"{name}_token_id": value for name, value in ids.items()},
    )  # fmt: skip
    images = library.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 64, "longest_edge": 4096}, patch_size=4, merge_size=2
    )
    torch.manual_seed(0)
    network = library.Qwen2VLForConditionalGeneration(config)
    return VisionLanguage(
        network.eval(), made, Reader({"preprocessor_config.json": images.to_json_string()}, made, config)
    )


def smolvlm(kind="SmolVLM"):
    """Tiles of a row together, filled up with empty ones."""
    grid = [f"<row_{i}_col_{j}>" for i in range(1, 5) for j in range(1, 5)]
    made = tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *grid)
    text = {
        **TEXT,
        "model_type": "llama",
        "num_hidden_layers": 2,
        "vocab_size": len(made),
        "max_position_embeddings": 256,
    }
    vision = {**VISION, "image_size": 16, "patch_size": 4}
    config = getattr(library, f"{kind}Config")(
        text_config=text, vision_config=vision, scale_factor=2, image_token_id=made.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
    )  # fmt: skip
    images = getattr(library, f"{kind}ImageProcessorPil")(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 16}
    )
    torch.manual_seed(0)
    network = getattr(library, f"{kind}ForConditionalGeneration")(config)
    said = {"preprocessor_config.json": images.to_json_string(), "processor_config.json": '{"image_seq_len": 4}'}
    return VisionLanguage(network.eval(), made, Reader(said, made, config))
