"""Which processor a program is for, from the first 20 bytes of its file."""

from __future__ import annotations

import pathlib
from typing import Literal

# e_machine and class (1: 32 bit, 2: 64 bit) -> the ABI's name on Android.
# Source: ELF specification, elf.h; Android NDK guide, "Android ABIs".
_ABIS = {
    (183, 2): "arm64-v8a",
    (40, 1): "armeabi-v7a",
    (62, 2): "x86_64",
    (3, 1): "x86",
    (243, 2): "riscv64",
}


def program_abi(path: pathlib.Path) -> str:
    """The Android ABI of a program.

    Raises:
      ValueError: the file is no ELF program, or one for a processor that Android does not run on.
    """
    with path.open("rb") as stream:
        head = stream.read(20)
    if head[:4] != b"\x7fELF" or len(head) < 20:
        what = f"starts with {head[:4]!r}" if head else "is empty"
        raise ValueError(f"{path} is no program for Android: an ELF file is expected, this one {what}.")
    order: Literal["little", "big"] = "little" if head[5] == 1 else "big"
    machine = int.from_bytes(head[18:20], order)
    abi = _ABIS.get((machine, head[4]))
    if abi is None:
        raise ValueError(f"{path} is a program for ELF machine {machine}, which Android does not run on.")
    return abi
