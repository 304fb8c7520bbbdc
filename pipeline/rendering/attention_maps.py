"""Attention maps: the tokens that heads attend to, as maps over the input."""

import re
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator

from pipeline.archive.format.layer_entry import LayerEntry
from pipeline.common.configured import Natural
from pipeline.rendering.views import LayerView


def _query(value: object) -> object:
    pair = list(value) if isinstance(value, (list, tuple)) else []
    if value in ("class", "mean") or (len(pair) == 2 and all(str(i).isdecimal() for i in pair)):
        return value
    raise ValueError(f"must be class, mean, or a row and column as in [3,5], got {value!r}")


Query = Annotated[Literal["class", "mean"] | tuple[Natural, Natural], BeforeValidator(_query)]
"""The class token (without one, the mean over queries), the mean over all queries, or a row and
column of the grid."""
CAVEAT = (
    "Attention is not explanation: the weights show where a head reads from, not why the model "
    "decides."
)
_NAME = re.compile(r".+@(attention|rollout)(:\d+)?")


def is_attention(layer: LayerEntry | LayerView) -> bool:
    """Return whether a layer holds attention weights: all of them, or one row per head."""
    return "query" in layer.axes or _NAME.fullmatch(layer.name) is not None


def misfit(layer: LayerEntry | LayerView, query: Query = "class") -> str:
    """Return why the attention of a query cannot be laid over the input; empty if it can."""
    if not layer.grid and "height" not in layer.axes:
        return "the token grid is not known (at extraction, model.token_grid sets it)"
    if "query" not in layer.axes:
        drawn = query == "class" or _resolved(layer, query) == _stored_query(layer)
        return "" if drawn else "one row per head is stored; reduction.query=all keeps all"
    if isinstance(query, tuple) and layer.grid:
        height, width = layer.grid
        if layer.shape[1] != layer.shape[2]:
            return "the queries are not the tokens of the grid"
        if not (query[0] < height and query[1] < width):
            return f"the grid has {height} rows and {width} columns"
    return ""


def attention_maps(layer: LayerView, query: Query = "class") -> LayerView | None:
    """Return the attention of a query to the grid's tokens, `(head, height, width)`.

    Layers without full weights are unchanged; None if there is a misfit, and for tokens without a
    grid.
    """
    if "query" not in layer.axes:
        return layer if layer.grid or "token" not in layer.axes else None
    if misfit(layer, query) or layer.grid is None:
        return None
    if isinstance(query, tuple):
        row = layer.prefix_tokens + query[0] * layer.grid[1] + query[1]
        weights = layer.maps[:, row]
    elif _resolved(layer, query) == "class":
        weights = layer.maps[:, 0]
    else:
        weights = layer.maps.mean(axis=1, dtype=np.float64).astype(np.float32)
    maps = weights[:, layer.prefix_tokens :].reshape(-1, *layer.grid)
    return replace(layer, maps=maps, axes=("channel", "token"), statistics={})


def query_text(layer: LayerEntry | LayerView, query: Query = "class") -> str:
    """Return the query for a caption."""
    drawn = _resolved(layer, query) if "query" in layer.axes else _stored_query(layer)
    if isinstance(drawn, tuple):
        return f"from row {drawn[0]}, column {drawn[1]}"
    return {"class": "from the class token", "mean": "averaged over queries"}.get(
        drawn, "of one query (as extracted)"
    )


def _stored_query(layer: LayerEntry | LayerView) -> Query | str:
    """Return the query of a layer reduced to one row per head; empty if it is not known."""
    match = re.search(r"\bquery=(\w+)", layer.reduction)
    return _resolved(layer, match[1]) if match else ""


def _resolved(layer: LayerEntry | LayerView, query: Query | str) -> Query | str:
    return "mean" if query == "class" and not layer.class_token else query
