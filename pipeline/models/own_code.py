"""Code of users and libraries: every failure becomes a one-line error."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import ConfigError, FeaturemapsError, one_line, reraised

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)
_folders: list[str] = []
_modules_before: set[str] = set()


@contextmanager
def own_code(subject: str, folder: Path, script: str, hint: str = "") -> Iterator[None]:
    """Run code that may import siblings, parse arguments, print a usage text and exit.

    Args:
        subject: start of the error message.
        folder: folder of its siblings. It comes first on the import path while the block runs and
            last afterwards, for imports in `forward`.
        script: value of `sys.argv[0]` while the block runs.
        hint: end of the error message.
    """
    _forget_others(str(folder))
    arguments, sys.argv = sys.argv, [script]
    usage = _Usage()
    path_before = [*sys.path]
    sys.path.insert(0, str(folder))
    try:
        with redirect_stderr(usage):
            yield
    except (FeaturemapsError, KeyboardInterrupt):
        raise
    except BaseException as error:
        remedy = "; put the script's code behind `if __name__ == '__main__':`"
        raise ConfigError(
            f"{subject}: {failure(error)}"
            + (f" ({one_line(usage.text.splitlines()[-1], limit=200)})" if usage.text else "")
            + (remedy if isinstance(error, SystemExit) else "")
            + hint
        ) from error
    finally:
        sys.argv = arguments
        sys.path[:] = dict.fromkeys([*path_before, str(folder)])


@contextmanager
def folder_kept() -> Iterator[None]:
    """Return to the current folder after code that may change it, for paths of the configuration.

    Also a decorator.
    """
    folder = os.open(".", getattr(os, "O_PATH", os.O_RDONLY))
    try:
        yield
    finally:
        os.fchdir(folder)
        os.close(folder)


def failure(error: BaseException) -> str:
    """Describe an exception in one line."""
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    text = f"{type(error).__name__}: {one_line(error, limit=200)}"
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "pipeline":
        text += "; the package `pipeline` is featuremaps' own: rename yours"
    return text


def accepting_arguments(name: str, rejections: Any = Exception) -> AbstractContextManager[None]:
    """Raise what a library raises for `model.arguments` as ConfigError."""
    return reraised(f"model.arguments: {name} rejected them", of=rejections)


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Make float32 torch's default dtype inside the block, unless the code in it sets another."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        if torch.get_default_dtype() is torch.float32:
            torch.set_default_dtype(before)


class _Usage:
    """Standard error, except that text from a usage message on is kept in `text`."""

    def __init__(self) -> None:
        self._stream = sys.stderr
        self.text = ""

    def write(self, text: str) -> int:
        if self.text or text.lower().startswith("usage:"):
            self.text += text
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _forget_others(folder: str) -> None:
    """Unload modules from the folder of earlier code: both may have a `utils.py`."""
    if not _modules_before:
        _modules_before.update(sys.modules)
    stale_folders = tuple(f"{other}/" for other in _folders if other != folder)
    for name, module in [*sys.modules.items()] if stale_folders else ():
        file = getattr(module, "__file__", None) or ""
        is_user_code = name not in _modules_before and "site-packages" not in file
        if is_user_code and file.startswith(stale_folders) and name.partition(".")[0] != "pipeline":
            del sys.modules[name]
    sys.path[:] = [path for path in sys.path if f"{path}/" not in stale_folders]
    _folders[:] = [folder]
    importlib.invalidate_caches()


def fill_lazy_layers(module: nn.Module, shape: tuple[int, ...]) -> None:
    """Initialize lazy layers (`nn.LazyConv2d`, …) with a blank image."""
    import torch

    if not any(map(torch.nn.parameter.is_lazy, (*module.parameters(), *module.buffers()))):
        return
    text = f"model: its lazy layers cannot take their sizes from an image of {shape}"
    remedy = "; set model.transform.resize and model.transform.crop"
    with reraised(text, hint=remedy), torch.no_grad():
        module.eval()(torch.zeros(1, *shape))


def evaluation_mode(module: nn.Module) -> None:
    """Put every submodule into evaluation mode, even if `train` or `eval` is overridden."""
    if all(_is_torchs(type(submodule).train, 1) and _is_torchs(type(submodule).eval, 0)
           for submodule in module.modules()):  # fmt: skip
        try:
            module.eval()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - foreign code raises anything
            log.warning("model: eval() failed (%s); setting `training` of every submodule instead",
                        failure(error))  # fmt: skip
    else:
        log.info("model: train() or eval() is incompatible; setting `training` of every submodule")
    for submodule in module.modules():
        if submodule.training:
            submodule.training = False


def _is_torchs(method: Callable[..., object], limit: int) -> bool:
    """Return whether a method is compatible with `train(mode=True)` or `eval()`."""
    _, *parameters = inspect.signature(method).parameters.values()
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p for p in parameters if p.default is p.empty and p.kind not in variable]
    return len(required) <= limit and (not limit or not plain or plain[0].name == "mode")
