"""The library in a scikit-learn user's words: images to features, and classifiers over features.

    make_pipeline(ImageFeatures(backbone), LinearProbe()).fit(images, y).decision_function(others)   # (N, K)

They clone, grid-search and pipeline like scikit-learn's own. This subpackage imports scikit-learn; the others do not.
"""

from transferkit.estimators.head_classifier import HeadClassifier
from transferkit.estimators.image_features import ImageFeatures
from transferkit.estimators.linear_probe import LinearProbe

__all__ = ["HeadClassifier", "ImageFeatures", "LinearProbe"]
