#!/usr/bin/env python3
"""Which student form is worth having? SmolLM2-135M with several attentions, an experiment in plain torch.

    python benchmarks/forms/prepare.py --corpus build/quality --out build/forms
    python benchmarks/forms --prepared build/forms

An idea costs half a minute of one GPU here. It is no copy of the product's stages: what holds here is built
there, and measured again. `--only` runs the variants that match; results are written after each of them.
"""

import argparse
import json
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import selection
import torch
from model import WHOLE, Sight, Student, Teacher
from tasks import Text, copy, passkey, perplexity
from training import Phase, is_adapter, run

LENGTHS = (1024, 2048, 4096)
GREEDY = (8, 15, 17, 18, 20, 21, 23)
ONE_PASS = (7, 8, 14, 17, 18, 20, 23)
STEP_TOKENS = 8192


@dataclass(frozen=True)
class Variant:
    """One student.

    Attributes:
        name: what the tables call it.
        narrow: sight of most layers.
        wide: sight of the layers in `layers`; None keeps softmax over everything.
        layers: the layers that see far; empty for none.
        tokens: millions of tokens of end-to-end training with adapters; 0 trains nothing.
        transfer: millions of tokens of attention transfer before, for a memory.
        memory: see `Student`.
        recall: share of the sequences with synthetic recall.
        long: share of the tokens that come in sequences of 4096, at the end.
        random_start: see `Phase`.
        distilled: millions of tokens on which the teacher is adapted first; the student begins with its
            adapters, and learns its logits in place of the text. 0 leaves that out.
        seed: of adapters, maps and recall.
    """

    name: str
    narrow: Sight | None
    wide: Sight | None = WHOLE
    layers: tuple[int, ...] = ()
    tokens: float = 4
    transfer: float = 0
    memory: str = ""
    recall: float = 0.0
    long: float = 0.0
    random_start: bool = False
    distilled: float = 0
    seed: int = 0


VARIANTS = (
    Variant("teacher", WHOLE, tokens=0),
    Variant("adapted teacher", WHOLE),
    Variant("7 whole, 128", Sight(128), layers=GREEDY),
    Variant("7 whole, 64", Sight(64), layers=GREEDY),
    Variant("7 x 1088, 64", Sight(64), Sight(1088), GREEDY),
    Variant("7 whole, 64, delta", Sight(64), layers=GREEDY, memory="delta", transfer=1),
    Variant("all 384", Sight(384)),
    Variant("all 64, delta", Sight(64), memory="delta", transfer=1),
    Variant("7 whole, 64, linear", Sight(64), layers=GREEDY, memory="linear", transfer=1),
    Variant("7 whole, 128, recall, long", Sight(128), layers=ONE_PASS, recall=0.1, long=0.25),
    Variant("adapted teacher, recall, long", WHOLE, recall=0.1, long=0.25),
    Variant("7 x 1088, 128, recall, long", Sight(128), Sight(1088), ONE_PASS, recall=0.1, long=0.25),
    Variant("untrained: all 64", Sight(64, 1), tokens=0),
    Variant("untrained: all 390", Sight(390, 1), tokens=0),
    Variant("untrained: 7 whole, 64", Sight(64), layers=ONE_PASS, tokens=0),
    Variant("untrained: 7 whole, 128", Sight(128), layers=ONE_PASS, tokens=0),
    Variant("all 64, linear", Sight(64), memory="linear", transfer=1),
    Variant("7 whole, 256, recall, long", Sight(256), layers=ONE_PASS, recall=0.1, long=0.25),
    Variant("8M: adapted teacher, recall, long", WHOLE, tokens=8, recall=0.1, long=0.25),
    Variant("8M: 7 whole, 128, recall, long", Sight(128), layers=ONE_PASS, tokens=8, recall=0.1, long=0.25),
    Variant("8M: 7 whole, 256, recall, long", Sight(256), layers=ONE_PASS, tokens=8, recall=0.1, long=0.25),
    Variant(
        "4M + 4M: 7 whole, 128, recall, long, KL",
        Sight(128),
        layers=ONE_PASS,
        distilled=4,
        recall=0.1,
        long=0.25,
    ),
)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prepared", type=Path, default=Path("build/forms"), help="from prepare.py")
    parser.add_argument(
        "--results", type=Path, default=Path("build/forms/results.json"), help="file to write"
    )
    parser.add_argument("--only", default="", help="regular expression of the variants to run")
    parser.add_argument("--selection", action="store_true", help="compare ways to choose layers, and end")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = True
    teacher, text = Teacher.load(arguments.prepared), Text(arguments.prepared)
    if arguments.selection:
        compare_selections(teacher, text)
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    results: dict[str, Any] = {"device": device, "torch": torch.__version__, "variants": {}}
    for variant in VARIANTS:
        if re.search(arguments.only, variant.name):
            results["variants"][variant.name] = measure(train(teacher, text, variant), text)
            print(variant.name, json.dumps(results["variants"][variant.name]), flush=True)
            arguments.results.write_text(json.dumps(results, indent=1) + "\n")


