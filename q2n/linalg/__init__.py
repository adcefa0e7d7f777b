"""Linear algebra of the solvers, and the list of optimizations that only make a CPU faster.

Each of them can be deleted at the cost of time alone: a plain version gives the same result, or one that
differs in the last digits because sums are taken in another order. Tests compare each with its plain version.

* :mod:`q2n.linalg.bf16_product` (oneDNN): the plain version is :func:`q2n.linalg.gram.add_gram` on inputs
  converted to float32; order of sums; ``tests/unit/linalg/test_gram.py``. Needed until torch multiplies
  bfloat16 matrices with a float32 result on a CPU.
* :mod:`q2n.linalg.kernels.threads` (torch's OpenMP threads): the plain version is a pool of Python threads,
  in ``_together``; the same bits; ``tests/unit/linalg/test_kernel_threads.py``. Needed until torch gives
  Python access to its threads. Exception: :func:`~q2n.linalg.kernels.threads.steady` changes results.
* :mod:`q2n.linalg.kernels` (numba): the plain version is the torch code that each kernel repeats, for the
  column loop :mod:`q2n.quantization.solvers.reference`; order of sums;
  ``tests/unit/linalg/test_kernels.py``. Needed as long as torch has no compiled loop over single columns.
* :mod:`q2n.runtime.memory` (allocator): without it pages go back to the system; the same bits;
  ``tests/unit/runtime/test_memory.py``. Needed until torch caches freed CPU memory as it caches a GPU's.
* :mod:`q2n.models.fused` (norms, gated networks): the plain version is Hugging Face's modules; networks
  have the same bits, norms in bfloat16 may differ in the last digit; ``tests/unit/models/test_fused.py``.
  Needed until torch fuses them on a CPU without being compiled.
* :mod:`q2n.models.attention`: the plain version is transformers' ``sdpa``; last digits, as scores are kept
  in float32; ``tests/unit/models/test_attention.py``. Needed for processors without AMX until torch's own
  kernel is as fast there.
"""
