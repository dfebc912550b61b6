//! The walk over real folders: its order, every kind of entry, what changed and what only seems to have.

use super::*;
use crate::repository::{
    entry::{Extent, Extents},
    names::Id,
    source::Body,
};
use proptest::prelude::*;
use rustix::fs::{CWD, mkfifoat, mknodat};
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    os::unix::{fs::symlink, net::UnixListener},
    time::Duration,
};

fn options() -> Options {
    Options::default()
}

fn tree(root: &Path) -> Tree {
    Tree::new(root, Parent::none(), options()).unwrap()
}

/// Everything that it gives, in order; of what cannot be read, the path and why.
fn all(mut tree: Tree) -> (Vec<Item>, Vec<Unreadable>) {
    let (mut items, mut unreadable) = (Vec::new(), Vec::new());
    while let Some(given) = tree.next() {
        match given.unwrap() {
            Ok(item) => items.push(item),
            Err(why) => unreadable.push(why),
        }
    }
    (items, unreadable)
}

fn paths(items: &[Item]) -> Vec<String> {
    items.iter().map(|item| String::from_utf8_lossy(&item.entry.path).into_owned()).collect()
}

/// The content as it is read, and its holes.
fn read(body: &mut dyn Body) -> (Vec<u8>, Vec<Range<u64>>) {
    let (mut content, mut holes, mut buffer) = (Vec::new(), Vec::new(), vec![0; 64 * 1024]);
    loop {
        let got = body.read(&mut buffer).unwrap();
        content.extend_from_slice(&buffer[..got]);
        if got > 0 {
            continue;
        }
        let hole = body.hole().unwrap();
        if hole == 0 {
            return (content, holes);
        }
        holes.push(content.len() as u64..content.len() as u64 + hole);
        content.resize(content.len() + hole as usize, 0);
    }
}

fn body(item: &mut Item) -> &mut dyn Body {
    match &mut item.reading {
        Reading::Read(body) => &mut **body,
        _ => panic!("{} is not to be read", item.entry.shown()),
    }
}

fn at<'a>(items: &'a mut [Item], path: &str) -> &'a mut Item {
    items.iter_mut().find(|item| item.entry.path == path.as_bytes()).unwrap()
}

#[test]
fn every_kind_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir(root.join("folder")).unwrap();
    fs::write(root.join("folder/file"), b"content").unwrap();
    fs::write(root.join("folder.txt"), b"before what is in folder").unwrap();
    fs::hard_link(root.join("folder/file"), root.join("hard")).unwrap();
    symlink("/nowhere/\u{e9}", root.join("link")).unwrap();
    mkfifoat(CWD, root.join("pipe"), Mode::from_raw_mode(0o640)).unwrap();
    let _socket = UnixListener::bind(root.join("socket")).unwrap();
    let device = rustix::fs::makedev(1, 3);
    let devices = mknodat(CWD, root.join("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o600), device).is_ok();
    fs::write(root.join(OsStr::from_bytes(b"\xff\n\xfe")), b"odd").unwrap();

    let (mut items, unreadable) = all(tree(root));
    assert!(unreadable.is_empty(), "{unreadable:?}");
    let found = paths(&items);
    let mut sorted = items.iter().map(|item| item.entry.path.clone()).collect::<Vec<_>>();
    sorted.sort();
    assert_eq!(items.iter().map(|item| item.entry.path.clone()).collect::<Vec<_>>(), sorted);
    assert_eq!(found[..4], ["", "folder.txt", "folder/", "folder/file"]);
    assert!(items.iter().any(|item| item.entry.path == b"\xff\n\xfe"));
    let file = at(&mut items, "folder/file");
    assert!(matches!(&file.entry.node, Node::File { content, meta, .. } if content.size == 7 && meta.mode & 0o600 == 0o600));
    assert_eq!(read(body(file)).0, b"content");
    assert!(!body(file).changed().unwrap());
    assert!(matches!(&at(&mut items, "hard").entry.node, Node::HardLink { to, .. } if to == b"folder/file"));
    assert!(matches!(&at(&mut items, "link").entry.node, Node::Symlink { target, .. } if target == "/nowhere/\u{e9}".as_bytes()));
    assert!(matches!(&at(&mut items, "pipe").entry.node, Node::Fifo { meta } if meta.mode & 0o700 == 0o600));
    assert!(matches!(&at(&mut items, "socket").entry.node, Node::Socket { .. }));
    if devices {
        assert!(matches!(&at(&mut items, "null").entry.node, Node::CharDevice { major: 1, minor: 3, .. }));
    } else {
        eprintln!("skipped: only root makes devices");
    }
}

#[test]
fn a_single_file_is_a_tree_without_folders() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("model.bin"), b"weights").unwrap();
    let (mut items, _) = all(tree(&dir.path().join("model.bin")));
    assert_eq!(paths(&items), ["model.bin"]);
    assert_eq!(read(body(&mut items[0])).0, b"weights");
}

