"""Records survive the disk exactly, numbers that are not finite included, and bad files are named."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.records import make_metric, make_protocol, make_record
from pydantic import ValidationError

from q2n.exceptions import RecordError
from q2n.records import store as records
from q2n.records.fingerprint import fingerprint, plain
from q2n.records.provenance import Provenance, collect, git_state, peak_memory_bytes, reset_peak_memory
from q2n.types import LayerReport, NullSpaceReport


def test_what_is_read_equals_what_was_written(tmp_path: Path) -> None:
    record = make_record(
        layers=(LayerReport(0, "mlp.up_proj", (8, 4), 3.25, 0.1, 0.09, 0.9, 1.1, 3, extra={"a": 1.0}),),
        metrics=(make_metric(12.5, reference=10.0, per_window=(2.5, 2.55)),),
        config={"bits": 3, "q2n": {"t": 0.1}, "path": Path("a/b"), "pair": (1, 2)},
    )
    path = records.save(record, tmp_path)
    assert path == tmp_path / "main" / record.fingerprint / "record.json"
    assert records.load(path) == record
    assert records.find(tmp_path, "main", record.fingerprint) == record
    assert records.find(tmp_path, "main", "0" * 16) is None


def test_non_finite_numbers_round_trip_as_strict_json(tmp_path: Path) -> None:
    metric = make_metric(math.inf, reference=math.nan, per_window=(-math.inf, math.nan, 1.0))
    layer = LayerReport(0, "q", (2, 2), 3.0, math.nan, math.inf, extra={"x": math.nan})
    path = records.save(make_record(metrics=(metric,), layers=(layer,), config={"c": math.inf}), tmp_path)

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    tree = json.loads(path.read_text(), parse_constant=refuse)
    assert tree["metrics"][0]["value"] == "inf"
    back = records.load(path)
    found = back.metrics[0]
    assert found.value == math.inf
    assert math.isnan(found.reference or 0)
    assert found.per_window[0] == -math.inf
    assert math.isnan(found.per_window[1])
    assert math.isnan(back.layers[0].error_before)
    assert back.layers[0].error_after == math.inf
    assert math.isnan(back.layers[0].extra["x"])
    assert back.config == {"c": "inf"}


def test_an_error_that_does_not_exist_is_absent(tmp_path):
    layer = LayerReport(0, "q", (2, 2), 3.0, None, None)
    path = records.save(make_record(layers=(layer,)), tmp_path)
    assert records.load(path).layers == (layer,)


def test_numpy_scalars_become_plain_numbers_when_the_record_is_built(tmp_path: Path) -> None:
    layer = LayerReport(0, "q", (2, 2), 3.0, np.float32(0.5), 0.25, null_rank=np.int64(3))  # type: ignore[arg-type]
    record = make_record(layers=(layer,))
    assert type(record.layers[0].error_before) is float
    assert records.load(records.save(record, tmp_path)) == record


def test_a_record_is_frozen_and_strict() -> None:
    record = make_record()
    with pytest.raises(ValidationError):
        record.bits_per_weight = 2.0  # type: ignore[misc]
    with pytest.raises(ValidationError):
        make_record(name="../elsewhere")
    with pytest.raises(ValidationError):
        make_record(fingerprint="short")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a record"),
        ('{"schema_version": 99}', "has schema 99.*update q2n"),
        ('{"schema_version": 1}', "is required"),
        ('{"schema_version": 2}', "has no digest of layers.parquet"),
        (b"\xff\xfe", "is not JSON"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecordError, match=message) as caught:
        records.load(path)
    assert str(path) in str(caught.value)


def test_one_bad_file_costs_a_warning_and_not_the_others(tmp_path: Path) -> None:
    good = make_record()
    records.save(good, tmp_path)
    bad = tmp_path / "main" / ("0" * 16) / "record.json"
    bad.parent.mkdir()
    bad.write_text(records.path_of(tmp_path, "main", good.fingerprint).read_text()[:100])
    with pytest.warns(records.UnreadableRecordWarning, match="0000000000000000"):
        assert records.load_all(tmp_path) == [good]
    assert len(records.read_all(tmp_path, "main")[1]) == 1
    assert records.load_all(tmp_path, "other") == []
    with pytest.raises(RecordError):
        records.find(tmp_path, "main", "0" * 16)


def whole(windows: int = 141) -> records.RunRecord:
    """A cell as large as the bundled model's, with every kind of value, and numbers that no text rounds."""
    rng = np.random.default_rng(0)
    measured = NullSpaceReport((1.0, 0.5), (1, 2), 1, 1.5, 0.2, half_ranks=(1, 2), half_angles=())
    layers = tuple(
        LayerReport(
            *(block, name, (576, 576), 3.25, *rng.random(2)),
            alpha_min=0.9 if name == "q" else None,
            solve_seconds=rng.random(),
            null_space=measured if name == "q" else None,
            extra={"a.b": rng.random()} if name == "v" else {},
        )
        for block in range(30)
        for name in ("q", "k", "v", "o", "gate", "up", "down")
    )
    losses, others = (tuple(rng.random(windows)) for _ in range(2))
    share = {"name": "acc", "unit": "share", "lower_is_better": False, "count_unit": "items"}
    metrics = (
        make_metric(12.5, per_window=losses, reference_per_window=others, weights=tuple(range(windows))),
        make_metric(0.5, "piqa", per_item="0110", reference_per_item="1" * 4, **share),
        make_metric(3.5, "news"),
    )
    config = {"bits": 3, "seed": 0, "name": "main", "q2n": {"t": 1.0, "lam": True}}
    identity = {"config": {"bits": 3, "q2n": {"t": 1.0, "lam": True}}, "versions": {"numpy": "2"}}
    provenance = Provenance(versions={"numpy": "2"})
    return make_record(
        layers=layers, metrics=metrics, config=config, identity=identity, provenance=provenance
    )


