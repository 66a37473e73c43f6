import signal
import subprocess
import sys

import numpy as np
import pytest

from deepcomp.errors import FormatError, OutputError, StageError
from deepcomp.experiment import run_folder
from deepcomp.files import write_text

RECORD = {key: kind() for key, kind in run_folder.RECORD_KEYS[0].items()} | {"data": {"name": "digits"}}


@pytest.fixture
def run(tmp_path):
    return run_folder.Run(tmp_path / "run")


def test_file_names_are_the_contract_s(run):
    names = {stage: run.stage(stage) for stage in run_folder.STAGES}
    assert [str(stage.folder.relative_to(run.folder)) for stage in names.values()] == list(run_folder.STAGES)
    assert run.recipe_path.name == "recipe.toml"
    assert names["full"].model_path.name == "model.keras"
    assert names["full"].record_path.name == "stage.json"
    assert names["deployed"].record_path.name == "report.json"
    assert names["deployed"].curve_path.name == "accuracy.png"


def test_a_stage_is_done_when_its_record_is_written(run, network):
    stage = run.stage("full")
    with pytest.raises(StageError, match=r"No checkpoint in .*full: run train_full.py first\."):
        stage.load_model()
    with pytest.raises(StageError, match=r"run train_full\.py first"):
        stage.load_record()
    stage.save_state([np.zeros(2)], {"step": 1})
    assert not stage.done
    stage.finish(RECORD, network)
    assert stage.done
    assert stage.load_record() == RECORD
    back = stage.load_model()
    assert all(np.array_equal(a, b) for a, b in zip(network.get_weights(), back.get_weights(), strict=True))
    assert sorted(path.name for path in stage.folder.iterdir()) == ["model.keras", "stage.json"]


def test_state_comes_back_exactly(run):
    arrays = [np.float32([[1e-45, -0.0, np.pi]]), np.array(3, np.int64), np.zeros((0,), np.float32)]
    stage = run.stage("pruned")
    assert stage.load_state() is None
    stage.save_state(arrays, {"step": 7, "history": {"loss": [None, 0.25]}})
    back, progress = run.stage("pruned").load_state()
    assert [(a.tobytes(), a.shape, a.dtype) for a in back] == [(a.tobytes(), a.shape, a.dtype) for a in arrays]
    assert progress == {"step": 7, "history": {"loss": [None, 0.25]}}


def test_time_spent_before_an_interruption_counts(run, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(run_folder.time, "monotonic", lambda: now[0])
    first = run.stage("full")
    now[0] = 130.0
    first.save_state([], {"step": 1})
    now[0] = 1000.0
    second = run.stage("full")
    second.load_state()
    now[0] = 1005.0
    assert second.seconds == 35.0


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-10], lambda b: b[:40], lambda b: b"", lambda b: b.replace(b"A", b"B", 3)]
)
def test_a_damaged_state_or_record_is_refused_in_one_line(run, damage):
    stage = run.stage("full")
    stage.save_state([np.full(500, 0x41414141)], {"step": 7})
    stage.state_path.write_bytes(damage(stage.state_path.read_bytes()))
    with pytest.raises(FormatError, match=r"damaged.*train_full.py --run .* --force") as raised:
        stage.load_state()
    assert "\n" not in str(raised.value)
    stage.finish({"stage": "full"})
    for text in ("", "{", "[1]", '{"stage": ', '{"stage": "full"}'):
        stage.record_path.write_text(text)
        with pytest.raises(FormatError, match=r"damaged.*--force"):
            stage.load_record()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"history": [1]}, "history of it is '[1]', not of type dict"),
        ({"history": {"loss": 1}}, "loss of history"),
        ({"layers": {}}, "layers of it"),
        ({"layers": [1]}, "a layer must have name"),
        ({"layers": [{"name": 1}]}, "a layer must have name"),
        ({"layers": [{"name": "a", "shape": 3, "weights": 1, "nonzero": 1, "centroids": 1}]}, "shape of a layer"),
        ({"data": "digits"}, "data of it"),
        ({"data": {}}, "data must have name"),
        ({"parameters": "9"}, "parameters of it is '9', not of type int"),
        ({"steps": True}, "steps of it"),
        ({"seconds": None}, "seconds of it"),
    ],
)
def test_a_record_of_wrong_types_is_refused_in_one_line(run, wrong, says):
    stage = run.stage("full")
    stage.finish(RECORD | {"seconds": 3, "test_error": None})
    assert stage.load_record()["seconds"] == 3
    stage.finish(RECORD | wrong)
    with pytest.raises(FormatError) as raised:
        stage.load_record()
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    stage.record_path.write_text("[" * 100_000)
    with pytest.raises(FormatError, match="damaged"):
        stage.load_record()


def test_two_scripts_do_not_work_in_one_folder(run):
    """Once the second one removed the temporary files of the first, which then failed."""
    with run.locked():
        for shared in (False, True):
            with pytest.raises(StageError, match="Another script is at work in"), run.locked(shared=shared):
                pass
        (run.folder / "kept").write_text("")
    with run.locked(shared=True), run.locked(shared=True):  # workers that train together
        pass
    with run.locked():
        assert [path.name for path in run.folder.iterdir()] == ["kept"]


def test_a_folder_that_stays_empty_is_removed_again(run):
    with pytest.raises(ValueError, match="no data"), run.locked():
        raise ValueError("no data")
    assert not run.folder.exists()


def test_a_file_in_place_of_the_run_folder_is_one_line(run):
    run.folder.write_text("")
    for folder in (run.folder, run.folder / "deeper"):
        with pytest.raises(OutputError, match="cannot be a run folder"), run_folder.Run(folder).locked():
            pass


def test_a_stage_begun_anew_loses_nothing_before_its_first_write(run):
    for name in run_folder.STAGES:
        run.stage(name).finish({"stage": name})
    write_text(run.recipe_path, "old")
    stage = run.stage("pruned")
    stage.begin("new", anew=True)
    assert stage.load_state() is None
    assert all(run.stage(name).done for name in run_folder.STAGES)
    assert run.recipe_path.read_text() == "old"
    stage.save_state([], {"step": 1})
    assert [run.stage(name).done for name in run_folder.STAGES] == [True, False, False, False]
    assert run.recipe_path.read_text() == "new"
    stage.save_state([], {"step": 2})
    assert stage.load_state() == ([], {"step": 2})


def test_redoing_a_stage_drops_it_and_the_later_ones(run):
    for name in run_folder.STAGES:
        run.stage(name).finish({"stage": name})
    run.discard_from("pruned")
    assert [run.stage(name).done for name in run_folder.STAGES] == [True, False, False, False]


def test_killed_while_saving_a_state_is_whole_and_its_leftovers_are_swept(tmp_path):
    script = (
        "import sys, numpy as np\n"
        "from deepcomp.experiment.run_folder import Run\n"
        "stage = Run(sys.argv[1]).stage('full')\n"
        "for step in range(1, 10**6):\n"
        "    stage.save_state([np.full(300_000, step, np.float32)], {'step': step})\n"
        "    print(step, flush=True)\n"
    )
    for delay in range(1, 6):
        process = subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True)
        for _ in range(delay):
            told = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        process.wait()
        stage = run_folder.Run(tmp_path).stage("full")
        (array,), progress = stage.load_state()
        assert progress["step"] >= told
        assert np.all(array == progress["step"])
        stage.begin(None, anew=False)
        assert [path.name for path in stage.folder.iterdir()] == ["state.npz"]


def test_a_scan_goes_when_the_full_network_does(run):
    run.write_scan({"sparsities": [0, 0.5]})
    run.scan_picture_path.write_bytes(b"png")
    assert run.scan_path.read_text() == '{\n "sparsities": [\n  0,\n  0.5\n ]\n}\n'
    run.discard_from("pruned")
    assert sorted(path.name for path in run.folder.iterdir()) == ["scan.json", "scan.png"]
    run.discard_from("full")
    assert list(run.folder.iterdir()) == []
