"""The list of a model's layers, from one dummy forward, for `featuremaps layers`."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline.capture.trace import DUMMY_BATCH_SIZE, TracedTensor
from pipeline.common.errors import LayerError, plural
from pipeline.common.progress import size, table
from pipeline.extraction.dummy_forward import trace_model
from pipeline.extraction.plan import layer_entry, stored_layers
from pipeline.extraction.settings import Extraction


def list_layers(config: Extraction, *, everything: bool, functions: bool, as_json: bool) -> str:
    """Return a table or JSON text of the layers in execution order.

    Args:
        everything: whether to list layers that are not selected.
        functions: whether to list the calls of torch functions, too.
    """
    traced = trace_model(config, functions=functions)
    selection = traced.selection
    problem = ""
    try:
        selected_layers = stored_layers(selection, config)
    except LayerError as error:
        if not everything:
            raise
        selected_layers, problem = [], str(error)
    entries = {layer.name: layer_entry(layer, config) for layer in selected_layers}
    rows: list[dict[str, Any]] = []
    listed_calls = [*traced.trace.calls, *(traced.trace.functions if functions else ())]
    counts = Counter(call.layer for call in listed_calls)
    for call in sorted(listed_calls, key=lambda call: call.order):
        name = call.layer if counts[call.layer] == 1 else f"{call.layer}:{call.call}"
        entry = entries.pop(name, None)
        outputs = {key: _stored(tensor) for key, tensor in call.outputs.items()}
        axes = selection.axes(call, call.outputs[None]) if None in call.outputs else ""
        names = None if isinstance(axes, str) else list(axes.names)
        if names and len(names) == len(outputs[None]):  # a map without channels
            outputs[None].insert(1, 1)
        if entry or everything:
            rows.append({
                "name": name, "type": call.module_type, "calls": counts[call.layer], "axes": names,
                "shape": outputs.get(None, outputs), "parameters": call.parameters,
                "bytes_per_sample": entry and entry.sample_bytes, "selected": entry is not None,
            })  # fmt: skip
    rows += [
        {
            "name": name, "type": entry.module_type, "calls": 1, "axes": list(entry.axes),
            "shape": [DUMMY_BATCH_SIZE, *entry.shape], "parameters": None,
            "bytes_per_sample": entry.sample_bytes, "selected": True,
        }
        for name, entry in entries.items()  # inputs and elements of tuples
    ]  # fmt: skip
    if as_json:
        return json.dumps({"model": config.model.name, "layers": rows}, indent=1) + "\n"
    text = table(_HEAD, map(_line, rows), right=(3, 6, 7))
    total = sum(row["bytes_per_sample"] or 0 for row in rows)
    selected = sum(row["selected"] for row in rows)
    calls = plural(len(traced.trace.calls), "call")
    text += f"{selected} selected, {size(total)} per sample; {calls} in one forward pass\n"
    return text + (f"note: {problem}\n" if problem else "")


def _stored(tensor: TracedTensor) -> list[int]:
    axis, sizes = tensor.sample_axis(), list(tensor.shape)
    return sizes if isinstance(axis, str) else [sizes.pop(axis), *sizes]


_HEAD = ("", "layer", "type", "calls", "axes", "shape", "parameters", "per sample")


def _line(row: dict[str, Any]) -> Sequence[str]:
    shape = row["shape"]
    if isinstance(shape, dict):
        elements = list(shape.items())[:3]
        text = ", ".join(f"[{key}] {_shape(value)}" for key, value in elements) or "no tensor"
    else:
        text = _shape(shape)
    return (
        "*" if row["selected"] else "",
        row["name"],
        row["type"],
        str(row["calls"]),
        " ".join(row["axes"] or ("?",)),
        text,
        "" if row["parameters"] is None else f"{row['parameters']:,}",
        "" if row["bytes_per_sample"] is None else size(row["bytes_per_sample"]),
    )


def _shape(shape: list[int]) -> str:
    return "×".join(str(number) for number in shape[1:]) or "scalar"
