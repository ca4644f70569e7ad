"""How far the evaluation is and how long it will take: by what each form of the model has taken so far.

Forms take unlike times for the same text, by the device and its kernels, and not all are measured on every
set. But all of a set are carried through one Cria before the next, so each form soon tells its own pace.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from trenchcoat_api.artifacts import ModelFacts
from trenchcoat_api.crias import CriaRange
from trenchcoat_api.planning.model import PlannedModel
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.rates import Rates
from trenchcoat_api.planning.sizes import embedding_parameters, layer_parameters
from trenchcoat_api.planning.timing import layer_seconds

from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.pace import Pace
from trenchcoat_trainer.stages.evaluate.sets import EvaluationSet
from trenchcoat_trainer.stages.evaluate.variants import Variant

HEAD = "head"
"""The kind of work, beside the forms' own, that scores hidden states of all of them."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What work takes, in a unit that only serves to compare."""

    batch: Callable[[Variant, CriaRange, int, int], float]
    """Of a form of a Cria, run on so many sequences of so many tokens."""
    token: float
    """Of a token that is scored."""


def costs(context: StageContext, model: ModelFacts, softmax: Collection[int], *, on_gpu: bool) -> Costs:
    """On a GPU as the plan has them, for the spec's kind or the default; on a CPU by the matrix products.

    Args:
        context: the stage's context.
        model: the teacher's facts.
        softmax: layers that keep softmax attention in the student.
        on_gpu: whether that is where they run.
    """
    spec, parameters = context.spec, layer_parameters(model)
    if on_gpu:
        rates = Rates.load()
        _, kind = rates.kind(spec.plan.gpu if spec.plan.gpu in rates.kinds else None)
        outline, rate = Outline.of(spec, PlannedModel.of_facts(model, spec)), kind.passes.evaluation

        def planned(_: Variant, cria: CriaRange, sequences: int, length: int) -> float:
            return len(cria.layers) * layer_seconds(rate, outline, sequences, length)

        return Costs(cache(planned), 2.0 * embedding_parameters(model) / (rate.tflops * 1e12))

    def products(variant: Variant, cria: CriaRange, sequences: int, length: int) -> float:
        all_softmax = len(cria.layers) if variant.softmax else len(set(cria.layers) & set(softmax))
        # Half of scores and values are seen, which no kernel that takes a mask makes use of.
        width = model.heads * model.head_dim * (2 if variant.is_windowed else 1)
        return float(sequences * length * (len(cria.layers) * parameters + all_softmax * width * length))

    return Costs(cache(products), float(embedding_parameters(model)))


@dataclass(slots=True)
class _Kind:
    expected: float = 0.0
    done: float = 0.0
    noted: float = 0.0
    """Of what is done, what was done here."""
    spent: float = 0.0
    """Seconds that it took."""
    pace: Pace = field(default_factory=Pace)

    @property
    def remains(self) -> float:
        return max(0.0, self.expected - self.done)


class Course:
    """What a rank has to do in all passes, by its kind: the name of a form, or `HEAD`."""

    def __init__(
        self, costs: Costs, variants: Iterable[Variant], crias: Sequence[CriaRange], tokens: int
    ) -> None:
        """`tokens` is about what a batch has."""
        self._costs, self._crias, self._tokens = costs, crias, tokens
        self._variants = {variant.name: variant for variant in variants}
        self._kinds: dict[str, _Kind] = {}
        self._since: float | None = None
        """When the latest note was made."""

    def expect(self, form: str, item: EvaluationSet, numbers: Iterable[int]) -> None:
        """Plan the batches of these numbers of a set, carried through all Crias by a form, and scored."""
        for kind, cost in self._whole(form, item, numbers):
            self._kinds.setdefault(kind, _Kind()).expected += cost

    def skip(self, form: str, item: EvaluationSet, numbers: Iterable[int]) -> None:
        """Count all of that as done by an earlier attempt."""
        for kind, cost in self._whole(form, item, numbers):
            self._kinds[kind].done += cost

    def resume(self, form: str, item: EvaluationSet, passed: Mapping[int, int]) -> None:
        """Count what an earlier attempt has done of it: so many Crias of each batch, by number."""
        for number, count in passed.items():
            cost = sum(self._batch(form, item, number, cria) for cria in self._crias[:count])
            self._kinds[form].done += cost

    def ran(self, form: str, item: EvaluationSet, number: int, cria: CriaRange) -> None:
        """Note that a batch has passed a Cria; what was done since the last note took the time since then."""
        self._note(form, self._batch(form, item, number, cria))

    def scored(self, item: EvaluationSet, numbers: Sequence[int]) -> None:
        """Note that batches of a set were scored."""
        if numbers:
            self._note(HEAD, self._head(item, numbers))

    def passings(self, sets: Iterable[EvaluationSet]) -> int:
        """How often a batch passes a Cria in sets, all ranks together."""
        counts = (item.batch_count(self._tokens) * len(item.forms) for item in sets)
        return len(self._crias) * sum(counts)

    @property
    def share(self) -> float:
        """What is done of all, 0 to 1."""
        done = sum(work.done for work in self._kinds.values())
        expected = sum(work.expected for work in self._kinds.values())
        return min(1.0, round(done / expected, 9)) if expected else 1.0

    @property
    def spent(self) -> float:
        """Seconds of this attempt since its first note."""
        return sum(work.spent for work in self._kinds.values())

    def left(self) -> float | None:
        """Seconds until all is done, each kind at its own pace; None while none is known."""
        noted = sum(work.noted for work in self._kinds.values())
        if not noted:
            return None
        each = self.spent / noted  # of a kind that has told nothing yet
        paces = ((work, work.pace.left()) for work in self._kinds.values())
        return sum(work.remains * each if left is None else left for work, left in paces)

    def _note(self, kind: str, cost: float) -> None:
        now, since, work = time.monotonic(), self._since, self._kinds[kind]
        self._since = now
        if since is not None and not work.noted:
            work.pace.note(0.0, work.done / work.expected)
        work.done += cost
        if since is None:
            return  # a start is no pace
        work.noted += cost
        work.spent += now - since
        work.pace.note(work.spent, work.done / work.expected)

    def _whole(self, form: str, item: EvaluationSet, numbers: Iterable[int]) -> Iterator[tuple[str, float]]:
        numbers = list(numbers)
        if numbers:
            yield form, sum(self._batch(form, item, n, cria) for n in numbers for cria in self._crias)
            yield HEAD, self._head(item, numbers)

    def _batch(self, form: str, item: EvaluationSet, number: int, cria: CriaRange) -> float:
        return self._costs.batch(self._variants[form], cria, self._sequences(item, number), item.length)

    def _head(self, item: EvaluationSet, numbers: Iterable[int]) -> float:
        share = sum(self._sequences(item, number) for number in numbers) / len(item.tokens)
        return self._costs.token * float(item.counts.sum()) * share

    def _sequences(self, item: EvaluationSet, number: int) -> int:
        size = item.batch_size(self._tokens)
        return min(size, len(item.tokens) - number * size)
