"""Runs vLLM's real engine on what the tests ask, in the environment that holds it: a program, not a test.

    python engine.py ASKED TOLD

ASKED is JSON: a list of engines, each with `folder`, `settings` of `vllm.LLM`, and `rounds`: prompts that are
sent together (token ids), and how many tokens are wanted of each. TOLD is JSON: of each engine the tokens of
every round and what was counted of them, or what it was refused with.
"""

import gc
import json
import os
import sys
from pathlib import Path


def main(asked: Path, told: Path) -> None:
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    answers = []
    for engine in json.loads(asked.read_text()):
        try:
            answers.append(serve(**engine))
        except ValueError as error:
            answers.append({"refused": str(error)})
        gc.collect()
        cleanup_dist_env_and_memory()
        told.write_text(json.dumps(answers))


def serve(folder, settings, rounds):
    from vllm import LLM, SamplingParams, TokensPrompt

    fixed = {"enforce_eager": True, "skip_tokenizer_init": True, "disable_log_stats": False}
    model = LLM(folder, **(fixed | settings))
    if os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0":  # else the model is another process's
        model.apply_model(poison)
    tokens, cached = [], []
    for prompts, numbers in rounds:
        sampling = [
            SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False) for n in numbers
        ]
        outputs = model.generate(
            [TokensPrompt(prompt_token_ids=ids) for ids in prompts], sampling, use_tqdm=False
        )
        tokens.append([list(output.outputs[0].token_ids) for output in outputs])
        cached.append(sum(output.num_cached_tokens for output in outputs))
    counters = {metric.name: metric.value for metric in model.get_metrics() if hasattr(metric, "value")}
    model.llm_engine.engine_core.shutdown()
    return {"tokens": tokens, "cached": cached, "preemptions": counters["vllm:num_preemptions"]}


def poison(model):
    """Fill every page with what is no number: another sequence, or another layer, may have left it."""
    for module in model.modules():
        if type(module).__name__ == "StudentAttention":
            for pages in module.kv_cache:
                pages.fill_(float("nan"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
