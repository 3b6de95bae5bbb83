"""The user's own `adb`: which device, and commands on it whose exit status and end are known for certain."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import queue
import re
import shlex
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_SHORT_S, _PUSH_S = 30.0, 600.0
# What a device says that adb can see but not use.
_STATES = {
    "unauthorized": "unlock it and accept this computer's key in the dialog on its screen",
    "offline": "reconnect it, or run `adb reconnect`",
    "no permissions": "add a udev rule for it (Android developer documentation, 'Run apps on a hardware device')",
    "recovery": "start it normally",
    "sideload": "start it normally",
    "bootloader": "start it normally",
    "authorizing": "wait a moment and try again",
    "connecting": "wait a moment and try again",
}
_END = "tflite_tools_status_"


class DeviceError(RuntimeError):
    """Something about the device or the way to it; the message says what to do."""


class DeviceLostError(DeviceError):
    """The device went away in the middle."""


class DeviceTimeoutError(DeviceError):
    """A command on the device took longer than it was given."""


@dataclass(frozen=True)
class Attached:
    """A line of `adb devices -l`."""

    serial: str
    state: str
    description: str


def find_adb(path: str | os.PathLike[str] | None = None) -> str:
    """The adb program: the one given, or the one on PATH.

    Raises:
      FileNotFoundError: there is none.
    """
    found = shutil.which(os.fspath(path) if path is not None else "adb")
    if found is None:
        where = f"at {os.fspath(path)!r}" if path is not None else "on PATH"
        raise FileNotFoundError(
            f"There is no adb {where}. It is part of the Android SDK platform tools (Debian: apt-get install adb); "
            "name another place with adb (--adb)."
        )
    return found


def attached(adb: str) -> tuple[Attached, ...]:
    """Every device that adb sees, in whatever state."""
    done = _run([adb, "devices", "-l"], _SHORT_S)
    if done.returncode:
        raise DeviceError(f"`adb devices` failed: {_last(done.stderr or done.stdout)}")
    found = []
    for line in done.stdout.splitlines():
        match = re.match(r"^(\S+)\s+(no permissions|\S+)\s*(.*)$", line.strip())
        if match and not line.startswith(("List of devices", "*")):
            found.append(Attached(match[1], match[2], match[3]))
    return tuple(found)


def choose(devices: Sequence[Attached], serial: str | None) -> Attached:
    """The device to use.

    Raises:
      DeviceError: none, several without a serial, not the one that was named, or one that cannot be used. The message
        lists what is there and says what to do.
    """
    listed = "".join(f"\n  {d.serial} ({d.state}) {d.description}".rstrip() for d in devices)
    if not devices:
        raise DeviceError(
            "No device is attached. Connect one with USB debugging on (Settings, Developer options), or run `adb "
            "connect ADDRESS:PORT`; `adb devices` lists it then."
        )
    if serial is None:
        if len(devices) > 1:
            raise DeviceError(f"Several devices are attached; choose one with serial (--serial):{listed}")
        chosen = devices[0]
    else:
        named = [device for device in devices if device.serial == serial]
        if not named:
            raise DeviceError(f"No attached device has the serial {serial!r}. There are:{listed}")
        chosen = named[0]
    if chosen.state != "device":
        what = _STATES.get(chosen.state, "reconnect it")
        raise DeviceError(f"Device {chosen.serial} is in state {chosen.state!r}: {what}.")
    return chosen


class Device:
    """One device. Every word of a command is quoted for the device's shell."""

    def __init__(self, adb: str, serial: str) -> None:
        self.adb, self.serial = adb, serial

    def shell(
        self,
        words: Sequence[str],
        *,
        timeout_s: float = _SHORT_S,
        on_line: Callable[[str], None] | None = None,
        check: bool = True,
    ) -> tuple[int, str]:
        """Runs a program on the device and returns its exit status and what it printed, on both streams.

        Args:
          words: the program and its arguments.
          timeout_s: seconds after which it is given up.
          on_line: called with every line as it comes.
          check: a status other than 0 is an error.

        Raises:
          DeviceLostError, DeviceTimeoutError: as their names say.
          DeviceError: with `check`, the program failed.
        """
        return self.script(shlex.join(words), timeout_s=timeout_s, on_line=on_line, check=check)

    def script(
        self,
        script: str,
        *,
        timeout_s: float = _SHORT_S,
        on_line: Callable[[str], None] | None = None,
        check: bool = True,
    ) -> tuple[int, str]:
        """Like `shell`, for a line of shell script whose parts the caller has quoted."""
        # The last line carries the status: devices before Android 7 do not pass it on, and its absence tells a
        # broken connection from a program that failed. No program can print it, because no other run has this mark.
        mark = f"{_END}{uuid.uuid4().hex[:8]}="
        command = f"( {script} ) 2>&1; status=$?; echo; echo {mark}$status"
        process = subprocess.Popen(
            [self.adb, "-s", self.serial, "shell", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        lines: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            assert process.stdout is not None
            with contextlib.suppress(ValueError):  # closed by the other thread
                for line in process.stdout:
                    lines.put(line.rstrip("\r\n"))
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        said: list[str] = []
        status = None
        deadline = time.monotonic() + timeout_s
        try:
            while True:
                try:
                    line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    raise DeviceTimeoutError(
                        f"Device {self.serial} was still busy after {timeout_s:g} s with: {script[:200]}"
                    ) from None
                if line is None:
                    break
                if line.startswith(mark):
                    status = int(line[len(mark) :])
                    continue
                said.append(line)
                if on_line is not None:
                    on_line(line)
        finally:
            process.kill()
            process.wait()
        text = "\n".join(said).rstrip("\n")
        if status is None:
            raise DeviceLostError(f"Device {self.serial} went away: {_last(text) or 'the connection ended'}")
        if check and status:
            raise DeviceError(
                f"Device {self.serial}: {script[:200]} ended with status {status}: {_last(text)}"
            )
        return status, text

    def push(self, content: bytes | pathlib.Path, target: str) -> bool:
        """Puts a file on the device, unless it is there already with this size and SHA-256.

        Args:
          content: bytes, or a file here.
          target: the file there; its folder must exist.

        Returns:
          Whether anything was sent.

        Raises:
          DeviceLostError: the device went away.
          DeviceError: it did not arrive whole.
        """
        data = content if isinstance(content, bytes) else content.read_bytes()
        wanted = (len(data), hashlib.sha256(data).hexdigest())
        if self.identity(target) == wanted:
            return False
        import tempfile

        with tempfile.TemporaryDirectory(prefix="tflite_tools_push_") as folder:
            path = pathlib.Path(folder) / "file"
            path.write_bytes(data)
            done = _run([self.adb, "-s", self.serial, "push", str(path), target], _PUSH_S)
        if done.returncode:
            self.script("true")  # raises DeviceLostError where that is why
            raise DeviceError(
                f"Could not write {target} on {self.serial}: {_last(done.stderr or done.stdout)}"
            )
        there = self.identity(target)
        if there is not None and there != wanted:
            raise DeviceError(
                f"{target} did not arrive whole on {self.serial}: {there[0]} of {wanted[0]} bytes."
            )
        return True

    def identity(self, path: str) -> tuple[int, str] | None:
        """Size and SHA-256 of a file on the device; None where it is not there or the device cannot tell."""
        name = shlex.quote(path)
        status, text = self.script(f"wc -c < {name} && sha256sum < {name}", check=False)
        found = re.search(r"(\d+)\s+([0-9a-f]{64})\b", text)
        return (int(found[1]), found[2]) if status == 0 and found else None

    def properties(self) -> dict[str, str]:
        """What getprop lists; {} on a device without it."""
        status, text = self.script("getprop", check=False)
        return dict(re.findall(r"^\[([^\]]+)\]: \[(.*)\]$", text, re.MULTILINE)) if status == 0 else {}


def _run(command: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise DeviceTimeoutError(
            f"`{shlex.join(command[:4])} ...` was still busy after {timeout_s:g} s."
        ) from None


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