#[test]
fn the_root_may_be_a_link_but_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("volume")).unwrap();
    fs::write(dir.path().join("volume/a"), b"a").unwrap();
    symlink("volume", dir.path().join("current")).unwrap();
    assert_eq!(paths(&all(tree(&dir.path().join("current"))).0), ["", "a"]);
    let error = Tree::new(&dir.path().join("gone"), Parent::none(), options()).err().unwrap().to_string();
    assert!(error.contains("gone") && error.contains("name a folder or file that is there"), "{error}");
}

#[test]
fn holes_are_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse");
    let mut file = File::create(&path).unwrap();
    file.seek(SeekFrom::Start(1 << 20)).unwrap();
    file.write_all(&[7; 8192]).unwrap();
    file.set_len(3 << 20).unwrap();
    file.sync_all().unwrap();
    let (mut items, _) = all(tree(&path));
    let (content, holes) = read(body(&mut items[0]));
    assert!(content == fs::read(&path).unwrap());
    if rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)) == Ok(0) {
        assert_eq!(holes, [0..1 << 20, (1 << 20) + 8192..3 << 20]);
    } else {
        eprintln!("skipped: this file system does not tell holes");
    }
}

#[test]
fn hard_links_to_what_is_excluded_are_files() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.tmp", "keep/b", "logs/c"] {
        fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        fs::write(dir.path().join(name), b"x").unwrap();
    }
    fs::hard_link(dir.path().join("a.tmp"), dir.path().join("z")).unwrap();
    let options = Options { exclude: Globs::new(&["*.tmp", "/logs"]).unwrap(), ..options() };
    let (mut items, _) = all(Tree::new(dir.path(), Parent::none(), options).unwrap());
    assert_eq!(paths(&items), ["", "keep/", "keep/b", "z"]);
    assert!(matches!(at(&mut items, "z").entry.node, Node::File { .. }));
}

#[test]
fn what_vanishes_or_turns_under_the_walk_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a/x", "b/x", "c", "d", "e"] {
        fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        fs::write(dir.path().join(name), b"x").unwrap();
    }
    let mut tree = tree(dir.path());
    assert!(tree.next().unwrap().unwrap().unwrap().entry.path.is_empty());
    fs::remove_dir_all(dir.path().join("b")).unwrap();
    fs::remove_file(dir.path().join("c")).unwrap();
    fs::remove_file(dir.path().join("d")).unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    let (items, unreadable) = all(tree);
    assert_eq!(paths(&items), ["a/", "a/x", "e"]);
    let named: Vec<_> = unreadable.iter().map(|u| String::from_utf8_lossy(&u.path).into_owned()).collect();
    assert_eq!(named, ["b/", "c", "d"]);
    assert!(unreadable[1].why.contains("No such file"), "{unreadable:?}");
    assert!(unreadable[2].why.contains("took its place"), "{unreadable:?}");
}

#[test]
fn a_folder_that_cannot_be_entered_is_given_and_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("deep/inner")).unwrap();
    fs::write(dir.path().join("deep/inner/x"), b"x").unwrap();
    let mut tree = tree(dir.path());
    while tree.path != b"deep/" {
        tree.next().unwrap().unwrap().unwrap();
    }
    // As root no mode keeps us out: a name that is too long for any folder does.
    let name = [b'n'; 300];
    let stat = statat(CWD, dir.path(), AtFlags::empty()).unwrap();
    let within = tree.open.pop().unwrap();
    let item = tree.folder(&within, &name, &stat).unwrap();
    assert!(matches!(item.entry.node, Node::Folder { .. }));
    let late = tree.next().unwrap().unwrap().err().unwrap();
    assert!(late.why.contains("what is in it cannot be read"), "{late:?}");
}

#[test]
fn what_changes_while_it_is_read_is_told() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["appended", "cut", "replaced", "same", "rewritten"] {
        fs::write(dir.path().join(name), vec![1; 100_000]).unwrap();
    }
    let (mut items, _) = all(tree(dir.path()));
    std::thread::park_timeout(Duration::from_millis(15));
    File::options().append(true).open(dir.path().join("appended")).unwrap().write_all(b"more").unwrap();
    File::options().write(true).open(dir.path().join("cut")).unwrap().set_len(10).unwrap();
    File::options().write(true).open(dir.path().join("rewritten")).unwrap().write_all(b"other").unwrap();
    fs::remove_file(dir.path().join("replaced")).unwrap();
    for (name, length, changed) in [
        ("appended", 100_000, true),
        ("cut", 10, true),
        ("replaced", 100_000, true),
        ("same", 100_000, false),
        ("rewritten", 100_000, true),
    ] {
        let body = body(at(&mut items, name));
        assert_eq!(read(body).0.len(), length, "{name}");
        assert_eq!(body.changed().unwrap(), changed, "{name}");
    }
}

#[test]
fn another_file_of_that_name_has_changed() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), b"old").unwrap();
    fs::write(dir.path().join("b"), b"new").unwrap();
    let stat = statat(CWD, dir.path().join("a"), AtFlags::empty()).unwrap();
    fs::rename(dir.path().join("b"), dir.path().join("a")).unwrap();
    let folder = File::open(dir.path()).unwrap();
    let mut body = FileBody::open(folder.as_fd(), b"a", &stat).unwrap();
    assert_eq!(read(&mut body).0, b"new");
    assert!(body.changed().unwrap());
    fs::remove_file(dir.path().join("a")).unwrap();
    mkfifoat(CWD, dir.path().join("a"), Mode::from_raw_mode(0o600)).unwrap();
    let why = FileBody::open(folder.as_fd(), b"a", &stat).err().unwrap();
    assert!(why.to_string().contains("no longer a file"), "{why}");
}

