//! Where else a chunk lies: for when it is not whole where the index says.
//!
//! Two writers at once store the same chunk twice, and packs that no index names are left by whoever was cut off, or where
//! a part of the index was lost. The index in memory keeps one place of each chunk, since that is enough as long as
//! nothing is damaged. Only when something is, all is asked once more: every object of the index, and the packs that none
//! of them names, by their own directories. While there is damage it takes so much memory as the index holds of such
//! chunks.

use super::{
    Result,
    index::{ById, Ids, Index, PackEntry},
    names::Id,
    open::{Present, Repository, not_named},
    pack::Piece,
};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Further places of chunks: the second of each, the third …
#[derive(Default)]
pub struct Places {
    layers: Vec<Index>,
    /// Packs that no index names.
    strays: Ids,
    served: AtomicU64,
    from_strays: AtomicBool,
    lost_index: AtomicBool,
}

/// What was had from another place than the index says: told, since it is not as it should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detours {
    /// Chunks that are not whole where it says.
    pub chunks: u64,
    /// Some of them lie only in packs that no index names.
    pub strays: bool,
    /// Chunks of which it says nothing, and that are in such packs.
    pub lost_index: bool,
}

impl Places {
    /// Every place of every chunk, but for those that `known` has. Packs that are missing, or of another size than the index says, are none.
    pub(super) async fn load(repository: &Repository, known: &Index) -> Result<Self> {
        let Present { packs, strays, .. } = repository.present().await?;
        let strays = repository.ask_packs(strays).await?.whole;
        let mut places = Self { strays: strays.iter().map(|entry| entry.pack).collect(), ..Self::default() };
        packs.whole.iter().chain(&strays).for_each(|entry| places.add(known, entry));
        Ok(places)
    }

    fn add(&mut self, known: &Index, entry: &PackEntry) {
        let elsewhere = |piece: &&Piece| known.find(&piece.chunk).is_none_or(|(pack, _)| pack != entry.pack);
        let mut left: Vec<Piece> = entry.pieces.iter().filter(elsewhere).copied().collect();
        let mut depth = 0;
        while !left.is_empty() {
            if self.layers.len() == depth {
                self.layers.push(Index::default());
            }
            let (further, pieces) = left.into_iter().partition(|piece| self.layers[depth].contains(&piece.chunk));
            self.layers[depth].add(&PackEntry { pack: entry.pack, size: entry.size, pieces });
            left = further;
            depth += 1;
        }
    }

    /// All further places of a chunk.
    pub fn of(&self, chunk: &Id) -> impl Iterator<Item = (Id, Piece)> {
        self.layers.iter().map_while(|layer| layer.find(chunk))
    }

    #[must_use]
    pub fn is_stray(&self, pack: &Id) -> bool {
        self.strays.contains(pack)
    }

    /// The content of a chunk from one of these places, but for the packs that were tried (none, if the index does not
    /// know the chunk); `None`: none has it whole.
    pub async fn content(&self, repository: &Repository, chunk: &Id, tried: &[Id]) -> Result<Option<Vec<u8>>> {
        for (pack, piece) in self.of(chunk).filter(|(pack, _)| !tried.contains(pack)) {
            match repository.piece(&pack, &piece).await {
                Ok(content) => {
                    if tried.is_empty() {
                        self.lost_index.fetch_or(self.is_stray(&pack), Relaxed);
                    } else {
                        self.served.fetch_add(1, Relaxed);
                        self.from_strays.fetch_or(self.is_stray(&pack), Relaxed);
                    }
                    return Ok(Some(content));
                }
                Err(error) if error.is_loss() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    #[must_use]
    pub fn detours(&self) -> Detours {
        Detours { chunks: self.served.load(Relaxed), strays: self.from_strays.load(Relaxed), lost_index: self.lost_index.load(Relaxed) }
    }
}

/// The packs that no index names, though what is needed is in them alone: they were named once, and that part of the index
/// is lost. Whoever writes the index anew takes them in.
pub(super) async fn lost_to_the_index(
    repository: &Repository,
    there: &ById<u64>,
    named: &[PackEntry],
    needed: &Ids,
    index: &Index,
) -> Result<Vec<PackEntry>> {
    let lacks = |chunk: &Id| needed.contains(chunk) && !index.contains(chunk);
    if !needed.iter().any(lacks) {
        return Ok(Vec::new());
    }
    let mut strays = repository.ask_packs(not_named(there, named.iter())).await?.whole;
    strays.retain(|entry| entry.pieces.iter().any(|piece| lacks(&piece.chunk)));
    Ok(strays)
}

impl Index {
    /// What was not to be had from where this index says, and was had all the same.
    #[must_use]
    pub fn detours(&self) -> Detours {
        self.others.get().map_or_else(Detours::default, Places::detours)
    }
}

impl Detours {
    #[must_use]
    pub fn and(self, more: Self) -> Self {
        Self { chunks: self.chunks + more.chunks, strays: self.strays || more.strays, lost_index: self.lost_index || more.lost_index }
    }

    /// In sentences.
    #[must_use]
    pub fn told(&self) -> Vec<String> {
        let mut all = Vec::new();
        if self.chunks > 0 {
            all.push(format!(
                "{} chunks could not be had from where the index says, and were whole in other packs{}: `muster backup verify --read-data` names what is damaged",
                self.chunks,
                if self.strays { ", some of them in such that no index names" } else { "" }
            ));
        }
        if self.lost_index {
            all.push(LOST_INDEX.to_owned());
        }
        all
    }
}

/// What is to be said if the index does not know what a snapshot needs, and packs that it does not name have it.
pub(super) const LOST_INDEX: &str = "a part of the index is lost: packs that it does not name were asked what they hold, and \
                                     `muster backup prune` writes it anew";

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(pack: u8, chunks: &[u8]) -> PackEntry {
        let piece = |(number, chunk): (usize, &u8)| Piece {
            chunk: Id([*chunk; 32]),
            number: number as u32,
            offset: 44 + 100 * number as u32,
            stored: 100,
            length: 200,
        };
        PackEntry { pack: Id([pack; 32]), size: 9000, pieces: chunks.iter().enumerate().map(piece).collect() }
    }

    #[test]
    fn every_place_but_the_known_one_is_found() {
        let all = [entry(1, &[10, 11]), entry(2, &[11, 12]), entry(3, &[12, 11, 13])];
        let known = Index::of(&all);
        let mut places = Places::default();
        all.iter().for_each(|entry| places.add(&known, entry));
        let of = |chunk: u8| places.of(&Id([chunk; 32])).map(|(pack, piece)| (pack.0[0], piece.number)).collect::<Vec<_>>();
        assert_eq!((of(10), of(11), of(12), of(13)), (vec![], vec![(2, 0), (3, 1)], vec![(3, 0)], vec![]));
        // Nothing is known: then all of them are told.
        let mut places = Places::default();
        all.iter().for_each(|entry| places.add(&Index::default(), entry));
        let packs = |chunk: u8| places.of(&Id([chunk; 32])).map(|(pack, _)| pack.0[0]).collect::<Vec<_>>();
        assert_eq!((packs(10), packs(11), packs(99)), (vec![1], vec![1, 2, 3], vec![]));
    }
}
