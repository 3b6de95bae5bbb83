"""What a phone says of itself: its model, its processor, its heat and its clocks."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tflite_tools.benchmarking.adb import Device
from tflite_tools.benchmarking.phone_result import PhoneState

# uname's names of the ABIs, for devices without getprop.
_MACHINES = {
    "aarch64": ("arm64-v8a",),
    "armv8l": ("armeabi-v7a",),
    "armv7l": ("armeabi-v7a",),
    "x86_64": ("x86_64", "x86"),
    "i686": ("x86",),
    "riscv64": ("riscv64",),
}
# Thermal zones of processors are called by many names; those of the battery, the skin and the radio are not these.
_PROCESSOR_ZONE = re.compile(r"cpu|soc|tsens|x86_pkg|core|cluster|little|big|mtktscpu", re.IGNORECASE)

# One round trip; whatever a device lacks prints nothing. No part of it comes from a user.
_STATE = (
    "dumpsys battery 2>/dev/null | grep temperature; "
    "for z in /sys/class/thermal/thermal_zone*; do "
    'echo "zone $(cat $z/type 2>/dev/null) $(cat $z/temp 2>/dev/null)"; done; '
    "for c in /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq; do "
    'echo "clock $(cat $c 2>/dev/null)"; done; true'
)


@dataclass(frozen=True)
class PhoneFacts:
    """What does not change while a benchmark runs."""

    model: str | None
    android: str | None
    sdk: int | None
    abis: tuple[str, ...]
    soc: str | None
    cores: int | None

    @property
    def name(self) -> str:
        """The device in a few words."""
        parts = [self.model or "unknown model", f"Android {self.android}" if self.android else None, self.soc]
        parts += [f"{self.cores} cores" if self.cores else None, self.abis[0] if self.abis else None]
        return ", ".join(part for part in parts if part)


def phone_facts(device: Device) -> PhoneFacts:
    """Reads model, Android version, ABIs, SoC and cores; what a device does not tell is None."""
    found = device.properties()
    _, machine = device.script("uname -m", check=False)
    _, cores = device.script("ls -d /sys/devices/system/cpu/cpu[0-9]* | wc -l", check=False)
    abis = found.get("ro.product.cpu.abilist") or found.get("ro.product.cpu.abi") or ""
    model = " ".join(filter(None, (found.get("ro.product.manufacturer"), found.get("ro.product.model"))))
    soc = " ".join(filter(None, (found.get("ro.soc.manufacturer"), found.get("ro.soc.model"))))
    sdk = found.get("ro.build.version.sdk", "")
    return PhoneFacts(
        model=model or None,
        android=found.get("ro.build.version.release") or None,
        sdk=int(sdk) if sdk.isdigit() else None,
        abis=tuple(abi for abi in abis.split(",") if abi) or _MACHINES.get(machine.strip(), ()),
        soc=soc or found.get("ro.board.platform") or found.get("ro.hardware") or None,
        cores=int(cores) if cores.strip().isdigit() and int(cores) else None,
    )


def phone_state(device: Device) -> PhoneState:
    """Temperatures and clocks at this moment."""
    return read_state(device.script(_STATE, check=False)[1])


def read_state(text: str) -> PhoneState:
    """From the lines of the device to degrees and kilohertz."""
    battery = re.search(r"^\s*temperature: (\d+)", text, re.MULTILINE)
    zones = [
        # Kernels report thousandths of a degree, old ones whole degrees.
        int(value) / 1000 if abs(int(value)) >= 1000 else float(value)
        for name, value in re.findall(r"^zone (\S+) (-?\d+)$", text, re.MULTILINE)
        if _PROCESSOR_ZONE.search(name)
    ]
    # Switched-off sensors report 0 or nonsense.
    zones = [value for value in zones if 0 < value < 150]
    return PhoneState(
        battery_celsius=int(battery[1]) / 10 if battery else None,
        processor_celsius=max(zones) if zones else None,
        clocks_khz=tuple(int(value) for value in re.findall(r"^clock (\d+)$", text, re.MULTILINE)),
    )
