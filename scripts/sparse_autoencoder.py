"""Example: a sparse autoencoder of a vision transformer's patch tokens, and its features.

A small ViT learns to tell crops of the packaged photos apart, a top-k autoencoder learns from the
tokens of one of its blocks, and its codes become an archive beside that of the tokens, which the
explorer, similarity and every renderer open. It takes about a minute on two cores:

    uv run python scripts/sparse_autoencoder.py --folder outputs/sae
"""

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from attention_pictures import PASTED, TEXTURES, crop, photos
from measuring import parser_of
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import (
    ActivationLoader,
    Archive,
    Extraction,
    FlatFolder,
    LayerSelector,
    TimmModel,
    TopSamples,
    add_layer,
    extract,
    render,
)

MODEL, SIDE, LAYER = "vit_tiny_patch16_224", 96, "blocks.2"
SMALL = {"img_size": SIDE, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 4,
         "num_classes": 8}  # fmt: skip
TOKENS, FEATURES, ACTIVE = (SIDE // 8) ** 2, 512, 8
STEPS, EPOCHS = 200, 20


class SparseAutoencoder(nn.Module):
    """Top-k autoencoder.

    Source: Gao et al. (2024), Scaling and evaluating sparse autoencoders, section 2.3.
    """

    def __init__(self, width: int, features: int, active: int) -> None:
        super().__init__()
        self.active = active
        self.decoder = nn.Parameter(F.normalize(torch.randn(features, width)))
        self.encoder = nn.Parameter(self.decoder.detach().T.clone())
        self.bias = nn.Parameter(torch.zeros(width))

    def codes(self, x: Tensor) -> Tensor:
        """Return the largest `active` features of each vector, `(vector, feature)`."""
        values, features = ((x - self.bias) @ self.encoder).relu().topk(self.active, sorted=False)
        return torch.zeros(len(x), len(self.decoder)).scatter(1, features, values)

    def forward(self, x: Tensor) -> Tensor:
        return self.codes(x) @ self.decoder + self.bias


def train_vit(path: Path, steps: int) -> None:
    """Write the state dict of a ViT that names the photo of a crop."""
    torch.manual_seed(0)
    random, images = np.random.default_rng(0), photos()
    model = timm.create_model(MODEL, **SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    for _ in range(steps):
        labels = torch.from_numpy(random.integers(0, len(images), 32))
        crops = [crop([*images.values()][label], SIDE, random) for label in labels]
        pixels = torch.from_numpy(np.stack([np.asarray(one) for one in crops]))
        loss = F.cross_entropy(model(pixels.permute(0, 3, 1, 2) / 127.5 - 1), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(model.state_dict(), path)


def train_autoencoder(archive: Path, epochs: int) -> SparseAutoencoder:
    """Return an autoencoder of the standardised patch tokens."""
    torch.manual_seed(0)
    model = SparseAutoencoder(SMALL["embed_dim"], FEATURES, ACTIVE)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    loader = ActivationLoader(
        archive, LAYER, 8, tokens="patch", normalize="standard", images_per_batch=64, drop_last=True
    )
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.05, epochs * len(loader))
    for _ in range(epochs):
        unexplained, mixed = [], []
        for batch in loader:
            x = batch.activations[LAYER]
            error = (model(x) - x).square().mean()  # of tokens with variance 1
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.decoder.copy_(F.normalize(model.decoder))
            unexplained.append(error.item())
            mixed.append(np.exp(batch.entropy))
        print(f"epoch {loader.epoch}: {np.mean(unexplained):.3f} of the variance is unexplained; "
              f"a batch mixes {np.mean(mixed):.0f} images", flush=True)  # fmt: skip
    loader.close()
    return model


def codes(archive: Path, model: SparseAutoencoder) -> Iterator[Tensor]:
    """Yield the codes of all samples, `(sample, token, feature)`."""
    loader = ActivationLoader(
        archive, LAYER, 8, tokens="patch", normalize="standard", shuffle="none"
    )
    for batch in loader:
        with torch.no_grad():
            yield model.codes(batch.activations[LAYER]).unflatten(0, (-1, TOKENS)).half()
    loader.close()


def main() -> None:
    """Train both models, write the codes, draw the top samples of some features."""
    options = parser_of(__doc__).parse_args()
    folder = options.folder or Path("outputs/sae")
    inputs = folder / "images"
    inputs.mkdir(parents=True, exist_ok=True)
    random, images = np.random.default_rng(1), photos()
    for number in range(4 if options.quick else 50):
        for name in PASTED + TEXTURES:
            crop(images[name], SIDE, random).save(inputs / f"{name}-{number:02}.png")
    weights = folder / "vit.pth"
    if not weights.exists():
        train_vit(weights, 2 if options.quick else STEPS)
    made = extract(Extraction(
        model=TimmModel(name=MODEL, weights=str(weights), arguments=SMALL),
        dataset=FlatFolder(root=str(inputs)), layers=LayerSelector(include=(LAYER,)),
        archive=str(folder / "archive"),
    ))  # fmt: skip
    model = train_autoencoder(Path(made.archive), 1 if options.quick else EPOCHS)
    path = folder / "codes"
    shutil.rmtree(path, ignore_errors=True)  # of an earlier run
    rows = codes(Path(made.archive), model)
    add_layer(made.archive, "codes", rows, like=LAYER, to=path, codec="gzip")
    with Archive.open(path) as archive:
        figures = archive.layers["codes"].statistics
        dead = figures["max"] == 0
        active = 1 - figures["zero_fraction"]
        peak = (figures["max"] - figures["mean"]) / np.where(dead, 1, figures["std"])
        chosen = np.argsort(-np.where(active > 0.01, peak, 0))[:6]  # rarer ones are few patches
        top = TopSamples(channels=tuple(chosen.tolist()))
        drawn = render(archive, folder, {"top_samples": top})
    print(f"{dead.sum()} of {FEATURES} features are dead; the others are active on "
          f"{active[~dead].min():.3%} to {active.max():.1%} of the tokens")  # fmt: skip
    print(drawn.folder / drawn.of_archive[0].path)
    print(f"explore: featuremaps serve {shlex.quote(str(made.archive))} {shlex.quote(str(path))}, "
          f"then layer codes, unit {chosen[0]}")  # fmt: skip


if __name__ == "__main__":
    main()
