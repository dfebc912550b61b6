//! A manifest as it is written and read: in one piece or many, old and new, whole and broken.

use super::*;
use crate::actions::contract_tests::estate;
use crate::providers::{clock::Clock, sim::SimWorld};
use std::sync::Arc;

pub(crate) fn head() -> Head {
    Head {
        run: "r".into(),
        bucket: "models".into(),
        from: "east".into(),
        prefix: String::new(),
        at: jiff::Timestamp::UNIX_EPOCH,
        copied: 3,
        skipped: 0,
        bytes_copied: 9,
        order: None,
        count: None,
        bytes: None,
    }
}

fn entries(count: u64) -> Vec<Entry> {
    let entry = |n: u64| {
        let etag = n.is_multiple_of(2).then(|| format!("etag-{n}"));
        Entry { key: format!("a/\"ä\"/{n:05}"), size: n, sha256: format!("{n:064x}"), copy_etag: etag.clone(), etag, version: None }
    };
    (0..count).map(entry).collect()
}

const KEY: &str = ".muster/manifests/k.json";

/// Written, by a store that takes so much at once.
async fn written(world: &SimWorld, entries: &[Entry], one_upload: u64) -> Head {
    let dir = tempfile::tempdir().unwrap();
    let written = finished(dir.path(), entries);
    written.put(&*world.objects_mut("models", "west").unwrap(), KEY, one_upload).await.unwrap();
    written.head
}

/// In a file, and nowhere else yet.
fn finished(dir: &Path, entries: &[Entry]) -> Written {
    let mut book = Writer::begin(dir).unwrap();
    for (n, entry) in entries.iter().enumerate() {
        book.add(entry, n % 3 == 0).unwrap();
    }
    let count = |f: Figures| Head {
        copied: f.copied,
        skipped: f.skipped,
        bytes_copied: f.bytes_copied,
        order: Some(Order::Bytes),
        count: Some(f.count),
        bytes: Some(f.bytes),
        ..head()
    };
    book.finish(count).unwrap()
}

async fn sorted(store: &dyn ObjectRead, order: Order) -> Result<Vec<Entry>, Broken> {
    let dir = tempfile::tempdir().unwrap();
    sort(store, KEY, order, dir.path()).await?;
    let mut merge = crate::actions::set_runs::Merge::open(dir.path(), order, None)?;
    let mut all = Vec::new();
    while let Some(entry) = merge.next()? {
        all.push(entry);
    }
    Ok(all)
}

#[tokio::test]
async fn what_is_written_is_read_again_however_it_went_up() {
    for (count, one_upload) in [(0, 1 << 40), (1, 1 << 40), (500, 1 << 40), (500, 1_000), (30_000, 1 << 40)] {
        let world = SimWorld::new(Arc::new(estate()));
        let entries = entries(count);
        let told = written(&world, &entries, one_upload).await;
        assert_eq!((told.count, told.copied, told.skipped), (Some(count), count.div_ceil(3), count - count.div_ceil(3)));
        assert_eq!((told.bytes, told.bytes_copied), (Some((0..count).sum()), (0..count).step_by(3).sum()));
        let store = world.objects("models", "west").unwrap();
        assert_eq!(super::head(&*store, KEY).await.unwrap(), told);
        assert_eq!(sorted(&*store, Order::Bytes).await.unwrap(), entries, "{count} at {one_upload}");
        // One JSON object, as it was before.
        let (_, bytes) = read_all(&*store, KEY).await.unwrap();
        let all: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(serde_json::from_value::<Vec<Entry>>(all["objects"].clone()).unwrap(), entries);
    }
}

