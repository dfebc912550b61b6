//! Identifiers, and where each object of a repository lies.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::{fmt, str::FromStr};

/// Of the whole format: what a reader must know to open a repository.
pub const VERSION: u64 = 1;

pub const CONFIG: &str = "config";
pub const KEYS: &str = "keys/";
pub const PACKS: &str = "packs/";
pub const INDEX: &str = "index/";
pub const SNAPSHOTS: &str = "snapshots/";
pub const MARKS: &str = "marks/";
pub const PROOFS: &str = "proofs/";
pub const WAL: &str = "wal/";

/// 32 bytes: of a chunk, the keyed BLAKE3 of its content; of an object, the BLAKE3 of its stored bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub [u8; 32]);

impl Id {
    /// The name of an object with these stored bytes.
    #[must_use]
    pub fn of(stored: &[u8]) -> Self {
        Self(*blake3::hash(stored).as_bytes())
    }
    /// Enough to tell snapshots apart, short enough to type.
    #[must_use]
    pub fn short(&self) -> String {
        hex::encode(&self.0[..5])
    }
    /// The object's place under `folder`; packs are spread over 256 folders.
    #[must_use]
    pub fn key(&self, folder: &str) -> String {
        if folder == PACKS { format!("{folder}{}/{self}", hex::encode(&self.0[..1])) } else { format!("{folder}{self}") }
    }
    /// The identifier in an object's key, if it is one of ours.
    #[must_use]
    pub fn in_key(key: &str, folder: &str) -> Option<Self> {
        let id: Self = key.rsplit('/').next()?.parse().ok()?;
        (id.key(folder) == key).then_some(id)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}
impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.short())
    }
}
impl FromStr for Id {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut id = [0; 32];
        // One spelling only: an object has one name.
        let lower = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !lower || hex::decode_to_slice(text, &mut id).is_err() {
            return Err(format!("`{text}` is not 64 hexadecimal digits"));
        }
        Ok(Self(id))
    }
}
impl Serialize for Id {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_its_object_and_no_other_spelling_does() {
        let id = Id::of(b"x");
        for folder in [PACKS, INDEX, SNAPSHOTS] {
            assert_eq!(Id::in_key(&id.key(folder), folder), Some(id));
        }
        assert_eq!(Id::in_key(&format!("packs/00/{id}"), PACKS), None, "in another pack's folder");
        assert_eq!(Id::in_key(&id.key(INDEX).to_uppercase(), INDEX), None);
        assert_eq!(Id::in_key("index/readme", INDEX), None);
    }
}
