"""What a reader of a neon file should know that its tensors do not say."""

from __future__ import annotations

from transferkit.checkpoints.neon.dropout import DropoutPlan
from transferkit.checkpoints.neon.records import Record, Steps, records_of


def notes_of(
    steps: Steps, problems: list[str], dropout: DropoutPlan, *, folded: bool, untyped: bool
) -> tuple[str, ...]:
    """Return the notes on a neon model, one sentence each.

    Args:
        steps: Its layers.
        problems: Layers that could not be converted, each with the reason.
        dropout: What to scale for dropout.
        folded: Whether it was scaled.
        untyped: Whether the file names no layer types, as in version 1.0.
    """
    records = list(records_of(steps))
    notes = [f"not convertible, left out: {'; '.join(problems)}"] if problems else []
    if untyped:
        notes.append(_untyped_note(records))
    if dropout.scales:
        notes.append(_dropout_note(dropout, folded=folded))
    if dropout.unplaced:
        notes.append(
            f"dropout at {', '.join(dropout.unplaced)}: no layer after it can take up its factor; multiply "
            "what it puts out by keep when testing to compute the same as neon"
        )
    notes += _batch_norm_note(records)
    if any(record.states for record in records):
        notes.append(
            "optimizer states are in torch's units (momentum_buffer = velocity / -learning_rate), exact where "
            "the learning rate was constant"
        )
    return tuple(notes)


def _dropout_note(dropout: DropoutPlan, *, folded: bool) -> str:
    layers = ", ".join(f"{name} x {factor:g}" for name, factor in dropout.scales.items())
    if folded:
        return (
            f"input weights scaled by the dropout before them ({layers}): neon scales by keep when testing, "
            "torch by 1/keep when training; so both compute the same. fold_dropout=False leaves them as stored"
        )
    return (
        f"neon's dropout multiplies by keep when testing, torch's does not; to make up for it, scale {layers}"
    )


def _batch_norm_note(records: list[Record]) -> list[str]:
    norms = [record for record in records if record.type.startswith("BatchNorm") and record.params]
    if not norms:
        return []
    settings = {(record.config.get("eps"), record.config.get("rho")) for record in norms}
    eps, rho = next(iter(settings)) if len(settings) == 1 else (None, None)
    eps, rho = eps or 1e-3, rho or 0.9
    return [f"neon's batch norm is torch's with eps={eps:g} and momentum={1 - rho:g}; set both in the model"]


def _untyped_note(records: list[Record]) -> str:
    told = ", ".join(f"{record.name} {record.type or '?'}" for record in records if record.type != "Bias")
    return f"the file has no layer types (neon 1.0); told from the shapes: {told}"
