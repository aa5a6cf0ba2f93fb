"""Follow what a refusal advises, to the letter, until it ends right or in a refusal that advises nothing more.

A message advises in code: ``allow_missing='head'``, ``select=... & ~by_name('fc')``, ``mapping={'*': 'net.*'}``. What is
printed is taken over as it stands: ``...`` for the selection stands for that so far, and what is asked of a person
(``mapping={'head': '...'}``) is answered by who knows. Where there are several ways, each is gone.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from transferkit import errors, heads, transfer
from transferkit.transfer import handlers

Arguments = Mapping[str, str]
"""Arguments of a call as a user writes them: expressions by name."""

LONGEST = 8  # steps one after another
MOST = 60  # attempts for one refusal

NAMESPACE: dict[str, Any] = {
    name: getattr(module, name) for module in (transfer, handlers, heads) for name in module.__all__
}


class Scenario(Protocol):
    """A call that is refused, and the truth about it."""

    name: str
    arguments: Arguments
    known: Mapping[str, str]
    """What a person knows: the source layer of a target layer."""
    keywords: frozenset[str]
    """The arguments that the call takes."""
    namespace: Mapping[str, Any]
    choices: tuple[str, ...]
    """Words of what a person chooses, where a message offers one thing or another."""

    def run(self, values: Mapping[str, Any], done: tuple[str, ...]) -> str:
        """Make the call anew; return what is wrong with its result.

        Args:
            values: The arguments.
            done: What was done to the model or the file beforehand, such as ``"batch"``.

        Raises:
            TransferKitError: It is refused.
        """


class Attempt(NamedTuple):
    """One call: its arguments as they are written, and what was done before it."""

    arguments: tuple[tuple[str, str], ...]
    done: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join([*(f"{name}={text}" for name, text in self.arguments), *self.done]) or "as it was"


class Ending(NamedTuple):
    """How one way ended: ``right``, ``refused``, ``wrong``, ``circle`` or ``crash``; and the way."""

    outcome: str
    way: tuple[Attempt, ...]
    words: str = ""


@dataclass
class Followed:
    """All that came of one scenario.

    Attributes:
        message: What the first refusal says; empty if the call was not refused.
        endings: One for each way that its advice and that of later refusals opens.
    """

    scenario: Scenario
    message: str = ""
    endings: list[Ending] = field(default_factory=list)

    @property
    def failures(self) -> list[Ending]:
        """Ways that do not end right or in a refusal."""
        return [ending for ending in self.endings if ending.outcome not in ("right", "refused")]


def follow(scenario: Scenario) -> Followed:
    """Make a call and go every way that its refusal advises."""
    followed = Followed(scenario)
    ways: list[tuple[Attempt, ...]] = [(Attempt(tuple(scenario.arguments.items())),)]
    for _ in range(MOST):
        if not ways:
            break
        way = ways.pop(0)
        ending = _ended(scenario, way)
        if ending.outcome == "refused":
            followed.message = followed.message or ending.words
            onward = list(_onward(ending.words, way[-1], scenario)) if len(way) <= LONGEST else []
            ways += [(*way, attempt) for attempt in onward if attempt not in way]
            followed.endings += [Ending("circle", way, ending.words)] if set(onward) & set(way) else []
            if onward:
                continue
        followed.endings.append(ending)
    return followed


def _ended(scenario: Scenario, way: tuple[Attempt, ...]) -> Ending:
    attempt = way[-1]
    names = {**NAMESPACE, **scenario.namespace}
    try:
        values = {name: eval(text, names) for name, text in attempt.arguments}
        problem = scenario.run(values, attempt.done)
    except errors.TransferKitError as error:
        return Ending("refused", way, str(error))
    except Exception as error:  # what is no word to a user
        return Ending("crash", way, f"{type(error).__name__}: {error}")
    return Ending("wrong", way, problem) if problem else Ending("right", way)


# Reading a message.


def _onward(message: str, attempt: Attempt, scenario: Scenario) -> Iterator[Attempt]:
    """Yield the attempts that a message leads to, each once."""
    arguments, seen = dict(attempt.arguments), set()
    for changed, done in _changes(message, arguments, scenario):
        new = Attempt(tuple({**arguments, **changed}.items()), tuple(dict.fromkeys((*attempt.done, *done))))
        if new not in seen:
            seen.add(new)
            yield new


def _changes(
    message: str, arguments: Arguments, scenario: Scenario
) -> Iterator[tuple[Arguments, tuple[str, ...]]]:
    """Yield what a message says to change: arguments, or something that is done before the call."""
    steps = message.partition("Next step")[2]
    for keyword, text in _chosen(steps or message, scenario.choices):
        if keyword in scenario.keywords:
            new = _taken_over(keyword, text, arguments, scenario, message)
            if new is not None and (steps or new != arguments.get(keyword)):  # else it tells what was said
                yield {keyword: new}, ()
    yield from ((changed, ()) for changed in _respelled(message, arguments))
    for pattern, change in PHRASES.items():
        for match in re.finditer(pattern, message):
            yield from change(match, arguments)


def _chosen(text: str, choices: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield the arguments that a text writes out, of two for one keyword in a line the one that a person chooses."""
    for line in text.splitlines():
        found = list(fragments(line))
        for keyword, expression in found:
            rivals = [other for word, other in found if word == keyword]
            wanted = [other for other in rivals if any(choice in other for choice in choices)]
            if expression in (wanted or rivals):
                yield keyword, expression


