//! What stands under one key: in a manifest, at the source and at the copy, key by key in one order and in bounded memory.
//! Listings come from the servers, and the manifest from the disk, where it was sorted.

use super::{
    manifest::{self, Entry},
    set_runs::Merge,
    set_walk::{Broken, Item, Listing, Order, Walker},
};
use crate::providers::port::ObjectRead;
use futures::future::try_join;
use std::{
    cmp::Ordering,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What is read side by side; what is `None` holds nothing.
#[derive(Clone)]
pub(crate) struct Sides {
    /// The store of a manifest, and its key there.
    pub manifest: Option<(Arc<dyn ObjectRead>, String)>,
    pub source: Option<Listing>,
    pub copy: Option<Listing>,
}

/// All that stands under one key; never nothing.
#[derive(Default)]
pub(crate) struct Row {
    pub entry: Option<Entry>,
    pub source: Option<Item>,
    pub copy: Option<Item>,
    /// Whether the source was asked at all.
    pub asked: bool,
}

impl Row {
    pub fn key(&self) -> &str {
        match (&self.entry, &self.source, &self.copy) {
            (Some(entry), ..) => &entry.key,
            (None, Some(item), _) | (None, None, Some(item)) => item.key(),
            (None, None, None) => "",
        }
    }
}

pub(crate) struct Rows {
    order: Order,
    manifest: Option<Merge<Entry>>,
    source: Option<Walker>,
    copy: Option<Walker>,
    /// The next of each.
    next: Row,
}

/// Where the sorted manifest and sorted listings of one comparison lie.
pub(crate) const RUNS: [&str; 4] = ["source", "copy", "manifest", "manifest-folders"];

fn manifest_runs(folder: &Path, order: Order) -> PathBuf {
    folder.join(if order == Order::Folders { "manifest-folders" } else { "manifest" })
}

impl Rows {
    /// From behind a key on. What has to be sorted is sorted below the folder, unless it lies there already.
    pub async fn begin(sides: &Sides, order: Order, after: Option<&str>, folder: &Path) -> Result<Self, Broken> {
        let manifest = match &sides.manifest {
            Some((store, key)) => {
                let runs = manifest_runs(folder, order);
                manifest::sort(&**store, key, order, &runs).await?;
                Some(Merge::open(&runs, order, after)?)
            }
            None => None,
        };
        let source = async { walker(sides.source.as_ref(), order, after, folder.join("source")).await.map_err(of_source) };
        let (source, copy) = try_join(source, walker(sides.copy.as_ref(), order, after, folder.join("copy"))).await?;
        let asked = source.is_some();
        Ok(Self { order, manifest, source, copy, next: Row { asked, ..Row::default() } })
    }

    pub async fn next(&mut self) -> Result<Option<Row>, Broken> {
        let next = &mut self.next;
        if let (None, Some(manifest)) = (&next.entry, &mut self.manifest) {
            next.entry = manifest.next()?;
        }
        if let (None, Some(source)) = (&next.source, &mut self.source) {
            next.source = source.next().await.map_err(of_source)?;
        }
        if let (None, Some(copy)) = (&next.copy, &mut self.copy) {
            next.copy = copy.next().await?;
        }
        let keys = [next.entry.as_ref().map(|e| e.key.as_str()), next.source.as_ref().map(Item::key), next.copy.as_ref().map(Item::key)];
        let Some(first) = keys.into_iter().flatten().min_by(|a, b| self.order.cmp(a, b)) else { return Ok(None) };
        let here = keys.map(|key| key.is_some_and(|key| self.order.cmp(key, first) == Ordering::Equal));
        Ok(Some(Row {
            entry: next.entry.take_if(|_| here[0]),
            source: next.source.take_if(|_| here[1]),
            copy: next.copy.take_if(|_| here[2]),
            asked: next.asked,
        }))
    }
}

async fn walker(listing: Option<&Listing>, order: Order, after: Option<&str>, runs: PathBuf) -> Result<Option<Walker>, Broken> {
    match listing {
        Some(listing) => Walker::begin(listing.clone(), order, after.map(str::to_owned), &runs).await.map(Some),
        None => Ok(None),
    }
}

fn of_source(broken: Broken) -> Broken {
    match broken {
        Broken::Port(e) => Broken::Source(e),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::estate;
    use crate::providers::{clock::Clock, port::WorldRead, sim::SimWorld};

    /// Which of the three hold each key.
    async fn merged(sides: &Sides, after: Option<&str>) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let mut rows = Rows::begin(sides, Order::Bytes, after, dir.path()).await.unwrap();
        let mut found = Vec::new();
        while let Some(row) = rows.next().await.unwrap() {
            let held = [("m", row.entry.is_some()), ("s", row.source.is_some()), ("c", row.copy.is_some())];
            let held: String = held.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
            found.push(format!("{} {held}", row.key()));
        }
        found
    }

    #[tokio::test]
    async fn three_sides_meet_under_each_key_from_any_on() {
        let world = SimWorld::new(Arc::new(estate()));
        let now = world.time().now();
        for (region, keys) in [("east", ["a", "c", "d", "g"]), ("west", ["b", "c", "e", "g"])] {
            keys.iter().for_each(|key| world.lock().object("models", region, key, b"x", now));
        }
        let entry = |key: &str| Entry { key: key.into(), size: 1, sha256: String::new(), etag: None, version: None, copy_etag: None };
        let head = manifest::tests::head();
        // In no order at all.
        let body = manifest::old(&head, &["g", "a", "f", "e"].map(entry));
        world.lock().object("models", "west", ".muster/manifests/x.json", &body, now);
        let (source, copy) = (world.objects("models", "east").unwrap(), world.objects("models", "west").unwrap());
        let mut sides = Sides {
            manifest: Some((copy.clone(), ".muster/manifests/x.json".to_owned())),
            source: Some(Listing::of(source, "")),
            copy: Some(Listing::of(copy, "")),
        };
        let all = [".muster/manifests/x.json c", "a ms", "b c", "c sc", "d s", "e mc", "f m", "g msc"];
        assert_eq!(merged(&sides, None).await, all);
        assert_eq!(merged(&sides, Some("c")).await, all[4..]);
        assert_eq!(merged(&sides, Some("cc")).await, all[4..]);
        sides.source = None;
        assert_eq!(merged(&sides, Some("d")).await, ["e mc", "f m", "g mc"]);
        sides.copy = None;
        assert_eq!(merged(&sides, None).await, ["a m", "e m", "f m", "g m"]);
    }
}
