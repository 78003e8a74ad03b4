"""VidLanKD: the objectives by hand, what padding and order do to them, and the two stages on tiny models."""

from __future__ import annotations

import json
import math
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kdhub_tasks.classification import tiny
from kdhub_tasks.masked.model import MaskedLm
from kdhub_text.data.clips import moved, slant
from kdhub_text.methods import vidlankd
from kdhub_text.methods.vidlankd import VidLanKd
from kdhub_text.methods.vidlankd_teacher import VidLanKdTeacher, contrast_loss, video_encoder
from kdhub_text.token_losses import crd_loss, head, masked_loss, nst_loss, ntxent_loss, queue
from kdhub_text.word_pictures import picture_probe, rsa, word_states
from torch.nn.functional import normalize

import kdhub
from kdhub.errors import CompatibilityError, DataError, UsageError
from kdhub.recipes.recipe import DataRef
from kdhub.rows import Signals

S = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
T = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
ALL = torch.ones(1, 3, dtype=torch.bool)


def nst(student, teacher, units=False, **how):
    a, b = (normalize(x, dim=-1) if units else x for x in (student, teacher))
    return float(nst_loss(a[None], b[None], ALL, **how))


def test_nst_by_hand():
    assert nst(S, T, constant=False) == pytest.approx(-0.25)
    assert nst(S, T) == pytest.approx(0.375)
    assert nst(S, S, constant=False) == pytest.approx(-0.625) and nst(S, S) == pytest.approx(0, abs=1e-6)
    assert nst(S, T, units=True, constant=False) == pytest.approx(-0.333333, abs=1e-6)
    assert nst(S, T, units=True) == pytest.approx(0.222222, abs=1e-6)
    assert nst(S, S, units=True, constant=False) == pytest.approx(-0.555556, abs=1e-6)


def test_nst_does_not_see_order_and_sign_of_neurons():
    for units in (False, True):
        base = nst(S, T, units, constant=False)
        assert nst(S, T[:, [1, 0]], units, constant=False) == pytest.approx(base)
        assert nst(S, T * torch.tensor([-1.0, 1.0]), units, constant=False) == pytest.approx(base)
    larger = T * torch.tensor([3.0, 1.0])
    assert nst(S, larger, constant=False) == pytest.approx(-0.25)
    assert nst(S, larger, units=True, constant=False) == pytest.approx(-0.346487, abs=1e-6)
    wide = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    assert nst(S, wide) >= 0  # a squared distance, also between other widths


def test_nst_as_the_released_code():
    both, mask = torch.stack([S, S]), torch.ones(2, 3, dtype=torch.bool)
    assert float(nst_loss(both, torch.stack([T, T]), mask, "code")) == pytest.approx(2 * -0.25 / 3)


def padded(x, more=2):
    return torch.cat([x, torch.full((len(x), more, x.shape[-1]), 0.7)], 1)


def test_padding_changes_no_loss():
    generator = torch.Generator().manual_seed(0)
    s, t = (normalize(torch.randn(4, 3, 5, generator=generator), dim=-1) for _ in range(2))
    mask = torch.ones(4, 3, dtype=torch.bool)
    wide = torch.cat([mask, torch.zeros(4, 2, dtype=torch.bool)], 1)
    clips = normalize(torch.randn(4, 5, generator=generator), dim=-1)
    for loss in (nst_loss, ntxent_loss):
        assert torch.allclose(loss(s, t, mask), loss(padded(s), padded(t), wide))
    assert torch.allclose(contrast_loss(s, mask, clips), contrast_loss(padded(s), wide, clips))


def test_hinge():
    def hinge(positive, negative):
        """One token each of two texts, with these scores to its own clip and to the other."""
        tokens = torch.tensor([[[positive, negative]], [[negative, positive]]])
        return float(contrast_loss(tokens, torch.ones(2, 1), torch.eye(2)))

    assert hinge(1.0, 0.0) == pytest.approx(0)
    assert hinge(0.2, 0.7) == pytest.approx(1.5)
    # An odd batch is completed by its last row, whose negative is then the middle one.
    tokens, clips = torch.eye(3)[:, None], torch.eye(3)
    assert float(contrast_loss(tokens, torch.ones(3, 1), clips)) == pytest.approx(0)
    assert float(contrast_loss(tokens, torch.ones(3, 1), clips.roll(2, 0), 1.0)) > 0.5


