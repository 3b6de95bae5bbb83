"""The fake phone of fake_phone.py, for every file of tests that needs one."""

import fake_phone
import pytest
import tiny_models

from tflite_tools import benchmark


@pytest.fixture(scope="module")
def phones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phones")
    fake_phone.adbd()  # skips here when there can be none
    with fake_phone.adb_server(folder):
        yield folder


@pytest.fixture(scope="module")
def phone(phones):
    started = fake_phone.Phone(phones / "phone").start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def program(phones):
    return fake_phone.benchmark_program(phones / 'it\'s $(touch gone) a "tool"; yes')


@pytest.fixture
def run(phone, program, tmp_path):
    """Benchmarks a small model on the phone, in a device folder of the test's own."""

    def start(**options):
        arguments = {
            "benchmark_binary": program,
            "serial": phone.serial,
            "device_dir": str(tmp_path / "device"),
            "num_runs": 5,
            "warmup_runs": 1,
            **options,
        }
        return benchmark(tiny_models.dense_float(), "android", **arguments)

    return start
