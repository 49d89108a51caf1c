"""Reading and writing safetensors files with PyTorch alone."""

import json
import struct

import torch

NAMES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
         "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip
DTYPES = {v: k for k, v in NAMES.items()}


def save(path, tensors):
    header, at, parts = {}, 0, []
    for name, t in tensors.items():
        t = t.detach().cpu().contiguous()
        data = t.reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b""
        header[name] = {"dtype": DTYPES[t.dtype], "shape": list(t.shape),
                        "data_offsets": [at, at + len(data)]}  # fmt: skip
        at += len(data)
        parts.append(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for data in parts:
            file.write(data)


def load(path):
    with open(path, "rb") as file:
        data = bytearray(file.read())
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(bytes(data[8 : 8 + length]))
    out = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        begin, end = info["data_offsets"]
        begin, end = begin + 8 + length, end + 8 + length
        raw = torch.frombuffer(data[begin:end] or bytearray(1), dtype=torch.uint8)[: end - begin]
        out[name] = raw.clone().view(NAMES[info["dtype"]]).reshape(info["shape"])
    return out