def test_ntxent_by_hand():
    eye, mask = torch.eye(2)[:, None], torch.ones(2, 1, dtype=torch.bool)
    assert float(ntxent_loss(eye, eye, mask)) == pytest.approx(0.551445, abs=1e-6)
    assert float(ntxent_loss(eye, eye, mask, reduction="code")) == pytest.approx(0.137861, abs=1e-6)
    alone = torch.tensor([[True], [False]])  # one text alone has nothing to be told from
    assert float(ntxent_loss(eye, eye, alone)) == 0


def test_ntxent_of_texts_of_unequal_lengths():
    """At each position only the texts that reach it, whatever stands in the padding of the others."""
    lengths, generator = (3, 1, 2), torch.Generator().manual_seed(0)
    s, t = (normalize(torch.randn(3, 3, 5, generator=generator), dim=-1) for _ in range(2))
    mask = torch.tensor([[place < n for place in range(3)] for n in lengths])
    each = []
    for place in range(2):  # the third is reached by one text alone
        some = [text for text, n in enumerate(lengths) if n > place]
        both = [*s[some, place], *t[some, place]]
        for i, anchor in enumerate(both):
            others = [float(anchor @ other) / 0.5 for j, other in enumerate(both) if j != i]
            own = float(anchor @ both[(i + len(some)) % len(both)]) / 0.5
            each.append((math.log(sum(map(math.exp, others))) - own) / (2 * len(both)))
    for junk in (0.0, 5.0):
        filled = [torch.where(mask[..., None], x, junk) for x in (s, t)]
        assert float(ntxent_loss(*filled, mask, 0.5)) == pytest.approx(sum(each), rel=1e-5)


def test_crd_by_hand():
    s = torch.tensor([[1.0, 0.0]])
    memory = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    expected = math.log(math.e + 1 + math.exp(-1)) - 1
    assert float(crd_loss(s, s, memory, 1.0)) == pytest.approx(expected)
    assert float(crd_loss(s, s, memory[:0], 1.0)) == 0
    two, theirs = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[0.8, 0.6], [0.0, 1.0]])
    like = np.array([[0.8, 0, -1], [0.8, 0.8, -0.6]])
    rows = [math.log(np.exp(row / 0.5).sum()) - row[0] / 0.5 for row in like]
    assert float(crd_loss(two, theirs, memory, 0.5)) == pytest.approx(sum(rows) / 2, rel=1e-5)
    assert float(crd_loss(two, theirs, memory, 0.5, 8.0)) == pytest.approx(sum(rows) / 8, rel=1e-5)
    assert float(crd_loss(two, theirs, memory)) == float(crd_loss(two, theirs, memory, 0.07))


