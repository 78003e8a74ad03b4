"""GGUF, the one file that llama.cpp and its kin run: weights, tokenizer and chat template of a Llama.

Layout and key names are those of the GGUF specification, version 3. Rows of the query and key projections stand in
another order than in the transformers library: ggml rotates neighbouring pairs, the library the halves of a head. Tied
embeddings stand once. int8 is Q8_0, blocks of 32 weights with one scale; matrices whose rows are no whole number of
blocks stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdhub.errors import CompatibilityError
from kdhub.exporting.exporter import Exporter
from kdhub.rows import Example
from kdhub_tasks.language.model import CausalLm, quoted

NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
"""Parts of a layer in the library -> in the file."""
OTHERS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
"""Types of tokens."""


class Gguf(Exporter):
    tolerance = {None: 1e-3, "int8": 0.1}

    def _type(self, student: CausalLm) -> str:
        return "Q8_0" if self.quantize else {"float16": "F16", "bfloat16": "BF16"}.get(student.precision, "F32")

    def file(self, student: CausalLm) -> str:
        return f"model-{self._type(student)}.gguf"

    def write(self, student: CausalLm, examples: Sequence[Example], signal: str, folder: Path) -> None:
        import gguf

        network = student.module.model
        config = network.config
        _check(config)
        words = _words(student.tokenizer, config.vocab_size)
        path = folder / self.file(student)
        partial = path.with_name(f".{path.name}.tmp")
        writer = gguf.GGUFWriter(partial, "llama")
        writer.add_name(str(student.start.get("how") or "a student made with kdhub"))
        heads, rope = config.num_attention_heads, getattr(config, "rope_parameters", None) or {}
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_rope_dimension_count(config.hidden_size // heads)
        writer.add_rope_freq_base(float(rope.get("rope_theta") or getattr(config, "rope_theta", None) or 10_000.0))
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)
        kind = gguf.GGMLQuantizationType[self._type(student)]
        writer.add_file_type({"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}[kind.name])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_words(writer, words, student)
        for name, tensor in _tensors(network):
            kept = kind if tensor.ndim == 2 and (not self.quantize or tensor.shape[1] % 32 == 0) else None
            if kept is None or kept.name == "F32":
                writer.add_tensor(name, tensor)
            else:
                writer.add_tensor(name, gguf.quants.quantize(tensor, kept), raw_dtype=kept)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def attach(self, student: CausalLm, path: Path) -> None:
        """By the transformers library, which reads such files on its own terms."""
        from transformers import AutoModelForCausalLM

        read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        student.module.model, student.module._head = read.eval(), None

    def usage(self, student: CausalLm) -> str:
        name = self.file(student)
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'tokenizer = AutoTokenizer.from_pretrained("{path}")\n'
            f'model = AutoModelForCausalLM.from_pretrained("{{path}}", gguf_file="{name}")\n'
            f'prompt = tokenizer({quoted("Once upon a time")}, return_tensors="pt").input_ids\n'
            "print(tokenizer.decode(model.generate(prompt, max_new_tokens=20)[0]))\n"
            f'# or without Python: llama-cli -m {name} -p "Once upon a time"'
        )


def _check(config: Any) -> None:
    """Raises: CompatibilityError: it is not a plain Llama; with what is not."""
    if config.model_type != "llama":
        wrong = {f"this is a {config.model_type}": True}
    else:
        rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        wrong = {
            f"its positions are of the kind {rope}": rope != "default",
            f"its activation is {config.hidden_act}": config.hidden_act != "silu",
            "its projections have biases": config.attention_bias or config.mlp_bias,
            "its heads are not hidden_size / heads wide": config.head_dim * config.num_attention_heads
            != config.hidden_size,
        }
    if problems := [what for what, so in wrong.items() if so]:
        raise CompatibilityError(
            f"only plain Llamas are written as GGUF, and {'; '.join(problems)}", hint="kdhub export ... --to onnx"
        )


def _tensors(network: Any) -> Any:
    """Names and weights, float32, as the file has them."""
    config = network.config
    for name, tensor in network.state_dict().items():
        part, _, last = name.rpartition(".")
        values = tensor.detach().float().cpu().numpy()
        if part in OTHERS:
            if not (part == "lm_head" and config.tie_word_embeddings):
                yield f"{OTHERS[part]}.{last}", values
            continue
        number, _, inside = part.removeprefix("model.layers.").partition(".")
        if inside not in NAMES:
            raise CompatibilityError(f"a Llama in GGUF has no place for the weights {name}")
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(NAMES[inside])
        if heads:  # halves of each head -> neighbouring pairs
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        yield f"blk.{number}.{NAMES[inside]}.{last}", np.ascontiguousarray(values)


def _words(tokenizer: Any, count: int) -> dict[str, Any]:
    """Tokens with types and scores, merges, and which of llama.cpp's tokenizers reads them.

    Raises:
        CompatibilityError: llama.cpp has no such tokenizer.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model = backend["model"]
    if model["type"] != "BPE":
        raise CompatibilityError(f"a tokenizer of type {model['type']} has no form in GGUF, which takes BPE")
    special = {one["id"]: one for one in backend.get("added_tokens") or ()}
    ids = {index: token for token, index in {**model["vocab"], **tokenizer.get_vocab()}.items()}
    spaces = bool(model.get("byte_fallback"))
    tokens, types = [], []
    for index in range(count):
        token = ids.get(index)
        tokens.append(f"[PAD{index}]" if token is None else token)
        if token is None:
            types.append(UNUSED)
        elif index == tokenizer.unk_token_id and spaces:
            types.append(UNKNOWN)
        elif index in special:
            types.append(CONTROL if special[index]["special"] else USER)
        else:
            types.append(BYTE if spaces and len(token) == 6 and token.startswith("<0x") else NORMAL)
    merges = [" ".join(one) if isinstance(one, list) else one for one in model["merges"]]
    if spaces:  # as SentencePiece: of two merges the one whose result has the higher score comes first
        ranks: dict[str, int] = {}
        for rank, merge in enumerate(merges):
            ranks.setdefault(merge.replace(" ", ""), rank)
        scores = [-float(ranks[t]) - 1 if t in ranks else -1e6 * (kind == NORMAL) for t, kind in zip(tokens, types)]
        return {"model": "llama", "pre": "default", "tokens": tokens, "types": types, "scores": scores}
    return {"model": "gpt2", "pre": _split(backend["pre_tokenizer"], merges), "tokens": tokens, "types": types,
            "merges": merges}  # fmt: skip


