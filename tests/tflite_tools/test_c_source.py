"""The C array: compiled and read back, as C and as C++."""

import re
import shutil
import subprocess

import pytest

from tflite_tools import TFLiteArtifact, c_array

CONTENT = bytes(range(256)) * 3 + b"TFL3"

MAIN = """
#include <stdint.h>
#include <stdio.h>
#include "digits.h"
int main(void) {
  if ((uintptr_t)digits_data % 16 != 0) return 3;
  return fwrite(digits_data, 1, digits_data_len, stdout) == digits_data_len ? 0 : 4;
}
"""


def test_text_holds_every_byte_and_the_length(tmp_path):
    header, source = c_array(TFLiteArtifact(CONTENT), tmp_path / "new", "digits")
    assert (header.name, source.name) == ("digits.h", "digits.cc")
    text = source.read_text()
    body = re.search(r"digits_data\[\] = \{(.*?)\};", text, re.S).group(1)
    assert bytes(int(value, 16) for value in re.findall(r"0x[0-9a-f]{2}", body)) == CONTENT
    assert f"digits_data_len = {len(CONTENT)};" in text and "const unsigned char" in text
    assert max(map(len, text.splitlines())) <= 80
    guard = header.read_text()
    assert guard.index("#ifndef DIGITS_H_") < guard.index("#define DIGITS_H_") < guard.index("extern const")
    assert TFLiteArtifact(CONTENT).sha256 in guard


@pytest.mark.parametrize(("compiler", "flags"), [("gcc", ["-x", "c"]), ("g++", ["-x", "c++"])])
def test_compiled_array_is_aligned_and_equal(tmp_path, compiler, flags):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    _, source = c_array(TFLiteArtifact(CONTENT), tmp_path, "digits")
    (tmp_path / "main.c").write_text(MAIN)
    command = [compiler, "-Wall", "-Wextra", "-Werror", *flags, str(tmp_path / "main.c"), str(source)]
    subprocess.run([*command, "-o", str(tmp_path / "main")], check=True, capture_output=True)
    done = subprocess.run([str(tmp_path / "main")], check=True, capture_output=True)
    assert done.stdout == CONTENT


@pytest.mark.parametrize("name", ["", "2fast", "my-model", "a b", "x;"])
def test_names_must_be_identifiers(tmp_path, name):
    with pytest.raises(ValueError, match="C identifier"):
        c_array(TFLiteArtifact(CONTENT), tmp_path, name)
