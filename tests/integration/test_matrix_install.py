"""What brings the stores of `make matrix`: a Go, a Cargo and an apt of the test's, which build and install nothing."""

from pathlib import Path

import pytest

from infra.local.install import InstallError
from tests.matrix.stores import install


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose programs come first; the cache is empty, and of stores nothing is found."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("BUCKETBELL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def write(folder: Path, name: str, script: str) -> None:
    """A program of the test's."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def test_seaweedfs_is_built_from_a_copy_of_the_module(programs: Path) -> None:
    """Go's own copy is read-only, and the build writes: it gets one that can be written to, and that goes again."""
    module = programs / "module"
    (module / "weed").mkdir(parents=True)
    (module / "go.mod").write_text("module seaweedfs\n")
    for path in (module / "go.mod", module / "weed", module):
        path.chmod(0o555)
    write(
        programs,
        "go",
        f"""if [ "$1" = version ]; then echo "go version go1.26.0 linux/amd64"; exit; fi
if [ "$1" = mod ]; then echo '{{"Path": "seaweedfs", "Dir": "{module}"}}'; exit; fi
[ "$1 $2" = "build -C" ] && cd "$3" && [ -w go.mod ] && touch weed/written && echo "$3" > "$8" && chmod +x "$8" """,
    )
    said: list[str] = []
    built = install.build_seaweedfs(said.append)
    assert built == programs / "cache" / "bin" / "weed"
    assert not Path(built.read_text().strip()).exists()
    assert install.build_seaweedfs(said.append) == built
    assert "is there" in said[-1]


def test_a_module_that_cannot_be_had_is_named(programs: Path) -> None:
    """With what Go says about it."""
    write(
        programs,
        "go",
        'if [ "$1" = version ]; then echo "go version go1.26.0 linux/amd64"; exit; fi; '
        'echo \'{"Error": "no such host"}\'; exit 1',
    )
    with pytest.raises(InstallError, match="could not download SeaweedFS: no such host"):
        install.build_seaweedfs(print)


def test_garage_is_built_into_the_cache(programs: Path) -> None:
    """Pinned, with the versions that its authors tested; what Cargo says is shown when it fails."""
    write(programs, "cargo", 'echo "$@"; echo "error: no space"; exit 101')
    with pytest.raises(
        InstallError, match=rf"(?s)install garage --version {install.GARAGE_VERSION} --locked.*no space"
    ):
        install.build_garage(print)
    write(programs, "cargo", 'for root; do :; done; touch "$root/bin/garage"; chmod +x "$root/bin/garage"')
    (programs / "cache" / "bin").mkdir(parents=True)
    assert install.build_garage(print) == programs / "cache" / "bin" / "garage"


def test_without_cargo_it_says_what_to_install(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rust is what people know it by."""
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(InstallError, match="Cargo is not here: install Rust"):
        install.build_garage(print)


def test_ceph_is_installed_with_its_services_off(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All packages in one call of apt-get; when that fails, the command to type."""
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(install, "_CEPH_DIRECTORIES", ())
    monkeypatch.setattr("os.geteuid", lambda: 0)
    script = 'for one in $1; do echo "package:$one"; done; for one in $2; do echo "unit:$one"; done; exit 1'
    monkeypatch.setattr(install, "APT_SCRIPT", script)
    write(programs, "apt-get", "exit 0")
    with pytest.raises(
        InstallError, match=r"(?s)package:radosgw.*package:ceph-common.*unit:ceph.target.*Type: sudo apt"
    ):
        install.install_ceph(print)


def test_the_exit_status_says_whether_it_is_here(programs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """1 with the reason on standard error."""
    write(programs, "go", 'echo "go version go1.19.8 linux/amd64"')
    assert install.main(["seaweedfs"]) == 1
    assert "too old to build SeaweedFS" in capsys.readouterr().err
    write(programs, "weed", "")
    assert install.main(["seaweedfs"]) == 0
