"""State dicts: loading into a module, and digests."""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.common.errors import WeightsError, reraised
from pipeline.models.weights.files import StateDict
from pipeline.models.weights.fitting import Checkpoint, Rename

log = logging.getLogger(__name__)


def tensors_of(state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of every entry of a state dict.

    Quantized layers store tuples, and tensors that are yielded as their float32 values. Sparse
    tensors are yielded as dense ones, and those that wrap others (torchao's) as these.
    """
    for name, value in state.items():
        if hasattr(value, "__tensor_flatten__"):
            parts, _ = value.__tensor_flatten__()
            yield from tensors_of({f"{name}.{part}": getattr(value, part) for part in parts})
        elif isinstance(value, torch.Tensor):
            dense = value if value.layout is torch.strided else value.to_dense()
            yield name, dense.dequantize() if dense.is_quantized else dense
        elif isinstance(value, (tuple, list)):
            yield from tensors_of({f"{name}.{i}": item for i, item in enumerate(value)})


def state_of(module: nn.Module, **options: Any) -> dict[str, Any]:
    """Return a module's state dict; its class may define the method itself.

    Raises:
        ConfigError: when that method fails.
    """
    with reraised(f"model: state_dict() of {type(module).__name__} failed"):
        return dict(module.state_dict(**options))


def state_digest(module: nn.Module) -> str:
    """Return the sha256 over name, dtype, shape and bytes of every parameter and buffer."""
    digest = hashlib.sha256()
    for name, value in tensors_of(module.state_dict()):
        # A copy: torch never resizes the memory of a tensor that NumPy has seen.
        tensor = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fit_state_dict(
    module: nn.Module,
    state: StateDict,
    *,
    origin: object,
    strict: bool = True,
    prefix: str | None = None,
    rename: Rename = str,
) -> None:
    """Load `state` into `module`, completely or (not strict) where names and shapes match.

    Args:
        state: names of a checkpoint → tensors; nested state dicts are searched, too.
        prefix: prefix to remove from the names; None removes the prefix that makes all names fit.
        rename: maps a name in the file to the model's.
    """
    state_of_module = state_of(module, keep_vars=True)
    if any(getattr(v, "is_quantized", isinstance(v, tuple)) for v in state_of_module.values()):
        raise WeightsError(
            f"model.weights: the model is quantized; load {origin} in the model's own code, and "
            "set model.weights=null"
        )
    tensors: dict[str, Tensor] = {
        name: value for name, value in state_of_module.items() if hasattr(value, "dtype")
    }
    checkpoint = Checkpoint(state, tensors, rename)
    network = checkpoint.choose(tensors, origin, strict=strict, prefix=prefix)
    if network.prefix:
        log.info("model.weights: removed the prefix '%s.' from the names of %s", network.prefix,
                 origin)  # fmt: skip
    if network.added:
        log.info("model.weights: added the prefix %r to the names of %s", network.added, origin)
    weights = StateDict((network.added + name, value) for name, value in network.weights.items())
    _check_values(weights, tensors, origin)
    for name in tensors:  # torch does not require them
        if name.endswith("num_batches_tracked"):
            weights.setdefault(name, tensors[name])
    # A file without versions (safetensors) is assumed to have the current ones.
    versions = checkpoint.versions(network) or getattr(module.state_dict(), "_metadata", {})
    weights._metadata = versions  # type: ignore[attr-defined]
    with reraised(f"model.weights: {origin} cannot be loaded", WeightsError):
        module.load_state_dict(weights, strict=False)


def _check_values(
    weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], origin: object
) -> None:
    for name, value in weights.items():
        is_float = tensors[name].dtype.is_floating_point
        unlike = value.dtype.itemsize == 1 or not value.dtype.is_floating_point
        if value.is_quantized or (is_float and unlike):
            raise WeightsError(
                f"model.weights: {name} in {origin} is {str(value.dtype).removeprefix('torch.')}, "
                f"in the model {str(tensors[name].dtype).removeprefix('torch.')}; use the weights "
                "from before quantization"
            )