def test_a_head_is_four_layers():
    torch.manual_seed(0)
    made, x = head(3, 5), torch.randn(2, 3)
    first, last = made[0], made[-1]
    bent = torch.nn.functional.gelu(x @ first.weight.T + first.bias)
    even = (bent - bent.mean(-1, keepdim=True)) / (bent.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(made(x), even @ last.weight.T + last.bias, atol=1e-6) and made(x).shape == (2, 5)


def test_queue_keeps_the_last_states():
    memory = queue(3, 1)
    assert len(memory.held()) == 0
    memory.put(torch.tensor([[1.0], [2.0]]))
    assert memory.held().flatten().tolist() == [1, 2]
    memory.put(torch.tensor([[3.0], [4.0]]))
    assert sorted(memory.held().flatten().tolist()) == [2, 3, 4]
    again = queue(3, 1)
    again.load_state_dict(memory.state_dict())
    assert torch.equal(again.held(), memory.held()) and not list(memory.parameters())


class Model:
    """A student or a teacher of three layers so wide."""

    def __init__(self, width):
        self.wide = width

    def width(self, kind):
        return {"hidden_states": (3, self.wide)}[kind]

    def layout(self, kind):
        return {"hidden_states": {"hidden_states": (None, 3, self.wide)}}[kind]


def of_two_texts(wide=4):
    """Texts of three tokens and of two, their signals, and which tokens are masked."""
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    student = Signals(logits=torch.randn(5, 6), hidden_states=torch.randn(5, 3, 4))
    teacher = Signals(logits=torch.randn(5, 6), hidden_states=torch.randn(5, 1, wide))
    return student, teacher, {"attention_mask": mask, "labels": torch.tensor([-1, 2, -1, 0, -1])}


@pytest.mark.parametrize("reduction", ["mean", "code"])
def test_each_objective_is_of_its_own_head(reduction):
    """And of all tokens or of the masked ones, over the step's; crd is against what the batch before had."""
    names, whole = ("nst", "crd", "ntxent", "soft_label", "l2"), {"labels": 4.0, "tokens": 20.0}
    student, teacher, batch = of_two_texts(7)
    method = VidLanKd(VidLanKd.Options(
        objectives=names, kd_weight=0.5, ntxent_temperature=0.5, crd_temperature=0.2, crd_queue=16, reduction=reduction,
        soft_label_temperature=3.0))  # fmt: skip
    method.modules = method.extras(Model(4), Model(7))
    heads, memory = method.modules["heads"], method.modules["queue"]
    outputs = {"nst": 4, "crd": 7, "ntxent": 7, "l2": 7}
    assert {name: tuple(one[-1].weight.shape) for name, one in heads.items()} == {n: (w, 4) for n, w in outputs.items()}
    assert memory.states.shape == (16, 7)
    states, real = torch.zeros(2, 3, 4), batch["attention_mask"].bool()
    states[real] = student.hidden_states[:, 2]
    target = torch.zeros(2, 3, 7)
    target[real] = teacher.hidden_states[:, 0]
    t, units = normalize(target, dim=-1), {n: normalize(heads[n](states), dim=-1) for n in outputs}
    log_q, log_p = ((one.logits[[1, 3]] / 3).log_softmax(-1) for one in (student, teacher))
    for step, one in enumerate((batch, {**batch, "mean_counts": whole})):
        labels, tokens = (4, 20) if step else (2, 5)
        found = {name: value.item() for name, value in method.objective(student, teacher, one, None).items()}
        log = student.logits.log_softmax(-1)
        seen = t[real] if step else t[real][:0]
        assert found == pytest.approx({
            "labels": -(log[1, 2] + log[3, 0]).item() / labels,
            "nst": 0.5 * nst_loss(units["nst"], t, real, reduction).item(),
            "ntxent": 0.5 * ntxent_loss(units["ntxent"], t, real, 0.5, reduction).item(),
            "crd": 0.5 * crd_loss(units["crd"][real], t[real], seen, 0.2, tokens).item(),
            "soft_label": 0.5 * 9 * (log_p.exp() * (log_p - log_q)).sum().item() / labels,
            "l2": 0.5 * (units["l2"][real] - t[real]).square().sum().item() / tokens,
        }, rel=1e-4, abs=1e-6)  # fmt: skip
    assert torch.equal(memory.held(), torch.cat([t[real]] * 2))


def test_states_without_heads_and_weights_without_a_teacher():
    student, teacher, batch = of_two_texts()
    bare = VidLanKd(VidLanKd.Options(objectives=("l2", "crd"), head=False, crd_queue=2))
    bare.modules = bare.extras(Model(4), Model(4))
    assert set(bare.modules) == {"queue"}
    s, t = (normalize(one.hidden_states[:, -1], dim=-1) for one in (student, teacher))
    assert bare.objective(student, teacher, batch, None)["l2"].item() == pytest.approx(
        (s - t).square().sum().item() / 5
    )
    soft = VidLanKd(VidLanKd.Options(objectives=("soft_label",)))
    assert soft.extras(Model(4), Model(7)) == {} and soft.batchwise == ""
    assert set(soft.objective(student, Signals(logits=teacher.logits), batch, None)) == {"labels", "soft_label"}
    off = VidLanKd(VidLanKd.Options(kd_weight=0.0))
    assert set(off.objective(Signals(logits=student.logits), Signals(), batch, None)) == {"labels"}
    said = {("nst",): "", ("l2", "ntxent"): "ntxent compare the texts of a batch"}
    assert {of: VidLanKd(VidLanKd.Options(objectives=of)).batchwise for of in said} == said
    code = VidLanKd(VidLanKd.Options(objectives=("nst", "crd"), reduction="code"))
    assert code.batchwise == "nst and crd compare the texts of a batch"
    wide = VidLanKd(VidLanKd.Options(objectives=("nst",), head=False))
    assert wide.extras(Model(4), Model(7)) == {}, "nst compares any two widths"
    with pytest.raises(CompatibilityError, match="4 dimensions, the teacher's 7"):
        VidLanKd(VidLanKd.Options(objectives=("nst", "l2"), head=False)).extras(Model(4), Model(7))


def test_the_first_stage_by_hand():
    """Labels, and captions against their own clips and those of the other half, over the step's tokens."""
    student, _, batch = of_two_texts()
    clips = normalize(torch.randn(2, 4), dim=-1)
    method = VidLanKdTeacher(VidLanKdTeacher.Options(margin=0.3))
    method.modules = {"video": {"frames": clips}.get}
    s, own = normalize(student.hidden_states[:, 2], dim=-1), [0, 0, 0, 1, 1]
    gap = [(0.3 - s[i] @ clips[n] + s[i] @ clips[1 - n]).clamp_min(0).item() for i, n in enumerate(own)]
    assert 0 < sum(x > 0 for x in gap)
    for more, tokens in (({}, 5), ({"mean_counts": {"labels": 4.0, "tokens": 20.0}}, 20)):
        one = {**batch, "frames": "frames", **more}
        terms = method.objective(student, None, one, None)
        assert terms["contrast"].item() == pytest.approx(sum(gap) / tokens, rel=1e-5)
        assert terms["labels"].item() == masked_loss(student, one).item() and len(terms) == 2
    alone = VidLanKdTeacher(VidLanKdTeacher.Options(teacher_objectives=("mlm",)))
    assert alone.extras(None, None) == {} and alone.prepare_batch(batch, None) is batch and alone.batchwise == ""
    assert set(alone.objective(student, None, batch, None)) == {"labels"}
    assert method.batchwise == "captions are contrasted with clips of their batch"


def test_likeness_of_words_and_pictures():
    pictures = np.random.default_rng(0).random((10, 64))
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(64, 64)))[0]
    assert rsa(pictures @ turn, pictures) == pytest.approx(1)
    assert picture_probe(pictures @ turn, pictures, 1e-6) > picture_probe(
        np.random.default_rng(2).random((10, 64)), pictures
    )
    assert rsa(pictures[:1], pictures[:1]) is None and picture_probe(pictures[:1], pictures[:1]) is None
    chance = [rsa(np.random.default_rng(s).normal(size=(10, 16)), pictures) for s in range(200)]
    assert abs(np.mean(chance)) < 0.03 and np.mean(np.abs(chance) > 0.29) < 0.12


