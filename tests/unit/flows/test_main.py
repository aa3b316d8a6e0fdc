"""The command that runs flows: what it makes of its arguments, before Prefect is asked."""

from pathlib import Path

import pytest

from flows.__main__ import main, require_prefect
from flows.environment import client_environment, server_environment
from promptstore.errors import StoreUnavailableError


def test_an_unknown_flow_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["retune", "--parameters", "x.json"])
    assert ended.value.code == 2
    assert "invalid choice: 'retune'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"tasks": []}', "tasks: List should have at least 1 item"),
        ('{"tasks": ["a.toml"], "step": 3}', "step: Extra inputs are not permitted"),
        ("[1]", "the file: Input should be an object"),
        ("{", "the file: Invalid JSON"),
    ],
)
def test_wrong_parameters_are_named_in_one_line(
    tmp_path: Path, content: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.json").write_text(content)
    assert main(["tune", "--parameters", str(tmp_path / "p.json")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --parameters")
    assert said in line


def test_a_missing_parameter_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--parameters", str(tmp_path / "none.json")]) == 1
    assert "none.json: No such file" in capsys.readouterr().err


def test_environments_are_private_and_send_nothing_to_anybody(tmp_path: Path) -> None:
    for found in (server_environment(tmp_path, 4321), client_environment(tmp_path, 4321)):
        assert found["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
        assert found["DO_NOT_TRACK"] == "1"
        assert found["PREFECT_HOME"] == str(tmp_path)
        assert found["PREFECT_API_URL"] == "http://127.0.0.1:4321/api"


def test_no_server_is_found_out_before_anything_is_begun() -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(StoreUnavailableError, match=r"does not answer at http://127\.0\.0\.1:9/api"),
    ):
        require_prefect(wait_s=0.6)
