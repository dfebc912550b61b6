//! One sealed object: a header of 44 bytes, then segments, each encrypted and authenticated by AES-256-GCM.
//!
//! ```text
//! 0   "MUSTER1"          seven bytes, format version 1
//! 7   kind               P pack, I index, S snapshot, M marks, V proof, W write-ahead log
//! 8   generation         of the master key, four bytes, little-endian
//! 12  salt               32 random bytes
//! 44  segments           each its ciphertext and a tag of 16 bytes
//! ```
//!
//! Each object has a key of its own: the BLAKE3 of the header, keyed with the master key of its generation. So a
//! changed header opens nothing, an object cannot pass for one of another kind, and no two objects share a nonce:
//! the nonce of a segment is its number, eight bytes little-endian and four zeros. A random nonce under one key for
//! everything would run into the birthday bound of 96 bits for large repositories; a salt of 256 bits does not.
//!
//! An object that is not named by its digest (a segment of a write-ahead log: who asks for it knows its name alone) is
//! authenticated together with its name, so that none can stand for another.

use super::{
    RepositoryError, Result,
    keys::Keyring,
    names::{INDEX, Id, MARKS, PACKS, PROOFS, SNAPSHOTS, WAL},
};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

pub const HEADER: usize = 44;
/// The authentication tag after each segment.
pub const TAG: usize = 16;
const MAGIC: &[u8; 7] = b"MUSTER1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Pack = b'P' as isize,
    Index = b'I' as isize,
    Snapshot = b'S' as isize,
    Marks = b'M' as isize,
    Proof = b'V' as isize,
    Wal = b'W' as isize,
}

impl Kind {
    #[must_use]
    pub fn folder(self) -> &'static str {
        match self {
            Self::Pack => PACKS,
            Self::Index => INDEX,
            Self::Snapshot => SNAPSHOTS,
            Self::Marks => MARKS,
            Self::Proof => PROOFS,
            Self::Wal => WAL,
        }
    }
}

/// What opens and closes the segments of one object.
pub struct ObjectKey(LessSafeKey);

impl ObjectKey {
    fn new(keyring: &Keyring, header: &[u8]) -> Option<Self> {
        let key = derived(keyring, header)?;
        Some(Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_bytes()).ok()?)))
    }

    /// Encrypts what stands in `out` from `start` on, as segment `number`, and appends its tag.
    pub fn seal(&self, number: u64, out: &mut Vec<u8>, start: usize) -> Result<()> {
        self.seal_with(number, &[], out, start)
    }

    /// The same together with `more`, which is authenticated and not written.
    fn seal_with(&self, number: u64, more: &[u8], out: &mut Vec<u8>, start: usize) -> Result<()> {
        let body = out.get_mut(start..).unwrap_or_default();
        let tag = self.0.seal_in_place_separate_tag(nonce(number), Aad::from(more), body);
        let tag = tag.map_err(|_| RepositoryError::Refused("a segment could not be encrypted: it is too large".to_owned()))?;
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// Decrypts in place. `None`: not what was written.
    pub fn open<'a>(&self, number: u64, sealed: &'a mut [u8]) -> Option<&'a [u8]> {
        self.open_with(number, &[], sealed)
    }

    fn open_with<'a>(&self, number: u64, more: &[u8], sealed: &'a mut [u8]) -> Option<&'a [u8]> {
        self.0.open_in_place(nonce(number), Aad::from(more), sealed).ok().map(|plain| &*plain)
    }
}

/// The key of the object that begins with this header.
fn derived(keyring: &Keyring, header: &[u8]) -> Option<blake3::Hash> {
    let generation = u32::from_le_bytes(header.get(8..12)?.try_into().ok()?);
    Some(blake3::keyed_hash(keyring.master(generation)?, header))
}

/// Under which generation of the master key an object is that begins so. Nobody vouches for it until the object opens.
#[must_use]
pub fn generation(header: &[u8]) -> Option<u32> {
    let number = header.strip_prefix(MAGIC)?.get(1..5)?;
    Some(u32::from_le_bytes(number.try_into().ok()?))
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Begins an object: its header, and the key for its segments.
pub fn begin(keyring: &Keyring, kind: Kind, out: &mut Vec<u8>) -> Result<ObjectKey> {
    let start = out.len();
    out.extend_from_slice(MAGIC);
    out.push(kind as u8);
    out.extend_from_slice(&keyring.current().to_le_bytes());
    out.extend_from_slice(&super::keys::random()?);
    ObjectKey::new(keyring, &out[start..]).ok_or_else(|| RepositoryError::Refused("the keyring has no current key".to_owned()))
}

/// The key to the object that begins with `header`.
pub fn unlock(keyring: &Keyring, kind: Kind, header: &[u8]) -> std::result::Result<ObjectKey, &'static str> {
    let header = header.get(..HEADER).ok_or("it is cut short")?;
    if header[..7] != *MAGIC || header[7] != kind as u8 {
        return Err("its first bytes are not those of such an object");
    }
    ObjectKey::new(keyring, header).ok_or("its key is not in the keyring")
}

/// A whole object of one segment, and its name.
pub fn whole(keyring: &Keyring, kind: Kind, plain: &[u8]) -> Result<(Id, Vec<u8>)> {
    let mut out = Vec::with_capacity(HEADER + plain.len() + TAG);
    let key = begin(keyring, kind, &mut out)?;
    out.extend_from_slice(plain);
    key.seal(0, &mut out, HEADER)?;
    Ok((Id::of(&out), out))
}

