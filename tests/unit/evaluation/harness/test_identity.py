"""What fingerprints know of tasks: everything that could change an item, and nothing that must be loaded."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from q2n.evaluation.harness.bundled import TASK_FILES
from q2n.evaluation.harness.identity import identify_tasks

ROOT = Path(__file__).resolve().parents[4]


def test_nothing_heavy_is_loaded():
    program = (
        "import sys; from q2n.evaluation.harness import Harness\n"
        "Harness(tasks=['q2n_wiki_cloze', 'piqa']).identity()\n"
        "print([name for name in ('torch', 'lm_eval', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_a_bundled_task_is_its_file_and_its_text():
    found = identify_tasks(["q2n_wiki_cloze", "q2n_news_cloze", "piqa"], [], None)
    assert found["piqa"] == {"task": "piqa"}
    assert {found[name]["text"] for name in found if name != "piqa"} == {"wiki", "news"}
    assert found["q2n_wiki_cloze"]["task"] != found["q2n_news_cloze"]["task"]


def test_a_task_file_is_known_with_what_lies_beside_it_and_its_data(tmp_path):
    folder, data = tmp_path / "tasks", tmp_path / "rows.jsonl"
    folder.mkdir()
    file = folder / "mine.yaml"
    text = (TASK_FILES / "q2n_wiki_cloze.yaml").read_text(encoding="utf-8")
    file.write_text(f"{text}\n# of its own\nprompt_data: {data}\n", encoding="utf-8")
    data.write_text("{}", encoding="utf-8")
    seen = [identify_tasks([str(file)], [], None)]
    data.write_text("{}\n{}", encoding="utf-8")
    seen.append(identify_tasks([str(file)], [], None))
    (folder / "rules.py").write_text("x = 1", encoding="utf-8")
    seen.append(identify_tasks([str(file)], [], None))
    file.write_text(file.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    seen.append(identify_tasks([str(file)], [], None))
    assert all(one != other for place, one in enumerate(seen) for other in seen[:place])
    assert seen[-1] == identify_tasks([str(file)], [], None)


def test_local_data_and_folders_of_tasks_are_known_by_their_files(tmp_path):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "data.parquet").write_bytes(b"1")
    before = identify_tasks(["piqa"], [], str(tmp_path))
    assert before == identify_tasks(["piqa"], [], str(tmp_path))
    (tmp_path / "owner" / "name" / "data.parquet").write_bytes(b"12")
    assert identify_tasks(["piqa"], [], str(tmp_path)) != before
    own = tmp_path / "tasks"
    shutil.copytree(TASK_FILES, own)
    first = identify_tasks(["piqa"], [str(own)], None)
    (own / "q2n_wiki_cloze.yaml").unlink()
    assert identify_tasks(["piqa"], [str(own)], None) != first
