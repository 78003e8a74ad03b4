"""Models of llama2.c: its first file format (`.bin`) with a SentencePiece tokenizer (`.model`).

    int32 x 7    dim, hidden, layers, heads, kv heads, vocabulary (below 0: a head of its own), sequence length
    float32      tokens (V, d); attention norms (L, d); wq (L, d, d); wk, wv (L, kv, d); wo (L, d, d); norms (L, d);
                 w1 (L, h, d); w2 (L, d, h); w3 (L, h, d); last norm (d); two tables of angles (T, d / heads / 2);
                 head (V, d), where it is its own

llama2.c rotates neighbouring elements of a head together, (0, 1), (2, 3), ...; the transformers library rotates the
first half against the second, so the rows of wq and wk are reordered. Texts end with `<s>`, which begins the next one.
A folder is converted once, into a transformers folder below kdhub's home, and read from there.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdhub.errors import UsageError
from kdhub.files import given_or_shared, home
from kdhub.student import BuildContext

if TYPE_CHECKING:
    from kdhub.student import Student
    from kdhub.teachers.saved import SavedTeacher

VERSION = 1
"""Of the conversion: with another one it is done again."""
EPSILON = 1e-5
"""Of the norms, a constant in llama2.c."""


class Header(NamedTuple):
    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    length: int

    @property
    def tied(self) -> bool:
        """Whether the head is the token embedding."""
        return self.vocabulary > 0

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes, in the order of the file."""
        d, h, n, v, t = self.dim, self.hidden, self.layers, abs(self.vocabulary), self.length
        kv = d // self.heads * self.kv_heads
        angles = (t, d // self.heads // 2)
        shapes = {
            "tokens": (v, d), "attention_norm": (n, d), "wq": (n, d, d), "wk": (n, kv, d), "wv": (n, kv, d),
            "wo": (n, d, d), "ffn_norm": (n, d), "w1": (n, h, d), "w2": (n, d, h), "w3": (n, h, d), "norm": (d,),
            "cosines": angles, "sines": angles,
        }  # fmt: skip
        return shapes if self.tied else {**shapes, "head": (v, d)}

    @property
    def bytes(self) -> int:
        """Of a file with this header."""
        return struct.calcsize("<7i") + 4 * sum(int(np.prod(shape)) for shape in self.tensors.values())


def header(path: Path) -> Header | None:
    """The header of a file; None if it is not a model: impossible sizes, or sizes that do not match the file."""
    with path.open("rb") as file:
        begin = file.read(struct.calcsize("<7i"))
    if len(begin) < struct.calcsize("<7i"):
        return None
    found = Header(*struct.unpack("<7i", begin))
    if min(found[:5]) < 1 or found.vocabulary == 0 or found.length < 1 or max(map(abs, found)) > 2**24:
        return None
    fits = not (found.dim % (2 * found.heads) or found.heads % found.kv_heads)
    return found if fits and found.bytes == path.stat().st_size else None


def weights(path: Path, of: Header) -> dict[str, np.ndarray]:
    """The tensors of a file, float32, memory-mapped."""
    numbers = np.memmap(path, "<f4", "r", offset=struct.calcsize("<7i"))
    found, at = {}, 0
    for name, shape in of.tensors.items():
        size = int(np.prod(shape))
        found[name] = numbers[at : at + size].reshape(shape)
        at += size
    return found


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """(heads x size, d) with neighbouring rows of a head as pairs -> with row i and row i + size / 2 as pairs."""
    width = rows.shape[-1]
    return rows.reshape(heads, -1, 2, width).transpose(0, 2, 1, 3).reshape(-1, width)


def network(path: Path, of: Header) -> Any:
    """The model as a transformers network."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    w = weights(path, of)
    config = LlamaConfig(
        vocab_size=abs(of.vocabulary),
        hidden_size=of.dim,
        intermediate_size=of.hidden,
        num_hidden_layers=of.layers,
        num_attention_heads=of.heads,
        num_key_value_heads=of.kv_heads,
        max_position_embeddings=of.length,
        rms_norm_eps=EPSILON,
        tie_word_embeddings=of.tied,
        bos_token_id=1,
        eos_token_id=1,
    )
    state = {"model.embed_tokens.weight": w["tokens"], "model.norm.weight": w["norm"]}
    state["lm_head.weight"] = w["tokens"] if of.tied else w["head"]
    for i in range(of.layers):
        at = f"model.layers.{i}"
        state |= {
            f"{at}.input_layernorm.weight": w["attention_norm"][i],
            f"{at}.self_attn.q_proj.weight": halves(w["wq"][i], of.heads),
            f"{at}.self_attn.k_proj.weight": halves(w["wk"][i], of.kv_heads),
            f"{at}.self_attn.v_proj.weight": w["wv"][i],
            f"{at}.self_attn.o_proj.weight": w["wo"][i],
            f"{at}.post_attention_layernorm.weight": w["ffn_norm"][i],
            f"{at}.mlp.gate_proj.weight": w["w1"][i],
            f"{at}.mlp.down_proj.weight": w["w2"][i],
            f"{at}.mlp.up_proj.weight": w["w3"][i],
        }
    made = LlamaForCausalLM(config).eval()
    made.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    return made


def pieces(path: Path) -> list[tuple[str, float]]:
    """The tokens of a SentencePiece BPE model and their scores, in the order of their ids.

    Raises:
        UsageError: it is not such a model, or the package that reads it is not installed.
    """
    try:
        from transformers.utils import sentencepiece_model_pb2_new as proto
    except ImportError:
        raise UsageError(
            f"reading {path.name} needs the package protobuf",
            hint="pip install 'kdhub-lm[llama2c]'",
        ) from None
    from google.protobuf.message import DecodeError

    model = proto.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise UsageError(f"{path} is not a SentencePiece model: {error}") from error
    if not model.pieces or model.trainer_spec.model_type != model.trainer_spec.BPE:
        raise UsageError(f"{path} is not a SentencePiece BPE model")
    return [(piece.piece, piece.score) for piece in model.pieces]


def tokenizer(path: Path, length: int) -> Any:
    """A SentencePiece model as a fast tokenizer; `<s>` begins and ends a text."""
    from transformers import LlamaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    found = pieces(path)
    vocabulary = {piece: i for i, (piece, _) in enumerate(found)}
    # merges are ordered by the score of their result
    scores = dict(found[3:])
    return LlamaTokenizer(
        vocab=vocabulary,
        merges=generate_merges(vocabulary, scores),
        bos_token="<s>",
        eos_token="<s>",
        pad_token="<unk>",
        legacy=False,
        model_max_length=length,
    )


def found(argument: str) -> tuple[Path, Path, Header]:
    """Weights, tokenizer and header in a folder, which may also be below `KDHUB_DATA`.

    Raises:
        UsageError: there is no such folder, or not exactly one model and one tokenizer in it.
    """
    folder = given_or_shared(argument, Path.is_dir)
    if folder is None:
        raise UsageError(
            f"llama2c:{argument}: the folder does not exist",
            hint="also searched below KDHUB_DATA, if that is set",
        )
    models = [(path, of) for path in sorted(folder.glob("*.bin")) if (of := header(path))]
    tokens = sorted(folder.glob("*.model"))
    if len(models) != 1 or len(tokens) != 1:
        raise UsageError(
            f"llama2c:{argument} needs one .bin file whose size matches its header and one .model file, found "
            f"{len(models)} and {len(tokens)}"
        )
    (path, of), (words,) = models[0], tokens
    if abs(of.vocabulary) != len(pieces(words)):
        raise UsageError(
            f"llama2c:{argument}: {path.name} has {abs(of.vocabulary)} tokens, {words.name} {len(pieces(words))}"
        )
    return path, words, of


def converted(argument: str) -> Path:
    """The transformers folder of a model, converted once; errors as `found`."""
    from kdhub_tasks.language.model import CausalLm

    path, words, of = found(argument)
    digest = hashlib.sha256(b"".join(hashlib.sha256(p.read_bytes()).digest() for p in (path, words))).hexdigest()
    target = home() / "llama2c" / f"{digest[:16]}-{VERSION}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=target.parent))
        CausalLm(network(path, of), tokenizer(words, of.length)).save(staging)
        try:
            staging.rename(target)
        except OSError:  # another process was first
            shutil.rmtree(staging)
    return target


def teacher(argument: str, options: Any = None, *, task: Any) -> SavedTeacher:
    """`llama2c:FOLDER`."""
    known = {"source": f"llama2c:{argument}", "id": Path(argument).name}
    return task.Teacher(argument, options, task=task, folder=converted(argument), known=known)


def student(argument: str, context: BuildContext) -> Student:
    """`llama2c:FOLDER`."""
    return context.task.open(converted(argument), context, {"how": f"the weights of {Path(argument).name}"})