/// What an object of one segment holds. `id` is its name: both must fit.
pub fn open_whole(keyring: &Keyring, kind: Kind, id: &Id, mut stored: Vec<u8>) -> Result<Vec<u8>> {
    let damaged = |why| RepositoryError::damaged(id.key(kind.folder()), why);
    if Id::of(&stored) != *id {
        return Err(damaged("its bytes do not have the digest that its name says"));
    }
    let key = unlock(keyring, kind, &stored).map_err(damaged)?;
    let plain = key.open(0, &mut stored[HEADER..]).ok_or_else(|| damaged("it does not decrypt with the repository's key"))?.len();
    stored.drain(..HEADER);
    stored.truncate(plain);
    Ok(stored)
}

/// A whole object of one segment that is bound to its key in the store, and not named by its digest.
pub fn bound(keyring: &Keyring, kind: Kind, key: &str, plain: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(HEADER + plain.len() + TAG);
    let object = begin(keyring, kind, &mut out)?;
    out.extend_from_slice(plain);
    object.seal_with(0, key.as_bytes(), &mut out, HEADER)?;
    Ok(out)
}

/// What the object under `key` holds: only if it was written under that key.
pub fn open_bound(keyring: &Keyring, kind: Kind, key: &str, mut stored: Vec<u8>) -> Result<Vec<u8>> {
    let damaged = |why| RepositoryError::damaged(key, why);
    let object = unlock(keyring, kind, &stored).map_err(damaged)?;
    let plain = object.open_with(0, key.as_bytes(), &mut stored[HEADER..]);
    let plain = plain.ok_or_else(|| damaged("it does not decrypt with the repository's key under this name"))?.len();
    stored.drain(..HEADER);
    stored.truncate(plain);
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_names_and_segments_are_those_of_the_document() {
        let document = include_str!("../../docs/repository-format.md");
        let of = |byte: &str| byte.repeat(32);
        let plain = format!(r#"{{"chunk":"{}","cut":"{}","current":1,"masters":{{"1":"{}"}}}}"#, of("02"), of("00"), of("01"));
        let keyring = Keyring::from_bytes(plain.as_bytes()).unwrap();
        let header = [&b"MUSTER1P"[..], &1u32.to_le_bytes(), &[3; 32]].concat();
        let mut segment = b"\0content".to_vec();
        unlock(&keyring, Kind::Pack, &header).unwrap().seal(1, &mut segment, 0).unwrap();
        for (found, expected) in [
            (derived(&keyring, &header).unwrap().to_hex().to_string(), "72ef19c78fc6cca7b4a426e4023985ba95fe0d523b97a4535e4774864c155cba"),
            (keyring.chunk_id(b"content").to_string(), "48de035c57bccf0eb9da40358f7c043b4c4ed07880addd6b0596b342c9c7e5b5"),
            (hex::encode(segment), "ad747fc1ab8c23523e4fd781933f18026afb1d8b6dcfa7ba"),
        ] {
            assert_eq!(found, expected);
            assert!(document.contains(expected));
        }
    }

    #[test]
    fn what_is_bound_to_a_name_opens_under_no_other() {
        let keyring = Keyring::new().unwrap();
        let stored = bound(&keyring, Kind::Wal, "wal/7/a", b"records").unwrap();
        assert_eq!(open_bound(&keyring, Kind::Wal, "wal/7/a", stored.clone()).unwrap(), b"records");
        assert!(open_bound(&keyring, Kind::Wal, "wal/7/b", stored.clone()).is_err());
        assert!(open_bound(&keyring, Kind::Marks, "wal/7/a", stored.clone()).is_err());
        for bit in 0..stored.len() * 8 {
            let mut flipped = stored.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(open_bound(&keyring, Kind::Wal, "wal/7/a", flipped).is_err(), "bit {bit}");
        }
        assert!((0..stored.len()).all(|length| open_bound(&keyring, Kind::Wal, "wal/7/a", stored[..length].to_vec()).is_err()));
    }

    #[test]
    fn every_bit_counts() {
        let keyring = Keyring::new().unwrap();
        let (id, stored) = whole(&keyring, Kind::Index, b"what is where").unwrap();
        assert_eq!(open_whole(&keyring, Kind::Index, &id, stored.clone()).unwrap(), b"what is where");
        for bit in 0..stored.len() * 8 {
            let mut flipped = stored.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(open_whole(&keyring, Kind::Index, &id, flipped.clone()).is_err(), "bit {bit}");
            // Also whoever renames it to fit.
            assert!(open_whole(&keyring, Kind::Index, &Id::of(&flipped), flipped).is_err(), "bit {bit}, renamed");
        }
        for length in 0..stored.len() {
            let cut = stored[..length].to_vec();
            assert!(open_whole(&keyring, Kind::Index, &Id::of(&cut), cut).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn an_object_is_none_of_another_kind_or_repository() {
        let keyring = Keyring::new().unwrap();
        let (id, stored) = whole(&keyring, Kind::Index, b"x").unwrap();
        assert!(open_whole(&keyring, Kind::Snapshot, &id, stored.clone()).is_err());
        assert!(open_whole(&Keyring::new().unwrap(), Kind::Index, &id, stored.clone()).is_err());
        assert_ne!(whole(&keyring, Kind::Index, b"x").unwrap().1, stored, "the same content twice tells nothing");
    }
}
