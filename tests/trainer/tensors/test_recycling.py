"""Memory is used again once nothing refers to it, and never before."""

import threading

import numpy as np
import torch
from trenchcoat_trainer.tensors.recycling import RecycledMemory

SIZE = 1 << 16


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_that_is_let_go_is_used_again() -> None:
    memory = RecycledMemory(spare=2)
    first = memory.take(SIZE)
    place = address(first)
    second = memory.take(SIZE)
    assert address(second) != place
    del first
    assert address(memory.take(SIZE - 100)) == place


def test_a_view_of_a_tensor_keeps_it() -> None:
    memory = RecycledMemory(spare=2)
    array = memory.take(SIZE)
    row = torch.frombuffer(array, dtype=torch.float32).view(4, -1)[2]
    row.fill_(7.0)
    del array
    other = torch.frombuffer(memory.take(SIZE), dtype=torch.float32)
    other.fill_(1.0)
    assert row.eq(7.0).all()
    place = row.untyped_storage().data_ptr()
    del row
    assert address(memory.take(SIZE)) == place


def test_no_more_than_the_spare_blocks_and_none_of_another_size_are_kept() -> None:
    memory = RecycledMemory(spare=2)
    arrays = [memory.take(SIZE) for _ in range(5)]
    del arrays
    assert len(memory._free) == 2
    assert len(memory.take(10 * SIZE)) == 10 * SIZE
    assert [len(block) for block in memory._free] == [10 * SIZE]


def test_threads_never_share_a_block() -> None:
    memory = RecycledMemory(spare=4)
    faults = []

    def work(number: int) -> None:
        for _ in range(500):
            array = memory.take(1024)
            array.fill(number)
            if not (array == number).all():
                faults.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
