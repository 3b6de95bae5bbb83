"""Flash and memory of common boards, with the document that each figure is from."""

from __future__ import annotations

from dataclasses import dataclass

from tflite_tools.errors import nearest
from tflite_tools.records import Record

_KIB, _MIB = 1024, 1024 * 1024


@dataclass(frozen=True)
class Board(Record):
    """One board.

    Attributes:
      flash_bytes: memory for program and model.
      ram_bytes: all of the static memory on the chip. External memory is not counted.
      largest_block_bytes: the largest part of it that is in one piece, as an arena has to be.
      source: where the figures are published.
    """

    name: str
    processor: str
    flash_bytes: int
    ram_bytes: int
    largest_block_bytes: int
    source: str


def _board(
    name: str, processor: str, flash_kib: int, ram_kib: int, source: str, block_kib: int | None = None
) -> Board:
    return Board(name, processor, flash_kib * _KIB, ram_kib * _KIB, (block_kib or ram_kib) * _KIB, source)


BOARDS = {
    "arduino-nano-33-ble": _board(
        "Arduino Nano 33 BLE (Sense)", "nRF52840, Cortex-M4F", 1024, 256,
        "Arduino documentation, Nano 33 BLE, tech specs (https://docs.arduino.cc/hardware/nano-33-ble/)",
    ),
    "nrf52840-dk": _board(
        "Nordic nRF52840 DK", "nRF52840, Cortex-M4F", 1024, 256,
        "Nordic nRF52840 Product Specification, Memory (https://www.nordicsemi.com/Products/nRF52840)",
    ),
    "nrf5340-dk": _board(
        "Nordic nRF5340 DK, application core", "nRF5340, Cortex-M33", 1024, 512,
        "Nordic nRF5340 Product Specification, Memory (https://www.nordicsemi.com/Products/nRF5340)",
    ),
    "microbit-v2": _board(
        "BBC micro:bit V2", "nRF52833, Cortex-M4F", 512, 128,
        "micro:bit developer community, hardware (https://tech.microbit.org/hardware/)",
    ),
    "raspberry-pi-pico": _board(
        "Raspberry Pi Pico (W)", "RP2040, Cortex-M0+", 2048, 264,
        "Raspberry Pi Pico datasheet and RP2040 datasheet, SRAM: six banks in one address range "
        "(https://datasheets.raspberrypi.com/pico/pico-datasheet.pdf)",
    ),
    "raspberry-pi-pico-2": _board(
        "Raspberry Pi Pico 2 (W)", "RP2350, Cortex-M33", 4096, 520,
        "Raspberry Pi Pico 2 datasheet (https://datasheets.raspberrypi.com/pico/pico-2-datasheet.pdf)",
    ),
    "esp32-devkitc": _board(
        "ESP32-DevKitC with ESP32-WROOM-32E, 4 MB", "ESP32, Xtensa LX6", 4096, 520,
        "ESP32 Series Datasheet, On-Chip Memory; programming guide, Heap Memory Allocation: static data has at most "
        "160 KB in one piece (https://docs.espressif.com/projects/esp-idf/en/stable/esp32/)",
        160,
    ),
    "esp32-s3": _board(
        "ESP32-S3-DevKitC-1 with ESP32-S3-WROOM-1-N8", "ESP32-S3, Xtensa LX7", 8192, 512,
        "ESP32-S3 Series Datasheet, On-Chip Memory: 512 KB SRAM; ESP32-S3-DevKitC-1 user guide: 8 MB flash "
        "(https://docs.espressif.com/projects/esp-dev-kits/); ESP-IDF, components/esp_system/ld/esp32s3/memory.ld.in: "
        "static data has 0x53700 bytes at most, the rest is caches, boot loader and instructions",
        333,
    ),
    "stm32f4-discovery": _board(
        "STM32F4 Discovery (STM32F407G-DISC1)", "STM32F407VG, Cortex-M4F", 1024, 192,
        "ST UM1472 and STM32F407 datasheet DS8626: 112 + 16 KB in one piece, 64 KB of CCM apart "
        "(https://www.st.com/en/evaluation-tools/stm32f4discovery.html)",
        128,
    ),
    "stm32f746-discovery": _board(
        "STM32F746G-DISCO", "STM32F746NG, Cortex-M7", 1024, 320,
        "STM32F746 datasheet DS10916: 64 + 240 + 16 KB in one address range "
        "(https://www.st.com/en/evaluation-tools/32f746gdiscovery.html)",
    ),
    "stm32h747-discovery": _board(
        "STM32H747I-DISCO", "STM32H747XI, Cortex-M7 and M4", 2048, 1024,
        "STM32H747 datasheet DS12930: AXI SRAM of 512 KB is the largest block "
        "(https://www.st.com/en/evaluation-tools/stm32h747i-disco.html)",
        512,
    ),
    "stm32l475-discovery": _board(
        "B-L475E-IOT01A", "STM32L475VG, Cortex-M4F", 1024, 128,
        "STM32L475 datasheet DS10969: 96 KB and 32 KB apart "
        "(https://www.st.com/en/evaluation-tools/b-l475e-iot01a.html)",
        96,
    ),
    "arduino-portenta-h7": _board(
        "Arduino Portenta H7", "STM32H747XI, Cortex-M7 and M4", 2048, 1024,
        "Arduino documentation, Portenta H7, tech specs (https://docs.arduino.cc/hardware/portenta-h7/); blocks as in "
        "the STM32H747 datasheet DS12930",
        512,
    ),
    "arduino-uno-r4": _board(
        "Arduino UNO R4 (Minima, WiFi)", "RA4M1, Cortex-M4F", 256, 32,
        "Arduino documentation, UNO R4 Minima, tech specs (https://docs.arduino.cc/hardware/uno-r4-minima/)",
    ),
    "arduino-zero": _board(
        "Arduino Zero", "SAMD21, Cortex-M0+", 256, 32,
        "Arduino documentation, Zero, tech specs (https://docs.arduino.cc/hardware/zero/)",
    ),
    "teensy-4.1": _board(
        "Teensy 4.1", "i.MX RT1062, Cortex-M7", 7936, 1024,
        "PJRC, Teensy 4.1, Memory: 512 KB of RAM1 shared with code, 512 KB of RAM2 "
        "(https://www.pjrc.com/store/teensy41.html)",
        512,
    ),
}  # fmt: skip


def find_board(name: str) -> Board:
    """The board of that key.

    Raises:
      ValueError: no such board; the nearest are named.

    Example:
      >>> find_board("raspberry-pi-pico").ram_bytes
      270336
    """
    if name not in BOARDS:
        raise ValueError(
            f"board must be one of {', '.join(BOARDS)}, got {name!r}.{nearest(name, BOARDS)} For another board give "
            "flash_bytes and arena_bytes."
        )
    return BOARDS[name]