def train(teacher: Teacher, text: Text, variant: Variant) -> Student:
    """Return the trained student."""
    sights = [variant.wide if n in variant.layers else variant.narrow for n in range(teacher.layers)]
    rank = 8 if variant.tokens else 0
    student = Student(teacher, sights, rank=rank, memory=variant.memory, seed=variant.seed)
    if variant.distilled:
        name = f"{variant.name}, teacher"
        adapted = Variant(name, WHOLE, tokens=variant.distilled, recall=variant.recall, long=variant.long)
        target = train(teacher, text, adapted).requires_grad_(False)
        student.load_state_dict(target.state_dict())
        student.target = target
    if variant.transfer:
        steps = int(variant.transfer * 1e6 / STEP_TOKENS)
        phase = Phase(loss="transfer_loss", trains=lambda name: not is_adapter(name), steps=steps, rate=3e-3)
        run(student, text, phase, f"{variant.name}, transfer")
    if variant.tokens:
        steps = int(variant.tokens * 1e6 / STEP_TOKENS)
        short = int(steps * (1 - variant.long))
        phase = Phase(
            loss="language_loss",
            trains=lambda name: True,
            steps=short,
            decay=(1.0, 0.3 if variant.long else 0.1),
            recall=variant.recall,
            first=int((variant.transfer + variant.distilled) * 1e6 / 1024),
            random_start=variant.random_start,
        )
        run(student, text, phase, variant.name)
    if variant.long:
        phase = Phase(
            loss="language_loss",
            trains=lambda name: True,
            steps=steps - short,
            rows=2,
            length=4096,
            decay=(0.3, 0.03),
            recall=variant.recall,
            first=int(variant.distilled * 1e6 / 4096) + short * 2,
        )
        run(student, text, phase, f"{variant.name}, long")
    return student


def measure(student: Student, text: Text) -> dict[str, Any]:
    """Return perplexities by length and recall by distance."""
    begun = time.monotonic()
    result: dict[str, Any] = {
        "perplexity": {n: round(perplexity(student, text.held, n), 3) for n in LENGTHS},
        "passkey": {n: passkey(student, text, n) for n in (100, 400, 800, 1600, 3500)},
        "copy": {n: round(copy(student, text, n), 3) for n in (40, 128, 256, 1024)},
    }
    return result | {"seconds": round(time.monotonic() - begun, 1)}


def compare_selections(teacher: Teacher, text: Text) -> None:
    """Print the layers that each way chooses, and what an untrained student with them can do."""
    sets = selection.sequences(text, text.vocabulary)
    plain = [text.train[-8 * 1024 :].view(8, 1024).to(selection.DEVICE)]
    chosen = {
        "one pass, where answers stand": selection.best(selection.one_pass(teacher, sets), 7),
        "one pass, plain text": selection.best(selection.one_pass(teacher, plain, slice(None)), 7),
        "one layer cut at a time": selection.best(selection.one_cut(teacher, sets), 7),
        "greedy over recall": list(GREEDY),
    }
    for name, layers in chosen.items():
        sights = [WHOLE if n in layers else selection.NARROW for n in range(teacher.layers)]
        student = Student(teacher, sights, rank=0)
        loss, right = selection.recall_loss(student, sets)
        copied = copy(student, text, 1024, 16)
        print(f"{name}: {layers}, recall loss {loss:.3f}, right {right:.3f}, copy at 1024 {copied:.3f}")


if __name__ == "__main__":
    main()
