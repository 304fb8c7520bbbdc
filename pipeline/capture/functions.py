"""Function calls: observe the torch functions that each module's own forward calls.

A call is a layer named `LAYER@FUNCTION`, e.g. `layer1.0@add_` or `blocks.0.mlp@gelu`; the model's
own calls are `output@FUNCTION`. Attention weights (`LAYER@attention`) and their rollout
(`output@rollout`) are derived from such calls, see `attention`.

A `TorchFunctionMode` sees the calls, and forward hooks on every module tell which module makes
them. The mode is active only inside the model's forward, in the thread that runs it.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from pipeline.capture.attention import ATTENTION, ROLLOUT, AttentionCalls, Rollout
from pipeline.capture.tensors import arguments, in_backward, tensors_in

Emit = Callable[[nn.Module, str, int, Any], None]
"""Takes the module, the function's name, the number of the call (from 0) and its result."""
Unobserved = Callable[[Callable[..., None]], Callable[..., None]]


class FunctionCall(nn.Module):
    """Stands for `LAYER@FUNCTION`, a function that `module` calls, among a model's modules."""

    def __init__(self, module: nn.Module, function: str) -> None:
        super().__init__()
        self.__dict__["module"] = module  # not a submodule
        self.function = function


@contextmanager
def observe_functions(
    model: nn.Module, emit: Emit, selected: Container[tuple[nn.Module, str]] | None = None
) -> Iterator[Unobserved]:
    """Report the function calls of every forward pass of `model` inside the block.

    Attention weights and rollouts are reported as `(sample, head, query, key)`, or as a text with
    the reason why they are unknown.

    Args:
        model: any module; its outputs do not change, except where torch has a fused path only
            without modes and hooks (`nn.TransformerEncoder`).
        emit: called right after each call, so that a later in-place change does not matter.
        selected: pairs of module and function name to report; None reports all, and checks that
            attention weights times the values are what the model computes.

    Yields:
        A wrapper for hooks whose own function calls are not the model's.
    """
    mode = _Calls(model, emit, selected)
    with ExitStack() as hooks:
        for module in model.modules():
            if module is not model:
                enter = module.register_forward_pre_hook(mode.enter)
                hooks.callback(enter.remove)
                leave = module.register_forward_hook(
                    mode.unobserved(mode.leave), with_kwargs=True, always_call=True
                )
                hooks.callback(leave.remove)
        hooks.enter_context(each_pass(model, mode.observed))
        yield mode.unobserved


Around = Callable[[tuple[Any, ...], Mapping[str, Any]], AbstractContextManager[None]]


@contextmanager
def each_pass(model: nn.Module, around: Around = lambda *_: nullcontext()) -> Iterator[_Forward]:
    """Run every forward pass of `model` inside the block within `around(args, kwargs)`.

    The attribute `running` of what is yielded tells whether a pass is under way.
    """
    forward = vars(model).get("forward")
    if not isinstance(forward, _Forward):
        forward = model.forward = _Forward(model)
    forward.around.append(around)
    try:
        yield forward
    finally:
        forward.around.remove(around)  # blocks of generators and tasks may end in any order
        if not forward.around and model.forward is forward:
            del model.forward
            vars(model).update(forward.replaced)


class _Forward:
    """Takes the place of a model's `forward`; a copy of the model has its own `forward`."""

    def __init__(self, model: nn.Module) -> None:
        functools.update_wrapper(self, model.forward)
        self.around: list[Around] = []
        self._original = model.forward
        self.running = False
        self.replaced = {"forward": model.forward} if "forward" in vars(model) else {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.running:  # the model calls itself
            return self._original(*args, **kwargs)
        self.running = True
        try:
            with ExitStack() as stack:
                for around in self.around:
                    stack.enter_context(around(args, kwargs))
                return self._original(*args, **kwargs)
        finally:
            self.running = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._original, memo)


class _Calls(TorchFunctionMode):
    """The mode of one observed model."""

    def __init__(
        self, model: nn.Module, emit: Emit, selected: Container[tuple[nn.Module, str]] | None
    ) -> None:
        super().__init__()
        self._model = model
        self._emit = emit
        self._wanted = selected
        self._paused = False
        self._rolls = self._wants(model, ROLLOUT)
        self._attention = self._rolls or any(self._wants(m, ATTENTION) for m in model.modules())
        self._start((), {})

    def __deepcopy__(self, _memo: object) -> _Calls:
        return self  # in the hooks of a copy of the model

    def _wants(self, module: nn.Module, function: str) -> bool:
        return self._wanted is None or (module, function) in self._wanted

    def unobserved(self, hook: Callable[..., None]) -> Callable[..., None]:
        """Return a hook whose function calls are not observed."""

        @functools.wraps(hook)
        def unobserved(*args: Any) -> None:
            self._paused = True
            try:
                hook(*args)
            finally:
                self._paused = False

        return unobserved

    @contextmanager
    def observed(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[None]:
        """Observe one forward pass."""
        self._start(args, kwargs)
        with self:
            yield
        rollout = self._rollout.result()
        if rollout is not None:
            self._report(self._model, ROLLOUT, rollout)

    def _start(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        images = next(iter(tensors_in(arguments(args, kwargs)).values()), None)
        self._samples = 0 if images is None or not images.ndim else len(images)
        self._counts = Counter[tuple[nn.Module, str]]()
        self._frames: list[tuple[nn.Module, AttentionCalls]] = []
        self.enter(self._model, args)
        self._rollout = Rollout()

    def enter(self, module: nn.Module, _args: object) -> None:
        """Begin a module's forward (a forward pre-hook)."""
        capture = self._rolls or self._wants(module, ATTENTION)
        check = self._wanted is None
        calls = AttentionCalls(module, self._samples, capture=capture, check=check)
        self._frames.append((module, calls))

    def leave(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: object
    ) -> None:
        """End a module's forward (a forward hook)."""
        if len(self._frames) < 2 or self._frames[-1][0] is not module:
            return  # recomputed in a backward pass
        _, inner = self._frames.pop()
        if self._attention:
            leaf = next(module.children(), None) is None
            self._frames[-1][1].returned((args, kwargs), output, inner if leaf else None)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = _name_of(func)
        if not in_backward() and not self._paused:
            module, frame = self._frames[-1]
            if name and self._wants(module, name) and tensors_in(output):
                self._report(module, name, output)
            if self._attention:
                with saved_tensors_hooks(_same, _same):  # gradient checkpointing counts tensors
                    weights = frame.called(name, args, kwargs, output)
                    if weights is not None and self._rolls:
                        self._rollout.add(weights, frame)
                if weights is not None and self._wants(module, ATTENTION):
                    self._report(module, ATTENTION, weights)
        return output

    def _report(self, module: nn.Module, name: str, result: object) -> None:
        call = self._counts[module, name]
        self._counts[module, name] += 1
        self._emit(module, name, call, result)


def _same(tensor: Tensor) -> Tensor:
    return tensor


_REFLECTED = ("rsub", "rdiv", "rpow", "rmatmul", "rtruediv", "rfloordiv", "rmod")


@functools.cache
def _name_of(func: Callable[..., Any]) -> str:
    """Return a function's name without underscores around it; empty for attributes of tensors.

    Reflected operators have the name of the operator: `1 - x` is `sub`.
    """
    name = str(getattr(func, "__name__", ""))
    if not (name.startswith("__") and name.endswith("__")):
        return name
    name = name.strip("_")
    if name in ("get", "set", "delete"):
        return ""
    return name[1:] if name in _REFLECTED else name
