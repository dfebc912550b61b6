//! `muster backup` end to end: the real program on a repository in a directory, as people and programs meet it.

use crate::place::{Place, Said};
use serde_json::Value;
use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    process::Stdio,
    time::{Duration, Instant},
};

const PASSWORD: &str = "tide-and-ebb-7c1f";

/// A place with a password file, a folder `src` to back up, and a repository `vault` that is not there yet.
fn place() -> Place {
    let place = Place::new();
    place.file("pw", &format!("{PASSWORD}\n"));
    fs::create_dir_all(place.path("src/sub")).unwrap();
    place.file("src/a.txt", "alpha\n").file("src/sub/b.bin", &"beta".repeat(50_000));
    place
}

fn backup(place: &Place, args: &[&str]) -> Said {
    let said = place.muster(&[&["backup"], args, &["--repo", "vault", "--password-file", "pw"]].concat());
    assert!(!said.out.contains(PASSWORD) && !said.err.contains(PASSWORD), "a secret is told");
    said
}

/// The same as a person gives it.
fn plain(place: &Place, args: &[&str]) -> Said {
    let said = place.plain(&[&["backup"], args, &["--repo", "vault", "--password-file", "pw"]].concat());
    assert!(!said.out.contains(PASSWORD) && !said.err.contains(PASSWORD), "a secret is told");
    said
}

fn create(place: &Place) -> Value {
    backup(place, &["create", "src"]).expect(0).last()
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}"))
}

#[test]
fn what_is_backed_up_comes_back() {
    let place = place();
    std::os::unix::fs::symlink("a.txt", place.path("src/link")).unwrap();
    fs::set_permissions(place.path("src/a.txt"), fs::Permissions::from_mode(0o640)).unwrap();
    let said = backup(&place, &["create", "src", "--tag", "nightly"]).expect(0);
    let made = said.last();
    let first: Vec<&str> = made.as_object().unwrap().keys().take(6).map(String::as_str).collect();
    assert_eq!(first, ["snapshot", "files", "bytes_read", "bytes_new", "bytes_stored", "duration_ms"]);
    assert_eq!((made["files"].as_u64(), made["bytes_read"].as_u64(), made["bytes_new"].as_u64()), (Some(2), Some(200_006), Some(200_006)));
    assert_eq!((made["initialised"].as_bool(), made["parent"].is_null()), (Some(true), true));
    assert!(said.lines().iter().any(|line| line["event"] == "initialised"), "{}", said.out);

    let restored = backup(&place, &["restore", "latest", "--to", "out"]).expect(0).last();
    assert_eq!((restored["files"].as_u64(), restored["bytes"].as_u64()), (Some(2), Some(200_006)), "{restored}");
    assert_eq!(place.read("out/a.txt"), "alpha\n");
    assert_eq!(fs::read(place.path("out/sub/b.bin")).unwrap(), fs::read(place.path("src/sub/b.bin")).unwrap());
    assert_eq!(fs::read_link(place.path("out/link")).unwrap().to_str(), Some("a.txt"));
    assert_eq!(fs::metadata(place.path("out/a.txt")).unwrap().permissions().mode() & 0o777, 0o640);

    // What is not empty is not restored into, but in place.
    let said = backup(&place, &["restore", "latest", "--to", "out"]).expect(2);
    assert!(said.err.contains("--in-place"), "{}", said.err);
    place.file("out/a.txt", "changed\n").file("out/more", "x");
    backup(&place, &["restore", "latest", "--to", "out", "--in-place", "--delete"]).expect(0);
    assert!(place.read("out/a.txt") == "alpha\n" && !place.path("out/more").exists());
    backup(&place, &["restore", "latest", "--to", "part", "--include", "a.*"]).expect(0);
    let said = backup(&place, &["restore", "latest", "--to", "none", "--include", "nowhere.*"]).expect(2);
    assert!(said.err.contains("nothing in the snapshot fits --include"), "{}", said.err);
    assert!(place.path("part/a.txt").exists() && !place.path("part/sub/b.bin").exists());
    backup(&place, &["restore", "latest", "--to", "dry", "--dry-run"]).expect(0);
    assert!(!place.path("dry").exists());
}

