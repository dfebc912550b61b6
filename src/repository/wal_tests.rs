//! The log in a repository, over a real directory: what is written is read, the same again is no news, other content is
//! never written over, and an object that was moved or damaged is never taken for what its name says.

use super::{
    RepositoryError,
    tests::{Bench, noise},
    wal::{Put, WalStore, check, list, systems},
    wal_name::{Piece, Segment, WalName},
};
use bytes::Bytes;

const SYSTEM: &str = "7445172393480321234";

fn segment(number: u64) -> Segment {
    Segment::of_number(1, number, 16 << 20)
}

async fn store(dir: &std::path::Path) -> WalStore {
    let repo = Bench::new(dir).await;
    WalStore::new(repo.repository.clone(), repo.store.clone(), SYSTEM.to_owned()).unwrap()
}

fn content(seed: u8) -> Bytes {
    let mut content = noise(seed, 200_000);
    content.resize(1 << 20, 0);
    content.into()
}

#[tokio::test]
async fn a_segment_is_written_once_and_never_over_another() {
    let dir = tempfile::tempdir().unwrap();
    let wal = store(dir.path()).await;
    let name = "000000010000000000000003".parse().unwrap();
    assert_eq!(wal.get(&name).await.unwrap(), None);
    assert_eq!(wal.put(&name, content(1)).await.unwrap(), Put::New);
    assert_eq!(wal.put(&name, content(1)).await.unwrap(), Put::Same);
    let other = wal.put(&name, content(2)).await;
    assert!(matches!(&other, Err(RepositoryError::Diverged { why, .. }) if why.contains("from byte 0 on")), "{other:?}");
    assert_eq!(wal.get(&name).await.unwrap().unwrap(), content(1), "what was there stays");
    wal.put(&"00000002.history".parse().unwrap(), Bytes::from_static(b"1\t0/3000000\tno recovery target specified\n")).await.unwrap();
    let listed: Vec<String> = wal.list().await.unwrap().iter().map(|one| one.name.to_string()).collect();
    assert_eq!(listed, ["000000010000000000000003", "00000002.history"]);
    assert!(WalStore::new(Bench::new(dir.path()).await.repository, Bench::new(dir.path()).await.store, "../7".to_owned()).is_err());
}

#[tokio::test]
async fn an_object_under_another_name_or_with_another_bit_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let wal = store(dir.path()).await;
    let (three, four) = ("000000010000000000000003".parse().unwrap(), "000000010000000000000004".parse().unwrap());
    wal.put(&three, content(1)).await.unwrap();
    let path = |name| dir.path().join(wal.key(&WalName::File(name)));
    std::fs::copy(path(three), path(four)).unwrap();
    assert!(matches!(wal.get(&four).await, Err(RepositoryError::Damaged { .. })), "it stands for the next one");
    // Another cluster's log is another place.
    let repo = Bench::new(dir.path()).await;
    let foreign = WalStore::new(repo.repository.clone(), repo.store.clone(), "7".to_owned()).unwrap();
    assert_eq!(foreign.put(&three, content(9)).await.unwrap(), Put::New);
    assert_eq!(systems(&repo.repository).await.unwrap().into_iter().collect::<Vec<_>>(), ["7", SYSTEM]);
    let mut stored = std::fs::read(path(three)).unwrap();
    let middle = stored.len() / 2;
    stored[middle] ^= 1;
    std::fs::write(path(three), &stored).unwrap();
    assert!(matches!(wal.get(&three).await, Err(RepositoryError::Damaged { .. })));
    let again = wal.put(&three, content(1)).await;
    assert!(matches!(&again, Err(RepositoryError::Damaged { why, .. }) if why.contains("delete that object")), "{again:?}");
    let bad = check(&repo.repository, &list(&repo.repository, "wal/").await.unwrap()).await.unwrap();
    assert_eq!(bad.len(), 2, "{bad:?}");
}

#[tokio::test]
async fn pieces_give_what_there_is_of_a_segment() {
    let dir = tempfile::tempdir().unwrap();
    let wal = store(dir.path()).await;
    let (whole, five) = (content(5), segment(5));
    assert_eq!(wal.get_pieces(five).await.unwrap(), None);
    let put = |from: usize, to: usize| wal.put_piece(five, from as u32, whole.slice(from..to));
    for (from, to) in [(0, 8_192), (8_192, 20_000), (20_000, 20_001), (0, 20_001), (20_001, 90_000), (100_000, 120_000)] {
        assert_eq!(put(from, to).await.unwrap(), Put::New);
    }
    assert_eq!(put(8_192, 20_000).await.unwrap(), Put::Same);
    assert!(put(7, 7).await.is_err());
    assert_eq!(wal.get_pieces(five).await.unwrap().unwrap(), whole[..90_000], "up to the gap");
    // One that is damaged is made up for by those that have the same bytes.
    let path = |from, to| dir.path().join(wal.key(&WalName::Piece(Piece { segment: five, from, to })));
    std::fs::write(path(0, 20_001), b"MUSTER1W garbage").unwrap();
    assert_eq!(wal.get_pieces(five).await.unwrap().unwrap(), whole[..90_000]);
    std::fs::write(path(8_192, 20_000), b"MUSTER1W garbage").unwrap();
    assert!(matches!(wal.get_pieces(five).await, Err(RepositoryError::Damaged { .. })), "and never passed over");
    assert_eq!(wal.get_pieces(segment(6)).await.unwrap(), None, "another segment's are not its own");
}
