"""Modules whose names look like layer paths: `a:1`, `a[0]`, `c@v`; and what a glob leaves out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import nn

from pipeline.capture.hooks import capture
from pipeline.capture.selector import LayerSelector
from pipeline.common.errors import LayerError
from tests.helpers.small_selection import names, selection


class Named(nn.Module):
    """Calls modules of any name in some order."""

    def __init__(self, modules: Mapping[str, nn.Module], order: Sequence[str]) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.order = order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.order:
            x = self.get_submodule(name)(x)
        return torch.relu(x)


@pytest.mark.parametrize("include", ["*", "a", "a:1", "a:0"])
def test_a_layer_named_as_another_layers_call(include: str) -> None:
    model = Named({"a": nn.Tanh(), "a:1": nn.Sigmoid()}, ["a", "a", "a:1"])
    selector = LayerSelector(include=(include,))
    if include in ("a:1", "a:0"):  # the layer's own name, and an unambiguous call
        assert names(selection(model).select(selector)) == [include]
        return
    with pytest.raises(LayerError, match="a:1 is both a layer and an activation of a; rename"):
        selection(model).select(selector)


def test_such_names_of_layers_that_are_called_once() -> None:
    model = Named({n: nn.Tanh() for n in ("a", "a:1", "a[0]")}, ["a", "a:1", "a[0]"])
    chosen = selection(model).select(LayerSelector(include=("*",)))
    assert names(chosen) == ["a", "a:1", "a[0]"]
    with pytest.raises(LayerError, match="a:in is both a layer and an activation of a; rename"):
        selection(Named({n: nn.Tanh() for n in ("a", "a:in")}, ["a", "a:in"])).select(
            LayerSelector(include=("?:in",))
        )


def test_a_name_with_the_mark_of_functions_is_matched_like_any_other() -> None:
    model = Named({"c@v": nn.Tanh(), "d": nn.Tanh()}, ["c@v", "d"])
    for functions in (False, True):
        chosen = selection(model, functions=functions).select(LayerSelector(include=("*",)))
        assert names(chosen) == ["c@v", "d"]
    images = torch.randn(2, 3, 4, 4)
    with capture(model, "*") as activations:
        model(images)
    torch.testing.assert_close(activations["c@v"], images.tanh())
    both = selection(model, functions=True).select(LayerSelector(include=("*@*",)))
    assert {"c@v", "output@relu"} <= {*names(both)}


def test_every_layer_that_a_glob_leaves_out_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pipeline"):
        selection().select(LayerSelector(include=("*",)))
    assert "2 left out: pair is several tensors; use pair[0]" in caplog.text
    assert "unused is never reached in a forward pass" in caplog.text
