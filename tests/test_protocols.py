"""A recipe says all of itself, and what is changed in it is changed everywhere."""

from __future__ import annotations

from dataclasses import replace

from transferkit.finetune import NEON2016, OQUAB2014, RECOMMENDED, Optimization
from transferkit.heads import MULTI_LABEL, SINGLE_LABEL
from transferkit.optimization import WarmupCosine, WeightAverage

COSINE = Optimization(0.05, momentum=0.9, weight_decay=1e-4, schedule=WarmupCosine(epochs=10, warmup=1))
STEERED = replace(
    NEON2016,
    pretrained=COSINE,
    objective=MULTI_LABEL,
    average=WeightAverage(0.99),
)


def test_the_published_recipes_are_softmax_without_average() -> None:
    for protocol in (NEON2016, OQUAB2014):
        assert (protocol.objective, protocol.average) == (SINGLE_LABEL, None)


def test_what_steers_training_is_in_the_table() -> None:
    text = str(STEERED)
    for part in (
        "learning rate 0.05 (warm-up over 1 epochs, cosine to x0 after 10 epochs)",
        "a sigmoid and binary cross-entropy per class",
        "EMA with decay 0.99 of the weights, updated after every step",
    ):
        assert part in text
    assert "softmax and cross-entropy" in str(NEON2016)


def test_other_epochs_and_rates_reach_the_schedule() -> None:
    adjusted = STEERED.adjusted(learning_rate=0.2, epochs=5)
    assert adjusted.epochs == 5
    assert adjusted.pretrained.learning_rate == 0.2
    assert adjusted.pretrained.schedule == WarmupCosine(epochs=5, warmup=0.5)
    assert adjusted.scratch.steps == NEON2016.scratch.steps
    assert STEERED.adjusted() == STEERED


def test_the_recommended_recipe_says_all_that_is_new_in_it() -> None:
    text = str(RECOMMENDED)
    for part in (
        "AdamW, learning rate 0.001 (warm-up over 0.8 epochs, cosine to x0 after 8 epochs)",
        "softmax and cross-entropy and 1 x binary cross-entropy of images' scores with exponent 2",
        "EMA with decay 0.99",
        "exponent (1, 2, 3, 5, 8, inf) by mean AP on 20% of the training photos",
    ):
        assert part in text
    # Whole images in each minibatch, as the loss of images wants them.
    assert RECOMMENDED.batch_size == RECOMMENDED.mix_images * RECOMMENDED.patches_per_image