def test_a_large_record_comes_back_to_the_last_bit_and_is_small_to_read(tmp_path: Path) -> None:
    record = whole()
    path = records.save(record, tmp_path)
    back = records.load(path)
    assert back == record
    assert repr(back) == repr(record)
    assert fingerprint(back.identity) == record.fingerprint
    assert path.stat().st_size < 10_000
    assert max(map(len, path.read_text().splitlines())) < 250
    tree = json.loads(path.read_text())
    assert tree["identity"]["config"] == ["bits", "q2n"]
    digest = hashlib.sha256(path.with_name("layers.parquet").read_bytes()).hexdigest()
    assert tree["layers"] == {"file": "layers.parquet", "sha256": digest}


def test_an_identity_with_another_configuration_or_versions_is_kept_as_it_is(tmp_path: Path) -> None:
    identity = {"config": {"q2n": {"t": 1}, "gone": 2}, "versions": {"numpy": "1"}}
    record = make_record(config={"q2n": {"t": 1.0}}, identity=identity)
    assert records.load(records.save(record, tmp_path)).identity == identity


def test_the_same_record_makes_the_same_bytes(tmp_path: Path) -> None:
    paths = [records.save(whole(), tmp_path / side) for side in ("a", "b")]
    for name in ("record.json", "layers.parquet"):
        one, other = (path.with_name(name).read_bytes() for path in paths)
        assert one == other


@pytest.mark.parametrize("fault", ["missing", "truncated", "another record's"])
def test_a_record_without_its_values_counts_as_none(tmp_path: Path, fault: str) -> None:
    record = whole()
    values = records.save(record, tmp_path).with_name("layers.parquet")
    if fault == "missing":
        values.unlink()
    elif fault == "truncated":
        values.write_bytes(values.read_bytes()[:-1])
    else:
        values.write_bytes(records.save(whole(140), tmp_path / "b").with_name("layers.parquet").read_bytes())
    found, faults = records.read_all(tmp_path)
    assert found == []
    assert len(faults) == 1
    assert record.fingerprint in faults[0]
    assert "layers.parquet" in faults[0]
    with pytest.warns(records.UnreadableRecordWarning, match="counts as no record"):
        assert records.find(tmp_path, "main", record.fingerprint) is None
    records.save(record.model_copy(update={"name": "other"}), tmp_path)
    with pytest.warns(records.UnreadableRecordWarning):
        assert records.find(tmp_path, "main", record.fingerprint) == record
    assert records.read_all(tmp_path, "main") == ([record], []), "mended from the other study"


