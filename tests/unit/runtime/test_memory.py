"""Freed memory stays with the process, where the C library is glibc."""

import json
import platform
import subprocess
import sys

import pytest

from q2n.runtime import memory as allocator

SCRIPT = """
import ctypes, json, torch
from q2n.runtime.memory import keep_freed_memory
{call}
names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
State = type("State", (ctypes.Structure,), {{"_fields_": [(name, ctypes.c_size_t) for name in names]}})
state = ctypes.CDLL("libc.so.6").mallinfo2
state.restype = State
before = state()
blocks = [torch.empty(31 << 20, dtype=torch.uint8) for _ in range(4)]
during = state()
del blocks
print(json.dumps([during.hblks - before.hblks, state().arena - before.arena]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_large_blocks_come_from_the_heap_and_stay_there():
    found = []
    for call in ("", "assert keep_freed_memory()"):
        command = [sys.executable, "-c", SCRIPT.format(call=call)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout))
    (mapped, _), (mapped_then, kept) = found
    assert (mapped, mapped_then) == (4, 0)
    assert kept > 100 << 20


@pytest.mark.parametrize("missing", ["the library", "the function"])
def test_without_glibc_nothing_happens(monkeypatch, missing):
    def load(name):
        if missing == "the library":
            raise OSError(name)
        return object()

    monkeypatch.setattr(allocator.ctypes, "CDLL", load)
    assert allocator.keep_freed_memory.__wrapped__() is False


def test_on_other_systems_nothing_happens(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert allocator.keep_freed_memory.__wrapped__() is False
