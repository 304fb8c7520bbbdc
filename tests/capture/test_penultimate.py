"""`penultimate` is what the classifier receives, or what a model without one returns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline import capture
from pipeline.capture.trace import compared, record


def penultimate(module: nn.Module, images: torch.Tensor) -> str:
    alone = record(module, images[:1], penultimate=True)
    return str(compared(record(module, images), alone).penultimate)


def torchvision_model(name: str) -> nn.Module:
    from torchvision import models

    model: nn.Module = models.get_model(name, weights=None)
    return model.eval()


def timm_model(name: str, **arguments: object) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", "fc:in"),
        ("alexnet", "classifier.6:in"),
        ("squeezenet1_1", "classifier.1:in"),
        ("mobilenet_v3_small", "classifier.3:in"),
        ("convnext_tiny", "classifier.2:in"),
        ("densenet121", "classifier:in"),
        ("shufflenet_v2_x0_5", "fc:in"),
    ],
)
def test_torchvision_models(name: str, expected: str) -> None:
    assert penultimate(torchvision_model(name), torch.randn(3, 3, 64, 64)) == expected


SMALL_VIT = {"depth": 1, "embed_dim": 24, "num_heads": 3, "img_size": 32, "patch_size": 8}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", SMALL_VIT),
        ("deit_tiny_distilled_patch16_224", SMALL_VIT),
        ("resnet10t", {}),
        ("mobilenetv3_small_050", {}),
        ("convnext_atto", {}),
        ("convnext_atto", {"head_hidden_size": 16}),
    ],
)
def test_timm_models_with_and_without_classifier(name: str, arguments: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = timm_model(name, **arguments)
    images = torch.randn(3, 3, 32, 32)
    place = penultimate(model, images)
    with torch.inference_mode(), capture(model, place) as found:
        model(images)
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
    if name.startswith("deit"):  # timm's are the mean of two classifiers' inputs
        expected = model.forward_features(images)[:, 0]
    torch.testing.assert_close(found[place].reshape(expected.shape), expected)
    bare = timm_model(name, num_classes=0, **arguments)
    place = penultimate(bare, images)
    with torch.inference_mode(), capture(bare, place) as found:
        expected = bare(images)
    torch.testing.assert_close(found[place], expected)


SIZES = {
    "image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("ViTModel", "output[pooler_output]"),
        ("ViTForImageClassification", "classifier:in"),
        ("Dinov2Model", "output[pooler_output]"),
        ("Dinov2ForImageClassification", "classifier:in"),
        ("ViTMAEModel", "output[last_hidden_state]"),
        ("CLIPVisionModel", "output[pooler_output]"),
        ("CLIPVisionModelWithProjection", "output[image_embeds]"),
    ],
)
def test_transformers_models(kind: str, expected: str) -> None:
    import transformers

    model = getattr(transformers, kind)
    module = model(model.config_class(**SIZES)).eval()
    assert penultimate(module, torch.randn(3, 3, 32, 32)) == expected


class Head(nn.Module):
    """Maps, pooled, then whatever the case has as its end."""

    def __init__(
        self, end: nn.Module, after: Callable[..., object] = lambda scores: scores
    ) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = end
        self.after = after

    def forward(self, images: torch.Tensor) -> object:
        return self.after(self.head(self.trunk(images)))


def pooled(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers)


def trunk_of_vgg() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    ("end", "after", "expected"),
    [
        (pooled(nn.Linear(8, 4)), None, "head.2:in"),
        (pooled(nn.Linear(8, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 4)), None, "head.5:in"),
        (pooled(nn.LayerNorm(8), nn.Linear(8, 4), nn.Dropout()), None, "head.3:in"),
        (pooled(nn.Linear(8, 4), nn.Softmax(1)), None, "head.2:in"),
        (pooled(nn.Linear(8, 4)), lambda scores: F.log_softmax(scores, 1), "head.2:in"),
        (pooled(nn.Linear(8, 4)), lambda scores: {"logits": scores}, "head.2:in"),
        (pooled(nn.Linear(8, 4)), lambda scores: (scores, scores.new_ones(1)), "head.2:in"),
        (nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU()), lambda m: m.mean((2, 3)), "head.0:in"),
        (pooled(nn.Identity()), None, "output"),
        (pooled(nn.Linear(8, 8), nn.ReLU(), nn.Identity()), None, "output"),
        (pooled(nn.Linear(8, 8), nn.LayerNorm(8)), None, "output"),
        (trunk_of_vgg(), None, "output"),
        (nn.Conv2d(8, 8, 3), lambda maps: maps.mean((2, 3)), "output"),
        (nn.Identity(), lambda maps: [maps, maps[..., ::2]], "None"),
        (pooled(nn.utils.parametrizations.weight_norm(nn.Linear(8, 4, bias=False))), None,
         "head.2:in"),
    ],
)  # fmt: skip
def test_heads_of_many_kinds(
    end: nn.Module, after: Callable[..., object] | None, expected: str
) -> None:
    module = (Head(end) if after is None else Head(end, after)).eval()
    assert penultimate(module, torch.randn(3, 3, 16, 16)) == expected


class Branches(nn.Module):
    """A classifier, and another branch that is called after it."""

    def __init__(self, classifier: nn.Module, join: Callable[..., object]) -> None:
        super().__init__()
        self.trunk, self.classifier, self.join = nn.Conv2d(3, 8, 3), classifier, join
        self.other = nn.Sequential(nn.Conv2d(8, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1))

    def forward(self, images: torch.Tensor) -> object:
        maps = self.trunk(images)
        return self.join(self.classifier(maps), self.other(maps))


def enlarged(maps: torch.Tensor) -> torch.Tensor:
    return F.interpolate(maps, scale_factor=2, mode="bilinear")


@pytest.mark.parametrize(
    ("classifier", "join", "expected"),
    [
        (nn.Conv2d(8, 4, 1), lambda a, b: {"out": enlarged(a), "x": enlarged(b)}, "classifier:in"),
        (nn.Conv2d(8, 4, 1), lambda a, b: {"out": enlarged(b), "x": enlarged(a)}, "other.2:in"),
        (nn.Conv2d(8, 4, 1), lambda a, b: enlarged(a), "classifier:in"),
        (pooled(nn.Linear(8, 5)), lambda a, b: {"logits": a, "boxes": b}, "classifier.2:in"),
        (pooled(nn.Linear(8, 5)), lambda a, b: (a, b.mean((2, 3))), "classifier.2:in"),
        (pooled(nn.Linear(8, 5)), lambda a, b: a.add_(b.mean()), "output"),
    ],
)
def test_a_branch_after_the_classifier(
    classifier: nn.Module, join: Callable[..., object], expected: str
) -> None:
    torch.manual_seed(0)
    module = Branches(classifier, join).eval()
    assert penultimate(module, torch.randn(3, 3, 16, 16)) == expected


class Distilled(nn.Module):
    """The mean of two classifiers, each behind a norm, as in LeViT."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4)) for _ in range(2)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.mean((2, 3))
        scores: torch.Tensor = (self.first(means) + self.second(means)) / 2
        return scores


def test_the_first_of_two_classifiers_behind_norms() -> None:
    assert penultimate(Distilled().eval(), torch.randn(3, 3, 8, 8)) == "first.1:in"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_mobilenet_v3_large"])
def test_an_auxiliary_classifier_of_maps(name: str) -> None:
    from torchvision.models import get_model

    model = get_model(name, weights=None, weights_backbone=None, aux_loss=True).eval()
    assert penultimate(model, torch.randn(3, 3, 64, 64)) == "classifier.4:in"
