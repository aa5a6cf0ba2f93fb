"""The account of a transfer: read on a terminal, in a notebook, by a program, and next year."""

from __future__ import annotations

import copy
import io
import json
import pickle
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from transferkit.checkpoints import Checkpoint
from transferkit.display import text_table
from transferkit.errors import ArgumentError
from transferkit.transfer import TransferPlan, TransferReport, WeightTransfer, before, by_kind, by_name, freeze
from transferkit.transfer._table import _ranges, render_text, rows_of


def deep(blocks: int = 12, classes: int = 3) -> nn.Module:
    body = nn.Sequential(
        *(nn.ModuleDict({"fc": nn.Linear(4, 4), "norm": nn.LayerNorm(4)}) for _ in range(blocks))
    )
    return nn.ModuleDict({"body": body, "head": nn.Linear(4, classes)})


@pytest.fixture
def report(tmp_path) -> TransferReport:
    torch.save(deep().state_dict(), tmp_path / "deep.pt")
    return WeightTransfer(tmp_path / "deep.pt", select=before("head") & ~by_name("body.3.*")).apply(deep())


def test_repeated_blocks_are_one_line(report):
    rows = [(row.bucket, row.layer, row.source) for row in rows_of(report.entries)]
    assert rows == [
        ("copied", "body.{0-2,4-11}.fc", "body.{0-2,4-11}.fc"),
        ("copied", "body.{0-2,4-11}.norm", "body.{0-2,4-11}.norm"),
        ("skipped", "body.3.fc", "body.3.fc"),
        ("skipped", "body.3.norm", "body.3.norm"),
        ("skipped", "head", "head"),
    ]


def test_all_that_went_in_is_said(report, tmp_path):
    text = str(report)
    assert text.startswith(f"{tmp_path / 'deep.pt'} -> ModuleDict, mapped by name\n")
    assert "moved 44 of 44 tensors (100.0%), 308 of 308 elements (100.0%)" in text
    assert "44 copied, 6 skipped" in text
    assert "before('head') matches 24 layers" in text
    assert "by_name('body.3.*') matches 2 layers" in text
    assert report.coverage.tensors == (44, 44)


def test_the_table_fits_the_terminal_and_is_colored_there_alone(report, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert "\x1b" not in str(report)
    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "60")
    text = str(report)
    plain = re.sub(r"\x1b\[\d+m", "", text)
    assert "\x1b[32mcopied\x1b[0m" in text
    assert max(map(len, plain.split("\n"))) <= 60
    assert "…" in plain
    monkeypatch.setattr("sys.stdout", None)  # as under pythonw
    assert str(report) == render_text(report, color=False)


@given(
    st.lists(st.tuples(st.text("ab", max_size=30), st.text("cd", max_size=30)), max_size=6), st.integers(30, 60)
)
def test_columns_keep_to_the_width(rows, width):
    lines = text_table(rows, width)
    assert len(lines) == len(rows) and all(len(line) <= width for line in lines)


@given(st.sets(st.integers(0, 40), min_size=1))
def test_ranges_name_exactly_their_numbers(numbers):
    spelled = set()
    for part in _ranges(map(str, numbers)).split(","):
        first, _, last = part.partition("-")
        spelled |= set(range(int(first), int(last or first) + 1))
    assert spelled == numbers


def test_html_is_escaped():
    model = nn.ModuleDict({"<b>": nn.Linear(2, 2)})
    html = WeightTransfer(model.state_dict()).apply(model)._repr_html_()
    assert "&lt;b&gt;" in html and "<b>" not in html


@pytest.mark.parametrize("through", [dict, lambda values: json.loads(json.dumps(values))], ids=["dict", "json"])
def test_round_trips(report, through):
    again = TransferReport.from_dict(through(report.to_dict()))
    assert again == report
    assert again.origin.sha256 == report.origin.sha256
    assert again.to_dict() == report.to_dict()
    assert str(again) == str(report)


def test_round_trips_through_pickle_copy_and_a_run_checkpoint(report, tmp_path):
    assert pickle.loads(pickle.dumps(report)) == report
    assert copy.deepcopy(report) == report
    torch.save({"transfer": report.to_dict()}, tmp_path / "run.pt")
    saved = torch.load(tmp_path / "run.pt", weights_only=True)["transfer"]
    assert TransferReport.from_dict(saved) == report


