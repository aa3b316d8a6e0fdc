"""What a shell needs to complete our commands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).with_name("promptstore")


def said(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [PROGRAM, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_of_a_shell_is_shown(shell: str) -> None:
    """The variable stands for a look at which shell our parent is, which finds none under some test runners."""
    script = said("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "promptstore" in script
    assert f"_PROMPTSTORE_COMPLETE=complete_{shell}" in script


def test_a_command_is_completed() -> None:
    asked = {"_PROMPTSTORE_COMPLETE": "complete_bash", "COMP_WORDS": "promptstore task ch", "COMP_CWORD": "2"}
    assert said(**asked).split() == ["check"]
