//! What differs between two snapshots: a merge of their sorted lists, without the chunks that both have, in which every
//! entry is the same.

use super::{
    Result,
    entry::{Entry, Meta, Node},
    index::Index,
    list,
    names::Id,
    open::Repository,
    snapshot::Snapshot,
};
use std::{cmp::Ordering, collections::HashSet, iter::Peekable};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub path: Vec<u8>,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Added {
        size: u64,
    },
    Removed {
        size: u64,
    },
    /// Its content, where it leads, or what kind of thing it is.
    Changed {
        before: u64,
        after: u64,
    },
    /// These parts of its metadata, and nothing else.
    Metadata(Vec<&'static str>),
}

/// The changes from one list to the other, both in the order of their paths.
pub fn merge(before: impl IntoIterator<Item = Entry>, after: impl IntoIterator<Item = Entry>) -> impl Iterator<Item = Change> {
    let (mut before, mut after) = (before.into_iter().peekable(), after.into_iter().peekable());
    std::iter::from_fn(move || {
        loop {
            let order = order(&mut before, &mut after)?;
            let old = if order == Ordering::Greater { None } else { before.next() };
            let new = if order == Ordering::Less { None } else { after.next() };
            if let Some(change) = change(old, new) {
                return Some(change);
            }
        }
    })
}

/// Which list has the next path; `None` when both have ended.
fn order<A: Iterator<Item = Entry>, B: Iterator<Item = Entry>>(before: &mut Peekable<A>, after: &mut Peekable<B>) -> Option<Ordering> {
    match (before.peek(), after.peek()) {
        (None, None) => None,
        (Some(_), None) => Some(Ordering::Less),
        (None, Some(_)) => Some(Ordering::Greater),
        (Some(old), Some(new)) => Some(old.path.cmp(&new.path)),
    }
}

fn size(node: &Node) -> u64 {
    node.content().map_or(0, |content| content.size)
}

fn change(old: Option<Entry>, new: Option<Entry>) -> Option<Change> {
    let (path, what) = match (old, new) {
        (Some(old), None) => (old.path, What::Removed { size: size(&old.node) }),
        (None, Some(new)) => (new.path, What::Added { size: size(&new.node) }),
        (Some(old), Some(new)) if !same_content(&old.node, &new.node) => {
            (new.path, What::Changed { before: size(&old.node), after: size(&new.node) })
        }
        (Some(old), Some(new)) => {
            let parts = metadata(&old.node, &new.node);
            if parts.is_empty() {
                return None;
            }
            (new.path, What::Metadata(parts))
        }
        (None, None) => return None,
    };
    Some(Change { path, what })
}

/// By what it is, not by how it is stored.
fn same_content(old: &Node, new: &Node) -> bool {
    use Node::{BlockDevice, CharDevice, Fifo, File, Folder, HardLink, Object, Socket, Symlink};
    match (old, new) {
        (File { content: a, .. }, File { content: b, .. }) | (Object { content: a, .. }, Object { content: b, .. }) => {
            (a.size, a.digest) == (b.size, b.digest)
        }
        (Symlink { target: a, .. }, Symlink { target: b, .. }) | (HardLink { to: a, .. }, HardLink { to: b, .. }) => a == b,
        (CharDevice { major: a, minor: b, .. }, CharDevice { major: c, minor: d, .. })
        | (BlockDevice { major: a, minor: b, .. }, BlockDevice { major: c, minor: d, .. }) => (a, b) == (c, d),
        (Folder { .. }, Folder { .. }) | (Fifo { .. }, Fifo { .. }) | (Socket { .. }, Socket { .. }) => true,
        _ => false,
    }
}

