#!/usr/bin/env python3
"""Restores a snapshot of a backup repository that lies in a directory, without Muster.

    python3 -m venv venv && venv/bin/pip install zstandard cryptography blake3
    venv/bin/python tools/restore.py REPO --list --password-file FILE
    venv/bin/python tools/restore.py REPO latest TARGET --password-file FILE
    venv/bin/python tools/restore.py REPO --wal SYSTEM NAME FILE --password-file FILE

Python 3.11 or newer, cryptography 44 or newer. It was written from docs/repository-format.md alone and shares nothing
with Muster, so that no one's data depends on a program of ours. To restore from a bucket, copy the bucket into a
directory first, with any tool.

The last gets one file of a PostgreSQL cluster's write-ahead log: a segment, put together from its pieces and filled up
with zeros if it is not whole, or a history (exit code 1: there is no such file, 126: it is damaged, or others after it are there).

Every chunk is compared with its id and every file with its digest. What is damaged is said by name and left out, all
the rest is restored, and the exit code is 1 (2: nothing could be done at all). Nothing is ever written outside TARGET,
which must be empty or not exist. Owners, devices and foreign attributes need root.
"""
import argparse
import datetime
import functools
import json
import os
import pathlib
import re
import stat
import sys

try:
    import blake3 as blake3_module
    import zstandard
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
except ImportError as lacking:
    print(f"{lacking}; the top of this file says how to install what it needs", file=sys.stderr)
    sys.exit(2)

blake3 = blake3_module.blake3
KEY_FILE_CONTEXT = "muster repository 2026-11 key file"
HEADER, TAG, DIRECTORY = 44, 16, 2**64 - 1
MEMORY_KIB, PASSES, LANES, SLOT = 1 << 20, 64, 64, 1 << 16  # Slots are not authenticated: beyond this none is tried.
ZEROS = bytes(1 << 20)
OPEN_PACKS = 32


def die(text):
    print(text, file=sys.stderr)
    sys.exit(2)


class Damage(Exception):
    """Stored bytes are missing or are not what they must be."""


class Reader:
    """Numbers, bytes and ids, one after another."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        if count > len(self.data) - self.at:
            raise Damage("ends too early")
        self.at += count
        return self.data[self.at - count:self.at]

    def number(self):
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise Damage("a number is too long")

    def signed(self):
        value = self.number()
        return -(value + 1 >> 1) if value & 1 else value >> 1

    def bytes(self):
        return self.take(self.number())

    def time(self):  # In nanoseconds.
        return self.signed() * 10**9 + self.number()

    def pairs(self):
        return [(self.bytes(), self.bytes()) for _ in range(self.number())]

    def more(self):
        return self.at < len(self.data)


# --- The stored form of a chunk.

def unzstd(frame, length):
    try:
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=max(length, 1), allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Damage(f"zstd: {error}") from None


@functools.lru_cache(8)
def top_bits(count, width):
    return int.from_bytes((bytes(width - 1) + b"\x80") * count, "little")


def turn_right(elements, count, width):
    """Rotates every element right by one bit, all at once as one long integer: each gives its lowest bit to the one
    below it, which is the wrong one's top bit and replaced by its own lowest."""
    whole, top = int.from_bytes(elements, "little"), top_bits(count, width)
    halved = whole >> 1
    turned = halved ^ (halved & top) | (whole << 8 * width - 1) & top  # The inverse of a mask this long is slow.
    return turned.to_bytes(len(elements), "little")


def unplane(reader, length):
    width, turned, lead = reader.take(3)
    if width not in (2, 4, 8) or turned > 1 or lead >= width or lead > length:
        raise Damage("byte planes that this version does not have")
    count = (length - lead) // width
    planes = []
    for _ in range(width):
        method, data = reader.take(1)[0], reader.take(int.from_bytes(reader.take(4), "little"))
        if method == 0:
            planes.append(data)
        elif method == 1:
            planes.append(unzstd(data, count))
        elif method == 3 and len(data) == 1:
            planes.append(data * count)
        else:
            raise Damage(f"a plane by method {method}")
        if len(planes[-1]) != count:
            raise Damage("a plane of the wrong length")
    elements = bytearray(count * width)
    for k, plane in enumerate(planes):
        elements[k::width] = plane
    if turned:
        elements = turn_right(elements, count, width)
    return reader.take(lead) + elements + reader.take(length - lead - len(elements))


