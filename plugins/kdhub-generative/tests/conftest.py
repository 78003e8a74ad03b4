"""What all tests here share."""

import pytest
import torch

from kdhub.testing.fixtures import home


@pytest.fixture(scope="session")
def stable():
    """A pipeline of prompts and codes of pictures: the classes of Stable Diffusion, tiny, with random weights."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from kdhub_generative.images.pipelines import PipelineModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    words = ["<|startoftext|>", "<|endoftext|>", *(c + end for c in "abcdefghij" for end in ("", "</w>"))]
    tokenizer = CLIPTokenizer(
        {word: n for n, word in enumerate(words)}, [], model_max_length=8, pad_token="<|endoftext|>"
    )
    torch.manual_seed(0)
    width = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=len(words), max_position_embeddings=8, eos_token_id=1, **width))
    unet = UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=8, attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    scheduler = PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True)
    return PipelineModel(unet, scheduler, {"vae": vae, "text_encoder": text, "tokenizer": tokenizer})
