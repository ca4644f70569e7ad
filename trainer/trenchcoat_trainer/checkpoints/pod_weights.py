"""The teacher's weights for all ranks of a pod: one of them reads an object, and broadcasts its tensors.

Ranks read whole objects, each another one at the same time, so that each is checked against its manifest.
Pods do not exchange weights: what one of them receives comes over its network anyway.

While a rank computes with a Cria, it reads its objects of the next one into the host's memory, where that has
room. They go to the device when their turn comes: that holds one Cria at a time.
"""

import json
import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Self

import torch
import torch.distributed as dist
from trenchcoat_api import texts
from trenchcoat_api.crias import CriaRange
from trenchcoat_api.evaluation_states import SPARE_BYTES

from trenchcoat_trainer.checkpoints.shards import (
    EMBEDDINGS,
    HEAD,
    TORCH_DTYPES,
    layer_path,
    load_rest_weights,
)
from trenchcoat_trainer.checkpoints.weights_reader import WeightsReader
from trenchcoat_trainer.runtime.host_memory import available_memory
from trenchcoat_trainer.runtime.inputs import Inputs
from trenchcoat_trainer.runtime.ranks import as_bytes
from trenchcoat_trainer.runtime.sharing import Sharing

logger = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]


class Ahead(NamedTuple):
    """A Cria that is asked for after the one at hand."""

    cria: CriaRange
    room: int = 0
    """Bytes of the host's memory that this rank will take until then for something else."""


class PodWeights:
    """Reads weights to a device; every rank of the pod must ask for the same, in the same order.

    Of several ranks, each holds one object on the CPU at a time, and its objects of one Cria ahead, and
    nothing on the device but what it asked for. Leaving the context ends what is read ahead.
    """

    def __init__(
        self, inputs: Inputs, sharing: Sharing, device: torch.device, meanwhile: Callable[[], None]
    ) -> None:
        """`meanwhile` is called again and again while this rank waits for others, or for the store."""
        self._inputs = inputs
        self._sharing = sharing
        self._device = device
        self._meanwhile = meanwhile
        self._reader = WeightsReader(inputs)
        self._met = 0
        self._is_short = False
        """Whether it was told that memory does not allow to read ahead."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()

    def earliest(self, number: int) -> int:
        """The least number that any rank of the pod gives.

        Raises:
            PreemptedError: a stop was requested.
        """
        return min(map(int, self._meet(str(number)))) if self._is_shared else number

    def rest(self) -> Tensors:
        """As `load_rest_weights`, on the device where others read, too.

        Raises:
            MissingInputError: the shard stage is not complete.
            CorruptObjectError: an object is not what the manifest says.
            PreemptedError: a stop was requested.
        """
        return self._read([EMBEDDINGS, HEAD]) if self._is_shared else load_rest_weights(self._inputs)

    def cria(self, cria: CriaRange, ahead: Ahead | None = None) -> Tensors:
        """The weights of a Cria's decoder layers in spec.dtype, on the device, by Hugging Face's names.

        Args:
            cria: the Cria.
            ahead: the one that will be asked for next, which is read from now on; None where none will be.

        Raises:
            MissingInputError: the shard stage is not complete.
            CorruptObjectError: an object is not what the manifest says.
            PreemptedError: a stop was requested.
        """
        paths = _paths(cria)
        self._reader.keep(self._own(paths))
        found = self._read(paths)
        if ahead is not None:
            self._read_ahead(_paths(ahead.cria), ahead.room)
        return found

    @property
    def _is_shared(self) -> bool:
        return len(self._sharing.pod) > 1

    def _own(self, paths: Sequence[str]) -> Sequence[str]:
        """Those of these objects that this rank reads: the ranks of a pod take turns."""
        pod = self._sharing.pod
        return paths[self._sharing.rank - pod.start :: len(pod)]

    def _read_ahead(self, paths: Sequence[str], room: int) -> None:
        """Begin to read this rank's of these objects, where memory allows all of the pod to."""
        shard, ranks = self._inputs.artifacts.shard, len(self._sharing.pod)
        needed = sum(self._inputs.stored_object(shard, path).size for path in paths)
        left, spare = available_memory(), ranks * (SPARE_BYTES + room)
        if left >= needed + spare:
            for path in self._own(paths):
                self._reader.begin(path)
        elif not self._is_short:
            self._is_short = True
            logger.info(
                "a Cria's weights are read only when it is due: of the host's memory %s are left, and the "
                "next one's take %s, besides %s for all else",
                *map(texts.size, (left, needed, spare)),
            )

    def _load(self, path: str) -> Tensors:
        """The tensors of an object in spec.dtype, on the device."""
        dtype = TORCH_DTYPES[self._inputs.spec.dtype]
        read = self._reader.take(path, self._look)
        return {name: tensor.to(self._device, dtype) for name, tensor in read.items()}

    def _look(self) -> None:
        self._meanwhile()
        self._sharing.check()

    def _read(self, paths: Sequence[str]) -> Tensors:
        """The tensors of these objects of the shard artifact; each rank reads one at a time."""
        found: Tensors = {}
        ranks = len(self._sharing.pod)
        for first in range(0, len(paths), ranks):
            found |= self._turn(paths[first : first + ranks]) if self._is_shared else self._load(paths[first])
        return found

    def _turn(self, paths: Sequence[str]) -> Tensors:
        pod, dtype = self._sharing.pod, TORCH_DTYPES[self._inputs.spec.dtype]
        # All are read before any is sent: reading may take long, or fail.
        read: Tensors = {}
        for path in self._own(paths):  # one, or none
            read = self._load(path)
        shapes = self._meet(json.dumps({name: tensor.shape for name, tensor in read.items()}))
        found: Tensors = {}
        for source, told in zip(pod, shapes, strict=True):
            for name, shape in json.loads(told).items():
                is_own = source == self._sharing.rank
                tensor = read[name] if is_own else torch.empty(shape, dtype=dtype, device=self._device)
                found[name] = tensor.contiguous()
                dist.broadcast(as_bytes(found[name]), source, self._sharing.pod_group)
        # None leaves the group, because it is asked to stop, while another still receives.
        dist.barrier(self._sharing.pod_group)
        return found

    def _meet(self, said: str) -> list[str]:
        self._met += 1
        return self._sharing.meet(f"weights-{self._met}", said, self._meanwhile)


def _paths(cria: CriaRange) -> list[str]:
    return [layer_path(cria, layer) for layer in cria.layers]
