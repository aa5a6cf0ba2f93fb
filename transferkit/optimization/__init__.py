"""How training is steered, as frozen values that a recipe holds: rates, averages of weights, when to stop."""

from transferkit.optimization.averaging import WeightAverage
from transferkit.optimization.early_stopping import EarlyStopping
from transferkit.optimization.held_out_choice import HeldOutChoice
from transferkit.optimization.hold_out import HeldOut, hold_out
from transferkit.optimization.schedule import WarmupCosine

__all__ = ["EarlyStopping", "HeldOut", "HeldOutChoice", "WarmupCosine", "WeightAverage", "hold_out"]
