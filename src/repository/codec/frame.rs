//! zstd, set up the two ways in which the codecs need it.

use super::{CodecError, choose::Method};
use std::io::Cursor;
use zstd_safe::{CCtx, CParameter, DCtx, ParamSwitch};

/// For bytes with repetitions.
const LEVEL: i32 = 3;
/// For bytes without: zstd leaps so far between attempts to find a match that it makes none, and what remains of it is
/// its Huffman coder. On the exponents of Gaussian weights that is three times as fast as level 1 and stores 10 % less.
const LEVEL_HUFFMAN: i32 = -131_072;

pub struct Frames {
    matching: CCtx<'static>,
    huffman: CCtx<'static>,
}

impl Frames {
    pub fn new() -> Self {
        let plain = [CParameter::ContentSizeFlag(false), CParameter::ChecksumFlag(false)];
        // Below level 1 zstd leaves literals alone unless told otherwise. The table of matches stays empty: a small one.
        let huffman = [CParameter::LiteralCompressionMode(ParamSwitch::Enable), CParameter::HashLog(6)];
        Self {
            matching: context(LEVEL, &[plain[0], plain[1]]),
            huffman: context(LEVEL_HUFFMAN, &[plain[0], plain[1], huffman[0], huffman[1]]),
        }
    }

    /// Appends a frame of `bytes`; false if there was nothing to save, and then `out` may have rubbish at its end.
    pub fn append(&mut self, method: Method, bytes: &[u8], out: &mut Vec<u8>) -> bool {
        let context = if method == Method::Huffman { &mut self.huffman } else { &mut self.matching };
        let begin = out.len();
        out.reserve(zstd_safe::compress_bound(bytes.len()));
        let mut place = Cursor::new(out);
        place.set_position(begin as u64);
        context.compress2(&mut place, bytes).is_ok_and(|length| length < bytes.len())
    }
}

fn context(level: i32, parameters: &[CParameter]) -> CCtx<'static> {
    let mut context = CCtx::create();
    for parameter in [CParameter::CompressionLevel(level)].iter().chain(parameters) {
        // Each is one that this version of zstd knows. Were it not, the frames would be larger and as readable.
        let _ = context.set_parameter(*parameter);
    }
    context
}

/// Fills `place`, exactly, with what the frame holds.
pub fn fill(context: &mut DCtx<'_>, frame: &[u8], place: &mut [u8]) -> Result<(), CodecError> {
    match context.decompress(place, frame) {
        Ok(length) if length == place.len() => Ok(()),
        Ok(_) => Err(CodecError::Length),
        Err(_) => Err(CodecError::Zstd),
    }
}
