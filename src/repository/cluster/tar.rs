//! The tar archives of a base backup, taken apart as they come: headers of 512 bytes, content filled up to a multiple
//! of that, two blocks of zeros at the end, or none. PostgreSQL writes plain `ustar` headers with names of less than 100
//! bytes, and sizes above 8 GiB in base 256.

/// Headers and content come in units of this.
pub const BLOCK: usize = 512;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Folder,
    Link { to: Vec<u8> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub path: Vec<u8>,
    pub kind: Kind,
    pub size: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
}

/// How many bytes follow content of this size up to the next header.
#[must_use]
pub fn padding(size: u64) -> usize {
    (size.next_multiple_of(BLOCK as u64) - size) as usize
}

/// One header; `None`: a block of zeros, which is no header.
/// # Errors
/// When it is none that PostgreSQL writes.
pub fn header(block: &[u8; BLOCK]) -> Result<Option<Header>, String> {
    if block.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let sum: u64 = block.iter().enumerate().map(|(at, byte)| u64::from(if (148..156).contains(&at) { b' ' } else { *byte })).sum();
    if number(&block[148..156])? != sum {
        return Err("a header whose checksum is wrong".to_owned());
    }
    let path = until_zero(&block[..100]);
    if path.is_empty() || path.starts_with(b"/") || path.split(|b| *b == b'/').any(|part| part == b"..") {
        return Err(format!("the name `{}`", String::from_utf8_lossy(path)));
    }
    let path = path.strip_prefix(b"./").unwrap_or(path);
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let kind = match block[156] {
        b'0' | 0 => Kind::File,
        b'5' => Kind::Folder,
        b'2' => Kind::Link { to: until_zero(&block[157..257]).to_vec() },
        other => return Err(format!("`{}`, which is of kind `{}`", String::from_utf8_lossy(path), char::from(other).escape_default())),
    };
    let small = |range: std::ops::Range<usize>| number(&block[range]).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    Ok(Some(Header {
        path: path.to_vec(),
        size: if kind == Kind::File { number(&block[124..136])? } else { 0 },
        kind,
        mode: small(100..108)? & 0o7777,
        uid: small(108..116)?,
        gid: small(116..124)?,
        mtime: number(&block[136..148])?.cast_signed(),
    }))
}

fn until_zero(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|byte| *byte == 0).unwrap_or(field.len())]
}

/// Octal digits, or base 256 if the first bit is set.
fn number(field: &[u8]) -> Result<u64, String> {
    let wrong = || "a number that is none".to_owned();
    if field[0] & 0x80 != 0 {
        let rest = &field[field.len().saturating_sub(8)..];
        return Ok(rest.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)));
    }
    let text = std::str::from_utf8(field).map_err(|_| wrong())?;
    let text = text.trim_matches(|c: char| c == ' ' || c == '\0');
    if text.is_empty() { Ok(0) } else { u64::from_str_radix(text, 8).map_err(|_| wrong()) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As `tarCreateHeader` writes one.
    pub fn written(path: &str, kind: u8, size: u64, link: &str) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, path);
        put(100, "0000600 ");
        put(108, "0000146 ");
        put(116, "0000150 ");
        if size < 1 << 33 {
            put(124, &format!("{size:011o} "));
        }
        put(136, "14000000000 ");
        put(157, link);
        put(257, "ustar");
        put(263, "00");
        block[156] = kind;
        if size >= 1 << 33 {
            block[124] = 0x80;
            block[128..136].copy_from_slice(&size.to_be_bytes());
        }
        let sum: u64 = block.iter().map(|b| u64::from(*b)).sum::<u64>() + 8 * 32;
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    #[test]
    fn headers_are_read() {
        let read = header(&written("base/1/1259", b'0', 81_920, "")).unwrap().unwrap();
        assert_eq!((read.path.as_slice(), read.size, read.mode, read.uid), (&b"base/1/1259"[..], 81_920, 0o600, 102));
        let large = header(&written("x", b'0', 20 << 30, "")).unwrap().unwrap();
        assert_eq!((large.size, padding(large.size), padding(1)), (20 << 30, 0, 511));
        let link = header(&written("pg_tblspc/16384", b'2', 0, "/mnt/fast")).unwrap().unwrap();
        assert_eq!(link.kind, Kind::Link { to: b"/mnt/fast".to_vec() });
        let folder = header(&written("./pg_wal/", b'5', 0, "")).unwrap().unwrap();
        assert_eq!((folder.path, folder.kind), (b"pg_wal".to_vec(), Kind::Folder));
        assert_eq!(header(&[0; BLOCK]), Ok(None));
        let mut wrong = written("a", b'0', 1, "");
        wrong[0] = b'b';
        assert!(header(&wrong).unwrap_err().contains("checksum"));
        assert!(header(&written("../a", b'0', 1, "")).is_err() && header(&written("/a", b'0', 1, "")).is_err());
        assert!(header(&written("a", b'3', 1, "")).is_err());
    }

    proptest! {
        #[test]
        fn no_block_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), BLOCK)) {
            let _ = header(bytes.as_slice().try_into().unwrap());
        }
    }
}
