"""A head of this library as a scikit-learn classifier."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from transferkit.errors import ArgumentError, require
from transferkit.estimators.head_training import HeadTraining, Rows, train_head
from transferkit.estimators.scores import decided, decision, probabilities
from transferkit.estimators.standardize import Standardize
from transferkit.estimators.targets import Targets, read_targets
from transferkit.heads import (
    MULTI_LABEL,
    SINGLE_LABEL,
    Objective,
    SingleLabel,
    adaptation_head,
    cosine_head,
    linear_head,
)
from transferkit.optimization import EarlyStopping, WeightAverage, hold_out


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
