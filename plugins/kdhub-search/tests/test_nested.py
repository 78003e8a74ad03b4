"""Nested slices and relations: the numbers of the specification, members, and what a step changes."""

import numpy as np
import pytest
import torch
from kdhub_search.families.nested import OFFICIAL, Axes, Size, Space, formula, kept_layers, sizes_of
from kdhub_search.families.nested_text import NestedText
from kdhub_search.families.relations import by_rows, difference, last_attention, pairs, relations
from kdhub_tasks.classification import tiny

import kdhub
from kdhub.errors import CompatibilityError, UnknownNameError, UsageError
from kdhub.families import member_in

SPACES = {
    "a": {"layers": [1, 2], "hidden": [8, 12], "ratio": [1, 1.5], "heads": [1, 2]},
    "b": {"layers": [3], "hidden": [16], "ratio": [2], "heads": [2]},
}
FACTS = {"shape": [8, 8], "classes": [str(i) for i in range(10)], "mean": [[0.3]], "std": [[0.4]]}
IMAGE = "image-classification"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny.text_classifier(tmp_path_factory.mktemp("bert"), layers=3, of="BertForMaskedLM", mask=True)


@pytest.fixture
def texts(bert):
    return kdhub.open_student({"source": f"nested:path:{bert}", "spaces": SPACES}, "fill-mask")


@pytest.fixture
def images():
    source = {"source": "nested:vit:patch=4,width=16,layers=3,heads=2", "spaces": SPACES}
    return kdhub.open_student(source, IMAGE, seed=3, facts=FACTS)


def examples(family):
    if family.task == "fill-mask":
        rows = [{"text": row["text"]} for row in tiny.rows(6)]
        return kdhub.open_task("fill-mask").preparer(family, None)(rows)
    return [{"x": x} for x in np.random.default_rng(0).integers(0, 256, (5, 8, 8), np.uint8)]


# -- numbers of the specification -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "kept"),
    [
        (4, [0, 3, 6, 9]),
        (5, [0, 2, 4, 7, 9]),
        (6, [0, 2, 4, 6, 8, 10]),
        (7, [0, 1, 3, 5, 6, 8, 10]),
        (8, [0, 1, 3, 4, 6, 7, 9, 10]),
        (9, [0, 1, 2, 4, 5, 6, 8, 9, 10]),
        (10, [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]),
        (11, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (12, list(range(12))),
    ],
)
def test_layers_in_whole_numbers(layers, kept):
    assert kept_layers(layers, 12) == kept
    assert kept_layers(layers, 12, "first") == list(range(layers))


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ((12, 768, 4, 12), 109_483_008),
        ((11, 352, 4, 10), 26_774_176),
        ((12, 544, 3, 9), 50_108_928),
        ((11, 352, 4, 8), 26_092_704),
        ((7, 160, 3.5, 10), 6_887_600),
    ],
)
def test_the_formula_of_the_paper(size, count):
    assert formula(Size("", *size)) == count


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("tiny", 4_437_504, 10_710_672),
        ("small", 12_609_408, 28_203_648),
        ("base", 39_211_248, 79_357_440),
    ],
)
def test_official_sub_spaces(name, least, most):
    found = sizes_of(name, Space(**OFFICIAL[name]))
    assert len(found) == 256
    assert (min(map(formula, found)), max(map(formula, found))) == (least, most)


def test_what_members_of_bert_really_have():
    """5 layers of 192, ratio 2.5, 9 heads of 64: more than the formula's 7.53 M."""
    import transformers
    from kdhub_tasks.masked.model import Network
    from kdhub_tasks.narrow import narrow_config

    def make(layers, hidden, wide, heads):
        config = narrow_config(
            transformers.BertConfig(), num_hidden_layers=layers, hidden_size=hidden, intermediate_size=wide,
            num_attention_heads=heads,
        )  # fmt: skip
        return Network(transformers.AutoModelForMaskedLM.from_config(config), 30522)

    size, d, inner, wide = Size("tiny", 5, 192, 2.5, 9), 192, 9 * 64, 480
    layer = 3 * (d * inner + inner) + inner * d + d + 2 * (d * wide) + wide + d + 4 * d
    head = d * d + d + 2 * d + 30522  # the decoder's weights are those of the embeddings
    counted = Axes(make, 64).parameters(size)
    assert counted == (30522 + 512 + 2) * d + 2 * d + 5 * layer + head == 9_177_498
    with torch.device("meta"):
        assert counted == sum(p.numel() for p in make(5, d, wide, 9).parameters())
    assert round(formula(size) / 1e6, 2) == 7.53 < counted / 1e6


