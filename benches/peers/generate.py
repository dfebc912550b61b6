#!/usr/bin/env python3
"""Generates the data that benches/peers/artifacts measures on; the same arguments give the same bytes.

    generate.py artifacts OUT [--scale 1.0]      model artifacts, about 2 GiB at scale 1.0 (needs numpy)
    generate.py artifacts OUT --change [1.0]     changes so many per cent of them, in place
    generate.py general OUT [--scale 1.0]        a general tree, about 300 MiB, out of what this machine has
    generate.py general OUT --change [1.0]

Model artifacts:
    base/model-0000{1,2}-of-00002.safetensors   2 x 256 MiB of bf16 weights
    ft-a/, ft-b/                                two fine-tunes of it: 5 % of the tensors are others
    vision/model.safetensors                    212 MiB of f16 weights
    onnx/model.onnx                             300 MiB of f32 weights in a file of no format that is known
    configs/NN/*.json                           2,000 small files (1 to 64 KiB)
The weights are drawn from N(0, 0.02), as those of trained models roughly are. A change rewrites whole tensors in three
large files and twenty small ones, adds a file and removes one.

A general tree: sources, what lies in /usr/share, generated logs, copies of some of it that are compressed already, and
images. A change appends to logs, edits sources, adds a compressed file and removes one. What it is made of depends on
the machine; it says what that was. (Only its generated part is the same everywhere.)
"""
import argparse
import gzip
import json
import os
import pathlib
import random
import shutil
import struct
import sys
import zlib

MIB = 1 << 20
TENSOR = 4 * MIB


# --- Model artifacts.

def weights(rng, count):
    import numpy as np
    return rng.standard_normal(count, dtype=np.float32) * np.float32(0.02)


def bf16(rng, count):
    import numpy as np
    bits = weights(rng, count).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()


def f16(rng, count):
    import numpy as np
    return weights(rng, count).astype(np.float16).tobytes()


def f32(rng, count):
    return weights(rng, count).tobytes()


