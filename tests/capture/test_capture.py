"""Capture gives what a layer returned.

Against direct formulas, with in-place and reused layers, leaving no trace.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pipeline.capture.hooks import capture, copied
from pipeline.capture.tensors import arguments, tensors_in
from pipeline.capture.trace import TracedTensor, record
from pipeline.common.errors import LayerError
from pipeline.models.tiny import TinyModel
from tests.helpers.tiny_formula import formula


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    return TinyModel().load().module


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_every_layer_equals_the_formula_before_in_place_layers(
    tiny: nn.Module, images: torch.Tensor
) -> None:
    expected = formula(tiny, images)
    assert expected["bn1"].min() < 0  # what an in-place ReLU would destroy
    assert expected["conv2"].min() < 0
    with torch.inference_mode(), capture(tiny, list(expected)) as activations:
        tiny(images)
    for name, value in expected.items():
        torch.testing.assert_close(activations[name], value, rtol=1e-5, atol=1e-5)


def test_a_kept_reference_would_be_caught(tiny: nn.Module, images: torch.Tensor) -> None:
    expected = formula(tiny, images)["bn1"]
    with (
        torch.inference_mode(),
        capture(tiny, "bn1", process=lambda _name, out: out.detach()) as wrong,
    ):
        tiny(images)
    assert not torch.allclose(wrong["bn1"], expected, rtol=1e-5, atol=1e-5)


def test_a_reused_layer_gives_one_activation_per_call(
    tiny: nn.Module, images: torch.Tensor
) -> None:
    expected = formula(tiny, images)
    with torch.inference_mode(), capture(tiny, ["relu"]) as activations:
        tiny(images)
    assert list(activations) == ["relu:0", "relu:1"]
    shapes = [f"{name} {tuple(expected[name].shape)}" for name in ("relu:0", "relu:1")]
    assert repr(activations) == f"<Activations: {', '.join(shapes)}>"
    torch.testing.assert_close(activations["relu:1"], expected["relu:1"], rtol=1e-5, atol=1e-5)
    with pytest.raises(LayerError, match=r"called 2 times; choose one of relu:0, relu:1"):
        activations["relu"]
    for missing in ("conv1", "relu:9"):
        with pytest.raises(KeyError, match=f"'{missing}' is not captured"):
            activations[missing]


def test_the_input_of_a_layer_is_copied_before_it_is_overwritten(
    tiny: nn.Module, images: torch.Tensor
) -> None:
    with torch.inference_mode(), capture(tiny, ["relu:in:0"]) as activations:
        tiny(images)
    torch.testing.assert_close(
        activations["relu:in:0"], formula(tiny, images)["bn1"], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_hooks_are_gone_whatever_was_raised(
    tiny: nn.Module, images: torch.Tensor, error: type[BaseException]
) -> None:
    with pytest.raises(error), capture(tiny, ["conv1", "relu:in", "fc"]):
        tiny(images)
        raise error
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in tiny.modules())


def test_training_goes_on_as_if_nothing_had_happened(images: torch.Tensor) -> None:
    plain = TinyModel(weights=None).load(seed=3).module
    plain.requires_grad_(True).train()
    watched = copy.deepcopy(plain)
    for model, watch in ((plain, False), (watched, True)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            if watch:
                with capture(model, ["bn1", "conv2"]) as activations:
                    loss = model(images).square().mean()
                assert not activations["bn1"].requires_grad
            else:
                loss = model(images).square().mean()
            loss.backward()
            optimizer.step()
    assert watched.training
    for (name, one), two in zip(
        plain.state_dict().items(), watched.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name


def test_each_forward_pass_replaces_the_one_before(tiny: nn.Module, images: torch.Tensor) -> None:
    with torch.inference_mode(), capture(tiny, ["relu", "fc"]) as activations:
        tiny(images)
        first = activations["fc"]
        tiny(images * 2)
        assert len(activations) == 3
        assert not torch.equal(first, activations["fc"])


class Branching(nn.Module):
    """Layers that return tuples and dicts, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()
        self.named = Named()
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, (b, _) = self.pair(x)
        return self.named(a + b)["out"]


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, None]]:
        return x + 1, (x * 2, None)


