"""The activations of a forward pass, by address."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from pipeline.capture.layer_path import LayerPath
from pipeline.common.errors import LayerError, suggestion


class Activations(Mapping[str, Tensor]):
    """The activations of the latest forward pass, by address; each a copy, outside the graph."""

    def __init__(self, addresses: Sequence[LayerPath]) -> None:
        self._addresses = {str(address): address for address in addresses}
        self._calls: dict[str, dict[int, Tensor]] = {}
        self.clear()

    def clear(self) -> None:
        """Forget the latest forward pass."""
        self._calls = {text: {} for text in self._addresses}

    def keep(self, text: str, call: int, activation: Tensor) -> None:
        """Store what call number `call` gave at the address `text`."""
        self._calls[text][call] = activation

    def calls(self, name: str) -> dict[int, Tensor]:
        """Return every call's activation at an address, by call number; empty where none came."""
        return self._calls[name]

    def __getitem__(self, name: str) -> Tensor:
        """Return the activation at an address.

        Raises:
            LayerError: when it was not captured, not reached, or stands for several calls.
        """
        try:
            if name not in self._calls:
                base = LayerPath.parse(name)
                plain = str(LayerPath(layer=base.layer, key=base.key, input=base.input))
                if base.call is not None and base.call in self._calls.get(plain, {}):
                    return self._calls[plain][base.call]
                raise LayerError(f"{name!r} is not captured; {suggestion(name, self._calls)}")
            found = self._calls[name]
            if not found:
                raise LayerError(f"{name!r} was not reached in the latest forward pass")
            if len(found) > 1:
                calls = ", ".join(f"{name}:{call}" for call in sorted(found))
                raise LayerError(f"{name!r} was called {len(found)} times; choose one of {calls}")
        except LayerError as error:
            raise MissingActivationError(str(error)) from None
        return next(iter(found.values()))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the addresses that were reached, with `:call` where there were several."""
        for text, calls in self._calls.items():
            if len(calls) == 1:
                yield text
                continue
            address = self._addresses[text]
            for call in sorted(calls):
                yield str(
                    LayerPath(layer=address.layer, call=call, key=address.key, input=address.input)
                )

    def __len__(self) -> int:
        return sum(len(calls) for calls in self._calls.values())


class MissingActivationError(LayerError, KeyError):
    """An activation that was asked for and is not there; also a KeyError, as for any mapping."""

    def __str__(self) -> str:
        return str(self.args[0])
