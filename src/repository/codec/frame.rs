//! zstd, set up the ways in which the codecs need it.

use super::{CodecError, Compression, choose::Method};
use std::io::Cursor;
use zstd_safe::{CCtx, CParameter, DCtx, ParamSwitch};

/// For bytes with repetitions. On source code level 1 stores 4 % more in nine tenths of the time, level 4 stores 2 % less in
/// half as much time again; it is also what other backup tools take.
const LEVEL: i32 = 3;
/// For pages of a database, of which there are terabytes where sources are megabytes, and where nothing else is to be found
/// out about them: 2.5 % larger than level 3 in less than half of its time.
const LEVEL_QUICK: i32 = 1;
/// In place of both where time counts for more than space.
const LEVEL_FAST: i32 = -3;
/// For bytes without: zstd leaps so far between attempts to find a match that it makes none, and what remains of it is
/// its Huffman coder. On the exponents of Gaussian weights that takes a quarter of the time of level 1 and stores 9 % less. A coder of
/// our own that wrote the same frames was no faster, so there is none.
const LEVEL_HUFFMAN: i32 = -131_072;

pub struct Frames {
    matching: CCtx<'static>,
    quick: CCtx<'static>,
    huffman: CCtx<'static>,
}

impl Frames {
    pub fn of(compression: Compression) -> Self {
        // Below level 1 zstd leaves literals alone unless told otherwise. The table of matches stays empty: a small one.
        let literals = [CParameter::LiteralCompressionMode(ParamSwitch::Enable), CParameter::HashLog(6)];
        let (level, quick) = if compression == Compression::Fast { (LEVEL_FAST, LEVEL_FAST) } else { (LEVEL, LEVEL_QUICK) };
        Self { matching: context(level, &[]), quick: context(quick, &[]), huffman: context(LEVEL_HUFFMAN, &literals) }
    }

    /// Appends a frame of `bytes`; false if there was nothing to save, and then `out` may have rubbish at its end.
    pub fn append(&mut self, method: Method, bytes: &[u8], out: &mut Vec<u8>) -> bool {
        let context = match method {
            Method::Huffman => &mut self.huffman,
            Method::Quick => &mut self.quick,
            Method::Match | Method::Raw => &mut self.matching,
        };
        let begin = out.len();
        out.reserve(zstd_safe::compress_bound(bytes.len()));
        let mut place = Cursor::new(out);
        place.set_position(begin as u64);
        context.compress2(&mut place, bytes).is_ok_and(|length| length < bytes.len())
    }
}

fn context(level: i32, more: &[CParameter]) -> CCtx<'static> {
    let mut context = CCtx::create();
    // The reader knows the length, and checks the bytes against the name of the chunk.
    let plain = [CParameter::CompressionLevel(level), CParameter::ContentSizeFlag(false), CParameter::ChecksumFlag(false)];
    for parameter in plain.iter().chain(more) {
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
