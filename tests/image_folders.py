"""Folders of real images for tests: scikit-learn's handwritten digits as PNG files."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

CLASSES = ("0", "1", "2")


def write_digits(root, train=12, test=4, val=0, mode="L", size=8):
    """Write ``root/<split>/<class>/*.png`` with so many images per class in each split; return ``root``."""
    images, targets = load_digits(return_X_y=True)
    for label in CLASSES:
        pixels = (images[targets == int(label)].reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
        first = 0
        for split, count in (("train", train), ("test", test), ("val", val)):
            if not count:
                continue
            folder = Path(root, split, label)
            folder.mkdir(parents=True)
            for number, image in enumerate(pixels[first : first + count]):
                Image.fromarray(image).convert(mode).resize((size, size)).save(folder / f"{number}.png")
            first += count
    return Path(root)
