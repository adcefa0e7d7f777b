"""Conversion of the bundled GGUF file to an ordinary folder of safetensors, once.

Reading GGUF takes half a minute, most of it for the tokenizer; the folder loads in about two seconds.
"""

from __future__ import annotations

import atexit
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

from q2n.data.local_files import cache_root, kept
from q2n.exceptions import ModelError
from q2n.runtime.files import make_folder_atomic, sha256_file, sha256_text, write_json_atomic

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from q2n.data.local_files import PackagedFile

RULE = "bf16-1"
"""Version of the conversion; changes whenever this module writes something else for the same file."""
MANIFEST = "q2n_manifest.json"
PROBE = 'The year 1879: "E = mc^2" isn\'t\n\n  naïve \u2013 漢字 🙂\t(x_1, y_2) <|im_start|>user'
"""Text with digits, quotes, whitespace, several scripts and a special token, to compare tokenizers."""


def converted(source: PackagedFile, name: str, cache_dir: str | None = None) -> Path:
    """Return the folder with ``source`` as bfloat16 safetensors and its tokenizer, converted the first time.

    If the cache cannot be written, the folder is a temporary one of this process.

    Raises:
        ModelError: the file is damaged, cannot be read, or was not read completely.
    """
    key = sha256_text(f"{source.sha256} {RULE}")[:12]
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    target = cache_root(cache_dir) / "models" / f"{slug}-{key}"

    def convert(to: Path) -> Path:
        return make_folder_atomic(to, lambda folder: _convert(source, folder), is_complete)

    return target if kept(lambda: convert(target)) else convert(_temporary() / target.name)


@cache
def _temporary() -> Path:
    folder = tempfile.mkdtemp(prefix="q2n-models-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def is_complete(folder: Path) -> bool:
    """Tell whether every file in the manifest exists and is whole (takes 0.3 s, once per process)."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return bool(files) and all(_is_whole(folder / name, *entry) for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _is_whole(path: Path, size: int, digest: str) -> bool:
    status = path.stat()
    return status.st_size == size and _digest(path, (status.st_ino, status.st_mtime_ns)) == digest


@cache
def _digest(path: Path, state: tuple[int, int]) -> str:
    del state  # part of the cache's key: a file that is replaced or changed is read again
    return sha256_file(path)


def _convert(source: PackagedFile, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    path = source.undamaged(ModelError, pip_option="--no-deps ")
    with _parsed_once():
        model, tokenizer = _read(path)
    # named_parameters lists a tied head once, under the embedding's name, as a checkpoint does.
    tensors = {name: tensor.detach().to(torch.bfloat16) for name, tensor in model.named_parameters()}
    _check(tensors, path)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = cast(Any, model).config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # it still names GGUF, but the tensors are dequantized
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _check_tokenizer(tokenizer, folder)
    files = {file.name: (file.stat().st_size, sha256_file(file)) for file in sorted(folder.iterdir())}
    write_json_atomic(folder / MANIFEST, {"source": source.sha256, "rule": RULE, "files": files})


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Let a GGUF file be parsed once, and without a progress bar, inside the block.

    transformers parses the file for the configuration, the weights and the tokenizer, and builds the table of
    names anew for every tensor; both together are half of the conversion's time.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as reader

    with (
        patch.object(gguf, "GGUFReader", cache(gguf.GGUFReader)),
        patch.object(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)),
        patch.object(reader, "tqdm", lambda items, **_: items, create=True),
    ):
        yield


def _read(path: Path) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from q2n.models.quiet import quiet_transformers

    keywords: dict[str, Any] = {"gguf_file": path.name, "dtype": torch.float32}
    if hasattr(transformers, "GgufConfig"):
        # Newer versions would otherwise keep the blocks packed where matrix kernels exist.
        keywords["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(path.parent, **keywords)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"{path}: transformers cannot read this GGUF file: {error}") from error
    return cast("nn.Module", model), tokenizer


def _check(tensors: dict[str, Tensor], path: Path) -> None:
    """Compare the tensors with the file's own list and sizes, and check that all numbers are finite."""
    import gguf

    expected = sorted(int(entry.n_elements) for entry in gguf.GGUFReader(path).tensors)
    if sorted(tensor.numel() for tensor in tensors.values()) != expected:
        raise ModelError(
            f"{path}: {len(expected)} tensors in the file, {len(tensors)} read, or their sizes differ"
        )
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise ModelError(f"{path}: numbers that are not finite in {', '.join(broken[:3])}")


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(PROBE)["input_ids"]
    if again(PROBE)["input_ids"] != ids or again.decode(ids) != tokenizer.decode(ids):
        raise ModelError(f"{folder}: the saved tokenizer does not encode as the one in the GGUF file does")
