"""State dicts keep the versions of their modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.models.torchvision import TorchvisionModel


def round_trip(name: str, ending: str, folder: Path) -> None:
    """Save a torchvision model's state dict and load it from its path."""
    from safetensors.torch import save_file
    from torchvision import models

    arguments = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    backbone = {"weights_backbone": None} if any(
        part in name for part in ("rcnn", "retinanet", "fcos", "ssd", "deeplab", "fcn", "lraspp")
    ) else {}  # fmt: skip
    torch.manual_seed(1)
    module = models.get_model(name, weights=None, **arguments, **backbone)
    path = folder / f"w{ending}"
    state = module.state_dict()
    if ending == ".safetensors":
        save_file({key: value.clone().contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    loaded = TorchvisionModel(name=name, weights=str(path), arguments=arguments).load()
    for key, value in loaded.module.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0, equal_nan=True)
    path.unlink()


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_state_dicts_keep_their_versions(tmp_path: Path, ending: str) -> None:
    round_trip("mnasnet0_5", ending, tmp_path)
    round_trip("shufflenet_v2_x0_5", ending, tmp_path)


@pytest.mark.broad
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.filterwarnings("ignore")
def test_every_torchvision_models_own_state_dict_loads(tmp_path: Path, ending: str) -> None:
    from torchvision import models

    failed = {}
    for name in models.list_models():
        if name.startswith("quantized_"):
            continue  # not floating-point models: their state dicts hold packed objects
        try:
            round_trip(name, ending, tmp_path)
        except Exception as error:  # noqa: BLE001 - all of them are shown at once
            failed[name] = f"{type(error).__name__}: {error}"
    assert not failed
