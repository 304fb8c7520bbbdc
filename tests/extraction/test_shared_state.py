"""Models whose copies would exchange activations: batches run sequentially, with the right rows."""

from __future__ import annotations

import functools
import random
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from pipeline.archive.reading.archive import Archive
from pipeline.capture.selector import LayerSelector
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.extract import extract
from pipeline.extraction.shared_state import shared_state
from tests.helpers.replicated import extraction, threads

ACTIVATIONS: dict[str, Tensor] = {}
CURRENT: Tensor | None = None
STATE = types.SimpleNamespace()
OUTSIDE = types.ModuleType("outside")
CONSTANTS = (2.0, 3.0)


class Head(nn.Module):
    """A backbone in two steps, and a head that reads what the first step left somewhere."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.out = nn.Identity()
        self.feat: Any = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.put(self.first(x)))
        return self.out(y + self.get())

    def put(self, x: Tensor) -> Tensor:
        return x

    def get(self) -> Tensor:
        raise NotImplementedError


class ModuleDict(Head):
    """As MiDaS: hooks that fill a dict of the module's."""

    def __init__(self) -> None:
        super().__init__()

        def keep(_module: nn.Module, _args: object, output: Tensor) -> None:
            ACTIVATIONS["first"] = output

        self.first.register_forward_hook(keep)

    def get(self) -> Tensor:
        return ACTIVATIONS["first"]


class ClearedDict(ModuleDict):
    def get(self) -> Tensor:
        return ACTIVATIONS.pop("first")


class ClassDict(Head):
    kept: dict[str, Tensor] = {}  # noqa: RUF012

    def put(self, x: Tensor) -> Tensor:
        self.kept["first"] = x
        return x

    def get(self) -> Tensor:
        return self.kept["first"]


class ClassAttribute(Head):
    value: Any = None

    def put(self, x: Tensor) -> Tensor:
        type(self).value = x
        return x

    def get(self) -> Tensor:
        return type(self).value


class NamedClassAttribute(Head):
    value: Any = None

    def put(self, x: Tensor) -> Tensor:
        NamedClassAttribute.value = x
        return x

    def get(self) -> Tensor:
        return NamedClassAttribute.value


class Closure(Head):
    """A hook that closes over the original: the copy reads what the dummy batch left in `feat`."""

    def __init__(self) -> None:
        super().__init__()

        def keep(_module: nn.Module, _args: object, output: Tensor) -> None:
            self.feat = output

        self.first.register_forward_hook(keep)

    def get(self) -> Tensor:
        return self.feat


class ClosureList(Head):
    def __init__(self) -> None:
        super().__init__()
        feats: list[Tensor] = []
        self.first.register_forward_hook(lambda _m, _a, output: feats.append(output))
        self.get = lambda: feats.pop()  # type: ignore[method-assign]


class Default(Head):
    def put(self, x: Tensor, cache: dict[str, Tensor] = {}) -> Tensor:  # noqa: B006
        cache["first"] = x
        return cache["first"]

    def get(self) -> Tensor:
        return Default.put.__defaults__[0]["first"]  # type: ignore[index]


class FunctionAttribute(Head):
    def put(self, x: Tensor) -> Tensor:
        _remember.value = x  # type: ignore[attr-defined]
        return x

    def get(self) -> Tensor:
        return _remember.value  # type: ignore[attr-defined, no-any-return]


def _remember() -> None: ...


class Global(Head):
    """No module starts or ends between writing and reading."""

    def get(self) -> Tensor:
        return torch.zeros(())

    def put(self, x: Tensor) -> Tensor:
        global CURRENT
        CURRENT = x
        for _ in range(50):
            x = x + 0
        return CURRENT


class Indirect(Head):
    def put(self, x: Tensor) -> Tensor:
        return _store(x)

    def get(self) -> Tensor:
        return STATE.first  # type: ignore[no-any-return]


def _store(x: Tensor) -> Tensor:
    STATE.first = x
    return x


class OtherModule(Head):
    def put(self, x: Tensor) -> Tensor:
        OUTSIDE.first = x  # type: ignore[attr-defined]
        return x

    def get(self) -> Tensor:
        return OUTSIDE.first  # type: ignore[attr-defined, no-any-return]


class Weak(Head):
    """A child that reaches its parent weakly: a copied reference still leads to the original."""

    def __init__(self) -> None:
        super().__init__()
        self.parent = weakref.ref(self)

    def put(self, x: Tensor) -> Tensor:
        self.parent().feat = x  # type: ignore[union-attr]
        return x

    def get(self) -> Tensor:
        return self.parent().feat  # type: ignore[union-attr, no-any-return]


class Store:
    """State that copies keep sharing."""

    def __deepcopy__(self, memo: object) -> Store:
        return self


class SharedObject(Head):
    def __init__(self) -> None:
        super().__init__()
        self.store: Any = Store()

    def put(self, x: Tensor) -> Tensor:
        self.store.first = x
        return x

    def get(self) -> Tensor:
        return self.store.first  # type: ignore[no-any-return]


class Submodule(Head):
    """A function that refers to a layer of the original."""

    def __init__(self) -> None:
        super().__init__()
        first = self.first
        first.register_forward_hook(lambda m, _a, y: setattr(m, "seen", y))
        self.get = lambda: first.seen  # type: ignore[method-assign, assignment, return-value]


class Seeded(Head):
    """The same values on every call, through a generator that all threads share."""

    def get(self) -> Tensor:
        torch.manual_seed(3)
        return torch.rand(4, 1, 1)


