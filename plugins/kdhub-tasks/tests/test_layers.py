"""`layers:2` of many architectures, saved and opened by the library alone: the same model, or a refusal by name."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers
from kdhub_tasks import layer_config
from kdhub_tasks.layers import blocks, keep_blocks, layers

from kdhub.errors import CompatibilityError

SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8, "n_group": 1, "topk_group": 1,
}  # fmt: skip
"""Of those a configuration takes what it knows; so there are two heads, four layers and four experts everywhere."""
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
GPT = {"n_embd": 16, "n_head": 2, "n_layer": 4}
KINDS = ["full_attention", "sliding_attention"] * 2

ENCODERS = {
    "bert": {}, "roberta": {}, "electra": {"embedding_size": 8}, "mpnet": {}, "deberta-v2": {}, "roformer": {},
    "distilbert": {"dim": 16, "hidden_dim": 24, "n_heads": 2, "n_layers": 4}, "nomic_bert": {}, "convbert": {},
    "modernbert": {"local_attention": 4}, "longformer": {"attention_window": [4, 8, 2, 8]},
    "big_bird": {"attention_type": "block_sparse", "block_size": 1, "num_random_blocks": 1},
    "reformer": {
        "attn_layers": ["local", "local", "local", "lsh"], "axial_pos_embds_dim": (8, 8), "axial_pos_shape": (4, 4),
        "attention_head_size": 8, "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "num_buckets": 2,
        "hash_seed": 1,
    },
    "xlnet": {"d_model": 16, "n_head": 2, "d_inner": 24, "n_layer": 4},
}  # fmt: skip
DECODERS = {
    "gpt2": {**GPT, "n_positions": 64}, "gptj": {**GPT, "rotary_dim": 4}, "bloom": {"n_layer": 4, "n_head": 2},
    "llama": {}, "mistral": {"sliding_window": 4}, "gemma2": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 4}, "cohere2": {"sliding_window": 4}, "olmo3": {"sliding_window": 4},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    "gpt_oss": {"sliding_window": 4}, "smollm3": {"no_rope_layers": [1, 0, 1, 0]},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4, "num_heads": 2, "window_size": 4},
    "granite_swa": {"layer_types": KINDS, "sliding_window": 4, "layer_rope_theta": [1e4, 1e3, 1e2, 1e5]},
    "mixtral": {}, "qwen2_moe": {"mlp_only_layers": [0, 1]}, "qwen3_moe": {"mlp_only_layers": [1, 3]},
    "deepseek_v3": {"first_k_dense_replace": 1, **LATENT}, "glm4_moe": {"first_k_dense_replace": 1},
    "laguna": {
        "layer_types": KINDS, "num_attention_heads_per_layer": [2, 4, 2, 4], "mlp_layer_types": ["dense", "sparse"] * 2
    },
    "llama4_text": {"no_rope_layers": [1, 0, 1, 0], "moe_layers": [1, 3], "intermediate_size_mlp": 24},
    "mamba": {"state_size": 4}, "mamba2": {"state_size": 4, "num_heads": 4, "n_groups": 1},
    "rwkv": {"rescale_every": 2},
    "falcon_mamba": {"state_size": 4}, "lfm2": {"full_attn_idxs": [1, 3]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 2, "mamba_d_state": 4},
    "bamba": {
        "attn_layer_indices": [0], "mamba_d_head": 8, "mamba_n_heads": 4, "mamba_n_groups": 1, "mamba_d_state": 4
    },
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"] * 2, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4,
        "shared_intermediate_size": 8,
    },
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention"] * 2, "mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 4,
        "n_groups": 1,
    },
}  # fmt: skip
REFUSED = {
    "albert": ("of its 4 layers, only of 1", {"embedding_size": 8}),
    "funnel": ("of its 4 layers", {"block_sizes": [2, 2], "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24}),
    "xlm": ("would be lost", {"emb_dim": 16, "n_heads": 2, "n_layers": 4}),
    "esm": ("contact_head", {}),
    "t5": ("would be", {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 4, "num_heads": 2, "num_labels": 2}),
    "diffllama": ("lambda_init", {}),
    "recurrent_gemma": ("", {"lru_width": 16, "block_types": ["attention", "recurrent", "recurrent"]}),
    "qwen3_moe": ("experts", {"decoder_sparse_step": 4}),
    "jamba": ("would be lost", {"attn_layer_period": 4, "attn_layer_offset": 3, "mamba_dt_rank": 2}),
}
DECODING = ("diffllama", "recurrent_gemma", "qwen3_moe", "jamba")


def made(name: str, own: dict, auto: str) -> torch.nn.Module:
    kind = transformers.models.auto.configuration_auto.CONFIG_MAPPING[name]
    known = {*getattr(kind, "__dataclass_fields__", ()), *kind.attribute_map}
    torch.manual_seed(0)
    network = getattr(transformers, auto).from_config(kind(**{k: v for k, v in SIZES.items() if k in known} | own))
    with torch.no_grad():
        for parameter in network.parameters():  # else norms and biases are all alike
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def two_layers(network: torch.nn.Module) -> torch.nn.Module:
    teacher = SimpleNamespace(layered=True, trunk=network, like=lambda student, start: student)
    return layers("2", SimpleNamespace(teacher=SimpleNamespace(model=teacher, known={}))).eval()


def logits(network: torch.nn.Module) -> torch.Tensor:
    ids = torch.randint(3, 32, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


FITTING = [(name, own, "AutoModelForSequenceClassification") for name, own in ENCODERS.items()]
FITTING += [(name, own, "AutoModelForCausalLM") for name, own in DECODERS.items()]


@pytest.mark.parametrize(("name", "own", "auto"), FITTING, ids=[name for name, *_ in FITTING])
def test_two_layers_saved_and_opened_are_the_same_model(tmp_path, name, own, auto):
    student = two_layers(made(name, own, auto))
    given = logits(student)
    student.save_pretrained(tmp_path)
    opened, found = getattr(transformers, auto).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values()) and len(blocks(opened)) == 2
    assert torch.equal(given, logits(opened.eval()))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_described_is_refused_by_name(name):
    why, own = REFUSED[name]
    network = made(name, own, f"AutoModelFor{'CausalLM' if name in DECODING else 'SequenceClassification'}")
    with pytest.raises(CompatibilityError, match=f"(?s){type(network).__name__}.*{why}"):
        two_layers(network)


def test_layers_stay_what_they_were():
    """Each kept layer gives for a state what it gave as a layer of the whole network."""
    whole = made("smollm3", DECODERS["smollm3"], "AutoModelForCausalLM")
    student = two_layers(whole)
    assert [block.self_attn.use_rope for block in blocks(student)] == [1, 0] and student.config.no_rope_layers == [1, 0]
    neo = two_layers(made("gpt_neo", DECODERS["gpt_neo"], "AutoModelForCausalLM"))
    assert [block.attn.attention.layer_id for block in blocks(neo)] == [0, 1]
    assert neo.config.attention_layers == ["global", "local"]


def test_lists_that_are_not_about_layers_stay_as_they_are():
    network = made("llama", {"eos_token_id": [2, 3, 4, 5]}, "AutoModelForCausalLM")
    network.config.rope_parameters = {**network.config.rope_parameters, "short_factor": [1.0] * 4}
    keep_blocks(network, [0, 3])
    assert network.config.eos_token_id == [2, 3, 4, 5] and network.config.rope_parameters["short_factor"] == [1.0] * 4


@pytest.mark.parametrize("where", ("top", "nested"))
def test_a_list_of_unknown_meaning_is_refused(where):
    network = made("llama", {}, "AutoModelForCausalLM")
    strange = {"gadgets": [1, 2, 3, 5]}
    network.config.update(strange if where == "top" else {"inner": strange})
    with pytest.raises(CompatibilityError, match="a list 'gadgets' of 4 entries"):
        keep_blocks(network, [0, 3])


@pytest.mark.parametrize(
    ("given", "kept"),
    (
        ({"layer_types": ["a", "b", "c", "d"]}, {"layer_types": ["a", "d"]}),
        ({"rope": {"layer_theta": [1.0, 2.0, 3.0, 4.0]}}, {"rope": {"layer_theta": [1.0, 4.0]}}),
        ({"per_layer_config": {"1": "x", "3": "y"}}, {"per_layer_config": {1: "y"}}),
        ({"attn_layer_indices": [1, 3]}, {"attn_layer_indices": [1]}),
        ({"attention_window": (4, 8, 16, 32)}, {"attention_window": (4, 32)}),
        ({"kinds": [[["g"], 1], [["l"], 3]]}, {"kinds": [[["g", "l"], 1]]}),
        ({"no_rope_layers": [0, 1, 1, 1]}, {"no_rope_layers": [0, 1]}),
        ({"first_k_dense_replace": 3}, {"first_k_dense_replace": 1}),
        ({"num_kv_shared_layers": 2}, {"num_kv_shared_layers": 1}),
    ),
)
def test_what_a_configuration_says_of_layers(given, kept):
    layer_config._cut_values(given, [0, 3], 4, "C")
    assert given == kept
