"""What a tensor holds after a transfer is its own counterpart's values, or nothing was moved.

The networks are random (:mod:`tests.transfer.identity`); ``python -m tests.benchmarks.who_is_who`` tries a thousand.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests.benchmarks.onto_itself import failures, verdicts
from tests.transfer.author_spellings import SPELLINGS
from tests.transfer.identity import run_case
from tests.transfer.identity_cases import make_case, must_be
from tests.transfer.test_structure import BUILDERS

CASES = 90


@pytest.mark.parametrize("seed", range(CASES))
def test_right_or_refused_and_never_silently_wrong(seed, tmp_path):
    case = make_case(seed)
    outcome = run_case(case, tmp_path)
    assert outcome.what != "wrong", f"{case}: {outcome.why}"
    assert must_be(case) in ("", outcome.what), f"{case}: {outcome.what}, not {must_be(case)}: {outcome.why}"


def test_the_cases_are_of_all_kinds():
    cases = [make_case(seed) for seed in range(CASES)]
    for attribute in ("names", "order", "form", "by", "source_wrapper", "target_wrapper", "selected"):
        assert len(Counter(getattr(case, attribute) for case in cases)) >= 2, attribute
    assert any(case.tied for case in cases) and any(case.dropped for case in cases)
    assert {must_be(case) for case in cases} == {"right", "refused", ""}


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda name: name.replace(", ", "-").replace(" ", "_"))
def test_onto_itself_and_onto_a_renamed_copy_no_layer_takes_another_s(spelling, tmp_path):
    with torch.device("meta"):
        model = BUILDERS[spelling.partition(",")[0]](SPELLINGS[spelling])
    assert failures({spelling: verdicts(model, tmp_path)}) == []
