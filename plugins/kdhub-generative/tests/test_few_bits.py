"""Few bits: the method's options, images as sentences, and what a short training shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kdhub_generative.few_bits.token_images import CodeBook, letter, number
from kdhub_generative.methods.topkld import TopKld
from kdhub_tasks import quantization as q
from kdhub_tasks.divergences import forward_kl, top_k_kl
from pydantic import ValidationError

import kdhub
from kdhub.errors import DataError, UsageError


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"form": "renormalized", "assignment": "fwd_top"}, "assignment=fwd_top"),
        ({"k": 3, "top_p": 0.9}, "one of k and top_p must be unset"),
        ({"w_explicit": 0, "w_implicit": 0}, "must be above 0"),
        ({"k": -1}, "k"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, said):
    with pytest.raises(ValidationError, match=said):
        TopKld.Options(**options)


def test_a_top_k_above_the_vocabulary_is_named():
    class Student:
        def width(self, kind):
            return (10,)

    with pytest.raises(UsageError, match=r"k=11, classes=10"):
        TopKld(TopKld.Options(k=11)).check(Student(), None)


def test_images_are_sentences_of_their_nearest_words():
    data = kdhub.open_data("token-images:digits", options={"codes": 16})
    assert {*data.splits} == {"train", "validation", "test"}
    text, image = data.split("test")[0]["text"], kdhub.open_data("digits").split("test")[0]["image"]
    assert len(text) == 16 and len(text.encode()) == 16
    book = CodeBook(kdhub.open_data("digits"), 16, 2)
    drawn = book.image(text, 8)[0]
    assert book.sentence(drawn) == text
    assert np.abs(drawn - np.asarray(image)).mean() < 30  # of 255
    assert [number(letter(n)) for n in (0, 93, 94, 4095)] == [0, 93, 94, 4095]
    with pytest.raises(DataError, match="patches of 3 do not divide 8 x 8"):
        kdhub.open_data("token-images:digits", options={"patch": 3}).split("train")
    with pytest.raises(UsageError, match="codes=1"):
        kdhub.open_data("token-images:digits", options={"codes": 1})


def test_trained_is_nearer_than_rounded_and_the_naive_form_a_wreck():
    """Two bits of a perceptron that is led by itself; a second of training."""
    torch.manual_seed(0)
    x = torch.randn(512, 16)
    teacher = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 24))
    with torch.no_grad():
        teacher[2].weight *= 6
        z = teacher(x)

    def apart(steps, **settings):
        student = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 24))
        student.load_state_dict(teacher.state_dict())
        for layer in (student[0], student[2]):
            q.put_on(layer, q.Scheme(2, 16))
        optimiser = torch.optim.Adam(student.parameters(), 3e-3)
        for _ in range(steps):
            optimiser.zero_grad()
            top_k_kl(student(x), z, 5, **settings).mean().backward()
            optimiser.step()
        with torch.no_grad():
            return forward_kl(student(x), z).mean().item()

    rounded, trained, naive = apart(0), apart(150), apart(150, form="naive")
    assert trained < 0.8 * rounded
    assert naive > 2 * trained


def test_the_front_is_of_all_bits_with_scales(tmp_path):
    import json

    from kdhub_generative.few_bits import scaling
    from safetensors.torch import save_file

    for name, width, value in (("small", 4, 0.3), ("large", 8, 0.1), ("worse", 6, 0.5)):
        (tmp_path / name / "student").mkdir(parents=True)
        weights = {"a.weight_packed": torch.zeros(width, dtype=torch.int32), "a.weight_scale": torch.zeros(2).half()}
        save_file(
            {**weights, "a.weight_shape": torch.zeros(2).long()}, tmp_path / name / "student" / "model.safetensors"
        )
        measure = {"metric": "kl", "subject": "student", "value": value, "higher_is_better": False}
        (tmp_path / name / "report.json").write_text(json.dumps({"measures": [measure]}))
    found = scaling.points([tmp_path / n for n in ("worse", "large", "small")])
    assert [(p.name, p.bits, p.best) for p in found] == [
        ("small", 160, True),
        ("worse", 224, False),
        ("large", 288, True),
    ]
    scaling.plot(found, tmp_path / "bits.png")
    assert (tmp_path / "bits.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="'nll'"):
        scaling.points([tmp_path / "small"], "nll")