#[test]
fn only_what_changed_is_read_and_stored() {
    let place = place();
    let first = create(&place);
    // A file that changed just now may change again within the same tick of its clock, so it is read again.
    std::thread::sleep(Duration::from_millis(60));
    let same = create(&place);
    assert_eq!(same["parent"], first["snapshot"]);
    std::thread::sleep(Duration::from_millis(60));
    let same = create(&place);
    assert_eq!((same["bytes_read"].as_u64(), same["bytes_new"].as_u64(), same["files"].as_u64()), (Some(0), Some(0), Some(2)), "{same}");
    place.file("src/c.txt", "gamma");
    let more = create(&place);
    assert_eq!((more["bytes_new"].as_u64(), more["initialised"].as_bool()), (Some(5), Some(false)));
    let all = backup(&place, &["create", "src", "--read-all"]).expect(0).last();
    assert_eq!((all["bytes_read"].as_u64(), all["bytes_new"].as_u64()), (Some(200_011), Some(0)));
}

#[test]
fn snapshots_are_listed_shown_and_compared() {
    let place = place();
    let first = backup(&place, &["create", "src", "--tag", "one"]).expect(0).last();
    place.file("src/c.txt", "gamma").file("src/a.txt", "alpha, again\n");
    fs::remove_file(place.path("src/sub/b.bin")).unwrap();
    let second = backup(&place, &["create", "src", "--tag", "two", "--tag", "late"]).expect(0).last();
    let (first, second) = (text(&first, "snapshot"), text(&second, "snapshot"));

    let listed = backup(&place, &["list"]).expect(0).last();
    let ids: Vec<&str> = listed["snapshots"].as_array().unwrap().iter().map(|shot| text(shot, "id")).collect();
    assert_eq!(ids, [first, second]);
    let count = |args: &[&str]| backup(&place, &[&["list"], args].concat()).expect(0).last()["snapshots"].as_array().unwrap().len();
    assert_eq!((count(&["--tag", "two", "--tag", "late"]), count(&["--tag", "two", "--tag", "one"])), (1, 0));
    assert_eq!((count(&["--source", "src"]), count(&["--source", "elsewhere"])), (2, 0));
    let table = plain(&place, &["list"]).expect(0).out;
    assert!(table.lines().count() == 3 && table.contains(&first[..10]) && table.contains("195 KiB"), "{table}");

    let shown = backup(&place, &["show", &first[..8], "--files"]).expect(0);
    let paths: Vec<String> = shown.lines().iter().filter_map(|line| line["file"]["path"].as_str().map(str::to_owned)).collect();
    assert_eq!(paths, [".", "a.txt", "sub/", "sub/b.bin"]);
    assert_eq!(text(&shown.last(), "id"), first);
    assert!(plain(&place, &["show", "latest"]).expect(0).out.contains("compared with"));
    assert!(plain(&place, &["show", first, "--files"]).expect(0).out.contains("-rw"));

    let found = backup(&place, &["diff", first, "latest"]).expect(0).last();
    let counts = ["added", "removed", "changed"].map(|name| found[name].as_u64().unwrap());
    assert_eq!(counts, [1, 1, 1], "{found}");
    let told = plain(&place, &["diff", first, second]).expect(0).out;
    for line in ["M a.txt  6 B -> 13 B", "+ c.txt  5 B", "- sub/b.bin  195 KiB"] {
        assert!(told.contains(line), "{told}");
    }
    let said = backup(&place, &["show", "0000"]).expect(2);
    assert!(said.err.contains("muster backup list"), "{}", said.err);
}

