//! Of a segment of a log that is there whole, the pieces that it came in go. The whole one may have rotted since, and the
//! pieces be all that is left of it. So before they go, it is read, and must have what each of them has, byte for byte.
//!
//! Of a whole one that is damaged they stay, and so do pieces with other bytes than the whole one has: why, is told. It is not made
//! anew from them: what filled it came in no piece.
//!
//! It costs each such segment once, and its pieces. Of a segment that no base backup needs nothing is read.

use super::{
    RepositoryError, Result,
    open::Repository,
    progress::Progress,
    wal::{self, WalStore},
    wal_keep::WalPlan,
    wal_name::{self, Piece, Segment, SegmentName, WalName},
};
use crate::providers::port::ObjectWrite;
use futures::{StreamExt, TryStreamExt, stream};
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

/// So many segments at a time: each is in memory with one of its pieces, and may have a gibibyte.
const AT_ONCE: usize = 2;

/// What reading came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Checked {
    /// What may go of what was to be deleted.
    pub delete: Vec<String>,
    pub read_bytes: u64,
    /// Why pieces stay, each in a sentence.
    pub kept: Vec<String>,
}

/// Reads the whole segments whose pieces are to be deleted.
pub(super) async fn check(
    repository: &Arc<Repository>,
    store: &Arc<dyn ObjectWrite>,
    plan: &WalPlan,
    progress: &Progress,
) -> Result<Checked> {
    let mut segments: BTreeMap<(String, Segment), Vec<Piece>> = BTreeMap::new();
    for key in &plan.replaced {
        if let Some((system, WalName::Piece(piece))) = wal_name::in_key(key) {
            segments.entry((system.to_owned(), piece.segment)).or_default().push(piece);
        }
    }
    let replaced: HashSet<&String> = plan.replaced.iter().collect();
    let delete = plan.delete.iter().filter(|key| !replaced.contains(key)).cloned().collect();
    let each = stream::iter(segments).map(|((system, segment), pieces)| async move {
        if progress.is_stopped() {
            return Err(RepositoryError::Interrupted("pruning was stopped; the next run goes on".to_owned()));
        }
        let wal = WalStore::new(repository.clone(), store.clone(), system)?;
        One { repository, key: wal.key(&WalName::File(SegmentName::Whole(segment))), wal }.check(pieces).await
    });
    let begin = Checked { delete, ..Checked::default() };
    each.buffered(AT_ONCE).try_fold(begin, |all, one| async move { Ok(all.and(one)) }).await
}

impl Checked {
    fn and(mut self, other: Self) -> Self {
        self.delete.extend(other.delete);
        self.read_bytes += other.read_bytes;
        self.kept.extend(other.kept);
        self
    }
}

/// One segment.
struct One<'a> {
    repository: &'a Repository,
    wal: WalStore,
    /// Of the whole one.
    key: String,
}

