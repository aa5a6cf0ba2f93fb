"""SceneClassifier: a pretrained network turned into a classifier of scenes, from photos to predictions."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from transferkit.checkpoints import Checkpoint
from transferkit.devices import choose_device
from transferkit.distributed import first_tries, is_first, is_sharded, unwrapped
from transferkit.errors import ArgumentError, StateError, require
from transferkit.features import FeatureCache
from transferkit.files import require_writable
from transferkit.finetune import _fitted as results
from transferkit.finetune import _fitting as steps
from transferkit.finetune import _predicting as scoring
from transferkit.finetune._prospects import prospects
from transferkit.finetune.card import Card, card_of, described
from transferkit.finetune.export import export_network
from transferkit.finetune.networks import require_network
from transferkit.finetune.on_features import frozen_features
from transferkit.finetune.photos import agreed_names, as_photos, truth_of, with_background
from transferkit.finetune.predictions import PredictionFile, Predictions
from transferkit.finetune.protocol import Protocol
from transferkit.finetune.recipes import RECOMMENDED
from transferkit.finetune.run import Run, read_run
from transferkit.finetune.settings import FeatureSettings, LoopSettings
from transferkit.finetune.sharding import Shard
from transferkit.preprocessing import Preprocessing
from transferkit.progress import Progress
from transferkit.sampler import MultiscaleSampler
from transferkit.scorer import ClassificationResult, ImageScorer, PatchLog
from transferkit.scorer.calibration import Calibration, calibrate
from transferkit.stopping import Stopped


class SceneClassifier:
    """Classify the objects in photos, with a network that was pretrained on images of single objects.

    ``fit`` puts a new head on the network, transfers the pretrained weights, freezes the layers that the recipe does
    not train, computes the features of frozen layers once, chooses on held-out photos what the recipe leaves open,
    and trains.

    Args:
        network: A name in :data:`~transferkit.finetune.NETWORKS`, ``"package.module:factory"``, or a module of your
            own, which is not changed: each fit trains a copy.
        protocol: The recipe.
        class_names: (K - 1) or (K,) names, with or without ``"background"`` first; by default the data set's.
        weights: Pretrained weights: a file, a :class:`~transferkit.Checkpoint`, or ``None`` for the network's own.
        allow_missing: Names of layers that the weights may lack, such as ``["classifier.*"]``.
        from_scratch: Transfer nothing and train all layers.
        freeze: Name of the last frozen layer; by default the recipe decides which layers are frozen.
        features: How the features of frozen layers are computed, and where they are cached.
        loop: Precision, memory layout, minibatches per optimizer step.
        seed: Seed of all random choices.
        num_workers: Processes that decode photos.
        device: ``"cpu"``, ``"cuda"``, ...; by default cuda where torch sees a GPU, else the CPU.

    Raises:
        ArgumentError: There is no network of that name, or an argument is of the wrong kind.

    Example:
        >>> from dataclasses import replace
        >>> from transferkit.finetune import DEMO
        >>> from transferkit.sampler import AnnotatedImage
        >>> image, box = torch.zeros(3, 64, 64, dtype=torch.uint8), torch.tensor([[8.0, 8, 40, 40]])
        >>> flag = torch.tensor([False])
        >>> photos = [AnnotatedImage(image, box, torch.tensor([k]), flag, flag, f"{k}.jpg") for k in (1, 2)]
        >>> recipe = replace(DEMO, epochs=1)
        >>> classifier = SceneClassifier(
        ...     "alexnet-small", recipe, class_names=["cat", "dog"], from_scratch=True, device="cpu"
        ... )
        >>> classifier.fit(photos).predict(photos)
        Predictions(2 photos, 2 classes)

    References:
        Oquab et al., "Learning and Transferring Mid-Level Image Representations using CNNs", CVPR 2014.
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
        if isinstance(network, str):
            require_network(network)
        elif unwrapped(network) is not network or is_sharded(network):
            raise ArgumentError(
                f"network must be the module itself, got {type(network).__name__}; fit shares it among the "
                "ranks: give it as it is before DistributedDataParallel or fully_shard"
            )
        require(isinstance(protocol, Protocol), "protocol", "a Protocol, such as RECOMMENDED", protocol)
        require(not isinstance(class_names, str), "class_names", "a list of names", class_names)
        self.network, self.protocol = network, protocol
        self.features, self.loop = features, loop
        self.seed, self.num_workers = seed, num_workers
        self.device = choose_device(device)
        self._names = None if class_names is None else with_background(class_names)
        self._start = steps.Start(weights, tuple(allow_missing), from_scratch, freeze)
        self._fitted: results.Fitted | None = None

    def __repr__(self) -> str:
        state = f"{len(self.class_names) - 1} classes" if self._fitted else "not fitted"
        return f"SceneClassifier({self.network_name!r}, {self.protocol.name}, {state})"

    @property
    def network_name(self) -> str:
        """The name of the network, or the class name of a module of your own."""
        return self._setup().network_name

    @property
    def model(self) -> nn.Module:
        """The fitted network, (B, 3, S, S) normalized pixels to (B, K) logits; with averaged weights if any."""
        return self._require_fitted().model

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing that :attr:`model` expects: pixels in 0..255 to normalized pixels."""
        return self._require_fitted().preprocessing

    @property
    def class_names(self) -> tuple[str, ...]:
        """(K,) names, the background first."""
        return self._require_fitted().class_names

    @property
    def decided(self) -> Protocol:
        """The recipe, with the epochs and exponent that were chosen on held-out photos."""
        return self._require_fitted().protocol

    @property
    def run(self) -> Run:
        """The training run: optimizer, history, and the report of the weight transfer.

        Raises:
            StateError: The classifier is not fitted, or was loaded from a file, which holds no run.
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
        """Train on annotated photos.

        Each call builds the network anew and trains it from the pretrained weights, unless it resumes a run.

        Args:
            photos: A data set of items with ``image`` (3, H, W) uint8, ``boxes`` (n, 4) xyxy, ``classes``
                (n,) in 1..K-1, such as :class:`~transferkit.datasets.VOCDataset` or a list of
                :class:`~transferkit.sampler.AnnotatedImage`; or features from :meth:`cache`, or a part of them.
            run_file: File that the run is saved to, so that a later call can resume it.
            resume: ``True``: resume the run in ``run_file`` if there is one. A path: resume that run.
            save_every: Epochs between two saves; 0 never saves.
            keep: Number of epochs of the run that are kept; see :meth:`Run.save`.
            validation: Photos to test during training; the result goes only to the history.
            test_every: Epochs between two such tests.
            settings: Plain values that are stored with the run.
            log: Called with lines about the progress of the fit, such as ``print``; also with the warnings of what
                cannot be learned from these photos, which are Python's own where there is no log.
            progress: See :func:`transferkit.progress.track`.

        Returns:
            The classifier itself.

        Raises:
            ArgumentError: No photo shows an object, or the classifier and the data set have different class names.
            DataError: A photo has an object of a class without a name.
            TransferError: The weights do not fit the network; the message compares both.
            StateError: The resumed run has other frozen layers or parameters, or the classifier was loaded.
            UnsplittableError: ``features.cache=True``, and no features of frozen layers can be computed.
            DivergedError: The loss became infinite or NaN.
            OutputError: ``run_file`` cannot be written, or another job writes it.
        """
        require(validation is None or test_every >= 1, "test_every", "at least 1", test_every)
        if self._fitted is not None and self._fitted.run is None:
            raise StateError(
                "a loaded classifier has no pretrained weights to start from; fit one that is made with "
                f"SceneClassifier({self.network_name!r}, weights=...)"
            )
        names = agreed_names(self._names, photos)
        with steps.only_writer(run_file):
            source = steps.resumed_from(run_file, resume)
            saved = read_run(source) if source else None
            setup = self._setup(
                steps.decided_in(saved["settings"] if saved else {}, self.protocol), log, progress
            )
            calibration = steps.calibration_in(saved["settings"]) if saved else None
            truth = steps.truth_to_fit(photos, names, self.protocol)
            patches = setup.stream(photos, "train")
            for problem in prospects(photos, truth, names, setup.protocol, len(patches)):
                setup.log(f"warning: {problem}") if log else warnings.warn(problem, stacklevel=2)
            settings = {**(settings or {}), "fitted_on": described(photos, truth, names)}
            prepared = steps.prepare(setup, len(names), saved)
            run = steps.new_run(setup, prepared, len(patches), names, settings)
            trained = sum(parameter.numel() for parameter in run.model.parameters() if parameter.requires_grad)
            setup.log(f"{trained:,} parameters to train: {prepared.optimization(setup.protocol)}")
            if saved:
                run.restore(saved)
                setup.log(f"{source}: {run.epoch} epochs done")
            if run_file is not None and keep > 1:
                first_tries(partial(run.require_numbers, run_file, run.epoch + 1, setup.protocol.epochs))
            ended = run.epoch >= setup.protocol.epochs
            with nullcontext() if ended else steps.features_for(setup, run, photos) as on:
                if on and setup.protocol.choice and not saved:
                    decided, calibration = steps.choose(setup, prepared, on, truth, names)
                    setup = replace(setup, protocol=decided)
                    torch.manual_seed(self.seed)  # the choice drew random numbers
                    run = steps.new_run(setup, prepared, len(patches), names, settings, calibration)

                def after_epoch(run: Run) -> None:
                    self._fitted = results.fitted_by(run, setup.protocol, names, calibration)
                    if validation is not None and run.epoch % test_every == 0:
                        mean_ap = self.test(validation, progress=progress).mean_ap()
                        run.history[-1] = replace(run.history[-1], mean_ap=mean_ap)
                    due = save_every and (run.epoch % save_every == 0 or run.epoch == setup.protocol.epochs)
                    if run_file is not None and due and is_first():
                        run.save(run_file, keep=keep)
                    setup.log(str(run.history[-1]))

                try:
                    if not ended:
                        steps.train(setup, run, patches, on, truth, after_epoch)
                except Stopped:
                    if run_file is not None and save_every and is_first():
                        run.save(run_file, keep=keep)
                    raise
        self._fitted = results.fitted_by(run, setup.protocol, names, calibration)
        return self

    def restore(self, run_file: str | os.PathLike[str], *, log: steps.Log | None = None) -> SceneClassifier:
        """Load a saved run, to test and predict with its weights.

        Args:
            run_file: The ``run_file`` of an earlier :meth:`fit`; network, recipe and frozen layers must be the same.
            log: As for :meth:`fit`.

        Returns:
            The classifier itself.

        Raises:
            CheckpointError: The file is not a run, or is damaged.
            ArgumentError: The run holds no class names, and the classifier was given none.
            TransferError: The run belongs to another network.
            StateError: The run has other frozen layers or parameters.
        """
        saved = read_run(run_file)
        stored = saved["settings"].get("class_names")
        names = self._names
        if names is None and isinstance(stored, list) and all(isinstance(name, str) for name in stored):
            names = with_background(stored)
        if names is None:
            raise ArgumentError(f"{run_file} holds no class names; give SceneClassifier(class_names=...)")
        setup = self._setup(steps.decided_in(saved["settings"], self.protocol), log)
        run = steps.new_run(setup, steps.prepare(setup, len(names), saved), 1, names, saved["settings"])
        run.restore(saved)
        setup.log(f"{run_file}: {run.epoch} epochs done")
        self._fitted = results.fitted_by(run, setup.protocol, names, steps.calibration_in(saved["settings"]))
        return self

    def test(
        self,
        photos: Any,
        *,
        bootstrap: int = 0,
        features: Literal["fitted", "exact"] = "fitted",
        progress: Progress = False,
    ) -> ClassificationResult:
        """Score annotated photos and evaluate the scores by the recipe's average precision.

        Args:
            photos: As for :meth:`fit`.
            bootstrap: Number of bootstrap samples for confidence intervals; 0 for none.
            features: As for :meth:`predict`.
            progress: See :func:`transferkit.progress.track`.

        Returns:
            Average precision of each class, and their mean.

        Raises:
            StateError: The classifier is not fitted.
            ArgumentError: The classifier and the data set have different class names.
        """
        fitted, setup = self._require_fitted(), self._setup_to_score(features, progress)
        scorer = scoring.score(fitted, setup, photos, keep_patches=False, keep_boxes=False)
        return self.evaluate(photos, scorer, bootstrap=bootstrap)

    def evaluate(
        self, photos: Any, scorer: ImageScorer | PatchLog, *, bootstrap: int = 0
    ) -> ClassificationResult:
        """Evaluate the scores from :meth:`score`, as :meth:`test` does in one call.

        Args:
            photos: The photos that were scored.
            scorer: The return value of :meth:`score`.
            bootstrap: As for :meth:`test`.
        """
        return scoring.evaluation(self._require_fitted(), photos, scorer, bootstrap)

    def score(
        self, photos: Any, *, keep_patches: bool = False, progress: Progress = False
    ) -> ImageScorer | PatchLog:
        """Compute the probabilities of all patches of the photos, and add them up to scores.

        Args:
            photos: A data set, or features from :meth:`cache`.
            keep_patches: Keep the probabilities of every patch, for maps and other exponents.
            progress: See :func:`transferkit.progress.track`.

        Returns:
            A scorer, or with ``keep_patches`` a log of all patches; its ``compute()`` gives (N, K) float64 scores.

        Raises:
            StateError: The classifier is not fitted.
            DivergedError: The network gives infinite or NaN logits.
        """
        fitted = self._require_fitted()
        return scoring.score(fitted, self._setup(fitted.protocol, None, progress), photos, keep_patches)

    def calibrate(self, photos: Any, *, progress: Progress = False) -> SceneClassifier:
        """Choose thresholds, and learn what scores mean as probabilities, on photos that it was not trained on.

        :meth:`fit` does so on the photos that it holds out, if its recipe holds some out.

        Args:
            photos: As for :meth:`fit`.
            progress: See :func:`transferkit.progress.track`.

        Returns:
            The classifier itself.
        """
        fitted = self._require_fitted()
        scores, truth = (
            self.score(photos, progress=progress).compute(),
            truth_of(photos, len(fitted.class_names)),
        )
        found = calibrate(scores, truth.present, class_names=fitted.class_names, ignore=truth.difficult_only)
        self._fitted = replace(fitted, calibration=found)
        return self

    @property
    def calibration(self) -> Calibration | None:
        """Thresholds and probabilities, from held-out photos; ``None`` if there were none."""
        return self._require_fitted().calibration

    def predict(
        self,
        photos: Any,
        *,
        maps: bool = False,
        precision: float | None = None,
        features: Literal["fitted", "exact"] = "fitted",
        on_bad_photo: Literal["skip", "error"] = "skip",
        progress: Progress = False,
    ) -> Predictions:
        """Score photos without annotations, as :meth:`test` does.

        Args:
            photos: A folder, files, images, an iterator of these, or a data set; see
                :func:`~transferkit.finetune.as_photos`.
            maps: Keep every patch, which :meth:`Predictions.map` needs.
            precision: Say that a class is in a photo where so many of those that say so are right, 0..1, by the
                held-out photos; by default where F1 is best.
            features: ``"fitted"``: computed as in training. ``"exact"``: each patch through the whole network, as the
                exported network does; other scores than those that the thresholds were chosen for.
            on_bad_photo: ``"skip"`` a photo that cannot be used, with a warning, and list it in ``bad_photos``; or
                raise an ``"error"``.
            progress: See :func:`transferkit.progress.track`.

        Returns:
            The scores of all photos, with the best patch, the probability and the label of each class.

        Raises:
            StateError: The classifier is not fitted, or ``precision`` is asked of one that was not calibrated.
            DataError: No photo can be used, or one cannot and ``on_bad_photo="error"``; the message names it.
        """
        data = as_photos(list(photos) if isinstance(photos, Iterator) else photos)
        wanted = self._wanted(precision, maps=maps, on_bad_photo=on_bad_photo)
        return scoring.predict(self._scoring(features, progress), data, wanted)

    def predict_to(
        self,
        path: str | os.PathLike[str],
        photos: Any,
        *,
        boxes: bool = False,
        precision: float | None = None,
        features: Literal["fitted", "exact"] = "fitted",
        on_bad_photo: Literal["skip", "error"] = "skip",
        resume: bool = True,
        shard: Shard | None = None,
        maps: bool = False,
        on_lot: Callable[[Predictions], object] | None = None,
        progress: Progress = False,
    ) -> PredictionFile:
        """Score any number of photos into a file, in memory that does not grow with them.

        Args:
            path: A ``.csv`` (the file, one column a class with its score, the labels) or ``.jsonl`` file (see
                :meth:`Predictions.records`).
            photos: As for :meth:`predict`.
            boxes: Also find the best patch of each class, which JSON lines hold.
            precision: As for :meth:`predict`.
            features: As for :meth:`predict`.
            on_bad_photo: As for :meth:`predict`.
            resume: Go on where a call that was stopped had come to; its rows are in ``path`` with ``.part`` after it.
            shard: Score a share of the photos alone, into a file beside ``path``. Jobs on any machines may do one
                each; :func:`join_predictions` makes ``path`` of them all.
            maps: Keep the patches of the photos that ``on_lot`` is given.
            on_lot: Called with the predictions of some photos at a time.
            progress: As for :meth:`predict`.

        Returns:
            The file, with what could not be used.

        Raises:
            StateError: As for :meth:`predict`; or what is to be resumed was begun by another classifier.
            OutputError: The file cannot be written, or another job writes it.
        """
        wanted = self._wanted(precision, maps=maps, boxes=boxes, on_bad_photo=on_bad_photo)
        return scoring.predict_to(
            path, self._scoring(features, progress), photos, wanted, resume, on_lot, shard
        )

    def sampler(self, photos: Any, mode: Literal["train", "test"] = "train") -> MultiscaleSampler:
        """Return the recipe's sampler of minibatches over photos.

        Args:
            photos: As for :meth:`fit`.
            mode: ``"train"`` for the minibatches of :meth:`fit`, ``"test"`` for those of :meth:`score`.
        """
        return self._setup(self._fitted.protocol if self._fitted else None).stream(photos, mode)

    def cache(self, photos: Any) -> FeatureCache:
        """Return a cache for the features that the frozen layers give for all patches of the photos.

        Call its ``fill()``, then pass it or any ``Subset`` of it to :meth:`fit`, :meth:`test` and :meth:`score` in
        place of the photos. Cross-validation thus computes features only once.

        Args:
            photos: As for :meth:`fit`.

        Returns:
            The cache in ``features.folder``, empty or filled by an earlier call.

        Raises:
            UnsplittableError: No layer before the trained ones is frozen.
            ArgumentError: ``features.folder`` is not given.
        """
        if self.features.folder is None:
            raise ArgumentError("features.folder must be given, as in features=FeatureSettings(folder=...)")
        setup, names = self._setup(), agreed_names(self._names, photos)
        run = steps.new_run(setup, steps.prepare(setup, len(names), None), 1, names, None)
        features, _ = frozen_features(run, setup.protocol, **steps.feature_arguments(setup))
        return setup.cache_of(features, photos, self.features.folder)

    def save(
        self, path: str | os.PathLike[str], *, whole: bool | None = None, card: Card | None = None
    ) -> Path:
        """Write weights, preprocessing, recipe, class names and card to one file, which holds no code.

        Frozen layers that are as in the pretrained weights of a network in :data:`NETWORKS` are left out, and
        :meth:`load` takes them from there. A network of your own or of ``module:factory`` is only named.

        Args:
            path: File to write.
            whole: ``True``: write all weights, so that loading needs no others. ``False``: leave frozen layers out,
                also those of weights of your own, which :meth:`load` is then given. ``None``: leave them out only
                where the network's name says where they are to be had.
            card: The return value of :meth:`card`, to be stored, and written beside the file as ``{path}.md`` and
                ``{path}.json``; by default a card without results is stored, and none written.

        Returns:
            ``path``.

        Raises:
            StateError: The classifier is not fitted.
            ArgumentError: The recipe holds a function or a class of your own, or ``whole=False`` leaves nothing out.
        """
        state = results.state_of(self._require_fitted(), self._setup(), whole)
        state["card"] = self._own(card).to_dict()
        saved = results.write_classifier(require_writable(path), state)
        if card is not None:
            card.write(saved)
        return saved

    def card(self, results: Any = None, *, calibration: Any = None, license: str | None = None) -> Card:
        """Return what whoever gets the classifier should know, to pass to :meth:`save` and :meth:`export`.

        Args:
            results: The return value of :meth:`test`, or a dict with one for ``"shared"`` and one for ``"exact"``
                features, where both were tested.
            calibration: Thresholds to list, by default the classifier's own; or a dict likewise.
            license: Of the classifier; the library does not know those of your photos and of the pretrained weights.

        Returns:
            The card. What a loaded classifier's says stays where nothing new is given.

        Raises:
            StateError: The classifier is not fitted.
            ArgumentError: ``results`` or ``calibration`` is something else.
        """
        return card_of(self._require_fitted(), self._setup(), results, calibration or self.calibration, license)

    def export(self, path: str | os.PathLike[str], *, card: Card | None = None) -> Path:
        """Write the network that scores patches for programs without this library.

        It takes (B, 3, S, S) float32 RGB pixels in 0..255, any B, and gives (B, K) probabilities. The metadata
        ``transferkit`` of the file, which is JSON, says how to score a photo with it: grid, resizing, exponent, class
        names, thresholds for ``"exact"`` features; ``card`` is the card. ``examples/score_with_onnx.py`` does that,
        as ``features=FeatureSettings(method="exact")`` does, but for recipes that score a random part of the patches:
        it takes all.

        Args:
            path: ``.onnx`` for ONNX, ``.pt2`` for :func:`torch.export.load`.
            card: The return value of :meth:`card`; by default one without new results.

        Returns:
            ``path``.

        Raises:
            StateError: The classifier is not fitted.
            MissingExtraError: ONNX, and the extra ``onnx`` is not installed.
            ArgumentError: Another suffix; or torch cannot export the network, or does and its probabilities differ by
                more than 0.0001. Nothing is written.
        """
        return export_network(self._require_fitted(), self._own(card), path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        network: str | nn.Module | None = None,
        weights: str | os.PathLike[str] | Checkpoint | None = None,
        features: FeatureSettings = FeatureSettings(),  # noqa: B008 - a frozen value
        loop: LoopSettings = LoopSettings(),  # noqa: B008 - a frozen value
        num_workers: int = 0,
        device: torch.device | str | None = None,
    ) -> SceneClassifier:
        """Read a saved classifier, running no code from its file.

        Args:
            path: File written by :meth:`save`.
            network: The module of your own, or ``"module:factory"``, if the file only names its network.
            weights: The pretrained weights, if the file holds no backbone; by default the network's own.
            features: Where features are cached; the file determines ``method``, ``pyramid_scales`` and ``amp``.
            loop: As for :class:`SceneClassifier`.
            num_workers: As for :class:`SceneClassifier`.
            device: As for :class:`SceneClassifier`.

        Returns:
            The classifier, to test and predict with. Its :meth:`fit` raises ``StateError``.

        Raises:
            MissingFileError: There is no such file.
            CheckpointError: The file is no classifier, is damaged, or was written by another version; or it holds no
                backbone, and the pretrained weights are others than it was fitted on, or cannot be had.
            ArgumentError: The file only names its network, and ``network`` is not given; or it holds all weights, and
                ``weights`` is.
            TransferError: ``network`` has another architecture.
        """
        state = results.read_classifier(path)
        if network is None and not state["named"]:
            raise ArgumentError(
                f"{path} only names its network, {state['network']!r}, since a file imports nothing; give it: "
                "SceneClassifier.load(path, network=...)"
            )
        require(weights is None or state["left_out"], "weights", f"None, since {path} holds all", weights)
        classifier = cls(
            state["network"] if network is None else network,
            results.from_plain(state["protocol"]),
            class_names=state["class_names"],
            weights=weights,
            from_scratch=not state["left_out"],
            features=replace(features, **results.from_plain_values(state["features"])),
            loop=loop,
            seed=state["seed"],
            num_workers=num_workers,
            device=device,
        )
        classifier._fitted = results.fitted_from(state, classifier._setup(), path)
        return classifier

    def _scoring(self, features: Literal["fitted", "exact"], progress: Progress) -> scoring.Scoring:
        return scoring.Scoring.of(self._require_fitted(), self._setup_to_score(features, progress))

    def _setup_to_score(self, features: Literal["fitted", "exact"], progress: Progress) -> steps.Setup:
        require(features in ("fitted", "exact"), "features", "'fitted' or 'exact'", features)
        setup = self._setup(self._require_fitted().protocol, None, progress)
        exact = replace(setup.features, method="exact", cache=False)
        return replace(setup, features=exact) if features == "exact" else setup

    def _wanted(self, precision: float | None, **wanted: Any) -> scoring.Wanted:
        calibration = self._require_fitted().calibration
        if precision is not None:
            if calibration is None:
                raise StateError(
                    "precision needs thresholds; call calibrate(photos) with photos held out for that"
                )
            calibration = calibration.with_thresholds(precision)
        return scoring.Wanted(calibration=calibration, **wanted)

    def _own(self, card: Card | None) -> Card:
        found = card or self.card()
        require(found.class_names == self.class_names, "card", "this classifier's own", found.class_names)
        return found

    def _require_fitted(self) -> results.Fitted:
        if self._fitted is None:
            raise StateError("nothing was fitted yet; call fit(photos) first, or SceneClassifier.load(path)")
        return self._fitted

    def _setup(
        self, protocol: Protocol | None = None, log: steps.Log | None = None, progress: Progress = False
    ) -> steps.Setup:
        """Return the arguments of this classifier for the steps, with ``protocol`` in place of its own."""
        return steps.Setup(
            self.network,
            self._start,
            self.protocol,
            protocol or self.protocol,
            self.features,
            self.loop,
            self.seed,
            self.num_workers,
            self.device,
            log or (lambda line: None),
            progress,
        )