def test_clips_show_what_their_captions_say(home):
    image = np.zeros((8, 8))
    image[4, 4] = 1
    assert moved(image, np.array([-1, 2]))[3, 6] == 1 and moved(image, np.array([9, 0])).sum() == 1
    lean = np.fliplr(np.eye(8))  # from bottom left to top right
    assert slant(lean) == pytest.approx(1) and slant(lean[:, ::-1]) == pytest.approx(-1)
    data = kdhub.open_data("digit-clips")
    rows = data.split("validation").select(range(100))
    names = "zero one two three four five six seven eight nine".split()
    for row in rows:
        assert np.asarray(row["frames"]).shape == (4, 64)
        assert {word for word in row["text"].split() if word in names} == {names[row["digit"]]}
    left = [np.asarray(r["frames"]).reshape(4, 8, 8) for r in rows if "left" in r["text"]]
    assert len(left) > 5
    columns = np.arange(8)
    drift = [((f[3].sum(0) @ columns) / f[3].sum()) - ((f[0].sum(0) @ columns) / f[0].sum()) for f in left]
    assert np.mean(drift) < -1


def test_sentences_tell_no_digit_from_another(home):
    """The word before and after a digit: the same shares for all ten."""
    rows = kdhub.open_data("digit-sentences").split("train").select(range(4000))["text"]
    names = "zero one two three four five six seven eight nine".split()
    near = {name: {} for name in names}
    for text in rows:
        words = ["^", *text.split(), "$"]
        for a, word, b in zip(words, words[1:], words[2:]):
            if word in near:
                near[word][a, b] = near[word].get((a, b), 0) + 1
    contexts = sorted({c for counts in near.values() for c in counts})
    table = np.array([[near[n].get(c, 0) for c in contexts] for n in names])
    from scipy.stats import chi2_contingency

    common = table[:, table.sum(0) > 50]
    assert common.shape[1] > 5 and chi2_contingency(common).pvalue > 0.001


def test_video_encoder_gives_unit_vectors():
    torch.manual_seed(0)
    made = video_encoder(4, 64, 16, 1, 2, 0.3).eval()
    vectors = made(torch.rand(3, 4, 64))
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(3), atol=1e-5)
    frames = torch.rand(1, 4, 64)
    assert not torch.allclose(made(frames), made(frames.flip(1)), atol=1e-4)  # it knows which frame is when