def test_the_digest_is_the_files(report, tmp_path):
    import hashlib

    assert (
        report.to_dict()["origin"]["sha256"] == hashlib.sha256((tmp_path / "deep.pt").read_bytes()).hexdigest()
    )


def test_a_file_that_is_gone_has_no_digest(tmp_path):
    torch.save(deep().state_dict(), tmp_path / "deep.pt")
    report = WeightTransfer(tmp_path / "deep.pt").apply(deep())
    (tmp_path / "deep.pt").unlink()
    assert report.origin.sha256 is None


def test_plans_compare(tmp_path):
    source = Checkpoint.from_state_dict(deep().state_dict())
    plan = WeightTransfer(source, select=before("head")).plan(deep())
    assert plan == WeightTransfer(source, select=before("head")).plan(deep())
    assert plan != WeightTransfer(source, select=before("body.5")).plan(deep())
    assert TransferPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    refused = WeightTransfer(source).plan(deep(classes=5))
    assert TransferPlan.from_dict(json.loads(json.dumps(refused.to_dict()))) == refused
    assert [entry.key for entry in refused.problems] == ["head.weight", "head.bias"]


def test_versions_are_kept(report):
    assert set(report.versions) == {"transferkit", "torch", "python"}


def test_parameter_groups():
    model = deep(2)
    report = WeightTransfer(deep(2), select=before("head")).apply(model)
    groups = report.parameter_groups(
        model, transferred={"lr": 1e-5}, new={"lr": 1e-3}, decay_biases_and_norms=False
    )
    assert [(g["name"], g["lr"], g.get("weight_decay"), len(g["params"])) for g in groups] == [
        ("transferred", 1e-5, None, 2),
        ("transferred, no decay", 1e-5, 0.0, 6),
        ("new", 1e-3, None, 1),
        ("new, no decay", 1e-3, 0.0, 1),
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0, 0.1, 0.0]
    freeze(model, by_kind("norm"))
    groups = report.parameter_groups(model, transferred={"lr": 1e-5}, new={"lr": 1e-3})
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    freeze(model)
    with pytest.raises(ArgumentError, match=r"unfreeze\(model"):
        report.parameter_groups(model, transferred={}, new={})


def test_tied_parameters_stand_in_one_group_once():
    model = nn.ModuleDict(
        {"embed": nn.Embedding(5, 4), "mid": nn.Linear(4, 4), "out": nn.Linear(4, 5, bias=False)}
    )
    model["out"].weight = model["embed"].weight
    report = WeightTransfer(model, select=by_name("out")).apply(model)
    groups = report.parameter_groups(model, transferred={"lr": 1.0}, new={"lr": 2.0})
    assert [[id(p) for p in g["params"]] for g in groups] == [
        [id(model["embed"].weight)],
        [id(model["mid"].weight), id(model["mid"].bias)],
    ]


def test_a_report_keeps_the_rule_as_it_was_written():
    """Counts of the simple rules alone read the same for a rule and its opposite."""
    source, both = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4))), []
    for rule in (before("2") & ~by_name("0"), before("2") | by_name("0")):
        report = WeightTransfer(source, select=rule).apply(nn.Sequential(*(nn.Linear(2, 2) for _ in range(4))))
        both.append(report)
        written = str(rule)[1:-1]
        assert report.rules[0] == (written, len(report.copied) // 2)
        assert f"{written} matches {len(report.copied) // 2} layer" in str(report)
        assert TransferReport.from_dict(json.loads(json.dumps(report.to_dict()))).rules == report.rules
    assert both[0].rules[1:] == both[1].rules[1:] and both[0].rules[0] != both[1].rules[0]


def test_a_plan_and_a_report_are_one_line_where_they_are_not_printed() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(300)))
    transfer = WeightTransfer(model, select=before("299"))
    assert repr(transfer.plan(model)) == "TransferPlan(a model onto Sequential: 598 copied, 2 skipped)"
    assert repr(transfer.apply(model)) == "TransferReport(a model onto Sequential: 598 copied, 2 skipped)"
