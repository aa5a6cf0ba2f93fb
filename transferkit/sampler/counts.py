"""How many patches each image will give, found with as little work as possible."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.sampler.choose import BadImage, PatchChooser


def patch_counts(chooser: PatchChooser) -> Sequence[int]:
    """Return the number of patches that each image gives, (N,); 0 for an image that cannot be used.

    No image is touched where the balance always chooses the same number. None is decoded where the number follows
    from the image's size, which the data set tells by ``image_size(i)``. Otherwise every image is decoded and
    labelled once.
    """
    size = getattr(chooser.balance, "size", None)
    images = len(chooser.dataset)
    if size is not None and chooser.grid is not None:
        least, most = size(1, chooser.count), size(2**62, chooser.count)
        if least is not None and least == most:
            return [least] * images
        if least is not None and chooser.proposals is None and hasattr(chooser.dataset, "image_size"):
            sizes = map(chooser.dataset.image_size, range(images))
            return [size(chooser.grid.count((height, width)), chooser.count) for height, width in sizes]
    found = (chooser[0, image] for image in range(images))
    return [0 if isinstance(chosen, BadImage) else len(chosen.labels) for chosen in found]
