"""The pages of runs: what they say, what they warn of, and what a name cannot do to them."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from PIL import Image

from sdtune.errors import BadInput
from sdtune.host.describe import by_host, describe_processor, link_mbit
from sdtune.report.charts import learning, ranks, step_time
from sdtune.report.findings import findings
from sdtune.report.formatting import seconds, share, size
from sdtune.report.page import MOST_BYTES, spread_out, write_comparison, write_report
from sdtune.report.pictures import SIDES, embed
from sdtune.report.record import read_run
from sdtune.training.drawing import seeds_of_rank
from tests.conftest import PATIENCE, PYTHON
from tests.report_double import HOSTILE, write_run


class Page(HTMLParser):
    """What a browser would find: elements, their ids and attributes, and the words."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_data(self, data):
        self.text += data + " "


def test_the_page_of_a_run_shows_what_the_folder_holds(tmp_path):
    page = Page(write_report(write_run(tmp_path / "r", hosts=2)).read_text(encoding="utf-8"))
    said = " ".join(page.text.split())
    for words in (
        *("80 %", "2.00 s", "4 ranks", "on 2 hosts", "3.07 kB", "123 kB in the whole run", "93.0 s", "from the word"),
        *("node1", "node2", "A Processor, 28 cores", "AVX512", "avx512_bf16", "270 GB", "eth0, 10 Gbit/s", "tcmalloc"),
        *(
            "Before step 0",
            "While learning step 20",
            "After step 40",
            "seed 2",
            "Packages of node1, and the same on all",
        ),
        *("code 0123456789ab", "./launch.sh --overwrite", "training.learning_rate"),
    ):
        assert words.replace("from the word", "the word it started from") in said, words
    assert page.elements.count("img") == 2 + 3 * 2 + 2
    assert page.elements.count("svg") == 2 * 3  # each chart wide and narrow
    assert page.elements.count("details") >= 3 + 2  # a table behind each
    assert "Worth knowing" not in said
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert "script" not in page.elements


def test_nothing_in_the_page_leads_out_of_it(tmp_path):
    text = write_report(write_run(tmp_path / "r")).read_text(encoding="utf-8")
    for tag, name, value in Page(text).attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert value.startswith(("data:image/webp;base64,", "#")), (tag, name, value)
    assert not re.search(r"@import|url\((?!#)", text)


def test_names_prompts_and_captions_are_shown_as_they_are_typed(tmp_path):
    folder = write_run(
        tmp_path / "r", name=HOSTILE, prompt=f"{HOSTILE} \"onload='x'", hosts=2, host=f"a{HOSTILE}", slow=0
    )
    other = write_run(tmp_path / "other", name=f"other {HOSTILE}", prompt=HOSTILE)
    for path in (write_report(folder), write_comparison([folder, other])):
        text = path.read_text(encoding="utf-8")
        page = Page(text)
        assert "script" not in page.elements
        assert "<script" not in text
        assert not any(name.startswith("on") for _, name, _ in page.attributes)
        assert HOSTILE in page.text  # not lost either, the chart's dollar signs included
        assert any(name == "alt" and HOSTILE in value for _, name, value in page.attributes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"slow": 1}, "rank 1 on node1 computed up to 2.0 times as long"),
        ({"tcmalloc": False}, "node1 trained without tcmalloc"),
        ({"features": ["avx2"]}, "bf16 on processors that cannot compute in it (node1)"),
        ({"link_mbit": 100}, "node1 has a link of 100 Mbit/s on eth0"),
        ({"instruction_set": "AVX2"}, "The hosts differ in their instruction sets (AVX2, AVX512)"),
        ({"threads_per_rank": 3}, "The hosts differ in their numbers of threads (14, 3)"),
    ],
)
def test_warnings_of_hosts(tmp_path, change, words):
    found = findings(read_run(write_run(tmp_path / "r", hosts=2, **change)))
    assert len(found) == 1
    assert words in found[0]


def test_warnings_of_a_run(tmp_path):
    folder = write_run(tmp_path / "r", hosts=2)
    assert findings(read_run(folder)) == []
    (folder / "packages" / "node2.txt").write_text("torch==2.12.0\n", encoding="utf-8")
    (folder / "finished.json").unlink()
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8").replace('"native"', '"ipex"')
    text += json.dumps({"kind": "validation", "time": 1.0, "step": 40, "loss": 0.2, "gap_closed": -1.0}) + "\n"
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    found = " ".join(findings(read_run(folder)))
    for words in ("not finished", "did not fall", "different packages", "archived"):
        assert words in found


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    folder = write_run(tmp_path / "r")
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text(lines[0], encoding="utf-8")
    (folder / "finished.json").unlink()
    assert "not finished" in write_report(folder).read_text(encoding="utf-8")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(BadInput, match="holds no run that has begun"):
        write_report(tmp_path)
    with pytest.raises(BadInput, match="at least two"):
        write_comparison([tmp_path])


def test_a_comparison_shows_curves_differences_and_pictures_of_every_run(tmp_path):
    a = write_run(tmp_path / "a", name="slow-rate")
    b = write_run(tmp_path / "b", name="fast-rate", ranks_per_host=4)
    text = (b / "metrics.jsonl").read_text(encoding="utf-8").replace("0.005", "0.01")
    (b / "metrics.jsonl").write_text(text, encoding="utf-8")
    output = write_comparison([a, b], tmp_path / "c.html")
    page = Page(output.read_text(encoding="utf-8"))
    said = " ".join(page.text.split())
    assert "training.learning_rate 0.005 0.01" in said
    assert "slow-rate fast-rate" in said
    assert "ranks 2 4" in said
    assert page.elements.count("svg") == 2 * 2
    assert page.elements.count("img") == 2 * (2 + 2)