def _split(given: Mapping[str, Any] | None, merges: Sequence[str]) -> str:
    """The name by which llama.cpp knows how texts are split before tokens are merged."""
    parts = (given or {}).get("pretokenizers") or [given or {}]
    bytes_level = [part for part in parts if part.get("type") == "ByteLevel"]
    patterns = [(part.get("pattern") or {}).get("Regex") for part in parts if part.get("type") == "Split"]
    if bytes_level and not merges:
        return "gpt-2"  # each byte is a token, however texts are split
    if bytes_level and not patterns and len(parts) == 1 and bytes_level[0].get("use_regex", True):
        return "gpt-2"
    if bytes_level and patterns == [LLAMA3]:
        return "llama-bpe"
    raise CompatibilityError(
        f"llama.cpp does not split texts as this tokenizer does ({json.dumps(given)[:120]})",
        hint="it knows GPT-2's way and Llama 3's, and SentencePiece",
    )


def _add_words(writer: Any, words: Mapping[str, Any], student: CausalLm) -> None:
    tokenizer = student.tokenizer
    writer.add_tokenizer_model(words["model"])
    writer.add_tokenizer_pre(words["pre"])
    writer.add_token_list(words["tokens"])
    writer.add_token_types(words["types"])
    if "scores" in words:
        writer.add_token_scores(words["scores"])
    if words.get("merges"):
        writer.add_token_merges(words["merges"])
    for name in ("bos", "eos", "unk", "pad"):
        if (index := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(bool(ids) and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(bool(ids) and ids[-1] == tokenizer.eos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
