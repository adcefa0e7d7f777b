"""Kept results: whole or absent, within the limit, whoever else uses the folder."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from helpers.commands import ROOT

from q2n.pipeline.sharing.context import StageMemory
from q2n.pipeline.sharing.store import SUFFIX, Address, StageStore

MIB = 2**20
TENSORS = {
    "codes": torch.arange(12, dtype=torch.uint8).view(3, 4),
    "scale": torch.tensor([0.1, float("inf"), -0.0]),
    "wide": torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).T,
    "weight": torch.ones(2, 2, dtype=torch.bfloat16),
    "mask": torch.tensor([True, False]),
    "number": torch.tensor(2.5),
}
FACTS = {"seconds": 0.1, "counts": {"mlp": [4, 128]}}


def address(key="0123456789abcdef", name="block-1", kind="statistics"):
    return Address(kind, key, name)


def mebibyte(value=0):
    return {"x": torch.full((MIB,), value, dtype=torch.uint8)}


def file_of(root, where):
    return root / f"{where.kind}-{where.key}" / f"{where.name}{SUFFIX}"


def test_what_is_written_is_read_bit_for_bit(tmp_path):
    store = StageStore(tmp_path, MIB)
    assert store.open(address()) is None
    assert store.write(address(), TENSORS, FACTS)
    entry = StageStore(tmp_path, MIB).open(address())
    assert entry.facts == FACTS
    found = entry.tensors()
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
        assert found[name].data_ptr() % 64 == 0  # as any other tensor: sums start where they always do


@pytest.mark.parametrize("place", [0, 9, 60, 200, -1])
def test_a_flipped_bit_anywhere_makes_an_entry_absent(tmp_path, place):
    store = StageStore(tmp_path, MIB)
    store.write(address(), TENSORS, FACTS)
    path = file_of(tmp_path, address())
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    assert store.open(address()) is None
    assert store.write(address(), TENSORS, FACTS)
    assert store.open(address()) is not None


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_shortened_file_is_absent(tmp_path, length):
    store = StageStore(tmp_path, MIB)
    store.write(address(), TENSORS, FACTS)
    assert store.open(address()) is not None  # and is known to this process as whole
    path = file_of(tmp_path, address())
    path.write_bytes(path.read_bytes()[:length])
    assert store.open(address()) is None


def test_an_open_entry_outlives_its_file(tmp_path):
    store = StageStore(tmp_path, MIB)
    store.write(address(), TENSORS, FACTS)
    entry = store.open(address())
    store.drop("statistics", address().key)
    assert store.open(address()) is None
    assert torch.equal(entry.tensors()["wide"], TENSORS["wide"])


def test_the_least_recently_used_keys_go_first_and_whole(tmp_path):
    store = StageStore(tmp_path, int(4.5 * MIB))
    for moment, key in enumerate("abc"):
        assert store.write(address(key, "1"), mebibyte(), {})
        os.utime(tmp_path / f"statistics-{key}", (moment, moment))
    assert store.write(address("a", "2"), mebibyte(), {})
    assert store.open(address("a", "1")) is not None  # used now
    assert store.write(address("d", "1"), mebibyte(), {})
    assert [store.open(address(key, "1")) is not None for key in "abcd"] == [True, False, True, True]
    assert store.size() <= 4.5 * MIB


def test_what_does_not_fit_is_not_written_and_costs_no_other_part_of_its_key(tmp_path):
    store = StageStore(tmp_path, int(2.5 * MIB))
    assert store.write(address(name="1"), mebibyte(), {})
    assert store.write(address(name="2"), mebibyte(), {})
    assert not store.write(address(name="3"), mebibyte(), {})
    assert store.open(address(name="1")) is not None
    assert store.open(address(name="3")) is None
    assert not StageStore(tmp_path / "none", 0).write(address(), TENSORS, {})


def test_a_folder_that_cannot_be_written_costs_only_the_entry(tmp_path):
    (tmp_path / "file").write_text("")
    store = StageStore(tmp_path / "file" / "stages", MIB)
    assert not store.write(address(), TENSORS, {})
    assert store.open(address()) is None


def test_processes_that_write_and_evict_at_once_read_whole_entries_or_none(tmp_path):
    script = textwrap.dedent(
        """
        import sys
        import torch
        from pathlib import Path
        from q2n.pipeline.sharing.store import Address, StageStore
        store = StageStore(Path(sys.argv[1]), 900_000)
        found = 0
        for step in range(60):
            for key in range(4):
                where = Address("codes", str(key), str(step % 3))
                entry = store.open(where)
                if entry is not None:
                    value = entry.tensors()["x"]
                    assert torch.equal(value, torch.full((100_000,), key, dtype=torch.uint8))
                    found += 1
                store.write(where, {"x": torch.full((100_000,), key, dtype=torch.uint8)}, {"step": step})
        print(found)
        """
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert all(int(output) > 0 for output in outputs)
    # Each writer makes room for its own entry, so at most the others' last ones come on top.
    assert StageStore(tmp_path, 0).size() < 900_000 + 3 * 110_000


def test_memory_forgets_the_least_recently_used():
    memory = StageMemory(10)
    for name in "abc":
        memory.put(address(name=name), name, 3)
    assert memory.get(address(name="a")) == "a"
    memory.put(address(name="d"), "d", 3)
    assert [memory.get(address(name=name)) for name in "abcd"] == ["a", None, "c", "d"]
    memory.put(address(name="a"), "new", 11)
    assert memory.get(address(name="a")) is None
    memory.put(address(name="e"), "e", 4)
    assert memory.get(address(name="c")) == "c"
