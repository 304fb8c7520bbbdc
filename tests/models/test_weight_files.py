"""Weight files: tensors beside any objects, nothing of a file is run, other files are named."""

from __future__ import annotations

import argparse
import enum
import gzip
import io
import json
import os
import pathlib
import pickle
import struct
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.common.errors import ConfigError, WeightsError
from pipeline.models.weights.files import read_state_dict


class Settings(dict[str, Any]):
    """A dictionary with attributes, as yacs, addict and EasyDict have them."""

    def __init__(self, **items: Any) -> None:
        super().__init__(items)
        self.__dict__ = self


class Unknown:
    """A class of the user's own, which refers to itself."""

    __slots__ = ("me", "tensor")

    def __init__(self) -> None:
        self.me, self.tensor = self, torch.ones(2)


class Colour(enum.Enum):
    RED = 1


class Outer:
    class Inner:
        """Pickled as an attribute of another class."""


def weights() -> dict[str, Tensor]:
    """Return tensors of many types and strides; two share memory."""
    base = torch.arange(24, dtype=torch.float32)
    return {
        "view": base[4:16].view(3, 4).t(),
        "whole": base,
        "parameter": nn.Parameter(torch.ones(2, 3)),
        "half": base.to(torch.bfloat16),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
    }


OBJECTS: dict[str, Any] = {
    "options": argparse.Namespace(lr=0.1, out=pathlib.Path("/out")),
    "path of Windows": pathlib.PureWindowsPath("c:/out"),
    "NumPy": [np.float64(0.3), np.arange(3), np.array(["a"], dtype=object), np.dtype("f4")],
    "OmegaConf": OmegaConf.create({"a": {"b": [1, "${a}"]}}),
    "mappings": [defaultdict(list, {"a": [1]}), Settings(a=Settings(b=1))],
    "own": [Unknown(), Outer.Inner(), Colour.RED, {Colour.RED: 1}, {1, 2}, slice(1), os.path.join],
    "module": nn.Linear(2, 2),
}


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize(("zipped", "protocol"), [(True, 2), (False, 2), (True, 5)])
def test_tensors_beside_any_object_are_read(
    name: str, zipped: bool, protocol: int, tmp_path: Path
) -> None:
    tensors = weights()
    if zipped:
        tensors["unsigned"] = torch.arange(4).to(torch.uint16)  # of an untyped storage
    content = {"state_dict": tensors, "other": OBJECTS[name], "epoch": 3}
    path = tmp_path / "last.ckpt"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    read = read_state_dict(path, "state_dict")
    assert list(read) == list(tensors)
    for key, value in tensors.items():
        assert read[key].dtype == value.dtype
        assert torch.equal(read[key], value), key


def test_the_objects_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")  # its placeholders run no code either
    torch.save({"model": weights(), "args": argparse.Namespace()}, tmp_path / "a.pth")
    with caplog.at_level("INFO", "pipeline"):
        read_state_dict(tmp_path / "a.pth")
    assert "objects, which are ignored: argparse.Namespace" in caplog.text


