"""The forward pass: reductions, shared weights, errors in its middle, shapes that vary."""

from __future__ import annotations

import copy
import itertools
import random
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.archive.reading.archive import Archive
from pipeline.capture.hooks import capture
from pipeline.capture.selector import LayerSelector
from pipeline.common.errors import ConfigError, LayerError, WeightsError
from pipeline.datasets.sequence import FromSequence
from pipeline.extraction.extract import extract
from pipeline.extraction.reductions.base import NoReduction
from pipeline.extraction.reductions.per_layer import PerLayer
from pipeline.extraction.reductions.pooling import SpatialMean
from pipeline.extraction.settings import Extraction
from pipeline.models.base import ModelBundle, ModelSource
from pipeline.models.tiny import TinyModel
from pipeline.models.transforms import Transform
from pipeline.models.weights.state_dict import fit_state_dict, state_digest
from tests.conftest import tiny_extraction
from tests.helpers.given_modules import IMAGES, TRANSFORM, Given
from tests.helpers.given_modules import extraction as given
from tests.helpers.small_resnet import small_resnet


def test_reductions_per_layer_reach_the_archive(tmp_path: Path) -> None:
    reduction = PerLayer(
        layers={"conv1": "grid:4x4", "layer2": "spatial_max"}, default="spatial_mean"
    )
    extract(small_resnet(tmp_path / "a", reduction=reduction))
    with Archive.open(tmp_path / "a") as archive:
        shapes = {name: layer.entry.shape for name, layer in archive.layers.items()}
        assert shapes == {
            "conv1": (64, 4, 4),
            "layer1.0.bn1": (64,),
            "layer2": (128,),
            "fc": (1000,),
        }
        assert "AverageGrid" in archive.layers["conv1"].entry.reduction


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), nn.Identity()
        self.conv, self.relu, self.fc = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.dequant(self.relu(self.conv(self.quant(x))))
        return self.fc(maps.mean((2, 3)))


