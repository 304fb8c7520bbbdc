"""featuremaps: record and render the activations of vision networks.

Every name is loaded on first use, so importing this package is cheap.

    import pipeline

    extraction = pipeline.Extraction(
        model=pipeline.TorchvisionModel(name="resnet18"),
        dataset=pipeline.ImageFolder(root="photos"),
        layers=pipeline.LayerSelector(include=("layer1", "layer4")),
        archive="outputs/resnet18",
    )
    made = pipeline.extract(extraction)
    pipeline.render(made.archive, "outputs/drawn", {"grid": pipeline.Grid(max_channels=64)})
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
