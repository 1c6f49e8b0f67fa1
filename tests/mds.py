"""Read an export in MDS by the description of its format."""

import itertools
import json
import struct

import numpy as np


def read_mds(folder):
    """Read the samples of an exported folder."""
    samples = []
    for shard in json.loads((folder / "data/index.json").read_text())["shards"]:
        data = (folder / "data" / shard["raw_data"]["basename"]).read_bytes()
        assert len(data) == shard["raw_data"]["bytes"]
        (n,) = struct.unpack_from("<I", data)
        assert n == shard["samples"]
        bounds = struct.unpack_from(f"<{n + 1}I", data, 4)
        config = json.loads(data[4 + 4 * (n + 1) : bounds[0]])
        assert {key: shard[key] for key in config} == config
        for start, end in itertools.pairwise(bounds):
            names, encodings = config["column_names"], config["column_encodings"]
            sizes = struct.unpack_from(f"<{len(names)}I", data, start)
            sample, at = {}, start + 4 * len(names)
            for name, encoding, size in zip(names, encodings, sizes, strict=True):
                sample[name] = decode_mds(encoding, data[at : at + size])
                at += size
            assert at == end
            samples.append(sample)
    return samples


def decode_mds(encoding, value):
    if encoding == "str":
        return value.decode()
    if encoding == "json":
        return json.loads(value)
    assert (encoding, value[0] >> 2) == ("ndarray:int32", 1)
    width = 1 << (value[0] & 3)
    ids = np.frombuffer(value[1 + width :], dtype="<i4")
    assert int.from_bytes(value[1 : 1 + width], "little") == len(ids)
    return ids.tolist()
