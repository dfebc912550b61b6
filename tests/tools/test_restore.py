#!/usr/bin/env python3
"""Tests of tools/restore.py against a small writer of the format, which is here and, like it, made from
docs/repository-format.md alone.

    scripts/deps.sh && .venv/bin/python tests/tools/test_restore.py
"""
import json
import os
import pathlib
import random
import stat
import struct
import subprocess
import sys
import tempfile
import time
import unittest

import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

TOOL = pathlib.Path(__file__).resolve().parents[2] / "tools" / "restore.py"
ROOT = os.geteuid() == 0
sys.path.insert(0, str(TOOL.parent))
import restore  # noqa: E402


# --- A writer.

def number(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out + bytes([value]))


def signed(value):
    return number(value * 2 if value >= 0 else -value * 2 - 1)


def text(data):
    return number(len(data)) + data


def instant(nanoseconds):
    return signed(nanoseconds // 10**9) + number(nanoseconds % 10**9)


def zstd(data):
    return zstandard.ZstdCompressor(level=1, write_content_size=False, write_checksum=False).compress(data)


def planes(data, width, turned, lead, methods):
    count = (len(data) - lead) // width
    body = data[lead:lead + count * width]
    bits = 8 * width
    if turned:
        elements = (int.from_bytes(body[i:i + width], "little") for i in range(0, len(body), width))
        body = b"".join(((x << 1 | x >> bits - 1) & (1 << bits) - 1).to_bytes(width, "little") for x in elements)
    out = bytes([2, width, turned, lead])
    for k in range(width):
        plane = body[k::width]
        method = methods[k % len(methods)]
        if method == 3 and plane and plane != plane[:1] * count:
            method = 1
        stored = {0: lambda: plane, 1: lambda: zstd(plane), 3: lambda: plane[:1] or b"\0"}[method]()
        out += bytes([method]) + struct.pack("<I", len(stored)) + stored
    return out + data[:lead] + data[lead + count * width:]


def raw(data):
    return b"\0" + data


def best(data):
    if data and data == data[:1] * len(data):
        return b"\3" + data[:1]
    return min(raw(data), b"\1" + zstd(data), key=len)


class Writer:
    """A repository with the key of slot and the objects that a test asks for."""

    def __init__(self, root, password=b"secret", key_file=None, generation=3):
        self.root, self.generation, self.segments = pathlib.Path(root), generation, []
        self.written = []
        self.id, self.chunk_key, self.master = os.urandom(16).hex(), os.urandom(32), os.urandom(32)
        config = json.dumps({"format": "muster-repository", "version": 1, "id": self.id, "created": "2026-11-26T14:00:00Z", "more": 1}).encode()
        self.put("config", config)
        slot, salt, nonce = os.urandom(16).hex(), os.urandom(16), os.urandom(12)
        if key_file is None:
            stretch = {"name": "argon2id", "memory_kib": 64, "passes": 1, "lanes": 1}
            wrapping = Argon2id(salt=salt, length=32, iterations=1, lanes=1, memory_cost=64).derive(password)
        else:
            stretch = {"name": "blake3"}
            wrapping = blake3(salt + key_file, derive_key_context="muster repository 2026-11 key file").digest()
        keyring = json.dumps({"chunk": self.chunk_key.hex(), "cut": "00" * 32, "current": generation, "masters": {str(generation): self.master.hex()}})
        stored = json.dumps({
            "id": slot, "created": "2026-11-26T14:00:00Z", "label": "t", "stretch": stretch, "salt": salt.hex(), "nonce": nonce.hex(),
            "keyring": AESGCM(wrapping).encrypt(nonce, keyring.encode(), f"{blake3(config).hexdigest()}/{slot}".encode()).hex()}).encode()
        self.put(f"keys/{blake3(stored).hexdigest()}", stored)

    def put(self, key, data):
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def header(self, kind):
        header = b"MUSTER1" + kind + struct.pack("<I", self.generation) + os.urandom(32)
        return header, AESGCM(blake3(header, key=self.master).digest())

    @staticmethod
    def seal(key, n, data):
        return key.encrypt(struct.pack("<Q", n) + bytes(4), data, None)

    def object(self, folder, kind, plain):
        header, key = self.header(kind)
        data = header + self.seal(key, 0, number(len(plain)) + best(plain))
        name = blake3(data).hexdigest()
        self.put(f"{folder}/{name}", data)
        return name

    def chunk(self, data, stored=best):
        name = blake3(data, key=self.chunk_key).digest()
        self.segments.append((name, stored(data), len(data)))
        return name

    def flush(self, index=True):
        header, key = self.header(b"P")
        out, directory = header, number(len(self.segments))
        for n, (name, stored, length) in enumerate(self.segments):
            sealed = self.seal(key, n, stored)
            out += sealed
            directory += name + number(len(sealed)) + number(length)
        sealed = self.seal(key, 2**64 - 1, directory)
        out += sealed + struct.pack("<I", len(sealed))
        name = blake3(out).hexdigest()
        self.put(f"packs/{name[:2]}/{name}", out)
        self.segments = []
        if index:
            self.object("index", b"I", number(1) + bytes.fromhex(name) + number(len(out)) + directory)
        return self.root / "packs" / name[:2] / name

    def snapshot(self, lists, time="2026-11-26T14:00:00Z"):
        names = [self.chunk(part).hex() for part in lists]
        self.flush()
        return self.object("snapshots", b"S", json.dumps({"time": time, "host": "h", "source": {"kind": "tree", "path": "/x"}, "list": names, "stats": {}}).encode())


def entry(kind, path, mode=0o640, uid=None, gid=None, mtime=1_700_000_000_123_456_789, attributes=(), rest=b""):
    uid = os.geteuid() if uid is None else uid
    gid = os.getegid() if gid is None else gid
    return (kind + text(path) + number(mode) + number(uid) + number(gid) + instant(mtime)
            + number(len(attributes)) + b"".join(text(n) + text(v) for n, v in attributes) + rest)


def extents(parts):
    """Of lengths of zeros and (length, id)."""
    return number(len(parts)) + b"".join(number(p * 2) if isinstance(p, int) else number(p[0] * 2 + 1) + p[1] for p in parts)


def content(data, parts, flags=0, spilled=None):
    tail = extents(parts) if spilled is None else number(len(spilled)) + b"".join(spilled)
    return number(len(data)) + bytes([flags]) + blake3(data).digest() + tail


def plain_file(w, path, data, stored=best, **more):
    return entry(b"f", path, rest=instant(5) + number(7) + content(data, [(len(data), w.chunk(data, stored))] if data else []), **more)


class Case(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.addCleanup(self.scratch.cleanup)
        self.base = pathlib.Path(self.scratch.name)
        self.target = self.base / "target"
        (self.base / "password").write_bytes(b"secret\n")

    def writer(self, **more):
        return Writer(self.base / "repo", **more)

    def run_tool(self, *arguments):
        done = subprocess.run([sys.executable, TOOL, self.base / "repo", *arguments], capture_output=True, text=True)
        self.assertNotIn("Traceback", done.stderr)
        return done

    def restore(self, expect=0, snapshot="latest", key=None):
        done = self.run_tool(snapshot, self.target, *(key or ["--password-file", self.base / "password"]))
        self.assertEqual(done.returncode, expect, done.stderr)
        return done


class Codecs(unittest.TestCase):
    def test_every_width_turn_lead_and_tail(self):
        random.seed(1)
        for width in (2, 4, 8):
            for turned in (0, 1):
                for lead in range(width):
                    for length in (lead, lead + 1, lead + width, lead + 3 * width + 1, 1000 + lead):
                        data = random.randbytes(length)
                        self.assertEqual(restore.unstore(planes(data, width, turned, lead, [0, 1]), length), data)

    def test_the_example_of_the_document(self):
        stored = bytes.fromhex("02020100" "0002000000" "0001" "0002000000" "7f7f")
        self.assertEqual(restore.unstore(stored, 4), struct.pack("<ff", 1.0, -1.0)[2:4] + struct.pack("<ff", 1.0, -1.0)[6:8])

    def test_the_values_of_the_document(self):
        key = blake3(b"MUSTER1P" + struct.pack("<I", 1) + b"\3" * 32, key=b"\1" * 32).digest()
        segment = bytes.fromhex("ad747fc1ab8c23523e4fd781933f18026afb1d8b6dcfa7ba")
        self.assertEqual(restore.unstore(restore.Repository.unseal(AESGCM(key), 1, segment), 7), b"content")
        self.assertIn(segment.hex(), (TOOL.parents[1] / "docs/repository-format.md").read_text())

    def test_filled_planes(self):
        data = struct.pack("<500Q", *range(500))
        self.assertEqual(restore.unstore(planes(data, 8, 0, 0, [1, 3]), len(data)), data)

    def test_one_byte_again_and_again(self):
        self.assertEqual(restore.unstore(b"\3a", 5), b"aaaaa")

    def test_the_wrong_length_is_damage(self):
        for stored in (b"\0abcd", b"\0abcdef", b"\1" + zstd(b"abcd"), b"\1" + zstd(b"abcdef"), b"\3", b"\3ab", b"\4abcde", b"",
                       planes(b"abcdef", 2, 0, 0, [0]), planes(b"abcd", 2, 0, 0, [0]), planes(b"abcde", 2, 0, 1, [0]) + b"x", b"\1garbage"):
            with self.assertRaises(restore.Damage, msg=stored):
                restore.unstore(stored, 5)


class Whole(Case):
    def test_all_kinds_come_back(self):
        w = self.writer()
        weights = random.Random(2).randbytes(300_001)
        one, two = random.randbytes(70_000), b"x" * 1_500_000
        spill = w.chunk(extents([(len(one), w.chunk(one)), 1 << 20]))
        spill2 = w.chunk(extents([(len(two), w.chunk(two))]))
        sparse = one + bytes(1 << 20) + two
        hole = 1 << 26
        odd = b"odd \xff\xfe\n\x1b[31m name"
        parts = sorted([
            entry(b"d", b"", mode=0o750), entry(b"d", b"dir/", mode=0o555, mtime=-1_500_000_001), entry(b"d", b"dir/empty/", mode=0o700),
            plain_file(w, b"dir/raw", weights, raw, mode=0o444), plain_file(w, b"dir/zstd", b"abc" * 9999, lambda d: b"\1" + zstd(d)),
            plain_file(w, b"dir/bf16", weights, lambda d: planes(d, 2, 1, 1, [0, 1])), plain_file(w, b"dir/f32", weights[:-1], lambda d: planes(d, 4, 1, 3, [1])),
            plain_file(w, b"dir/same", b"z" * 5000), plain_file(w, b"none", b"", attributes=[(b"user.note", b"\0\xff")]), plain_file(w, odd, b"odd"),
            entry(b"f", b"sparse", rest=instant(1) + number(2) + content(sparse, None, flags=2, spilled=[spill, spill2])),
            entry(b"f", b"hole", rest=instant(1) + number(2) + content(bytes(hole), [hole], flags=1)),
            entry(b"l", b"aim", rest=text(b"dir/\xff nowhere")), entry(b"h", b"hard", rest=text(b"dir/raw")), entry(b"h", b"hard-aim", rest=text(b"aim")),
            entry(b"p", b"fifo", mode=0o600), entry(b"s", b"socket", mode=0o600), entry(b"c", b"null", mode=0o666, rest=number(1) + number(3)),
            plain_file(w, b"set", b"id", mode=0o4755, uid=4242 if ROOT else None),
        ], key=lambda e: restore.Restore.entry(restore.Reader(e))["path"])
        w.flush()
        w.snapshot([b"".join(parts[:4]), b"".join(parts[4:9]), b"".join(parts[9:])])
        done = self.restore(expect=0 if ROOT else 1)
        self.assertIn("hole changed while", done.stderr)
        t = os.fsencode(self.target)
        def read(name):
            return pathlib.Path(os.fsdecode(os.path.join(t, name))).read_bytes()

        self.assertEqual([read(b"dir/raw"), read(b"dir/zstd"), read(b"dir/bf16"), read(b"dir/f32"), read(b"dir/same"), read(b"none"), read(odd)],
                         [weights, b"abc" * 9999, weights, weights[:-1], b"z" * 5000, b"", b"odd"])
        self.assertEqual(read(b"sparse"), sparse)
        self.assertLess(os.stat(os.path.join(t, b"sparse")).st_blocks * 512, len(sparse) - (1 << 19))
        self.assertEqual((os.stat(os.path.join(t, b"hole")).st_size, os.stat(os.path.join(t, b"hole")).st_blocks), (hole, 0))
        self.assertEqual(os.readlink(os.path.join(t, b"aim")), b"dir/\xff nowhere")
        self.assertTrue(os.path.samestat(os.lstat(os.path.join(t, b"hard")), os.lstat(os.path.join(t, b"dir/raw"))))
        self.assertTrue(os.path.samestat(os.lstat(os.path.join(t, b"hard-aim")), os.lstat(os.path.join(t, b"aim"))))
        self.assertEqual(os.getxattr(os.path.join(t, b"none"), b"user.note"), b"\0\xff")
        for name, mode, mtime in ((b"", 0o750, None), (b"dir", 0o555, -1_500_000_001), (b"dir/raw", 0o444, None), (b"aim", None, None),
                                  (b"fifo", 0o600, None), (b"set", 0o4755, None)):
            got = os.lstat(os.path.join(t, name))
            self.assertEqual(got.st_mtime_ns, 1_700_000_000_123_456_789 if mtime is None else mtime, name)
            if mode is not None:
                self.assertEqual(stat.S_IMODE(got.st_mode), mode, name)
        self.assertTrue(stat.S_ISFIFO(os.lstat(os.path.join(t, b"fifo")).st_mode) and stat.S_ISSOCK(os.lstat(os.path.join(t, b"socket")).st_mode))
        if ROOT:
            self.assertEqual(os.stat(os.path.join(t, b"set")).st_uid, 4242)
            self.assertEqual(os.lstat(os.path.join(t, b"null")).st_rdev, os.makedev(1, 3))
        else:
            self.assertIn("null", done.stderr)

    def test_objects_of_a_bucket(self):
        w = self.writer()
        data = b"object" * 1000
        rest = instant(10**18) + text(b"etag") + text(b"") + number(1) + text(b"content-type") + text(b"x")
        w.snapshot([b"".join(b"o" + text(path) + rest + content(data, [(len(data), w.chunk(data))]) for path in (b"a/b/c", b"a/b/c/d", b"a//e", b"f"))])
        done = self.restore(expect=1)
        self.assertEqual([(self.target / name).read_bytes() for name in ("a/b/c", "f")], [data, data])
        self.assertIn("a/b/c/d", done.stderr)
        self.assertIn("a//e", done.stderr)

    def test_a_key_file_and_a_choice_of_snapshots(self):
        key = os.urandom(40) + b"\n"
        (self.base / "key").write_bytes(key)
        w = self.writer(key_file=key)
        old = w.snapshot([plain_file(w, b"a", b"old")], time="2026-11-26T14:00:00.5+02:00")
        w.snapshot([plain_file(w, b"a", b"new")], time="2026-11-26T12:30:00.123456789Z")
        self.restore(key=["--key-file", self.base / "key"])
        self.assertEqual((self.target / "a").read_bytes(), b"new")
        self.target = self.base / "second"
        self.restore(key=["--key-file", self.base / "key"], snapshot=old[:9])
        self.assertEqual((self.target / "a").read_bytes(), b"old")
        done = self.run_tool("--list", "--key-file", self.base / "key")
        self.assertEqual([line.split()[0] for line in done.stdout.splitlines()][0], old[:16])
        self.restore(key=["--key-file", self.base / "key"], expect=2)  # The target is not empty any more.
        self.restore(expect=2)  # No slot for passwords.
        (self.base / "password").write_bytes(b"wrong")
        self.restore(expect=2)

    def test_planted_slots_neither_slow_it_nor_keep_it_from_opening(self):
        w = self.writer()
        w.snapshot([plain_file(w, b"a", b"new")])
        (name,) = os.listdir(self.base / "repo/keys")
        slot = json.loads((self.base / "repo/keys" / name).read_text())

        def plant(change, first=False):
            for n in range(1 << 20):
                stored = json.dumps({**slot, "label": f"planted {n}", **change}).encode()
                planted = blake3(stored).hexdigest()
                if (planted < name) == first:
                    w.put(f"keys/{planted}", stored)
                    return planted

        # As much as a slot may ask for: to try it takes a gibibyte and a minute.
        plant({"stretch": {"name": "argon2id", "memory_kib": 1 << 20, "passes": 64, "lanes": 4}}, first=True)
        changes = [{"stretch": {"name": "argon2id", "memory_kib": 1 << 20, "passes": 65, "lanes": 4}}, {"salt": "00" * 15},
                   {"keyring": "no hex"}, {"more": "x" * 70_000}, {"stretch": []}, {"nonce": 7}]
        useless = [plant(change) for change in changes]
        useless.append("f" * 64)
        w.put(f"keys/{useless[-1]}", (self.base / "repo/keys" / name).read_bytes())
        begun = time.monotonic()
        done = self.restore()
        self.assertLess(time.monotonic() - begun, 20)
        self.assertEqual((self.target / "a").read_bytes(), b"new")
        for planted in useless:
            self.assertIn(f"keys/{planted} is of no use", done.stderr)
        self.assertEqual(done.stderr.count("is of no use"), len(useless))

    def test_of_several_slots_for_one_secret_the_one_of_the_last_rotation_serves(self):
        w = self.writer()
        w.snapshot([plain_file(w, b"a", b"new")])
        config = blake3((self.base / "repo/config").read_bytes()).hexdigest()
        for n in range(6):  # Of generation 3 are the objects.
            salt, nonce, slot = os.urandom(16), os.urandom(12), f"{n:032}"
            wrapping = Argon2id(salt=salt, length=32, iterations=1, lanes=1, memory_cost=64).derive(b"secret")
            keyring = json.dumps({"chunk": w.chunk_key.hex(), "cut": "00" * 32, "current": 2, "masters": {"2": "11" * 32}}).encode()
            stored = json.dumps({
                "id": slot, "created": "2026-11-26T14:00:00Z", "label": "t", "salt": salt.hex(), "nonce": nonce.hex(),
                "stretch": {"name": "argon2id", "memory_kib": 64, "passes": 1, "lanes": 1},
                "keyring": AESGCM(wrapping).encrypt(nonce, keyring, f"{config}/{slot}".encode()).hex()}).encode()
            w.put(f"keys/{blake3(stored).hexdigest()}", stored)
        self.restore()
        self.assertEqual((self.target / "a").read_bytes(), b"new")

    def test_nothing_is_written_outside_the_target(self):
        w = self.writer()
        outside = self.base / "outside"
        outside.mkdir()
        aim = os.fsencode(outside)
        w.snapshot([b"".join([
            plain_file(w, b"../escaped", b"1"), plain_file(w, b"/" + aim + b"/escaped", b"1"), plain_file(w, b"x/../../escaped", b"1"),
            plain_file(w, b"a\0b", b"1"), entry(b"h", b"stolen", rest=text(b"../password")),
            entry(b"l", b"door", rest=text(aim)), plain_file(w, b"door2/in", b"fine"), entry(b"l", b"door2", rest=text(aim)),
            entry(b"l", b"door/link", rest=text(b"x")), entry(b"h", b"door/hard", rest=text(b"door2/in")), plain_file(w, b"good", b"good"),
            entry(b"d", b"door/folder/"), entry(b"l", b"door/deep/er/link", rest=text(b"x")), entry(b"l", b"nul", rest=text(b"a\0b")),
            entry(b"l", b"late", rest=text(b"x"), mtime=2**62 * 10**9), plain_file(w, b"huge-uid", b"1", uid=2**40)])])
        before = sorted(os.listdir(self.base)) + ["target"]
        self.restore(expect=1)
        self.assertEqual(os.listdir(outside), [])
        self.assertEqual(sorted(os.listdir(self.base)), sorted(before))
        self.assertFalse((self.target / "stolen").exists())
        self.assertEqual((self.target / "good").read_bytes(), b"good")
        self.assertEqual((self.target / "huge-uid").read_bytes(), b"1")


class Damaged(Case):
    def test_every_byte_flipped_is_noticed_and_the_rest_restored(self):
        w = self.writer()
        one = plain_file(w, b"one", random.randbytes(500), raw)
        first = w.flush()
        two = plain_file(w, b"two", b"fine")
        w.flush()
        w.snapshot([one, two])
        whole = first.read_bytes()
        for at in (0, 7, 8, 20, 44, 300, 560):  # In the header and in the one chunk.
            self.target = self.base / f"at{at}"
            first.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1:])
            self.assertIn("not restored: one", self.restore(expect=1).stderr)
            self.assertEqual(os.listdir(self.target), ["two"])
        first.write_bytes(whole[:300])
        self.target = self.base / "short"
        self.assertIn("not restored: one", self.restore(expect=1).stderr)
        first.unlink()
        self.target = self.base / "gone"
        self.assertIn("not restored: one", self.restore(expect=1).stderr)

    def test_another_pack_serves(self):
        w = self.writer()
        for _ in range(2):
            one = plain_file(w, b"one", b"twice" * 100)
            last = w.flush()
        w.snapshot([one])
        last.write_bytes(last.read_bytes()[:60])
        self.restore()
        self.assertEqual((self.target / "one").read_bytes(), b"twice" * 100)

    def test_without_an_index(self):
        w = self.writer()
        one = plain_file(w, b"one", b"1")
        w.flush(index=False)
        w.snapshot([one])
        self.restore()
        for path in (self.base / "repo/index").iterdir():
            path.unlink()
        self.target = self.base / "again"
        self.restore()
        self.assertEqual((self.target / "one").read_bytes(), b"1")

    def test_a_damaged_index_is_said_and_the_packs_serve(self):
        w = self.writer()
        w.snapshot([plain_file(w, b"one", b"1")])
        for path in (self.base / "repo/index").iterdir():
            path.write_bytes(path.read_bytes()[:-1] + b"x")
        self.assertIn("damaged: index/", self.restore(expect=1).stderr)
        self.assertEqual((self.target / "one").read_bytes(), b"1")

    def test_a_damaged_part_of_the_list(self):
        w = self.writer()
        files = [plain_file(w, name, name) for name in (b"a", b"b/c", b"d")]
        w.flush()
        middle = w.chunk(files[1])
        w.flush().unlink()
        names = [w.chunk(files[0]).hex(), middle.hex(), w.chunk(files[2]).hex()]
        w.flush()
        w.object("snapshots", b"S", json.dumps({"time": "2026-11-26T14:00:00Z", "list": names}).encode())
        self.assertIn("part 2 of 3 of the list", self.restore(expect=1).stderr)
        self.assertEqual(sorted(os.listdir(self.target)), ["a", "d"])

    def test_a_wrong_digest_and_a_damaged_snapshot(self):
        w = self.writer()
        bad = entry(b"f", b"bad", rest=instant(1) + number(1) + number(3) + b"\0" + bytes(32) + extents([(3, w.chunk(b"abc"))]))
        w.snapshot([bad, plain_file(w, b"good", b"1")])
        newer = w.snapshot([plain_file(w, b"good", b"2")], time="2026-11-27T00:00:00Z")
        path = self.base / "repo/snapshots" / newer
        path.write_bytes(path.read_bytes() + b"x")
        done = self.restore(expect=1)
        self.assertIn(f"damaged: snapshots/{newer}", done.stderr)
        self.assertIn("not restored: bad: the whole does not have its digest", done.stderr)
        self.assertEqual((self.target / "good").read_bytes(), b"1")


if __name__ == "__main__":
    unittest.main()
