"""How the model is run: early stop, memory format, precision, compilation, wrapping, clean-up."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.archive.format.manifest import Manifest
from pipeline.archive.reading.archive import Archive
from pipeline.archive.tools.compare import compare
from pipeline.capture.hooks import StopForward, capture, forward
from pipeline.capture.selector import LayerSelector
from pipeline.common.errors import ConfigError
from pipeline.extraction.activation_stream import ActivationStream
from pipeline.extraction.devices import deterministic, reproducible
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Extraction
from pipeline.models.checkpoint import CheckpointModel
from pipeline.models.torchvision import TorchvisionModel
from pipeline.models.transforms import TransformOverride
from pipeline.training.activation_loader import ActivationLoader
from tests.conftest import REPOSITORY, tiny_extraction
from tests.helpers.given_modules import TRANSFORM
from tests.helpers.given_modules import extraction as given
from tests.helpers.small_resnet import small_resnet
from tests.helpers.stored_arrays import assert_same_arrays


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
    extract(small_resnet(tmp_path / "a", precision="bfloat16"))
    assert 1e-4 < largest_difference(plain, tmp_path / "a") < 0.1
    with Archive.open(tmp_path / "a") as archive:
        stored = archive.layers["layer2"][0]
        assert stored.dtype == np.float32
        rounded = torch.from_numpy(stored.copy()).bfloat16().float().numpy()
        np.testing.assert_array_equal(stored, rounded)


@pytest.mark.slow
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


def test_a_compiled_model_may_return_infinity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Masks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.masked_fill(x > 0, -torch.inf)

    monkeypatch.setattr(torch, "compile", lambda module: module)
    extract(replace(given(tmp_path / "a", nn.Sequential(Masks()), "0"), compile=True))
    with Archive.open(tmp_path / "a") as archive:
        images = torch.from_numpy(np.stack([archive.image(row) for row in range(5)]))
        normal = TRANSFORM.normalize(images.permute(0, 3, 1, 2))
        np.testing.assert_array_equal(archive.layers["0"][:], Masks()(normal))


@pytest.mark.broad
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_gives_the_same_activations(plain: Path, tmp_path: Path) -> None:
    """In a process of its own: the compiler leaves workers and caches behind."""
    program = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from pathlib import Path\n"
        "from pipeline.extraction.extract import extract\n"
        "from tests.helpers.small_resnet import small_resnet\n"
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


def test_torchs_settings_are_put_back() -> None:
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    with pytest.raises(KeyError), reproducible(3):
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cudnn.benchmark
        assert torch.are_deterministic_algorithms_enabled()
        torch.rand(3)
        raise KeyError
    assert torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(state, torch.random.get_rng_state())
    torch.backends.cudnn.benchmark = False


def test_settings_are_put_back_by_the_last_of_several_blocks() -> None:
    one, two = deterministic(), deterministic()
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert torch.are_deterministic_algorithms_enabled()
    two.__exit__(None, None, None)
    assert not torch.are_deterministic_algorithms_enabled()


def test_threads_extract_one_after_the_other(tmp_path: Path) -> None:
    def run(name: str, seed: int) -> None:
        size = TransformOverride(resize=(64,), crop=(64,))
        model = TorchvisionModel(name="squeezenet1_1", weights=None, transform=size)
        layers = LayerSelector(include=("features.0",))
        extract(tiny_extraction(tmp_path / name, model=model, layers=layers, seed=seed))

    for seed in range(2):
        run(f"a{seed}", seed)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, [f"b{seed}" for seed in range(2)], range(2)))
    for seed in range(2):
        assert compare(tmp_path / f"a{seed}", tmp_path / f"b{seed}")["equal"]
        one, two = (Manifest.read(tmp_path / f"{name}{seed}").fingerprint for name in "ab")
        assert one == two


@pytest.fixture
def float32_settings() -> Iterator[Callable[[], list[Any]]]:
    """Yield a function that returns what torch's newer interface says."""
    backends: Any = torch.backends
    if not hasattr(backends, "fp32_precision"):
        pytest.skip("torch before 2.9")
    owners = [backends, backends.cudnn, backends.cuda.matmul, backends.cudnn.conv,
              backends.cudnn.rnn, backends.mkldnn.matmul]  # fmt: skip
    before = [owner.fp32_precision for owner in owners]
    yield lambda: [owner.fp32_precision for owner in owners]
    torch.set_float32_matmul_precision("highest")
    for owner, value in zip(owners, before, strict=True):
        owner.fp32_precision = value


