"""What scikit-learn calls y: classes, or which classes each row shows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, column_or_1d
from torch import Tensor

from transferkit.errors import ArgumentError


class Targets(NamedTuple):
    """Classes and, per row, which of them is there.

    Attributes:
        classes: (K,) the labels in ascending order; 0..K-1 with several labels per row.
        values: (N,) int64 positions in ``classes``; or (N, K) floating in 0..1, NaN where not counted.
    """

    classes: NDArray[Any]
    values: Tensor

    @property
    def several(self) -> bool:
        """Whether a row may show several classes."""
        return self.values.ndim == 2

    @property
    def presence(self) -> Tensor:
        """Which classes each row shows, (N, K) bool; what is not counted is not there."""
        if self.several:
            return self.values > 0.5
        return torch.nn.functional.one_hot(self.values, len(self.classes)).bool()


def read_targets(y: Any, rows: int) -> Targets:
    """Read ``y`` of ``fit``.

    Args:
        y: (N,) labels of any kind; or (N, K) with 0, 1 or anything between, and NaN for what does not count, as an
            image that shows a class only as *difficult* objects.
        rows: N.

    Raises:
        ArgumentError: Another number of rows, values outside 0..1, or one class only.
    """
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] > 1:
        values = check_array(y, dtype=np.float64, ensure_all_finite="allow-nan", input_name="y")
        low, high = np.nanmin(values, initial=0.0), np.nanmax(values, initial=1.0)
        if low < 0 or high > 1:
            raise ArgumentError(f"y must be in 0..1 where it has several columns, got {low:g}..{high:g}")
        targets = Targets(np.arange(y.shape[1]), torch.from_numpy(values))
    else:
        labels = column_or_1d(y, warn=True)
        assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
        classes, codes = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ArgumentError(f"y must have two classes at least, got one class: {classes.tolist()}")
        targets = Targets(classes, torch.from_numpy(codes.astype(np.int64)))
    if len(targets.values) != rows:
        raise ArgumentError(f"y must have one row for each of X's {rows}, got {len(targets.values)}")
    return targets
