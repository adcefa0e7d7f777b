"""Static cells: what is kept of one serves the others, and no number can tell."""

from __future__ import annotations

import pytest
from helpers.commands import ROOT
from helpers.static import numbers, static_cell, write_texts

from q2n.pipeline.sharing.store import SUFFIX

RELEASED = ("gptq", "leanquant", "owq", "pbllm", "quarot_kv4", "quip")
OTHERS = ("awq", "composed", "rtn", "smoothquant")
CELLS = [(name, q2n) for name in (*RELEASED, *OTHERS) for q2n in ("off", "on", "released")]
CELLS = [(name, q2n) for name, q2n in CELLS if q2n != "released" or name in RELEASED]
CORRECTIONS = {path.stem for path in (ROOT / "conf" / "q2n").glob("*.yaml")} - {"off", "on", "released"}
CELLS += [("gptq", q2n) for q2n in sorted(CORRECTIONS)]
# Without a correction solved layers are kept all the same: "on" says more of each baseline.
MORE = [cell for cell in CELLS if cell[1] in ("off", "released") and cell[0] != "gptq"]
CELLS = [
    *(cell for cell in CELLS if cell not in MORE),
    *(pytest.param(*cell, marks=pytest.mark.slow) for cell in MORE),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("text"))


def files(folder, stage="*"):
    return sorted(folder.glob(f"cache/stages/{stage}-*/*{SUFFIX}"))


@pytest.mark.parametrize(("baseline", "q2n"), CELLS)
def test_a_warm_cell_is_a_cold_cell_bit_for_bit(baseline, q2n, text, tmp_path):
    cell = (text, tmp_path, f"baseline={baseline}", f"q2n={q2n}")
    cold = static_cell(*cell)
    from_disk = static_cell(*cell)
    from_memory = static_cell(*cell, forget=False)
    assert numbers(cold) == numbers(from_disk) == numbers(from_memory)
    assert not cold.reused.keys() & {"statistics", "prepared", "codes"}
    for warm in (from_disk, from_memory):
        for stage in ("statistics", "codes"):
            assert warm.reused[stage].found == warm.reused[stage].parts > 0
        assert ("prepared" in warm.reused) == (baseline in ("awq", "smoothquant"))
        assert warm.reused["reference"].found == 1


def test_a_map_in_one_process_is_a_map_of_separate_cells(text, tmp_path):
    """What a layer in memory remembers of one pair of t and lambda does not leak into another."""
    pairs = [(t, lam) for t in (0.01, 0.5) for lam in (0, 0.5)]
    cells = [(text, tmp_path, "q2n=on", f"q2n.t={t}", f"q2n.lam={lam}") for t, lam in pairs]
    alone = [numbers(static_cell(*cell)) for cell in cells]
    assert [numbers(static_cell(*cell, forget=False)) for cell in cells] == alone
    assert len(set(alone)) == 4


def test_nothing_is_kept_without_room_and_nothing_changes(text, tmp_path):
    kept = static_cell(text, tmp_path)
    alone = static_cell(text, tmp_path, "cache_limit=0", cache="none")
    assert numbers(kept) == numbers(alone)
    assert files(tmp_path)
    assert not (tmp_path / "none" / "stages").exists()


def test_cells_that_differ_in_the_correction_share_everything_before_it(text, tmp_path):
    static_cell(text, tmp_path, "q2n=off")
    first = static_cell(text, tmp_path, "q2n=on")
    second = static_cell(text, tmp_path, "q2n=on", "q2n.t=0.01", "q2n.lam=0.5")
    for record in (first, second):
        assert record.reused["statistics"].found == 2
        assert record.reused["codes"].found == 8
        assert record.reused["codes"].saved_seconds > 0
    assert "spectra" not in first.reused
    assert second.reused["spectra"].found == second.reused["spectra"].parts == 6
    assert numbers(first) != numbers(second)
    released = static_cell(text, tmp_path, "q2n=released")  # needs a statistic that was not measured
    assert "statistics" not in released.reused
    assert released.reused["codes"].found == 8
    again = static_cell(text, tmp_path, "q2n=released")
    assert again.reused["statistics"].found == 2
    assert numbers(again) == numbers(released)


def test_baselines_and_bits_share_what_they_do_not_change(text, tmp_path):
    static_cell(text, tmp_path, "baseline=gptq")
    for change, found in {
        "bits=4": True,
        "baseline=leanquant": True,
        "baseline=quip": True,
        "baseline=smoothquant": False,
        "baseline=quarot": False,
        "calibration.nsamples=3": False,
        "calibration.seed=1": False,
    }.items():
        record = static_cell(text, tmp_path, change)
        assert ("statistics" in record.reused) == found, change
        assert "codes" not in record.reused, change