class Call:
    """Pickled, a call of a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_called(zipped: bool, tmp_path: Path) -> None:
    calls = {
        "posix.system": Call(os.system, f"touch {tmp_path}/called"),
        "builtins.eval": Call(eval, f"open({str(tmp_path / 'called')!r}, 'w')"),
        "builtins.__import__": Call(__import__, "antigravity"),
    }
    path = tmp_path / "a.pth"
    for name, call in calls.items():
        torch.save({"model": weights(), "x": call}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(WeightsError, match=f"was not loaded: it calls {name}"):
            read_state_dict(path)
    touch = Call(pathlib.Path.touch, tmp_path / "called")  # harmless-looking: it is ignored
    torch.save({"model": weights(), "x": touch}, path, _use_new_zipfile_serialization=zipped)
    assert list(read_state_dict(path, "model")) == list(weights())
    assert not (tmp_path / "called").exists()


def test_a_crafted_pickle_cannot_take_all_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/version", "3\n")
        archive.writestr("a/data.pkl", b"\x80\x02cfoo\nbar\nr\xff\xff\xff\x7f.")
    with pytest.raises(WeightsError):
        read_state_dict(path)


def test_strides_that_leave_a_tensors_memory_are_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save({"model": {"w": torch.zeros(77)}, "x": argparse.Namespace()}, file)
    changed = file.getvalue().replace(b"KM\x85", b"K\xff\x85")  # size (77,), now (255,)
    if changed == file.getvalue():
        changed = changed.replace(b"KM", b"K\xff")
    (tmp_path / "a.pth").write_bytes(changed)
    with pytest.raises(WeightsError):
        read_state_dict(tmp_path / "a.pth")


def test_a_flipped_bit_is_found_by_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    value = struct.pack("<f", 0.123)
    changed = struct.pack("<f", -0.123)
    path.write_bytes(torch_saved({"w": torch.full((3,), 0.123)}).replace(value, changed, 1))
    with pytest.raises(WeightsError, match=r"data/0 does not match its checksum.* download"):
        read_state_dict(path)


def test_files_saved_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(compute_crc32=False)
    try:
        torch.save(weights(), tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(compute_crc32=True)
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert not any(entry.CRC for entry in archive.infolist())
    assert list(read_state_dict(tmp_path / "a.pth")) == list(weights())


def torch_saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def scripted() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), file)
    return file.getvalue()


def exported() -> bytes:
    file = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), file)
    return file.getvalue()


FOREIGN: dict[str, tuple[Any, str]] = {
    "LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "Git LFS pointer, .* git lfs pull",
    ),
    "web page": (b"\n<!DOCTYPE html><html>", "a web page; .* download it again"),
    "empty": (b"", "is empty; .* download it again"),
    "zeros": (bytes(900), "filled with zeros"),
    "text": (b"hello", r"not a file of torch\.save or safetensors"),
    "JSON": (b'{"weights": {}}', "a JSON file"),
    "gzip": (lambda: gzip.compress(torch_saved(weights())), "gzip; unpack it"),
    "truncated": (lambda: torch_saved(weights())[:-20], "truncated or damaged; .* again"),
    "truncated safetensors": (lambda: save({"a": torch.ones(9)})[:20], "truncated; .* again"),
    "TorchScript": (scripted, r"TorchScript, .*model\.state_dict\(\)"),
    "exported": (exported, r"a torch\.export program; .*model\.state_dict\(\)"),
    "Keras": (b"\x89HDF\r\n\x1a\n" + bytes(90), "an HDF5 file"),
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x05", "an ONNX model"),
    "pickle": (lambda: pickle.dumps({"a": np.ones(2)}), r"a pickle that torch\.save did not write"),
    "module": (
        lambda: torch_saved(nn.Linear(2, 2)),
        r"contains torch\.nn\.\S*Linear objects .*could run code.*model\.state_dict",
    ),
    "nested module": (
        lambda: torch_saved({"model": nn.Linear(2, 2)}),
        r"contains \S*Linear objects",
    ),
    "no names": (lambda: torch_saved(torch.ones(2)), "contains no state dict"),
    "no tensors": (lambda: torch_saved({"epoch": 3}), "contains no state dict"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("name", FOREIGN)
def test_files_that_are_no_state_dict_are_named(name: str, tmp_path: Path) -> None:
    content, message = FOREIGN[name]
    path = tmp_path / "weights.pth"
    path.write_bytes(content() if callable(content) else content)
    with pytest.raises(WeightsError, match=message) as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_an_index_stands_for_the_files_that_it_names(ending: str, tmp_path: Path) -> None:
    parts: dict[str, dict[str, Tensor]] = {}
    for number, (name, tensor) in enumerate(weights().items()):
        parts.setdefault(f"model-{number % 2 + 1}-of-2.{ending}", {})[name] = tensor
    for file, state in parts.items():
        (tmp_path / file).write_bytes(
            save({name: tensor.contiguous().clone() for name, tensor in state.items()})
            if ending == "safetensors"
            else torch_saved(state)
        )
    index = tmp_path / f"model.{ending}.index.json"
    names = {name: file for file, state in parts.items() for name in state}
    index.write_text(json.dumps({"metadata": {"total_size": 9}, "weight_map": names}))
    state = read_state_dict(index)
    assert state.keys() == weights().keys()
    for name, tensor in weights().items():
        assert torch.equal(state[name], tensor)
    (tmp_path / f"model-2-of-2.{ending}").unlink()
    with pytest.raises(ConfigError, match=rf"model-2-of-2\.{ending}: no such file"):
        read_state_dict(index)
    index.write_text('{"weight_map": {"a": "../b.pth"}}')
    with pytest.raises(WeightsError, match=r"damaged or .* '\.\./b\.pth'"):
        read_state_dict(index)


def test_headers_of_safetensors_have_any_length(tmp_path: Path) -> None:
    lengths = set()
    for size in range(300):
        content = save({"a": torch.full((2,), 3.0)}, metadata={"text": "x" * size})
        if content[0] not in lengths:
            (tmp_path / "weights.safetensors").write_bytes(content)
            state = read_state_dict(tmp_path / "weights.safetensors")
            assert torch.equal(state["a"], torch.full((2,), 3.0)), content[:8]
        lengths.add(content[0])
    assert lengths == {*range(0, 256, 8)}


def test_the_content_tells_the_format(tmp_path: Path) -> None:
    tensor = torch.arange(5.0)
    (tmp_path / "a.pth").write_bytes(save({"a": tensor}))
    torch.save({"a": tensor}, tmp_path / "b.safetensors")
    for name in ("a.pth", "b.safetensors"):
        assert torch.equal(read_state_dict(tmp_path / name)["a"], tensor)
