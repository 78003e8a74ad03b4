"""The numbers of DisWOT's specification, and what holds for any networks."""

import pytest
import torch
from kdhub_search import scores
from kdhub_search.scores import distance, relations, semantics

import kdhub
from kdhub.errors import CompatibilityError

FACTS = {"shape": [8, 8], "classes": [str(i) for i in range(10)], "mean": [[0.3]], "std": [[0.4]]}


def student(source: str, seed: int = 0):
    return kdhub.open_student(source, "image-classification", seed=seed, facts=FACTS)


def images(many: int = 6) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {"x": torch.rand(many, 8, 8), "labels": torch.arange(many) % 10}


def test_relations_of_three_images():
    of_teacher, of_student = relations(torch.tensor([[1.0, 0], [0, 1], [1, 1]])), relations(torch.eye(3))
    expected = torch.tensor([[0.707107, 0, 0.707107], [0, 0.707107, 0.707107], [0.408248, 0.408248, 0.816497]])
    torch.testing.assert_close(of_teacher, expected, atol=1e-6, rtol=0)
    assert distance(of_teacher, of_student, "norm", 9).item() == pytest.approx(1.240395, abs=1e-6)
    assert distance(of_teacher, of_student, "squared", 9).item() == pytest.approx(0.170953, abs=1e-6)


def test_class_maps_of_one_image():
    of_teacher = semantics(torch.tensor([[[1.0, 0, 0, 0], [1, 0, 0, 1]]]))
    of_student = semantics(torch.tensor([[[0.0, 1, 0, 0], [1, 0, 1, 0]]]))
    expected = torch.tensor([[[0.707107, 0.707107], [0.447214, 0.894427]]])
    torch.testing.assert_close(of_teacher, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(of_student, torch.eye(2)[None])
    assert distance(of_teacher, of_student, "norm", 4).item() == pytest.approx(0.892711, abs=1e-6)
    assert distance(of_teacher, of_student, "squared", 4).item() == pytest.approx(0.199233, abs=1e-6)
    # Class maps are the classifier's mean of channels at each position.
    features, weight = torch.tensor([[[1.0, 2], [3, 4]]]), torch.tensor([[1.0, 0], [0.5, -1]])
    assert scores.class_maps(features, weight).tolist() == [[[1.0, 2.0], [-2.5, -3.0]]]


def test_gradients_of_the_classifier():
    of_teacher, of_student = torch.tensor([[3.0, 4], [0, 1]]), torch.tensor([[4.0, 3], [1, 0]])
    both = [scores.gradient_semantics(g) for g in (of_teacher, of_student)]
    assert distance(*both, "squared", 2).item() == pytest.approx(0.54, abs=1e-6)
    weight = torch.zeros(2, 2, requires_grad=True)
    logits = torch.tensor([[1.0, 2], [0, 1]]) @ weight.T
    gradient = scores.classifier_gradient(logits, torch.tensor([0, 1]), weight)
    assert gradient.tolist() == [[-0.25, -0.25], [0.25, 0.25]]


def test_relations_know_neither_rotation_nor_scale():
    torch.manual_seed(0)
    features, turn = torch.randn(5, 4), torch.linalg.qr(torch.randn(4, 4))[0]
    torch.testing.assert_close(relations(3 * features @ turn), relations(features))


def test_a_score_without_a_teacher():
    # Two images without correlation: eigenvalues 1 and 1, so -2 (log 1.00001 + 1 / 1.00001).
    assert scores.eigenvalue_score(torch.eye(2, dtype=torch.float64)) == pytest.approx(-2, abs=1e-4)
    # The same image twice: eigenvalues 2 and 0, and 1 / k = 100,000 decides.
    assert scores.eigenvalue_score(torch.ones(2, 2, dtype=torch.float64)) == pytest.approx(-99989.68, abs=0.1)
    network = student("residual:width=2,stage1=1,stage2=1,stage3=1")
    assert scores.jacobian_score(network.module, images()) > scores.jacobian_score(
        network.module, {"x": images()["x"][:1].expand(6, -1, -1) + torch.rand(6, 1, 1) * 1e-6}
    )


@pytest.mark.parametrize(
    ("source", "layer", "classifier"),
    [
        ("residual:width=3,stage1=1,stage2=2,stage3=1", "layer:layer3:all", "linear"),
        ("vit:patch=4,width=8,layers=1,heads=2", "layer:norm:all", "head"),
        ("mlp:6", "layer:head:input", "head"),  # a map of one position
    ],
)
def test_equal_networks_are_equal_and_batch_norms_learn_nothing(source, layer, classifier):
    network = student(source)
    was = network.module.training
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    found = scores.last_map(network.module, {"x": images(2)["x"]}, 10)
    assert (found.layer, found.classifier) == (layer, classifier)
    for semantic in ("cam", "grad"):
        same = [scores.view(scores.fresh(network, 3), images(), 10, semantic, True) for _ in range(2)]
        other = scores.view(scores.fresh(network, 4), images(), 10, semantic, True)
        scores.view(network.module, images(), 10, semantic, True)
        assert distance(same[0].semantic, same[1].semantic, "norm", 1) == 0  # the best score there is
        assert distance(same[0].relation, same[1].relation, "norm", 1) == 0
        assert distance(same[0].relation, other.relation, "norm", 36) > 0
    after = network.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert network.module.training == was


def test_features_are_those_that_give_the_logits():
    """The mean over positions of the class maps, and the bias, are the logits of a network that ends so."""
    network = student("residual:width=4,stage1=1,stage2=1,stage3=1")
    where = scores.last_map(network.module, {"x": images(2)["x"]}, 10)
    features, logits = scores._run(network.module, {"x": images()["x"]}, where.layer)
    maps = scores.class_maps(features, where.weight(network.module))
    torch.testing.assert_close(maps.mean(-1) + network.module.linear.bias, logits)


def test_weights_from_a_normal_distribution():
    weights = scores.fresh(student("residual:width=8,stage1=1,stage2=1,stage3=1"), 0, "gaussian").layer3[0].conv2.weight
    assert weights.std().item() == pytest.approx(1, abs=0.05)


def test_refused():
    network = student("residual:width=2,stage1=1,stage2=1,stage3=1")
    with pytest.raises(CompatibilityError, match="no linear classifier of 7 classes"):
        scores.last_map(network.module, {"x": images(2)["x"]}, 7)
    for parameter in network.module.parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.raises(CompatibilityError, match="norm 0"):
        scores.view(network.module, images(), 10, "cam", True)
    with pytest.raises(CompatibilityError, match="other weights"):
        scores.fresh(object.__new__(kdhub.DatasetStudent), 0)


def test_transformers_and_timm_are_made_again():
    transformers = pytest.importorskip("transformers")
    from kdhub_tasks.classification.vision import ImageClassifier

    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=10
    )
    network = ImageClassifier(transformers.ResNetForImageClassification(config).eval(), None)
    inputs = {"x": torch.rand(4, 1, 32, 32)}
    made = [scores.fresh(network, seed) for seed in (0, 0, 1)]
    weights = [module.model.classifier[1].weight for module in made]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert ":all" in scores.last_map(made[0], inputs, 10).layer  # before pooling
    assert scores.view(made[0], inputs, 10, "cam", True).semantic.shape == (4, 10, 10)
