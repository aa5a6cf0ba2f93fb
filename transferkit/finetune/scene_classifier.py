"""The door: a pretrained network turned into a classifier of scenes, from photos to predictions."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from transferkit.annotated import Presence
from transferkit.backbones import find_preprocessing
from transferkit.checkpoints import Checkpoint
from transferkit.devices import choose_device
from transferkit.distributed import is_first
from transferkit.errors import ArgumentError, StateError, did_you_mean, require
from transferkit.features import FeatureCache
from transferkit.files import require_writable
from transferkit.finetune import _fitting as steps
from transferkit.finetune._saved_classifier import from_plain, plain, read_classifier, write_classifier
from transferkit.finetune.networks import NETWORKS, Network, build_network
from transferkit.finetune.on_features import frozen_features
from transferkit.finetune.photos import as_photos, class_names_of, ids_of, truth_of, with_background
from transferkit.finetune.predictions import Predictions
from transferkit.finetune.protocol import Protocol
from transferkit.finetune.recipes import RECOMMENDED
from transferkit.finetune.run import Run, read_run
from transferkit.finetune.settings import FeatureSettings, LoopSettings
from transferkit.preprocessing import Preprocessing
from transferkit.progress import Progress
from transferkit.sampler import MultiscaleSampler
from transferkit.scorer import ClassificationResult, ImageScorer, PatchLog, evaluate
from transferkit.transfer import WeightTransfer, by_name, freeze


@dataclass(frozen=True, eq=False)
class _Fitted:
    """What a fit came to: all that testing, predicting and saving need."""

    model: nn.Module
    preprocessing: Preprocessing
    protocol: Protocol
    class_names: tuple[str, ...]
    frozen: tuple[str, ...]
    run: Run | None = None


class SceneClassifier:
    """Tell which objects photos show, with a network that was trained on pictures of single objects.

    ``fit`` puts a new head on the network, moves the pretrained weights over, freezes what the recipe does not train,
    computes the features of frozen layers once, chooses on held-out photos what the recipe leaves open, and trains.

    Args:
        network: A name of :data:`~transferkit.finetune.NETWORKS`, ``"package.module:factory"``, or a module of your
            own, which is left as it was: each fit trains a copy.
        protocol: The recipe.
        class_names: (K - 1) or (K,) names, with or without ``"background"`` first; by default the data set's.
        weights: Pretrained weights: a file, a :class:`~transferkit.Checkpoint`, or ``None`` for the network's own.
        allow_missing: Names of layers that the weights may lack, such as ``["classifier.*"]``.
        from_scratch: Transfer nothing and train everything.
        freeze: Train only what comes after this layer; by default what the recipe trains.
        features: How patches become features of the frozen layers, and where those are kept.
        loop: Precision, memory layout, minibatches per step.
        seed: Of every random choice.
        num_workers: Processes that decode photos.
        device: ``"cpu"``, ``"cuda"``, ...; by default the fastest there is.

    Example:
        >>> from dataclasses import replace
        >>> from transferkit.finetune import DEMO
        >>> from transferkit.sampler import AnnotatedImage
        >>> image, box = torch.zeros(3, 64, 64, dtype=torch.uint8), torch.tensor([[8.0, 8, 40, 40]])
        >>> flag = torch.tensor([False])
        >>> photos = [AnnotatedImage(image, box, torch.tensor([1]), flag, flag, name) for name in ("a", "b")]
        >>> recipe = replace(DEMO, epochs=1)
        >>> classifier = SceneClassifier(
        ...     "alexnet-small", recipe, class_names=["cat", "dog"], from_scratch=True, device="cpu"
        ... )
        >>> classifier.fit(photos).predict(photos)
        Predictions(2 photos, 2 classes)

    References:
        Oquab, Bottou, Laptev, Sivic: Learning and transferring mid-level image representations using convolutional
        neural networks, CVPR 2014.
    """

    def __init__(
        self,
        network: str | nn.Module,
        protocol: Protocol = RECOMMENDED,
        *,
        class_names: Iterable[str] | None = None,
        weights: str | os.PathLike[str] | Checkpoint | None = None,
        allow_missing: Iterable[str] = (),
        from_scratch: bool = False,
        freeze: str | None = None,
        features: FeatureSettings = FeatureSettings(),  # noqa: B008 - a frozen value
        loop: LoopSettings = LoopSettings(),  # noqa: B008 - a frozen value
        seed: int = 13,
        num_workers: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        require(isinstance(network, (str, nn.Module)), "network", "a name or a module", network)
        if isinstance(network, str) and network not in NETWORKS and ":" not in network:
            raise ArgumentError(
                f"network must be one of {', '.join(NETWORKS)}, module:factory, or a module, got {network!r}"
                f"{did_you_mean(network, NETWORKS)}"
            )
        require(isinstance(protocol, Protocol), "protocol", "a Protocol, such as RECOMMENDED", protocol)
        require(not isinstance(class_names, str), "class_names", "a list of names", class_names)
        self.network, self.protocol = network, protocol
        self.features, self.loop = features, loop
        self.seed, self.num_workers = seed, num_workers
        self.device = choose_device(device) if device is None or isinstance(device, str) else device
        self._names = None if class_names is None else with_background(class_names)
        self._start = steps.Start(weights, tuple(allow_missing), from_scratch, freeze)
        self._fitted: _Fitted | None = None

    def __repr__(self) -> str:
        state = f"{len(self.class_names) - 1} classes" if self._fitted else "not fitted"
        return f"SceneClassifier({self.network_name!r}, {self.protocol.name}, {state})"

    @property
    def network_name(self) -> str:
        """The network's name, as given; of a module of your own its class's."""
        return self.network if isinstance(self.network, str) else type(self.network).__qualname__

    @property
    def model(self) -> nn.Module:
        """The fitted network, (B, 3, S, S) normalized pixels to (B, K) logits; with averaged weights if any."""
        return self._require_fitted().model

    @property
    def preprocessing(self) -> Preprocessing:
        """What turns pixels in 0..255 into what :attr:`model` expects."""
        return self._require_fitted().preprocessing

    @property
    def class_names(self) -> tuple[str, ...]:
        """(K,) names, the background first."""
        return self._require_fitted().class_names

    @property
    def decided(self) -> Protocol:
        """The recipe with what was chosen on held-out photos."""
        return self._require_fitted().protocol

    @property
    def run(self) -> Run:
        """The run: optimizer, history, and where the weights came from.

        Raises:
            StateError: The classifier was loaded from a file, which holds no run.
        """
        run = self._require_fitted().run
        if run is None:
            raise StateError("a saved classifier has no run; keep one with fit(..., run_file=...)")
        return run

    def fit(
        self,
        photos: Any,
        *,
        run_file: str | os.PathLike[str] | None = None,
        resume: bool | str | os.PathLike[str] = False,
        save_every: int = 1,
        keep: int = 1,
        validation: Any = None,
        test_every: int = 1,
        settings: Mapping[str, Any] | None = None,
        log: steps.Log | None = None,
        progress: Progress = False,
    ) -> SceneClassifier:
        """Train on photos.

        Args:
            photos: A data set of items with ``image`` (3, H, W) uint8, ``boxes`` (n, 4) and ``classes`` (n,), such as
                :class:`~transferkit.datasets.VOCDataset` or a list of
                :class:`~transferkit.sampler.AnnotatedImage`; or a view of features from :meth:`cache`.
            run_file: Where the run is saved after its epochs, so that a later call can go on.
            resume: ``True``: go on with the run in ``run_file``, if there is one. A path: go on with that run.
            save_every: Epochs between two saves; 0 saves never.
            keep: How many epochs of the run are kept, each in a file of its own if more than one.
            validation: Photos that are tested on along the way, which changes nothing but the history.
            test_every: Epochs between two such tests.
            settings: Plain values that are stored with the run.
            log: Called with lines that tell what is being done, such as ``print``.
            progress: See :func:`transferkit.progress.track`.

        Returns:
            The classifier itself.

        Raises:
            ArgumentError: No photo shows an object, or class names differ from the data set's.
            TransferError: The weights do not fit the network; the message shows both sides.
            DivergedError: The loss became infinite or NaN.
        """
        names = _agreed(self._names, photos)
        source = _resumed_from(run_file, resume)
        saved = read_run(source) if source else None
        setup = self._setup(self._decided_in(saved), log, progress)
        truth = _usable(photos, names)
        if run_file is not None and is_first():
            require_writable(run_file)
        patches = setup.stream(photos, "train")
        prepared = self._prepare(setup, names, saved)
        run = self._new_run(setup, prepared, len(patches), names, settings)
        trained = sum(parameter.numel() for parameter in run.model.parameters() if parameter.requires_grad)
        setup.log(f"{trained:,} parameters to train: {prepared.optimization(setup.protocol)}")
        if saved:
            run.restore(saved)
            setup.log(f"{source}: {run.epoch} epochs done")
        ended = run.epoch >= setup.protocol.epochs
        with nullcontext() if ended else steps.features_for(setup, run, photos) as on:
            if on and setup.protocol.choice and not saved:
                decided = setup.protocol.decided(*steps.choose(setup, prepared, on, truth))
                setup = replace(setup, protocol=decided)
                torch.manual_seed(self.seed)
                run = self._new_run(setup, prepared, len(patches), names, settings)

            def after_epoch(run: Run) -> None:
                self._keep(setup, run, names)
                if validation is not None and run.epoch % test_every == 0:
                    mean_ap = self.test(validation, progress=progress).mean_ap()
                    run.history[-1] = replace(run.history[-1], mean_ap=mean_ap)
                due = save_every and (run.epoch % save_every == 0 or run.epoch == setup.protocol.epochs)
                if run_file is not None and due and is_first():
                    run.save(run_file, keep=keep)
                setup.log(str(run.history[-1]))

            if not ended:
                steps.train(setup, run, patches, on, after_epoch)
                if self.loop.profile and is_first():
                    setup.log((self.loop.profile / "profile.txt").read_text(encoding="utf-8"))
        self._keep(setup, run, names)
        return self

    def restore(self, run_file: str | os.PathLike[str], *, log: steps.Log | None = None) -> SceneClassifier:
        """Take the weights of a saved run, without training on.

        Args:
            run_file: What :meth:`fit` was given; the network, recipe and settings must be the same.
            log: As for :meth:`fit`.

        Returns:
            The classifier itself, to test and predict with.
        """
        saved = read_run(run_file)
        stored = saved["settings"].get("class_names")
        names = self._names or (None if stored is None else with_background(stored))
        if names is None:
            raise ArgumentError(
                f"{run_file} does not tell its class names; give SceneClassifier(class_names=...)"
            )
        setup = self._setup(self._decided_in(saved), log)
        run = self._new_run(setup, self._prepare(setup, names, saved), 1, names, saved["settings"])
        run.restore(saved)
        setup.log(f"{run_file}: {run.epoch} epochs done")
        self._keep(setup, run, names)
        return self

    def test(self, photos: Any, *, bootstrap: int = 0, progress: Progress = False) -> ClassificationResult:
        """Score annotated photos, and compare the scores with their annotations by the recipe's average precision.

        Args:
            photos: As for :meth:`fit`.
            bootstrap: How many draws intervals are made from; 0 for none.
            progress: See :func:`transferkit.progress.track`.

        Raises:
            StateError: Nothing was fitted.
            ArgumentError: Class names differ from the data set's.
        """
        return self.evaluate(photos, self.score(photos, progress=progress), bootstrap=bootstrap)

    def evaluate(
        self, photos: Any, scorer: ImageScorer | PatchLog, *, bootstrap: int = 0
    ) -> ClassificationResult:
        """Compare scores that :meth:`score` collected with the photos' annotations."""
        names, protocol = _agreed(self.class_names, photos), self.decided
        truth = truth_of(photos, len(names))
        return evaluate(
            scorer.compute().cpu(),
            truth.present,
            truth.difficult_only,
            class_names=names,
            image_ids=ids_of(photos),
            rule=protocol.ap_rule,
            bootstrap=bootstrap,
        )

    def score(
        self, photos: Any, *, keep_patches: bool = False, progress: Progress = False
    ) -> ImageScorer | PatchLog:
        """Collect the probabilities of all patches of the photos.

        Args:
            photos: A data set, or features from :meth:`cache`.
            keep_patches: Keep every patch's probabilities, for maps and other exponents.
            progress: See :func:`transferkit.progress.track`.
        """
        fitted = self._require_fitted()
        setup = self._setup(fitted.protocol, None, progress)
        size = len(photos), len(fitted.class_names)
        empty: ImageScorer | PatchLog = (
            PatchLog(*size, setup.protocol.exponent, setup.protocol.reduction)
            if keep_patches
            else setup.protocol.scorer(*size, device=self.device, validate=False)
        )
        return steps.score_photos(setup, fitted.model, fitted.preprocessing, photos, empty)

    def predict(self, photos: Any, *, maps: bool = False, progress: Progress = False) -> Predictions:
        """Score photos that need no annotation, as :meth:`test` scores them.

        Args:
            photos: A folder, files, images, or a data set; see :func:`~transferkit.finetune.photos.as_photos`.
            maps: Keep every patch, so that :meth:`Predictions.map` can tell where a class is seen.
            progress: See :func:`transferkit.progress.track`.

        Raises:
            StateError: Nothing was fitted.
            DataError: A photo that cannot be read; names it.
        """
        fitted = self._require_fitted()
        data = as_photos(photos)
        scorer = self.score(data, keep_patches=maps, progress=progress)
        log = scorer if isinstance(scorer, PatchLog) else None
        best = scorer.scorer() if isinstance(scorer, PatchLog) else scorer
        return Predictions(
            ids_of(data),
            fitted.class_names,
            scorer.compute().cpu(),
            best.best_probs.cpu(),
            best.best_boxes.cpu(),
            log,
            data if maps else None,
        )

    def sampler(self, photos: Any, mode: Literal["train", "test"] = "train") -> MultiscaleSampler:
        """Return the recipe's stream of minibatches over photos, as :meth:`fit` (or ``"test"``) sees them."""
        return self._setup(self._fitted.protocol if self._fitted else self.protocol).stream(photos, mode)

    def cache(self, photos: Any) -> FeatureCache:
        """Return where the features of frozen layers for all patches of the photos are kept, to fit on parts of them.

        Fill it, then give it, or ``torch.utils.data.Subset`` s of it, to :meth:`fit`, :meth:`test` and
        :meth:`score` in place of the photos: cross-validation computes features once.

        Args:
            photos: As for :meth:`fit`.

        Raises:
            UnsplittableError: Nothing is frozen before what is trained.
            ArgumentError: ``features.folder`` is not given.
        """
        if self.features.folder is None:
            raise ArgumentError(
                "features.folder must be given: FeatureSettings(folder=...) tells where they are kept"
            )
        setup = self._setup(self.protocol)
        names = _agreed(self._names, photos)
        run = self._new_run(setup, self._prepare(setup, names, None), 1, names, None)
        features, _ = frozen_features(run, setup.protocol, **steps.feature_arguments(setup))
        return setup.cache_of(features, photos, self.features.folder)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write all that predicting needs to one file: weights, head, preprocessing, recipe, class names.

        A network of your own, or of ``module:factory``, is only named in the file.

        Raises:
            StateError: Nothing was fitted.
            ArgumentError: The recipe holds a function or value of your own.
        """
        fitted = self._require_fitted()
        state = {
            "network": self.network_name,
            "named": self.network in NETWORKS if isinstance(self.network, str) else False,
            "protocol": plain(fitted.protocol),
            "class_names": list(fitted.class_names),
            "preprocessing": fitted.preprocessing.to_dict(),
            "features": {
                "method": self.features.method_for(fitted.protocol),
                "pyramid_scales": self.features.scales_for(fitted.protocol),
                "amp": self.features.amp,
            },
            "frozen": list(fitted.frozen),
            "model": fitted.model.state_dict(),
        }
        return write_classifier(require_writable(path), state)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        network: str | nn.Module | None = None,
        features: FeatureSettings = FeatureSettings(),  # noqa: B008 - a frozen value
        loop: LoopSettings = LoopSettings(),  # noqa: B008 - a frozen value
        num_workers: int = 0,
        device: torch.device | str | None = None,
    ) -> SceneClassifier:
        """Read a saved classifier, running no code from its file.

        Args:
            path: What :meth:`save` wrote.
            network: The network of your own, or ``"module:factory"``, where the file only names it.
            features: Where features are kept; method and pyramid scales are the file's.
            loop: As for :class:`SceneClassifier`.
            num_workers: Likewise.
            device: Likewise.

        Raises:
            CheckpointError: No classifier, damaged, or of another version.
            ArgumentError: The file only names the network, and none is given.
            TransferError: The given network is of another architecture.
        """
        state = read_classifier(path)
        if network is None and not state["named"]:
            raise ArgumentError(
                f"{path} only names its network, {state['network']!r}, since a file imports nothing; give it: "
                "SceneClassifier.load(path, network=...)"
            )
        names = tuple(state["class_names"])
        protocol: Protocol = from_plain(state["protocol"])
        how = replace(features, **{**state["features"], "pyramid_scales": _as_scales(state["features"])})
        classifier = cls(
            state["network"] if network is None else network,
            protocol,
            class_names=names,
            from_scratch=True,
            features=how,
            loop=loop,
            num_workers=num_workers,
            device=device,
        )
        setup = classifier._setup(protocol)
        with torch.random.fork_rng():
            prepared = steps.prepare(setup, classifier._build(), len(names), classifier._start, None)
        WeightTransfer(Checkpoint.from_state_dict(state["model"])).apply(prepared.model)
        frozen = tuple(state["frozen"])
        if frozen:
            freeze(prepared.model, by_name(*frozen))
        preprocessing = Preprocessing.from_dict(state["preprocessing"])
        classifier._fitted = _Fitted(prepared.model.eval(), preprocessing, protocol, names, frozen)
        return classifier

    def _require_fitted(self) -> _Fitted:
        if self._fitted is None:
            raise StateError("nothing was fitted yet; call fit(photos) first, or SceneClassifier.load(path)")
        return self._fitted

    def _decided_in(self, saved: Mapping[str, Any] | None) -> Protocol:
        chosen = (saved or {}).get("settings", {}).get("chosen")
        if not chosen or self.protocol.choice is None:
            return self.protocol
        epochs, exponent = chosen
        return self.protocol.decided(
            epochs if self.protocol.choice.stopping else self.protocol.epochs, exponent
        )

    def _setup(
        self, protocol: Protocol, log: steps.Log | None = None, progress: Progress = False
    ) -> steps.Setup:
        said = log or (lambda line: None)
        return steps.Setup(
            protocol, self.features, self.loop, self.seed, self.num_workers, self.device, said, progress
        )

    def _build(self) -> Network:
        if isinstance(self.network, str):
            return build_network(self.network)
        return Network(self.network_name, copy.deepcopy(self.network), find_preprocessing(self.network))

    def _prepare(
        self, setup: steps.Setup, names: tuple[str, ...], saved: Mapping[str, Any] | None
    ) -> steps.Prepared:
        torch.manual_seed(self.seed)
        network = self._build()
        setup.log(str(network))
        return steps.prepare(setup, network, len(names), self._start, saved)

    def _new_run(
        self,
        setup: steps.Setup,
        prepared: steps.Prepared,
        minibatches: int,
        names: tuple[str, ...],
        settings: Mapping[str, Any] | None,
    ) -> Run:
        own = {"network": self.network_name, "protocol": self.protocol.name, "seed": self.seed}
        stored = {**own, "chosen": None, **(settings or {}), "class_names": list(names)}
        if setup.protocol.choice is None and self.protocol.choice is not None:
            stored["chosen"] = [setup.protocol.epochs, setup.protocol.exponent]
        return steps.new_run(setup, prepared, minibatches, stored)

    def _keep(self, setup: steps.Setup, run: Run, names: tuple[str, ...]) -> None:
        self._fitted = _Fitted(steps.tested_of(run), run.preprocessing, setup.protocol, names, run.frozen, run)


def _agreed(known: tuple[str, ...] | None, photos: Any) -> tuple[str, ...]:
    """Return the class names, which must be the data set's where it tells any."""
    told = class_names_of(photos)
    if known is None and told is None:
        raise ArgumentError(
            "the photos tell no class names; give SceneClassifier(class_names=[...]) or a data set with class_names"
        )
    if known is not None and told is not None and told != known:
        raise ArgumentError(
            f"class names must be the data set's: the classifier has {', '.join(known)}; the data set has "
            f"{', '.join(told)}; make a data set with the classifier's names, or a classifier with the data set's"
        )
    return known or told or ()


def _resumed_from(
    run_file: str | os.PathLike[str] | None, resume: bool | str | os.PathLike[str]
) -> str | os.PathLike[str] | None:
    """Return the file of the run to go on with."""
    if not isinstance(resume, bool):
        return resume
    return run_file if resume and run_file is not None and Path(run_file).exists() else None


def _as_scales(stored: Mapping[str, Any]) -> Any:
    scales = stored["pyramid_scales"]
    return tuple(scales) if isinstance(scales, list) else scales


def _usable(photos: Any, names: tuple[str, ...]) -> Presence:
    """Return which classes the photos show; refuse photos that show none."""
    truth = truth_of(photos, len(names))
    if not truth.present.any():
        raise ArgumentError(
            f"none of the {len(photos)} photos shows an object of {', '.join(names[1:])}; see whether the data set "
            "reads the annotations and the class names are spelled as there"
        )
    return truth
