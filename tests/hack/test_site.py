"""The documentation site: its reference has all of the code's, and every command in it is accounted for."""

import argparse
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from trenchcoat_api import constants
from trenchcoat_api.artifacts import Artifacts
from trenchcoat_api.crias import cria_ranges
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.status import ConditionType, Source, State, WaitingReason
from trenchcoat_kubectl.cli import build_parser as kubectl_parser
from trenchcoat_operator.reconcile.assessment.failures import FailureClass
from trenchcoat_trainer.cli import build_parser as trenchcoat_parser

from tests.plugin import samples

TOP = Path(__file__).parents[2]
sys.path.insert(0, str(TOP / "hack" / "site"))

import commands  # noqa: E402
import reference  # noqa: E402
import speech  # noqa: E402

PAGES = reference.pages()
DOCUMENTS = sorted([*(TOP / "docs").glob("*.md"), TOP / "README.md", TOP / "CONTRIBUTING.md"])


def leaves(schema: dict[str, Any], path: str) -> Iterator[str]:
    """Paths of all fields of a schema, by walking it another way than the pages do."""
    stack = [(schema, path)]
    while stack:
        node, here = stack.pop()
        for name, field in (node.get("properties") or {}).items():
            yield f"{here}.{name}"
            stack.append((field, f"{here}.{name}"))
            stack.append((field.get("items") or {}, f"{here}.{name}[]"))


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield f"### {command.prog}"
                yield from options(command)
        elif parser.prog.count(" "):
            yield from (option for option in action.option_strings if option not in ("-h", "--help"))


@pytest.mark.parametrize("part", ["spec", "status"])
def test_every_field_is_there(part: str) -> None:
    definition = yaml.safe_load((TOP / "crds" / "trenchcoat.dev_trenchcoats.yaml").read_text())
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][part]
    fields = set(leaves(schema, part))
    assert len(fields) > 50
    told = set(re.findall(rf"^\| `({part}\.[^`]+)`", PAGES[f"reference/{part}.md"], re.MULTILINE))
    assert told == fields


def test_every_command_and_option_is_there() -> None:
    page = PAGES["reference/commands.md"]
    for parser in (trenchcoat_parser(), kubectl_parser()):
        for word in options(parser):
            assert word in page


def test_every_word_of_the_status_is_there() -> None:
    page = PAGES["reference/status.md"]
    for words in (ConditionType, State, WaitingReason, Source, FailureClass):
        for word in words:
            assert f"`{word.value}`" in page
    # What conditions were seen to say in the cases of the operator's tests.
    seen = set()
    for file in (TOP / "tests" / "operator" / "reconcile" / "data").rglob("*.yaml"):
        for document in yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader):
            seen |= set(condition_reasons(document))
    assert len(seen) > 5
    known = set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE))
    assert seen <= known, sorted(seen - known)


def test_every_reason_of_a_condition_has_its_meaning() -> None:
    """Those that the code has, and no others: no new word without one, none of a word that is gone."""
    told = yaml.safe_load((TOP / "hack" / "site" / "reasons.yaml").read_text())
    assert told.keys() == speech.reasons() - {failure.value for failure in FailureClass}


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_listed_without_a_word_about_it(page: str) -> None:
    rows = [line for line in PAGES[page].splitlines() if line.startswith("|")]
    assert rows
    assert [row for row in rows if re.search(r"\| *-? *\|$", row)] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_table_begins_with_its_header_alone(page: str) -> None:
    """Where no empty line stands between two tables, the second is rows of the first."""
    text = PAGES[page]
    assert re.search(r"^\|[ -]+\|", text, re.MULTILINE)
    assert re.findall(r"^\|.*\n(\|.*\|)\n\|[ -]+\|", text, re.MULTILINE) == []