def fragments(text: str) -> Iterator[tuple[str, str]]:
    """Yield the arguments that a text writes out, ``("allow_missing", "'head'")``.

    Example:
        >>> list(fragments("say so: mapping={'a': 'b'}, or mapping='structure' (--map a b)"))
        [('mapping', "{'a': 'b'}"), ('mapping', "'structure'")]
        >>> list(fragments("leave it: select=... & ~by_name('fc', ...)"))
        [('select', "... & ~by_name('fc', ...)")]
    """
    for match in re.finditer(r"(?<![\w.\-(])([a-z_]+)=(?=[^\s=,])", text):
        expression = _expression(text[match.end() :])
        if expression:
            yield match[1], expression


def _expression(text: str) -> str:
    """Return the expression that a text begins with, or an empty string."""
    end = _operand(text)
    while end and (sign := re.match(r"\s*[&|]\s*", text[end:])):
        further = _operand(text[end + sign.end() :])
        if not further:
            break
        end += sign.end() + further
    try:
        ast.parse(_UNFINISHED.sub("", text[:end]), mode="eval")
    except SyntaxError:
        return ""
    return text[:end]


_UNFINISHED = re.compile(r", \.\.\.(?=[)\]}])")  # "and so on" in a list that a message does not write out
_STRING = r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\""


def _operand(text: str) -> int:
    """Return where a string, a number, ``...``, a name, a call or something in brackets ends."""
    match = re.match(rf"~?(?:{_STRING}|\.\.\.|-?[\d.]+(?:e-?\d+)?|[A-Za-z_][\w.]*|(?=[(\[{{]))", text)
    if not match:
        return 0
    place = match.end()
    if place < len(text) and text[place] in "([{" and (match[0] in ("", "~") or match[0][-1].isidentifier()):
        return _closing(text, place)
    return len(text[:place].rstrip(".")) if match[0][-1] == "." and not match[0].endswith("...") else place


def _closing(text: str, place: int) -> int:
    depth = 0
    for match in re.compile(rf"{_STRING}|[(\[{{]|[)\]}}]").finditer(text, place):
        depth += (match[0] in "([{") - (match[0] in ")]}") if len(match[0]) == 1 else 0
        if depth == 0:
            return match.end()
    return 0


# Taking an argument over from a message.


def _taken_over(keyword: str, text: str, arguments: Arguments, scenario: Scenario, message: str) -> str | None:
    """Return the argument that a user writes after reading one, or ``None`` where it says too little to follow."""
    if text in ("[...]", "{...}", "..."):
        return None
    if keyword == "select":
        named = ", ".join(map(repr, dict.fromkeys(re.findall(r"^  (\S+)\.\w+:", message, re.MULTILINE))))
        text = _UNFINISHED.sub("", text.replace("by_name(...)", f"by_name({named})"))
        return text.replace("...", arguments.get("select", "every()"), 1)
    text = _UNFINISHED.sub("", text)
    if keyword in ("mapping", "handlers"):
        text = _answered(text, scenario.known)
    if "..." in text or "NAME" in text or "target name" in text:
        return None
    old = arguments.get(keyword)
    return text if old is None else _joined(keyword, old, text)


def _answered(text: str, known: Mapping[str, str]) -> str:
    """Fill in what a message leaves to a person: the source layer of a target layer."""

    def answer(match: re.Match[str]) -> str:
        name = ast.literal_eval(match[1])
        return f"{match[1]}: {known[name]!r}" if name in known else match[0]

    return re.sub(rf"({_STRING}): '\.\.\.'", answer, text)


