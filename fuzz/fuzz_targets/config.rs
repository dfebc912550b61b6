//! `config`: the only object without encryption.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = muster::repository::open::parse_config("here", data);
});
