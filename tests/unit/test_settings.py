"""Settings as they travel to other machines."""

from pathlib import Path

import pytest

from promptstore.settings import load_settings


def test_another_machine_is_told_what_was_set_here_with_absolute_paths_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("STORE", "STATE_DIR", "MODEL"):
        monkeypatch.setenv(f"PROMPTSTORE_{name}", name.lower())
    monkeypatch.setenv("PROMPTSTORE_API_KEY", "not-for-others")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    monkeypatch.delenv("PROMPTSTORE_CACHE_DIR", raising=False)
    shared = load_settings(model="model").shared()
    assert shared["store"] == str(tmp_path / "store")
    assert shared["state_dir"] == tmp_path / "state_dir"
    assert shared["model"] == str(tmp_path / "model")
    assert shared["mlflow_uri"] == "http://127.0.0.1:5000"
    assert "cache_dir" not in shared, "where to cache is each machine's own business unless it was said"
    assert "not-for-others" not in repr(shared)
    monkeypatch.delenv("PROMPTSTORE_STORE")
    assert load_settings(**shared).store == str(tmp_path / "store")


def test_the_store_is_told_even_where_it_is_the_users_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMPTSTORE_STORE", raising=False)
    settings = load_settings()
    assert settings.shared()["store"] == settings.store_url
