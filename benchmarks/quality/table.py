#!/usr/bin/env python3
"""The table for people of what students.py wrote: teacher, adapted teacher, students and their rivals.

    python benchmarks/quality/table.py benchmarks/quality/results/students_h200.json --only '^window$'

A line for everything that was measured: perplexity by length, by position and on other texts, recall, tasks,
the likelihoods compared, bytes of state. Where errors were told they stand behind it. Markdown, to stdout.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

PROBES = {
    "copy": "copy random tokens",
    "association": "values of keys (MQAR-like)",
    "induction": "induction",
    "passkey": "pass key",
}


class Column(NamedTuple):
    """One form of one student's run."""

    title: str
    form: str
    run: dict[str, Any]


def main() -> None:
    """Print the table of the students that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+", help="files of students.py")
    parser.add_argument("--only", default="", help="regular expression of the students to show")
    arguments = parser.parse_args()
    told = [json.loads(file.read_text()) for file in arguments.results]
    runs = {
        name: run for one in told for name, run in one["students"].items() if re.search(arguments.only, name)
    }
    if not runs:
        raise SystemExit(f"no student of {', '.join(map(str, arguments.results))} matches {arguments.only}")
    print(table(runs))


def table(runs: dict[str, dict[str, Any]]) -> str:
    """Return the table of runs by the student's name."""
    columns = columns_of(runs)
    lines = [
        "| | " + " | ".join(column.title for column in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for title, cell in rows(runs):
        cells = [cell(column) for column in columns]
        if any(cells):
            lines.append(f"| {title} | " + " | ".join(text or "-" for text in cells) + " |")
    return "\n".join(lines)


def columns_of(runs: dict[str, dict[str, Any]]) -> list[Column]:
    """Return the forms to show: a teacher once, as long as the runs agree on it."""
    columns: list[Column] = []
    for form, title in (("teacher", "teacher"), ("adaptedTeacher", "adapted teacher")):
        seen: list[dict[str, float]] = []
        for name, run in runs.items():
            figures = run["summary"]["perplexities"].get(form)
            if figures is not None and figures not in seen:
                columns.append(Column(f"{title} of {name}" if seen else title, form, run))
                seen.append(figures)
    for name, run in runs.items():
        columns.append(Column(f"**{name}**", "stitched", run))
        if "windowedTeacher" in run["summary"]["perplexities"]:
            columns.append(Column("its rival", "windowedTeacher", run))
    return columns


def rows(runs: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Callable[[Column], str]]]:
    """Yield the title of each line and what makes its cells."""
    evaluations = [run["summary"]["evaluation"] for run in runs.values()]
    lengths = {key for run in runs.values() for key in run["summary"]["perplexities"]["teacher"]}
    for length in sorted(lengths, key=int):
        yield f"perplexity at {length}", lambda column, length=length: perplexity(column, length)
    for name in ordered(run.get("otherTexts", {}) for run in runs.values()):
        yield f"perplexity on other text: {name}", lambda column, name=name: other_text(column, name)
    for place in ordered({(row["first"], row["last"]): 0 for row in one["positions"]} for one in evaluations):
        title = f"perplexity at positions {place[0]} to {place[1]}"
        yield title, lambda column, place=place: position(column, place)
    for probe in sorted(ordered(one["recall"] for one in evaluations), key=by_probe):
        kind, _, distance = probe.partition("-")
        yield f"{PROBES[kind]}, {distance} back", lambda column, probe=probe: recall(column, probe)
    for task in ordered({(row["task"], row["metric"]): 0 for row in one["tasks"]} for one in evaluations):
        yield f"task {task[0]}, {task[1]}", lambda column, task=task: task_cell(column, task)
    for teacher, title in (("teacher", "the teacher"), ("adaptedTeacher", "the adapted teacher")):
        yield f"perplexity over {title}'s", lambda column, teacher=teacher: compared(column, teacher, "ratio")
        yield f"wins against {title}", lambda column, teacher=teacher: compared(column, teacher, "wins")
        yield f"ties with {title}", lambda column, teacher=teacher: compared(column, teacher, "ties")
    for length in sorted({key for one in evaluations for key in one["decode"]["student"]}, key=int):
        title = f"bytes of state at {length} tokens, MB"
        yield title, lambda column, length=length: state(column, length)


def ordered(parts: Any) -> list[Any]:
    """Return every key once, in the order of its first."""
    return list(dict.fromkeys(key for part in parts for key in part))


def by_probe(probe: str) -> tuple[int, int]:
    """Return what sorts probes by kind, then by distance."""
    kind, _, distance = probe.partition("-")
    return list(PROBES).index(kind), int(distance)


def perplexity(column: Column, length: str) -> str:
    """Perplexity at a length; its error is known of data.sequenceLength alone."""
    summary = column.run["summary"]
    is_first = length == str(summary["evaluation"]["sequenceLength"])
    errors = summary.get("perplexity_errors", {}) if is_first else {}
    return figure(summary["perplexities"].get(column.form, {}).get(length), errors.get(column.form))


def other_text(column: Column, name: str) -> str:
    """Perplexity on another text."""
    told = column.run.get("otherTexts", {}).get(name, {"perplexities": {}, "errors": {}})
    return figure(told["perplexities"].get(column.form), told["errors"].get(column.form))


def position(column: Column, place: tuple[int, int]) -> str:
    """Perplexity of the tokens at some positions of the longest sequences."""
    for row in column.run["summary"]["evaluation"]["positions"]:
        if (row["first"], row["last"]) == place:
            return figure(row["perplexities"].get(column.form), None)
    return ""


def recall(column: Column, probe: str) -> str:
    """Share given back."""
    evaluation = column.run["summary"]["evaluation"]
    share = evaluation["recall"].get(probe, {}).get(column.form)
    return figure(share, evaluation["recallErrors"].get(probe, {}).get(column.form))


def task_cell(column: Column, task: tuple[str, str]) -> str:
    """A task's metric."""
    for row in column.run["summary"]["evaluation"]["tasks"]:
        if (row["task"], row["metric"]) == task:
            return figure(row["values"].get(column.form), row["errors"].get(column.form), digits=3)
    return ""


def compared(column: Column, teacher: str, field: str) -> str:
    """The student's perplexity over a teacher's, or the share of likelihoods that are higher, or as high."""
    for row in column.run["summary"]["evaluation"]["comparisons"]:
        if column.form == "stitched" and row["teacher"] == teacher:
            ratio = field == "ratio"
            return figure(row[field], row["ratioError"] if ratio else None, digits=4 if ratio else 2)
    return ""


def state(column: Column, length: str) -> str:
    """Bytes that decoding holds; the rival's are the student's."""
    decode = column.run["summary"]["evaluation"]["decode"]
    of = "teacher" if column.form in ("teacher", "adaptedTeacher") else "student"
    return f"{decode[of][length] / 1e6:.1f}" if length in decode[of] else ""


def figure(value: float | str | None, error: float | str | None, digits: int = 2) -> str:
    """Return a cell, with its error where it is known."""
    if value is None:
        return ""
    own = f"{float(value):.{digits}f}"
    return own if error is None else f"{own} ± {float(error):.2g}"


if __name__ == "__main__":
    main()
