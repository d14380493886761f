"""Image data sets by name: digits, torchvision's, or a folder of images."""

from manifold_resnet._errors import extra

with extra("train"):
    from manifold_resnet.data.images import ImageData, ImageFacts
    from manifold_resnet.data.outliers import OUTLIERS, open_outliers
    from manifold_resnet.data.sources import DATASETS, LabelledImages, Recipe, open_split, recipe_for

__all__ = [
    "DATASETS",
    "OUTLIERS",
    "ImageData",
    "ImageFacts",
    "LabelledImages",
    "Recipe",
    "open_outliers",
    "open_split",
    "recipe_for",
]
