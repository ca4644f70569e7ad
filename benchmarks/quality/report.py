"""The Markdown of benchmarks/quality's results."""

from typing import Any

from variants import FAULTS

REFERENCE = (
    "The percentages are what compares: they are against the teacher at hand, and the reference was not run "
    "on this one. "
    "The reference's own attention code on such a teacher gave: teacher 14.62, untrained 737, "
    "transfer 17.90 after 1M tokens and 17.56 after 4M, then LoRA end to end (4M, r 8, lr 1e-4) 17.26, "
    "18% above the teacher; 18.41 with the linear part zeroed; with logit-KL, lr 2e-3 and r 32 17.15."
)


OPTIMIZERS = {"muon": "Muon and AdamW", "adamw": "AdamW"}


def render(results: dict[str, Any]) -> str:
    """Return a page of tables; only what was measured is in it."""
    lines = ["# Quality of linearization", "", *_setting(results), ""]
    main = _group(results, "main")
    if main:
        lines += ["## By stage and number of tokens", "", *_main_table(main), ""]
        lines += ["## What each part of attention does", "", *_parts_table(main), ""]
        lines += [*_shares(main), ""]
    if crias := _group(results, "crias"):
        lines += ["## By size of the Cria", "", *_cria_table(crias), ""]
    if faults := _group(results, "faults"):
        lines += ["## The reference's faults, one at a time", "", *_fault_table(faults, results), ""]
    if results.get("leftOut"):
        lines += ["Not run, for want of time: " + "; ".join(results["leftOut"]) + ".", ""]
    if results.get("failed"):
        lines += ["Failed: " + "; ".join(f"{f['name']} ({f['error']})" for f in results["failed"]) + ".", ""]
    return "\n".join(lines)


def _group(results: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = [item for item in results["variants"] if item["group"] == name]
    return sorted(found, key=lambda item: (item["tokens"], item["layers_per_cria"], item["name"]))


def _setting(results: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    corpus, teacher = results["corpus"], results.get("teacher")
    packages = ", ".join(f"{name} {facts['version']}" for name, facts in corpus["packages"].items())
    kernels = results.get("kernels") or {}
    rows = [
        f"- Command: `{results['command']}`, {results['totalSeconds']:.0f} s in all",
        f"- Hardware: {results['gpu']}, {results['cores']} CPU cores; {versions}",
        f"- Attention: {kernels.get('attention', 'not checked')}; several variants share the GPU, so times "
        "are no measure of speed",
        f"- Text: {corpus['documents']} documents, {corpus['characters']} characters, "
        f"{corpus['held_out_documents']} documents held out by the hash of their text; {packages}",
    ]
    if teacher:
        rows.append(
            f"- Teacher: Llama, {teacher['layers']} layers, hidden {teacher['hiddenSize']}, "
            f"{teacher['heads']} heads ({teacher['kvHeads']} key/value heads), MLP "
            f"{teacher['intermediateSize']}, vocabulary {teacher['vocabulary']} (byte-level BPE of "
            f"this text, tied), {teacher['parameters']} parameters; trained by "
            f"{OPTIMIZERS[teacher.get('optimizer', 'muon')]} on {teacher['trainedTokens']} "
            f"tokens, {teacher['trainedTokens'] / teacher['corpusTokens']:.2f} passes over "
            f"{teacher['corpusTokens']}, in {teacher['seconds']} s; sequences of {teacher['sequenceLength']}"
        )
    if results["variants"]:
        report = results["variants"][0]["report"]
        rows.append(
            f"- Perplexity per token on {report['sequences']} held-out sequences of "
            f"{report['tokensPerSequence']} tokens, by the product's evaluate stage, weights in "
            f"{results['size']['dtype']}"
        )
    rows += [f"- {note}" for note in results.get("notes", [])]
    return [*rows, "", REFERENCE]


def _above(item: dict[str, Any], name: str) -> str:
    values = item["report"]["perplexities"]
    return f"{values[name]:.3f} ({100 * (values[name] / values['teacher'] - 1):+.1f}%)"


def _millions(tokens: int) -> str:
    return f"{tokens / 1e6:g}M"


def _main_table(items: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| tokens of each phase | phases | teacher | untrained | transfer | LoRA by Cria | stitched |",
        "|---|---|---|---|---|---|---|",
    ]
    for item in items:
        values = item["report"]["perplexities"]
        lora = _above(item, "criaLora") if item["cria_lora"] else "-"
        stitched = _above(item, "stitched") if item["stitch"] else "-"
        lines.append(
            f"| {_millions(item['tokens'])} | {item['name']} | {values['teacher']:.3f} | "
            f"{values['untrained']:.1f} | {_above(item, 'transfer')} | {lora} | {stitched} |"
        )
    return lines


def _parts_table(items: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| tokens | phases | both parts | linear part zeroed | window zeroed |",
        "|---|---|---|---|---|",
    ]
    for item in items:
        parts, values = item["report"]["parts"], item["report"]["perplexities"]
        lines.append(
            f"| {_millions(item['tokens'])} | {item['name']} | {values['stitched']:.3f} | "
            f"{parts['withoutLinear']:.3f} | {parts['withoutWindow']:.1f} |"
        )
    return lines


def _shares_of(item: dict[str, Any]) -> dict[str, float]:
    """By layer; reports of before had another name for them."""
    report: dict[str, dict[str, float]] = item["report"]
    return report.get("shareOutsideWindowByLayer") or report["linearShareByLayer"]


def _shares(items: list[dict[str, Any]]) -> list[str]:
    layers = list(_shares_of(items[0]))
    lines = [
        "Share of attention's mass that lies below the window, by layer (positions that have something below "
        "it):",
        "",
        "| tokens | phases | " + " | ".join(layers) + " |",
        "|---|---|" + "---|" * len(layers),
    ]
    for item in items:
        shares = _shares_of(item).values()
        cells = " | ".join(f"{share:.2f}" for share in shares)
        lines.append(f"| {_millions(item['tokens'])} | {item['name']} | {cells} |")
    return lines


def _cria_table(items: list[dict[str, Any]]) -> list[str]:
    settings = items[0]["cria_lora"]
    lora = settings["lora"]
    lines = [
        f"LoRA by Cria with the objective `{settings['objective']}`, lr {settings['learningRate']}, "
        f"r {lora['rank']}, on {', '.join(lora['targetModules'])}. Attention transfer does not depend on C "
        "by construction, up to rounding in bf16.",
        "",
        "| layers per Cria | tokens | transfer | LoRA by Cria |",
        "|---|---|---|---|",
    ]
    for item in items:
        lines.append(
            f"| {item['name'].removeprefix('C = ')} | {_millions(item['tokens'])} | "
            f"{_above(item, 'transfer')} | {_above(item, 'criaLora')} |"
        )
    return lines


def _fault_table(items: list[dict[str, Any]], results: dict[str, Any]) -> list[str]:
    lines = ["| fault | tokens | transfer with it | without |", "|---|---|---|---|"]
    for item in items:
        without = [
            other
            for other in results["variants"]
            if other["fault"] is None and other["tokens"] == item["tokens"] and not other["transfer"]
        ]
        same = [other for other in without if other["layers_per_cria"] == item["layers_per_cria"]]
        found = _above((same or without)[0], "transfer") if without else "not run"
        cells = (FAULTS[item["fault"]], _millions(item["tokens"]), _above(item, "transfer"), found)
        lines.append("| " + " | ".join(cells) + " |")
    return lines