@pytest.fixture
def folders(home, tmp_path):
    """A teacher and captions whose clips are brighter for good words."""
    made = {name: tiny.text_classifier(tmp_path / name, of="BertForMaskedLM", mask=True) for name in ("a", "b")}
    rng, rows = np.random.default_rng(0), []
    for row in tiny.rows(32):
        frames = (rng.random((2, 4)) + (row["label"] == "good")).tolist()
        rows.append({"text": row["text"], "frames": frames})
    file = tmp_path / "clips.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made, file


def run(folders, method, out, **options):
    made, file = folders
    recipe = {
        "task": "fill-mask", "method": method, "student": f"path:{made['b']}",
        "data": {"train": [{"source": f"path:{file}"}]},
        "options": {"lr": 1e-3, "batch_size": 8, "epochs": 1, "precision": "float32", **options},
        "evaluation": {"data": [], "cost": False},
    }  # fmt: skip
    if method == "vidlankd":
        recipe["teacher"] = f"path:{made['a']}"
        recipe["options"]["pictures"] = None
    return kdhub.distill(recipe, out=out)


def test_first_stage_trains_with_clips_and_leaves_the_video_side_behind(folders, tmp_path):
    done = run(folders, "vidlankd-teacher", tmp_path / "run", clips={"source": f"path:{folders[1]}"}, video_heads=2)
    logged = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    assert any("contrast" in json.dumps(record) for record in logged)
    saved = {p.name for p in (done.folder / "student").iterdir()}
    assert "model.safetensors" in saved
    from safetensors import safe_open

    with safe_open(done.folder / "student" / "model.safetensors", "pt") as file:
        assert all(name.startswith(("bert.", "cls.")) for name in file.keys())


@pytest.mark.parametrize("objectives", [["nst", "crd", "ntxent", "soft_label", "l2"], []])
def test_second_stage_has_each_objective(folders, tmp_path, objectives):
    done = run(folders, "vidlankd", tmp_path / "run", objectives=objectives, crd_queue=16)
    first = next(r for r in map(json.loads, (done.folder / "metrics.jsonl").read_text().splitlines()) if "step" in r)
    terms = json.dumps(first)
    assert all(f'"{name}"' in terms for name in [*objectives, "labels"])
    assert ('"nst"' in terms) == bool(objectives)


def lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": f"path:{file}"}


def test_clips_are_read_as_they_are_drawn(home, tmp_path):
    """Of the clips of a caption the same one as if all were held; a bad one is named when it is drawn."""
    clips = np.random.default_rng(0).random((6, 2, 4)).round(3).tolist()
    captions = ["one", "two", "one", "one", "two", "bad"]
    ref = lines(tmp_path / "c.jsonl", [{"text": t, "frames": f} for t, f in zip(captions, clips)])

    class Narrow:
        def width(self, kind):
            return (2, 8)

    def drawn(ref, *texts):
        method = VidLanKdTeacher(VidLanKdTeacher.Options(clips=ref, video_heads=2))
        assert method.extras(Narrow(), None)["video"].positions.shape == (2, 8)
        batch = {"keys": torch.tensor([zlib.crc32(t.encode()) for t in texts]), "input_ids": torch.zeros(1)}
        return method.prepare_batch(batch, torch.Generator().manual_seed(3))["frames"]

    texts, generator = ["two", "one", "one", "two", "one"], torch.Generator().manual_seed(3)
    held = {t: [f for caption, f in zip(captions, clips) if caption == t] for t in texts}
    same = [held[t][int(torch.randint(len(held[t]), (), generator=generator))] for t in texts]
    assert torch.equal(drawn(ref, *texts), torch.tensor(same))
    with pytest.raises(DataError, match="not a caption of the clips"):
        drawn(ref, "three")
    for bad in ([[0.5, 0.5]], [[0.1, 0.2, 0.3, None]] * 2, [[0.1], [0.2, 0.3]]):
        rows = [{"text": t, "frames": bad if t == "bad" else f} for t, f in zip(captions, clips)]
        ref = lines(tmp_path / "b.jsonl", rows)
        assert drawn(ref, "one").shape == (1, 2, 4)
        with pytest.raises(DataError, match="row 6 are not 2 x 4 finite numbers"):
            drawn(ref, "two", "bad")


