"""A linear classifier over frozen features: the baseline that everyone should try first."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from transferkit.errors import ArgumentError, require
from transferkit.estimators.head_classifier import Targets, decided, decision, probabilities, read_targets
from transferkit.heads import MULTI_LABEL, SINGLE_LABEL


def _gives_probabilities(probe: LinearProbe) -> bool:
    return probe.kind == "logistic"


class LinearProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Logistic regression or a linear support vector machine by scikit-learn, with several labels per row too.

    With several labels, each class is told from the rest by itself. Fitted, it is one linear layer, which
    :meth:`to_head` returns for use on a network, on patches, or on a GPU.

    Args:
        kind: ``"logistic"`` or ``"svm"``.
        C: Inverse strength of the L2 penalty.
        standardize: Whether features are brought to mean 0 and variance 1 first, which makes one ``C`` fit many
            kinds of features.
        class_weight: ``"balanced"`` to let every class weigh the same, whatever its number.
        max_iter: At most so many iterations of the solver.
        random_state: Of the solver, where it draws.

    Attributes:
        classes_: (K,) labels.
        coef_: (K, D), or (1, D) for two classes, over features as they come in.
        intercept_: (K,) or (1,).
        n_iter_: Iterations of the solver, the most for any class.
        n_features_in_: D.

    Example:
        >>> X = np.array([[0.0, 1.0], [1.0, 1.2], [4.0, 0.9], [5.0, 1.1]])
        >>> probe = LinearProbe().fit(X, ["near", "near", "far", "far"])
        >>> probe.predict([[0.5, 1.0], [6.0, 1.0]]).tolist()
        ['near', 'far']
        >>> LinearProbe().fit(X, [[1, 0], [1, 1], [0, 1], [0, 0]]).decision_function(X).shape
        (4, 2)
    """

    def __init__(
        self,
        kind: Literal["logistic", "svm"] = "logistic",
        *,
        C: float = 0.01,
        standardize: bool = True,
        class_weight: str | None = None,
        max_iter: int = 1000,
        random_state: Any = None,
    ) -> None:
        self.kind = kind
        self.C = C
        self.standardize = standardize
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> LinearProbe:
        """Fit.

        Args:
            X: (N, D) features.
            y: (N,) labels; or (N, K), 0 or 1, and NaN for what does not count.

        Raises:
            ArgumentError: ``kind`` or ``y`` is none of these, or a class has only positives or only negatives.
        """
        require(self.kind in ("logistic", "svm"), "kind", "'logistic' or 'svm'", self.kind)
        X = validate_data(self, X, dtype=np.float64)
        targets = read_targets(y, len(X))
        self.classes_, self._several = targets.classes, targets.several
        mean = X.mean(axis=0) if self.standardize else np.zeros(X.shape[1])
        spread = X.std(axis=0) if self.standardize else np.ones(X.shape[1])
        spread[spread == 0] = 1
        rows, basis = reduced((X - mean) / spread)
        solvers = self._fit_rows(rows, targets)
        weights = np.vstack([solver.coef_ for solver in solvers])
        biases = np.concatenate([solver.intercept_ for solver in solvers])
        self.n_iter_ = max(int(np.max(solver.n_iter_)) for solver in solvers)
        self.coef_ = (weights @ basis if basis is not None else weights) / spread
        self.intercept_ = biases - self.coef_ @ mean
        return self

    def _fit_rows(self, rows: NDArray[Any], targets: Targets) -> list[Any]:
        """Return fitted solvers: one for exclusive classes, else one per class."""
        if not targets.several:
            return [self._solver().fit(rows, targets.values.numpy())]
        found = []
        for k, column in enumerate(targets.values.numpy().T):
            counted = ~np.isnan(column)
            positive = column[counted] > 0.5
            if positive.all() or not positive.any():
                only = "positives" if positive.all() and len(positive) else "negatives"
                raise ArgumentError(
                    f"y must have positives and negatives of each class, got only {only} of {k}"
                )
            found.append(self._solver().fit(rows[counted], positive))
        return found

    def _solver(self) -> Any:
        settings = {"C": self.C, "class_weight": self.class_weight, "max_iter": self.max_iter}
        if self.kind == "logistic":
            return LogisticRegression(random_state=self.random_state, **settings)
        return LinearSVC(random_state=self.random_state, **settings)

    def decision_function(self, X: Any) -> NDArray[Any]:
        """Return scores (N, K), larger for more likely; (N,) for two exclusive classes, as scikit-learn does."""
        logits = self._logits(X)
        return decision(logits, self._several)

    def predict(self, X: Any) -> NDArray[Any]:
        """Return labels (N,), or 0 and 1 (N, K) where it was fitted with several labels per row."""
        logits = self._logits(X)
        return decided(logits, self.classes_, self._several)

    @available_if(_gives_probabilities)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Return probabilities (N, K); each row sums to 1 unless a row may show several classes."""
        logits = self._logits(X)
        return probabilities(logits, MULTI_LABEL if self._several else SINGLE_LABEL, self._several)

    def _logits(self, X: Any) -> NDArray[Any]:
        """Return scores (N, K); for two exclusive classes 0 and the score of the second."""
        check_is_fitted(self, "coef_")
        X = validate_data(self, X, dtype=np.float64, reset=False)
        coef, intercept = self._per_class()
        scores: NDArray[Any] = X @ coef.T + intercept
        return scores

    def _per_class(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return weights (K, D) and biases (K,)."""
        if self._several or len(self.classes_) > 2:
            return self.coef_, self.intercept_
        return np.vstack([0 * self.coef_, self.coef_]), np.concatenate([0 * self.intercept_, self.intercept_])

    def to_head(self, dtype: torch.dtype = torch.float32) -> nn.Linear:
        """Return the fitted classifier as a head (B, D) -> (B, K), with the same scores.

        For two exclusive classes it has two outputs, 0 and the score, so that their softmax is the probability.

        Args:
            dtype: Of its parameters.
        """
        check_is_fitted(self, "coef_")
        coef, intercept = self._per_class()
        head = nn.Linear(coef.shape[1], len(coef), dtype=dtype)
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(coef))
            head.bias.copy_(torch.from_numpy(intercept))
        return head

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


def reduced(X: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return rows in a basis of the space that they span, and that basis, where they have more columns than rows.

    An L2 penalty keeps the weights within the span of the rows, and lengths in it do not depend on the basis: the
    solution is the same, for a problem of N columns instead of D.

    Args:
        X: (N, D).

    Returns:
        (N, R) and (R, D) with X = rows @ basis and R = N; or X and ``None`` where D is at most N.
    """
    if X.shape[1] <= X.shape[0]:
        return X, None
    q, r = np.linalg.qr(X.T)  # (D, N), (N, N)
    return r.T, q.T