#[test]
fn a_wrong_password_an_occupied_place_and_none_at_all_are_told_apart() {
    let place = place();
    let said = backup(&place, &["list"]).expect(2);
    assert!(said.err.contains("vault holds no repository"), "{}", said.err);
    create(&place);
    place.file("wrong", "ebb-and-tide\n");
    let said = place.plain(&["backup", "list", "--repo", "vault", "--password-file", "wrong"]).expect(2);
    assert!(said.err.contains("opens none of the repository's 1 keys") && !said.err.contains("ebb"), "{}", said.err);

    fs::create_dir(place.path("other")).unwrap();
    place.file("other/photo.jpg", "x");
    let said = place.plain(&["backup", "create", "src", "--repo", "other", "--password-file", "pw"]).expect(2);
    assert!(said.err.contains("photo.jpg") && !place.path("other/config").exists(), "{}", said.err);

    // What cannot be backed up makes no repository.
    let said = place.plain(&["backup", "create", "nowhere", "--repo", "new", "--password-file", "pw"]).expect(2);
    assert!(said.err.contains("nowhere") && !place.path("new").exists(), "{}", said.err);
    let said = place.plain(&["backup", "create", "src", "--repo", "src/vault", "--password-file", "pw"]).expect(2);
    assert!(said.err.contains("--exclude '/vault'") && !place.path("src/vault").exists(), "{}", said.err);
    let said = place.plain(&["backup", "create", "src", "--password-file", "pw"]).expect(2);
    assert!(said.err.contains("--repo"), "{}", said.err);
    let said = place.plain(&["backup", "create", "src", "--repo", "vault"]).expect(2);
    assert!(said.err.contains("MUSTER_REPO_PASSWORD"), "{}", said.err);
    let said = backup(&place, &["create", "src", "--lock", "1d"]).expect(2);
    assert!(said.err.contains("Object Lock"), "{}", said.err);
}

#[test]
fn the_secret_comes_from_the_file_the_environment_or_the_estate() {
    let place = place();
    create(&place);
    let with = |args: &[&str], env: Option<&str>| {
        let mut command = place.command(&[&["backup", "list", "--json"], args].concat());
        command.env_remove("MUSTER_REPO_PASSWORD").env_remove("MUSTER_REPO");
        if let Some(value) = env {
            command.env("MUSTER_REPO_PASSWORD", value);
        }
        place.spawn(command).end()
    };
    with(&["--repo", "vault"], Some(PASSWORD)).expect(0);
    // One trailing newline is none of the password.
    with(&["--repo", "./vault"], Some(&format!("{PASSWORD}\n"))).expect(0);
    with(&["--repo", "vault"], Some("wrong")).expect(2);
    with(&["--repo", "vault", "--password-file", "pw"], Some("wrong")).expect(0);
    place.file("muster.yaml", "regions: { east: {} }\nrepositories:\n  safe: { url: ./vault, password: { file: pw } }\n");
    with(&["--repo", "safe"], None).expect(0);
    with(&[], None).expect(0);
    let said = with(&["--repo", "safe"], Some("wrong")).expect(2);
    assert!(!said.err.contains(PASSWORD), "{}", said.err);
    // A restore needs no estate that can be read.
    place.file("muster.yaml", "regions: [\n");
    with(&["--repo", "./vault", "--password-file", "pw"], None).expect(0);
    with(&["--repo", "safe", "--password-file", "pw"], None).expect(2);
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_is_there() {
    let place = place();
    // A file that opens and cannot be read, not even by root.
    let said = backup(&place, &["create", "/proc/self/mem"]).expect(1);
    let made = said.last();
    assert_eq!((made["unreadable"][0]["path"].as_str(), made["files"].as_u64()), (Some("mem"), Some(0)), "{made}");
    let said = plain(&place, &["create", "/proc/self/mem"]).expect(1);
    assert!(said.err.contains("mem is not in the snapshot: Input/output error"), "{}", said.err);

    place.file("src/locked", "secret");
    fs::set_permissions(place.path("src/locked"), fs::Permissions::from_mode(0o000)).unwrap();
    // Root reads everything.
    let code = i32::from(fs::read(place.path("src/locked")).is_err());
    let made = backup(&place, &["create", "src"]).expect(code).last();
    assert_eq!(made["unreadable"].as_array().unwrap().len(), code as usize, "{made}");
    backup(&place, &["restore", "latest", "--to", "out"]).expect(0);
    assert_eq!(place.read("out/a.txt"), "alpha\n");
}

#[test]
fn a_file_that_changes_while_it_is_read_is_named() {
    let place = place();
    fs::write(place.path("src/log"), vec![7; 16 << 20]).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (said, told) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut log = fs::OpenOptions::new().append(true).open(place.path("src/log")).unwrap();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                log.write_all(b"more\n").unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let both = (backup(&place, &["create", "src"]), plain(&place, &["create", "src"]));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        both
    });
    let made = said.expect(1).last();
    assert_eq!((&made["changed"], made["unreadable"].as_array().unwrap().len()), (&serde_json::json!(["log"]), 0), "{made}");
    let told = told.expect(1);
    assert!(told.err.contains("log"), "{}", told.err);
    // It is in the snapshot, marked; the next backup reads it again, and nothing is wrong any more.
    let shown = backup(&place, &["show", "latest", "--files"]).expect(0);
    let log = shown.lines().into_iter().find(|line| line["file"]["path"] == "log").unwrap_or_else(|| panic!("{}", shown.out));
    assert_eq!(log["file"]["changed_while_read"], true, "{log}");
    let again = backup(&place, &["create", "src"]).expect(0).last();
    assert!(again["bytes_read"].as_u64().unwrap() > 16 << 20 && again["changed"] == serde_json::json!([]), "{again}");
}

