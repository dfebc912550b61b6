//! What a safetensors file says of its inside: eight bytes of length, a JSON object that names each tensor with
//! its type, shape and place, then the tensors without gap.
//!
//! It is known by its content, not by its name, and believed only if everything in it fits: whatever is odd, such as an overlap, a
//! gap, a length that does not agree with shape and type, makes it a file like any other. Nothing depends on it
//! but how well chunks are shared.

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::fmt;

/// A header that is longer is not looked at. Those of the largest models published are below 1 MiB.
const MAX_HEADER: u64 = 16 << 20;
/// The length of the header.
const PREFIX: usize = 8;

/// What is known of the inside of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// How long the header is, its length included: 0 if nothing is known.
    pub(super) header: u64,
    /// One after another from the header on.
    pub(super) tensors: Vec<Tensor>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Where it ends in the file.
    pub end: u64,
    /// Bytes of an element; 0 if the type is not known.
    pub width: u8,
}

impl Layout {
    /// Whether the file was recognised as holding tensors.
    pub fn knows_tensors(&self) -> bool {
        self.header > 0
    }
}

/// The length of the header with its prefix, if this may be one.
fn header_length(head: &[u8], size: u64) -> Option<usize> {
    let ([prefix @ .., first], _) = head.split_first_chunk::<{ PREFIX + 1 }>()?;
    let length = u64::from_le_bytes(*prefix);
    let all = length.checked_add(PREFIX as u64).filter(|all| *all <= size && length <= MAX_HEADER && *first == b'{')?;
    usize::try_from(all).ok()
}

pub fn layout(head: &[u8], size: u64) -> Option<Layout> {
    let length = header_length(head, size)?;
    let header: Header = serde_json::from_slice(head.get(PREFIX..length)?).ok()?;
    let mut entries = header.0;
    entries.sort_unstable_by_key(|entry| (entry.begin, entry.end));
    let base = length as u64;
    let mut at = 0;
    let mut tensors = Vec::with_capacity(entries.len());
    for entry in entries {
        if entry.begin != at || entry.end < entry.begin {
            return None;
        }
        at = entry.end;
        if entry.end > entry.begin {
            tensors.push(Tensor { end: base.checked_add(at)?, width: entry.width });
        }
    }
    (base.checked_add(at)? == size && !tensors.is_empty()).then_some(Layout { header: base, tensors })
}

/// The entries of the header without their names, of which there may be hundreds of thousands.
struct Header(Vec<Entry>);

struct Entry {
    begin: u64,
    end: u64,
    width: u8,
}

#[derive(serde::Deserialize)]
struct Described<'a> {
    dtype: &'a str,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl Described<'_> {
    fn entry(&self) -> Option<Entry> {
        let (begin, end) = self.data_offsets;
        let Some((bytes, width)) = element(self.dtype) else { return Some(Entry { begin, end, width: 0 }) };
        let size = self.shape.iter().try_fold(bytes, |size, n| size.checked_mul(*n))?;
        (end.checked_sub(begin)? == size).then_some(Entry { begin, end, width })
    }
}

/// The bytes of an element, and of the number within it.
fn element(dtype: &str) -> Option<(u64, u8)> {
    match dtype {
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E5M2FNUZ" | "F8_E4M3FNUZ" => Some((1, 1)),
        "BF16" | "F16" | "I16" | "U16" => Some((2, 2)),
        "F32" | "I32" | "U32" => Some((4, 4)),
        "F64" | "I64" | "U64" => Some((8, 8)),
        // A complex number is two.
        "C64" => Some((8, 4)),
        _ => None,
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Entries)
    }
}

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Header;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the tensors of a safetensors file by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut entries = Vec::new();
        while let Some(Name { metadata }) = map.next_key()? {
            if metadata {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let described: Described<'de> = map.next_value()?;
            entries.push(described.entry().ok_or_else(|| serde::de::Error::custom("a tensor has not the length of its shape"))?);
        }
        Ok(Header(entries))
    }
}

/// Whether a name is the one that is not a tensor's.
struct Name {
    metadata: bool,
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(NameVisitor)
    }
}

struct NameVisitor;

impl Visitor<'_> for NameVisitor {
    type Value = Name;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Name, E> {
        Ok(Name { metadata: name == "__metadata__" })
    }
}