class Named(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": x, "aux": x.flip(0)}


def test_elements_of_tuples_and_dicts_have_addresses() -> None:
    x = torch.arange(6.0).reshape(3, 2)
    model = Branching()
    with capture(model, ["pair[0]", "pair[1.0]", "named[aux]"]) as activations:
        model(x)
    torch.testing.assert_close(activations["pair[0]"], x + 1)
    torch.testing.assert_close(activations["pair[1.0]"], x * 2)
    torch.testing.assert_close(activations["named[aux]"], (3 * x + 1).flip(0))


def test_the_calls_of_an_element_are_named_as_they_are_read() -> None:
    model, x = Branching(), torch.arange(6.0).reshape(3, 2)
    run = nn.Sequential(model, model)
    with capture(run, ["0.pair[1.0]"]) as activations:
        run(x)
    assert [*activations] == ["0.pair:0[1.0]", "0.pair:1[1.0]"]
    with pytest.raises(LayerError, match=r"choose one of 0\.pair:0\[1\.0\], 0\.pair:1\[1\.0\]$"):
        activations["0.pair[1.0]"]
    torch.testing.assert_close(activations["0.pair:1[1.0]"], 2 * (3 * x + 1))


def test_what_cannot_be_captured_is_named() -> None:
    model = Branching()
    with (
        pytest.raises(LayerError, match=r"no layer 'pear'; did you mean pair\?"),
        capture(model, ["pear"]),
    ):
        pass
    with (
        pytest.raises(LayerError, match=r"choose one of \[0\], \[1\.0\]"),
        capture(model, ["pair"]),
    ):
        model(torch.ones(2, 2))
    with capture(model, ["unused"]) as activations:
        model(torch.ones(2, 2))
    with pytest.raises(LayerError, match="not reached"):
        activations["unused"]
    with (
        pytest.raises(LayerError, match=r"torch\.func's are never captured"),
        capture(model, ["output"]),
    ):
        torch.func.grad(lambda x: model(x).sum())(torch.ones(2, 2))


def test_copies_share_no_memory_and_are_contiguous() -> None:
    source = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    copy_ = copied(source, torch.float16)
    assert copy_.is_contiguous()
    assert not copy_.requires_grad
    assert copy_.dtype is torch.float16
    assert copy_.data_ptr() != source.data_ptr()


def test_observe_sees_every_call_in_order(tiny: nn.Module, images: torch.Tensor) -> None:
    calls = record(tiny, images).calls
    assert [(c.layer, c.call) for c in calls] == [
        ("conv1", 0), ("bn1", 0), ("relu", 0), ("conv2", 0), ("relu", 1), ("pool", 0), ("fc", 0),
    ]  # fmt: skip
    assert calls[0].outputs == {None: TracedTensor((3, 4, 16, 16), "float32")}
    assert calls[0].parameters == 4 * 3 * 9 + 4


def test_tensors_in_nested_outputs() -> None:
    x = torch.zeros(1)
    assert set(tensors_in({"a": (x, [x]), "b": None})) == {"a.0", "a.1.0"}
    assert tensors_in("text") == {}


def test_keys_that_read_alike_are_told_apart() -> None:
    x = torch.zeros(1)
    tensors = tensors_in({0: x, "0": x + 1, "a.b": x + 2, "a": {"b": x + 3}})
    assert {k: t.item() for k, t in tensors.items()} == {"0": 0, "_0": 1, "a.b": 2, "_a.b": 3}


def test_a_layers_input_is_its_only_argument_or_all_by_position_and_name() -> None:
    assert arguments((1,), {}) == 1
    assert arguments((1, 2), {}) == {0: 1, 1: 2}
    assert arguments((1,), {"mask": 3}) == {0: 1, "mask": 3}
    assert arguments((), {"x": 3}) == {"x": 3}


def test_globs_and_types_choose_layers(tiny: nn.Module, images: torch.Tensor) -> None:
    expected = formula(tiny, images)
    with capture(tiny, ["conv?", "re:b.1"]) as found:
        tiny(images)
    assert list(found) == ["conv1", "conv2", "bn1"]
    assert torch.allclose(found["conv2"], expected["conv2"], atol=1e-5)
    with capture(tiny, "*", types=["Conv2d", "Linear"]) as found:
        tiny(images)
    assert list(found) == ["conv1", "conv2", "fc"]
    for types in ("Linear", nn.Linear, [nn.Linear]):
        with capture(tiny, "*", types=types) as found:
            tiny(images)
        assert list(found) == ["fc"]
    for layers in (tiny.conv1, [tiny.conv1], tiny.children()):
        with (
            pytest.raises(LayerError, match=r"layers: name them, e\.g\. 'conv1'; got Conv2d\("),
            capture(tiny, layers),
        ):
            pass
    with (
        pytest.raises(LayerError, match=r"'cnv\*' matches no layer of the model"),
        capture(tiny, ["cnv*"]),
    ):
        pass
    with (
        pytest.raises(LayerError, match="matches no layer of type LSTM"),
        capture(tiny, ["*"], types=["LSTM"]),
    ):
        pass


@pytest.mark.parametrize("part", ["", "conv1"])
def test_modules_that_were_compiled_in_place_are_refused(part: str) -> None:
    model = TinyModel().load().module
    model.get_submodule(part).compile(backend="eager")
    with pytest.raises(LayerError, match="is compiled already"), capture(model, ["conv1"]):
        pass


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_call_that_is_recomputed_for_its_gradient_is_no_second_call(
    images: torch.Tensor, reentrant: bool
) -> None:
    from torch.utils.checkpoint import checkpoint

    class Saving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kept: torch.Tensor = checkpoint(self.block, x, use_reentrant=reentrant)
            return kept.mean()

    model, given = Saving(), images.clone().requires_grad_()
    with capture(model, ["block.0", "block.0:in", "block"]) as found:
        score = model(given)
        before = {name: found[name].clone() for name in found}
        score.backward()  # type: ignore[no-untyped-call]
        assert list(found) == ["block.0", "block.0:in", "block"]
        assert all(torch.equal(found[name], value) for name, value in before.items())
    assert given.grad is not None
    assert torch.allclose(found["block.0"], model.block[0](images), atol=1e-6)


class Recursive(nn.Module):
    """Scores an image and its mirror image by calling itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor, *, mirrored: bool = True) -> torch.Tensor:
        if mirrored:
            return self(x, mirrored=False).relu() + self(x.flip(-1), mirrored=False)
        return self.conv(x)


def test_a_model_that_calls_itself_is_one_forward_pass(images: torch.Tensor) -> None:
    model = Recursive()
    one, other = model.conv(images), model.conv(images.flip(-1))
    layers = ["conv", "output", "output@relu"]
    with torch.inference_mode(), capture(model, layers) as activations:
        with pytest.raises(RuntimeError):
            model(images[:, :2])
        for _ in range(2):
            model(images)
    names = ["conv:0", "conv:1", "output:0", "output:1", "output:2", "output@relu"]
    expected = [one, other, one, other, one.relu() + other, one.relu()]
    assert list(activations) == names
    for name, value in zip(names, expected, strict=True):
        assert torch.equal(activations[name], value), name


def test_a_whole_model_that_is_recomputed_for_its_gradient_keeps_its_activations(
    tiny: nn.Module, images: torch.Tensor
) -> None:
    from torch.utils.checkpoint import checkpoint

    given = images.clone().requires_grad_()
    with capture(tiny, ["conv1"]) as activations:
        checkpoint(tiny, given, use_reentrant=False).sum().backward()
        assert torch.equal(activations["conv1"], tiny.conv1(images))


class Sum(nn.Module):
    """Adds a layer's output to its input; `error` interrupts it."""

    error: BaseException | None = None

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = self.linear(x)
        if self.error is not None:
            raise self.error
        return scaled + x


LAYERS = ["linear", "output:in", "output", "output@add"]


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), SystemExit()])
def test_a_pass_after_an_interrupted_one_replaces_its_activations(error: BaseException) -> None:
    model, vectors = Sum(), torch.randn(3, 2)
    with capture(model, LAYERS) as activations:
        model.error = error
        with pytest.raises(type(error)):
            model(torch.ones(3, 2))
        model.error = None
        output = model(vectors)
        assert list(activations) == LAYERS
    expected = [output - vectors, vectors, output, output]
    for value, wanted in zip(activations.values(), expected, strict=True):
        torch.testing.assert_close(value, wanted)


