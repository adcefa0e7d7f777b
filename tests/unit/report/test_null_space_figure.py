"""The figure of a cell's null spaces shows the numbers in the record."""

import pytest
from helpers.records import make_record

from q2n.records import store as records
from q2n.report.__main__ import main
from q2n.report.figures.null_space import INPUTS, draw, draw_all
from q2n.report.figures.of_study import save, write_figures
from q2n.report.figures.style import style
from q2n.report.overview import study_report
from q2n.types import LayerReport, NullSpaceReport


def measured(block, halves=True):
    return NullSpaceReport(
        spectrum=(1.0, 0.1 + 0.01 * block, 0.01, 0.0),
        spectrum_places=(1, 3, 10, 40),
        rank=10,
        effective_rank=4.5,
        projection_error=0.2 + 0.01 * block,
        heldout_projection_error=0.25,
        half_ranks=(9, 11) if halves else None,
        half_projection_error=0.22 if halves else None,
        half_angles=tuple(float(angle) for angle in range(17)) if halves else (),
        reach=0.3,
        reached=-0.05,
        error_sources=(0.01, 0.02, 0.03),
        error_sources_after=(0.01, 0.01, 0.03),
    )


def cell(halves=True, **fields):
    layers = [
        LayerReport(block, name, (40, 40), 3.25, 0.06, 0.05, null_space=measured(block, halves))
        for block in range(3)
        for name in (*INPUTS, "mlp.up_proj")
    ]
    return make_record(layers=tuple(layers), **fields)


def lines(axes):
    def rounded(numbers):
        return [round(float(number), 9) for number in numbers]

    return [(rounded(line.get_xdata()), rounded(line.get_ydata())) for line in axes.lines]


@pytest.mark.parametrize("halves", [True, False])
def test_spectra_and_projection_errors_are_drawn_by_layer(halves):
    axes = draw(cell(halves)).axes
    spectra = [line for line in lines(axes[0]) if len(line[0]) == 4]
    assert [line[0] for line in spectra] == [[1, 3, 10, 40]] * 3
    assert [line[1][1] for line in spectra] == pytest.approx([0.1, 0.11, 0.12])
    marks = [line for line in lines(axes[0]) if len(line[0]) == 1]
    assert marks == [([10], [0.01])] * 3
    projection = lines(axes[4])
    assert ([0, 1, 2], [0.2, 0.21, 0.22]) in projection
    assert ([0, 1, 2], [0.25] * 3) in projection
    assert (([0, 1, 2], [0.22] * 3) in projection) == halves
    assert ([0, 1, 2], [0.25] * 3) in lines(axes[5])  # rank 10 of 40
    assert (([0, 1, 2], [8.0] * 3) in lines(axes[6])) == halves
    assert ([0, 1, 2], [-0.05] * 3) in lines(axes[7])
    assert ([0, 1, 2], [0.05] * 3) in lines(axes[8])


def drawn(cells, folder):
    report = study_report("main", cells)
    items = [item for item in write_figures(report, folder) if item.kind == "null_space"]
    return [folder / path for item in items for path in item.files]


@pytest.mark.slow
def test_one_figure_a_cell_the_first_seed_and_the_same_bytes_again(tmp_path):
    cells = [cell(seed=1), cell(seed=0), cell(q2n_fields={"t": 0.5}), make_record(bits=4)]
    paths = drawn(cells, tmp_path)
    folder = tmp_path / "figures" / "main"
    names = [f"null_space-m-gptq-on-3bit-g64-q2n.t_{t}" for t in ("0.5", "absent")]
    assert sorted(paths) == sorted(folder / f"{name}.svg" for name in names)
    with style():
        label, figure = draw_all(cells)[0]
        save(figure, tmp_path / f"{label}.svg")
    assert (tmp_path / f"{label}.svg").read_bytes() == (folder / f"{label}.svg").read_bytes()
    assert "seed 0" in (folder / f"{names[1]}.svg").read_text()
    assert drawn([make_record()], tmp_path) == []


def test_the_report_draws_what_was_measured(tmp_path, capsys):
    record = cell()
    path = records.save(record, tmp_path)
    assert records.load(path).layers == record.layers
    assert records.load(path).layers[0].null_space == measured(0)
    assert main(["--results", str(tmp_path)]) == 0
    assert "null_space-m-gptq-on-3bit-g64.svg" in capsys.readouterr().out.replace("\n", "")