def test_share_of_hidden_tokens_is_an_option_of_both_stages():
    for method in (VidLanKd, VidLanKdTeacher):
        assert method(method.Options()).settings() == {"mlm_prob": 0.15}
        assert method(method.Options(mlm_prob=0.4)).settings() == {"mlm_prob": 0.4}


def test_pictures_are_looked_at_before_training(home, tmp_path):
    good = {"text": "near the River", "word": "river", "picture": [0.0]}

    def rows(*given):
        pictures = DataRef(**lines(tmp_path / "p.jsonl", given))
        VidLanKd(VidLanKd.Options(pictures=pictures)).check(None, None)

    with pytest.raises(DataError, match="has no column word, picture"):
        rows({"text": "near the river"})
    with pytest.raises(DataError, match="row 2: 'lake' is not in 'near the River'"):
        rows(good, {**good, "word": "lake"})


def test_pictures_are_compared_with_what_both_models_say(monkeypatch):
    rng = np.random.default_rng(0)
    states, pictures, rows = (
        {"t": rng.normal(size=(8, 4)), "s": rng.normal(size=(8, 3))},
        rng.random((8, 5)),
        ["a", "b"],
    )
    data = SimpleNamespace(name="words", split={"held": rows}.get)
    monkeypatch.setattr(vidlankd, "pictures_of", lambda ref: {"p": (data, "held")}[ref.source])
    monkeypatch.setattr(
        vidlankd, "word_states", lambda model, given: (states[model], pictures) if given == rows else None
    )
    run = SimpleNamespace(teacher=SimpleNamespace(model="t"), evaluate=lambda one: SimpleNamespace(measures=[], of=one))
    report = VidLanKd(VidLanKd.Options(pictures={"source": "p"})).evaluate(run, "s")
    found = [(m.metric, m.subject, m.value, m.dataset, m.split, m.examples) for m in report.measures]
    assert report.of == "s" and found == [
        (name, who, of(states[who[0]], pictures), "words", "held", 8)
        for who in ("teacher", "student") for name, of in (("rsa", rsa), ("picture-probe", picture_probe))
    ]  # fmt: skip
    assert VidLanKd(VidLanKd.Options()).evaluate(run, "s").measures == []


def last_states(model, text):
    given = model.tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        return model.module.model.base_model(**given).last_hidden_state[0].numpy()


def test_a_word_is_found_by_its_characters(folders):
    model = MaskedLm.load(folders[0]["a"])

    def states(*rows):
        return word_states(model, [{"text": text, "word": word, "picture": [0.0]} for word, text in rows])[0]

    unknown = "the zebra and a yak"  # both [UNK]
    assert np.allclose(states(("yak", unknown))[0], last_states(model, unknown)[5], atol=1e-5)
    long = "the film " * 60 + "plot"
    assert np.allclose(states(("plot", "the plot"), ("plot", long)), last_states(model, "the plot")[2], atol=1e-5)
    with pytest.raises(DataError, match="reads 64 tokens of a text, and words come later: plot"):
        states(("plot", long))

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.train_from_iterator(
        ["near the river", "rivers"] * 9, trainers.BpeTrainer(vocab_size=24, special_tokens=["<mask>", "<pad>"])
    )
    model.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=64, mask_token="<mask>", pad_token="<pad>"
    )
    text = "rivers near the river"
    offsets = model.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    own = [i for i, (_, end) in enumerate(offsets) if end > len("rivers near the ")]
    assert own[-1] == len(offsets) - 1 and len(own) < len(offsets)
    assert np.allclose(states(("river", text))[0], last_states(model, text)[own].mean(0), atol=1e-5)


def test_what_does_not_fit_is_said(folders, home, tmp_path):
    with pytest.raises(UsageError, match="clips"):
        VidLanKdTeacher(VidLanKdTeacher.Options()).extras(None, None)

    class Wide:
        def width(self, kind):
            return (2, 16)

        def layout(self, kind):
            return {"hidden_states": (None, 2, 32)}

    with pytest.raises(CompatibilityError, match="16 dimensions, the teacher's 32"):
        VidLanKd(VidLanKd.Options(head=False, objectives=("l2",))).extras(Wide(), Wide())
    assert VidLanKd(VidLanKd.Options(head=False)).extras(Wide(), Wide()) == {}
    model = MaskedLm.load(folders[0]["a"])
    with pytest.raises(DataError, match="row 1: 'plot' is not in 'the film'"):
        word_states(model, [{"text": "the film", "word": "plot", "picture": [0.0]}])
