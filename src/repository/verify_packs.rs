//! Reading packs whole, on all processors: every byte is authenticated, every chunk decoded and compared with its name.
//! Or, for who is about to delete other copies of them, only some of their chunks.

use super::{
    RepositoryError, Result,
    index::PackEntry,
    names::{Id, PACKS},
    open::Repository,
    pack::{self, Opener, Piece},
    progress::Progress,
    seal::{self, HEADER, Kind, ObjectKey},
};
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering::Relaxed},
};
use tokio::runtime::Handle;

/// What is read of a pack at once, if a piece is not larger.
const WINDOW: u64 = if cfg!(test) { 16 * 1024 } else { 4 * 1024 * 1024 };

/// What lies between two pieces is read along with them if it is no more than this: cheaper than another request.
const GAP: u64 = if cfg!(test) { 256 } else { 64 * 1024 };

/// What reading packs found.
#[derive(Default)]
pub struct Read {
    pub packs: u64,
    pub chunks: u64,
    pub bytes: u64,
    pub problems: Vec<String>,
    /// What cannot be had from these packs.
    pub bad: Vec<Bad>,
}

/// A chunk that cannot be had from that pack, and why. Another pack may have it whole.
#[derive(Clone, Debug)]
pub struct Bad {
    pub chunk: Id,
    pub pack: Id,
    pub why: String,
}

/// Blocking, inside a runtime's thread for that.
pub fn read_packs(repository: &Repository, packs: &[PackEntry], progress: &Progress) -> Result<Read> {
    in_parallel(packs, progress, |handle, entry, opener| read_pack(repository, handle, entry, opener))
}

/// The same of the pieces alone that these entries have, whatever else lies in the packs.
pub fn read_some(repository: &Repository, packs: &[PackEntry], progress: &Progress) -> Result<Read> {
    in_parallel(packs, progress, |handle, entry, opener| read_pieces(repository, handle, entry, opener))
}