@pytest.mark.parametrize("baseline", ["gptq", "smoothquant", "quip"])
def test_damaged_and_deleted_entries_are_made_again(baseline, text, tmp_path):
    cell = (text, tmp_path, f"baseline={baseline}", "q2n=on")
    cold = numbers(static_cell(*cell))
    for stage in ("statistics", "prepared", "codes", "spectra"):
        for file in files(tmp_path, stage)[-1:]:
            content = bytearray(file.read_bytes())
            content[-7] ^= 1
            file.write_bytes(content)
        record = static_cell(*cell)
        assert numbers(record) == cold
        if files(tmp_path, stage):
            assert record.reused.get(stage) is None or record.reused[stage].found < record.reused[stage].parts
        whole = static_cell(*cell)
        assert numbers(whole) == cold
        assert all(tally.found == tally.parts for tally in whole.reused.values())
    for file in files(tmp_path)[::2]:
        file.unlink()
    assert numbers(static_cell(*cell)) == cold


def test_what_is_deleted_while_a_cell_runs_is_still_there_for_it(text, tmp_path, monkeypatch):
    import shutil

    from q2n.pipeline.sharing import static

    cold = numbers(static_cell(text, tmp_path))
    genuine = static.StaticStages.measure

    def measure(self, block, *arguments):
        shutil.rmtree(tmp_path / "cache" / "stages", ignore_errors=True)
        return genuine(self, block, *arguments)

    monkeypatch.setattr(static.StaticStages, "measure", measure)
    record = static_cell(text, tmp_path)
    assert record.reused["statistics"].found == 2
    assert numbers(record) == cold


def test_the_limit_holds_and_statistics_are_kept_whole_or_not_at_all(text, tmp_path):
    record = static_cell(text, tmp_path, "cache_limit=0.00015")  # 161 kB: less than the statistics
    assert not files(tmp_path, "statistics")
    assert 0 < sum(file.stat().st_size for file in files(tmp_path)) < 0.00015 * 2**30
    assert numbers(record) == numbers(static_cell(text, tmp_path, "cache_limit=0.00015"))


def test_heldout_sequences_are_kept_as_well(text, tmp_path):
    cell = (text, tmp_path, "calibration.heldout=2", "calibration.nsamples=3")
    cold = static_cell(*cell)
    warm = static_cell(*cell)
    assert warm.reused["statistics"].found == 2
    assert all(layer.heldout_error_before is not None for layer in warm.layers)
    assert numbers(cold) == numbers(warm)
    assert "statistics" not in static_cell(text, tmp_path, "calibration.nsamples=3").reused


@pytest.mark.parametrize("baseline", ["gptq", "awq"])
def test_the_first_block_is_the_whole_block_ones(baseline, text, tmp_path):
    """What goes into the first block is the same either way; what goes into the second is not."""
    cell = (text, tmp_path, f"baseline={baseline}", "q2n=off")
    static = static_cell(*cell)
    whole = static_cell(*cell, "calibration.stages=whole_block")
    for layer, other in zip(static.layers, whole.layers, strict=True):
        assert layer.name == other.name
        assert (layer.error_before == other.error_before) == (layer.block == 0)
    assert not whole.reused.keys() - {"reference"}


def test_layers_are_independent_of_each_other(text, tmp_path):
    """In a static cell no layer's solution depends on another layer's correction."""
    off = static_cell(text, tmp_path, "q2n=off")
    on = static_cell(text, tmp_path, "q2n=on", cache="other")
    assert [layer.error_before for layer in off.layers] == [layer.error_before for layer in on.layers]
    assert [layer.error_after for layer in off.layers] != [layer.error_after for layer in on.layers]


@pytest.mark.parametrize("deleted", [False, True])
def test_a_static_cell_goes_on_from_its_checkpoint(deleted, text, tmp_path, monkeypatch):
    import shutil

    from q2n.pipeline.sharing.static import StaticStages

    cell = (text, tmp_path, "checkpoint_every=1")
    undisturbed = numbers(static_cell(*cell, cache="other"))
    genuine = StaticStages.solving

    def solving(self, block):
        if block.index == 1:
            raise RuntimeError("lost power")
        return genuine(self, block)

    monkeypatch.setattr(StaticStages, "solving", solving)
    with pytest.raises(AssertionError, match="lost power"):
        static_cell(*cell)
    monkeypatch.undo()
    if deleted:
        shutil.rmtree(tmp_path / "cache" / "stages")
    record = static_cell(*cell, "resume=required")
    assert record.resumed_at == (1,)
    assert numbers(record) == undisturbed