/// Which parts of it differ. Inode numbers and the time of the last change of metadata are not anyone's intent.
fn metadata(old: &Node, new: &Node) -> Vec<&'static str> {
    let differing = |parts: &[(&'static str, bool)]| parts.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect();
    match (old, new) {
        (Node::Object { info: a, .. }, Node::Object { info: b, .. }) => differing(&[
            ("mtime", a.mtime != b.mtime),
            ("etag", a.etag != b.etag),
            ("version", a.version != b.version),
            ("metadata", a.metadata != b.metadata),
        ]),
        _ => match (old.meta(), new.meta()) {
            (Some(a), Some(b)) => differing(&differences(a, b)),
            _ => Vec::new(),
        },
    }
}

fn differences(a: &Meta, b: &Meta) -> [(&'static str, bool); 4] {
    [
        ("mode", a.mode != b.mode),
        ("owner", (a.uid, a.gid) != (b.uid, b.gid)),
        ("mtime", a.mtime != b.mtime),
        ("attributes", a.attributes != b.attributes),
    ]
}

/// The changes from one snapshot to another.
pub async fn diff(repository: &Repository, index: &Index, before: &Snapshot, after: &Snapshot) -> Result<Vec<Change>> {
    let old = entries(repository, index, before, &ids(after)).await?;
    let new = entries(repository, index, after, &ids(before)).await?;
    Ok(merge(old, new).collect())
}

fn ids(snapshot: &Snapshot) -> HashSet<Id> {
    snapshot.list.iter().copied().collect()
}

async fn entries(repository: &Repository, index: &Index, snapshot: &Snapshot, but: &HashSet<Id>) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for chunk in snapshot.list.iter().filter(|chunk| !but.contains(chunk)) {
        entries.extend(list::entries(chunk, &repository.chunk(index, chunk).await?)?);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::entry::{Content, Extents, tests::entry};
    use proptest::{collection::btree_map, prelude::*};

    fn file(path: &str, content: &[u8], mode: u32) -> Entry {
        let content = Content { size: content.len() as u64, changed: false, digest: Id::of(content), extents: Extents::Here(Vec::new()) };
        let meta = Meta { mode, ..Meta::default() };
        Entry { path: path.into(), node: Node::File { meta, ctime: Default::default(), inode: 7, content } }
    }

    #[test]
    fn each_kind_of_change_is_told() {
        let before = [file("a", b"1", 0), file("b", b"22", 0), file("c", b"3", 0), file("e", b"5", 0)];
        let after = [file("a", b"1", 0), file("b", b"333", 0), file("c", b"3", 0o600), file("d", b"4444", 0)];
        let found: Vec<(String, What)> = merge(before, after).map(|c| (String::from_utf8(c.path).unwrap(), c.what)).collect();
        let want = [
            ("b", What::Changed { before: 2, after: 3 }),
            ("c", What::Metadata(vec!["mode"])),
            ("d", What::Added { size: 4 }),
            ("e", What::Removed { size: 1 }),
        ];
        assert_eq!(found, want.map(|(path, what)| (path.to_owned(), what)));
    }

    proptest! {
        #[test]
        fn turned_round_it_says_the_opposite(
            a in btree_map("[a-e]{1,2}", entry(), 0..8),
            b in btree_map("[a-e]{1,2}", entry(), 0..8),
        ) {
            let list = |map: std::collections::BTreeMap<String, Entry>| -> Vec<Entry> {
                map.into_iter().map(|(path, entry)| Entry { path: path.into_bytes(), node: entry.node }).collect()
            };
            let (a, b) = (list(a), list(b));
            prop_assert_eq!(merge(a.clone(), a.clone()).count(), 0);
            let there: Vec<Change> = merge(a.clone(), b.clone()).collect();
            let opposite = |change: Change| Change {
                what: match change.what {
                    What::Added { size } => What::Removed { size },
                    What::Removed { size } => What::Added { size },
                    What::Changed { before, after } => What::Changed { before: after, after: before },
                    What::Metadata(parts) => What::Metadata(parts),
                },
                ..change
            };
            let back: Vec<Change> = merge(b, a).map(opposite).collect();
            prop_assert_eq!(there, back);
        }
    }
}
