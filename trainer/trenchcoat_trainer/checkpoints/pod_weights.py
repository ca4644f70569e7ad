"""The teacher's weights for all ranks of a pod: one of them reads an object, and broadcasts its tensors.

Ranks read whole objects, each another one at the same time, so that each is checked against its manifest.
Pods do not exchange weights: what one of them receives comes over its network anyway.
"""

import json
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from trenchcoat_api.crias import CriaRange

from trenchcoat_trainer.checkpoints.shards import (
    EMBEDDINGS,
    HEAD,
    TORCH_DTYPES,
    layer_path,
    load_cria_weights,
    load_object,
    load_rest_weights,
)
from trenchcoat_trainer.runtime.inputs import Inputs
from trenchcoat_trainer.runtime.ranks import as_bytes
from trenchcoat_trainer.runtime.sharing import Sharing

Tensors = dict[str, torch.Tensor]


class PodWeights:
    """Reads weights to a device; every rank of the pod must ask for the same, in the same order.

    A pod of one rank reads as the functions of `shards` do. Of several, each holds one object on the CPU at a
    time, and nothing on the device but what it asked for.
    """

    def __init__(
        self, inputs: Inputs, sharing: Sharing, device: torch.device, meanwhile: Callable[[], None]
    ) -> None:
        """`meanwhile` is called again and again while this rank waits for others."""
        self._inputs = inputs
        self._sharing = sharing
        self._device = device
        self._meanwhile = meanwhile
        self._met = 0

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

    def cria(self, cria: CriaRange) -> Tensors:
        """As `load_cria_weights`, on the device; errors are those of `rest`."""
        if not self._is_shared:
            return load_cria_weights(self._inputs, cria, self._device)
        return self._read([layer_path(cria, layer) for layer in cria.layers])

    @property
    def _is_shared(self) -> bool:
        return len(self._sharing.pod) > 1

    def _read(self, paths: Sequence[str]) -> Tensors:
        """The tensors of these objects of the shard artifact; each rank reads one at a time."""
        found: Tensors = {}
        ranks = len(self._sharing.pod)
        for first in range(0, len(paths), ranks):
            found |= self._turn(paths[first : first + ranks])
        return found

    def _turn(self, paths: Sequence[str]) -> Tensors:
        pod, dtype = self._sharing.pod, TORCH_DTYPES[self._inputs.spec.dtype]
        own = self._sharing.rank - pod.start
        # All are read before any is sent: reading may take long, or fail.
        read = load_object(self._inputs, paths[own], self._device) if own < len(paths) else {}
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
