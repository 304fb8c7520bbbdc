"""An example: a linear probe for each layer of an archive, and its accuracy by depth.

    uv run python scripts/linear_probe.py ARCHIVE [OUT.png] [--layers GLOB …] [--epochs 20]

Every layer is pooled over its positions and standardised; a linear layer learns the labels from
four fifths of the samples and is tested on the others. A table is printed too (`--json`).
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from measuring import parser_of
from torch import Tensor, nn

from pipeline import ActivationLoader, Archive
from pipeline.archive.format.layer_entry import LayerEntry
from pipeline.common.progress import table


def pooled(maps: Tensor, entry: LayerEntry) -> Tensor:
    """Return the mean over positions, without prefix tokens, `(sample, channel)`."""
    maps = maps.float().movedim(entry.channel_axis, 1)
    return maps.flatten(2)[..., entry.prefix_positions :].mean(2) if maps.ndim > 2 else maps


def probe(archive: Path, layer: str, train: list[int], test: list[int], epochs: int) -> float:
    """Return the accuracy on the test samples of a probe that learned from the others, 0..1."""
    with Archive.open(archive) as opened:
        entry = opened.layer(layer).entry
        labels = torch.tensor([sample.label for sample in opened.samples])
        figures = opened.layer(layer).sample_mean[train]
    mean = torch.from_numpy(np.nanmean(figures, axis=0))
    std = torch.from_numpy(np.nanstd(figures, axis=0)) + 1e-6
    classes = int(labels.max()) + 1
    torch.manual_seed(0)
    linear = nn.Linear(entry.channels, classes)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=1e-2, weight_decay=1e-2)
    learning = ActivationLoader(archive, layer, batch_size=32, rows=train)
    for _ in range(epochs):
        for batch in learning:
            scores = linear((pooled(batch.activations[layer], entry) - mean) / std)
            loss = nn.functional.cross_entropy(scores, batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    learning.close()
    testing = ActivationLoader(archive, layer, batch_size=32, rows=test, shuffle="none")
    right = 0
    with torch.no_grad():
        for batch in testing:
            scores = linear((pooled(batch.activations[layer], entry) - mean) / std)
            right += int((scores.argmax(1) == batch.labels).sum())
    testing.close()
    return right / len(test)


def draw(names: list[str], accuracies: list[float], chance: float, title: str, out: Path) -> None:
    figure = Figure(figsize=(max(5, 0.45 * len(names) + 2), 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(range(len(names)), accuracies, marker="o", color="#3b528b")
    axes.axhline(chance, color="#696973", linestyle=":", label="most frequent label")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set(ylabel="accuracy on held-out samples", ylim=(0, 1.02), title=title)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=150)


def quick_archive(folder: Path) -> Path:
    """Extract a small archive to show that it runs."""
    from pipeline import Extraction, LayerSelector, Synthetic, TinyModel, extract

    made = extract(Extraction(
        model=TinyModel(), dataset=Synthetic(samples=60, height=32, width=32, classes=2),
        layers=LayerSelector(include=("conv1", "conv2", "fc")), archive=str(folder / "archive"),
        device="cpu",
    ))  # fmt: skip
    return made.archive


def main() -> None:
    parser = parser_of(__doc__, "on a small archive of its own")
    parser.add_argument("archive", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?", default=Path("linear_probe.png"))
    parser.add_argument("--layers", nargs="+", default=["*"])
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        if options.quick:
            options.archive, options.out = quick_archive(Path(scratch)), Path(scratch) / "probe.png"
        if options.archive is None:
            parser.error("name an archive")
        with Archive.open(options.archive) as opened:
            names = [layer.name for layer in opened.with_layers(options.layers).layers.values()]
            labels = np.array([sample.label for sample in opened.samples])
            rows = np.flatnonzero(opened.stored & (labels >= 0))
            title = f"linear probe · {opened.manifest.model_title}"
        if len(rows) < 5 or len(np.unique(labels[rows])) < 2:
            parser.error(f"{options.archive}: needs five labelled samples with two labels or more")
        order = np.random.default_rng(0).permutation(rows).tolist()
        test, train = order[: len(order) // 5], order[len(order) // 5 :]
        chance = float(np.bincount(labels[test]).max() / len(test))
        accuracies = [probe(options.archive, name, train, test, options.epochs) for name in names]
        draw(names, accuracies, chance, title, options.out)
    if options.json:
        sys.stdout.write(json.dumps(dict(zip(names, accuracies, strict=True)), indent=1) + "\n")
        return
    lines = [(name, f"{share:.3f}") for name, share in zip(names, accuracies, strict=True)]
    lines.append(("most frequent label", f"{chance:.3f}"))
    sys.stdout.write(
        table(["layer", "accuracy"], lines) + ("" if options.quick else f"{options.out}\n")
    )


if __name__ == "__main__":
    main()
