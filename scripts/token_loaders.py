"""What tokens for a sparse autoencoder cost: this loader, np.memmap and saev on the same values.

    uv run python scripts/token_loaders.py [--quick] [--json] [--folder FOLDER] [--saev FOLDER]

An epoch over all patch tokens of a ViT's layer, in mixed batches. `np.memmap` gathers a full
permutation of the tokens. FOLDER holds the package saev and what it imports (pip install --target):
its first release (a torch Dataset) or a later one (a reservoir that processes share). Cold epochs
run after the kernel was asked to drop the files' pages.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measuring import clock, parser_of
from reading import drop
from synthetic_archive import SyntheticLayer, write_archive
from torch.utils.data import DataLoader

from pipeline.archive.format.statistics import Statistics
from pipeline.common.progress import table
from pipeline.training.activation_loader import ActivationLoader

TOKENS, WIDTH, IMAGES_PER_SHARD = 196, 768, 256
BATCH = 64  # images' tokens
SAEV_ITEMS = 20_000  # tokens that the first release of saev is timed on


def write(folder: Path, images: int) -> Path:
    """Write the same tokens as an archive and as saev's shards; return the shards' folder."""
    block = np.random.default_rng(0).standard_normal(
        (IMAGES_PER_SHARD, 1 + TOKENS, WIDTH), np.float32
    )
    nothing, whole = np.zeros((images, WIDTH), np.float32), np.full((images, WIDTH), TOKENS)
    figures = (whole, nothing, nothing, nothing, nothing, whole * 0, whole * 0)
    layer = SyntheticLayer(
        shape=block.shape[1:], rows=lambda start, stop: block[: stop - start],
        more={"grid": (14, 14), "prefix_tokens": 1, "class_token": True},
        figures=lambda count: Statistics(*(values[:count] for values in figures)),
    )  # fmt: skip
    shards = images // IMAGES_PER_SHARD
    ids = [f"{i:08d}" for i in range(images)]
    write_archive(folder / "archive", {"x": layer}, ids, shards=shards, block=IMAGES_PER_SHARD)
    other = folder / "saev" / "shards" / "tokens"
    other.mkdir(parents=True)
    names = [f"acts{number:06}.bin" for number in range(shards)]
    for name in names:
        block[:, None].tofile(other / name)
    facts = [{"name": name, "n_examples": IMAGES_PER_SHARD} for name in names]
    (other / "shards.json").write_text(json.dumps(facts))
    return other


def memmap(other: Path, images: int) -> Iterator[Any]:
    """Yield batches of a full permutation of the tokens."""
    shape = (IMAGES_PER_SHARD, 1 + TOKENS, WIDTH)
    shards = [
        np.memmap(path, np.float32, "r", shape=shape) for path in sorted(other.glob("acts*.bin"))
    ]
    order = np.random.default_rng(0).permutation(images * TOKENS)
    for start in range(0, len(order), BATCH * TOKENS):
        image, token = np.divmod(order[start : start + BATCH * TOKENS], TOKENS)
        batch = np.empty((len(image), WIDTH), np.float32)
        for number, values in enumerate(shards):
            here = image // IMAGES_PER_SHARD == number
            batch[here] = values[image[here] % IMAGES_PER_SHARD, 1 + token[here]]
        yield batch


def saev(other: Path, images: int) -> tuple[Callable[[], Any], float]:
    """Return an epoch of saev's loader, and the share of the tokens that it covers."""
    facts = {"layers": [0], "cls_token": True, "data": ""}
    if not (Path(sys.path[0]) / "saev" / "data" / "shuffled.py").exists():
        from saev import activations, config

        facts |= {
            "vit_family": "", "vit_ckpt": "", "n_patches_per_img": TOKENS, "d_vit": WIDTH,
            "seed": 0, "n_imgs": images, "n_patches_per_shard": IMAGES_PER_SHARD * (1 + TOKENS),
        }  # fmt: skip
        (other / "metadata.json").write_text(json.dumps(facts))
        settings = config.DataLoad(
            shard_root=str(other), patches="patches", layer=0, scale_mean=False, scale_norm=False
        )
        data = activations.Dataset(settings)

        def epoch() -> None:
            loader = DataLoader(data, batch_size=BATCH * TOKENS, shuffle=True, num_workers=2)
            for number, _ in enumerate(loader):
                if (number + 1) * BATCH * TOKENS >= SAEV_ITEMS:
                    return

        batches = -(-SAEV_ITEMS // (BATCH * TOKENS))
        return epoch, min(1, batches * BATCH / images)
    from saev.data import shuffled

    facts |= {
        "family": "clip", "ckpt": "", "content_tokens_per_example": TOKENS, "d_model": WIDTH,
        "n_examples": images, "max_tokens_per_shard": IMAGES_PER_SHARD * (1 + TOKENS),
        "dataset": "", "pixel_agg": "majority", "dtype": "float32", "protocol": "2.1",
    }  # fmt: skip
    (other / "metadata.json").write_text(json.dumps(facts))
    (other / "labels.bin").touch()
    config = shuffled.Config(
        shards=other, layer=0, batch_size=BATCH * TOKENS, buffer_size=8, n_threads=2
    )
    return lambda: list(map(len, shuffled.DataLoader(config))), 1.0


def main() -> None:
    parser = parser_of(__doc__, "few images, one round")
    parser.add_argument("--gigabytes", type=float, default=1.2)
    parser.add_argument("--saev", type=Path, help="folder with the package saev")
    options = parser.parse_args()
    image_bytes = 4 * TOKENS * WIDTH
    shards = 1 if options.quick else round(options.gigabytes * 1e9 / image_bytes / 256)
    images = max(1, shards) * IMAGES_PER_SHARD
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        other = write(Path(scratch), images)
        loader = ActivationLoader(
            Path(scratch) / "archive", "x", BATCH, tokens="patch", images_per_batch=4 * BATCH
        )
        ways: dict[str, tuple[Callable[[], Any], float]] = {
            "ActivationLoader": (lambda: [batch.rows[0] for batch in loader], 1.0),
            "np.memmap, full permutation": (lambda: [len(x) for x in memmap(other, images)], 1.0),
        }
        if options.saev:
            sys.path.insert(0, str(options.saev.absolute()))
            ways["saev"] = saev(other, images)
        files = [*Path(scratch).rglob("*.h5"), *other.glob("acts*.bin")]
        lines = []
        for way, (epoch, share) in ways.items():
            for state in ("cold", "warm"):
                if state == "cold":
                    drop(iter(files))
                tokens = images * TOKENS * share / clock(epoch)
                lines.append({"loader": way, "pages": state, "tokens/s": round(tokens),
                              "GB/s": tokens * 4 * WIDTH / 1e9})  # fmt: skip
        loader.close()
    if options.json:
        sys.stdout.write(json.dumps(lines, indent=1) + "\n")
        return
    rows = [
        [one["loader"], one["pages"], f"{one['tokens/s']:,}", f"{one['GB/s']:.2f}"] for one in lines
    ]
    sys.stdout.write(f"{images} images of {TOKENS} × {WIDTH} float32\n" + table([*lines[0]], rows))


if __name__ == "__main__":
    main()
