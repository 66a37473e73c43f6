"""The benchmark of records: medians, tables, what is written where, and which runs count."""

import dataclasses
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import deepcomp
from benchmarks import records
from deepcomp.errors import StageError
from deepcomp.experiment import recipe as recipes
from deepcomp.experiment.run_folder import Run

PAGE = "# Title\n\n<!-- records -->\nold\n<!-- end of records -->\n\nlast line without an end"


def row(recipe="lenet-5", seed=0, size=3000, training="random shifts of 1 pixel", **known):
    figures = {"full": 0.7, "pruned": 0.6, "error": 0.65, "left": 0.7, "values": 7, "minutes": 30.0, **known}
    return {
        "recipe": recipe,
        "seed": seed,
        "training": training,
        "bytes": size,
        "dense_bytes": 1_724_320,
        "ratio": 1_724_320 / size,
        **figures,
    }


THREE = [row(seed=0, size=3100, error=0.6), row(seed=1, size=2900, error=0.7), row(seed=2, size=3000, error=0.69)]
PLAIN = [row("lenet-300-100-plain", seed=1, size=10_282, training="plain", full=1.5, error=1.32, minutes=1.44)]


def test_median_is_of_each_figure_by_itself_and_its_ratio_that_of_the_bytes():
    known = records.middle(THREE)
    assert (known["seed"], known["bytes"], known["error"], known["full"]) == ("median", 3000, 0.69, 0.7)
    assert known["ratio"] == pytest.approx(574.7733)
    assert records.median_run(THREE)["seed"] == 2


def test_median_of_two_is_the_worse_one():
    two = THREE[:2]
    known = records.middle(two)
    assert (known["bytes"], known["error"]) == (3100, 0.7)
    assert known["ratio"] == min(one["ratio"] for one in two)
    assert records.median_run(two)["seed"] == 0
    assert records.median_run(THREE[1:2])["seed"] == 1


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_the_file_of_the_median_is_one_that_there_is(sizes):
    runs = [row(seed=seed, size=size) for seed, size in enumerate(sizes)]
    chosen = records.median_run(runs)
    assert chosen in runs
    assert sum(size <= chosen["bytes"] for size in sizes) > len(sizes) // 2
    assert sum(size >= chosen["bytes"] for size in sizes) >= len(sizes) / 2


def test_protocols():
    assert [records.protocol(shift) for shift in (0, 1, 2)] == [
        "plain",
        "random shifts of 1 pixel",
        "random shifts of 2 pixels",
    ]
    assert [records.protocol(shift, flip=True) for shift in (0, 3)] == ["flips", "random shifts of 3 pixels, flips"]
    assert records.protocol(0, rotate=7.5) == "rotations of up to 7.5 degrees"


def test_run_tables_have_every_seed_one_protocol_each_and_fit_a_terminal():
    text = records.run_tables({"lenet-300-100-plain": PLAIN, "lenet-5": THREE})
    assert max(map(len, text.splitlines())) <= 100
    _, shifted, plain = text.split("Training: ")
    assert shifted.startswith("random shifts of 1 pixel\n")
    assert plain.startswith("plain\n")
    cells = [line.split() for line in shifted.splitlines() if line.startswith("lenet-5 ")]
    assert [(line[1], line[4], line[7], line[8]) for line in cells] == [
        ("0", "0.60", "3,100", "556"),
        ("1", "0.70", "2,900", "595"),
        ("2", "0.69", "3,000", "575"),
        ("median", "0.69", "3,000", "575"),
    ]
    assert "lenet-5 " not in plain
    widest = row(
        "lenet-300-100-plain", size=13_094_016, full=90.2, pruned=90.2, error=90.2, left=100.0, values=3_211_264
    )
    assert max(map(len, records.run_tables({"x": [widest]}).splitlines())) <= 100


def test_records_table():
    assert records.records_table({"lenet-5": THREE, "lenet-300-100-plain": PLAIN}).splitlines()[2:] == [
        "| `lenet-5` | MNIST | random shifts of 1 pixel | 0, 1, 2 | 0.70 (0.70, 0.70, 0.70) "
        "| **0.69** (0.60, 0.70, 0.69) | 3,000 (3,100, 2,900, 3,000) | **575x** | 30.0 |",
        "| `lenet-300-100-plain` | MNIST | plain | 1 | 1.50 (1.50) | **1.32** (1.32) | 10,282 (10,282) | **168x** "
        "| 1.4 |",
    ]