def _joined(keyword: str, old: str, new: str) -> str:
    """Return an argument with what is advised added to what was there, where both are collections."""
    if keyword in ("allow_missing", "keep", "handlers") and "{" not in old + new and "lambda" not in old:
        several = [*_as_list(old), *_as_list(new)]
        return f"[{', '.join(dict.fromkeys(several))}]"
    if keyword == "mapping" and old.endswith(("}", "})")) and new.endswith(("}", "})")):
        both = f"{old[old.index('{') + 1 : old.rindex('}')]}, {new[new.index('{') + 1 : new.rindex('}')]}"
        return f"ByStructure({{{both}}})" if "ByStructure" in old + new else f"{{{both}}}"
    return new


def _as_list(text: str) -> list[str]:
    tree = ast.parse(text, mode="eval").body
    items = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
    return [ast.unparse(item) for item in items]


# Names that are spelled wrong, and what is said in words.


def _respelled(message: str, arguments: Arguments) -> Iterator[Arguments]:
    """Yield arguments with a name replaced by the one that the message takes it for first."""
    for line in message.splitlines():
        for match in re.finditer(r"did you mean ([^?]+)\?", line):
            told = re.search(rf"({_STRING}): {_STRING}; $|no source layer ({_STRING})", line[: match.start()])
            before = [told[1] or told[2]] if told else re.findall(_STRING, line[: match.start()])[-1:]
            yield from _replaced(before, re.findall(_STRING, match[1])[:1], arguments)
    for old, new in re.findall(rf"({_STRING}) is no layer but holds \d+; write ({_STRING})", message):
        yield from _replaced([old], [new], arguments)


def _replaced(olds: list[str], news: list[str], arguments: Arguments) -> Iterator[Arguments]:
    for old in olds:
        if any(old in text for text in arguments.values()):
            yield from ({name: text.replace(old, new) for name, text in arguments.items()} for new in news)


Change = Callable[[re.Match[str], Arguments], Iterator[tuple[Arguments, tuple[str, ...]]]]


def _do(what: str) -> Change:
    return lambda match, arguments: iter([({}, (what,))])


def _set(name: str, text: str) -> Change:
    return lambda match, arguments: iter([({name: match.expand(text)}, ())])


def _each(name: str, words: str = r"\w+") -> Change:
    return lambda match, arguments: (({name: repr(w.strip("'"))}, ()) for w in re.findall(words, match[1]))


def _index(match: re.Match[str], arguments: Arguments) -> Iterator[tuple[Arguments, tuple[str, ...]]]:
    """Take the last layer there is for one that is not."""
    changed = {
        name: re.sub(rf"(?<!\d){match[1]}(?!\d)", match[2], text)
        for name, text in arguments.items()
        if match[1] in text
    }
    if changed:
        yield changed, ()


PHRASES: dict[str, Change] = {
    r"run one batch through it first": _do("batch"),
    r"unfreeze\(model, \.\.\.\)": _do("unfreeze"),
    r"apply\(model, optimizer\)": _do("optimizer"),
    r"from_dict\(report\.to_dict\(\)\)": _do("from_dict"),
    r"dequantize\(\), full_tensor\(\) or to_dense\(\)": _do("plain"),
    r"load the source's weights first": _do("load"),
    r"build the model on a real device": _do("real"),
    r"build the optimizer after the transfer": _do("optimizer after"),
    r"pass device=": _set("device", "'cpu'"),
    r"map them by name": _set("mapping", "'name'"),
    r"perhaps (by_name\((?:'[^']*')\))": _set("select", r"\1"),
    r"on_mismatch must be ('error' or 'adapt')": _each("on_mismatch", r"'\w+'"),
    r"kinds are ((?:\w+, )*\w+), got '(\w+)'": lambda m, a: (
        ({name: text.replace(repr(m[2]), repr(kind)) for name, text in a.items()}, ()) for kind in m[1].split(", ")
    ),
    r"key=, one of \[([^\]]*)\]": _each("key", r"'[^']*'"),
    r"It has: \[([^\]]*)\]": _each("key", r"'[^']*'"),
    r"format must be one of ([^\n]*), got": _each("format", r"[\w-]+(?: [\w-]+)*"),
    r"no layer (-?\d+)[^;]*; (?:there are|it has) layers 0 to (\d+)": _index,
    r"mapping must be ('name'), ('order'), ('structure')": lambda m, a: (({"mapping": w}, ()) for w in m.groups()),
}  # fmt: skip
"""What messages say in words rather than in code, and what a reader does then."""