@pytest.mark.parametrize("broken", ["json", "values"])
def test_a_full_disk_leaves_the_former_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    former = whole()
    records.save(former, tmp_path)
    method = {"json": "write_text", "values": "write_bytes"}[broken]

    def full(*arguments: object, **named: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, method, full)
        with pytest.raises(OSError, match="no space"):
            records.save(whole(140), tmp_path)
    assert records.read_all(tmp_path) == ([former], [])


def test_parts_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    path = records.save(whole(), tmp_path)
    tree = json.loads(path.read_text())
    del tree["protocols"]
    path.write_text(json.dumps(tree))
    with pytest.raises(RecordError, match=r"record\.json: its parts do not fit together.*protocols"):
        records.load(path)


def test_a_former_record_is_read(tmp_path: Path) -> None:
    record = whole()
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**plain(record.model_dump()), "schema_version": 1}))
    assert records.load(path) == record


def test_one_function_makes_frames_of_cells_layers_and_windows() -> None:
    record = whole()
    layers = records.to_frame([record, record], per="layer")
    assert len(layers) == 420
    assert list(layers["layer"][:3]) == ["q", "k", "v"]
    assert list(layers["error_after"][:210]) == [layer.error_after for layer in record.layers]
    assert layers["null_space.spectrum"][0] == (1.0, 0.5)
    assert layers["fingerprint"][0] == record.fingerprint
    windows = records.to_frame([record], per="window")
    losses = windows[windows["dataset"] == "wiki"]
    assert tuple(losses["value"]) == record.metrics[0].per_window
    assert list(losses["window"]) == list(range(141))
    assert list(windows[windows["metric"] == "acc"]["right"]) == [False, True, True, False]


def test_the_frame_has_one_row_per_cell_and_metric() -> None:
    two = make_record(metrics=(make_metric(5.0), make_metric(6.0, dataset="news")))
    frame = records.to_frame([two, make_record(bits=2, metrics=())])
    assert list(frame["dataset"].fillna("")) == ["wiki", "news", ""]
    assert list(frame["bits"]) == [3, 3, 2]
    assert records.to_frame([]).empty


def test_protocols_are_told_apart() -> None:
    base = make_protocol()
    assert base.label() == "wiki · 32 x 512 tokens · BOS none · float32"
    assert base.key() == make_protocol().key()
    assert hash(base) == hash(make_protocol())
    changed = [make_protocol(**change) for change in ({"text_sha256": "b"}, {"stride": 256}, {"bos": "text"})]
    assert len({base.key(), *(other.key() for other in changed)}) == 4
    assert "stride 256" in changed[1].label()
    assert "bfloat16, loss float32" in make_protocol(forward_dtype="bfloat16").label()


def test_later_fields_leave_the_keys_of_older_protocols_as_they_were() -> None:
    assert (make_protocol().key(), make_protocol(variant="gptq").key()) == ("f7361ac7", "c2e150a1")
    beyond, seen = make_protocol(positions=64), make_protocol(calibrated=True)
    assert len({make_protocol().key(), beyond.key(), seen.key()}) == 3
    assert beyond.label().endswith("float32 · beyond the model's 64 positions")
    assert seen.label().endswith("float32 · text also calibrated on")


def test_records_import_neither_torch_nor_pandas() -> None:
    code = (
        "import sys, q2n.records.store, q2n.explain; print({'torch', 'pandas', 'wandb'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_provenance_knows_the_checkout_only_if_it_is_one(tmp_path: Path) -> None:
    assert git_state(tmp_path) == (None, None)

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "run.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "new").write_text("1")
    commit, dirty = git_state(tmp_path)
    assert commit is not None
    assert len(commit) == 40
    assert dirty is False, "new results do not make the code dirty"
    (tmp_path / "run.py").write_text("2")
    assert git_state(tmp_path) == (commit, True)
    (tmp_path / "inner").mkdir()
    assert git_state(tmp_path / "inner") == (None, None)


def test_provenance_holds_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-value")
    found = collect(device="cpu", dtype="float32", seeds={"seed": 0}, weights="random")
    assert "a-secret-value" not in found.model_dump_json()
    assert found.cpu
    assert found.versions["torch"] != "absent"


def test_peak_memory_counts_bytes_and_can_start_anew() -> None:
    block = np.ones(2**24)
    with_block = peak_memory_bytes()
    assert block.nbytes < with_block < 2**42
    del block
    if reset_peak_memory():
        assert peak_memory_bytes() < with_block - 2**26