def test_models_table_names_the_file_and_its_check():
    assert records.models_table({"lenet-5": THREE}).splitlines()[2:] == [
        "| `lenet-5.dcz` | MNIST | 3,000 | 575x | 0.69 | random shifts of 1 pixel | 2 "
        "| `deepcomp evaluate models/lenet-5.dcz --data mnist` |"
    ]
    line = records.models_table({"resnet-8": [row("resnet-8")]}).splitlines()[2]
    assert line.startswith("| `resnet-8.dcz` | CIFAR-10 (JPEG copy) | 3,000 ")
    assert line.endswith("| `deepcomp evaluate models/resnet-8.dcz --data CIFAR10.npz` |")


def test_splice_replaces_what_is_between_the_markers():
    done = "# Title\n\n<!-- records -->\n\nnew\n\n<!-- end of records -->\n\nlast line without an end"
    assert records.splice(PAGE, "new") == done
    assert records.splice(PAGE.replace("old\n", ""), "new") == done


@given(
    st.text(), st.text(), st.text(st.characters(exclude_characters="<")), st.text(st.characters(exclude_characters="<"))
)
def test_splice_keeps_the_rest_and_is_idempotent(before, after, old, new):
    once = records.splice(f"{before}{records.BEGIN}{old}{records.END}{after}", new)
    assert once == f"{before}{records.BEGIN}\n{new}\n\n{records.END}{after}"
    assert records.splice(once, new) == once


@pytest.mark.parametrize("make", [records.records_table, records.models_table])
def test_rows_of_recipes_that_were_not_run_here_stay(make):
    old = make({"lenet-5": THREE, "lenet-300-100-plain": PLAIN, "retired": [row("retired")]})
    some = {"lenet-5": THREE[:1], "lenet-5-small": [row("lenet-5-small", size=1500)]}
    new = make(dict(reversed(some.items())))
    page = f"{records.BEGIN}{old}\n{records.END}\n\n| `lenet-300-100-plain` | in another table |\n"
    assert records.completed(page, new) == make(some | {"lenet-300-100-plain": PLAIN})
    assert records.completed("", new) == make(some)


@pytest.mark.parametrize(
    "page",
    ["", records.BEGIN, records.END, records.END + records.BEGIN, PAGE + records.BEGIN, PAGE + records.END],
)
def test_a_page_without_its_two_markers_is_refused(page):
    with pytest.raises(StageError, match="README must have the lines <!-- records -->"):
        records.splice(page, "new", "README")


@pytest.fixture
def finished(tmp_path):
    """Makes a finished run of lenet-300-100, its weights freshly drawn, with what its records say."""
    images, labels = np.random.default_rng(0).random((50, 28, 28, 1), np.float32), np.arange(50) % 10
    source = tmp_path / "data.npz"
    np.savez(source, x_test=images, y_test=labels)

    def make(seed, units=3, **changes):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(units)])
        model.add(keras.layers.Dense(10))
        run = Run(tmp_path / "runs" / f"lenet-300-100-{seed}")
        deployed = run.stage("deployed")
        deployed.folder.mkdir(parents=True)
        run.recipe_path.write_text(recipes.dumps(records.asked("lenet-300-100", seed, str(source))))
        deepcomp.save(model, deployed.file_path)
        known = {
            "recipe": "lenet-300-100",
            "seed": seed,
            "data": {"name": "digits"},
            "layers": [],
            "history": {},
            "parameters": 9,
        }
        layers = [
            {"name": "a", "shape": [30, 10], "weights": 300, "nonzero": 30, "centroids": 5},
            {"name": "b", "shape": [10, 10], "weights": 100, "nonzero": 10, "centroids": 7},
        ]
        for number, name in enumerate(("full", "pruned", "quantized")):
            record = {**known, "stage": name, "layers": layers, "steps": 1, "seconds": 60, "test_error": 90.0 + number}
            run.stage(name).finish(record)
        wrong = np.count_nonzero(model(images).numpy().argmax(axis=1) != labels)
        size = deployed.file_path.stat().st_size
        report = {
            "file_bytes": size,
            "dense_bytes": 200_000,
            "ratio": 200_000 / size,
            "test_error": 2.0 * wrong,
            "seconds": 30,
        }
        deployed.finish({**known, "stage": "deployed", **report, **changes})
        return run, size

    return make, source


def options_for(tmp_path, source, **changes):
    known = {"data": str(source), "model": None, "recipes": records.MNIST, "seeds": records.SEEDS, "only_table": True}
    return SimpleNamespace(**{**known, "runs": tmp_path / "runs", "out": tmp_path / "out", **changes})