@pytest.mark.parametrize(
    "where", ["", "cuda.matmul", "cudnn", "cudnn.conv", "mkldnn.matmul", "older"]
)
def test_torchs_float32_settings_are_put_back(
    float32_settings: Callable[[], list[Any]], where: str
) -> None:
    if where == "older":
        torch.set_float32_matmul_precision("medium")
    else:
        owner: Any = attrgetter(where)(torch.backends) if where else torch.backends
        owner.fp32_precision = "bf16" if "mkldnn" in where else "tf32"
    before = float32_settings()
    for _ in range(2):
        with reproducible(3):
            assert not {*float32_settings()} & {"tf32", "bf16"}
            assert torch.get_float32_matmul_precision() == "highest"  # consistent
            assert not torch.backends.cudnn.allow_tf32
        assert float32_settings() == before


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(torch.float32)


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    torch.set_float32_matmul_precision(precision)
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    "surroundings",
    [
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("meta"),
        torch.inference_mode,
        lambda: default_dtype(torch.float16),
        lambda: default_dtype(torch.float64),
        lambda: matmul_precision("medium"),
    ],
)
def test_the_callers_settings_of_torch_have_no_effect(
    surroundings: Callable[[], Any], tmp_path: Path
) -> None:
    layers = ["features.0", "classifier"]
    size = TransformOverride(resize=(64,), crop=(64,))
    model = TorchvisionModel(name="squeezenet1_1", weights=None, transform=size)
    selector = LayerSelector(include=tuple(layers))

    def extraction(name: str) -> Extraction:
        return tiny_extraction(tmp_path / name, model=model, layers=selector)

    extract(extraction("a"))
    with surroundings():
        extract(extraction("b"))
        stream = ActivationStream(extraction("c"), layers, 3)
        batches = [batch.activations for batch in stream]
    assert compare(tmp_path / "a", tmp_path / "b")["equal"]
    one, two = (Manifest.read(tmp_path / name).fingerprint for name in ("a", "b"))
    assert one == two
    loader = ActivationLoader(tmp_path / "a", layers, 3)
    for values, batch in zip(batches, loader, strict=True):
        assert all(torch.equal(values[key], batch.activations[key]) for key in values)


TRAINING_SCRIPT = """
import torch

torch.backends.cudnn.benchmark = True
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
torch.set_float32_matmul_precision("medium")
torch.use_deterministic_algorithms(True)


class Net(torch.nn.Conv2d):
    def __init__(self):
        super().__init__(3, 2, 3)

    def forward(self, x):
        cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
        fast = cudnn.benchmark + cuda.matmul.allow_tf32 + cudnn.allow_tf32
        fast += torch.get_float32_matmul_precision() != "highest"
        return super().forward(x) * 0 + fast + torch.get_deterministic_debug_mode()
"""


def test_what_a_models_code_sets_when_it_is_loaded_has_no_effect(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(TRAINING_SCRIPT)
    model = CheckpointModel(class_path=f"{tmp_path}/net.py:Net", weights=None)
    layers = LayerSelector(include=("output",))
    before = torch.get_float32_matmul_precision()
    extract(tiny_extraction(tmp_path / "a", model=model, layers=layers))
    with Archive.open(tmp_path / "a") as archive:
        assert np.unique(archive.layers["output"][:]) == 1  # deterministic, with a warning
    assert torch.get_float32_matmul_precision() == before
    assert not torch.backends.cudnn.benchmark


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        pytest.param("coming_from.py", marks=pytest.mark.broad),
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
        pytest.param("reading.py", marks=pytest.mark.broad),
        pytest.param("similarity.py", marks=pytest.mark.broad),
        pytest.param("gpu_report.py", marks=pytest.mark.broad),
        pytest.param("explorer.py", marks=pytest.mark.broad),
        "linear_probe.py",
        "sparse_autoencoder.py",
        pytest.param("token_loaders.py", marks=pytest.mark.broad),
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
