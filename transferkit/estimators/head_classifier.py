"""A head of this library as a scikit-learn classifier."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import assert_all_finite, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, column_or_1d, validate_data
from torch import Tensor, nn

from transferkit.errors import ArgumentError, require
from transferkit.estimators._head_training import HeadTraining, Rows, train_head
from transferkit.heads import (
    MULTI_LABEL,
    SINGLE_LABEL,
    MultiLabel,
    Objective,
    SingleLabel,
    adaptation_head,
    cosine_head,
    linear_head,
)
from transferkit.optimization import EarlyStopping, WeightAverage, hold_out


class Standardize(nn.Module):
    """Subtract a mean and divide by a spread, per feature.

    Args:
        mean: (D,).
        spread: (D,), positive.

    Example:
        >>> layer = Standardize.of(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        >>> layer(torch.tensor([[3.0, 6.0]]))
        tensor([[1., 1.]])
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, mean: Tensor, spread: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)

    @classmethod
    def of(cls, features: Tensor) -> Standardize:
        """Return the layer that brings these features (N, D) to mean 0 and variance 1; a constant one to 0."""
        mean = features.mean(dim=0)
        # Rounding leaves a constant feature a spread of its last digits, which must not be blown up to 1.
        spread = features.std(dim=0, correction=0)
        constant = spread <= 10 * torch.finfo(features.dtype).eps * mean.abs()
        return cls(mean, spread.masked_fill(constant, 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """Standardize (..., D)."""
        return (features - self.mean) / self.spread

    def extra_repr(self) -> str:
        """Return the number of features."""
        return f"{len(self.mean)}"


# What scikit-learn calls y: classes, or which classes each row shows.


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


# What scikit-learn's methods answer, from the logits of a head.


def decision(logits: NDArray[Any], several: bool) -> NDArray[Any]:
    """Return what ``decision_function`` answers.

    Args:
        logits: (N, K).
        several: Whether a row may show several classes.

    Returns:
        (N, K); for two exclusive classes (N,), positive where the second is more likely.
    """
    return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 and not several else logits


def decided(logits: NDArray[Any], classes: NDArray[Any], several: bool) -> NDArray[Any]:
    """Return what ``predict`` answers: labels (N,), or 0 and 1 (N, K) where a row may show several classes."""
    labels: NDArray[Any] = (logits > 0).astype(np.int64) if several else classes[logits.argmax(axis=1)]
    return labels


def probabilities(logits: NDArray[Any], objective: Objective, several: bool) -> NDArray[Any]:
    """Return what ``predict_proba`` answers.

    Args:
        logits: (N, K).
        objective: What they were trained for.
        several: Whether a row may show several classes.

    Returns:
        (N, K); each row sums to 1 unless a row may show several classes. Exclusive classes that were trained each
        by itself share 1 in the ratio of their probabilities, as in scikit-learn's ``OneVsRestClassifier``.
    """
    probs: NDArray[Any] = objective.probs(torch.from_numpy(logits)).numpy()
    if isinstance(objective, MultiLabel) and not several:
        probs = probs / np.maximum(probs.sum(axis=1, keepdims=True), np.finfo(probs.dtype).tiny)
    return probs


class HeadClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A head of one or more layers, trained by AdamW on features (N, D).

    Fitted, it is a head like any other: :meth:`to_head` returns it for use on a network.

    Args:
        head: ``"linear"``, ``"mlp"`` (the adaptation layers), ``"cosine"``, or a function of ``in_features`` and
            ``num_classes`` that builds a module.
        hidden: Width of each hidden layer of ``"mlp"``.
        drop_rate: Dropout after each of them.
        objective: Loss and probabilities; softmax for one label per row and sigmoids for several, unless given.
        epochs: At most.
        batch_size: Rows per step.
        learning_rate: The highest; it rises over the first tenth of the epochs and falls in a cosine.
        weight_decay: Of AdamW.
        standardize: Whether features are brought to mean 0 and variance 1 first.
        average: A :class:`~transferkit.optimization.WeightAverage`.
        early_stopping: An :class:`~transferkit.optimization.EarlyStopping`, by the loss on a held-out part.
        validation_fraction: Of the rows, for that part.
        random_state: Of the first weights, the order of rows, dropout and the held-out part.
        device: To train and predict on.

    Attributes:
        classes_: (K,) labels.
        head_: The trained module, (N, D) -> (N, K) logits.
        objective_: The objective it was trained for.
        losses_, held_losses_: Mean loss in nats by epoch, on trained and on held-out rows.
        n_features_in_: D.

    Example:
        >>> X = np.array([[0.0, 1.0], [1.0, 1.2], [4.0, 0.9], [5.0, 1.1]])
        >>> classifier = HeadClassifier("mlp", hidden=(16,), random_state=0).fit(X, ["near", "near", "far", "far"])
        >>> classifier.predict([[0.5, 1.0], [6.0, 1.0]]).tolist()
        ['near', 'far']
    """

    def __init__(
        self,
        head: str | Callable[[int, int], nn.Module] = "linear",
        *,
        hidden: tuple[int, ...] = (512,),
        drop_rate: float = 0.5,
        objective: Objective | None = None,
        epochs: int = 50,
        batch_size: int = 64,
        learning_rate: float = 0.001,
        weight_decay: float = 0.01,
        standardize: bool = True,
        average: WeightAverage | None = None,
        early_stopping: EarlyStopping | None = None,
        validation_fraction: float = 0.1,
        random_state: Any = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.head = head
        self.hidden = hidden
        self.drop_rate = drop_rate
        self.objective = objective
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.standardize = standardize
        self.average = average
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any) -> HeadClassifier:
        """Train.

        Args:
            X: (N, D) features, float32 or float64; the head computes in the same.
            y: (N,) labels; or (N, K) in 0..1, and NaN for what does not count.

        Raises:
            ArgumentError: A setting or ``y`` is none of these.
            DivergedError: The loss became infinite or NaN.
        """
        X = validate_data(self, X, dtype=[np.float32, np.float64])
        targets = read_targets(y, len(X))
        settings = HeadTraining(
            self.epochs,
            self.batch_size,
            self.learning_rate,
            self.weight_decay,
            self.average,
            self.early_stopping,
        )
        self.classes_, self._several = targets.classes, targets.several
        self.objective_ = self._choose_objective(targets)
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        everything = self._rows(X, targets)
        rows, held = everything, None
        if self.early_stopping is not None:
            parts = hold_out(targets.presence, self.validation_fraction, seed)
            rows, held = (Rows(*(part[indices] for part in everything)) for indices in parts)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = self._build(rows.features, len(targets.classes))
            generator = torch.Generator().manual_seed(seed)
            trained = train_head(module, rows, self.objective_, settings, generator, held)
        self.head_, self.losses_, self.held_losses_ = trained
        self.n_iter_ = len(self.losses_)
        return self

    def _choose_objective(self, targets: Targets) -> Objective:
        objective = self.objective or (MULTI_LABEL if targets.several else SINGLE_LABEL)
        if targets.several and isinstance(objective, SingleLabel):
            raise ArgumentError(
                f"objective must be multi-label where y has several columns, got {objective}; use MultiLabel()"
            )
        return objective

    def _rows(self, X: NDArray[Any], targets: Targets) -> Rows:
        features = torch.tensor(X, device=self.device)
        values = targets.values.to(features.device)
        return Rows(features, values.to(features.dtype) if targets.several else values)

    def _build(self, features: Tensor, num_classes: int) -> nn.Module:
        """Return the head in the features' dtype and on their device, behind what brings them to one scale."""
        width = features.shape[1]
        if callable(self.head):
            head = self.head(width, num_classes)
        elif self.head == "mlp":
            head = adaptation_head(width, num_classes, self.hidden, self.drop_rate)
        else:
            require(
                self.head in ("linear", "cosine"), "head", "'linear', 'mlp', 'cosine' or a function", self.head
            )
            head = linear_head(width, num_classes) if self.head == "linear" else cosine_head(width, num_classes)
        scale = Standardize.of(features) if self.standardize else nn.Identity()
        return nn.Sequential(OrderedDict(scale=scale, head=head)).to(features)

    def decision_function(self, X: Any) -> NDArray[Any]:
        """Return logits (N, K); for two exclusive classes their difference (N,), as scikit-learn does."""
        logits = self._logits(X)
        return decision(logits, self._several)

    def predict(self, X: Any) -> NDArray[Any]:
        """Return labels (N,), or 0 and 1 (N, K) where it was fitted with several labels per row."""
        logits = self._logits(X)
        return decided(logits, self.classes_, self._several)

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Return probabilities (N, K); each row sums to 1 unless a row may show several classes."""
        logits = self._logits(X)
        return probabilities(logits, self.objective_, self._several)

    @torch.inference_mode()
    def _logits(self, X: Any) -> NDArray[Any]:
        check_is_fitted(self, "head_")
        weight = next(self.head_.parameters())
        X = validate_data(self, X, dtype=[np.float32, np.float64], reset=False)
        logits: Tensor = self.head_(torch.tensor(X, device=weight.device, dtype=weight.dtype))
        numbers: NDArray[Any] = logits.cpu().numpy()
        return numbers

    def to_head(self) -> nn.Module:
        """Return the trained head, (B, D) -> (B, K) logits, with what brings features to one scale in it."""
        check_is_fitted(self, "head_")
        return self.head_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        tags.non_deterministic = self.random_state is None
        return tags
