"""How the model is run: early stop, memory format, precision, compilation, wrapping, clean-up."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.archive.reader import Archive
from pipeline.datasets.sequence import FromSequence
from pipeline.datasets.synthetic import Synthetic
from pipeline.errors import ConfigError, LayerError
from pipeline.extraction.devices import reproducible
from pipeline.extraction.extract import extract
from pipeline.extraction.reductions import PerLayer
from pipeline.extraction.settings import Extraction, OnNonfinite, Precision
from pipeline.inputs.transforms import Transform
from pipeline.layers.capture import StopForward, capture, forward
from pipeline.layers.selector import LayerSelector
from pipeline.models.base import Built, ModelSource
from pipeline.models.tiny import TinyModel
from pipeline.models.torchvision import TorchvisionModel
from tests.conftest import REPOSITORY, tiny_extraction
from tests.test_archive import assert_same_arrays


def small_resnet(path: Path, **changes: object) -> Extraction:
    from pipeline.inputs.transforms import TransformOverride

    values: dict[str, object] = {
        "model": TorchvisionModel(
            name="resnet18", weights=None, transform=TransformOverride(resize=(64,), crop=(64,))
        ),
        "dataset": Synthetic(samples=3),
        "layers": LayerSelector(include=("conv1", "layer1.0.bn1", "layer2", "fc")),
        "archive": str(path),
        "device": "cpu",
    }
    return Extraction(**(values | changes))  # type: ignore[arg-type]


def largest_difference(one: Path, two: Path) -> float:
    """Return the largest difference of any layer, as a share of that layer's largest value."""
    worst = 0.0
    with Archive.open(one) as a, Archive.open(two) as b:
        for name, layer in a.layers.items():
            for i in range(len(a)):
                scale = float(np.abs(layer[i]).max())
                worst = max(worst, float(np.abs(layer[i] - b.layers[name][i]).max()) / scale)
    return worst


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "archive"
    extract(small_resnet(path))
    return path


def test_channels_last_changes_rounding_only(plain: Path, tmp_path: Path) -> None:
    extract(small_resnet(tmp_path / "a", channels_last=True))
    assert largest_difference(plain, tmp_path / "a") < 1e-4


def test_bfloat16_is_stored_as_float32_and_close(plain: Path, tmp_path: Path) -> None:
    extract(small_resnet(tmp_path / "a", precision=Precision.BFLOAT16))
    assert 1e-4 < largest_difference(plain, tmp_path / "a") < 0.1
    with Archive.open(tmp_path / "a") as archive:
        stored = archive.layers["layer2"][0]
        assert stored.dtype == np.float32
        rounded = torch.from_numpy(stored.copy()).bfloat16().float().numpy()
        np.testing.assert_array_equal(stored, rounded)


def test_a_compiled_model_is_compared_and_run(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler's front end alone; `broad` takes the whole compiler."""
    made: list[object] = []
    real = torch.compile

    def compile_(module: nn.Module) -> object:
        made.append(real(module, backend="eager"))
        return made[-1]

    monkeypatch.setattr(torch, "compile", compile_)
    extract(small_resnet(tmp_path / "a", compile=True))
    assert len(made) == 1
    assert largest_difference(plain, tmp_path / "a") < 1e-3


@pytest.mark.broad
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_gives_the_same_activations(plain: Path, tmp_path: Path) -> None:
    """In a process of its own: the compiler leaves workers and caches behind."""
    program = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from pathlib import Path\n"
        "from pipeline.extraction.extract import extract\n"
        "from tests.test_execution import small_resnet\n"
        f"extract(small_resnet(Path({str(tmp_path / 'a')!r}), compile=True))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert largest_difference(plain, tmp_path / "a") < 1e-3


def test_a_compilation_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_module: nn.Module) -> object:
        def run(_images: torch.Tensor) -> None:
            raise RuntimeError("no compiler")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ConfigError, match=r"compile: the model cannot be compiled .*compile=false"):
        extract(small_resnet(tmp_path / "a", compile=True))


def test_early_stop_changes_no_value_and_runs_nothing_more(tmp_path: Path) -> None:
    selected = LayerSelector(include=("conv1", "layer1.0.bn1"))
    extract(small_resnet(tmp_path / "early", layers=selected))
    extract(small_resnet(tmp_path / "whole", layers=selected, early_stop=False))
    assert_same_arrays(tmp_path / "early", tmp_path / "whole")
    model = TorchvisionModel(name="resnet18", weights=None).load().module
    reached: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: reached.append(name))
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode(), capture(model, ["conv1", "bn1"], stop_after=2) as activations:
        forward(model, images)
    assert reached == ["", "conv1", "bn1"]
    assert len(activations) == 2


def test_a_model_cannot_hold_up_the_early_stop() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(2, 2)
            self.second = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                x = self.first(x)
            except Exception:  # noqa: BLE001
                x = x + 1
            y: torch.Tensor = self.second(x)
            return y

    model = Stubborn()
    with capture(model, ["first"], stop_after=1) as activations:
        forward(model, torch.ones(1, 2))
        with pytest.raises(StopForward):
            model(torch.ones(1, 2))
    assert list(activations) == ["first"]


def test_reductions_per_layer_reach_the_archive(tmp_path: Path) -> None:
    reduction = PerLayer(
        layers={"conv1": "grid:4x4", "layer2": "spatial_max"}, other="spatial_mean"
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
        extract(tiny_extraction(tmp_path / "a", model=model, on_nonfinite=OnNonfinite.RAISE))


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

    def build(self, seed: int) -> Built:
        transform = Transform(resize=(8, 8), crop=(8,), mean=(0.5,) * 3, std=(0.5,) * 3)
        return Built(module=Varying(), transform=transform)


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


def test_torchs_settings_are_put_back() -> None:
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    with pytest.raises(KeyError), reproducible(3) as settings:
        assert settings == {"tf32": False, "cudnn_benchmark": False, "deterministic": True}
        assert torch.are_deterministic_algorithms_enabled()
        torch.rand(3)
        raise KeyError
    assert torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(state, torch.random.get_rng_state())
    torch.backends.cudnn.benchmark = False


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("early_stop.py", marks=pytest.mark.broad),
        "training_probe.py",
        "extraction.py",
        pytest.param("rendering.py", marks=pytest.mark.broad),
        pytest.param("many_samples.py", marks=pytest.mark.broad),
        pytest.param("codec_costs.py", marks=pytest.mark.broad),
        pytest.param("sample_counts.py", marks=pytest.mark.broad),
        pytest.param("start_up.py", marks=pytest.mark.broad),
        pytest.param("workers.py", marks=pytest.mark.broad),
        pytest.param("scaling.py", marks=pytest.mark.broad),
        pytest.param("mutants.py", marks=pytest.mark.broad),
    ],
)
def test_the_scripts_run(script: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(REPOSITORY / "scripts" / script),
            "--quick",
            "--folder",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr
    if script == "training_probe.py":
        archives = sorted(path.parent for path in tmp_path.rglob("COMPLETE.json"))
        assert len(archives) == 2
        values = []
        for path in archives:
            with Archive.open(path) as archive:
                values.append(np.stack([archive.layers["conv1"][i] for i in range(len(archive))]))
            assert (path.parent / "gallery" / "index.html").is_file()
        assert not np.array_equal(*values)
