//! What the real program does when its disk is full, its journal was torn, or its process was frozen and another
//! has gone on without it.

use crate::place::{Place, Running};
use std::{
    path::Path,
    process::{Command, Stdio},
};

/// Runs a script where file systems can be mounted that nobody else sees and that go with the script.
pub fn in_a_room_of_its_own(place: &Place, script: &str) -> bool {
    let room = [&["-rm"][..], &["-m"][..]].into_iter().find(|flags| {
        let mut probe = Command::new("unshare");
        probe.args(*flags).args(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/mnt"]);
        probe.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    });
    let Some(flags) = room else {
        println!("NOT POSSIBLE HERE: no file system can be mounted (neither as root nor by `unshare -rm`), so a full disk was not tried");
        return false;
    };
    std::fs::write(place.path("script.sh"), script.replace("@/", &format!("{}/", place.root().display()))).unwrap();
    let mut command = Command::new("unshare");
    command.args(flags).args(["sh", "-eu", "script.sh"]).current_dir(place.root()).env("MUSTER", env!("CARGO_BIN_EXE_muster"));
    command.env_remove("MUSTER_STATE").env_remove("MUSTER_ESTATE");
    place.spawn(command).end().expect(0);
    true
}

/// What a script's `said N …` has left: code, stdout, stderr.
pub fn said(place: &Place, n: usize) -> (i32, String, String) {
    let read = |what: &str| place.read(&format!("{what}{n}"));
    (read("code").trim().parse().unwrap(), read("out"), read("err"))
}

const SAID: &str = "said() { n=$1; shift; \"$MUSTER\" --state @/state --json \"$@\" > @/out$n 2> @/err$n && echo 0 > @/code$n || echo $? > @/code$n; }\nmkdir @/state\n";

/// `b` fills the disk that the journal is on, while `c` is under way; `d` comes after both.
fn filling(reserve: bool) -> String {
    let also = if reserve { "" } else { "rm @/state/journal.reserve; " };
    format!(
        "  - id: a\n    uses: exec.command\n    with: {{ argv: [sh, -c, 'echo a >> @/a'] }}
  - id: b\n    needs: [a]\n    uses: exec.command\n    with: {{ argv: [sh, -c, '{also}echo b >> @/b; head -c 100000000 /dev/zero > @/state/filler; :'], observe: [test, -s, '@/b'] }}
  - id: c\n    needs: [a]\n    uses: exec.command\n    with: {{ argv: [sh, -c, 'until [ -s @/b ]; do sleep 0.05; done; sleep 1; echo c >> @/c'] }}
  - id: d\n    needs: [b, c]\n    uses: exec.command\n    with: {{ argv: [sh, -c, 'echo d >> @/d'] }}\n"
    )
}

#[test]
fn a_full_disk_stops_the_run_with_its_last_words_on_record() {
    let place = Place::new();
    place.book(&filling(true));
    let script = format!(
        "{SAID}mount -t tmpfs -o size=8m tmpfs @/state
said 1 run book.yaml
head -c 100000000 /dev/zero >> @/state/filler || :
said 2 resume
rm @/state/filler
said 3 evidence verify
said 4 resume
said 5 evidence verify
test -e @/state/journal.reserve\n"
    );
    if !in_a_room_of_its_own(&place, &script) {
        return;
    }
    let (code, out, err) = said(&place, 1);
    let last: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!((code, last["status"].as_str()), (3, Some("paused")), "{out}\n{err}");
    let statuses: Vec<_> = last["steps"].as_array().unwrap().iter().map(|step| step["status"].as_str().unwrap()).collect();
    let done = |status: &&str| ["running", "succeeded"].contains(status);
    // Of `b` it is on record that it was done; if `observe` has not seen it yet, it is asked when the run goes on.
    assert!(statuses[1..3].iter().all(done), "what was under way is on record: {statuses:?}");
    assert_eq!((statuses[0], statuses[3]), ("succeeded", "pending"));
    assert!(last["reason"].as_str().unwrap().contains("/state took no more: its disk is full: make room there"), "{last}");
    assert!(err.contains("resume"), "{err}");
    // Not even the claim can be written down.
    let (code, _, err) = said(&place, 2);
    assert!(code == 2 || code == 3, "{code}: {err}");
    assert!(err.contains("full") && err.contains("/state"), "{err}");
    assert_eq!(said(&place, 3).0, 0, "the full disk has damaged nothing");
    assert_eq!((said(&place, 4).0, said(&place, 5).0), (0, 0), "{}", said(&place, 4).2);
    for step in ["a", "b", "c", "d"] {
        assert_eq!(place.words(step), [step]);
    }
}

#[test]
fn a_full_disk_without_a_reserve_leaves_open_what_nobody_could_write_down() {
    let place = Place::new();
    place.book(&filling(false));
    let script = format!(
        "{SAID}mount -t tmpfs -o size=8m tmpfs @/state
said 1 run book.yaml
rm @/state/filler
said 2 resume
run=$(\"$MUSTER\" --state @/state --json runs | sed 's/.*\"id\":\"\\([^\"]*\\)\".*/\\1/')
said 3 resolve $run c --as done --reason 'the file is there'
said 4 resume
said 5 evidence verify\n"
    );
    if !in_a_room_of_its_own(&place, &script) {
        return;
    }
    let (code, _, err) = said(&place, 1);
    assert_eq!(code, 3, "{err}");
    for part in ["stopped: the journal in", "/state cannot be used: its disk is full", "Nothing was begun that is not on record", "resume"]
    {
        assert!(err.contains(part), "no `{part}` in {err}");
    }
    let (code, out, _) = said(&place, 2);
    let last: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    let statuses: Vec<_> = last["steps"].as_array().unwrap().iter().map(|step| step["status"].as_str().unwrap()).collect();
    // `b` was seen to have happened; of `c` nobody can tell.
    assert_eq!((code, statuses), (3, vec!["succeeded", "succeeded", "indeterminate", "pending"]));
    assert_eq!((said(&place, 3).0, said(&place, 4).0, said(&place, 5).0), (0, 0, 0), "{}", said(&place, 4).2);
    for step in ["a", "b", "c", "d"] {
        assert_eq!(place.words(step), [step]);
    }
}

#[test]
fn a_full_disk_under_the_runs_files_fails_what_needs_them_and_no_more() {
    let place = Place::new();
    place.book("  - id: a\n    uses: exec.command\n    with: { argv: [sh, -c, 'echo a >> @/a'] }\n");
    let script = format!(
        "{SAID}mkdir @/state/runs; mount -t tmpfs -o nr_inodes=1 tmpfs @/state/runs
said 1 run book.yaml
mount -o remount,nr_inodes=2 @/state/runs
said 2 resume
mount -o remount,nr_inodes=100 @/state/runs
run=$(\"$MUSTER\" --state @/state --json runs | sed 's/.*\"id\":\"\\([^\"]*\\)\".*/\\1/')
said 3 retry $run a
said 4 resume\n"
    );
    if !in_a_room_of_its_own(&place, &script) {
        return;
    }
    let (code, _, err) = said(&place, 1);
    assert!(code == 2 && err.contains("the run's folder") && err.contains("No space left"), "{code}: {err}");
    let (code, out, err) = said(&place, 2);
    assert!(code == 3 && out.contains("cannot be used: No space left on device"), "{code}: {out}\n{err}");
    assert!(err.contains("muster --state") && err.contains("retry"), "{err}");
    assert_eq!((said(&place, 3).0, said(&place, 4).0), (0, 0), "{}", said(&place, 4).2);
    assert_eq!(place.words("a"), ["a"]);
}

/// A run of three steps whose process was ended at this write, and its identifier.
fn killed(place: &Place, write: u32) -> String {
    let step = |id: &str| {
        format!(
            "  - id: {id}\n    uses: exec.command\n    with: {{ argv: [sh, -c, 'echo {id} >> @/{id}'], observe: [test, -s, '@/{id}'] }}\n"
        )
    };
    place.book(&["a", "b", "c"].map(step).concat());
    let mut command = place.command(&["run", "book.yaml", "--json"]);
    command.env("MUSTER_FAILPOINT", format!("write:{write}:before"));
    assert_eq!(place.spawn(command).end().code, None);
    // Whoever opens the journal next tidies it up.
    copy(&place.path(".muster"), &place.path("left"));
    place.newest()
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).unwrap();
    for file in ["journal.db", "journal.db-wal"] {
        if from.join(file).exists() {
            std::fs::copy(from.join(file), to.join(file)).unwrap();
        }
    }
}

/// What is left of the record is its beginning, or it is refused: never something else.
fn holds(place: &Place, run: &str, whole: &[serde_json::Value], what: &str) -> usize {
    let shown = place.muster(&["show", run, "--state", "torn"]);
    let verified = place.muster(&["evidence", "verify", "--state", "torn"]);
    if shown.code != Some(0) {
        let told = ["no run or drill", "damaged", "cut off", "cannot be read", "hash on record", "no journal", "cannot be used"];
        assert!(shown.code == Some(2) && told.iter().any(|word| shown.err.contains(word)), "{what}: {shown:?}");
        return 0;
    }
    let last = shown.last();
    let events = last["events"].as_array().unwrap();
    if verified.code == Some(0) {
        assert!(events.len() <= whole.len() && events[..] == whole[..events.len()], "{what}: another record stands there, and verifies");
    }
    events.len()
}

#[test]
fn a_torn_journal_is_its_beginning_or_is_refused() {
    let place = Place::new();
    let run = killed(&place, 6);
    let (state, torn) = (place.path("left"), place.path("torn"));
    let mut seen = std::collections::BTreeSet::new();
    copy(&state, &torn);
    let whole = place.muster(&["show", &run, "--state", "torn"]).expect(0).last()["events"].as_array().unwrap().clone();
    copy(&state, &torn);
    let wal = std::fs::read(torn.join("journal.db-wal")).unwrap();
    assert!(wal.len() > 10_000, "a killed process leaves its write-ahead log");
    // Cut within and between its frames, and bytes changed near its end.
    for part in 0..24 {
        let at = wal.len() * part / 24 + part;
        copy(&state, &torn);
        std::fs::write(torn.join("journal.db-wal"), &wal[..at]).unwrap();
        seen.insert(holds(&place, &run, &whole, &format!("cut at byte {at} of {}", wal.len())));
        let mut changed = wal.clone();
        changed[at] ^= 0x41;
        copy(&state, &torn);
        std::fs::write(torn.join("journal.db-wal"), changed).unwrap();
        seen.insert(holds(&place, &run, &whole, &format!("byte {at} of the log changed")));
    }
    assert!(seen.len() >= 4, "the cuts left records of these lengths: {seen:?}");
    // The run goes on from what is whole, and its end is in the database itself.
    place.muster(&["resume"]).expect(0);
    let whole = place.muster(&["show", &run]).expect(0).last()["events"].as_array().unwrap().clone();
    let db = std::fs::read(place.path(".muster/journal.db")).unwrap();
    let mut refused = 0;
    for part in 0..24 {
        let at = db.len() * part / 24 + 7 * part;
        copy(&state, &torn);
        let _ = std::fs::remove_file(torn.join("journal.db-wal"));
        std::fs::write(torn.join("journal.db"), &db[..at]).unwrap();
        refused += usize::from(holds(&place, &run, &whole, &format!("the database cut at byte {at}")) < whole.len());
        let mut changed = db.clone();
        changed[at] ^= 0x41;
        std::fs::write(torn.join("journal.db"), changed).unwrap();
        holds(&place, &run, &whole, &format!("byte {at} of the database changed"));
    }
    assert!(refused >= 20, "{refused} of 24 cuts were noticed");
}

fn frozen(running: &Running) -> bool {
    std::fs::read_to_string(format!("/proc/{}/stat", running.pid())).is_ok_and(|stat| stat.contains(") T "))
}

/// The owner is frozen at this write; `a` waits for `go`, if it is to.
fn freeze(place: &Place, write: u32) -> Running {
    let step = |id: &str| {
        format!(
            "  - id: {id}\n    uses: exec.command\n    timeout: 50s\n    with: {{ argv: [sh, -c, 'until [ -e @/go ]; do sleep 0.05; done; echo {id} >> @/{id}'], observe: [test, -s, '@/{id}'] }}\n"
        )
    };
    place.book(&["a", "b"].map(step).concat());
    let mut command = place.command(&["run", "book.yaml", "--json"]);
    command.env("MUSTER_FAILPOINT", format!("write:{write}:freeze"));
    let running = place.spawn(command);
    place.until("the owner is frozen", || frozen(&running));
    running
}

#[test]
fn a_frozen_owner_is_named_taken_over_and_refused_when_it_thaws() {
    // Before `a` is begun, before it is on record that it was accepted, before it was seen to be done and `b` is
    // begun, and likewise of `b`. Where a command ends before it is first looked at, two of these are one write, and the last
    // freezes an owner that has ended its run: then there is nothing to be taken over.
    let mut midway = 0;
    for write in 2..=6 {
        let place = Place::new();
        place.file("go", "");
        let owner = freeze(&place, write);
        let run = place.newest();
        let said = place.muster(&["resume", &run]).expect(2);
        if said.err.contains("has ended: succeeded") {
            owner.signal("CONT");
            owner.end().expect(0);
            continue;
        }
        midway += 1;
        for part in [&format!(":{}", owner.pid()), &format!("muster resume {run} --take-over")] {
            assert!(said.err.contains(part), "write {write}: no `{part}` in {}", said.err);
        }
        let said = place.muster(&["resume", &run, "--take-over"]).expect(0);
        assert!(said.err.contains("may still happen"), "{}", said.err);
        assert_eq!(said.statuses(), ["succeeded"; 2]);
        owner.signal("CONT");
        let said = owner.end().expect(2);
        assert!(said.err.contains("no longer owns") && said.err.contains(&run), "write {write}: {}", said.err);
        assert_eq!((place.words("a"), place.words("b")), (vec!["a".to_owned()], vec!["b".to_owned()]), "write {write}");
        place.muster(&["evidence", "verify"]).expect(0);
    }
    assert!(midway >= 3, "{midway} of 5 owners were frozen in the middle of their run");
}

#[test]
fn the_end_of_a_frozen_owner_frees_nothing_that_was_taken_over() {
    let place = Place::new();
    let owner = freeze(&place, 2);
    let run = place.newest();
    // What an operator asks of a frozen owner waits for it, or for who takes the run over.
    let taker = place.start(&["resume", &run, "--take-over", "--json"]);
    place.until("the run is taken over", || place.muster(&["show", &run]).out.contains("\"epoch\":2"));
    place.muster(&["resume", &run]).expect(2);
    owner.signal("KILL");
    owner.end();
    let said = place.muster(&["resume", &run]).expect(2);
    assert!(said.err.contains(&format!(":{}", taker.pid())), "{}", said.err);
    assert_eq!(place.muster(&["pause", &run, "--reason", "tea"]).expect(0).last()["owner"], true);
    place.until("the pause is heard", || place.muster(&["show", &run]).out.contains("pause_requested"));
    place.file("go", "");
    taker.end().expect(3);
    place.muster(&["resume", &run]).expect(0);
    assert_eq!((place.words("a"), place.words("b")), (vec!["a".to_owned()], vec!["b".to_owned()]));
}
