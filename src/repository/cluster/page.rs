//! The checksum of PostgreSQL's pages (a variant of FNV-1a over 32 lanes), and what a page says of itself.
//!
//! A page that is all zeros is new and has none. One whose position in the log is after the backup's start is written anew
//! from the log by whoever restores: it may have been caught half written, and says nothing.

use crate::providers::port::Lsn;

const LANES: usize = 32;
const PRIME: u32 = 16_777_619;
const OFFSETS: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];
/// Where the checksum stands in a page.
const AT: std::ops::Range<usize> = 8..10;

fn mix(sum: u32, value: u32) -> u32 {
    let mixed = sum ^ value;
    mixed.wrapping_mul(PRIME) ^ (mixed >> 17)
}

/// What the checksum of this page must be, as the block of that number in its relation.
#[must_use]
pub fn checksum(page: &[u8], block: u32) -> u16 {
    let mut sums = OFFSETS;
    for (row, bytes) in page.chunks_exact(LANES * 4).enumerate() {
        let mut first = [0; LANES * 4];
        let bytes = if row == 0 {
            // As if there were none yet.
            first.copy_from_slice(bytes);
            first[AT].fill(0);
            &first
        } else {
            bytes
        };
        for (sum, value) in sums.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *sum = mix(*sum, u32::from_le_bytes(*value));
        }
    }
    for _ in 0..2 {
        sums.iter_mut().for_each(|sum| *sum = mix(*sum, 0));
    }
    let sum = sums.iter().fold(0, |all, sum| all ^ sum) ^ block;
    (sum % 65_535 + 1) as u16
}

/// Is this page not what was written? It is the block of that number, and counts if it was there before `start`.
#[must_use]
pub fn is_corrupt(page: &[u8], block: u32, start: Lsn) -> bool {
    let word = |at: usize| page.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
    let position = Lsn(u64::from(word(0)) << 32 | u64::from(word(4)));
    let upper = word(12) >> 16;
    // `pd_upper` is zero in a new page, which has no checksum; but then all of it must be.
    if upper == 0 {
        return page.iter().any(|byte| *byte != 0);
    }
    let stored = u16::from_le_bytes([page[AT.start], page[AT.start + 1]]);
    position < start && checksum(page, block) != stored
}

/// A file of a relation, by its name: which segment of it, counted from 0. Other files have no checksums.
#[must_use]
pub fn segment(path: &[u8]) -> Option<u32> {
    let path = std::str::from_utf8(path).ok()?;
    let (folder, name) = path.rsplit_once('/')?;
    let mut parts = folder.split('/');
    let place = match (parts.next()?, parts.next(), parts.next(), parts.next(), parts.next()) {
        ("global", None, ..) | ("base", Some(_), None, ..) => true,
        ("pg_tblspc", Some(_), Some(version), Some(_), None) => version.starts_with("PG_"),
        _ => false,
    };
    let (name, segment) = match name.split_once('.') {
        Some((name, segment)) => (name, segment.parse().ok()?),
        None => (name, 0),
    };
    let (number, fork) = name.split_once('_').unwrap_or((name, "main"));
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    (place && digits && ["main", "fsm", "vm", "init"].contains(&fork)).then_some(segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_relations_are_told_from_others() {
        for (path, found) in [
            ("base/5/16384", Some(0)),
            ("base/5/16384.3", Some(3)),
            ("base/5/16384_vm", Some(0)),
            ("base/5/16384_fsm.1", Some(1)),
            ("global/1262", Some(0)),
            ("pg_tblspc/16400/PG_15_202209061/5/16384_init", Some(0)),
            ("global/pg_control", None),
            ("base/5/PG_VERSION", None),
            ("base/5/pg_filenode.map", None),
            ("base/5/pg_internal.init", None),
            ("pg_xact/0000", None),
            ("16384", None),
        ] {
            assert_eq!(segment(path.as_bytes()), found, "{path}");
        }
    }

    #[test]
    fn a_page_is_judged_by_its_checksum_unless_it_is_new() {
        let mut page = vec![7u8; 8192];
        page[..8].copy_from_slice(&[0, 0, 0, 0, 0, 1, 0, 0]);
        let sum = checksum(&page, 9);
        page[AT].copy_from_slice(&sum.to_le_bytes());
        let start = Lsn(0x1000);
        assert!(!is_corrupt(&page, 9, start) && is_corrupt(&page, 10, start));
        page[5000] ^= 1;
        assert!(is_corrupt(&page, 9, start));
        // The log writes it anew.
        assert!(!is_corrupt(&page, 9, Lsn(0x100)));
        let mut new = vec![0; 8192];
        assert!(!is_corrupt(&new, 0, start));
        new[8000] = 1;
        assert!(is_corrupt(&new, 0, start));
    }
}