def static() -> nn.Module:
    """Quantize convolution and ReLU to 8 bits, calibrated with noise."""
    from torch.ao import quantization

    model = Small().eval()
    model.dequant = quantization.DeQuantStub()
    model.qconfig = quantization.get_default_qconfig("x86")
    model.fc.qconfig = None
    quantization.prepare(model, inplace=True)
    model(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    return quantization.convert(model)


def dynamic() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(Small().eval(), {nn.Linear})


@pytest.mark.filterwarnings("ignore")  # torch.ao.quantization is on its way out
@pytest.mark.parametrize("make", [static, dynamic])
def test_quantized_layers_are_archived_as_their_values(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    extract(given(tmp_path / "a", make(), "quant", "conv", "relu", "fc"))
    plain, calls = make(), {}
    for name, module in plain.named_children():
        module.register_forward_hook(lambda _m, _i, out, name=name: calls.update({name: out}))
    transform = Given(plain).load().transform
    with Archive.open(tmp_path / "a") as archive, torch.inference_mode():
        for rows in (slice(0, 2), slice(2, 4), slice(4, 5)):  # of a batch: dynamic scales are its
            pixels = np.stack([archive.image(row) for row in range(5)[rows]]).transpose(0, 3, 1, 2)
            plain(transform.normalize(torch.from_numpy(pixels)))
            for name, layer in archive.layers.items():
                output = calls[name]
                output = output.dequantize() if output.is_quantized else output
                np.testing.assert_allclose(layer[rows], output, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_the_digest_of_a_quantized_model_covers_its_packed_weights() -> None:
    one, other = static(), static()
    assert state_digest(one) == state_digest(other)
    weight = other.conv.weight()
    other.conv.set_weight_bias(torch.quantize_per_tensor(-weight.dequantize(), 0.1, 0, torch.qint8),
                               other.conv.bias())  # fmt: skip
    assert state_digest(one) != state_digest(other)
    for model in (one, dynamic()):
        with pytest.raises(WeightsError, match=r"quantized; load x\.pt in the model's own code"):
            fit_state_dict(model, OrderedDict(), origin="x.pt")


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(LayerError, match=r"^the model is TorchScript"):
        extract(given(tmp_path / "a", torch.jit.script(nn.Sequential(nn.Conv2d(3, 2, 3))), "0"))
    part = nn.Sequential(nn.Conv2d(3, 2, 3), torch.jit.script(nn.Sequential(nn.Conv2d(2, 2, 1))))
    with pytest.raises(LayerError, match=r"^layer '1' is TorchScript"):
        extract(given(tmp_path / "a", copy.deepcopy(part), "0"))


@pytest.mark.slow
def test_scripted_compiled_and_parallel_models_are_refused_or_unwrapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = TinyModel().load().module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is on its way out
        traced = torch.jit.trace(model, torch.zeros(1, 3, 16, 16))
    with pytest.raises(LayerError, match=r"^the model is TorchScript"), capture(traced, ["conv1"]):
        pass
    inside = nn.Sequential(traced)
    with pytest.raises(LayerError, match=r"^layer '0' is TorchScript"), capture(inside, ["0"]):
        pass
    program = torch.export.export(model, (torch.zeros(2, 3, 16, 16),))
    with pytest.raises(LayerError, match="the model is a graph of"), capture(program.module(), []):
        pass
    unflattened = torch.export.unflatten(program)
    with torch.inference_mode(), capture(unflattened, ["conv1"]) as activations:
        unflattened(torch.zeros(2, 3, 16, 16))
    assert activations["conv1"].shape[0] == 2
    with (
        pytest.raises(LayerError, match="compiled already"),
        capture(torch.compile(model), ["conv1"]),
    ):
        pass
    wrapped = nn.DataParallel(model)
    with torch.inference_mode(), capture(wrapped, ["module.conv1"]) as activations:
        wrapped(torch.zeros(1, 3, 16, 16))
    assert "module.conv1" in activations
    monkeypatch.setattr(wrapped, "device_ids", [0, 1])
    with (
        pytest.raises(LayerError, match=r"capture its `\.module`"),
        capture(wrapped, ["module.conv1"]),
    ):
        pass


def test_weights_that_are_shared_and_modules_with_two_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.b = nn.Linear(3, 3)
            self.b.weight = self.a.weight
            self.c = self.a

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.c(self.b(self.a(x)))
            return y

    model, x = Tied(), torch.randn(2, 3)
    with torch.no_grad(), capture(model, ["a", "b", "c:1"]) as activations:
        out = model(x)
    torch.testing.assert_close(activations["a:0"], model.a(x))
    torch.testing.assert_close(activations["b"], model.b(model.a(x)))
    torch.testing.assert_close(activations["c:1"], out)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_middle_of_a_forward_leaves_no_hook(error: type[BaseException]) -> None:
    model = TinyModel().load().module
    model.conv2.register_forward_hook(lambda *_: (_ for _ in ()).throw(error("stop")))
    with pytest.raises(error), capture(model, ["conv1", "bn1", "relu:in", "fc"]):
        model(torch.zeros(1, 3, 16, 16))
    left = [m for m in model.modules() if m._forward_pre_hooks or m._forward_hooks]
    assert left == [model.conv2]
    assert len(model.conv2._forward_hooks) == 1


def test_batch_norm_statistics_and_modes_are_untouched_by_extraction(tmp_path: Path) -> None:
    loaded = TinyModel().load()
    before = {name: value.clone() for name, value in loaded.module.state_dict().items()}

    class Given(TinyModel):
        def load(self, *, seed: int = 0) -> object:  # type: ignore[override]
            return loaded

    extract(tiny_extraction(tmp_path / "a", model=Given()))
    assert all(
        torch.equal(before[name], value) for name, value in loaded.module.state_dict().items()
    )
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in loaded.module.modules())


def test_nonfinite_activations_can_be_fatal(tmp_path: Path) -> None:
    state = TinyModel().load().module.state_dict()
    state["conv1.bias"][1] = float("inf")
    torch.save(state, tmp_path / "sick.pth")
    model = TinyModel(weights=str(tmp_path / "sick.pth"))
    with pytest.raises(LayerError, match="conv1 returned 256 NaN or infinite values for sample 0"):
        extract(tiny_extraction(tmp_path / "a", model=model, on_nonfinite="raise"))


class Varying(nn.Module):
    """Crops bright images differently."""

    def __init__(self) -> None:
        super().__init__()
        self.keep = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.keep(x[..., : 4 if float(x.mean()) > 0.5 else 3])
        return y


@dataclass(frozen=True, kw_only=True)
class VaryingModel(ModelSource):
    name: str = "varying"

    def build(self, seed: int) -> ModelBundle:
        transform = Transform(resize=(8, 8), crop=(8,), mean=(0.5,) * 3, std=(0.5,) * 3)
        return ModelBundle(module=Varying(), transform=transform)


def test_a_shape_that_varies_is_an_error(tmp_path: Path) -> None:
    white = [Image.new("RGB", (8, 8), "white")]
    config = tiny_extraction(
        tmp_path / "a",
        model=VaryingModel(),
        dataset=FromSequence(items=white),
        layers=LayerSelector(include=("keep",)),
    )
    with pytest.raises(LayerError, match=r"keep returned shape \(3, 8, 4\) .* \(3, 8, 3\) in"):
        extract(config)


class OddModel(ModelSource):
    """A model of one layer, `layer`, over the pixels' means."""

    def __init__(self, layer: nn.Module) -> None:
        object.__setattr__(self, "layer", layer)
        super().__init__(name="odd", weights=None)

    def build(self, seed: int) -> ModelBundle:
        return ModelBundle(
            module=OverMeans(self.layer), transform=Transform(resize=None, crop=None)
        )


class OverMeans(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(images.mean((2, 3)))
        return found


class FailsAlone(nn.Identity):
    """Takes the dummy batches, and no batch whose first image is nearly white."""

    def __init__(self, *, alone: bool) -> None:
        super().__init__()
        self.alone = alone

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.alone and len(values) == 1:
            raise RuntimeError("expected more\nthan 1 value per channel")
        if values[0].min() > 1:
            raise IndexError("too bright")
        return values


class Chance(nn.Identity):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(values, 0.5, training=True)


class Counts(nn.Identity):
    """Counts where no reset of the model reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = itertools.count()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + next(self.seen)


class MinusOthers(nn.Identity):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values - values.mean(0)


class MinusFirst(nn.Identity):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values - values[:1]


class Reverses(nn.Identity):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.flip(0)


class Sorts(nn.Identity):
    def __init__(self, *, descending: bool) -> None:
        super().__init__()
        self.descending = descending

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values[values.mean(1).argsort(descending=self.descending)]


ODD: dict[str, nn.Module] = {
    "reversed": Reverses(),
    "ascending": Sorts(descending=False),
    "descending": Sorts(descending=True),
    "batch": MinusOthers(),
    "first": MinusFirst(),
    "chance": Chance(),
    "state": Counts(),
}


def odd_extraction(path: Path, layer: nn.Module) -> Extraction:
    photos = [Image.new("RGB", (8, 8), (shade, 9, shade)) for shade in (0, 90, 250)]
    return tiny_extraction(
        path, model=OddModel(layer), dataset=FromSequence(items=photos),
        layers=LayerSelector(include=("layer",)),
    )  # fmt: skip


@pytest.mark.parametrize("why", ODD)
def test_values_that_depend_on_more_than_the_image_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    layer = ODD[why]
    extract(odd_extraction(tmp_path / "a", layer))
    assert "the same image gives different values in another batch, in layer" in caplog.text


class HooksItself(nn.Module):
    """Adds 1 to a layer's output by a hook, which it removes once the layer has run."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.next = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hook = self.layer.register_forward_hook(lambda _module, _args, output: output + 1)
        scores: torch.Tensor = self.next(self.layer(images))
        hook.remove()
        return scores


def test_a_model_that_must_run_to_its_end_does_without_early_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = HooksItself().eval()
    extract(given(tmp_path / "a", copy.deepcopy(model), "layer", "next"))
    assert "early_stop=false" in caplog.text
    caplog.clear()
    config = given(tmp_path / "b", model, "layer", "next")
    extract(replace(config, early_stop=False))
    assert "another batch" not in caplog.text
    with Archive.open(tmp_path / "b") as archive, torch.inference_mode():
        for row in range(5):
            pixels = torch.from_numpy(archive.image(row).transpose(2, 0, 1).copy())[None]
            expected = nn.functional.conv2d(
                (pixels / 255 - 0.5) / 0.5, model.layer.weight, model.layer.bias
            )
            np.testing.assert_allclose(archive.layers["layer"][row], expected[0], atol=1e-5)
            np.testing.assert_allclose(
                archive.layers["next"][row], model.next(expected + 1)[0], atol=1e-5
            )


class TwiceOnly(nn.Module):
    """Calls a layer in its first two forward passes only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.passes = nn.Conv2d(3, 4, 3), itertools.count()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.layer(images) if next(self.passes) < 2 else images
        return scores


def test_a_layer_that_is_not_reached_again_is_named(tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="'layer' was not reached"):
        extract(given(tmp_path / "a", TwiceOnly(), "layer"))


@pytest.mark.parametrize("channels_last", [None, True])
def test_a_model_with_convolutions_in_two_and_three_dimensions(
    channels_last: bool | None, tmp_path: Path
) -> None:
    cube = [nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 4, 3, padding=1), nn.Flatten(2, 3)]
    model = nn.Sequential(*cube, nn.Conv2d(4, 2, 3)).eval()
    extract(replace(given(tmp_path / "a", model, "3"), channels_last=channels_last))
    with Archive.open(tmp_path / "a") as archive, torch.inference_mode():
        pixels = torch.from_numpy(archive.image(1).transpose(2, 0, 1).copy())[None]
        expected = model((pixels / 255 - 0.5) / 0.5)[0]
        np.testing.assert_allclose(archive.layers["3"][1], expected, atol=1e-5)


class RareChance(nn.Identity):
    """Draws a random number that hardly ever matters."""

    def __init__(self, draw: Callable[[], object]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * (self.draw() != 0.5)


DRAWS: dict[str, Callable[[], object]] = {
    "torch": lambda: torch.rand(()).item(),
    "NumPy": np.random.random,
    "Python": random.random,
    "none": lambda: 0,
}


@pytest.mark.parametrize("kind", DRAWS)
def test_random_numbers_are_warned_of_even_if_they_change_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    extract(odd_extraction(tmp_path / "a", RareChance(DRAWS[kind])))
    text = "draws random numbers, so the same image may give different values in layer"
    assert (text in caplog.text) is (kind != "none")
    assert "in another batch" not in caplog.text


class OwnState(nn.Identity):
    """Has a state dict of its own, as models have that save only a part of them."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error

    def state_dict(self) -> dict[str, torch.Tensor]:  # type: ignore[override]
        if self.error:
            raise self.error
        return {}


def test_a_state_dict_of_the_models_own(tmp_path: Path) -> None:
    extract(given(tmp_path / "a", OwnState(), "output"))
    with pytest.raises(ConfigError, match=r"of OwnState failed: KeyError: 'no part'$"):
        extract(given(tmp_path / "b", OwnState(KeyError("no part")), "output"))


def test_what_a_model_raises_for_some_images_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model: a single image failed: RuntimeError: exp"):
        extract(odd_extraction(tmp_path / "a", FailsAlone(alone=True)))
    config = odd_extraction(tmp_path / "b", FailsAlone(alone=False))
    white = FromSequence(items=[Image.new("RGB", (8, 8), "white")] * 3)
    with pytest.raises(ConfigError, match=r"^model: the batch at row 0 failed: IndexError: too br"):
        extract(replace(config, dataset=white))


GRIDS: dict[int, torch.Tensor] = {}


class Gradients(nn.Module):
    """Gradients of an energy by the image, which it computes itself; keeps its grids."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Conv2d(3, 4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if 8 not in GRIDS:
            GRIDS[8] = torch.linspace(0, 1, 8)
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            energy = self.energy(images * GRIDS[8]).square().sum()
        return torch.autograd.grad(energy, images)[0]


def test_a_model_may_compute_gradients_and_be_trained_afterwards(tmp_path: Path) -> None:
    model = Gradients()
    extract(given(tmp_path / "a", model, "energy", "output"))
    images = torch.stack([torch.tensor(np.asarray(image)) for image in IMAGES])
    images = ((images.movedim(3, 1) / 255 - 0.5) / 0.5).requires_grad_()
    values = model.energy(images * GRIDS[8])  # a tensor of inference mode could not be trained
    values.square().sum().backward()
    with Archive.open(tmp_path / "a") as archive:
        for name, expected in (("energy", values.detach()), ("output", images.grad)):
            np.testing.assert_allclose(archive.layers[name][:], expected, rtol=1e-5, atol=1e-6)


class OutOfMemory(nn.Identity):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_memory_too_small_for_the_dummy_batch_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model: the dummy batch .* failed: OutOfMemoryError"):
        extract(odd_extraction(tmp_path / "a", OutOfMemory()))


def test_lazy_layers_take_their_sizes_and_the_seed(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        extract(odd_extraction(tmp_path / name, nn.LazyLinear(5)))
        with Archive.open(tmp_path / name) as archive:
            found.append(archive.layers["layer"][:])
    assert found[0].shape == (3, 5)
    assert (found[0] == found[1]).all()
    with pytest.raises(ConfigError, match=r"its lazy layers cannot take their sizes"):
        OddModel(nn.Sequential(nn.Linear(9, 2), nn.LazyLinear(5))).load()


class Returns(nn.Module):
    """Scores of three channels, and beside them whatever a layer `odd` makes of an image."""

    def __init__(self, make: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.odd = Does(make)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.conv(x)
        self.odd(maps)
        return maps.mean((2, 3))


class Does(nn.Module):
    def __init__(self, make: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.make = make
        self.inner = nn.Identity()

    def forward(self, x: torch.Tensor) -> object:
        return self.make(x)


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.relu().to_sparse(),
        lambda x: x.to_mkldnn(),
        lambda x: torch.nested.nested_tensor([image[:, : 2 + i] for i, image in enumerate(x)]),
        lambda x: x[:, :0],
        lambda x: x > 0,
        lambda x: torch.fft.fft2(x),
    ],
    ids=["sparse", "mkldnn", "nested", "empty", "bool", "complex"],
)
def test_layers_that_return_no_dense_floats_are_left_out(
    make: Callable[[torch.Tensor], object], tmp_path: Path
) -> None:
    extract(given(tmp_path / "a", Returns(make), "*"))
    with Archive.open(tmp_path / "a") as archive:
        assert [*archive.layers] == ["conv"]
    with pytest.raises(LayerError, match="odd"):
        extract(given(tmp_path / "b", Returns(make), "odd"))


def test_layers_under_vmap_are_left_out(tmp_path: Path) -> None:
    class Mapped(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = torch.vmap(self[1])(self[0](x).mean((2, 3)))
            return scores

    extract(given(tmp_path / "a", Mapped(nn.Conv2d(3, 4, 1), nn.Linear(4, 2)), "*"))
    with Archive.open(tmp_path / "a") as archive:
        assert [*archive.layers] == ["0"]


class TrainsItself(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if self.train() else x


def test_a_forward_that_turns_training_on_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extract(given(tmp_path / "a", TrainsItself(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "1"))
    assert "the same image gives different values in another batch" in caplog.text


def test_parameters_without_values_are_refused(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, device="meta"))
    with pytest.raises(ConfigError, match=r"^model: 1\.weight.*meta device"):
        extract(given(tmp_path / "a", module, "0"))


class CastsItself(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.bfloat16()).float()


def test_an_error_about_types_comes_without_advice_about_sizes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"should be the same$"):
        extract(given(tmp_path / "a", nn.Sequential(CastsItself(3, 4, 1)), "0"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("whole", [True, False], ids=["all", "head"])
def test_a_model_that_casts_images_to_its_own_type_runs_in_it(
    dtype: torch.dtype, whole: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Net(nn.Module):
        """Also with a float32 body, and a float64 buffer."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4, 2).to(dtype)
            self.register_buffer("scale", torch.tensor([1 / 3], dtype=torch.float64))
            if whole:
                self.conv.to(dtype)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x.to(dtype) if whole else x)
            scaled = x.double() * self.get_buffer("scale")
            out: torch.Tensor = self.head(scaled.mean((2, 3)).to(dtype))
            return out

    torch.manual_seed(0)
    net = Net().eval()
    plain = copy.deepcopy(net)
    caplog.set_level("INFO")
    extract(given(tmp_path / "a", net, "conv", "head"))
    name = str(dtype).removeprefix("torch.")
    assert f"model: it casts images itself, so it runs in {name}" in caplog.messages
    with Archive.open(tmp_path / "a") as archive, torch.inference_mode():
        images = np.stack([archive.image(row) for row in range(len(archive))])
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        expected = plain(TRANSFORM.normalize(pixels)).float().numpy()
        np.testing.assert_allclose(archive.layers["head"][:], expected, rtol=0, atol=1e-2)
        assert archive.layers["head"].entry.source_dtype == name
        cast = torch.from_numpy(archive.layers["head"][:]).to(dtype).float().numpy()
        np.testing.assert_array_equal(archive.layers["head"][:], cast)  # values of that type


def test_a_fused_path_that_is_lost_is_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`nn.TransformerEncoder` takes its fused path only without hooks."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.patches = nn.Conv2d(3, 8, 2, 2)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            tokens: torch.Tensor = self.encoder(self.patches(images).flatten(2).transpose(1, 2))
            return tokens.mean(1)

    torch.manual_seed(0)
    extract(given(tmp_path / "a", Encoder(), "*@attention"))
    extract(given(tmp_path / "b", nn.Sequential(nn.ReLU()), "0@relu"))
    with Archive.open(tmp_path / "a") as archive:
        assert 0 < archive.manifest.identity["output_difference"] < 1e-5
    with Archive.open(tmp_path / "b") as archive:
        assert "output_difference" not in archive.manifest.identity
    assert caplog.text.count("while function calls are captured") == 1


def test_a_value_beyond_float32_is_an_error(tmp_path: Path) -> None:
    """It would be stored as infinity, although the model returned a number."""

    class Wide(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x == x.amax((1, 2, 3), True), 1e300, x.double())

    text = r"layers: 0 reaches 1e\+300 in float64, but archives hold float32, which ends at 3\.4"
    for reduction in (NoReduction(), SpatialMean()):
        with pytest.raises(LayerError, match=text):
            extract(replace(given(tmp_path / "a", nn.Sequential(Wide()), "0"), reduction=reduction))


class CompiledForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    @torch.compile(backend="eager")
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


@pytest.mark.slow
def test_a_forward_that_its_class_compiles(tmp_path: Path) -> None:
    module = CompiledForward().eval()
    extract(given(tmp_path / "a", module, "conv", "head"))
    with Archive.open(tmp_path / "a") as archive:
        pixels = np.stack([archive.image(row) for row in range(5)]).transpose(0, 3, 1, 2)
        maps = module.conv(TRANSFORM.normalize(torch.from_numpy(pixels))).detach()
        scores = module.head(maps.relu().mean((2, 3))).detach()
        np.testing.assert_allclose(archive.layers["conv"][:], maps, atol=1e-5)
        np.testing.assert_allclose(archive.layers["head"][:], scores, atol=1e-5)


def test_a_model_whose_call_goes_around_its_hooks_is_refused(tmp_path: Path) -> None:
    """Another layer would be taken for the model, and its hooks clear no earlier batch."""

    class Around(nn.Sequential):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return self.forward(x)

    for layers in (nn.Conv2d(3, 4, 3), nn.Flatten()), ():
        with pytest.raises(
            ConfigError, match=r"model: Around\.__call__ .*; define forward instead"
        ):
            extract(given(tmp_path / "a", Around(*layers), "*"))
