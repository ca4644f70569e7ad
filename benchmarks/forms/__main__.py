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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import selection
import torch
from model import WHOLE, Sight, Student, Teacher
from tasks import Text, perplexity, recall
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
        long_recall: the same of the long sequences; None for as much.
        long_tokens_per_item: see `Phase`.
        long_decay: see `Phase`.
        long_rows: sequences of a step of long ones.
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
    long_recall: float | None = None
    long_tokens_per_item: tuple[int, int] = (384, 384)
    long_decay: tuple[float, float] = (0.3, 0.03)
    long_rows: int = 2
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
    *(
        Variant(
            f"8M: {name}",
            narrow,
            wide,
            layers,
            tokens=8,
            recall=recall,
            long=0.25,
            long_recall=long_recall,
        )
        for name, narrow, wide, layers, recall, long_recall in (
            ("7 whole, 256, recall 0.1, 0.1 in long ones", Sight(256), WHOLE, ONE_PASS, 0.1, 0.1),
            ("7 whole, 256, recall 0.1, 0.3 in long ones", Sight(256), WHOLE, ONE_PASS, 0.1, 0.3),
            ("7 whole, 256, recall 0.1, 0.6 in long ones", Sight(256), WHOLE, ONE_PASS, 0.1, 0.6),
            ("7 whole, 256, recall 0.2, 0.6 in long ones", Sight(256), WHOLE, ONE_PASS, 0.2, 0.6),
            ("7 x 1088, 256, recall 0.1, 0.6 in long ones", Sight(256), Sight(1088), ONE_PASS, 0.1, 0.6),
            ("adapted teacher, recall 0.1, 0.6 in long ones", WHOLE, WHOLE, (), 0.1, 0.6),
        )
    ),
    *(
        Variant(
            f"8M, recall in long ones: {name}",
            Sight(256),
            layers=ONE_PASS,
            tokens=8,
            recall=0.1,
            long=0.25,
            long_recall=share,
            long_tokens_per_item=tokens_per_item,
            long_decay=decay,
            long_rows=rows,
        )
        for name, share, tokens_per_item, decay, rows in (
            ("rate 1 to 0", 0.6, (384, 384), (1.0, 0.0), 2),
            ("dense", 0.6, (96, 384), (0.3, 0.03), 2),
            ("dense, rate 1 to 0", 0.6, (96, 384), (1.0, 0.0), 2),
            ("denser, all of them, rate 1 to 0", 1.0, (48, 192), (1.0, 0.0), 2),
            ("dense, rate 1 to 0, 8192 tokens", 0.6, (96, 384), (1.0, 0.0), 1),
            ("denser, all of them, rate 1 to 0, 8192 tokens", 1.0, (48, 192), (1.0, 0.0), 1),
        )
    ),
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


LONG_FIELDS = ("long_recall", "long_tokens_per_item", "long_decay", "long_rows")
_BEGUN: dict[Variant, dict[str, torch.Tensor]] = {}
"""What short sequences trained, by everything that had a part in it."""


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
        begun = replace(variant, name="", **dict.fromkeys(LONG_FIELDS))
        if begun in _BEGUN:
            student.load_state_dict(_BEGUN[begun])
        else:
            run(student, text, phase, variant.name)
            _BEGUN[begun] = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    if variant.long:
        phase = Phase(
            loss="language_loss",
            trains=lambda name: True,
            steps=steps - short,
            rows=variant.long_rows,
            length=STEP_TOKENS // variant.long_rows,
            decay=variant.long_decay,
            tokens_per_item=variant.long_tokens_per_item,
            recall=variant.recall if variant.long_recall is None else variant.long_recall,
            first=int(variant.distilled * 1e6 / 4096) + short * variant.long_rows,
        )
        run(student, text, phase, f"{variant.name}, long")
    return student


def measure(student: Student, text: Text) -> dict[str, Any]:
    """Return perplexities by length and recall by distance."""
    begun = time.monotonic()
    result: dict[str, Any] = {
        "perplexity": {n: round(perplexity(student, text.held, n), 3) for n in LENGTHS},
    } | recall(student, text)
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
        copied = recall(student, text, 16)["copy"][1024]
        print(f"{name}: {layers}, recall loss {loss:.3f}, right {right:.3f}, copy at 1024 {copied:.3f}")


if __name__ == "__main__":
    main()
