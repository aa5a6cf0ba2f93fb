"""Show docstrings, which are written for ``help()`` too, as Markdown.

``:class:`MultiscaleSampler``` becomes a link where the reference has the name and plain code where it has not, and an
``Example:`` becomes a block of code.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from functools import cache
from types import ModuleType
from typing import Any

import griffe

import transferkit

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`~?([^`]+)`")


class Roles(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one object's docstring."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = _ROLE.sub(lambda found: _link(found[1], obj), text)


def _link(name: str, obj: griffe.Object) -> str:
    """Return Markdown for a name that a docstring of ``obj`` mentions."""
    short = name.removeprefix("transferkit.")
    owner, _, method = short.rpartition(".")
    public = public_names()
    last = short.rpartition(".")[2]
    if name in public.values():
        return f"[`{last}`][{name}]"
    if last in public and owner in ("", public[last].rpartition(".")[0].removeprefix("transferkit.")):
        return f"[`{last}`][{public[last]}]"
    parent = obj if obj.is_class else obj.parent
    known = (
        parent.members.get(last) if parent is not None and parent.is_class and parent.name in public else None
    )
    if not owner and known is not None and known.has_docstring:
        return f"[`{last}`][{public[parent.name]}.{last}]"
    return f"`{method}`" if method else f"`{short}`"


def roles_as_code(text: str) -> str:
    """Return text with the names in it as plain code."""
    return _ROLE.sub(lambda found: f"`{found[1].rpartition('.')[2]}`", text).replace("``", "`")


@cache
def parts() -> dict[str, ModuleType]:
    """Return the parts of the package that have public names, by their short ones."""
    modules = {
        part.name: importlib.import_module(f"transferkit.{part.name}")
        for part in pkgutil.iter_modules(transferkit.__path__)
        if not part.name.startswith("_") and part.name != "cli"
    }
    return {name: module for name, module in modules.items() if hasattr(module, "__all__")}


@cache
def public_names() -> dict[str, str]:
    """Return the full name that the reference has for each public name, by its short one."""
    names: dict[str, str] = {}
    for part in parts().values():
        for name in getattr(part, "__all__", ()):
            names.setdefault(name, f"{part.__name__}.{name}")
    return names