def condition_reasons(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if {"type", "status", "reason"} <= node.keys() and node["type"] in {
            kind.value for kind in ConditionType
        }:
            yield node["reason"]
        for value in node.values():
            yield from condition_reasons(value)
    elif isinstance(node, list):
        for value in node:
            yield from condition_reasons(value)


def test_every_value_of_the_chart_is_there() -> None:
    page = PAGES["reference/chart-values.md"]
    for name in yaml.safe_load((TOP / "charts" / "trenchcoat" / "values.yaml").read_text()):
        assert f"| `{name}" in page
        assert f"| `{name}`" in page or f"\n## {name}\n" in page


def test_every_exit_code_label_and_variable_is_there() -> None:
    for code in ExitCode:
        assert f"| `{int(code)}` |" in PAGES["reference/exit-codes.md"]
    for name, value in vars(constants).items():
        if name.startswith(("LABEL_", "ANNOTATION_")):
            assert f"`{value}`" in PAGES["reference/labels.md"]
        if name.startswith("ENV_"):
            assert f"`{value}`" in PAGES["reference/variables.md"]
    template = (TOP / "charts" / "trenchcoat" / "templates" / "deployment.yaml").read_text()
    set_there = set(re.findall(r"TRENCHCOAT_[A-Z_]+", template))
    assert set_there
    for name in set_there:
        assert re.search(
            rf"^\| `{name}` .* The chart's `", PAGES["reference/variables.md"], re.MULTILINE
        ) or (name == "TRENCHCOAT_HEALTH_PORT")


def test_events_are_those_that_the_code_makes() -> None:
    page = PAGES["reference/events.md"]
    made = set()
    for file in (TOP / "operator").rglob("*.py"):
        made |= set(re.findall(r'"(?:Normal|Warning)",\s*"(\w+)"', file.read_text()))
    assert {"Created", "GoesOn"} <= made
    assert sorted(reason for reason in made if f"| `{reason}` |" not in page) == []


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_every_command_is_run_by_a_test_or_marked_as_not_run(page: Path) -> None:
    unknown = [command for command in commands.commands(page.read_text()) if commands.entry(command) is None]
    assert unknown == [], "say in hack/site/commands.yaml which test runs them, or why none does"


PROGRAMS = {"trenchcoat": trenchcoat_parser, "kubectl trenchcoat": kubectl_parser}


def calls(command: str) -> tuple[str, list[str]] | None:
    """Which of our programs a command of the documentation calls, and its arguments; None for another one."""
    words = shlex.split(command.removeprefix(".venv/bin/").removesuffix("\\"), comments=True)
    while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    words = words[: words.index(">")] if ">" in words else words
    for program in PROGRAMS:
        count = len(program.split())
        if " ".join(words[:count]) == program:
            return program, words[count:]
    return None


def test_every_command_of_ours_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    """The parsers take what the documentation shows, and the examples that it names are there."""
    shown = [(page, command) for page in DOCUMENTS for command in commands.commands(page.read_text())]
    ours = [(page.name, command, call) for page, command in shown if (call := calls(command))]
    assert len(ours) > 25
    for page, command, (program, arguments) in ours:
        try:
            PROGRAMS[program]().parse_args(arguments)
        except SystemExit:
            pytest.fail(f"{page}: {command}\n{capsys.readouterr().err}")
        named = [word for word in arguments if word.startswith("examples/")]
        assert all((TOP / word).is_file() for word in named), (page, command)


def test_a_command_that_is_none_is_found() -> None:
    program, arguments = calls("HF_TOKEN=... trenchcoat run FILE --stroe x   # no such option") or ("", [])
    assert (program, arguments) == ("trenchcoat", ["run", "FILE", "--stroe", "x"])
    with pytest.raises(SystemExit):
        PROGRAMS[program]().parse_args(arguments)
    assert calls("kubectl get trenchcoats") is None


def test_what_is_said_to_be_tested_is() -> None:
    for item in commands.entries():
        assert bool(item.test) != bool(item.not_run), item
        if item.test:
            place = TOP / item.test
            files = [place] if place.is_file() else sorted(place.rglob("*.py"))
            assert any(item.evidence in file.read_text() for file in files), item


def test_a_command_without_a_test_is_marked_below_its_block() -> None:
    block = "```console\n$ make demo\n$ docker push x && y\n```"
    assert commands.marked(block).splitlines()[-1] == (
        "*Not run by a test: `docker push x`: images are built by buildah in the tests.*"
    )
    assert commands.marked("```console\n$ make demo\n```") == "```console\n$ make demo\n```"
    assert commands.entry("rm -rf /") is None


def test_every_page_is_in_the_navigation() -> None:
    text = (TOP / "mkdocs.yml").read_text()
    for page in [*(path.name for path in (TOP / "docs").glob("*.md")), *PAGES]:
        assert re.search(rf"\b{re.escape(page)}$", text, re.MULTILINE), page


CHANGES: dict[str, Any] = {
    "evaluate": {"recallSamples": 5},
    "export": {"maxShardBytes": 10**9},
    "stitch": {"learningRate": "2e-4"},
    "attention": {"window": 32},
    "transfer": {"learningRate": "2e-3"},
    "criaLora": {"epochs": 1},
    "layersPerCria": 18,
    "data": {"tokens": 1_000_000},
    "model": {"source": "hf://owner/other"},
    "scheduling": {"maxParallelCrias": 2},
    "pods": {"cria": {"nodeSelector": {"gpu": "yes"}}},
    "retention": "Delete",
    "gates": {"maxCriaError": "0.5"},
    "plan": {"pricePerGpuHour": "2"},
    "suspend": True,
}
"""A change to each part of a spec that docs/steering.md speaks of."""


def made_by(spec: dict[str, Any]) -> dict[str, list[str]]:
    """Keys of all artifacts by the stage that makes them."""
    read = TrenchcoatSpec.model_validate(spec)
    found: dict[str, list[str]] = {}
    for artifact in Artifacts(read).all(cria_ranges(126, read.layers_per_cria)):
        found.setdefault(artifact.stage.value, []).append(artifact.key)
    return found


def test_what_a_change_makes_anew_is_as_told() -> None:
    page = (TOP / "docs" / "steering.md").read_text()
    rows = re.findall(r"^\| (`spec\..*?) \| ([a-z, ]+) \|$", page, re.MULTILINE)
    told = {part: stages for parts, stages in rows for part in re.findall(r"`spec\.(\w+)`", parts)}
    assert told.keys() == CHANGES.keys()
    spec = samples.running().spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    before = made_by(spec)
    assert "adapt" in before
    for part, change in CHANGES.items():
        changed = spec[part] | change if isinstance(change, dict) and part in spec else change
        after = made_by(spec | {part: changed})
        anew = [stage for stage, keys in after.items() if keys != before[stage]]
        assert (", ".join(anew) or "none") == told[part], part


YAML = re.compile(r"```yaml\n(.*?)```", re.DOTALL)


def shown_specs() -> Iterator[Any]:
    """Specs, or parts of them, that the documentation shows; `...` stands for what a reader knows."""
    for page in [*sorted((TOP / "docs").glob("*.md")), TOP / "README.md"]:
        for number, block in enumerate(YAML.findall(page.read_text())):
            document = yaml.safe_load(block)
            if (
                isinstance(document, dict)
                and "spec" in document
                and document.get("kind", "Trenchcoat") == "Trenchcoat"
            ):
                yield pytest.param(document, id=f"{page.name}-{number}")


def laid_over(base: Any, part: Any) -> Any:
    """`base` with what `part` says in its place; a source takes what belongs to the other one along."""
    if not isinstance(part, dict) or not isinstance(base, dict) or "source" in part or "form" in part:
        return part
    return base | {key: laid_over(base.get(key), value) for key, value in part.items()}


@pytest.mark.parametrize("document", list(shown_specs()))
def test_what_the_documentation_shows_of_a_spec_is_one(document: dict[str, Any]) -> None:
    example = yaml.safe_load((TOP / "examples" / "smollm2-135m.yaml").read_text())
    spec = laid_over(example, document)["spec"]
    if "webIdentity" in spec["store"]:
        del spec["store"]["credentialsSecretRef"]
    text = yaml.safe_dump(spec).replace("...", "QUJD")  # what stands for a name or a certificate
    assert TrenchcoatSpec.model_validate(yaml.safe_load(text))


def test_a_misspelt_field_of_a_shown_spec_is_found() -> None:
    with pytest.raises(ValueError, match="maxParalelCrias"):
        TrenchcoatSpec.model_validate(
            laid_over(
                samples.running().spec.model_dump(mode="json", by_alias=True, exclude_none=True),
                {"scheduling": {"maxParalelCrias": 3}},
            )
        )
