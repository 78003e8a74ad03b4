"""SnapCap: the numbers of its specification, its invariants, real bad input, and a chain whose student learns."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kdhub_vision.captioning import snapshot
from kdhub_vision.captioning.data import moving_digits
from kdhub_vision.captioning.metrics import (
    Captions,
    bleu_4,
    cider_d,
    exact_match,
    first_word,
    psnr,
    rouge_l,
    word_accuracy,
)
from kdhub_vision.captioning.networks import Decoder
from kdhub_vision.captioning.students import after_reconstruction, frame_clip, snapshot_captioner
from kdhub_vision.captioning.task import VideoCaptioning
from kdhub_vision.captioning.words import END, START
from kdhub_vision.methods.clip_pairs import pair_loss
from kdhub_vision.methods.snapcap import (
    Caption,
    CaptionOptions,
    Snapcap,
    SnapcapEncoder,
    SnapcapEncoderOptions,
    SnapcapOptions,
    embed_distance,
    fitted,
)

import kdhub
from kdhub.errors import CompatibilityError, DataError, KdhubError
from kdhub.method import Progress
from kdhub.metric import Costed
from kdhub.rows import Signals
from kdhub.specs import MethodSpec

TASK = VideoCaptioning()
CLIPS = {"canvas": 16, "frames": 4, "scale": 1, "digits": 2, "directions": 2, "pairs": 0.0}
X = np.array([[[1.0, 2], [3, 4]], [[5, 6], [7, 8]]])
C = np.array([[[1.0, 0], [1, 1]], [[0, 1], [1, 0]]])


def data(**more):
    return moving_digits(**{**CLIPS, "train": 16, "validation": 1, "test": 8, **more})


def context(**options):
    return SimpleNamespace(seed=0, options=options, facts=TASK.survey([(data(), "train")]))


@pytest.fixture
def student():
    return snapshot_captioner("width=16,channels=8,layers=1,heads=2", context(compression_ratio=4))


# -- the camera -----------------------------------------------------------------------------------------------


def test_the_snapshot_by_hand():
    y = snapshot.measure(X, C)
    assert y.tolist() == [[1, 6], [10, 4]] and C.sum(0).tolist() == [[1, 1], [2, 1]]
    mean = snapshot.normalised(y, C)
    assert mean.tolist() == [[1, 6], [5, 4]]
    assert snapshot.estimates(mean, C).tolist() == [[[1, 0], [5, 4]], [[0, 6], [5, 0]]]
    both = torch.from_numpy(X), torch.from_numpy(C)
    assert snapshot.measure(*both).tolist() == y.tolist()
    assert snapshot.normalised(torch.from_numpy(y), both[1]).tolist() == mean.tolist()


def test_what_holds_of_any_snapshot():
    draw = np.random.default_rng(0)
    x, z, masks = draw.random((8, 6, 5)), draw.random((8, 6, 5)), snapshot.draw_masks(8, 6, 5, 0.5, 3)
    assert np.array_equal(snapshot.measure(x[:1], np.ones((1, 6, 5))), x[0]), "one open mask: the frame itself"
    alike, open_ = snapshot.normalised(snapshot.measure(x[:1].repeat(8, 0), masks), masks), masks.any(0)
    assert np.allclose(alike[open_], x[0][open_]) and np.all(alike[~open_] == 0)
    whole = snapshot.measure(2 * x + 3 * z, masks)
    assert np.allclose(whole, 2 * snapshot.measure(x, masks) + 3 * snapshot.measure(z, masks))
    assert np.array_equal(masks, snapshot.draw_masks(8, 6, 5, 0.5, 3)), "the same of the same seed"
    assert abs(snapshot.draw_masks(8, 32, 32, 0.2, 0).mean() - 0.2) < 0.02


def test_masks_of_a_camera(tmp_path):
    masks = np.ones((4, 16, 16), np.uint8)
    np.savez(tmp_path / "camera.npz", masks=masks)
    made = snapshot_captioner("width=16,channels=8", context(masks=str(tmp_path / "camera.npz")))
    assert made.shape == (4, 16, 16) and bool((made.module.masks == 1).all())
    for name, wrong, said in (
        ("small", np.ones((4, 8, 8)), r"another size: those of small.npy have \(8, 8\), frames \(16, 16\)"),
        ("closed", np.where(np.arange(16) == 5, 0, masks), "a column that no mask opens: closed.npy, column 6"),
        ("grey", masks * 0.5, "grey.npy has no masks of 0 and 1"),
        ("one", masks[:1], "one.npy has 1 masks, expected 2 to 32"),
    ):
        np.save(tmp_path / f"{name}.npy", wrong)
        with pytest.raises(DataError, match=said):
            snapshot_captioner("", context(masks=str(tmp_path / f"{name}.npy")))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "grey.npy").read_bytes()[:200])
    with pytest.raises(DataError, match=r"masks that cannot be read: cut.npy"):
        snapshot_captioner("", context(masks=str(tmp_path / "cut.npy")))


# -- scores ---------------------------------------------------------------------------------------------------


def of(*pairs):
    references = [own if isinstance(own, list) else [own] for _, own in pairs]
    return Captions([*range(len(pairs))], [text for text, _ in pairs], references)


def test_scores_by_hand():
    said = of(("a b c d", "a b c d e"))
    assert bleu_4(said) == pytest.approx(np.exp(1 - 5 / 4))  # every n-gram is there, one word is missing
    assert rouge_l(said) == pytest.approx(2.44 * 0.8 / (0.8 + 1.44))
    assert word_accuracy(said) == pytest.approx(0.8) and exact_match(said) == 0
    clipped = of(("a a a a b c d e", ["a b c d e", "x"]))  # precisions 5/8, 4/7, 3/6, 2/5
    assert bleu_4(clipped) == pytest.approx((5 / 8 * 4 / 7 * 3 / 6 * 2 / 5) ** 0.25)
    assert rouge_l(of(("a c", "a b c"))) == pytest.approx(2.44 * (2 / 3) / (2 / 3 + 1.44))
    assert exact_match(of(("A three, moves UP", "a three moves up."))) == 1
    assert bleu_4(of(("a b c", "a b c"))) == 0, "no four words in a row, and not smoothed"
    assert psnr(Captions([0], ["a"], [["a"]], error=0.01)) == pytest.approx(20)
    assert psnr(said) is None


def test_cider_by_hand():
    """Two captions: idf is log 2 of what one reference has, 0 of what both have."""
    assert cider_d(of(("a b", "a b"), ("c d", "c d"))) == pytest.approx(10 * (1 + 1) / 4)  # no 3-grams, no 4-grams
    # 1-grams: (b) of (b, c): cos = 1/sqrt 2; 2-grams: "a b" of ("a b", "b c"): 1/sqrt 2; one word short
    one = 10 * np.exp(-1 / 72) * (2**-0.5 + 2**-0.5) / 4
    assert cider_d(of(("a b", "a b c"), ("", "a x"))) == pytest.approx(one / 2)
    # said twice, counted no more than the reference has it: min(2, 1) * 1 / (2 * 1)
    assert cider_d(of(("b b", "b"), ("", "x"))) == pytest.approx(10 * np.exp(-1 / 72) * 0.5 / 4 / 2)


def test_losses_by_hand():
    v, w = torch.tensor([[3.0, 4]]), torch.tensor([[4.0, 3]])
    assert float(embed_distance(v, w)) == pytest.approx(0.04, abs=1e-6)
    assert float(embed_distance(v, w, "mse")) == 1.0
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    assert fitted(maps, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert fitted(maps, (4, 4)) is maps and fitted(maps, (8, 4)).shape == (1, 1, 8, 4)
    eye, words = torch.eye(2), torch.tensor([[1, 3, 2], [1, 4, 2]])
    assert float(pair_loss(eye, eye, words, 1.0)) == pytest.approx(np.log(1 + np.exp(-1)), abs=1e-6)
    same = words[:1].repeat(2, 1)  # equal captions are no negatives of each other
    assert float(pair_loss(eye, eye, same, 1.0)) == pytest.approx(np.log(1 + np.exp(-1)) + 0.5, abs=1e-6)


# -- models ---------------------------------------------------------------------------------------------------


def test_a_beam_finds_no_less_likely_captions():
    torch.manual_seed(1)
    decoder, tokens = Decoder(6, 5, 16, 1, 2).eval(), torch.randn(9, 3, 16)
    torch.nn.init.normal_(decoder.out.weight, std=1.0)

    def log_prob(written, n):
        words, total = [START], 0.0
        for number in written.tolist():
            total += float(decoder.next(torch.tensor([words]), tokens[n : n + 1])[0, number].detach())
            words.append(number)
            if number == END:
                return total
        raise AssertionError("no end")

    greedy, wide = decoder.generate(tokens), decoder.generate(tokens, 6**2)
    for n in range(9):
        alone = decoder.generate(tokens[n : n + 1])[0]
        assert torch.equal(alone[alone != 0], greedy[n][greedy[n] != 0])
        assert log_prob(wide[n], n) >= log_prob(greedy[n], n) - 1e-4


def test_order_reaches_the_teachers_vector():
    made = frame_clip("width=16,channels=8", context(frames=4))
    (row,) = data().split("train").select([0]).to_list()
    back = {**row, "frames": row["frames"][::-1]}
    given = made.signals(TASK.preparer(made, None)([row, back]), "embedding")["embedding"]
    assert np.abs(given[0] - given[1]).max() > 1e-4


def test_masks_are_saved_and_a_snapshot_is_enough(student, tmp_path):
    student.save(tmp_path)
    loaded = TASK.load(tmp_path)
    assert torch.equal(loaded.module.masks, student.module.masks)
    frames = np.asarray(data().split("test")[0]["frames"], np.float32) / 255
    y = snapshot.measure(frames, loaded.module.masks.numpy())
    assert loaded.caption(measurement=y) == student.caption(frames=frames)
    with pytest.raises(DataError, match="another size than the masks: 3 x 16, and the masks have 16 x 16"):
        loaded.caption(measurement=y[:3])
    assert first_word(Costed(student, None, lambda n: {})) > 0 and first_word(Costed(student)) is None


def test_the_student_calls_neither_teacher_nor_reconstruction(student):
    """Its network has no part that is one, and writes a caption from the snapshot alone."""
    assert {name for name, _ in student.module.named_children()} == {"encoder", "decoder"}
    batch = {"measurement": torch.zeros(2, 16, 16)}
    assert TASK.forward(student.module.eval(), batch)["text"].shape[0] == 2


def trial(kind, options, student, captions=True):
    method = kind(options, MethodSpec(name="snapcap", target="x:y", needs=("embedding", "maps")))
    rows = data().split("train").to_list()
    teacher = frame_clip("width=12,channels=4", context(frames=4))
    examples = TASK.preparer(student, None, captions=captions)(rows)
    batch = TASK.collate(examples, student)
    given = {k: torch.from_numpy(teacher.signals(examples, k)[k]) for k in ("embedding", "maps")}
    layout = SimpleNamespace(layout=lambda kind: {kind: tuple(given[kind].shape[1:])})
    torch.manual_seed(0)
    method.modules = method.extras(student, layout)
    return method, batch, Signals(given)


def test_terms_are_those_of_the_weights(student):
    now = Progress(0, 1, 0.0)
    terms = {}
    for name, kind, options in (
        ("one", SnapcapEncoder, SnapcapEncoderOptions()),
        ("two", Snapcap, SnapcapOptions()),
        ("none", Snapcap, SnapcapOptions(stage2_distill=0)),
        ("part", SnapcapEncoder, SnapcapEncoderOptions(w_feature=0, w_embed=3, w_recon=0)),
    ):
        method, batch, given = trial(kind, options, student)
        out = TASK.forward(student.module.train(), batch)
        terms[name] = {k: float(v.detach()) for k, v in method.objective(out, given, batch, now).items()}
    assert set(method.modules) == {"reconstruction", "maps", "embedding"}
    assert set(terms["one"]) == {"feature", "embed", "recon"} and set(terms["none"]) == {"caption"}
    for name in terms["one"]:
        assert terms["two"][name] == pytest.approx(0.1 * terms["one"][name], rel=1e-5)
    assert terms["part"] == {"embed": pytest.approx(3 * terms["one"]["embed"], rel=1e-5)}
    following = batch["words"][:, 1:]
    by_hand = -torch.log_softmax(out.logits, -1).gather(2, following.clamp(min=0)[..., None])[..., 0]
    assert terms["none"]["caption"] == pytest.approx(float(by_hand[following >= 0].mean().detach()), rel=1e-5)


def test_noise_is_of_the_row_and_the_step(student):
    batch = TASK.collate(TASK.preparer(student, None)(data().split("train").to_list()), student)
    method = Caption(CaptionOptions(noise_sigma=(0.05, 0.05)), MethodSpec(name="caption", target="x:y"))
    draw = lambda seed, some: method.prepare_batch(some, torch.Generator().manual_seed(seed))["measurement"]  # noqa: E731
    noise = draw(1, batch) - batch["measurement"]
    assert abs(float(noise.std()) - 0.05) < 0.004
    part = draw(1, {name: value[5:7] for name, value in batch.items()})
    assert torch.equal(part, draw(1, batch)[5:7]) and not torch.equal(part, draw(2, batch)[5:7])
    with pytest.raises(ValueError, match="low end"):
        CaptionOptions(noise_sigma=(0.1, 0.0))


# -- bad input ------------------------------------------------------------------------------------------------


def test_bad_rows_are_named(student):
    (good,) = data().split("train").select([0]).to_list()
    frames = np.asarray(good["frames"], np.uint8)
    for change, said in (
        ({"frames": frames[:3]}, "fewer frames than the compression ratio: a.mp4: 3, expected 4"),
        ({"frames": frames[:, :9]}, "another size than the masks: a.mp4: 9 x 16, and the masks have 16 x 16"),
        ({"frames": frames / 100}, r"not bytes or numbers in \[0, 1\]: a.mp4"),
        ({"frames": None, "measurement": [[0.0]]}, "a measurement of another size than the masks: a.mp4: 1 x 1"),
        ({"frames": None}, "a row without frames and without a measurement: a.mp4"),
        ({"caption": " ! "}, "an empty caption: a.mp4"),
        ({"caption": None}, "a clip without a caption: a.mp4"),
        (
            {"caption": good["caption"] + " and on"},
            "longer than the decoder: a.mp4: 6 words, and there is room for 4",
        ),
        ({"caption": "a cat"}, "a word that the decoder does not know: a.mp4: 'cat'"),
    ):
        with pytest.raises(DataError, match=said) as error:
            TASK.preparer(student, None, captions=True)([good, {**good, **change, "video": "a.mp4"}])
        assert error.value.rows == [2]
    y = snapshot.measure(frames / 255, student.module.masks.numpy())
    real = {"measurement": y.tolist(), "caption": good["caption"]}
    assert TASK.preparer(student, None, captions=True)([real])[0]["frames"] is None
    with pytest.raises(DataError, match="a measurement without frames"):
        TASK.preparer(student, None, frames=True)([real])


def test_bad_rows_of_a_file(student, tmp_path):
    student.save(tmp_path)
    rows = [{"frames": np.zeros((n, 16, 16), int).tolist(), "caption": "a one moves left"} for n in (4, 2)]
    (tmp_path / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = {"task": "video-captioning", "method": "caption", "student": f"path:{tmp_path}"}
    recipe |= {"data": {"train": [{"source": str(tmp_path / "clips.jsonl")}]}, "evaluation": {"data": []}}
    with pytest.raises(KdhubError, match=r"clips.jsonl.* fewer frames than the compression ratio \(row 2: 2, expected"):
        kdhub.distill(recipe, out=tmp_path / "run")


def test_what_does_not_fit_is_refused(student):
    clip = frame_clip("width=16,channels=8", context(frames=3))
    teacher = SimpleNamespace(facts=clip.describe())
    with pytest.raises(CompatibilityError, match="clips of 4 x 16 x 16 .* the teacher clips of 3 x 16 x 16"):
        TASK.preparer(student, teacher)
    twice = after_reconstruction("width=16,channels=8,layers=1,heads=2", context(compression_ratio=4))
    with pytest.raises(CompatibilityError, match="frame-clip for clips of"):
        twice.take_clip(clip)
    with pytest.raises(CompatibilityError, match="reconstructs frames first"):
        SnapcapEncoder(SnapcapEncoderOptions(), MethodSpec(name="snapcap-encoder", target="x:y")).check(twice, None)


def test_a_clip_of_transformers_teaches(tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPVisionConfig(**sizes, image_size=16, patch_size=8, projection_dim=6)
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path)
    teacher = kdhub.open_teacher(f"path:{tmp_path}", "video-captioning")
    examples = TASK.preparer(None, teacher)(data().split("train").select([0, 1]).to_list())
    for kind in ("embedding", "maps"):
        assert teacher.signals(examples, kind)[kind].shape[1:] == teacher.layout(kind)[kind]
    assert TASK.mismatch(None, teacher) == "the teacher writes no captions"


# -- the chain ------------------------------------------------------------------------------------------------


def test_the_chain_asks_its_teacher_once(tmp_path, monkeypatch):
    """Stage 1, without a caption, and stage 2; the second run of a stage asks the teacher for nothing."""
    from kdhub_vision.captioning.model import VideoModel

    rows = {"train": [{"source": "moving-digits", "split": "train", "options": {**CLIPS, "train": 160, "test": 60}}]}
    bare = {"train": [{**rows["train"][0], "columns": {"frames": "frames"}}]}
    base = {"task": "video-captioning", "data": rows, "evaluation": {"data": []}}
    options = {"precision": "float32", "batch_size": 32, "lr": 4e-3}
    frame = {"source": "frame-clip:width=16,channels=8", "frames": 4}
    run = kdhub.distill(
        {**base, "method": "clip-pairs", "student": frame, "options": {**options, "epochs": 2}}, out=tmp_path / "clip"
    )
    teacher = f"path:{run.student_folder}"
    start = {"source": "snapshot-captioner:width=32,channels=16,layers=1,heads=2", "compression_ratio": 4, "length": 6}
    stage1 = {**base, "data": bare, "method": "snapcap-encoder", "teacher": teacher, "student": start}
    first = kdhub.distill({**stage1, "options": {**options, "epochs": 2}}, out=tmp_path / "encoder")
    asked = []
    monkeypatch.setattr(
        VideoModel, "signals",
        lambda self, examples, kind, was=VideoModel.signals: (
            asked.append(self.config["network"]) or was(self, examples, kind)
        ),
    )  # fmt: skip
    student = f"path:{first.student_folder}"
    stage2 = {**base, "method": "snapcap", "teacher": teacher, "student": student, "options": {**options, "epochs": 2}}
    kdhub.distill(stage2, out=tmp_path / "captioner")
    assert "frame-clip" not in asked, "the teacher was asked although its signals are stored"
    monkeypatch.undo()
