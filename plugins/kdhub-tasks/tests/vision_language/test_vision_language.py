"""Images and texts: rows, pixels by three families, bad input, students, stored signals."""

import io
import json

import numpy as np
import pytest
import torch
from kdhub_tasks.language.generation import Generation
from kdhub_tasks.vision_language import tiny
from kdhub_tasks.vision_language.reader import Ids, filled
from kdhub_tasks.vision_language.students import from_config
from PIL import Image

import kdhub
from kdhub.errors import CompatibilityError, DataError, UntrustedError
from kdhub.rows import prepared
from kdhub.student import BuildContext

from . import families

TASK = kdhub.open_task("image-text-to-text")


def picture(height=16, width=16, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def file_of(image):
    held = io.BytesIO()
    Image.fromarray(image).save(held, "PNG")
    return {"bytes": held.getvalue(), "path": "a.png"}


ROWS = [
    {"image": picture(), "images": None, "prompt": "what?", "response": "ab"},
    {"image": None, "images": [picture(16, 32, 1), file_of(picture(24, 16, 2))], "prompt": "alike?", "response": "c"},
    {"image": None, "images": None, "prompt": "a text alone?", "response": "d"},
]


@pytest.fixture(scope="module")
def llava():
    return families.llava()


def read(model, rows, **settings):
    return TASK.preparer(model, None, **settings)(rows)


def fault(model, row, **settings):
    (example,) = prepared(TASK.preparer(model, None, **settings), [row])
    assert example["length"] == 0
    return example["fault"]


@pytest.mark.parametrize(
    "family", [families.llava, families.qwen, families.smolvlm, lambda: families.smolvlm("Idefics3")]
)
@torch.no_grad()
def test_a_family_sees_what_the_library_sees(family):
    """One by one, together, and as the library itself: outputs and what is written."""
    model = family()
    examples = read(model, ROWS)
    together = model.module(model.collate(examples)).logits
    alone = torch.cat([model.module(model.collate([example])).logits for example in examples])
    assert torch.allclose(together, alone, atol=1e-5)
    prompts = [example["ids"] for example in read(model, ROWS, prompts=4)]
    written = model.generate(prompts, Generation(max_new_tokens=4), 0)
    network, many = model.module.model, iter(alone)
    for example, prompt, ids in zip(examples, prompts, written):
        batch = model.collate([example])
        how = {"input_ids": batch["input_ids"], **model.module.more(batch)}
        own = network(attention_mask=batch["attention_mask"], **how).logits[0, batch["at"], : model.module.classes]
        assert torch.allclose(own, torch.stack([next(many) for _ in own]), atol=1e-5)
        (begun,), more = model.module.opened([prompt])
        begun = torch.tensor([begun])
        ends = sorted(model.own_settings.ends)
        how = {
            "max_new_tokens": 4,
            "do_sample": False,
            "eos_token_id": ends,
            "suppress_tokens": list(model.module.barred),
        }
        given = network.generate(input_ids=begun, attention_mask=torch.ones_like(begun), **more, **how)
        assert given[0, begun.shape[1] :].tolist() == ids


def test_several_samples_leave_a_batch_one_by_one():
    """Positions that a network remembers of pictures go with their rows."""
    model = families.qwen()
    prompts = [read(model, ROWS[:1], prompts=8)[0]["ids"]] * 4
    how = Generation(max_new_tokens=8, temperature=1.0, stop=("e", "a", "\x00"))
    apart = [model.generate([prompt], how, 0, rows=[n])[0] for n, prompt in enumerate(prompts)]
    assert model.generate(prompts, how, 0) == apart


def test_the_answer_alone_is_learnt(llava):
    one, two, _ = read(llava, ROWS)
    spelled = llava.tokenizer.decode(one["labels"], skip_special_tokens=True)
    assert spelled == "ab" and one["bytes"] == 2 and one["length"] == 13  # <s>, 4 of the image, "what?", "ab", </s>
    assert two["length"] == 1 + 2 * 4 + 6 + 2
    batch = TASK.collate([one, two], llava)
    token = llava.reader.token
    assert (batch["input_ids"] == token).sum(1).tolist() == [4, 8] and token not in batch["labels"]
    after = batch["input_ids"].flatten()[batch["at"] + 1]  # what follows the place that predicts it
    assert after.tolist() == batch["labels"].tolist()


def test_places_of_images(llava):
    """Marked in the text, by parts of a message, or before the prompt."""
    several = [picture(seed=1), picture(seed=2)]
    rows = {
        "before": {"images": several, "prompt": "x", "response": "y"},
        "marked": {"images": several, "prompt": "<image>x<image>", "response": "y"},
    }
    ids = {name: read(llava, [row])[0]["ids"] for name, row in rows.items()}
    token, x = llava.reader.token, llava.tokenizer("x")["input_ids"][-1]
    assert ids["before"][1:4] == [token, token, x] and ids["marked"][1:4] == [token, x, token]
    answer = {"role": "assistant", "content": "y"}
    parts = [{"type": "text", "text": "x"}, {"type": "image"}]
    said = {"images": several[:1], "messages": [{"role": "user", "content": parts}, answer]}
    plain = {"images": several[:1], "messages": [{"role": "user", "content": "x<image>"}, answer]}
    assert read(llava, [said])[0]["ids"] == read(llava, [plain])[0]["ids"]
    first = {"images": several[:1], "messages": [{"role": "user", "content": "x"}, answer]}
    (begun,) = read(llava, [first])
    assert begun["ids"].index(token) < begun["ids"].index(x) and begun["labels"]
    both = {"images": several, "prompt": "x", "chosen": "y", "rejected": "z"}
    (group,) = read(llava, [both], groups=True)
    assert all(isinstance(s["ids"], Ids) and len(s["ids"].images) == 2 for s in group["sequences"])


def test_a_changed_pixel_is_another_row(llava):
    other = picture()
    other[3, 4, 1] ^= 1
    contents = {
        read(llava, [{**ROWS[0], "image": image}])[0]["content"] for image in (picture(), other, file_of(other))
    }
    assert len(contents) == 2  # a file is its pixels


BAD = {
    "it is none of": {"image": {"bytes": b"no picture", "path": "broken.png"}, "prompt": "x", "response": "y"},
    "broken.png": {"image": {"bytes": b"\x89PNG\r\n\x1a\n...", "path": "broken.png"}, "prompt": "x", "response": "y"},
    "and no image": {"prompt": "what is <image>?", "response": "y"},
    "2 places for images (<image>) in its text and 1 images": {
        "image": picture(),
        "prompt": "<image><image>",
        "response": "y",
    },
    "in its answer": {"image": picture(), "prompt": "x", "response": "<image>"},
    "longer than the model takes with its images": {"images": [picture()] * 20, "prompt": "x", "response": "y"},
    "so its answer would be cut": {"image": picture(), "prompt": "x", "response": "y" * 80},
    "both `image` and `images`": {"image": picture(), "images": [picture()], "prompt": "x", "response": "y"},
}


@pytest.mark.parametrize("cause", BAD)
def test_bad_rows_are_named_and_nothing_else_is_lost(llava, cause):
    told = fault(llava, BAD[cause])
    assert cause in told or cause in getattr(told, "where", "")
    rows = [{"image": None, "images": None, **row} for row in (ROWS[0], BAD[cause], ROWS[2])]
    found = prepared(TASK.preparer(llava, None), rows)
    assert ["fault" in example for example in found] == [False, True, False]
    assert found[0]["ids"] == read(llava, ROWS[:1])[0]["ids"]


def test_a_bad_row_stops_a_run_by_its_number(tmp_path):
    lines = [{"files": "a.png", "prompt": "x", "response": "y"}] * 3
    (tmp_path / "a.png").write_bytes(file_of(picture())["bytes"])
    (tmp_path / "b.png").write_bytes(b"no picture")
    lines[1] = {**lines[1], "files": "b.png"}
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = f"path:{tmp_path / 'train.jsonl'}"
    data = {"source": source, "columns": {"image": "files"}, "options": {"files": "files"}}
    recipe = TASK.tiny_recipe(tmp_path) | {
        "task": TASK.name, "method": "supervised", "data": {"train": [data]}, "evaluation": {"data": []},
    }  # fmt: skip
    del recipe["teacher"]
    with pytest.raises(DataError, match=r"1 of 3 rows is bad.*row 2: b.png"):
        kdhub.distill(recipe, out=tmp_path / "run", page=False)
    skipping = recipe | {"on_bad_rows": "skip", "options": {"max_steps": 1}}
    assert kdhub.distill(skipping, out=tmp_path / "other", page=False).student_folder.exists()


def test_a_row_without_an_answer_or_a_prompt_is_refused(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"image": [[0, 255], [255, 0]], "text": "x"}\n')
    with pytest.raises(DataError, match="needs 'prompt' and 'response'"):
        TASK.training_table([(kdhub.open_data(f"path:{tmp_path / 'train.jsonl'}"), "train")])


@torch.no_grad()
def test_unlike_processors_see_pixels_of_their_own(llava):
    """A live teacher that cuts pictures into other patches reads a student's batch by its own processor."""
    other = from_config(tiny.configuration(1, patch=4), BuildContext(None, None, 0))
    examples = TASK.preparer(llava, other)(ROWS)
    batch, own = TASK.collate(examples, llava), TASK.collate(examples, other)
    assert batch["input_ids"].shape[1] != own["input_ids"].shape[1]
    assert torch.equal(other.module(batch).logits, other.module(own).logits)
    assert examples[0]["length"] == 1 + 16 + 5 + 3  # what the one takes that takes more


def test_tiles_are_filled_up_with_empty_ones():
    assert filled([np.ones((1, 2, 3)), np.ones((1, 1, 3))])[:, :, 0].tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize("family", [families.llava, families.qwen])
def test_students_of_fewer_layers_freeze_and_are_loaded_alike(family, tmp_path):
    """`layers:1` of the decoder, its vision part frozen; the library loads the folder to the same logits."""
    from kdhub_tasks.layers import blocks, keep_blocks
    from transformers import AutoModelForImageTextToText

    model = family()
    vision = {n: p.clone() for n, p in model.module.model.named_parameters() if "vis" in n}
    keep_blocks(model.module.model, [0])
    assert len(blocks(model.module.model)) == 1
    student = model.like(model.module.model, {})
    student.freeze(["vision"])
    learnt = {n for n, p in student.module.model.named_parameters() if p.requires_grad}
    assert learnt and not learnt & vision.keys()
    student.save(tmp_path)
    again, batch = TASK.load(tmp_path), student.collate(read(student, ROWS))
    with torch.no_grad():
        plain = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
        how = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], **student.module.more(batch)}
        own = plain(**how).logits.flatten(0, 1)[batch["at"], : student.module.classes]
        assert torch.allclose(own, student.module(batch).logits, atol=1e-5)
        assert torch.allclose(again.module(again.collate(read(again, ROWS))).logits, own, atol=1e-5)


