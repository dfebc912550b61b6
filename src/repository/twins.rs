//! Of a chunk that lies in several packs (two writers at once, or a prune that has moved it) a prune keeps one copy. It may
//! have rotted since, and the one that is to go be the last that is whole. So before packs are deleted, what is needed of
//! them is read where it is kept, every chunk compared with its name.
//!
//! It costs what a deleted pack held that is still needed: what was moved or stored twice, once more. Of what nobody needs,
//! nothing is read.

use super::{
    RepositoryError, Result,
    index::{Ids, PackEntry},
    names::Id,
    open::Repository,
    progress::Progress,
    verify_packs::{Read, read_some},
};
use std::sync::Arc;

/// Reads what is kept of what these packs hold. What is wrong with it is an error. Gives how many bytes were read.
///
/// `packs` are those that an index names; `strays`, which none names, are asked themselves.
pub(super) async fn check(
    repository: &Arc<Repository>,
    packs: &[PackEntry],
    strays: &[(Id, u64)],
    delete: &[Id],
    used: &Ids,
    progress: Arc<Progress>,
) -> Result<u64> {
    let goes: Ids = delete.iter().copied().collect();
    // One that does not even say what it holds is nobody's last copy.
    let strays = strays.iter().filter(|(pack, _)| goes.contains(pack)).copied().collect();
    let strays = repository.ask_packs(strays).await?.whole;
    let going = packs.iter().filter(|entry| goes.contains(&entry.pack)).chain(&strays);
    let kept = kept(packs, going, used);
    if kept.is_empty() {
        return Ok(0);
    }
    let reader = repository.clone();
    let read = tokio::task::spawn_blocking(move || read_some(&reader, &kept, &progress)).await;
    let Read { bytes, problems, .. } = read.map_err(|e| RepositoryError::Interrupted(e.to_string()))??;
    match problems.into_iter().next() {
        Some(why) => Err(RepositoryError::Refused(format!(
            "nothing is pruned while something is damaged, since what would be deleted may be the last copy that is whole: {why}; \
             `muster backup verify --read-data` names all of it, and docs/backups.md, \"What is damaged\", says what heals each"
        ))),
        None => Ok(bytes),
    }
}

/// Where what is needed of the packs that go is kept: in each of those that stay, the pieces to be read. Each chunk once.
fn kept<'p>(packs: &[PackEntry], going: impl Iterator<Item = &'p PackEntry> + Clone, used: &Ids) -> Vec<PackEntry> {
    let goes: Ids = going.clone().map(|entry| entry.pack).collect();
    let mut sought: Ids = going.flat_map(|entry| &entry.pieces).map(|piece| piece.chunk).filter(|chunk| used.contains(chunk)).collect();
    let mut kept = Vec::new();
    for entry in packs.iter().filter(|entry| !goes.contains(&entry.pack)) {
        let pieces: Vec<_> = entry.pieces.iter().filter(|piece| sought.remove(&piece.chunk)).copied().collect();
        if !pieces.is_empty() {
            let size = pieces.iter().map(|piece| u64::from(piece.stored)).sum();
            kept.push(PackEntry { pack: entry.pack, size, pieces });
        }
    }
    kept
}
