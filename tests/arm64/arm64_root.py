"""A small aarch64 world under qemu-user: Debian's Python, NumPy and LiteRT's own ARM wheel, in .cache/arm64.

Made once, of packages from this machine's package sources; nothing is installed. What is missing is named, and the
tests skip.
"""

import fcntl
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

CACHE = pathlib.Path(__file__).resolve().parents[2] / ".cache" / "arm64"
_DEBS = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6")
_WHEELS = ("numpy", "flatbuffers", "tqdm", "typing_extensions", "protobuf", "backports.strenum", "ml_dtypes")
_PLATFORMS = ("manylinux_2_27_aarch64", "manylinux_2_28_aarch64", "manylinux2014_aarch64", "any")
# LiteRT asks the kernel's list for the processor's features; they are those of qemu's cortex-a53 (no dot products).
_CPUINFO = """processor\t: 0
BogoMIPS\t: 100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd03
CPU revision\t: 4

"""
# Never qemu's default processor: version 7.2 gives wrong int8 results there (SME).
CPU = "cortex-a53"


def root():
    """The folder of that world, made on the first call; skips with the reason where that is impossible."""
    if shutil.which("qemu-aarch64-static") is None:
        pytest.skip("qemu-user-static is not installed (Debian, as root: .ci/system_packages)")
    done = CACHE / "done"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # parallel workers share the cache
        if not done.exists():
            if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
                pytest.skip("the aarch64 packages come through apt-get, which is not here")
            for name in ("apt", "root", "wheels"):  # what an earlier try left
                shutil.rmtree(CACHE / name, ignore_errors=True)
            try:
                _debian(CACHE / "root")
                _wheels(CACHE / "root/usr/lib/python3/dist-packages")
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                pytest.skip(f"the aarch64 packages cannot be had: {(error.stderr or str(error))[-300:]}")
            (CACHE / "root/proc").mkdir(exist_ok=True)
            (CACHE / "root/proc/cpuinfo").write_text(_CPUINFO)
            done.touch()
    return CACHE / "root"


def _run(command, **options):
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=600, **options)


def _debian(target):
    apt = CACHE / "apt"
    for folder in ("lists/partial", "archives/partial", "parts"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()
    for path in [pathlib.Path("/etc/apt/sources.list"), *pathlib.Path("/etc/apt/sources.list.d").glob("*")]:
        if path.exists() and path.suffix in (".list", ".sources"):
            # Sources of one architecture only are other people's.
            text = path.read_text()
            if not re.search(r"Architectures:|\[.*arch=", text):
                (apt / "parts" / path.name).write_text(text)
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",
        "Dir::State::status": apt / "status",
        "Dir::State::lists": apt / "lists",
        "Dir::Cache": apt,
        "Dir::Cache::archives": apt / "archives",
        "Dir::Etc::sourceparts": apt / "parts",
        "Dir::Etc::sourcelist": "/dev/null",
    }
    flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    _run(["apt-get", "-qq", *flags, "update"])
    _run(["apt-get", "-qq", *flags, "--yes", "--no-install-recommends", "--download-only", "install", *_DEBS])
    target.mkdir()
    for package in sorted((apt / "archives").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(target)])


def _wheels(target):
    import importlib.metadata

    folder = CACHE / "wheels"
    version = importlib.metadata.version("ai-edge-litert")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
        str(folder),
    ]
    command += [word for name in _PLATFORMS for word in ("--platform", name)]
    # Debian 12 has Python 3.11, whatever runs these tests.
    command += ["--python-version", "3.11", "--implementation", "cp"]
    command += [word for name in ("cp311", "abi3", "none") for word in ("--abi", name)]
    # Resolved apart, without NumPy's Python floor of this machine: the newest that have wheels for 3.11.
    _run([*command, f"ai-edge-litert=={version}", *_WHEELS])
    target.mkdir(parents=True, exist_ok=True)
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)


def run_python(arguments, timeout_s=240):
    """Runs the aarch64 Python; returns what it printed."""
    world = root()
    command = ["qemu-aarch64-static", "-cpu", CPU, "-L", str(world)]
    command += ["-E", f"LD_LIBRARY_PATH={world}/usr/lib/aarch64-linux-gnu", "-E", f"PYTHONHOME={world}/usr"]
    command += ["-E", f"PYTHONPATH={world}/usr/lib/python3/dist-packages"]
    command += [str(world / "usr/bin/python3.11"), *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment)
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout
