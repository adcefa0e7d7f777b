"""The table of everyone, the stages against their floor, and which goals are met."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

from peer_work import floor

Results = dict[str, Any]
"""What ``peers.py`` writes: ``runs`` (one a worker's run), ``rates`` (one a round), ``setup``, ``times``."""

MEBIBYTE = 2**20


def select(results: Results, peer: str, bits: int) -> list[dict[str, Any]]:
    found = (run for run in results["runs"] if run["peer"] == peer and run["bits"] == bits)
    return [run for run in found if "wall" in run]


def middle(runs: Iterable[dict[str, Any]], key: str) -> float:
    return median(run[key] for run in runs)


def ratios(results: Results, one: str, other: str, bits: int, key: str) -> list[float]:
    """``one / other``, pair by pair: both of the same round."""
    theirs = {run["round"]: run[key] for run in select(results, other, bits)}
    mine = {run["round"]: run[key] for run in select(results, one, bits)}
    return [mine[number] / theirs[number] for number in mine if number in theirs]


def people(results: Results) -> list[str]:
    """The table of everyone who quantized."""
    lines = [
        "| bits | tool | runs | wall s | CPU s | wall / q2n | CPU / q2n | peak MiB | perplexity | settings |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for bits in results["setup"]["bits"]:
        for peer in dict.fromkeys(run["peer"] for run in results["runs"]):
            runs = select(results, peer, bits)
            if not runs:
                continue
            quotients = [ratios(results, peer, "q2n", bits, key) for key in ("wall", "cpu")]
            shown = [f"{median(item):.2f}" if item else "-" for item in quotients]
            score = results["perplexity"].get(f"{peer}-{bits}")
            lines.append(
                f"| {bits} | {runs[0]['versions'] if '+' not in peer else peer} | {len(runs)} "
                f"| {middle(runs, 'wall'):.1f} | {middle(runs, 'cpu'):.1f} | {shown[0]} | {shown[1]} "
                f"| {middle(runs, 'peak') / MEBIBYTE:.0f} | {f'{score:.2f}' if score else '-'} "
                f"| {runs[0]['settings']} |"
            )
    failed = [run for run in results["runs"] if "error" in run]
    return [*lines, "", *(f"* {run['peer']}, {run['bits']} bit, failed: {run['error']}" for run in failed)]


def stages(results: Results) -> list[str]:
    """Seconds of each kind of work against its floor."""
    setup, bits = results["setup"], results["setup"]["bits"][0]
    runs = select(results, "q2n", bits)
    if not runs:
        return []
    lowest = floor.seconds(_needed(results), _rates(results))
    lines = ["| work | operations | seconds | floor | ratio |", "|---|---:|---:|---:|---:|"]
    names = {"forward": "forward", "statistics": "Gram", "factorise": "factorisation", "solve": "columns"}
    for work, name in names.items():
        spent = median(run["work"].get(work, 0.0) for run in runs)
        count = _needed(results)[work] / 1e12
        lines.append(
            f"| {name} | {count:.2f} T | {spent:.2f} | {lowest[work]:.2f} | {spent / lowest[work]:.2f} |"
        )
    for work in ("measure", "correct"):
        lines.append(f"| {work} | | {median(run['work'].get(work, 0.0) for run in runs):.2f} | | |")
    total, least = middle(runs, "wall"), sum(lowest.values())
    rest = median(run["wall"] - sum(run["work"].values()) for run in runs)
    lines += [
        f"| rest | | {rest:.2f} | | |",
        f"| total | | {total:.2f} | {least:.2f} | {total / least:.2f} |",
    ]
    rate = ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in _rates(results).items())
    return [
        *lines,
        "",
        f"Products of {floor.SIZE} x {floor.SIZE} matrices, {setup['threads']} threads: {rate}.",
    ]


def table(results: Results) -> list[str]:
    """Every goal, what was measured, and whether it is met."""
    lines = ["| goal | measured | met |", "|---|---|---|"]
    for check in (_faster, _correction, _floor, _sequential, _memory, _start, _sweep):
        for goal, measured, met in check(results):
            lines.append(
                f"| {goal} | {measured} | {'not measured' if met is None else 'yes' if met else 'NO'} |"
            )
    return lines


Verdict = tuple[str, str, bool | None]


def _faster(results: Results) -> Iterable[Verdict]:
    for bits in results["setup"]["bits"]:
        others = {run["peer"] for run in results["runs"] if "+" not in run["peer"]} - {"q2n"}
        for key, name in (("wall", "wall time"), ("cpu", "CPU seconds")):
            found = {peer: ratios(results, peer, "q2n", bits, key) for peer in others}
            known = {peer: median(item) for peer, item in found.items() if item}
            if not known:
                continue
            best = min(known, key=known.__getitem__)
            text = f"{known[best]:.2f} ({best}, {len(found[best])} pairs)"
            yield f"{bits} bit: 3 times faster than the fastest peer in {name}", text, known[best] >= 3
        scores = {peer: results["perplexity"].get(f"{peer}-{bits}") for peer in others}
        have = {peer: score for peer, score in scores.items() if score}
        ours = results["perplexity"].get(f"q2n-{bits}")
        if have and ours:
            best = min(have, key=have.__getitem__)
            text = f"{ours:.2f} against {have[best]:.2f} ({best})"
            yield f"{bits} bit: perplexity equal or lower than everyone's", text, ours <= have[best]


def _correction(results: Results) -> Iterable[Verdict]:
    for variant, limit in (("on", 1.10), ("position_mean", 1.05), ("lstsq", 1.03)):
        found = ratios(results, f"q2n+{variant}", "q2n", results["setup"]["bits"][0], "wall")
        goal = f"q2n={variant} adds at most {limit - 1:.0%}"
        text = f"{median(found) - 1:+.1%} ({len(found)} pairs)" if found else ""
        yield goal, text, median(found) <= limit if found else None


def _floor(results: Results) -> Iterable[Verdict]:
    runs = select(results, "q2n", results["setup"]["bits"][0])
    if runs and results["rates"]:
        ratio = middle(runs, "wall") / sum(floor.seconds(_needed(results), _rates(results)).values())
        yield "total at most 1.3 times the floor", f"{ratio:.2f}", ratio <= 1.3


def _sequential(results: Results) -> Iterable[Verdict]:
    found = ratios(results, "q2n", "q2n+whole_block", results["setup"]["bits"][0], "wall")
    text = f"{median(found):.2f} of whole_block's time ({len(found)} pairs)" if found else ""
    yield "true_sequential costs no more than whole_block", text, median(found) <= 1 if found else None


def _memory(results: Results) -> Iterable[Verdict]:
    runs = select(results, "q2n+memory", results["setup"]["bits"][0])
    if runs:
        used = median(run["peak"] - run["resident_bare"] for run in runs)
        whole = runs[0]["bytes_weights"] + runs[0]["bytes_activations"]
        text = f"{used / whole:.2f} ({used / MEBIBYTE:.0f} of {whole / MEBIBYTE:.0f} MiB)"
        yield "peak memory under 1.5 times weights + activations", text, used < 1.5 * whole


def _start(results: Results) -> Iterable[Verdict]:
    for name, limit in (("help", 2.0), ("plan", 2.0), ("first bar", 3.0)):
        found = [item[name] for item in results["times"] if name in item]
        text = f"{median(found):.2f} s ({len(found)} runs)" if found else ""
        yield f"{name} under {limit:.0f} s", text, median(found) < limit if found else None


def _sweep(results: Results) -> Iterable[Verdict]:
    found = [item["sweep"] for item in results["times"] if "sweep" in item]
    text = f"{median(found):.0f} s ({len(found)} runs)" if found else ""
    yield "default sweep of 4 cells under 240 s", text, median(found) < 240 if found else None


def _needed(results: Results) -> dict[str, float]:
    setup = results["setup"]
    return floor.operations(floor.Model(**setup["sizes"]), setup["sequences"], setup["length"])


def _rates(results: Results) -> dict[str, float]:
    return {name: median(item[name] for item in results["rates"]) for name in results["rates"][0]}


SECTIONS: tuple[Callable[[Results], list[str]], ...] = (people, stages, table)
