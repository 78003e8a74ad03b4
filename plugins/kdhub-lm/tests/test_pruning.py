"""Teachers without some of their blocks: which ones go, and what is left."""

from __future__ import annotations

import copy
import json
import statistics

import pytest
import torch
from kdhub_lm.students.pruning import (
    PruneOptions,
    angular,
    depth_prune,
    influences,
    last_tokens,
    least,
    run_distances,
)
from kdhub_tasks.language import model as models
from kdhub_tasks.language import task
from kdhub_tasks.language.generation import Generation
from kdhub_tasks.language.students import byte_tokenizer, llama
from kdhub_tasks.layers import keep_blocks

import kdhub
from kdhub.errors import CompatibilityError, UsageError
from kdhub.student import BuildContext

STATES = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]], [[1.0, 1.2]], [[0.0, 2.0]]])
TEXTS = [{"text": "a small text"}, {"text": "another, longer text"}, {"text": "the last"}]


class LocalTeacher:
    """A teacher with a model."""

    known = {"id": "local"}

    def __init__(self, model):
        self.model, self.tokenizer, self.max_length = model, model.tokenizer, model.max_length
        self.vocabulary = model.vocabulary


@pytest.fixture
def teacher():
    model = llama("width=16,layers=5,heads=2,length=64", BuildContext(None, None, 3))
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.module.model.parameters():
            if p.dim() == 2:  # blocks that do something
                p.add_(0.2 * torch.randn_like(p))
    return LocalTeacher(model)


def built(argument, teacher, rows=TEXTS, **options):
    facts = {"rows": rows} if rows else {}
    return depth_prune(
        argument, BuildContext(task.CausalLanguage(), teacher, 0, PruneOptions(**options).model_dump(), facts)
    )


def test_angles_by_hand():
    x = torch.tensor([1.0, 2.0])
    assert angular(x, 5 * x).item() == pytest.approx(0, abs=1e-6) and angular(x, -x).item() == pytest.approx(1)
    assert angular(x, torch.tensor([-2.0, 1.0])).item() == pytest.approx(0.5)
    many = torch.randn(500, 3)
    assert torch.isfinite(angular(many, many * (1 + 1e-7))).all(), "rounding leads beyond 1"


def test_distances_of_the_specification():
    one, two = run_distances(STATES, 1), run_distances(STATES, 2)
    assert one == pytest.approx([0.25, 0.028858, 0.221142], abs=1e-6) and two == pytest.approx(
        [0.278858, 0.25], abs=1e-6
    )
    assert least(one, 0, 2) == least(one, 1, 1) == 1 and least(two, 0, 1) == 1
    with pytest.raises(UsageError, match="blocks that are not protected are fewer"):
        least(two, 1, 0)


def test_states_are_those_of_the_last_real_token(teacher):
    """In batches with padding; what comes out of the last block has not gone through the last norm."""
    examples = task.CausalLanguage().preparer(teacher.model, None)(TEXTS)
    states = last_tokens(teacher.model, examples)
    assert states.shape == (6, 3, 16)
    network = teacher.model.module.model
    for n, example in enumerate(examples):
        with torch.no_grad():
            hidden = network(torch.tensor([example["ids"]]), output_hidden_states=True).hidden_states
        for block in range(5):
            assert torch.allclose(states[block, n], hidden[block][0, -1], atol=1e-5)
        assert torch.allclose(network.model.norm(states[5, n]), hidden[5][0, -1], atol=1e-5)
    whole = influences(teacher.model, examples)
    assert len(whole) == 5 and all(0 < value < 2 for value in whole)


def test_blocks_that_stay_are_the_teachers_own(teacher):
    """In their order, renumbered, each parameter of the others gone, the head and all else as it was."""
    network = teacher.model.module.model
    student = built("2", teacher)
    left = student.module.model
    of_block = sum(p.numel() for p in network.model.layers[0].parameters())
    size = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    assert size(network) - size(left) == 2 * of_block and left.config.num_hidden_layers == len(left.model.layers) == 3
    named = [
        next(
            i for i, own in enumerate(network.model.layers) if torch.equal(own.mlp.up_proj.weight, b.mlp.up_proj.weight)
        )
        for b in left.model.layers
    ]
    gone = sorted(set(range(5)) - set(named))
    assert named == sorted(named) and gone[1] == gone[0] + 1 and {0, 4} <= set(named), "a run, the ends protected"
    assert [b.self_attn.layer_idx for b in left.model.layers] == [0, 1, 2]
    listed = ", ".join(str(i + 1) for i in gone)
    assert (
        f"without blocks {listed} of 5" in student.start["how"]
        and "3 rows of the training data" in student.start["how"]
    )
    assert all(p.requires_grad for p in left.parameters())
    # what it remembers of a text is found by the new numbers: writing goes as reading does
    (ids,) = student.generate([[1, 40, 50]], Generation(max_new_tokens=6), 0)
    with torch.no_grad():
        read = [1, 40, 50]
        for _ in range(6):
            read.append(int(left(torch.tensor([read])).logits[0, -1, :258].argmax()))
    assert read[3 : 3 + len(ids)] == ids