impl One<'_> {
    async fn check(&self, pieces: Vec<Piece>) -> Result<Checked> {
        let mut done = Checked::default();
        let whole = match self.open(&self.key, &mut done).await {
            Err(error @ RepositoryError::Damaged { .. }) => {
                done.kept.push(format!(
                    "{error}; the pieces that it came in stay. Take it away, and they count again; docs/backups.md, \"What is damaged\", says \
                     what else heals it"
                ));
                return Ok(done);
            }
            // Taken away since it was listed: then the pieces are what there is.
            Err(RepositoryError::Missing { .. }) => return Ok(done),
            other => other?,
        };
        for piece in pieces {
            let key = self.wal.key(&WalName::Piece(piece));
            let same = match self.open(&key, &mut done).await {
                Ok(content) => whole.get(piece.from as usize..piece.to as usize) == Some(&content),
                // Then it is the whole one that is left, and that is right.
                Err(RepositoryError::Damaged { .. } | RepositoryError::Missing { .. }) => true,
                Err(error) => return Err(error),
            };
            if same {
                done.delete.push(key);
            } else {
                done.kept.push(format!("{key} stays: {} has other bytes there. Two servers may have written one history", self.key));
            }
        }
        Ok(done)
    }

    async fn open(&self, key: &str, done: &mut Checked) -> Result<Vec<u8>> {
        let stored = self.repository.read(key).await?;
        done.read_bytes += stored.len() as u64;
        wal::unsealed(self.repository, key, stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::{
        prune::Pruned,
        tests::{Bench, noise},
        wal_page::header,
    };
    use std::path::{Path, PathBuf};

    const SYSTEM: u64 = 7_445_172_393_480_321_234;
    const MIB: u32 = 1 << 20;

    fn segment() -> Segment {
        Segment::of_number(1, 5, MIB)
    }
    fn content() -> Vec<u8> {
        let mut content = header(1, segment().start(MIB), SYSTEM, MIB);
        content.extend(noise(1, MIB as usize - content.len()));
        content
    }
    /// A segment, whole and in these pieces, which a prune has marked.
    async fn marked(dir: &Path, ends: &[u32]) -> (Bench, WalStore) {
        let bench = Bench::new(dir).await;
        let wal = WalStore::new(bench.repository.clone(), bench.store.clone(), SYSTEM.to_string()).unwrap();
        let (whole, mut from) = (content(), 0);
        for to in ends {
            wal.put_piece(segment(), from, whole[from as usize..*to as usize].to_vec().into()).await.unwrap();
            from = *to;
        }
        wal.put(&SegmentName::Whole(segment()), whole.into()).await.unwrap();
        let done = bench.prune(0).await;
        assert_eq!((done.wal_marked, done.wal_deleted, done.checked_bytes), (ends.len() as u64, 0, 0));
        (bench, wal)
    }
    fn file(dir: &Path, wal: &WalStore) -> PathBuf {
        dir.join(wal.key(&WalName::File(SegmentName::Whole(segment()))))
    }
    fn damage(file: &Path) {
        let mut stored = std::fs::read(file).unwrap();
        let middle = stored.len() / 2;
        stored[middle] ^= 1;
        std::fs::write(file, stored).unwrap();
    }
    async fn pieces(wal: &WalStore) -> usize {
        wal.list().await.unwrap().iter().filter(|one| matches!(one.name, WalName::Piece(_))).count()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn pieces_go_once_the_whole_segment_was_read() {
        let dir = tempfile::tempdir().unwrap();
        let (bench, wal) = marked(dir.path(), &[300_000, 500_000]).await;
        let done = bench.prune(0).await;
        assert_eq!((done.wal_deleted, &done.wal_kept), (2, &vec![]));
        assert!(done.checked_bytes > u64::from(MIB), "{done:?}");
        assert_eq!((pieces(&wal).await, wal.get(&SegmentName::Whole(segment())).await.unwrap()), (0, Some(content())));
        assert_eq!(bench.prune(0).await, Pruned::default());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_a_damaged_segment_the_pieces_stay_and_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (bench, wal) = marked(dir.path(), &[300_000, 500_000]).await;
        damage(&file(dir.path(), &wal));
        for _ in 0..3 {
            let done = bench.prune(0).await;
            assert_eq!((done.wal_deleted, pieces(&wal).await), (0, 2), "{done:?}");
            assert!(
                done.wal_marked == 2 || done.wal_kept.len() == 1 && done.wal_kept[0].contains("pieces that it came in stay"),
                "{done:?}"
            );
        }
        assert!(matches!(wal.get(&SegmentName::Whole(segment())).await, Err(RepositoryError::Damaged { .. })), "it stays as it is");
        // As it is told.
        std::fs::remove_file(file(dir.path(), &wal)).unwrap();
        bench.prune(0).await;
        assert_eq!(wal.get_pieces(segment()).await.unwrap().unwrap(), content()[..500_000]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_piece_with_other_bytes_than_the_whole_segment_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (bench, wal) = marked(dir.path(), &[300_000, 500_000]).await;
        let mut other = content();
        other[400_000] ^= 1;
        std::fs::remove_file(file(dir.path(), &wal)).unwrap();
        wal.put(&SegmentName::Whole(segment()), other.into()).await.unwrap();
        let done = bench.prune(0).await;
        assert_eq!((done.wal_deleted, pieces(&wal).await, done.wal_kept.len()), (1, 1, 1), "{done:?}");
        assert!(done.wal_kept[0].contains(".000493E0-0007A120 stays"), "{done:?}");
    }
}