#[test]
fn standard_input_becomes_a_file() {
    let place = place();
    let mut command =
        place.command(&["backup", "create", "-", "--stdin-name", "db.dump", "--repo", "vault", "--password-file", "pw", "--json"]);
    command.stdin(fs::File::open(place.path("src/sub/b.bin")).unwrap());
    let made = place.spawn(command).end().expect(0).last();
    assert_eq!((text(&made, "source"), made["bytes_read"].as_u64()), ("db.dump", Some(200_000)));
    backup(&place, &["restore", "latest", "--to", "out"]).expect(0);
    assert_eq!(place.read("out/db.dump"), "beta".repeat(50_000));
    let said = backup(&place, &["create", "-", "--stdin-name", "a/b"]).expect(2);
    assert!(said.err.contains("a/b"), "{}", said.err);
    let args = ["backup", "create", "-", "--stdin-name", "a/b", "--repo", "fresh", "--password-file", "pw"];
    place.muster(&args).expect(2);
    assert!(!place.path("fresh").exists(), "nothing is made for a source that cannot be");
}

#[test]
fn verification_names_what_is_damaged_and_whom_it_touches() {
    let place = place();
    // Content that does not compress, so that the largest pack is the one that holds it.
    let noise = std::iter::successors(Some(1u64), |n| Some(n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1)));
    fs::write(place.path("src/sub/b.bin"), noise.map(|n| (n >> 56) as u8).take(200_000).collect::<Vec<u8>>()).unwrap();
    create(&place);
    let good = backup(&place, &["verify"]).expect(0).last();
    assert_eq!((good["good"].as_bool(), good["snapshots"].as_u64(), good["packs_read"].as_u64()), (Some(true), Some(1), Some(0)));
    let good = backup(&place, &["verify", "--read-data"]).expect(0).last();
    assert!(good["packs_read"].as_u64() > Some(0) && good["bytes_read"].as_u64() > Some(0), "{good}");
    backup(&place, &["verify", "latest", "--read-data=50"]).expect(0);
    backup(&place, &["verify", "--read-data=0"]).expect(2);

    let pack = packs(&place).into_iter().max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::set_permissions(&pack, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&pack, bytes).unwrap();
    backup(&place, &["verify"]).expect(0);
    let bad = backup(&place, &["verify", "--read-data"]).expect(1).last();
    assert_eq!(bad["good"].as_bool(), Some(false));
    assert!(!bad["problems"].as_array().unwrap().is_empty() && !bad["touched"].as_array().unwrap().is_empty(), "{bad}");
    let told = plain(&place, &["verify", "--read-data"]).expect(1).out;
    assert!(told.contains("NOT good") && told.contains("packs/"), "{told}");
    // All the rest is restored.
    let restored = backup(&place, &["restore", "latest", "--to", "out"]).expect(1).last();
    assert_eq!((restored["damaged"].as_array().unwrap().len(), restored["files"].as_u64()), (1, Some(1)), "{restored}");
}

fn packs(place: &Place) -> Vec<std::path::PathBuf> {
    let folders = fs::read_dir(place.path("vault/packs")).unwrap().map(|folder| folder.unwrap().path());
    folders.flat_map(|folder| fs::read_dir(folder).unwrap().map(|pack| pack.unwrap().path())).collect()
}