def test_without_a_block_less_nothing_changes(teacher):
    batch = task.CausalLanguage().collate(task.CausalLanguage().preparer(teacher.model, None)(TEXTS), teacher.model)
    with torch.no_grad():
        before, after = teacher.model.module(batch).logits, built("0", teacher).module(batch).logits
    assert torch.equal(before, after)


def test_options_and_texts(teacher):
    default = built("", teacher)
    assert default.module.model.config.num_hidden_layers == 4, "one of five"
    single = built("2", teacher, metric="cosine_all_tokens")
    values = influences(teacher.model, task.CausalLanguage().preparer(teacher.model, None)(TEXTS))
    least_two = sorted(sorted(range(1, 4), key=lambda i: values[i])[:2])
    assert f"without blocks {', '.join(str(i + 1) for i in least_two)} of 5 (cosine_all_tokens" in single.start["how"]
    assert "64 rows of pydoc" in built("1", teacher, rows=None, calib_rows=64).start["how"], "embedded texts"
    named = built("1", teacher, calib={"source": "synthetic:sums", "options": {"rows": 20}})
    assert "20 rows of synthetic:sums" in named.start["how"]
    assert built("4", teacher, protect_first=0).module.model.config.num_hidden_layers == 1
    for argument, options, said in (("4", {}, "cannot remove 4 of 5 blocks"), ("x", {}, "a number of blocks"),
                                    ("1", {"protect_first": 3, "protect_last": 2}, "protect_last=2")):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            built(argument, teacher, **options)
    with pytest.raises(CompatibilityError, match="with local weights"):
        built("1", None)


@pytest.mark.parametrize("kind", ["gemma2", "gpt2"])
def test_lists_of_one_entry_a_block_are_cut(kind, tmp_path):
    import transformers

    if kind == "gemma2":
        sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 2}
        config = transformers.Gemma2Config(**sizes, vocab_size=258, intermediate_size=16, head_dim=8, sliding_window=4)
        network = transformers.Gemma2ForCausalLM(config)
    else:
        config = transformers.GPT2Config(vocab_size=258, n_embd=16, n_layer=4, n_head=2, n_positions=64)
        network = transformers.GPT2LMHeadModel(config)
    student = built("2", LocalTeacher(models.CausalLm(network.eval(), byte_tokenizer(64))))
    student.save(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved.get("num_hidden_layers", saved.get("n_layer")) == 2
    if kind == "gemma2":
        gone = [int(i) - 1 for i in student.start["how"].split(" of ")[0].removeprefix("without blocks ").split(", ")]
        assert saved["layer_types"] == [t for i, t in enumerate(config.layer_types) if i not in gone]
    loaded, examples = models.load(tmp_path), task.CausalLanguage().preparer(student, None)(TEXTS)
    for a, b in zip(loaded.signals(examples, "logits")["logits"], student.signals(examples, "logits")["logits"]):
        assert abs(a - b).max() < 1e-5


def test_the_removed_run_is_missed_less_than_others(home, tmp_path):
    """Of a model that has learnt something, without tuning: the loss of the chosen run against the mean over all."""
    run = kdhub.distill(
        {"task": "causal-lm", "method": "supervised", "student": "llama:width=32,layers=6,heads=2,length=64",
         "data": {"train": [{"source": "synthetic:additions", "options": {"rows": 400, "length": 40}}]},
         "options": {"max_steps": 120, "batch_size": 32, "lr": 5e-3, "precision": "float32"},
         "evaluation": {"data": []}},
        out=tmp_path / "run")  # fmt: skip
    teacher = LocalTeacher(models.load(run.student_folder))
    from kdhub_lm.data.synthetic import synthetic

    rows = synthetic("additions", rows=400, length=40).split("validation").to_list()
    examples = task.CausalLanguage().preparer(teacher.model, None)(rows)
    batch = task.CausalLanguage().collate(examples, teacher.model)

    def loss(network):
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(
                models.LanguageModel(network, 258)(batch).logits, batch["labels"]
            ).item()

    losses = []
    for start in range(5):
        network = copy.deepcopy(teacher.model.module.model)
        keep_blocks(network, [i for i in range(6) if i not in (start, start + 1)])
        losses.append(loss(network))
    chosen = loss(built("2", teacher, rows=rows, protect_first=0, protect_last=0).module.model)
    assert (
        loss(teacher.model.module.model) < chosen < statistics.mean(losses)
        and min(abs(x - chosen) for x in losses) < 1e-6
    )
