//! The log in a repository, over a real directory: what is written is read, the same again is no news, other content is
//! never written over, and an object that was moved or damaged is never taken for what its name says.

use super::{
    RepositoryError,
    marks::Marked,
    open::put_sealed,
    recovery::Cluster,
    seal::Kind,
    sweep_tests::HOUR,
    tests::{Bench, noise},
    wal::{Put, WalStore, check, list, systems},
    wal_keep,
    wal_line::Base,
    wal_name::{Piece, Segment, SegmentName, WalName},
};
use crate::providers::port::Lsn;
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
async fn a_segment_is_the_same_however_much_it_was_compressed() {
    use super::{codec::Compression, open::Repository};
    let (dir, name) = (tempfile::tempdir().unwrap(), "000000010000000000000003".parse().unwrap());
    let bench = Bench::new(dir.path()).await;
    let mut content = content(1).to_vec();
    content[..100_000].iter_mut().for_each(|byte| *byte %= 3);
    let mut sizes = Vec::new();
    for compression in [Compression::None, Compression::Fast, Compression::Standard] {
        let repository = Repository::open(bench.store.clone(), "here", &super::tests::unlock()).await.unwrap().compressing(compression);
        let wal = WalStore::new(std::sync::Arc::new(repository), bench.store.clone(), SYSTEM.to_owned()).unwrap();
        assert_eq!(wal.put(&name, content.clone().into()).await.unwrap(), Put::New);
        assert_eq!(wal.put(&name, content.clone().into()).await.unwrap(), Put::Same);
        sizes.push(wal.list().await.unwrap()[0].size as usize);
        // A server that sends it again is answered alike, whoever asks.
        let other = WalStore::new(bench.repository.clone(), bench.store.clone(), SYSTEM.to_owned()).unwrap();
        assert_eq!(
            (other.put(&name, content.clone().into()).await.unwrap(), other.get(&name).await.unwrap()),
            (Put::Same, Some(content.clone()))
        );
        bench.store.delete(&wal.key(&WalName::File(name))).await.unwrap();
    }
    assert!(sizes[0] > 1 << 20 && sizes[1] < 300_000 && sizes[2] < 300_000, "{sizes:?}");
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

#[tokio::test]
async fn a_base_backup_whose_log_is_gone_or_about_to_go_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(dir.path()).await;
    let wal = WalStore::new(bench.repository.clone(), bench.store.clone(), SYSTEM.to_owned()).unwrap();
    let size = 16 << 20;
    let base = Base { timeline: 1, start: Lsn(3 * u64::from(size) + 40), stop: Lsn(4 * u64::from(size) + 300) };
    let cluster = Cluster { system: SYSTEM.to_owned(), version: 150_018, segment_size: size, base };
    let lacks = async |later| wal_keep::lacks(&bench.repository, &cluster, bench.clock.now() + later).await.unwrap().unwrap_or_default();
    wal.put(&SegmentName::Whole(segment(3)), content(1)).await.unwrap();
    assert!(lacks(std::time::Duration::ZERO).await.contains("000000010000000000000004 of its log is missing"));
    // The last one in pieces, as from a standby; and a damaged history of another timeline is no matter.
    wal.put_piece(segment(4), 0, content(2)).await.unwrap();
    std::fs::create_dir_all(dir.path().join(format!("wal/{SYSTEM}/00000002"))).unwrap();
    std::fs::write(dir.path().join(format!("wal/{SYSTEM}/00000002/00000002.history")), b"damaged").unwrap();
    assert_eq!(lacks(std::time::Duration::ZERO).await, "");
    for name in [WalName::File(SegmentName::Whole(segment(3))), WalName::Piece(Piece { segment: segment(4), from: 0, to: 1 << 20 })] {
        let marked = Marked { packs: Vec::new(), wal: vec![wal.key(&name)], grace_s: 24 * 3600 };
        let plain = serde_json::to_vec(&marked).unwrap();
        let (mark, _) = put_sealed(&*bench.store, &bench.repository.keyring, Kind::Marks, &plain).await.unwrap();
        assert_eq!(lacks(HOUR * 11).await, "", "the mark is young");
        let why = lacks(HOUR * 13).await;
        assert!(why.contains(&wal.key(&name)) && why.contains("marked"), "{why}");
        bench.store.delete(&mark.key(super::names::MARKS)).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_cut_short_of_a_log_at_the_place_to_copy_to_is_told() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bench = Bench::new(dir.path()).await;
    let made = bench.backup(&super::tests::some_files()).await;
    let wal = WalStore::new(bench.repository.clone(), bench.store.clone(), SYSTEM.to_owned()).unwrap();
    wal.put(&SegmentName::Whole(segment(3)), content(1)).await.unwrap();
    let mut snapshot = made.snapshot.clone();
    snapshot.source = super::snapshot::Source::Postgres {
        url: String::new(),
        system_identifier: SYSTEM.to_owned(),
        version: 150_018,
        timeline: 1,
        start: Lsn(3 * (16 << 20) + 40),
        stop: Lsn(3 * (16 << 20) + 300),
        wal_segment_size: 16 << 20,
        from_standby: false,
        tablespaces: std::collections::BTreeMap::new(),
    };
    let plain = serde_json::to_vec(&snapshot).unwrap();
    put_sealed(&*bench.store, &bench.repository.keyring, Kind::Snapshot, &plain).await.unwrap();
    let snapshots = bench.repository.snapshots().await.unwrap().whole;
    let copied = async || {
        let to = std::sync::Arc::new(crate::providers::directory::Directory::new(other.path().to_owned()));
        super::copy::copy(&bench.repository, to, "there", &snapshots, std::sync::Arc::default(), &*bench.clock).await
    };
    assert_eq!(copied().await.unwrap().wal, 1);
    let path = other.path().join(wal.key(&WalName::File(SegmentName::Whole(segment(3)))));
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let why = copied().await.unwrap_err().to_string();
    assert!(why.contains("delete it there") && why.contains("000000010000000000000003"), "{why}");
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(copied().await.unwrap().there.len(), 2);
}
