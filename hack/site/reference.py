"""Pages of the reference, made of the code that they speak of, each time the site is built."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import speech
import yaml

REPO = Path(__file__).resolve().parents[2]
CRD = REPO / "crds" / "trenchcoat.dev_trenchcoats.yaml"
STATUS = REPO / "api" / "trenchcoat_api" / "status.py"
FAILURES = speech.OPERATOR / "reconcile" / "assessment" / "failures.py"
MEANINGS = REPO / "hack" / "site" / "reasons.yaml"
PRODUCT = ("api", "operator", "plugin", "reports", "s3", "serving", "trainer", "viewer")
SETTINGS = {
    "operator/trenchcoat_operator/settings.py": "deployment.yaml",
    "viewer/trenchcoat_viewer/settings.py": "viewer.yaml",
}
"""What reads variables that the chart sets, and the template that does."""
VARIABLE = re.compile(r"(TRENCHCOAT|AWS|HF|MLFLOW|TRACKIO)_[A-Z0-9_]+")

Row = tuple[str, ...]


def pages() -> dict[str, str]:
    """Markdown by the path within docs/."""
    return {
        "reference/spec.md": spec(),
        "reference/status.md": status(),
        "reference/commands.md": commands(),
        "reference/chart-values.md": chart_values(),
        "reference/events.md": events(),
        "reference/exit-codes.md": exit_codes(),
        "reference/variables.md": variables(),
        "reference/labels.md": labels(),
    }


def table(header: Row, rows: list[Row]) -> str:
    """A table in Markdown."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join("| " + " | ".join(_cell(cell) for cell in line) + " |\n" for line in lines)


def spec() -> str:
    """Every field of the spec, from the custom resource definition."""
    rows = list(_fields(_schema("spec"), "spec"))
    return (
        "# Fields of the spec\n\nWhat `kubectl explain trenchcoat.spec --recursive` tells, from the custom "
        "resource definition. A number with a fraction is written as a string.\n\n"
        + table(("field", "type", "default", "what it is"), rows)
    )


def status() -> str:
    """Every field of the status, and the words in it."""
    text = "# The status\n\nWhat the operator writes; `kubectl get trenchcoat NAME -o yaml` shows it.\n"
    for name, title in (
        ("ConditionType", "Conditions"),
        ("State", "States of stages and Crias"),
        ("WaitingReason", "Reasons for waiting"),
        ("Source", "Where an artifact came from"),
    ):
        text += f"\n## {title}\n\n" + table(("name", "what it means"), members(STATUS, name))
    text += (
        "\n## Reasons of conditions\n\nWords that the operator puts into `reason`. A stage's condition has "
    )
    text += "the stage's state, and once it is complete where its artifact came from.\n\n"
    text += table(("reason", "what it means"), reasons())
    rows = [(path, kind, text) for path, kind, _, text in _fields(_schema("status"), "status")]
    return text + "\n## Fields\n\n" + table(("field", "type", "what it is"), rows)


def members(file: Path, name: str) -> list[Row]:
    """Values of an enumeration with the docstrings below them."""
    found: list[Row] = []
    body = next(
        node.body
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef) and node.name == name
    )
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            told = after.value if isinstance(after, ast.Expr) else None
            words = str(told.value) if isinstance(told, ast.Constant) else ""
            found.append((f"`{node.value.value}`", " ".join(words.split())))
    return found


def reasons() -> list[Row]:
    """Words that stand as reasons in conditions; reasons.yaml has those that are plain words in the code."""
    found = {f"`{word}`": text for word, text in yaml.safe_load(MEANINGS.read_text()).items()}
    for name in ("State", "Source"):  # conditions of a stage take these words from its row
        found |= {word: text for word, text in members(STATUS, name) if word not in found}
    found |= dict(members(FAILURES, "FailureClass"))
    return sorted(found.items())


def commands() -> str:
    """The commands `trenchcoat` and `kubectl trenchcoat`, from their parsers."""
    from trenchcoat_kubectl.cli import build_parser as kubectl
    from trenchcoat_trainer.cli import build_parser as trenchcoat

    text = "# Commands\n"
    for parser in (trenchcoat(), kubectl()):
        text += f"\n## {parser.prog}\n\n{parser.description}\n\n"
        text += table(("argument", "what it is"), list(_arguments(parser)))
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, command in action.choices.items():
                    text += f"\n### {parser.prog} {name}\n\n{_sentence(command.description or '')}\n\n"
                    text += table(("argument", "what it is"), list(_arguments(command)))
    return text


def chart_values() -> str:
    """What the chart's README, which `make chart-docs` makes of values.yaml, says of each value."""
    readme = (REPO / "charts" / "trenchcoat" / "README.md").read_text()
    values = readme.partition("\n## Values\n")[2].replace("\n### ", "\n## ")
    return f"# Values of the chart\n\nA misspelt value is refused.\n{values}"


def events() -> str:
    """Every event that the operator's code makes with a reason that stands there as a word."""
    rows = [
        (kind, f"`{reason}`", "the condition's message" if message == "..." else message)
        for kind, reason, message in sorted(speech.events(), key=lambda event: (event[1], event[0]))
    ]
    return (
        "# Events\n\nWhat `kubectl describe trenchcoat` tells, one for each transition. `...` stands for "
        "names, numbers and what the status says. Besides these, a condition that turns to what a person "
        "must mend tells its own reason and message, and a failed try the class of its failure "
        "([reasons](status.md#reasons-of-conditions)).\n\n" + table(("type", "reason", "message"), rows)
    )