def header(tensors, dtype, name):
    element = {"BF16": 2, "F16": 2, "F32": 4}[dtype]
    head = {"__metadata__": {"format": "pt", "name": name}}
    for i in range(tensors):
        head[f"model.layers.{i // 7}.w{i % 7}.weight"] = {
            "dtype": dtype, "shape": [1024, TENSOR // element // 1024], "data_offsets": [i * TENSOR, (i + 1) * TENSOR]}
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_model(path, make, rng, tensors, dtype, name):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(header(tensors, dtype, name))
        for _ in range(tensors):
            file.write(make(rng, TENSOR // (4 if dtype == "F32" else 2)))


def tensors_of(path):
    with open(path, "rb") as file:
        start = 8 + struct.unpack("<Q", file.read(8))[0]
    return start, (path.stat().st_size - start) // TENSOR


def fine_tune(base, path, rng, share):
    start, count = tensors_of(base)
    others = set(rng.choice(count, size=max(1, round(count * share)), replace=False).tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(base, "rb") as file, open(path, "wb") as out:
        out.write(file.read(start))
        for i in range(count):
            tensor = file.read(TENSOR)
            out.write(bf16(rng, TENSOR // 2) if i in others else tensor)


def configs(root, count):
    r = random.Random(11)
    words = [f"tok{r.randrange(1 << 30):x}" for _ in range(4000)]
    for i in range(count):
        folder = root / "configs" / f"{i % 40:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        if i % 4 == 3:  # Like a tokenizer, about 45 KiB.
            body = {word: r.randrange(1 << 17) for word in r.sample(words, 2000)}
        else:
            body = {"architectures": ["LlamaForCausalLM"], "hidden_size": r.choice([2048, 4096, 8192]),
                    "id": i, "run": r.randrange(1 << 40), "vocab": r.sample(words, r.randrange(20, 400))}
        (folder / f"config-{i:04d}.json").write_text(json.dumps(body, indent=1))


def artifacts(root, scale):
    import numpy as np
    rng = np.random.default_rng(7)
    large = max(4, round(64 * scale))
    names = [f"model-{k:05d}-of-00002.safetensors" for k in (1, 2)]
    for k, name in enumerate(names, 1):
        write_model(root / "base" / name, bf16, rng, large, "BF16", f"base{k}")
    for variant in ("ft-a", "ft-b"):
        for name in names:
            fine_tune(root / "base" / name, root / variant / name, rng, 0.05)
    write_model(root / "vision" / "model.safetensors", f16, rng, max(4, round(53 * scale)), "F16", "vision")
    write_model(root / "onnx" / "model.onnx", f32, rng, max(4, round(75 * scale)), "F32", "onnx")
    configs(root, max(40, round(2000 * scale)))


def change_artifacts(root, percent):
    import numpy as np
    rng = np.random.default_rng(8)
    large = [root / "base/model-00001-of-00002.safetensors", root / "ft-a/model-00002-of-00002.safetensors",
             root / "ft-b/model-00001-of-00002.safetensors"]
    total = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    for i in range(max(1, round(total * percent / 100 / TENSOR))):
        path = large[i % len(large)]
        start, count = tensors_of(path)
        with open(path, "r+b") as file:
            file.seek(start + int(rng.integers(count)) * TENSOR)
            file.write(bf16(rng, TENSOR // 2))
    small = sorted((root / "configs").rglob("*.json"))
    for path in small[:20]:
        path.write_text(json.dumps({**json.loads(path.read_text()), "changed": int(rng.integers(1 << 30))}, indent=1))
    (root / "configs/00/new.json").write_text(json.dumps({"new": int(rng.integers(1 << 30))}))
    small[-1].unlink()


# --- A general tree.

def gather(into, places, limit, wanted=lambda path: True):
    """Copies files from the first places that there are until there is enough; returns how much and from where."""
    taken, used = 0, []
    for place in (pathlib.Path(place).expanduser() for place in places):
        before = taken
        for folder, folders, files in os.walk(place):
            folders.sort()
            for name in sorted(files):
                path = pathlib.Path(folder, name)
                if path.is_symlink() or not path.is_file() or not wanted(path) or path.stat().st_size > 16 * MIB:
                    continue
                out = into / place.name / path.relative_to(place)
                try:
                    out.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(path, out)
                except OSError:
                    continue
                taken += path.stat().st_size
                if taken >= limit:
                    return taken, used + [f"{place.name} {(taken - before) / MIB:.0f} MiB"]
        if taken > before:
            used.append(f"{place.name} {(taken - before) / MIB:.0f} MiB")
    return taken, used


def log_lines(r, limit, start=0):
    paths = [f"/v1/{r.choice(['models', 'users', 'jobs'])}/{r.randrange(1 << 24):06x}" for _ in range(400)]
    hosts = [f"10.0.{r.randrange(8)}.{r.randrange(256)}" for _ in range(60)]
    size, clock, out = 0, 1_764_000_000_000 + start, []
    while size < limit:
        clock += r.randrange(1, 400)
        line = (f"{clock // 1000}.{clock % 1000:03d} {r.choice(hosts)} {r.choice(['GET', 'GET', 'GET', 'PUT'])} {r.choice(paths)} "
                f"{r.choice([200, 200, 200, 200, 304, 404, 503])} {r.randrange(90, 90_000)} {r.randrange(1, 2000)}us trace={r.getrandbits(64):016x}\n")
        size += len(line)
        out.append(line)
    return "".join(out).encode()


def png(r, side):
    """A picture of soft shapes with noise, as photographs are for whoever compresses them."""
    rows = bytearray()
    for y in range(side):
        noise = r.randbytes(side * 3)
        rows += b"\0" + bytes((x // 3 + y >> 3) + (n & 15) & 255 for x, n in enumerate(noise))

    def part(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return (b"\x89PNG\r\n\x1a\n" + part(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
            + part(b"IDAT", zlib.compress(bytes(rows), 6)) + part(b"IEND", b""))


def general(root, scale):
    r = random.Random(5)
    code = {".rs", ".c", ".h", ".py", ".toml", ".md", ".json", ".js", ".go", ".S", ".txt", ".pl", ".pm", ".html"}
    got = {"sources": gather(root / "sources", ["~/.cargo/registry/src", "/usr/lib/python3", "/usr/include", "/usr/share/perl"],
                             110 * MIB * scale, lambda path: path.suffix in code),
           "share": gather(root / "share", ["/usr/share/doc", "/usr/share/locale", "/usr/share/i18n", "/usr/share/zoneinfo"], 40 * MIB * scale),
           "images": gather(root / "images", ["/usr/share/icons", "/usr/share/pixmaps"], 20 * MIB * scale,
                            lambda path: path.suffix in {".png", ".jpg", ".svg", ".webp"})}
    (root / "images/made").mkdir(parents=True, exist_ok=True)
    made, number = got["images"][0], 0
    while made < 30 * MIB * scale:
        data = png(r, 512)
        (root / f"images/made/{number:03d}.png").write_bytes(data)
        made, number = made + len(data), number + 1
    (root / "logs").mkdir(parents=True)
    for i in range(8):
        data = log_lines(r, int(8 * MIB * scale), i * 10**9)
        (root / f"logs/access.log.{i}").write_bytes(data)
        if i % 2:  # As log rotation leaves them.
            (root / f"logs/access.log.{i + 10}.gz").write_bytes(gzip.compress(log_lines(r, int(20 * MIB * scale), i * 10**9), 6, mtime=0))
    (root / "archives").mkdir()
    files = sorted(path for path in (root / "sources").rglob("*") if path.is_file())
    for i in range(6):
        taken = b"".join(path.read_bytes() for path in files[i::6])
        (root / f"archives/sources-{i}.gz").write_bytes(gzip.compress(taken, 6, mtime=0))
    total = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    print(f"general tree: {total / MIB:.0f} MiB; " + "; ".join(f"{name}: {', '.join(used) or 'nothing'}" for name, (_, used) in got.items()),
          file=sys.stderr)


def change_general(root, percent):
    r = random.Random(6)
    total = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    budget = total * percent / 100
    for path in sorted((root / "logs").glob("access.log.?"))[:2]:
        with open(path, "ab") as file:
            file.write(log_lines(r, int(budget / 4), 10**11))
    files = sorted(path for path in (root / "sources").rglob("*") if path.is_file())
    edited = 0
    while edited < budget / 4 and files:
        path = files.pop(r.randrange(len(files)))
        text = path.read_bytes()
        path.chmod(path.stat().st_mode | 0o200)
        path.write_bytes(text[:len(text) // 2] + b"// an edited line\n" + text[len(text) // 2:])
        edited += len(text)
    (root / "archives/new.gz").write_bytes(gzip.compress(log_lines(r, int(budget), 10**12), 6, mtime=0))
    files[0].unlink()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["artifacts", "general"])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--change", type=float, nargs="?", const=1.0, metavar="PERCENT")
    given = parser.parse_args()
    made, changed = {"artifacts": (artifacts, change_artifacts), "general": (general, change_general)}[given.what]
    if given.change is None:
        given.out.mkdir(parents=True, exist_ok=True)
        made(given.out, given.scale)
    else:
        changed(given.out, given.change)


if __name__ == "__main__":
    main()
