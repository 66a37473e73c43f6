from benchmarks import callbacks


def test_both_parts_run_on_little(capsys):
    callbacks.main(["--steps", "3", "--batch", "4", "--turns", "1"])
    callbacks.main(["--accuracy", "--steps", "4", "--seeds", "1"])
    shown = capsys.readouterr().out
    assert "sharing" in shown
    assert "mean difference" in shown
