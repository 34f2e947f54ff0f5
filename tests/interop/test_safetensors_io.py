"""Reading and writing safetensors: round trip, and every fault before anything is read."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.safetensors_io import SafetensorsFile, write_safetensors

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "scalar": np.array(7, np.int64),
    "empty": np.zeros((0, 4), np.float32),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "flags": np.array([True, False]),
}


def header_and_data(path):
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def rewrite(path, header, data):
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, TENSORS, {"made": "here"})
    return path


def test_tensors_come_back_bit_for_bit(written, tmp_path):
    file = SafetensorsFile(written)
    assert set(file) == set(TENSORS)
    assert file.metadata == {"made": "here"}
    for name, array in TENSORS.items():
        assert file[name].dtype == array.dtype
        assert file.shapes[name] == array.shape
        np.testing.assert_array_equal(file[name], array)
    copy = tmp_path / "copy.safetensors"
    write_safetensors(copy, file, file.metadata)
    assert copy.read_bytes() == written.read_bytes()


def test_the_format_is_the_libraries_own(written, tmp_path):
    plain = {name: np.ascontiguousarray(TENSORS[name]) for name in ("a", "scalar", "flags")}
    theirs = tmp_path / "theirs.safetensors"
    safetensors.numpy.save_file(plain, theirs)
    for name, array in SafetensorsFile(theirs).items():
        np.testing.assert_array_equal(array, plain[name])
    np.testing.assert_array_equal(
        safetensors.numpy.load_file(written)["transposed"], TENSORS["transposed"]
    )


@pytest.mark.parametrize("keep", [0, 4, 12, -1])
def test_a_truncated_file_is_refused(written, keep):
    raw = written.read_bytes()
    written.write_bytes(raw[:keep])
    with pytest.raises(InputError, match=r"x\.safetensors: .*truncated"):
        SafetensorsFile(written)


def test_a_header_length_beyond_the_file_allocates_nothing(written):
    written.write_bytes(struct.pack("<Q", 2**62) + written.read_bytes()[8:])
    with pytest.raises(InputError, match="truncated, or not a safetensors file"):
        SafetensorsFile(written)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [2, 4]}, "tensor a of shape .* takes 32 bytes"),
        ({"shape": [-2, -3]}, "tensor a of shape"),
        ({"dtype": "F7"}, "tensor a has the unknown type F7"),
        ({"data_offsets": [4, 28]}, "overlaps another or leaves a gap"),
        ({"shape": "x"}, "header cannot be read"),
    ],
)
def test_header_entries_that_contradict_the_data_are_refused(written, change, message):
    header, data = header_and_data(written)
    header["a"] |= change
    rewrite(written, header, data)
    with pytest.raises(InputError, match=message):
        SafetensorsFile(written)


def test_missing_and_pickled_files_say_what_to_do(tmp_path):
    with pytest.raises(InputError, match="no such weights file"):
        SafetensorsFile(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match=r"safetensors\.torch\.save_file"):
        SafetensorsFile(tmp_path / "model.pth")


def test_a_type_that_the_format_lacks_leaves_no_file(tmp_path):
    with pytest.raises(InputError, match="complex128, which safetensors lacks"):
        write_safetensors(tmp_path / "c.safetensors", {"c": np.zeros(2, complex)})
    assert list(tmp_path.iterdir()) == []