/// Turns one bit of what is stored there.
fn turn_a_bit(path: &std::path::Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_snapshot_stops_pruning_until_it_is_forgotten_by_its_name() {
    let place = place();
    let first = text(&create(&place), "snapshot").to_owned();
    place.file("src/c.txt", "gamma");
    create(&place);
    turn_a_bit(&place.path("vault/snapshots").join(&first));
    let said = backup(&place, &["prune"]).expect(2);
    assert!(said.err.contains(&first) && said.err.contains("backup forget ID"), "{}", said.err);
    let dry = backup(&place, &["forget", &first[..12], "--dry-run"]).expect(1).last();
    assert_eq!((&dry["forgotten_damaged"][0], dry["damaged"].as_array().unwrap().len()), (&Value::from(first.as_str()), 0), "{dry}");
    let said = plain(&place, &["forget", "latest", &first[..12], "--dry-run"]);
    assert!(said.out.contains("which cannot be read, is to be forgotten") && said.out.contains("2 snapshots would be"), "{}", said.out);
    let done = backup(&place, &["forget", &first]).expect(0).last();
    assert_eq!(done["forgotten_damaged"].as_array().unwrap().len(), 1, "{done}");
    assert!(!place.path("vault/snapshots").join(&first).exists());
    backup(&place, &["prune"]).expect(0);
    backup(&place, &["verify", "--read-data"]).expect(0);
    assert_eq!(backup(&place, &["list"]).expect(0).last()["snapshots"].as_array().unwrap().len(), 1);
    backup(&place, &["forget", &first]).expect(2);
}

#[test]
fn a_damaged_pack_heals_from_a_second_place_and_a_lost_index_by_pruning() {
    let place = place();
    create(&place);
    backup(&place, &["copy", "--to", "second"]).expect(0);
    let pack = packs(&place).into_iter().max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap();
    turn_a_bit(&pack);
    let said = plain(&place, &["verify", "--read-data"]).expect(1);
    assert!(said.err.contains("what heals it"), "{}", said.err);
    fs::remove_file(&pack).unwrap();
    place.muster(&["backup", "copy", "--repo", "second", "--to", "vault", "--password-file", "pw"]).expect(0);
    backup(&place, &["verify", "--read-data"]).expect(0);

    fs::remove_dir_all(place.path("vault/index")).unwrap();
    let bad = backup(&place, &["verify"]).expect(1).last();
    assert_eq!((bad["touched"].as_array().unwrap().len(), bad["problems"].as_array().unwrap().len()), (0, 1), "{bad}");
    let said = plain(&place, &["restore", "latest", "--to", "out"]).expect(0);
    assert!(said.err.contains("index is lost"), "{}", said.err);
    assert_eq!(place.read("out/a.txt"), "alpha\n");
    backup(&place, &["prune"]).expect(0);
    backup(&place, &["verify", "--read-data"]).expect(0);
    let again = backup(&place, &["restore", "latest", "--to", "again"]).expect(0).last();
    assert_eq!(again["notes"].as_array().unwrap().len(), 0, "{again}");
}

#[test]
fn what_is_no_key_is_named_and_taken_away() {
    let place = place();
    create(&place);
    let planted = "00".repeat(32);
    fs::write(place.path("vault/keys").join(&planted), "no key").unwrap();
    let found = backup(&place, &["key", "list"]).expect(1).last();
    assert_eq!((found["keys"].as_array().unwrap().len(), found["damaged"].as_array().unwrap().len()), (1, 1), "{found}");
    let bad = backup(&place, &["verify"]).expect(1).last();
    assert!(bad["problems"][0].as_str().unwrap().contains(&planted), "{bad}");
    let gone = backup(&place, &["key", "remove", &planted[..8]]).expect(0).last();
    assert_eq!((&gone["key"], text(&gone, "damaged")), (&Value::Null, format!("keys/{planted}").as_str()));
    backup(&place, &["key", "list"]).expect(0);
    backup(&place, &["verify"]).expect(0);
}

#[test]
fn forgetting_by_a_rule_or_by_name_and_pruning() {
    let place = place();
    let mut ids = Vec::new();
    for round in 0..3 {
        place.file("src/a.txt", &format!("round {round}\n"));
        ids.push(text(&create(&place), "snapshot").to_owned());
    }
    let said = backup(&place, &["forget"]).expect(2);
    assert!(said.err.contains("--keep-daily"), "{}", said.err);
    let dry = backup(&place, &["forget", "--keep-last", "2", "--dry-run"]).expect(0).last();
    assert_eq!((dry["forgotten"][0]["id"].as_str(), dry["kept"].as_array().unwrap().len()), (Some(&*ids[0]), 2));
    let told = plain(&place, &["forget", "--keep-last", "2", "--dry-run"]).expect(0).out;
    assert!(told.contains("would be forgotten") && told.contains("kept: newest, last"), "{told}");
    // All of them were made on one day.
    let done = backup(&place, &["forget", "--keep-daily", "7"]).expect(0).last();
    assert_eq!((done["forgotten"].as_array().unwrap().len(), done["kept"][0]["id"].as_str()), (2, Some(&*ids[2])));
    assert_eq!(done["kept"][0]["reasons"], serde_json::json!(["newest", "daily"]));

    let dry = backup(&place, &["prune", "--dry-run"]).expect(0).last();
    assert!(dry["dry_run"] == true && dry["marked"].as_u64() > Some(0), "{dry}");
    let marked = backup(&place, &["prune", "--grace", "0s"]).expect(0).last();
    assert_eq!(marked["deleted"].as_u64(), Some(0), "{marked}");
    assert!(backup(&place, &["stats"]).expect(0).last()["marked_packs"].as_u64() > Some(0));
    let deleted = backup(&place, &["prune", "--grace", "0s"]).expect(0).last();
    assert_eq!(deleted["deleted"], marked["waiting"], "{deleted}");
    backup(&place, &["verify", "--read-data"]).expect(0);
    backup(&place, &["restore", "latest", "--to", "out"]).expect(0);
    assert_eq!(place.read("out/a.txt"), "round 2\n");
    backup(&place, &["prune", "--grace", "5s"]).expect(2);
    backup(&place, &["forget", &ids[2][..8]]).expect(0);
    assert_eq!(backup(&place, &["list"]).expect(0).last()["snapshots"].as_array().unwrap().len(), 0);
}

#[test]
fn a_copy_is_the_same_repository_elsewhere() {
    let place = place();
    let made = create(&place);
    let done = backup(&place, &["copy", "--to", "second"]).expect(0).last();
    assert_eq!((done["snapshots_copied"].as_u64(), &done["snapshots"][0]), (Some(1), &made["snapshot"]));
    let again = backup(&place, &["copy", "latest", "--to", "second"]).expect(0).last();
    assert_eq!((again["snapshots_copied"].as_u64(), again["packs_copied"].as_u64()), (Some(0), Some(0)));
    let second = |args: &[&str]| place.muster(&[&["backup"], args, &["--repo", "second", "--password-file", "pw"]].concat());
    second(&["verify", "--read-data"]).expect(0);
    second(&["restore", "latest", "--to", "out"]).expect(0);
    assert_eq!(place.read("out/a.txt"), "alpha\n");
    backup(&place, &["copy", "--to", "vault"]).expect(2);
    // A key that came later goes along.
    place.file("new", "another-secret-91\n");
    backup(&place, &["key", "rotate", "--new-password-file", "new"]).expect(0);
    let args = ["backup", "copy", "--to", "second", "--repo", "vault", "--password-file", "new"];
    let done = place.muster(&args).expect(0).last();
    place.muster(&["backup", "list", "--repo", "second", "--password-file", "new"]).expect(0);
    // What still opens there is said, with what ends that.
    let (differ, remedy) = (done["keys_differ"][0].as_str().unwrap(), "muster backup key remove ");
    assert!(done["keys_copied"] == 1 && differ.contains("second still opens with key") && differ.contains(remedy), "{done}");
    let id = &differ[differ.find(remedy).unwrap() + remedy.len()..][..10];
    place.muster(&["backup", "key", "remove", id, "--repo", "second", "--password-file", "new"]).expect(0);
    second(&["list"]).expect(2);
    assert_eq!(place.muster(&args).expect(0).last()["keys_differ"], serde_json::json!([]));
}

#[test]
fn keys_are_added_rotated_and_removed() {
    let place = place();
    create(&place);
    fs::write(place.path("key"), (0..64).collect::<Vec<u8>>()).unwrap();
    place.file("new", "another-secret-91\n");
    let added = backup(&place, &["key", "add", "--new-key-file", "key", "--label", "break-glass"]).expect(0).last();
    assert_eq!((text(&added["key"], "label"), text(&added["key"], "opens_with")), ("break-glass", "key-file"));
    let with_key = |args: &[&str]| place.muster(&[&["backup"], args, &["--repo", "vault", "--key-file", "key"]].concat());
    with_key(&["list"]).expect(0);
    let keys = backup(&place, &["key", "list"]).expect(0).last();
    let current: Vec<bool> = keys["keys"].as_array().unwrap().iter().map(|key| key["current"].as_bool().unwrap()).collect();
    assert_eq!(current, [true, false]);
    let id = text(&keys["keys"][0], "id").to_owned();
    let said = backup(&place, &["key", "remove", &id]).expect(2);
    assert!(said.err.contains("so it stays"), "{}", said.err);
    let said = backup(&place, &["key", "rotate", "--new-password-file", "new"]).expect(2);
    assert!(said.err.contains("--revoke-others"), "{}", said.err);
    let done = backup(&place, &["key", "rotate", "--new-password-file", "new", "--revoke-others"]).expect(0).last();
    assert_eq!((done["generation"].as_u64(), done["removed"].as_array().unwrap().len()), (Some(2), 2));
    assert!(!done.to_string().contains("another-secret"));
    backup(&place, &["list"]).expect(2);
    with_key(&["list"]).expect(2);
    let now = |args: &[&str]| place.muster(&[&["backup"], args, &["--repo", "vault", "--password-file", "new"]].concat());
    // What is under the old master key stays readable, and what comes is under the new one.
    place.file("src/c.txt", "gamma");
    now(&["create", "src"]).expect(0);
    now(&["verify", "--read-data"]).expect(0);
    now(&["key", "add", "--new-key-file", "key"]).expect(0);
    with_key(&["key", "remove", &text(&now(&["key", "list"]).expect(0).last()["keys"][0], "id")[..12]]).expect(0);
    now(&["list"]).expect(2);
    place.file("short", "too short");
    let said = with_key(&["key", "add", "--new-key-file", "short"]).expect(2);
    assert!(said.err.contains("/dev/urandom"), "{}", said.err);
}

#[test]
fn what_the_repository_holds_is_counted() {
    let place = place();
    create(&place);
    create(&place);
    let totals = backup(&place, &["stats"]).expect(0).last();
    assert_eq!((totals["snapshots"].as_u64(), totals["snapshot_bytes"].as_u64()), (Some(2), Some(400_012)), "{totals}");
    assert!(totals["content_bytes"].as_u64() < Some(300_000) && totals["pack_bytes"].as_u64() > Some(0), "{totals}");
    assert!(plain(&place, &["stats"]).expect(0).out.contains("deduplication"));
}

#[test]
fn ctrl_c_stops_a_backup_without_a_snapshot_and_says_how_to_go_on() {
    let place = place();
    create(&place);
    // Something at the other end of a pipe that goes on for ever.
    let mut command = place.command(&["backup", "create", "-", "--repo", "vault", "--password-file", "pw", "--json"]);
    command.stdin(Stdio::piped());
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    command.stdin(reader.try_clone().unwrap());
    let running = place.spawn(command);
    let feed = std::thread::spawn(move || {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(50) && writer.write_all(&[7; 4096]).is_ok() {
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    place.until_told("progress", || running.out_so_far().contains("\"progress\""), || running.told());
    running.signal("INT");
    let said = running.end().expect(3);
    assert!(said.err.contains("goes on from what is stored"), "{}", said.err);
    // Our end of the pipe is the last: now the other end breaks.
    let _ = std::io::Read::read(&mut reader, &mut [0; 16]);
    drop(reader);
    feed.join().unwrap();
    assert_eq!(backup(&place, &["list"]).expect(0).last()["snapshots"].as_array().unwrap().len(), 1);
    backup(&place, &["verify", "--read-data"]).expect(0);
}

#[test]
fn ctrl_c_ends_a_backup_of_what_never_comes() {
    let place = place();
    let mut command = place.command(&["backup", "create", "-", "--repo", "vault", "--password-file", "pw", "--json"]);
    let (reader, writer) = std::io::pipe().unwrap();
    command.stdin(reader);
    let running = place.spawn(command);
    place.until_told("a repository", || running.out_so_far().contains("initialised"), || running.told());
    running.signal("INT");
    let began = Instant::now();
    running.end().expect(3);
    assert!(began.elapsed() < Duration::from_secs(30));
    drop(writer);
    assert_eq!(backup(&place, &["list"]).expect(0).last()["snapshots"].as_array().unwrap().len(), 0);
}

#[test]
fn excluded_files_are_left_out() {
    let place = place();
    place.file("src/x.tmp", "x");
    let made = backup(&place, &["create", "src", "--exclude", "*.tmp", "--exclude", "/sub"]).expect(0).last();
    assert_eq!(made["files"].as_u64(), Some(1), "{made}");
    let said = backup(&place, &["create", "src", "--exclude", "a[b"]).expect(2);
    assert!(said.err.contains("a[b"), "{}", said.err);
}

/// What is stored by one of them is held for the others, and is read without knowing by which.
#[test]
fn how_much_is_compressed_is_the_operators_choice() {
    let place = place();
    let lines: String = (0..20_000u32).map(|n| format!("{} of {} came in at {}\n", n * 7, n % 77, n.wrapping_mul(2_654_435_761))).collect();
    let mut stored = Vec::new();
    for how in ["none", "fast", "standard"] {
        // Nothing of it is held, and it is as much as before.
        place.file("src/lines", &format!("{how:>8}{lines}"));
        let made =
            place.muster(&["backup", "create", "src", "--repo", how, "--password-file", "pw", "--compression", how]).expect(0).last();
        assert_eq!(text(&made, "compression"), how);
        stored.push(made["bytes_stored"].as_u64().unwrap());
        let args = ["backup", "restore", "latest", "--to", &format!("out-{how}"), "--repo", how, "--password-file", "pw"];
        place.muster(&args).expect(0);
        assert_eq!(place.read(&format!("out-{how}/lines")), format!("{how:>8}{lines}"));
        place.muster(&["backup", "verify", "--read-data", "--repo", how, "--password-file", "pw"]).expect(0);
    }
    assert!(stored[0] as usize > lines.len() && stored[1] < stored[0] * 3 / 4 && stored[2] < stored[1], "{stored:?}");
    let mixed = |how: &str| {
        let args = ["backup", "create", "src", "--repo", "none", "--password-file", "pw", "--read-all", "--compression", how];
        place.muster(&args).expect(0).last()
    };
    mixed("fast");
    assert_eq!(mixed("none")["bytes_new"].as_u64(), Some(0), "it was stored by another");
    // The estate's choice, and that of the command before it; without either the default.
    place
        .file("muster.yaml", "regions: { east: {} }\nrepositories:\n  safe: { url: ./vault, password: { file: pw }, compression: fast }\n");
    let created =
        |more: &[&str]| text(&place.muster(&[&["backup", "create", "src"], more].concat()).expect(0).last(), "compression").to_owned();
    assert_eq!([created(&[]), created(&["--compression", "none"])], ["fast", "none"]);
    assert_eq!(created(&["--repo", "./vault", "--password-file", "pw"]), "standard");
    // Mistyped, all three are named.
    let said = backup(&place, &["create", "src", "--compression", "zip"]).expect(2);
    assert!(["none", "fast", "standard"].iter().all(|how| said.err.contains(how)), "{}", said.err);
    place.file("muster.yaml", "regions: { east: {} }\nrepositories:\n  safe: { url: ./vault, password: { file: pw }, compression: zip }\n");
    let said = place.plain(&["validate", "muster.yaml"]).expect(2);
    let told = format!("{}{}", said.out, said.err);
    assert!(told.contains("valid here: `none`, `fast`, `standard`"), "{told}");
}

#[test]
fn help_has_examples_for_each_command() {
    let place = Place::new();
    let help = |args: &[&str]| {
        let mut command = place.command(&[&["backup"], args, &["--help"]].concat());
        command.env_remove("COLUMNS").env_remove("MUSTER_REPO");
        place.spawn(command).end().expect(0).out
    };
    let top = help(&[]);
    let mut pages = top.clone();
    let commands: Vec<&str> = top.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty()).collect();
    for line in commands {
        let command = line.split_whitespace().next().unwrap();
        if command != "help" {
            let page = help(&[command]);
            assert!(page.contains("Examples:") && page.contains("muster backup"), "{command}: {page}");
            pages.push_str(&format!("=== {command}\n{page}"));
        }
    }
    insta::assert_snapshot!("backup-help", pages);
}
