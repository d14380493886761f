"""Image data sets by name: digits, torchvision's, or a folder of images."""

from .._errors import extra

with extra("train"):
    from .images import ImageData, ImageFacts
    from .sources import DATASETS, LabelledImages, Recipe, open_split, recipe_for

__all__ = ["DATASETS", "ImageData", "ImageFacts", "LabelledImages", "Recipe", "open_split", "recipe_for"]
