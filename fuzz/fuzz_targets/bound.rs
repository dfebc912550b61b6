//! An object that is bound to its key: garbage opens as nothing, and so does what was changed or moved.
#![no_main]
use muster::repository::{
    keys::Keyring,
    seal::{self, Kind},
};
use std::sync::LazyLock;

static KEYS: LazyLock<Keyring> = LazyLock::new(|| Keyring::new().expect("random numbers"));
const PLACE: &str = "wal/7/00000001/000000010000000000000003";

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    assert!(seal::open_bound(&KEYS, Kind::Wal, PLACE, data.to_vec()).is_err());
    let Some(([at, bit], plain)) = data.split_first_chunk() else { return };
    let mut stored = seal::bound(&KEYS, Kind::Wal, PLACE, plain).expect("it is sealed");
    assert_eq!(seal::open_bound(&KEYS, Kind::Wal, PLACE, stored.clone()).expect("and opens"), plain);
    assert!(seal::open_bound(&KEYS, Kind::Wal, &PLACE[..PLACE.len() - 1], stored.clone()).is_err());
    assert!(seal::open_bound(&KEYS, Kind::Marks, PLACE, stored.clone()).is_err());
    let at = usize::from(*at) % stored.len();
    stored[at] ^= 1 << (bit % 8);
    assert!(seal::open_bound(&KEYS, Kind::Wal, PLACE, stored).is_err());
});