def exit_codes() -> str:
    """Exit codes of the stage programs."""
    file = REPO / "api" / "trenchcoat_api" / "exitcodes.py"
    return "# Exit codes\n\nOf `trenchcoat` and its stages; the operator's retries rest on them.\n\n" + table(
        ("code", "what it means"), members(file, "ExitCode")
    )


def variables() -> str:
    """Environment variables that the code reads by name, with the comment or docstring there."""
    found: dict[str, tuple[str, str]] = {}
    for file in _files(PRODUCT):
        where = file.relative_to(REPO).as_posix()
        lines = file.read_text().splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and VARIABLE.fullmatch(node.value)
            ):
                words = _told(lines, node.lineno - 1)
                if where in SETTINGS:
                    words = _chart_value(node.value, SETTINGS[where])
                    if found.get(node.value, ("",))[0] not in SETTINGS:
                        found[node.value] = where, words
                found.setdefault(node.value, (where, words))
    rows = [(f"`{name}`", f"`{where}`", words or "-") for name, (where, words) in sorted(found.items())]
    return (
        "# Environment variables\n\nOf operator and viewer those that the chart sets, of stages those in "
        "pods or in a shell. All go through the proxies that `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and "
        "`NO_PROXY` name ([proxies](../stores.md#proxies)).\n\n"
        + table(("variable", "read in", "what it is"), rows)
    )


def labels() -> str:
    """Labels, annotations and the finalizer, from the constants of the API."""
    file = REPO / "api" / "trenchcoat_api" / "constants.py"
    lines = file.read_text().splitlines()
    from trenchcoat_api import constants

    rows = []
    for number, line in enumerate(lines):
        match = re.match(r"(LABEL|ANNOTATION|FINALIZER)\w* = ", line)
        if match:
            name = line.partition(" = ")[0]
            words = _told(lines, number) or _comment_above(lines, number)
            rows.append((f"`{getattr(constants, name)}`", match.group(1).lower(), words))
    head = "# Labels and annotations\n\nOf Jobs and pods, unless it says otherwise.\n\n"
    return head + table(("key", "kind", "what it holds"), rows)


def _schema(part: str) -> dict[str, Any]:
    definition = yaml.safe_load(CRD.read_text())
    whole: dict[str, Any] = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    found: dict[str, Any] = whole["properties"][part]
    return found


def _fields(schema: dict[str, Any], path: str) -> Iterator[Row]:
    for name, field in schema.get("properties", {}).items():
        items = field.get("items", {})
        inner, below = (items, f"{path}.{name}[]") if items.get("properties") else (field, f"{path}.{name}")
        default = (
            ""
            if "default" not in field
            else f"`{yaml.safe_dump(field['default'], default_flow_style=True).splitlines()[0]}`"
        )
        yield f"`{path}.{name}`", _kind(field), default, " ".join(field.get("description", "").split())
        yield from _fields(inner, below)


def _kind(field: dict[str, Any]) -> str:
    kind = "integer or string" if field.get("x-kubernetes-int-or-string") else field.get("type", "any")
    if "enum" in field:
        kind = ", ".join(f"`{value}`" for value in field["enum"])
    bounds = [
        f"{word} {field[key]}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in field
    ]
    return " ".join([kind, *bounds])


def _arguments(command: argparse.ArgumentParser) -> Iterator[Row]:
    for action in command._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        value = action.metavar or (
            action.dest.upper() if action.nargs != 0 and not action.option_strings else ""
        )
        names = " or ".join(f"`{name}{' ' + str(value) if value else ''}`" for name in action.option_strings)
        text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
        if action.choices:
            text += f": {', '.join(action.choices)}"
        yield names or f"`{value}`", _sentence(text)


def _chart_value(variable: str, name: str) -> str:
    """Which value of the chart sets a variable in a template."""
    template = (REPO / "charts" / "trenchcoat" / "templates" / name).read_text()
    line = next(
        (line for line in template.splitlines() if f"{variable}," in line or line.endswith(variable)), ""
    )
    values = re.findall(r"\.Values\.([A-Za-z.]+)", line)
    return f"The chart's `{values[0]}`." if values else "Set by the chart."


def _told(lines: list[str], number: int) -> str:
    """The comment at the end of a line, or the docstring below it."""
    comment = re.search(r"  # (?!noqa)(.*)$", lines[number])
    if comment:
        return comment.group(1)
    below = "\n".join(lines[number + 1 : number + 8])
    docstring = re.match(r'\s*"""(.*?)"""', below, re.DOTALL)
    return " ".join(docstring.group(1).split()) if docstring else ""


def _comment_above(lines: list[str], number: int) -> str:
    found: list[str] = []
    while number > 0 and lines[number - 1].startswith("# "):
        number -= 1
        found.insert(0, lines[number].removeprefix("# "))
    return " ".join(found)


def _files(folders: tuple[str, ...]) -> list[Path]:
    return [file for folder in folders for file in sorted((REPO / folder).rglob("*.py"))]


def _sentence(text: str) -> str:
    first = text.partition(" ")[0].rstrip(",")
    begun = text if "." in first else text[:1].upper() + text[1:]  # a file's name is as it is
    return begun + ("" if text.endswith((".", ")")) else ".") if text else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
