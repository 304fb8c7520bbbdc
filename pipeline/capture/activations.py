"""The activations of a forward pass by layer path."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from pipeline.capture.selector import LayerPath
from pipeline.common.errors import LayerError, suggestion


class Activations(Mapping[str, Tensor]):
    """The activations of the latest forward pass by layer path, as detached copies."""

    def __init__(self, paths: Sequence[LayerPath]) -> None:
        self._paths = {str(path): path for path in paths}
        self._calls: dict[str, dict[int, Tensor]] = {}
        self.clear()

    def clear(self) -> None:
        """Forget the latest forward pass."""
        self._calls = {text: {} for text in self._paths}
        self.function_calls = Counter[str]()
        """Number of calls by `LAYER@FUNCTION`, those at no path included."""

    def keep(self, text: str, call: int, activation: Tensor) -> None:
        """Store the activation of one call at the layer path `text`."""
        self._calls[text][call] = activation

    def calls(self, name: str) -> dict[int, Tensor]:
        """Return the activations at a layer path by call; empty if it was not reached."""
        return self._calls[name]

    def __getitem__(self, name: str) -> Tensor:
        """Return the activation at a layer path, or raise MissingActivationError (a LayerError)."""
        if name not in self._calls:
            path = LayerPath.parse(name)
            calls = self._calls.get(str(replace(path, call=None)), {})
            if path.call is not None and path.call in calls:
                return calls[path.call]
            hint = suggestion(name, self._calls)
            raise MissingActivationError(f"{name!r} is not captured; {hint}")
        calls = self._calls[name]
        if not calls:
            raise MissingActivationError(
                f"{name!r} was not reached in the latest forward pass (code compiled earlier has "
                "no hooks; torch.compiler.reset() discards it)"
            )
        if len(calls) > 1:
            names = ", ".join(self._by_call(name))
            raise MissingActivationError(
                f"{name!r} was called {len(calls)} times; choose one of {names}"
            )
        return next(iter(calls.values()))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the layer paths that were reached, with `:call` if there were several."""
        for text, calls in self._calls.items():
            yield from [text] if len(calls) == 1 else self._by_call(text)

    def __repr__(self) -> str:
        shapes = (f"{name} {tuple(activation.shape)}" for name, activation in self.items())
        return f"<Activations: {', '.join(shapes)}>"

    def _by_call(self, text: str) -> list[str]:
        return [str(replace(self._paths[text], call=call)) for call in sorted(self._calls[text])]

    def __len__(self) -> int:
        return sum(len(calls) for calls in self._calls.values())


class MissingActivationError(LayerError, KeyError):
    """A requested activation is missing; also a KeyError, as for any mapping."""

    def __str__(self) -> str:
        return str(self.args[0])
