"""The small examples run as their first lines say, and print what they say that they printed."""

from __future__ import annotations

import ast
import doctest
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

EXAMPLES = ("move_weights", "custom_rule", "from_neon")


def printed(root: Path, name: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(root / "examples" / f"{name}.py"), *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert answer.returncode == 0 and not answer.stderr, answer.stderr
    return answer.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_begins_with_its_command_and_prints_what_it_says(root: Path, name: str) -> None:
    said = ast.get_docstring(ast.parse((root / "examples" / f"{name}.py").read_text(encoding="utf-8")))
    assert f"\n    python examples/{name}.py" in said
    output = textwrap.dedent(said.partition("printed\n\n")[2])
    assert output.strip()
    wanted = re.sub(r"mAP \d+\.\d%", "mAP ...%", output)  # differs a little from machine to machine
    found = printed(root, name)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(wanted, found, flags), found


@pytest.mark.parametrize("name", ["mini_alexnet_1.2.2", "cifar_conv_bn_1.9.0", "mlp_2.6.0"])
def test_from_neon_describes_what_neon_wrote(root: Path, shared: Path, name: str) -> None:
    found = printed(root, "from_neon", str(shared / "neon" / f"{name}.prm"))
    assert found.startswith("neon {'neon_version'") and "is number 0 in the file" in found and "note: " in found
