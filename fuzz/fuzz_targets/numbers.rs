//! Numbers, signed numbers, bytes and ids, in any order: what is read is written as it was.
#![no_main]
use muster::repository::wire::{Reader, put_number, put_signed};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut reader = Reader::new(data);
    while let Ok(kind) = reader.byte() {
        let mut out = Vec::new();
        let good = match kind % 6 {
            0 => reader
                .number()
                .inspect(|n| {
                    put_number(&mut out, *n);
                    assert_eq!(Reader::new(&out).number().ok(), Some(*n));
                })
                .is_ok(),
            1 => reader
                .signed()
                .inspect(|n| {
                    put_signed(&mut out, *n);
                    assert_eq!(Reader::new(&out).signed().ok(), Some(*n));
                })
                .is_ok(),
            2 => reader.small().is_ok(),
            3 => reader.bytes().is_ok(),
            4 => reader.count().is_ok(),
            _ => reader.id().is_ok(),
        };
        if !good {
            break;
        }
    }
});