def test_a_copy_of_a_model_that_is_being_captured_is_a_model_of_its_own() -> None:
    model, vectors = Sum(), torch.randn(3, 2)
    with capture(model, LAYERS) as activations:
        output = model(vectors)
        best = copy.deepcopy(model)
        with torch.no_grad():
            model.linear.weight.zero_()
        assert torch.equal(best(vectors), output)
        assert torch.equal(activations["output"], output)  # not replaced by the copy's
        best.linear.weight = model.linear.weight
        assert torch.equal(best(2 * vectors), model.linear.bias + 2 * vectors)
        assert torch.equal(activations["output"], output)


def test_a_forward_that_is_assigned_or_deleted_inside_a_block_stays() -> None:
    model, vectors = Sum(), torch.randn(3, 2)
    output = model(vectors)
    with capture(model, LAYERS) as activations:
        captured = model.forward
        model.forward = lambda x: 2 * captured(x)
        assert torch.equal(model(vectors), 2 * output)
        assert torch.equal(activations["linear"], model.linear(vectors))
        assert torch.equal(model(vectors), 2 * output)
    assert torch.equal(model(vectors), 2 * output)
    with capture(model, LAYERS):
        del model.forward
        assert torch.equal(model(vectors), output)
    assert torch.equal(model(vectors), output)


def test_a_layer_in_code_that_was_compiled_earlier_is_named_with_the_remedy() -> None:
    model, vectors = Sum(), torch.randn(3, 2)
    compiled = torch.compile(model, backend="eager")
    with torch.inference_mode():
        compiled(vectors)
        with capture(model, ["linear"]) as activations:
            compiled(vectors)
            with pytest.raises(LayerError, match=r"compiled earlier .*torch\.compiler\.reset\(\)"):
                activations["linear"]
            torch.compiler.reset()
            compiled(vectors)
        assert torch.equal(activations["linear"], model.linear(vectors))


def test_blocks_may_end_in_any_order() -> None:
    model, vectors = Sum(), torch.randn(3, 2)
    first, second = capture(model, LAYERS), capture(model, LAYERS)
    with torch.inference_mode():
        first.__enter__()
        activations = second.__enter__()
        first.__exit__(None, None, None)
        output = model(vectors)
        assert list(activations) == LAYERS
        second.__exit__(None, None, None)
    assert torch.equal(activations["output@add"], output)
    assert "forward" not in vars(model)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
