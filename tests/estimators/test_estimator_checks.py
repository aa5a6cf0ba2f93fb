"""scikit-learn's own checks of estimators."""

from __future__ import annotations

from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from transferkit.estimators import HeadClassifier, LinearProbe
from transferkit.heads import MULTI_LABEL
from transferkit.optimization import EarlyStopping, WeightAverage

ESTIMATORS = [
    LinearProbe(),
    LinearProbe("svm"),
    HeadClassifier(random_state=0),
    HeadClassifier(random_state=0, objective=MULTI_LABEL),
    HeadClassifier("mlp", hidden=(32,), random_state=0),
    HeadClassifier(random_state=0, average=WeightAverage(0.9), early_stopping=EarlyStopping(10)),
]


# No failure is expected of any of them.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(ESTIMATORS)
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)