def test_relation_heads_of_other_widths():
    widths = {h: 64 * h // 12 for h in range(7, 13)}
    assert [*widths.values()] == [37, 42, 48, 53, 58, 64]
    for heads, width in widths.items():  # columns beyond 12 relation heads do not count
        x = torch.randn(1, 3, 64 * heads)
        changed = x.clone()
        changed[..., 12 * width :] = 9
        assert torch.equal(relations(x, 12, None), relations(changed, 12, None))
        changed[..., 12 * width - 1] = 9
        assert not torch.equal(relations(x, 12, None), relations(changed, 12, None))


def test_the_loss_by_hand():
    teacher, student = torch.eye(2)[None], torch.tensor([[[1.0, 0], [1, 0]]])
    for space, expected in (("raw", 0.25), ("softmax", 0.028819)):
        of = [relations(x, 1, None, space) for x in (student, teacher)]
        assert (difference(*of, None) / 4).item() == pytest.approx(expected, abs=1e-6)
    turned = torch.linalg.qr(torch.randn(2, 2))[0]
    of = [relations(x, 1, None) for x in (student, student @ turned)]
    assert difference(*of, None).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("space", ["softmax", "raw"])
def test_padding_is_neither_query_nor_key(space):
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    x, y = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    padded = difference(*(relations(z, 2, mask, space) for z in (x, y)), mask)
    alone = [difference(*(relations(z[n : n + 1, :many], 2, None, space) for z in (x, y)), None)
             for n, many in ((0, 3), (1, 5))]  # fmt: skip
    assert padded.item() == pytest.approx(sum(alone).item(), rel=1e-5) and pairs(mask) == 34
    assert torch.equal(by_rows(x[mask.bool()], mask), x * mask[..., None])


# -- families -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["texts", "images"])
def test_members_are_cut_out_bit_for_bit_and_counted(kind, request, tmp_path):
    family = request.getfixturevalue(kind)
    assert len(family.members) == 17
    rows, counts = examples(family), []
    for name in family.members:
        family.choose(name)
        given, cut = family.signals(rows, "logits")["logits"], family.cut(name)
        assert all(map(np.array_equal, cut.signals(rows, "logits")["logits"], given))
        counts.append(sum(p.numel() for p in cut.module.parameters()))
        parts = family.module.parts(name).values()
        assert counts[-1] == family.module.axes.parameters(family.module.sizes[name])
        assert counts[-1] == sum(weight[where].numel() for weight, where in parts)
    assert counts == sorted(counts)
    family.choose(None)
    family.save(tmp_path)
    opened = kdhub.open_task(family.task).load(tmp_path)
    assert all(map(np.array_equal, opened.signals(rows, "logits")["logits"], family.signals(rows, "logits")["logits"]))


@pytest.mark.parametrize("kind", ["texts", "images"])
def test_a_member_as_large_as_its_source_gives_what_that_gives(kind, request, bert):
    family = request.getfixturevalue(kind)
    family.choose("b-3x16-r2-h2")
    whole = (
        kdhub.open_task("fill-mask").load(bert)
        if kind == "texts"
        else kdhub.open_student("vit:patch=4,width=16,layers=3,heads=2", IMAGE, seed=3, facts=FACTS)
    )
    rows = examples(family)
    for given, expected in zip(family.signals(rows, "logits")["logits"], whole.signals(rows, "logits")["logits"]):
        np.testing.assert_allclose(given, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["texts", "images"])
def test_a_step_on_a_member_leaves_all_others_as_they_were(kind, request):
    """With moments of an earlier step and a large decay."""
    family = request.getfixturevalue(kind)
    module, batch = family.module, family.collate(examples(family))
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.5)
    for name in ("a-2x12-r1.5-h2", "a-1x8-r1-h1"):
        before = {key: value.clone() for key, value in module.named_parameters()}
        others = module.others([name])
        family.choose(name)
        optimiser.zero_grad(set_to_none=True)
        out = module(batch)
        (out["logits"].square().sum() + out["queries"].square().sum()).backward()
        optimiser.step()
        module.put_back(others)
        own = {weight: where for weight, where in module.parts(name).values()}
        for key, value in module.named_parameters():
            same = value == before[key]
            if value in own:
                assert not same[own[value]].all(), key
                same[own[value]] = True
            assert same.all(), key


def test_slices_are_nested(texts):
    module = texts.module
    smallest = module.spaces["a"][0]
    for name in module.spaces["a"]:
        theirs = {weight: where for weight, where in module.parts(name).values()}
        for weight, where in module.parts(smallest).values():
            assert weight not in theirs or all(a.stop <= b.stop for a, b in zip(where, theirs[weight]))


def test_only_what_some_member_has_is_kept(texts):
    """Of three layers the members of one or two have the first two; those of width 12 nothing beyond."""
    assert texts.module.layers == {"a": [0, 1], "b": [0, 1, 2]}
    embeddings = texts.module.networks["a"].model.bert.embeddings.word_embeddings
    assert embeddings.weight.shape[1] == 12


@pytest.mark.parametrize(
    ("spaces", "said"),
    [
        ({"a": {**SPACES["a"], "layers": [4]}}, r"layers=4, there 3"),
        ({"a": {**SPACES["a"], "hidden": [17]}}, r"hidden=17, there 16"),
        ({"a": {**SPACES["a"], "ratio": [3]}}, "ratio must be at most"),
        ({"a": {**SPACES["a"], "heads": [3]}}, r"heads=3, there 2"),
    ],
)
def test_members_larger_than_their_source(spaces, said, bert):
    with pytest.raises(UsageError, match=said):
        kdhub.open_student({"source": f"nested:path:{bert}", "spaces": spaces}, "fill-mask")


@pytest.mark.parametrize("spaces", [{}, {"a": {**SPACES["a"], "heads": []}}, ["huge"], {"a": {"layers": [1]}}])
def test_empty_and_unknown_spaces(spaces, bert):
    with pytest.raises(Exception, match="spaces|sub-space") as error:
        kdhub.open_student({"source": f"nested:path:{bert}", "spaces": spaces}, "fill-mask")
    assert isinstance(error.value, kdhub.errors.KdhubError)


def test_a_member_that_is_not_there(texts, tmp_path):
    with pytest.raises(UnknownNameError) as error:
        member_in(texts, tmp_path, "a-1x8-r1-h3", "f")
    assert "a-1x8-r1-h2" in error.value.hint


def test_networks_without_projections():
    with pytest.raises(CompatibilityError, match="query, key and value"):
        last_attention(torch.nn.Linear(2, 2))
    assert issubclass(NestedText, torch.nn.Module)