fn in_parallel(
    packs: &[PackEntry],
    progress: &Progress,
    one: impl Fn(&Handle, &PackEntry, &mut Opener) -> Result<Read> + Sync,
) -> Result<Read> {
    let (handle, next, all) = (Handle::current(), AtomicUsize::new(0), Mutex::new(Read::default()));
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get().min(8)).min(packs.len());
    let work = || -> Result<()> {
        let mut opener = Opener::default();
        while let Some(entry) = packs.get(next.fetch_add(1, Relaxed)) {
            if progress.is_stopped() {
                return Err(RepositoryError::Interrupted("reading was stopped".to_owned()));
            }
            let read = one(&handle, entry, &mut opener)?;
            progress.add(1, entry.size);
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            all.packs += read.packs;
            all.chunks += read.chunks;
            all.bytes += read.bytes;
            all.problems.extend(read.problems);
            all.bad.extend(read.bad);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let stopped = || Err(RepositoryError::Interrupted("a thread of the reading ended".to_owned()));
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| stopped()))
    })?;
    Ok(all.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Pieces that lie near each other are asked for at once.
fn read_pieces(repository: &Repository, handle: &Handle, entry: &PackEntry, opener: &mut Opener) -> Result<Read> {
    let key = entry.pack.key(PACKS);
    let mut read = Read { packs: 1, bytes: HEADER as u64, ..Read::default() };
    let object = match handle.block_on(repository.range(&key, 0, HEADER as u64)) {
        Ok(header) => seal::unlock(&repository.keyring, Kind::Pack, &header).map_err(|why| RepositoryError::damaged(&key, why).to_string()),
        Err(error) if error.is_loss() => Err(error.to_string()),
        Err(error) => return Err(error),
    };
    let object = match object {
        Ok(object) => object,
        Err(why) => {
            all_bad(&mut read, &entry.pack, &entry.pieces, &why);
            return Ok(read);
        }
    };
    for pieces in near(&entry.pieces) {
        let (from, until) = (pieces.first().map_or(0, |first| u64::from(first.offset)), pieces.last().map_or(0, end_of));
        match handle.block_on(repository.range(&key, from, until - from)) {
            Ok(mut bytes) => {
                read.bytes += until - from;
                open_pieces(repository, &entry.pack, (pieces, from), &object, &mut bytes, opener, &mut read);
            }
            Err(error) if error.is_loss() => all_bad(&mut read, &entry.pack, pieces, &error.to_string()),
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// Runs of pieces, in the order of their places, with little between them.
fn near(pieces: &[Piece]) -> impl Iterator<Item = &[Piece]> {
    let mut from = pieces.first().map_or(0, |first| u64::from(first.offset));
    pieces.chunk_by(move |one, next| {
        let together = u64::from(next.offset) < end_of(one) + GAP && end_of(next) - from <= WINDOW;
        if !together {
            from = u64::from(next.offset);
        }
        together
    })
}

/// Reads one pack in windows, whatever its size: memory is that of a window and a chunk for each thread.
fn read_pack(repository: &Repository, handle: &Handle, entry: &PackEntry, opener: &mut Opener) -> Result<Read> {
    let key = entry.pack.key(PACKS);
    let mut read = Read { packs: 1, ..Read::default() };
    let mut object = None;
    let (mut header, mut from) = (Vec::new(), 0);
    for pieces in windows(&entry.pieces) {
        let last = pieces.last().zip(entry.pieces.last()).is_none_or(|(one, end)| one.number == end.number);
        let until = if last { entry.size } else { pieces.last().map_or(entry.size, end_of) };
        let mut bytes = match handle.block_on(repository.range(&key, from, until - from)) {
            Ok(bytes) => bytes,
            // Cut short: what was read before is still there.
            Err(error @ RepositoryError::Damaged { .. }) => {
                all_bad(&mut read, &entry.pack, pieces, &error.to_string());
                from = until;
                continue;
            }
            Err(error @ RepositoryError::Missing { .. }) => {
                all_bad(&mut read, &entry.pack, &entry.pieces, &error.to_string());
                return Ok(Read { packs: 0, ..read });
            }
            Err(error) => return Err(error),
        };
        read.bytes += until - from;
        if from == 0 {
            header = bytes.get(..HEADER).unwrap_or_default().to_vec();
            object =
                seal::unlock(&repository.keyring, Kind::Pack, &bytes).map_err(|why| RepositoryError::damaged(&key, why).to_string()).ok();
        }
        match &object {
            Some(object) => open_pieces(repository, &entry.pack, (pieces, from), object, &mut bytes, opener, &mut read),
            None => all_bad(&mut read, &entry.pack, pieces, &format!("{key} is damaged: its beginning cannot be opened")),
        }
        if last {
            // Its own directory: what would be left if the index were lost.
            let length = pack::directory_length(&bytes).filter(|length| *length <= bytes.len());
            let end = length.and_then(|length| bytes.get(bytes.len() - length..));
            match end.map(|end| pack::open_directory(&repository.keyring, &entry.pack, &header, end, entry.size)) {
                Some(Ok(pieces)) if pieces == entry.pieces => {}
                Some(Err(error)) => read.problems.push(error.to_string()),
                _ => read.problems.push(format!("{key} is damaged: its directory is not what the index says")),
            }
        }
        from = until;
    }
    Ok(read)
}

/// Consecutive pieces that are read at once.
fn windows(pieces: &[Piece]) -> impl Iterator<Item = &[Piece]> {
    let mut rest = pieces;
    let mut begun = false;
    std::iter::from_fn(move || {
        if rest.is_empty() && begun {
            return None;
        }
        begun = true;
        let first = rest.first().map_or(0, |piece| u64::from(piece.offset));
        let fit = rest.iter().take_while(|piece| end_of(piece) - first <= WINDOW).count().max(1).min(rest.len());
        let (window, left) = rest.split_at(fit);
        rest = left;
        Some(window)
    })
}

fn end_of(piece: &Piece) -> u64 {
    u64::from(piece.offset) + u64::from(piece.stored)
}

fn all_bad(read: &mut Read, pack: &Id, pieces: &[Piece], why: &str) {
    read.bad.extend(pieces.iter().map(|piece| Bad { chunk: piece.chunk, pack: *pack, why: why.to_owned() }));
    read.problems.push(why.to_owned());
}

/// Opens the pieces in these bytes of a pack, of which the first has that place.
fn open_pieces(
    repository: &Repository,
    pack: &Id,
    (pieces, from): (&[Piece], u64),
    object: &ObjectKey,
    bytes: &mut [u8],
    opener: &mut Opener,
    read: &mut Read,
) {
    for piece in pieces {
        let at = (u64::from(piece.offset)).saturating_sub(from) as usize;
        let opened = match bytes.get_mut(at..at + piece.stored as usize) {
            Some(sealed) => opener.open(&repository.keyring, object, piece, sealed),
            None => Err("it lies beyond the end of its pack"),
        };
        read.chunks += 1;
        if let Err(why) = opened {
            let why = format!("chunk {} in {} is damaged: {why}", piece.chunk.short(), pack.key(PACKS));
            read.bad.push(Bad { chunk: piece.chunk, pack: *pack, why: why.clone() });
            read.problems.push(why);
        }
    }
}
