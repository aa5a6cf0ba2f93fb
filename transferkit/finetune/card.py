"""The card of a classifier: what it was fitted on, how well it scores, and what its scores mean."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch.utils.data import Subset

from transferkit.annotated import Presence
from transferkit.display import as_json, fit, markdown_table
from transferkit.errors import CheckpointError, listed, require
from transferkit.files import write_text
from transferkit.finetune._fitted import Fitted, plain
from transferkit.finetune._fitting import Setup
from transferkit.scorer.calibration import Calibration
from transferkit.scorer.result import percent
from transferkit.transfer.account import versions


@dataclass(frozen=True)
class Card:
    """What whoever gets a classifier should know; plain values throughout.

    Attributes:
        network: Name of the network.
        class_names: (K,) names, the background first.
        features: ``"shared"`` or ``"exact"``: how the features were computed that it was fitted on.
        protocol: The recipe, with what was chosen on held-out photos.
        recipe: The same as a table.
        data: What it was fitted on: the data set, its number of photos, and those of each class; empty if not known.
        results: By the way that features were computed, the ``to_dict()`` of a
            :class:`~transferkit.scorer.ClassificationResult`.
        calibrations: By the same, the ``to_dict()`` of a calibration, with ``thresholds`` for the classes in order.
        license: What the user says; photos and pretrained weights have licenses that the library does not know.
        versions: Of the software that it was fitted with.

    Example:
        >>> card = Card("alexnet", ("background", "cat"), "shared", {}, "protocol mine", license="CC0-1.0")
        >>> Card.from_dict(card.to_dict()) == card
        True
        >>> print(card.to_markdown().splitlines()[0])
        # Classifier of cat
    """

    network: str
    class_names: tuple[str, ...]
    features: str
    protocol: Mapping[str, Any]
    recipe: str
    data: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    calibrations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    license: str = "not stated"
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        return {**asdict(self), "class_names": list(self.class_names)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Card:
        """Return the card that :meth:`to_dict` described.

        Raises:
            CheckpointError: The values are not those of a card.
        """
        try:
            return cls(**{**values, "class_names": tuple(values["class_names"])})
        except (TypeError, KeyError) as error:
            raise CheckpointError(f"the card cannot be read: {error}") from error

    def thresholds(self, way: str) -> dict[str, float]:
        """Return the threshold of each class, for scores from ``"shared"`` or ``"exact"`` features; empty if none."""
        found = self.calibrations.get(way, {}).get("thresholds", ())
        pairs = zip(self.class_names[1:], found, strict=False)
        return {name: math.inf if threshold is None else threshold for name, threshold in pairs}

    def to_markdown(self) -> str:
        """Return the card as a page of Markdown."""
        facts = {"network": self.network, "features": self.features, "license": self.license, **self.data}
        columns: list[tuple[str, Any]] = [("photos fitted on", facts.pop("photos of class", {}))]
        columns += [(f"AP in %, {way} features", _ap_of(result)) for way, result in self.results.items()]
        for way in self.calibrations:
            found = self.thresholds(way).items()
            columns.append((f"threshold, {way} features", {name: f"{value:.4g}" for name, value in found}))
        rows = [["", *(title for title, _ in columns)]]
        names = (*self.class_names[1:], None)
        rows += [[name or "mean", *(str(column.get(name, "")) for _, column in columns)] for name in names]
        tests = [
            f"- {way} features: tested on {result['num_images']} photos by {result['rule']}; in brackets the "
            f"{result['level']:.0%} interval, where there is one"
            for way, result in self.results.items()
        ]
        parts = [
            f"# Classifier of {listed(self.class_names[1:])}",
            _pairs(facts),
            "## Classes",
            markdown_table(rows),
        ]
        parts += ["\n".join(tests or ["- not tested"]), "## Recipe", f"```text\n{self.recipe}\n```"]
        return "\n\n".join([*parts, "## Versions", _pairs(self.versions)]) + "\n"

    def write(self, saved: str | os.PathLike[str]) -> None:
        """Write the card beside a saved classifier: ``pets.tk.md`` and ``pets.tk.json`` beside ``pets.tk``."""
        write_text(f"{os.fspath(saved)}.md", self.to_markdown())
        write_text(f"{os.fspath(saved)}.json", as_json(self.to_dict()) + "\n")


def card_of(fitted: Fitted, setup: Setup, results: Any, calibration: Any, license: str | None) -> Card:
    """Return the card of a fitted classifier; what a loaded one's file says is kept where nothing new is given."""
    way = setup.features.method_for(fitted.protocol)
    if fitted.card is not None:
        card = Card.from_dict(fitted.card)
    else:
        data = fitted.run.settings.get("fitted_on") if fitted.run else None
        recipe = (plain(fitted.protocol), str(fitted.protocol))
        card = Card(setup.network_name, fitted.class_names, way, *recipe, data or {}, versions=versions())
    return replace(
        card,
        results={**card.results, **_by_way("results", results, way)},
        calibrations={**card.calibrations, **_by_way("calibration", calibration, way)},
        license=license or card.license,
    )


def described(photos: Any, truth: Presence, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Return what a card says of the photos that a classifier is fitted on."""
    whole = photos.dataset if isinstance(photos, Subset) else photos
    kind: Any = type(whole)
    says_nothing = kind.__repr__ in (object.__repr__, list.__repr__, tuple.__repr__)
    name = kind.__name__ if says_nothing else fit(repr(whole), 200)
    return {
        "fitted on": name if whole is photos else f"a part of {name}",
        "photos": len(photos),
        "photos without boxes": 0 if truth.boxed is None else int((~truth.boxed).sum()),
        "photos of class": dict(zip(class_names[1:], truth.present.sum(dim=0).tolist()[1:], strict=True)),
    }


def _by_way(argument: str, given: Any, way: str) -> dict[str, dict[str, Any]]:
    """Return the plain values of what was measured, by the way that features were computed; alone it is ``way``'s."""
    by_way = given if isinstance(given, Mapping) else {} if given is None else {way: given}
    fits = all(name in ("shared", "exact") and hasattr(each, "to_dict") for name, each in by_way.items())
    require(fits, argument, "what was measured, or a dict of it by 'shared' and 'exact'", given)
    return {name: json.loads(as_json(_plain(each))) for name, each in by_way.items()}


def _plain(measured: Any) -> dict[str, Any]:
    """Return a result; of a calibration its thresholds and what they say, not the scores that it holds."""
    if not isinstance(measured, Calibration):
        return dict(measured.to_dict())
    said = measured.decisions.to_dict()
    return {"criterion": measured.criterion, "thresholds": list(measured.thresholds), "held_out": said}


def _ap_of(result: Mapping[str, Any]) -> dict[str | None, str]:
    """Return the AP of each class in percent, and for ``None`` the mean, with intervals where there are some."""
    known = [(each["name"], each["ap"][result["rule"]], each.get("interval")) for each in result["classes"]]
    known.append((None, result["mean_ap"], result["mean_interval"]))
    return {name: percent(value) + _range(interval) for name, value, interval in known if value is not None}


def _range(interval: list[float | None] | None) -> str:
    low, high = interval or (None, None)
    return "" if low is None or high is None else f" ({percent(low)} to {percent(high)})"


def _pairs(values: Mapping[str, Any]) -> str:
    return markdown_table([["", ""], *([name, str(value)] for name, value in values.items())])