/// All of them have looked, and found none, before the first is there.
#[tokio::test(flavor = "multi_thread")]
async fn of_several_that_go_up_at_once_one_wins_and_the_others_are_told() {
    for (count, one_upload) in [(500, 1 << 40), (30_000, 1 << 40), (30_000, 1_000)] {
        let (place, dirs) = (tempfile::tempdir().unwrap(), [(); 4].map(|()| tempfile::tempdir().unwrap()));
        let store = crate::providers::directory::Directory::new(place.path().to_owned());
        // Each can be told from the others.
        let each: Vec<Written> = dirs.iter().enumerate().map(|(n, dir)| finished(dir.path(), &entries(count + n as u64))).collect();
        assert_eq!(each[0].length > IN_MEMORY, count == 30_000, "{}", each[0].length);
        let answers = futures::future::join_all(each.iter().map(|one| one.put(&store, KEY, one_upload))).await;
        let won: Vec<usize> = (0..4).filter(|n| answers[*n].is_ok()).collect();
        let told = answers.iter().filter(|answer| matches!(answer, Err(Broken::Port(PortError::Conflict { .. })))).count();
        assert_eq!((won.len(), told), (1, 3), "{count} at {one_upload}: {answers:?}");
        let there = std::fs::read(place.path().join(KEY)).unwrap();
        assert!(there == std::fs::read(&each[won[0]].path).unwrap());
        let late = each[(won[0] + 1) % 4].put(&store, KEY, one_upload).await;
        assert!(matches!(&late, Err(Broken::Port(PortError::Conflict { found })) if found.contains("bytes, etag")), "{late:?}");
        assert!(there == std::fs::read(place.path().join(KEY)).unwrap());
    }
}

#[tokio::test]
async fn an_old_one_is_counted_and_sorted() {
    let world = SimWorld::new(Arc::new(estate()));
    let mut entries = entries(2_345);
    entries.reverse();
    let body = String::from_utf8(old(&head(), &entries)).unwrap();
    let (first, objects) = body[1..body.len() - 1].split_once(",\"objects\"").unwrap();
    // Its fields may stand in any order.
    for body in [body.clone(), format!("{{\"objects\"{objects},{first}}}")] {
        an_old_one(&world, body.as_bytes(), &entries).await;
    }
}

async fn an_old_one(world: &SimWorld, body: &[u8], reversed: &[Entry]) {
    world.lock().object("models", "west", KEY, body, world.time().now());
    let store = world.objects("models", "west").unwrap();
    let told = super::head(&*store, KEY).await.unwrap();
    assert_eq!((told.count, told.bytes, told.order), (Some(2_345), Some((0..2_345).sum()), None));
    let mut found = sorted(&*store, Order::Bytes).await.unwrap();
    found.reverse();
    assert_eq!(found, reversed);
}

#[tokio::test]
async fn one_that_is_not_whole_is_not_believed() {
    let world = SimWorld::new(Arc::new(estate()));
    written(&world, &entries(3_000), 1 << 40).await;
    let store = world.objects("models", "west").unwrap();
    let (_, whole) = read_all(&*store, KEY).await.unwrap();
    let text = String::from_utf8(whole.clone()).unwrap();
    let fewer = text.replacen("\"count\":3000", "\"count\":3001", 1);
    let one_lost = text.replacen("\"sha256\":", "\"sha\":", 1);
    let cut = &whole[..whole.len() - 2];
    let wrong: [(&[u8], &str); 5] =
        [(cut, "EOF"), (fewer.as_bytes(), "says 3001"), (one_lost.as_bytes(), "sha256"), (b"{}", "run"), (b"no manifest", "expected")];
    for (body, words) in wrong {
        world.lock().object("models", "west", KEY, body, world.time().now());
        match sorted(&*store, Order::Bytes).await {
            Err(Broken::Unreadable(why)) => assert!(why.code == "manifest_unreadable" && why.message.contains(words), "{words}: {why}"),
            other => panic!("{words}: {:?}", other.map(|all| all.len())),
        }
    }
    assert_eq!(super::head(&*store, KEY).await.unwrap_err().code, "manifest_unreadable");
}
