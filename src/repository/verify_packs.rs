//! Reading packs whole, on all processors: every byte is authenticated, every chunk decoded and compared with its name.

use super::{
    RepositoryError, Result,
    index::{ById, PackEntry},
    names::PACKS,
    open::Repository,
    pack::{self, Opener},
    progress::Progress,
    seal::{self, HEADER, Kind},
};
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering::Relaxed},
};
use tokio::runtime::Handle;

/// What reading packs found.
#[derive(Default)]
pub struct Read {
    pub packs: u64,
    pub chunks: u64,
    pub bytes: u64,
    pub problems: Vec<String>,
    /// Chunks that cannot be had from where the index says, and why.
    pub bad: ById<String>,
}

/// Blocking, inside a runtime's thread for that.
pub fn read_packs(repository: &Repository, packs: &[PackEntry], progress: &Progress) -> Result<Read> {
    let (handle, next, all) = (Handle::current(), AtomicUsize::new(0), Mutex::new(Read::default()));
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get().min(8)).min(packs.len());
    let work = || -> Result<()> {
        let mut opener = Opener::default();
        while let Some(entry) = packs.get(next.fetch_add(1, Relaxed)) {
            if progress.is_stopped() {
                return Err(RepositoryError::Interrupted("verification was stopped".to_owned()));
            }
            let read = read_pack(repository, &handle, entry, &mut opener)?;
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
        let stopped = || Err(RepositoryError::Interrupted("a thread of the verification ended".to_owned()));
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| stopped()))
    })?;
    Ok(all.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn read_pack(repository: &Repository, handle: &Handle, entry: &PackEntry, opener: &mut Opener) -> Result<Read> {
    let key = entry.pack.key(PACKS);
    let mut read = Read::default();
    let all_bad = |why: String, read: &mut Read| {
        read.bad.extend(entry.pieces.iter().map(|piece| (piece.chunk, why.clone())));
        read.problems.push(why);
    };
    let mut bytes = match handle.block_on(repository.range(&key, 0, entry.size)) {
        Ok(bytes) => bytes,
        Err(error @ (RepositoryError::Missing { .. } | RepositoryError::Damaged { .. })) => {
            all_bad(error.to_string(), &mut read);
            return Ok(read);
        }
        Err(error) => return Err(error),
    };
    (read.packs, read.bytes) = (1, entry.size);
    let object = match seal::unlock(&repository.keyring, Kind::Pack, &bytes) {
        Ok(object) => object,
        Err(why) => {
            all_bad(RepositoryError::damaged(&key, why).to_string(), &mut read);
            return Ok(read);
        }
    };
    // Its own directory: what would be left if the index were lost.
    let directory = pack::directory_length(&bytes).filter(|length| *length + HEADER <= bytes.len());
    let end = directory.map(|length| bytes.split_off(bytes.len() - length));
    let header = bytes.get(..HEADER).unwrap_or_default();
    match end.map(|end| pack::open_directory(&repository.keyring, &entry.pack, header, &end, entry.size)) {
        Some(Ok(pieces)) if pieces == entry.pieces => {}
        Some(Err(error)) => read.problems.push(error.to_string()),
        _ => read.problems.push(format!("{key} is damaged: its directory is not what the index says")),
    }
    for piece in &entry.pieces {
        let range = piece.offset as usize..piece.offset as usize + piece.stored as usize;
        let opened = match bytes.get_mut(range) {
            Some(sealed) => opener.open(&repository.keyring, &object, piece, sealed),
            None => Err("it lies beyond the end of its pack"),
        };
        read.chunks += 1;
        if let Err(why) = opened {
            let why = format!("chunk {} in {key} is damaged: {why}", piece.chunk.short());
            read.bad.insert(piece.chunk, why.clone());
            read.problems.push(why);
        }
    }
    Ok(read)
}
