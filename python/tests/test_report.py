"""The report pages: their content, their warnings, and that names cannot inject markup."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from PIL import Image

from sdtune.errors import BadInput
from sdtune.host.facts import link_mbit
from sdtune.host.processor import describe_processor
from sdtune.report.charts.run import ranks, step_time, validation_loss
from sdtune.report.comparison import write_comparison
from sdtune.report.findings import findings
from sdtune.report.formatting import seconds, share, size
from sdtune.report.page import spread_out, write_report
from sdtune.report.pictures import SIDES, embed
from sdtune.report.record import read_run
from sdtune.report.rendering import MOST_BYTES
from sdtune.training.drawing import seeds_of_rank
from sdtune.training.ranks import group_by_host
from tests.conftest import PATIENCE, PYTHON
from tests.report_fake import HOSTILE, write_run


class Page(HTMLParser):
    """What a browser would find: elements, attributes, and text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_data(self, data):
        self.text += data + " "


def test_the_page_of_a_run_shows_its_folder(tmp_path):
    page = Page(write_report(write_run(tmp_path / "r", hosts=2)).read_text(encoding="utf-8"))
    said = " ".join(page.text.split())
    for words in (
        *(
            "80 %",
            "2.00 s",
            "4 ranks",
            "on 2 hosts",
            "3.07 kB",
            "123 kB in the whole run",
            "93.0 s",
            "starting from the token toy",
        ),
        *("node1", "node2", "A Processor, 28 cores", "AVX512", "avx512_bf16", "270 GB", "eth0, 10 Gbit/s", "tcmalloc"),
        *(
            "Before training step 0",
            "During training step 20",
            "After training step 40",
            "seed 2",
            "Packages of node1, the same on all",
        ),
        *("code revision 0123456789ab", "./launch.sh --overwrite", "training.learning_rate"),
    ):
        assert words in said, words
    assert page.elements.count("img") == 2 + 3 * 2 + 2
    assert page.elements.count("svg") == 2 * 3  # each chart wide and narrow
    assert page.elements.count("details") >= 3 + 2  # a table behind each
    assert "Worth knowing" not in said
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert "script" not in page.elements


def test_the_page_refers_to_nothing_outside(tmp_path):
    text = write_report(write_run(tmp_path / "r")).read_text(encoding="utf-8")
    for tag, name, value in Page(text).attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert value.startswith(("data:image/webp;base64,", "#")), (tag, name, value)
    assert not re.search(r"@import|url\((?!#)", text)


def test_names_prompts_and_captions_are_escaped(tmp_path):
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
        assert HOSTILE in page.text  # shown, including the dollar signs in charts
        assert any(name == "alt" and HOSTILE in value for _, name, value in page.attributes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"slow": 1}, "rank 1 on node1 computed up to 2.0 times as long"),
        ({"tcmalloc": False}, "node1 trained without tcmalloc"),
        ({"features": ["avx2"]}, "bf16 on processors without bf16 instructions (node1)"),
        ({"link_mbit": 100}, "node1 has a network link of only 100 Mbit/s on eth0"),
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
    for words in ("not finished", "did not decrease", "different packages", "archived"):
        assert words in found


def test_a_run_that_was_just_started_has_a_page(tmp_path):
    folder = write_run(tmp_path / "r")
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text(lines[0], encoding="utf-8")
    (folder / "finished.json").unlink()
    assert "not finished" in write_report(folder).read_text(encoding="utf-8")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(BadInput, match="holds no run that was started"):
        write_report(tmp_path)
    with pytest.raises(BadInput, match="at least two"):
        write_comparison([tmp_path])


def test_a_comparison_shows_curves_differences_and_pictures_of_every_run(tmp_path):
    a = write_run(tmp_path / "a", name="slow-rate")
    b = write_run(tmp_path / "b", name="fast-rate", ranks_per_host=4)
    text = (b / "metrics.jsonl").read_text(encoding="utf-8").replace("0.005", "0.01")
    text = text.replace("1790000000.0", "1790003600.0")
    (b / "metrics.jsonl").write_text(text, encoding="utf-8")
    output = write_comparison([a, b], tmp_path / "c.html")
    page = Page(output.read_text(encoding="utf-8"))
    said = " ".join(page.text.split())
    assert "training.learning_rate 0.005 0.01" in said
    assert "slow-rate fast-rate" in said
    assert "ranks 2 4" in said
    assert "2 runs finished within 60 min: 2 concepts per hour." in said
    assert page.elements.count("svg") == 2 * 2
    assert page.elements.count("img") == 2 * (2 + 2)


def test_a_comparison_puts_pictures_of_one_seed_in_a_row_whatever_the_prompt(tmp_path):
    a, b = (write_run(tmp_path / name, name=name) for name in ("cup", "mug"))
    text = (b / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    lines[0]["job"]["validation"]["prompt"] = "a photo of a <mug>"
    lines[0]["job"]["method"] = "lora"
    (b / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    said = " ".join(Page(write_comparison([a, b], tmp_path / "c.html").read_text(encoding="utf-8")).text.split())
    assert "Textual inversion, LoRA 2 runs compared" in said
    assert said.count("Each run's own validation prompt (PyTorch, during training)") == 1
    assert "seed 1 seed 2" in said.split("during training)")[1]


def test_charts_have_tables_of_their_numbers(tmp_path):
    run = read_run(write_run(tmp_path / "r", hosts=2, slow=3))
    loss, times, all_ranks = validation_loss(run), step_time(run), ranks(run)
    assert [row[0] for row in loss.rows] == ["0", "10", "20", "30", "40"]
    assert loss.rows[-1] == ["40", "0.06", "80 %"]
    assert [row[0] for row in times.rows] == ["forward", "backward", "exchange and waiting", "rest"]
    assert "The longest step, 1, took 9.00 s" in times.caption
    assert [row[:3] for row in all_ranks.rows] == [
        ["0", "node1", "2.00 s"], ["1", "node1", "2.01 s"], ["2", "node2", "2.02 s"], ["3", "node2", "4.00 s"]
    ]  # fmt: skip
    for chart in (loss, times, all_ranks):
        for svg in (chart.wide, chart.narrow):
            assert "var(--ink)" in svg
            assert not re.search(r"#0[0-9a-f]{5}\b", svg), "a placeholder colour is left"
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


def test_a_page_of_many_large_pictures_stays_small(tmp_path):
    folder = write_run(tmp_path / "r")
    for i in range(60):
        Image.effect_noise((400, 400), 90).convert("RGB").save(folder / f"images/9{i:03d}.png", compress_level=1)
    path = write_report(folder)
    assert path.stat().st_size < MOST_BYTES
    assert "And 14 more in the run folder" in path.read_text(encoding="utf-8")


def test_the_command_writes_the_page_and_training_does_not_import_matplotlib(tmp_path):
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


def test_formatting():
    assert [seconds(x) for x in (0.0012, 0.24, 3.456, 42.83, 300, 9000)] == [
        "1.2 ms", "240 ms", "3.46 s", "42.8 s", "5 min", "2 h 30 min"
    ]  # fmt: skip
    assert [seconds(x) for x in (float("nan"), float("inf"))] == ["\N{EN DASH}"] * 2
    assert [size(x) for x in (512, 51200, 152e6, 2.7e11)] == ["512 B", "51.2 kB", "152 MB", "270 GB"]
    assert [share(x) for x in (0, 0.004, 0.5, 1.25)] == ["0 %", "0.4 %", "50 %", "125 %"]
    assert spread_out(range(0, 101), 5) == [0, 25, 50, 75, 100]
    assert spread_out([1, 2], 5) == [1, 2]


def test_host_facts(tmp_path):
    cores = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0), (0, 1), (1, 0), (1, 1)]
    text = "\n\n".join(
        f"processor\t: {i}\nmodel name\t: A CPU\nphysical id\t: {s}\ncore id\t: {c}\nflags\t: fpu avx2 amx_bf16"
        for i, (s, c) in enumerate(cores)
    )
    assert describe_processor(text) == {"cpu": "A CPU", "cores": 4, "features": ["avx2", "amx_bf16"]}
    assert describe_processor("processor\t: 0\n\nprocessor\t: 1")["cores"] == 2
    assert link_mbit("eth0", tmp_path) is None
    (tmp_path / "eth0").mkdir()
    (tmp_path / "eth0" / "speed").write_text("25000\n")
    assert link_mbit("eth0", tmp_path) == 25000
    grouped = group_by_host(
        [{"host": "a", "x": 1, "rank": 0}, {"host": "b", "x": 2, "rank": 1}, {"host": "a", "x": 1, "rank": 2}]
    )
    assert grouped == [{"host": "a", "x": 1, "ranks": [0, 2]}, {"host": "b", "x": 2, "ranks": [1]}]


@pytest.mark.parametrize(("count", "world"), [(4, 1), (4, 2), (4, 16), (5, 3), (1, 8)])
def test_validation_images_are_split_among_ranks(count, world):
    shares = [seeds_of_rank(count, rank, world) for rank in range(world)]
    assert sorted(seed for seeds in shares for seed in seeds) == list(range(1, count + 1))
    assert max(map(len, shares)) == -(-count // world)