class PythonSeeded(Head):
    def get(self) -> Tensor:
        random.seed(3)
        return torch.tensor(random.random())


class NumpySeeded(Head):
    def get(self) -> Tensor:
        np.random.seed(3)  # noqa: NPY002
        return torch.tensor(np.random.rand())  # noqa: NPY002


class Counter(Head):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def get(self) -> Tensor:
        self.calls += 1
        return self.calls * 0


class BoundMethod(Head):
    def __init__(self) -> None:
        super().__init__()
        self.first.register_forward_hook(self.keep)

    def keep(self, _module: nn.Module, _args: object, output: Tensor) -> None:
        self.feat = output

    def get(self) -> Tensor:
        return self.feat


class Partial(Head):
    def __init__(self) -> None:
        super().__init__()
        self.feat = {}
        self.first.register_forward_hook(functools.partial(self.keep, "first"))

    def keep(self, name: str, _module: nn.Module, _args: object, output: Tensor) -> None:
        self.feat[name] = output

    def get(self) -> Tensor:
        return self.feat["first"]


class PartialDict(Head):
    def __init__(self) -> None:
        super().__init__()
        self.feat = {}
        self.first.register_forward_hook(functools.partial(_keep, self.feat))

    def get(self) -> Tensor:
        return self.feat["first"]


def _keep(feats: dict[str, Tensor], _module: nn.Module, _args: object, output: Tensor) -> None:
    feats["first"] = output


class Attribute(Head):
    def put(self, x: Tensor) -> Tensor:
        self.feat = [x]
        return x

    def get(self) -> Tensor:
        return self.feat.pop()


class CachedConstant(Head):
    """Made by the first forward pass, and the same for every image."""

    def get(self) -> Tensor:
        if self.feat is None:
            self.feat = torch.arange(4.0).view(4, 1, 1)
        return self.feat


class Constants(Head):
    """Reads what nobody changes, under decorators."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.full((4, 1, 1), 0.5)
        self.scale: Callable[[Tensor], Tensor] = lambda x: x * CONSTANTS[0]

    @torch.no_grad()
    def put(self, x: Tensor) -> Tensor:
        return self.scale(x)

    def get(self) -> Tensor:
        return self.mean


SHARED: dict[type[Head], str] = {
    ModuleDict: "the global variable ACTIVATIONS",
    ClearedDict: "the global variable ACTIVATIONS",
    ClassDict: "ClassDict.kept",
    ClassAttribute: "a class attribute",
    NamedClassAttribute: "the attribute value",
    Closure: "the variable self",
    ClosureList: "the variable feats",
    Default: "a default or attribute of Default.put",
    FunctionAttribute: "the attribute value",
    Global: "the global variable CURRENT",
    Indirect: "the global variable STATE",
    OtherModule: "the attribute first",
    Weak: "a weak reference to a Weak",
    SharedObject: "Store.__deepcopy__",
    Submodule: "the variable first",
}
COPIED = [BoundMethod, Partial, PartialDict, Attribute, CachedConstant, Constants, Counter]


@pytest.mark.parametrize("kind", SHARED)
def test_shared_state_is_found_and_named(kind: type[Head]) -> None:
    model = nn.Sequential(kind())
    assert SHARED[kind] in shared_state(model)


@pytest.mark.parametrize("kind", COPIED)
def test_copied_state_is_not_taken_for_shared(kind: type[Head]) -> None:
    assert shared_state(nn.Sequential(kind())) == ""


def test_models_of_libraries_share_nothing() -> None:
    resnet = torchvision.models.resnet18()
    models = [
        resnet, torchvision.models.swin_t(), timm.create_model("vit_tiny_patch16_224"),
        timm.create_model("resnet18", features_only=True),
        timm.create_model("vit_tiny_patch16_224", features_only=True),
        create_feature_extractor(resnet, ["layer1", "layer4"]),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1)), nn.LSTM(3, 3),
        transformers.ViTModel(transformers.ViTConfig(num_hidden_layers=1)),
    ]  # fmt: skip
    assert [shared_state(model.eval()) for model in models] == [""] * len(models)


def extract_and_compare(kind: type[Head], path: Path) -> None:
    """Extract with three replicas, if the model can have them; every row must be its image's."""
    config = extraction(
        kind().eval(), path, dataset=Synthetic(samples=19), layers=LayerSelector(include=("out",))
    )
    with threads(3):
        extract(config)
    transform = config.model.load().transform
    plain = kind().eval()
    with Archive.open(path) as archive, torch.inference_mode():
        pixels = np.stack([archive.image(row).transpose(2, 0, 1) for row in range(19)])
        for row in range(19):
            image = torch.from_numpy(pixels[row : row + 1])
            expected = plain(transform.normalize(image))[0].numpy()
            np.testing.assert_allclose(archive.layers["out"][row], expected, atol=1e-5)


@pytest.mark.parametrize("kind", COPIED)
def test_copies_return_the_rows_of_their_own_images(
    kind: type[Head], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        extract_and_compare(kind, tmp_path / "a")
    assert "sequentially" not in caplog.text


@pytest.mark.parametrize(
    "kind", [ModuleDict, ClassDict, Closure, Weak, SharedObject, Seeded, PythonSeeded, NumpySeeded]
)
def test_what_the_search_misses_shows_when_all_copies_run_in_lockstep(
    kind: type[Head], tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("pipeline.extraction.replicas.shared_state", lambda _model: "")
    with caplog.at_level("INFO"):
        extract_and_compare(kind, tmp_path / "a")
    assert "batches run sequentially" in caplog.text
