"""A phone without a phone: a real `adbd` on this machine, reached by a real `adb`, with a program that runs models.

`adbd` is built once from Debian's own source package android-platform-tools and kept in .cache/adbd. Nothing is
installed here: what is missing is named, and the tests skip. On Debian 12, `.ci/system_packages` (as root) installs
what is needed; `.ci/run` calls it.
"""

import contextlib
import fcntl
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

CACHE = pathlib.Path(__file__).resolve().parents[2] / ".cache" / "adbd"
_PACKAGE = "android-platform-tools"
_HEADERS = ("android-base/file.h", "cutils/sockets.h", "openssl/base.h")
_LIBRARIES = pathlib.Path("/usr/lib/x86_64-linux-gnu/android")
_SOURCES = [
    "adb",
    "adb_io",
    "adb_listeners",
    "adb_trace",
    "adb_unique_fd",
    "adb_utils",
    "fdevent/fdevent",
    "fdevent/fdevent_poll",
    "fdevent/fdevent_epoll",
    "services",
    "sockets",
    "socket_spec",
    "sysdeps/errno",
    "sysdeps_unix",
    "sysdeps/posix/network",
    "transport",
    "transport_fd",
    "transport_local",
    "transport_usb",
    "types",
    "daemon/auth",
    "daemon/jdwp_service",
    "daemon/usb_dummy",
    "daemon/file_sync_service",
    "daemon/services",
    "daemon/shell_service",
    "daemon/main",
    "shell_service_protocol",
    "adbconnection/adbconnection_server",
]


def adbd():
    """The path of adbd, built on the first call; skips with the reason where that is impossible."""
    if shutil.which("adb") is None:
        pytest.skip("adb is not installed (Debian, as root: .ci/system_packages)")
    built = CACHE / "adbd"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # parallel workers share the cache
        if not built.exists():
            _build(built)
    return built


def _build(built):
    missing = [name for name in ("clang++", "apt-get", "dpkg-source") if shutil.which(name) is None]
    include = pathlib.Path("/usr/include/android")
    missing += [name for name in _HEADERS if not (include / name).exists()]
    if missing:
        pytest.skip(
            f"adbd cannot be built: missing {', '.join(missing)} (Debian, as root: .ci/system_packages)"
        )
    try:
        source = _source()
        _compile(source, built)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError) as error:
        said = getattr(error, "stderr", None) or str(error)
        pytest.skip(f"adbd cannot be built: {said[-300:]}")