@pytest.fixture
def pages(tmp_path):
    for folder in ("docs", "models"):
        (tmp_path / "out" / folder).mkdir(parents=True)
    found = [tmp_path / "out" / "docs" / "records.md", tmp_path / "out" / "models" / "README.md"]
    for path in found:
        path.write_bytes(b"a\r\nb\n" + records.BEGIN.encode() + records.END.encode() + b"\nc")
    return found


def test_finished_runs_become_rows_tables_and_files(finished, pages, tmp_path, capsys):
    make, source = finished
    runs = {seed: make(seed, units) for seed, units in enumerate((3, 5, 4))}
    assert records.work(options_for(tmp_path, source)) == 0
    out, error = capsys.readouterr()
    assert error == ""
    lines = [line.split() for line in out.splitlines() if line.startswith("lenet-300-100 ")]
    assert [line[1] for line in lines] == ["0", "1", "2", "median"]
    assert lines[3][2:4] + lines[3][5:7] == ["90.00", "91.00", "10.00", "7"]
    assert lines[3][7:] == [f"{runs[2][1]:,}", "19", "3.5"]
    kept = (tmp_path / "out" / "models" / "lenet-300-100.dcz").read_bytes()
    assert kept == runs[2][0].stage("deployed").file_path.read_bytes()
    for path in pages:
        text = path.read_bytes()
        assert text.startswith(b"a\r\nb\n<!-- records -->\n\n| ")
        assert text.endswith(b"|\n\n<!-- end of records -->\nc")
        assert text.count(b"lenet-5") == 0
    before = [path.read_bytes() for path in pages]
    assert records.work(options_for(tmp_path, source, recipes=["lenet-5"], seeds=[1])) == 0
    assert [path.read_bytes() for path in pages] == before


def test_nothing_is_written_of_nothing(pages, tmp_path, capsys):
    before = [path.read_bytes() for path in pages]
    assert records.work(options_for(tmp_path, "mnist")) == 0
    assert "No finished run" in capsys.readouterr().out
    assert [path.read_bytes() for path in pages] == before


@pytest.mark.parametrize("changes", [{"file_bytes": 1}, {"test_error": 0.0}])
def test_a_file_that_is_not_what_its_report_says_does_not_count(changes, finished, pages, tmp_path, capsys):
    make, source = finished
    make(0)
    make(1, **changes)
    assert records.work(options_for(tmp_path, source)) == 1
    assert "lenet-300-100-1 is left out: its file has" in capsys.readouterr().err
    assert "| random shifts of 1 pixel | 0 |" in pages[0].read_text()


def test_a_run_of_another_protocol_does_not_count(finished, pages, tmp_path, capsys):
    make, source = finished
    make(0)
    run, _ = make(1)
    other = recipes.load(run.recipe_path)
    run.recipe_path.write_text(recipes.dumps(dataclasses.replace(other, data=dataclasses.replace(other.data, shift=0))))
    assert records.work(options_for(tmp_path, source)) == 1
    assert "it was made with data.shift = 0, not 1" in capsys.readouterr().err
    assert "| random shifts of 1 pixel | 0 |" in pages[0].read_text()


def test_a_stage_that_fails_is_named_and_the_rest_goes_on(tmp_path, monkeypatch, capsys, pages):
    called = []

    def run(command, check):
        script, folder = command[1].name, command[-1].name
        called.append((folder, script))
        return SimpleNamespace(returncode=2 * ((folder, script) == ("lenet-5-0", "prune.py")))

    monkeypatch.setattr(records.subprocess, "run", run)
    options = options_for(tmp_path, "mnist", recipes=["lenet-5"], seeds=[0, 1], only_table=False)
    assert records.work(options) == 1
    assert called == [
        ("lenet-5-0", "train_full.py"),
        ("lenet-5-0", "prune.py"),
        *(("lenet-5-1", script) for script in ("train_full.py", "prune.py", "quantize.py", "deploy.py")),
    ]
    assert "lenet-5-0: prune.py failed with exit status 2." in capsys.readouterr().err


def test_every_record_has_a_recipe_and_its_page_the_markers():
    for name in records.RECIPES:
        assert records.asked(name, 2, "mnist").seed == 2
    for page in ("docs/records.md", "models/README.md"):
        text = (records.ROOT / page).read_bytes().decode()
        assert records.splice(text, "x") != text
