//! A sealed object: garbage opens as nothing, and so does what somebody changed.
#![no_main]
use muster::repository::{
    keys::Keyring,
    names::Id,
    pack,
    seal::{self, Kind},
};
use std::sync::LazyLock;

static KEYS: LazyLock<Keyring> = LazyLock::new(|| Keyring::new().expect("random numbers"));

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    assert!(seal::open_whole(&KEYS, Kind::Index, &Id::of(data), data.to_vec()).is_err());
    assert!(pack::open_directory(&KEYS, &Id::of(data), data, data, data.len() as u64).is_err());
    let _ = pack::directory_length(data);
    let Some(([at, bit], plain)) = data.split_first_chunk() else { return };
    let (id, mut stored) = seal::whole(&KEYS, Kind::Index, plain).expect("it is sealed");
    assert_eq!(seal::open_whole(&KEYS, Kind::Index, &id, stored.clone()).expect("and opens"), plain);
    let at = usize::from(*at) % stored.len();
    stored[at] ^= 1 << (bit % 8);
    assert!(seal::open_whole(&KEYS, Kind::Index, &Id::of(&stored), stored).is_err());
});