/// A parent that has what these items say.
fn parent(items: &[Item], began: jiff::Timestamp, change: impl Fn(&mut Content)) -> Parent {
    let mut bytes = Vec::new();
    for item in items {
        let mut entry = item.entry.clone();
        if let Node::File { content, .. } = &mut entry.node {
            content.extents = Extents::Here(vec![Extent::Chunk { id: Id([7; 32]), length: content.size as u32 }]);
            change(content);
        }
        entry.encode(&mut bytes);
    }
    Parent::new(vec![Id([1; 32])], began, Box::new(move |_| Ok(bytes.clone())))
}

fn same(root: &Path, parent: Parent, options: Options) -> BTreeSet<String> {
    let (items, _) = all(Tree::new(root, parent, options).unwrap());
    let same = items.into_iter().filter(|item| matches!(item.reading, Reading::Same));
    same.map(|item| {
        assert_eq!(item.entry.node.content().unwrap().extents, Extents::Here(vec![Extent::Chunk { id: Id([7; 32]), length: 3 }]));
        item.entry.shown()
    })
    .collect()
}

#[test]
fn what_has_not_changed_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for name in ["a", "d/b", "d/c", "z"] {
        fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        fs::write(root.join(name), b"one").unwrap();
    }
    let written = fs::metadata(root.join("z")).unwrap().modified().unwrap();
    let written = jiff::Timestamp::try_from(written).unwrap();
    let later = written + Duration::from_secs(1);
    let (items, _) = all(tree(root));
    let given = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let everything = given(&["a", "d/b", "d/c", "z"]);
    assert_eq!(same(root, parent(&items, later, |_| ()), options()), everything);
    assert!(same(root, parent(&items, written, |_| ()), options()).is_empty(), "too fresh to be believed");
    assert!(same(root, parent(&items, later, |content| content.changed = true), options()).is_empty());
    assert!(same(root, parent(&items, later, |_| ()), Options { reread: true, ..options() }).is_empty());
    assert!(same(root, Parent::new(vec![Id([1; 32])], later, Box::new(|_| Ok(vec![0xff]))), options()).is_empty(), "a damaged parent");

    std::thread::park_timeout(Duration::from_millis(15));
    // The same size and the old time of change: what the change of the metadata tells.
    let mtime = fs::metadata(root.join("a")).unwrap().modified().unwrap();
    fs::write(root.join("a"), b"two").unwrap();
    File::options().write(true).open(root.join("a")).unwrap().set_modified(mtime).unwrap();
    // Another file under the name.
    fs::write(root.join("new"), b"one").unwrap();
    fs::rename(root.join("new"), root.join("d/c")).unwrap();
    assert_eq!(same(root, parent(&items, later, |_| ()), options()), given(&["d/b", "z"]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_order_is_that_of_the_paths_bytes(made in prop::collection::vec(prop::collection::vec("[ab./0-]{1,3}", 1..4), 0..12)) {
        let dir = tempfile::tempdir().unwrap();
        for parts in made {
            let path = parts.iter().map(|part| part.replace(['/', '.'], "+")).collect::<Vec<_>>().join("/");
            // Whatever is in the way stays.
            let _ = fs::create_dir_all(dir.path().join(&path).parent().unwrap());
            let _ = File::create_new(dir.path().join(&path));
        }
        let (items, unreadable) = all(tree(dir.path()));
        prop_assert!(unreadable.is_empty());
        prop_assert!(items.windows(2).all(|pair| pair[0].entry.path < pair[1].entry.path), "{:?}", paths(&items));
    }
}

/// Where times have no fractions, a file may change twice within one of them, before and after it is read.
#[test]
fn where_clocks_are_coarse_a_file_must_have_lain_still_for_longer() {
    let began = 100 * 1_000_000_000 + 500_000_000;
    let at = |seconds, nanos| super::lay_still(Instant { seconds, nanos }, began);
    assert!(at(100, 470_000_000) && !at(100, 490_000_000) && !at(101, 0));
    assert!(!at(100, 0) && !at(99, 0) && at(98, 0) && at(99, 1));
}

/// Else the list would have it twice, and the whole backup would be refused for it.
#[test]
fn a_name_that_a_folder_tells_twice_is_taken_once() {
    let mut names = super::Names::default();
    for (name, folder) in [("b", false), ("a", true), ("b", false), ("a", false), ("c", true), ("c", true)] {
        names.add(name.as_bytes(), folder);
    }
    names.sort();
    let taken = std::iter::from_fn(|| names.take()).collect::<Vec<_>>();
    let taken: Vec<&[u8]> = taken.iter().map(|range| &names.bytes[range.clone()]).collect();
    assert_eq!(taken, [&b"a"[..], b"a/", b"b", b"c/"]);
}
