"""A small random ViT of timm, as overrides and as arguments."""

SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 3, "img_size": 32, "patch_size": 8}


MODEL = ("model=timm", "model.name=vit_tiny_patch16_224", "model.weights=null",
         *(f"+model.arguments.{key}={value}" for key, value in SMALL.items()),
         "dataset=synthetic", "dataset.limit=2", "device=cpu")  # fmt: skip
