"""A day with one's own network: a class in a file, a Lightning checkpoint, PCA pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import Run

CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU())
        self.head = nn.Linear(16, 4)

    def forward(self, images):
        return self.head(self.body(images).mean((2, 3)))
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "mynet.py").write_text(CODE, encoding="utf-8")
    space: dict[str, type] = {}
    exec(compile(CODE, "mynet.py", "exec"), space)
    torch.manual_seed(1)
    state = {f"model.{name}": value for name, value in space["Net"]().state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3, "global_step": 40}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_from_checkpoint_to_pca(
    run: Run, checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = ("model=checkpoint", "model.class_path=mynet.py:Net", "model.weights=last.ckpt",
           "model.transform.resize=64", "model.transform.crop=64")  # fmt: skip
    images = ("dataset=flat_folder", f"dataset.root={photos}", "on_error=skip", "device=cpu")
    code, said, err = run("layers", "--all", *own, *images)
    assert code == 0, err
    assert "body.2" in said
    code, said, err = run("run", *own, *images, "layers.include=[body.1,body.3]", "renderers=[pca]")
    assert code in (0, 4), err
    assert "removed the prefix 'model.' from the names" in err
    pictures = sorted((tmp_path / "run" / "pictures" / "pca").glob("*.png"))
    assert len(pictures) > 3
    for path in pictures:
        assert np.asarray(Image.open(path).convert("RGB")).std() > 10
    code, said, _ = run("info", str(tmp_path / "run"))
    assert code == 0
    assert "model     Net" in said