def test_a_part_that_is_not_there_cannot_be_frozen():
    with pytest.raises(CompatibilityError, match="no part that could be frozen as its projector"):
        model = families.llava()
        del model.module.model.model.multi_modal_projector
        model.freeze(["projector"])


def test_an_adapter_is_the_decoders(llava, tmp_path):
    student = families.llava()
    context = BuildContext(None, None, 0, options={"lora": {"r": 2}})
    TASK.configure(student, context)
    learnt = [n for n, p in student.module.model.named_parameters() if p.requires_grad]
    assert learnt and all("language_model" in n for n in learnt)
    student.save(tmp_path)
    batch = llava.collate(read(llava, ROWS))
    with torch.no_grad():
        assert torch.allclose(TASK.load(tmp_path).module(batch).logits, llava.module(batch).logits, atol=1e-5)


def test_hostile_folders_are_refused(tmp_path):
    families.llava(1).save(tmp_path)
    for name, change in (
        ("processor_config.json", {"auto_map": {"AutoProcessor": "evil.Processor"}}),
        ("processor_config.json", {"image_processor": {"image_processor_type": "os.system"}}),
        ("config.json", {"auto_map": {"AutoModel": "evil.Model"}}),
    ):
        was = (tmp_path / name).read_text()
        (tmp_path / name).write_text(json.dumps(json.loads(was) | change))
        with pytest.raises(UntrustedError):
            TASK.load(tmp_path)
        (tmp_path / name).write_text(was)
    (tmp_path / "processor_config.json").unlink()
    with pytest.raises(UntrustedError, match="how it sees images"):
        TASK.load(tmp_path)


def test_questions_about_digits():
    """As many of each; digits of one split are in no picture of another; answers are those of the pictures."""
    from sklearn.datasets import load_digits

    data = kdhub.open_data("digit-questions:which,sum,larger,count", options={"rows": 40, "held_out": 8})
    digits = load_digits()
    bits = (digits.images * 15.9375).astype(np.uint8)
    known = {image.tobytes(): int(label) for image, label in zip(bits, digits.target)}
    seen = {}
    for split in data.splits:
        rows = data.split(split).to_list()
        assert {sum(row["question"] == q for row in rows) for q in ("which", "count")} == {len(rows) // 4}
        for row in rows:
            image = np.asarray(row["image"], np.uint8)
            cells = [image[y : y + 8, x : x + 8].tobytes() for y in (0, 8) for x in (0, 8)]
            shown = [known[cell] for cell in cells if cell in known]
            answer = {"which": shown[0], "sum": sum(shown), "larger": max(shown), "count": len(shown)}
            assert row["response"] == str(answer[row["question"]])
            seen.setdefault(split, set()).update(cell for cell in cells if cell in known)
    assert not seen["train"] & seen["test"] and not seen["train"] & seen["validation"]