def test_charts_have_the_figures_that_they_show(tmp_path):
    run = read_run(write_run(tmp_path / "r", hosts=2, slow=3))
    loss, times, all_ranks = learning(run), step_time(run), ranks(run)
    assert [row[0] for row in loss.rows] == ["0", "10", "20", "30", "40"]
    assert loss.rows[-1] == ["40", "0.06", "80 %"]
    assert [row[0] for row in times.rows] == ["forward", "backward", "waiting and exchange", "rest"]
    assert "The longest, step 1, took 9.00 s" in times.says
    assert [row[:3] for row in all_ranks.rows] == [
        ["0", "node1", "2.00 s"], ["1", "node1", "2.01 s"], ["2", "node2", "2.02 s"], ["3", "node2", "4.00 s"]
    ]  # fmt: skip
    for chart in (loss, times, all_ranks):
        for svg in (chart.wide, chart.narrow):
            assert "var(--ink)" in svg
            assert not re.search(r"#0[0-9a-f]{5}\b", svg), "a placeholder colour was left"
    assert ranks(read_run(write_run(tmp_path / "one", ranks_per_host=1))) is None


def test_pictures_are_scaled_until_they_fit(tmp_path):
    paths = []
    for i in range(12):
        Image.effect_noise((700, 500), 90).convert("RGB").save(tmp_path / f"{i}.png")
        paths.append(tmp_path / f"{i}.png")
    large, small = embed(paths, budget=10**8), embed(paths, budget=100_000)
    assert (large[paths[0]].width, large[paths[0]].height) == (SIDES[0], round(SIDES[0] * 5 / 7))
    assert sum(len(e.uri) for e in small.values()) <= 100_000
    Image.new("RGB", (64, 64)).save(tmp_path / "tiny.png")
    assert embed([tmp_path / "tiny.png"])[tmp_path / "tiny.png"].tiny


def test_a_page_of_many_large_pictures_can_be_sent(tmp_path):
    folder = write_run(tmp_path / "r")
    for i in range(60):
        Image.effect_noise((400, 400), 90).convert("RGB").save(folder / f"images/9{i:03d}.png", compress_level=1)
    path = write_report(folder)
    assert path.stat().st_size < MOST_BYTES
    assert "And 14 more in the run folder" in path.read_text(encoding="utf-8")


def test_the_command_makes_the_page_and_training_never_imports_what_it_needs(tmp_path):
    folder = write_run(tmp_path / "r")
    done = subprocess.run(
        [sys.executable, PYTHON / "make_report.py", folder],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert done.stdout.strip() == str(folder / "report.html")
    refused = subprocess.run(
        [sys.executable, PYTHON / "make_report.py", tmp_path],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    loaded = "import sys, sdtune.training.trainer; print('matplotlib' in sys.modules)"
    trained = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True, timeout=PATIENCE, cwd=PYTHON
    )
    assert trained.stdout.strip() == "False"


def test_words():
    assert [seconds(x) for x in (0.0012, 0.24, 3.456, 42.83, 300, 9000)] == [
        "1.2 ms", "240 ms", "3.46 s", "42.8 s", "5 min", "2 h 30 min"
    ]  # fmt: skip
    assert [size(x) for x in (512, 51200, 152e6, 2.7e11)] == ["512 B", "51.2 kB", "152 MB", "270 GB"]
    assert [share(x) for x in (0, 0.004, 0.5, 1.25)] == ["0 %", "0.4 %", "50 %", "125 %"]
    assert spread_out(range(0, 101), 5) == [0, 25, 50, 75, 100]
    assert spread_out([1, 2], 5) == [1, 2]


def test_what_a_host_says_of_itself(tmp_path):
    cores = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0), (0, 1), (1, 0), (1, 1)]
    text = "\n\n".join(
        f"processor\t: {i}\nmodel name\t: A CPU\nphysical id\t: {s}\ncore id\t: {c}\nflags\t: fpu avx2 amx_bf16"
        for i, (s, c) in enumerate(cores)
    )
    assert describe_processor(text, "?") == {"cpu": "A CPU", "cores": 4, "features": ["avx2", "amx_bf16"]}
    assert describe_processor("processor\t: 0\n\nprocessor\t: 1", "aarch64")["cores"] == 2
    assert link_mbit("eth0", tmp_path) is None
    (tmp_path / "eth0").mkdir()
    (tmp_path / "eth0" / "speed").write_text("25000\n")
    assert link_mbit("eth0", tmp_path) == 25000
    grouped = by_host(
        [{"host": "a", "x": 1, "rank": 0}, {"host": "b", "x": 2, "rank": 1}, {"host": "a", "x": 1, "rank": 2}]
    )
    assert grouped == [{"host": "a", "x": 1, "ranks": [0, 2]}, {"host": "b", "x": 2, "ranks": [1]}]


@pytest.mark.parametrize(("count", "world"), [(4, 1), (4, 2), (4, 16), (5, 3), (1, 8)])
def test_pictures_of_a_validation_are_shared_out(count, world):
    shares = [seeds_of_rank(count, rank, world) for rank in range(world)]
    assert sorted(seed for seeds in shares for seed in seeds) == list(range(1, count + 1))
    assert max(map(len, shares)) == -(-count // world)