def unstore(stored, length):
    reader = Reader(stored)
    codec = reader.take(1)[0]
    if codec == 0:
        content = reader.take(length)
    elif codec == 1:
        content = unzstd(reader.take(len(stored) - 1), length)
    elif codec == 2:
        content = unplane(reader, length)
    elif codec == 3:
        content = reader.take(1) * length
    else:
        raise Damage(f"codec {codec} is unknown")
    if len(content) != length or reader.more():
        raise Damage("content of the wrong length")
    return content


# --- The repository.

class Repository:
    def __init__(self, root, password, key_file):
        self.root, self.masters, self.open_packs, self.problems = root, None, {}, 0
        try:
            stored = self.read("config")
            config = json.loads(stored)
            made = config["format"], config["version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            die(f"{root} is not a repository: config: {error!r}")
        if made != ("muster-repository", 1):
            die(f"{root}: format {made[0]} version {made[1]} is unknown to this program")
        self.unlock(blake3(stored).hexdigest(), password, key_file)
        self.chunks, self.packs, self.scanned = {}, [], False

    def read(self, *names):
        with open(os.path.join(self.root, *names), "rb") as file:
            return file.read()

    def names(self, *folder, digits=64):
        try:
            found = os.listdir(os.path.join(self.root, *folder))
        except FileNotFoundError:
            return []
        return sorted(name for name in found if re.fullmatch(f"[0-9a-f]{{{digits}}}", name))

    def complain(self, text):
        self.problems += 1
        print(f"damaged: {text}", file=sys.stderr)

    def slots(self, password, key_file):
        """The key slots of this kind, what takes least first: anybody who may write to the place can put one there that
        takes minutes. What is no slot is said and passed over."""
        found = []
        for name in self.names("keys"):
            try:
                if os.path.getsize(os.path.join(self.root, "keys", name)) > SLOT:
                    raise Damage("has more bytes than any slot")
                stored = self.read("keys", name)
                if blake3(stored).hexdigest() != name:
                    raise Damage("the digest is not the name")
                slot = json.loads(stored)
                stretch, secret = slot["stretch"], {"salt": 16, "nonce": 12, "keyring": None}
                slot.update({field: bytes.fromhex(slot[field]) for field in secret})
                if any(length not in (None, len(slot[field])) for field, length in secret.items()) or len(slot["keyring"]) <= TAG:
                    raise Damage("a field is of the wrong length")
                if stretch["name"] == "argon2id":
                    memory, passes, lanes = (stretch[field] for field in ("memory_kib", "passes", "lanes"))
                    if memory > MEMORY_KIB or passes > PASSES or lanes > LANES:
                        raise Damage("asks for more memory or time than any slot should")
                    cost, ours = memory * passes, password is not None
                else:
                    cost, ours = 0, stretch["name"] == "blake3" and key_file is not None
                if ours:
                    found.append((cost, name, slot))
            except (Damage, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                print(f"keys/{name} is of no use: {error!r}", file=sys.stderr)
        return sorted(found, key=lambda one: one[:2])

    def unlock(self, config, password, key_file):
        tried, opened = 0, None
        for cost, name, slot in self.slots(password, key_file):
            if opened and cost > opened[0]:
                break
            try:
                stretch, salt = slot["stretch"], slot["salt"]
                if stretch["name"] == "argon2id":
                    wrapping = Argon2id(salt=salt, length=32, iterations=stretch["passes"], lanes=stretch["lanes"],
                                        memory_cost=stretch["memory_kib"]).derive(password)
                else:
                    wrapping = blake3(salt + key_file, derive_key_context=KEY_FILE_CONTEXT).digest()
                tried += 1
                plain = AESGCM(wrapping).decrypt(slot["nonce"], slot["keyring"], f"{config}/{slot['id']}".encode())
                keyring = json.loads(plain)
                masters = {int(number): bytes.fromhex(key) for number, key in keyring["masters"].items()}
                if not opened or keyring["current"] > opened[1]:  # Another, under the same secret, may be older.
                    opened, self.chunk_key, self.masters = (cost, keyring["current"]), bytes.fromhex(keyring["chunk"]), masters
            except InvalidTag:
                continue  # Somebody else's password, or a damaged slot: they look the same.
            except (ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
                print(f"keys/{name} is of no use: {error!r}", file=sys.stderr)
        if not opened:
            die(f"{self.root}: none of {tried} key slots of this kind opens with it")

    def key(self, header, kind):
        if len(header) < HEADER or header[:8] != b"MUSTER1" + kind:
            raise Damage("not an object of this kind")
        master = self.masters.get(int.from_bytes(header[8:12], "little"))
        if master is None:
            raise Damage("under a master key that this slot does not have")
        return AESGCM(blake3(header[:HEADER], key=master).digest())

    @staticmethod
    def unseal(key, number, segment):
        try:
            return key.decrypt(number.to_bytes(8, "little") + bytes(4), bytes(segment), None)
        except (InvalidTag, ValueError):
            raise Damage("the seal is broken") from None

    def sealed(self, folder, name, kind):
        """The plain form of an index object or a snapshot."""
        try:
            data = self.read(folder, name)
        except OSError as error:
            raise Damage(error.strerror) from None
        if blake3(data).hexdigest() != name:
            raise Damage("the digest is not the name")
        reader = Reader(self.unseal(self.key(data, kind), 0, data[HEADER:]))
        length = reader.number()
        return unstore(reader.data[reader.at:], length)

    def bound(self, key):
        """The plain form of an object that is authenticated together with its key."""
        with open(os.path.join(self.root, key), "rb") as file:
            data = file.read()
        try:
            plain = self.key(data, b"W").decrypt(bytes(12), data[HEADER:], key.encode())
        except (InvalidTag, ValueError):
            raise Damage("the seal is broken, or it is of another name") from None
        reader = Reader(plain)
        length = reader.number()
        return unstore(reader.data[reader.at:], length)

    def add_directory(self, pack, reader):
        """A directory, as it is in a pack and in the index. A chunk remembers its other places, should one be damaged."""
        offset, number = HEADER, len(self.packs)
        self.packs.append(pack)
        for segment in range(reader.number()):
            name, stored, length = reader.take(32), reader.number(), reader.number()
            self.chunks[name] = (number, segment, offset, stored, length, self.chunks.get(name))
            offset += stored

    def read_index(self):
        for name in self.names("index"):
            try:
                reader = Reader(self.sealed("index", name, b"I"))
                for _ in range(reader.number()):
                    pack = reader.take(32).hex()
                    reader.number()  # The size of the pack.
                    self.add_directory(pack, reader)
            except Damage as damage:
                self.complain(f"index/{name}: {damage} (the packs themselves say what is in them)")

    def scan(self):
        """Where chunks lie, from the packs' own directories: for what the index does not say."""
        if self.scanned:
            return
        self.scanned = True
        known = set(self.packs)
        for folder in self.names("packs", digits=2):
            for name in self.names("packs", folder):
                if name not in known:
                    try:
                        file, key = self.pack(name)
                        end = os.fstat(file).st_size - 4
                        size = int.from_bytes(os.pread(file, 4, max(end, 0)), "little")
                        plain = self.unseal(key, DIRECTORY, os.pread(file, size, max(end - size, 0)))
                        self.add_directory(name, Reader(plain))
                    except (OSError, Damage) as damage:
                        print(f"packs/{folder}/{name} is in no index and unreadable: {damage}", file=sys.stderr)

    def pack(self, name):
        """An open pack and its key; the last few are kept open."""
        if name in self.open_packs:
            self.open_packs[name] = self.open_packs.pop(name)
            return self.open_packs[name]
        file = os.open(os.path.join(self.root, "packs", name[:2], name), os.O_RDONLY)
        try:
            key = self.key(os.pread(file, HEADER, 0), b"P")
        except Damage:
            os.close(file)
            raise
        self.open_packs[name] = file, key
        if len(self.open_packs) > OPEN_PACKS:
            os.close(self.open_packs.pop(next(iter(self.open_packs)))[0])
        return file, key

    def chunk(self, name):
        """The content of a chunk, from the first of its places that has it unharmed."""
        while True:
            place, why = self.chunks.get(name), "no pack has it"
            while place:
                number, segment, offset, stored, length, place = place
                pack = self.packs[number]
                try:
                    file, key = self.pack(pack)
                    content = unstore(self.unseal(key, segment, os.pread(file, stored, offset)), length)
                    if blake3(content, key=self.chunk_key).digest() == name:
                        return content
                    why = f"not what it was in packs/{pack[:2]}/{pack}"
                except Damage as damage:
                    why = f"{damage} in packs/{pack[:2]}/{pack}"
                except OSError as error:
                    why = f"packs/{pack[:2]}/{pack}: {error.strerror}"
            if self.scanned:
                raise Damage(f"chunk {name.hex()}: {why}")
            self.scan()

    def snapshot(self, name):
        snapshot = json.loads(self.sealed("snapshots", name, b"S"))
        return {**snapshot, "id": name}

    def snapshots(self):
        found = []
        for name in self.names("snapshots"):
            try:
                found.append(self.snapshot(name))
            except (Damage, ValueError) as damage:
                self.complain(f"snapshots/{name}: {damage}")
        return sorted(found, key=lambda snapshot: datetime.datetime.fromisoformat(snapshot["time"]))


# --- Restoring.

def shown(path):
    text = path.decode("utf-8", "surrogateescape")
    return text if text.isprintable() else repr(path)[1:]


class Restore:
    def __init__(self, repository, target):
        self.repository = repository
        self.root = os.path.realpath(os.fsencode(target))
        self.folders, self.links, self.symlinks, self.restored = [], [], [], 0
        self.admin = os.geteuid() == 0

    def failed(self, path, why):
        self.repository.problems += 1
        print(f"not restored: {shown(path)}: {why}", file=sys.stderr)

    def place(self, path):
        """Where a path goes: never outside the target, whatever the path says and whatever symbolic links there are."""
        if path and any(part in (b"", b".", b"..") or b"\0" in part for part in path.split(b"/")):
            raise Damage("a path that leads elsewhere")
        if not path:
            return self.root
        whole = os.path.join(self.root, path)
        parent = os.path.dirname(whole)
        if os.path.realpath(parent) != parent:
            raise Damage("a path through a symbolic link")
        os.makedirs(parent, mode=0o700, exist_ok=True)  # It exists, unless its own entry was lost, and in buckets.
        return whole

    def entries(self, names):
        """The entries, one after another; of a damaged part of the list is said between which paths it lies."""
        last, lost = b"", None
        for number, name in enumerate(names):
            try:
                reader = Reader(self.repository.chunk(bytes.fromhex(name)))
                while reader.more():
                    entry = self.entry(reader)
                    if lost:
                        self.repository.complain(f"{lost}: everything between {shown(last)} and {shown(entry['path'])}")
                    last, lost = entry["path"], None
                    yield entry
            except Damage as damage:
                lost = f"part {number + 1} of {len(names)} of the list: {damage}"
        if lost:
            self.repository.complain(f"{lost}: everything after {shown(last)}")

    @staticmethod
    def entry(reader):
        entry = {"kind": reader.take(1), "path": reader.bytes()}
        kind = entry["kind"]
        if kind not in (b"f", b"F", b"d", b"l", b"h", b"p", b"s", b"c", b"b", b"o"):
            raise Damage(f"an entry of the unknown kind {kind!r}")
        if kind == b"o":
            entry.update(mode=None, mtime=reader.time(), etag=reader.bytes(), version=reader.bytes(),
                         metadata=reader.pairs(), attributes=[])
        else:
            entry.update(mode=reader.number() & 0o7777, uid=reader.number(), gid=reader.number(), mtime=reader.time(),
                         attributes=reader.pairs())
        if kind in b"fF":
            entry.update(ctime=reader.time(), inode=reader.number())
        if kind in b"fFo":
            entry.update(size=reader.number(), flags=reader.take(1)[0], digest=reader.take(32))
            if entry["flags"] & 2:
                entry["spilled"] = [reader.take(32) for _ in range(reader.number())]
            else:
                entry["extents"] = Restore.extents(reader, kind == b"F")
        elif kind in b"lh":
            entry["to"] = reader.bytes()
        elif kind in b"cb":
            entry["device"] = reader.number(), reader.number()
        return entry

    @staticmethod
    def extents(reader, patched):
        """(length, chunk), (length, None) for zeros, or (length, (id, parts)) for what is put together from parts of
        chunks, each (chunk, offset, length)."""
        found = []
        for _ in range(reader.number()):
            x = reader.number()
            if x or not patched:
                found.append((x >> 1, reader.take(32) if x & 1 else None))
                continue
            length, name = reader.number(), reader.take(32)
            chunks = [reader.take(32) for _ in range(reader.number())]
            parts = [(reader.number(), reader.number(), reader.number()) for _ in range(reader.number())]
            if any(which >= len(chunks) for which, _, _ in parts):
                raise Damage("a part of no chunk")
            found.append((length, (name, [(chunks[which], offset, size) for which, offset, size in parts])))
        return found

    def all_extents(self, entry):
        for name in entry.get("spilled", ()):
            yield from self.extents(Reader(self.repository.chunk(name)), entry["kind"] == b"F")
        yield from entry.get("extents", ())

    def run(self, snapshot):
        os.makedirs(self.root, mode=0o700, exist_ok=True)
        for entry in self.entries(snapshot["list"]):
            self.one(entry)
        # Hard links to files while there is no symbolic link yet; those to symbolic links after these.
        symlinks = {entry["path"] for entry in self.symlinks}
        late = [entry for entry in self.links if entry["to"] in symlinks]
        early = [entry for entry in self.links if entry["to"] not in symlinks]
        for entry in early + self.symlinks + late:
            self.attempt(entry, self.link)
        for entry in reversed(self.folders):  # The deepest first: one that may not be written no longer needs to be.
            self.attempt(entry, self.folder_metadata)

    def attempt(self, entry, what):
        try:
            what(entry)
            self.restored += what != self.folder_metadata  # A folder counts once.
        except OSError as error:
            self.failed(entry["path"], error.strerror)
        except (Damage, ValueError, OverflowError) as error:  # The latter two: the system has no such name or number.
            self.failed(entry["path"], error)

    def one(self, entry):
        kind = entry["kind"]
        if kind in b"lh":  # Later, when all folders and files are there.
            (self.symlinks if kind == b"l" else self.links).append(entry)
        else:
            self.attempt(entry, self.folder if kind == b"d" else self.file if kind in b"fFo" else self.special)

    def folder(self, entry):
        path = self.place(entry["path"].removesuffix(b"/"))
        if path != self.root:
            os.mkdir(path, 0o700)
        self.folders.append(entry)

    def folder_metadata(self, entry):
        path = os.path.join(self.root, entry["path"]).rstrip(b"/")
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            self.metadata(handle, entry)
        finally:
            os.close(handle)

    def file(self, entry):
        path = self.place(entry["path"])
        whole = False
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            self.content(handle, entry)
            whole = True
            self.metadata(handle, entry)
        finally:
            os.close(handle)
            if not whole:
                os.unlink(path)
        if entry["flags"] & 1:
            print(f"note: {shown(entry['path'])} changed while it was backed up", file=sys.stderr)

    def content(self, handle, entry):
        digest, at = blake3(), 0
        for length, chunk in self.all_extents(entry):
            if chunk is None:
                for start in range(0, length, len(ZEROS)):
                    digest.update(ZEROS[:length - start])
            else:
                content = self.patched(*chunk) if isinstance(chunk, tuple) else self.repository.chunk(chunk)
                if len(content) != length:
                    raise Damage("a chunk is not of the length that the file says")
                digest.update(content)
                view = memoryview(content)
                while view:
                    written = os.pwrite(handle, view, at + len(content) - len(view))
                    view = view[written:]
            at += length
        os.ftruncate(handle, at)
        if at != entry["size"]:
            raise Damage(f"{at} bytes instead of {entry['size']}")
        if digest.digest() != entry["digest"]:
            raise Damage("the whole does not have its digest")

    def patched(self, name, parts):
        """What parts of chunks make together; `name` is what a chunk of it would be called."""
        chunks = {chunk: self.repository.chunk(chunk) for chunk in {chunk for chunk, _, _ in parts}}
        content = b"".join(chunks[chunk][offset:offset + length] for chunk, offset, length in parts)
        if blake3(content, key=self.repository.chunk_key).digest() != name:
            raise Damage("parts of chunks do not make what they should")
        return content

    def special(self, entry):
        path = self.place(entry["path"])
        kinds = {b"p": stat.S_IFIFO, b"s": stat.S_IFSOCK, b"c": stat.S_IFCHR, b"b": stat.S_IFBLK}
        os.mknod(path, kinds[entry["kind"]] | 0o600, os.makedev(*entry.get("device", (0, 0))))
        self.metadata(path, entry)

    def link(self, entry):
        path = self.place(entry["path"])
        if entry["kind"] == b"h":
            os.link(self.place(entry["to"]), path, follow_symlinks=False)
        else:
            os.symlink(entry["to"], path)
            self.metadata(path, entry)

    def metadata(self, where, entry):
        """Owner, attributes, mode, time: in this order, as each undoes some of those after it. `where` is an open file,
        or the path of what cannot be opened. What cannot be set is said; the content stays."""
        follow = {} if isinstance(where, int) else {"follow_symlinks": False}
        mode, mine = entry["mode"], (os.geteuid(), os.getegid())

        def attempt(what, function, *arguments, **more):
            try:
                function(where, *arguments, **more)
                return True
            except (OSError, ValueError, OverflowError) as error:
                print(f"note: {shown(entry['path'])} is restored, but not its {what}: {error}", file=sys.stderr)
                return False

        if mode is not None:  # Objects have neither.
            owner = entry["uid"], entry["gid"]
            if owner != mine and not (self.admin and attempt("owner", os.chown, *owner, **follow)):
                mode &= 0o1777  # "Run as the owner" would now mean somebody else.
        for name, value in entry["attributes"]:
            attempt(f"attribute {shown(name)}", os.setxattr, name, value, **follow)
        if mode is not None and entry["kind"] != b"l":
            attempt("mode", os.chmod, mode)
        attempt("time", os.utime, ns=(entry["mtime"], entry["mtime"]), **follow)


# --- The write-ahead log of a database.

def segment(content):
    """How long segments are, by the long header of the first page."""
    if len(content) < 40 or content[1] != 0xD1 or not content[2] & 2:
        raise Damage("it does not begin as a segment of PostgreSQL's log does")
    return int.from_bytes(content[32:36], "little")


def wal(repository, system, name, target):
    """0: it is there; 1: there is no such file; else PostgreSQL must not believe that the log has ended."""
    if not re.fullmatch(r"[1-9][0-9]*", system) or not re.fullmatch(r"[0-9A-F]{8}([0-9A-F]{16})?(\.[0-9A-Za-z.]+)?", name):
        die(f"{system} {name}: no file of a write-ahead log")
    folder = os.path.join("wal", system, name[:8])
    try:
        there = sorted(os.listdir(os.path.join(repository.root, folder)))
    except FileNotFoundError:
        return 1
    try:
        if name in there:
            content = repository.bound(f"{folder}/{name}")
        elif len(name) != 24:
            return 1
        else:
            if any(len(other) >= 24 and other[:24] > name for other in there):
                raise Damage("it is missing, and others that come after it are there")
            pieces = [re.fullmatch(name + r"\.([0-9A-F]{8})-([0-9A-F]{8})", other) for other in there]
            pieces = [(int(piece[1], 16), int(piece[2], 16), piece[0]) for piece in pieces if piece]
            content = b""
            while True:
                reaching = [piece for piece in pieces if piece[0] <= len(content) < piece[1]]
                if not reaching:
                    break
                start, end, piece = max(reaching, key=lambda piece: piece[1])
                part = repository.bound(f"{folder}/{piece}")
                if len(part) != end - start:
                    raise Damage(f"{piece} is of another length than its name says")
                content += part[len(content) - start:]
            if not content:
                return 1
            content += bytes(segment(content) - len(content))
    except (Damage, OSError) as damage:
        print(f"{folder}/{name}: {damage}", file=sys.stderr)
        return 126
    with open(target, "wb") as file:
        file.write(content)
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo")
    parser.add_argument("snapshot", nargs="?", help="`latest`, or the beginning of an id")
    parser.add_argument("target", nargs="?", help="a folder that is empty or does not exist")
    parser.add_argument("--password-file", help="holds the password; a line end at its end does not count")
    parser.add_argument("--key-file")
    parser.add_argument("--list", action="store_true", help="list the snapshots")
    parser.add_argument("--wal", nargs=3, metavar=("SYSTEM", "NAME", "FILE"), help="get one file of a write-ahead log")
    given = parser.parse_args()
    if not given.password_file and not given.key_file:
        parser.error("a --password-file or a --key-file is needed")
    if not given.list and not given.wal and not (given.snapshot and given.target):
        parser.error("a snapshot and a target are needed, or --list")

    password = key_file = None
    try:
        if given.password_file:
            password = pathlib.Path(given.password_file).read_bytes()
            if password.endswith(b"\n"):  # One, as editors add it.
                password = password[:-1].removesuffix(b"\r")
        if given.key_file:
            key_file = pathlib.Path(given.key_file).read_bytes()
    except OSError as error:
        die(f"{error.filename}: {error.strerror}")

    repository = Repository(given.repo, password, key_file)
    if given.wal:
        sys.exit(wal(repository, *given.wal))
    if given.list:
        for snapshot in repository.snapshots():
            stats, source = snapshot.get("stats", {}), snapshot.get("source", {})
            print(snapshot["id"][:16], snapshot["time"], snapshot.get("host", ""),
                  source.get("path") or source.get("url") or source.get("name"), *snapshot.get("tags", []),
                  f"{stats.get('files')} files, {stats.get('bytes')} bytes")
        sys.exit(1 if repository.problems else 0)

    if os.path.isdir(given.target) and os.listdir(given.target):
        die(f"{given.target} is not empty")
    if given.snapshot == "latest":
        found = repository.snapshots()[-1:]
    else:
        names = [name for name in repository.names("snapshots") if name.startswith(given.snapshot)]
        if len(names) > 1:
            die(f"{given.snapshot} begins the ids of {len(names)} snapshots")
        try:
            found = [repository.snapshot(name) for name in names]
        except (Damage, ValueError) as damage:
            die(f"snapshots/{names[0]}: {damage}")
    if not found:
        die(f"{given.repo} has no snapshot {given.snapshot}")
    repository.read_index()
    restore = Restore(repository, given.target)
    restore.run(found[0])
    print(f"{restore.restored} entries of {found[0]['id'][:16]} restored to {given.target}"
          + (f", {repository.problems} problems" if repository.problems else ""))
    sys.exit(1 if repository.problems else 0)


if __name__ == "__main__":
    main()