def _source():
    folder = CACHE / "source"
    if (folder / "system/core/adb").is_dir():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    described = sorted(CACHE.glob(f"{_PACKAGE}_*.dsc"))
    if not described:
        _download()
        described = sorted(CACHE.glob(f"{_PACKAGE}_*.dsc"))
    command = ["dpkg-source", "--no-check", "-x", str(described[-1]), str(folder)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return folder


def _download():
    """The source package, from the package sources of this machine, without changing its settings."""
    parts, lists = CACHE / "sources.list.d", CACHE / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    parts.mkdir(exist_ok=True)
    found = [pathlib.Path("/etc/apt/sources.list"), *pathlib.Path("/etc/apt/sources.list.d").glob("*")]
    for path in found:
        if path.exists() and path.suffix in (".list", ".sources"):
            text = re.sub(r"^Types: deb$", "Types: deb-src", path.read_text(), flags=re.MULTILINE)
            text = re.sub(r"^deb ", "deb-src ", text, flags=re.MULTILINE)
            (parts / path.name).write_text(text)
    options = [
        f"Dir::Etc::sourceparts={parts}",
        "Dir::Etc::sourcelist=/dev/null",
        f"Dir::State::lists={lists}",
    ]
    flags = [word for option in (*options, "APT::Sandbox::User=root") for word in ("-o", option)]
    for words in (["update"], ["source", "--download-only", _PACKAGE]):
        command = ["apt-get", "-qq", *flags, *words]
        subprocess.run(command, cwd=CACHE, check=True, capture_output=True, text=True, timeout=300)


def _compile(source, built):
    objects = CACHE / "objects"
    objects.mkdir(exist_ok=True)
    core = source / "system/core"
    adb = core / "adb"
    # The version numbers are those that the host's build gets; no authentication, because nobody could answer it.
    flags = [
        "-std=gnu++2a",
        "-O1",
        "-fPIC",
        "-fno-exceptions",
        "-Wno-everything",
        "-D_GNU_SOURCE",
        "-DADB_HOST=0",
    ]
    flags += [
        "-DALLOW_ADBD_ROOT=0",
        "-DALLOW_ADBD_NO_AUTH=1",
        "-DANDROID_BASE_UNIQUE_FD_DISABLE_IMPLICIT_CONVERSION=1",
    ]
    flags += ['-DPLATFORM_TOOLS_VERSION="29.0.6"', '-DADB_VERSION="29.0.6"', "-I/usr/include/android"]
    folders = [adb, adb / "daemon/include", adb / "adbconnection/include", core / "include"]
    folders += [
        core / part / "include"
        for part in ("base", "diagnose_usb", "libcrypto_utils", "libcutils", "libasyncio")
    ]
    folders += [core / "liblog/include", source / "frameworks/native/libs/adbd_auth/include"]
    flags += [f"-I{folder}" for folder in folders]
    files = {adb / f"{name}.cpp": [] for name in _SOURCES}
    files |= {core / "diagnose_usb/diagnose_usb.cpp": [], core / "libasyncio/AsyncIO.cpp": []}
    files[source / "frameworks/native/libs/adbd_auth/adbd_auth.cpp"] = [
        "-include",
        "atomic",
        "-include",
        "optional",
    ]
    key = next((core / "libcrypto_utils").glob("android_pubkey.c*"))
    files[key] = []
    running, made = [], []
    for path, extra in files.items():
        target = objects / (re.sub(r"\W+", "_", str(path.relative_to(source))) + ".o")
        made.append(str(target))
        compiler = (
            ["clang++", *flags]
            if path.suffix == ".cpp"
            else ["clang", "-O1", "-fPIC", *flags[-len(folders) - 1 :]]
        )
        running.append(
            subprocess.Popen(
                [*compiler, *extra, "-c", str(path), "-o", str(target)], stderr=subprocess.PIPE, text=True
            )
        )
        while sum(process.poll() is None for process in running) >= (os.cpu_count() or 1):
            time.sleep(0.02)
    for process in running:
        _, said = process.communicate(timeout=300)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args, stderr=said)
    partial = built.with_name("adbd.partial")
    link = ["clang++", "-o", str(partial), *made, f"-L{_LIBRARIES}", f"-Wl,-rpath={_LIBRARIES}"]
    link += ["-lbase", "-lcutils", "-llog", "-lcrypto", "-lcap", "-lresolv", "-lutil", "-lpthread"]
    subprocess.run(link, check=True, capture_output=True, text=True, timeout=120)
    partial.replace(built)
    # Half a gigabyte that nobody reads again.
    for path in CACHE.iterdir():
        if path.name not in (built.name, "lock"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


# --- the phone ---

_LAUNCHER = """
#include <unistd.h>
const char* volatile held = HOLDS;
int main(int argc, char** argv) {
  char* words[argc + 2];
  words[0] = (char*)PYTHON;
  words[1] = (char*)SCRIPT;
  for (int i = 1; i <= argc; ++i) words[i + 1] = argv[i];
  execv(PYTHON, words);
  return 126;
}
"""

_PROPERTIES = {
    "ro.product.manufacturer": "Nobody",
    "ro.product.model": "Test Phone 1",
    "ro.build.version.release": "14",
    "ro.build.version.sdk": "34",
    "ro.product.cpu.abilist": "x86_64,x86",
    "ro.soc.manufacturer": "Loopback",
    "ro.soc.model": "L1",
}


def benchmark_program(folder, name="benchmark_model", holds=""):
    """An ELF program of that name, which runs device_benchmark.py with this Python and holds a text."""
    if shutil.which("clang") is None:
        pytest.skip("clang is not installed")
    script = pathlib.Path(__file__).with_name("device_benchmark.py")
    source, target = folder / f"{name}.c", folder / name
    folder.mkdir(parents=True, exist_ok=True)
    source.write_text(_LAUNCHER)
    command = [
        "clang",
        "-O1",
        "-w",
        f'-DPYTHON="{sys.executable}"',
        f'-DSCRIPT="{script}"',
        f'-DHOLDS="{holds}"',
        str(source),
        "-o",
        str(target),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    source.unlink()
    return target


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Phone:
    """A running adbd and the adb server that knows it; `serial` is its name there."""

    def __init__(self, folder, properties=None):
        self.folder = folder
        self.port = free_port()
        self.serial = f"127.0.0.1:{self.port}"
        self.properties = _PROPERTIES if properties is None else properties
        self.process = None

    def start(self):
        programs = self.folder / "bin"
        programs.mkdir(parents=True, exist_ok=True)
        lines = "\n".join(f"echo '[{name}]: [{value}]'" for name, value in self.properties.items())
        self.program("getprop", lines)
        self.program("dumpsys", "echo '  temperature: 312'")
        environment = {**os.environ, "ADBD_PORT": str(self.port), "PATH": f"{programs}:{os.environ['PATH']}"}
        environment |= {"HOME": str(self.folder)}
        self.process = subprocess.Popen(
            [str(adbd())],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
        )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            done = subprocess.run(["adb", "connect", self.serial], capture_output=True, text=True, timeout=30)
            listed = subprocess.run(["adb", "devices"], capture_output=True, text=True, timeout=30).stdout
            if f"{self.serial}\tdevice" in listed:
                return self
            time.sleep(0.1)
        pytest.skip(f"adb cannot reach adbd on loopback here: {done.stdout} {done.stderr}")

    def program(self, name, script):
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def stop(self):
        """The device goes away, at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def end_orphans(serial, mark):
    """What a phone that is gone leaves on this machine: programs whose command line holds a text."""
    subprocess.run(["adb", "disconnect", serial], capture_output=True, timeout=30)
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError, ValueError):
            words = path.read_bytes().decode(errors="replace")
            if mark in words and "device_benchmark.py" in words:
                os.kill(int(path.parent.name), signal.SIGKILL)


@contextlib.contextmanager
def adb_server(folder):
    """An adb server of our own port and home, so that nobody's devices and keys are touched."""
    before = {name: os.environ.get(name) for name in ("ANDROID_ADB_SERVER_PORT", "HOME")}
    os.environ["ANDROID_ADB_SERVER_PORT"] = str(free_port())
    os.environ["HOME"] = str(folder)
    try:
        subprocess.run(["adb", "start-server"], capture_output=True, timeout=60)
        yield
        subprocess.run(["adb", "kill-server"], capture_output=True, timeout=60)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
