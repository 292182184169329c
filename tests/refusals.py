"""What `train` says as it refuses."""

from __future__ import annotations

import pytest

from gpt_ablate.launching import launch


def refusal(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    """The refusal of these arguments: exit code 2, and nothing but lines of its own on standard error."""
    monkeypatch.setattr("sys.argv", ["train", *arguments])
    with pytest.raises(SystemExit) as stop:
        launch.main()
    told = capfd.readouterr()
    assert stop.value.code == 2, told
    assert told.out == ""
    assert all(line.startswith("gpt_ablate: ") for line in told.err.splitlines()), told.err
    return told.err
