"""Whatever advice a refusal prints, followed to the letter, ends right or in another refusal.

One call of each kind here; ``python -m tests.benchmarks.advice`` follows a hundred and more.
"""

from __future__ import annotations

import warnings

import pytest

from tests.transfer.advice import follow
from tests.transfer.refusals import MAKERS, scenarios

SCENARIOS = scenarios(len(scenarios(1)) and len(MAKERS))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name.replace(" ", "_"))
def test_advice_ends_right_or_in_another_refusal(scenario):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        followed = follow(scenario)
    failed = [
        f"{ending.outcome}: {' -> '.join(map(str, ending.way))}: {ending.words}" for ending in followed.failures
    ]
    assert not failed, "\n".join([followed.message, *failed])


def test_most_advice_leads_to_where_it_is_right():
    followed = [follow(scenario) for scenario in SCENARIOS]
    right = [each for each in followed if any(ending.outcome == "right" for ending in each.endings)]
    assert len(right) >= 0.7 * len(followed)
