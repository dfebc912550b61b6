//! The head of a file that may be safetensors: cutting by it goes on to the end, whatever it says.
#![no_main]
use muster::repository::cut::{Cutter, MAX_CHUNK};
use std::sync::LazyLock;

static CUTTER: LazyLock<Cutter> = LazyLock::new(|| Cutter::new(&[7; 32]));

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((size, head)) = data.split_first_chunk() else { return };
    let size = u64::from_le_bytes(*size);
    let layout = CUTTER.layout(head, size);
    let mut at = 0;
    while at < head.len() {
        let (length, _) = CUTTER.next(&layout, at as u64, &head[at..], true).expect("at the end there always is a chunk");
        assert!(length > 0 && length <= head.len() - at && length <= MAX_CHUNK);
        at += length;
    }
    // Far inside as well, and without the end.
    for offset in [0, size / 2, size.saturating_sub(1), u64::MAX - head.len() as u64] {
        let cut = CUTTER.next(&layout, offset, head, false);
        assert!(cut.is_none_or(|(length, _)| length > 0 && length <= head.len()));
    }
});
