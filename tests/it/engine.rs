//! Runs of the real program over `exec.command` alone: the order of steps, failures, people, and what
//! becomes of a run whose process is stopped, killed, or not alone.

use crate::place::{Place, alive};
use serde_json::json;
use std::time::{Duration, Instant};

#[test]
fn steps_that_need_nothing_of_each_other_overlap() {
    let place = Place::new();
    // Each waits for the other to have begun: one after the other, neither would end.
    place.book(
        "  - id: a\n    needs: []\n    uses: exec.command\n    timeout: 30s\n    with: { argv: [sh, -c, 'touch @/a; until [ -e @/b ]; do sleep 0.05; done'] }
  - id: b\n    needs: []\n    uses: exec.command\n    timeout: 30s\n    with: { argv: [sh, -c, 'touch @/b; until [ -e @/a ]; do sleep 0.05; done'] }
  - id: c\n    needs: [a, b]\n    uses: exec.command\n    with: { argv: [sh, -c, 'test -e @/a && test -e @/b && echo both'] }\n",
    );
    let said = place.run_book().expect(0);
    assert_eq!(said.statuses(), ["succeeded"; 3]);
    assert_eq!(said.step("c")["output"]["output"], "both\n");
    let last = said.last();
    assert_eq!((&last["status"], &last["evidence"]["verified"]), (&json!("succeeded"), &json!(true)));
    assert_eq!(last["evidence"]["events"].as_u64().unwrap() as usize, said.lines().len() - 1, "every event was told");
    assert!(said.step("a")["duration_ms"].as_i64().is_some() && said.step("a")["started_at"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn when_decides_with_the_inputs_and_the_outputs_before_it() {
    let place = Place::new();
    let text = "runbook: book\ninputs:\n  go: { type: string, default: 'no' }\nsteps:
  - id: look\n    uses: exec.command\n    with: { argv: [echo, here] }
  - id: maybe\n    uses: exec.command\n    when: inputs.go == 'yes'\n    with: { argv: [sh, -c, 'echo x >> @/ran'] }
  - id: last\n    uses: exec.command\n    with: { argv: [echo, 'it said {{ steps.look.output }}'] }\n";
    place.file("book.yaml", text);
    let said = place.run_book().expect(0);
    assert_eq!(said.statuses(), ["succeeded", "skipped", "succeeded"]);
    assert_eq!(said.step("maybe")["skipped"], "its `when` is false");
    assert_eq!(said.step("last")["output"]["output"], "it said here\n\n");
    assert_eq!(place.read("ran"), "");
    place.muster(&["run", "book.yaml", "-i", "go=yes"]).expect(0);
    assert_eq!(place.words("ran"), ["x"]);
}

#[test]
fn a_step_is_tried_as_often_as_it_says() {
    let place = Place::new();
    let book = |attempts| {
        format!(
            "  - id: a\n    uses: exec.command\n    retry: {{ attempts: {attempts}, backoff: 10ms }}\n    with: {{ argv: [sh, -c, 'echo x >> @/tries; test $(wc -l < @/tries) -ge 3'] }}\n"
        )
    };
    let said = place.book(&book(3)).run_book().expect(0);
    assert_eq!((said.step("a")["attempts"].as_u64(), place.words("tries").len()), (Some(3), 3));
    std::fs::remove_file(place.path("tries")).unwrap();
    let said = place.book(&book(2)).run_book().expect(3);
    assert_eq!((said.step("a")["status"].as_str(), place.words("tries").len()), (Some("failed"), 2));
    assert_eq!(said.step("a")["failure"]["code"], "exit");
}

// A child in the group as well: the deadline ends them all.
const HANGS: &str = "'echo x >> @/tries; echo $$ >> @/pids; sleep 300 & echo $! >> @/pids; wait'";

#[test]
fn what_hangs_is_ended_with_its_group_and_a_person_is_asked() {
    for (answer, status, tries) in [("done", "succeeded_with_warning", 1), ("not-done", "indeterminate", 2)] {
        let place = Place::new();
        place.book(&format!("  - id: a\n    uses: exec.command\n    timeout: 1s\n    with: {{ argv: [sh, -c, {HANGS}] }}\n"));
        let said = place.run_book().expect(3);
        assert_eq!((said.last()["status"].as_str(), said.step("a")["status"].as_str()), (Some("indeterminate"), Some("indeterminate")));
        let pids = place.words("pids");
        assert_eq!(pids.len(), 2);
        assert!(!pids.iter().any(|pid| alive(pid)), "something was left running");
        let run = said.run();
        assert!(said.err.contains(&format!("muster resolve {run} a --as done --reason")), "{}", said.err);
        place.muster(&["resume", &run]).expect(3);
        assert_eq!(place.words("tries").len(), 1, "nobody has said that it may be repeated");
        place.muster(&["resolve", &run, "a", "--as", answer, "--reason", "looked"]).expect(0);
        let said = place.muster(&["resume", &run]);
        assert_eq!((said.step("a")["status"].as_str(), place.words("tries").len()), (Some(status), tries), "{answer}");
        assert_eq!(said.code, Some(if answer == "done" { 0 } else { 3 }));
        place.muster(&["evidence", "verify"]).expect(0);
    }
}

#[test]
fn observe_settles_what_a_deadline_cut_off() {
    let place = Place::new();
    place.book(
        "  - id: a\n    uses: exec.command\n    timeout: 1s\n    with: { argv: [sh, -c, 'echo x >> @/a; sleep 300'], observe: [test, -e, '@/a'] }
  - id: b\n    uses: exec.command\n    timeout: 1s\n    retry: { attempts: 2, backoff: 10ms }\n    with: { argv: [sh, -c, 'echo x >> @/tries; test $(wc -l < @/tries) -ge 2 || sleep 300; touch @/b'], observe: [test, -e, '@/b'] }\n",
    );
    let said = place.run_book().expect(0);
    assert_eq!((said.step("a")["attempts"].as_u64(), place.words("a").len()), (Some(1), 1), "it had happened");
    assert_eq!((said.step("b")["attempts"].as_u64(), place.words("tries").len()), (Some(2), 2), "it had not");
}

#[test]
fn each_on_failure_does_what_it_says() {
    let place = Place::new();
    let book = |policy: &str| {
        format!("  - id: a\n    uses: exec.command\n    with: {{ argv: [sh, -c, 'echo a >> @/log'], undo: [sh, -c, 'echo undo-a >> @/log'] }}
  - id: b\n    uses: exec.command\n    on_failure: {policy}\n    with: {{ argv: [sh, -c, 'echo b >> @/log; test -e @/mended'], undo: [sh, -c, 'echo undo-b >> @/log'] }}
  - id: c\n    uses: exec.command\n    with: {{ argv: [sh, -c, 'echo c >> @/log'] }}\n")
    };
    let log = || {
        let words = place.words("log").join(" ");
        std::fs::remove_file(place.path("log")).unwrap();
        words
    };
    let said = place.book(&book("stop")).run_book().expect(1);
    assert_eq!((said.last()["status"].as_str(), said.statuses().join(" ")), (Some("failed"), "succeeded failed cancelled".into()));
    assert_eq!(log(), "a b");
    let said = place.book(&book("continue")).run_book().expect(0);
    assert_eq!(said.statuses(), ["succeeded", "failed_ignored", "succeeded"]);
    assert_eq!(log(), "a b c");
    let said = place.book(&book("undo")).run_book().expect(1);
    assert_eq!((said.last()["status"].as_str(), said.statuses().join(" ")), (Some("failed"), "undone undone cancelled".into()));
    assert_eq!(log(), "a b undo-b undo-a");
    let said = place.book(&book("pause")).run_book().expect(3);
    assert_eq!((said.last()["status"].as_str(), said.statuses().join(" ")), (Some("paused"), "succeeded failed pending".into()));
    assert!(said.err.contains(&format!("muster retry {} b", said.run())), "{}", said.err);
    place.muster(&["resume", &said.run()]).expect(3);
    place.file("mended", "");
    place.muster(&["retry", &said.run(), "b"]).expect(0);
    place.muster(&["resume", &said.run()]).expect(0);
    assert_eq!(log(), "a b b c");
    std::fs::remove_file(place.path("mended")).unwrap();
    let said = place.run_book().expect(3);
    place.muster(&["skip", &said.run(), "b", "--reason", "done by hand"]).expect(0);
    assert_eq!(place.muster(&["resume"]).expect(0).statuses(), ["succeeded", "skipped", "succeeded"]);
    assert_eq!(log(), "a b c");
}

/// An undo whose program is killed may have been carried out: it is made again, on record; one that says no is not.
#[test]
fn an_undo_that_was_not_heard_of_is_made_again_and_one_that_refuses_is_not() {
    let place = Place::new();
    let book = |undo: &str| {
        format!(
            "  - id: a\n    uses: exec.command\n    with: {{ argv: ['true'], undo: [sh, -c, 'echo undo >> @/log; {undo}'] }}
  - id: b\n    uses: exec.command\n    on_failure: undo\n    with: {{ argv: ['false'] }}\n"
        )
    };
    let undos = |run: &str| {
        let events = place.muster(&["show", run]).expect(0).last()["events"].as_array().unwrap().clone();
        let bodies = events.iter().map(|event| event["body"].clone()).filter(|body| body["step"] == "a");
        bodies.filter(|body| body["kind"].as_str().unwrap().starts_with("undo") || body["kind"] == "undone").collect::<Vec<_>>()
    };
    let said = place.book(&book("test $(wc -l < @/log) -ge 3 || kill -9 $$")).run_book().expect(1);
    assert_eq!(said.statuses(), ["undone", "failed"]);
    assert_eq!(place.words("log"), ["undo"; 3]);
    let told: Vec<_> =
        undos(&said.run()).iter().map(|body| (body["kind"].clone(), body["attempt"].clone(), body["unknown"].clone())).collect();
    let attempts = [
        (json!("undoing"), json!(1), json!(null)),
        (json!("undo_retry"), json!(1), json!(true)),
        (json!("undoing"), json!(2), json!(null)),
        (json!("undo_retry"), json!(2), json!(true)),
        (json!("undoing"), json!(3), json!(null)),
        (json!("undone"), json!(null), json!(null)),
    ];
    assert_eq!(told, attempts);
    assert!(!said.last()["reason"].as_str().unwrap().contains("not everything"), "{}", said.last());
    assert_eq!(said.step("a")["undo"], json!({ "state": "undone", "attempts": 3 }));
    std::fs::remove_file(place.path("log")).unwrap();
    let said = place.book(&book("exit 3")).run_book().expect(1);
    assert_eq!((said.statuses().join(" "), place.words("log")), ("succeeded failed".to_owned(), vec!["undo".to_owned()]));
    assert!(said.last()["reason"].as_str().unwrap().contains("not everything could be undone"), "{}", said.last());
    assert_eq!(undos(&said.run()).last().unwrap()["kind"], "undo_failed");
    assert_eq!(said.step("a")["undo"], json!({ "state": "failed", "attempts": 1 }));
}

/// Killed while an undo waits to be tried again: the next process goes on with it.
#[test]
fn a_process_that_dies_between_two_attempts_at_an_undo_leaves_it_to_the_next() {
    let place = Place::new();
    place.book(
        "  - id: a\n    uses: exec.command\n    retry: { attempts: 3, backoff: 2s }\n    with: { argv: ['true'], undo: [sh, -c, 'echo undo >> @/log; test $(wc -l < @/log) -ge 2 || kill -9 $$'] }
  - id: b\n    uses: exec.command\n    on_failure: undo\n    with: { argv: ['false'] }\n",
    );
    let running = place.start(&["run", "book.yaml", "--json"]);
    place.until_told("the first attempt", || running.out_so_far().contains("undo_retry"), || running.told());
    running.signal("KILL");
    running.end();
    let said = place.muster(&["resume"]).expect(1);
    assert_eq!((said.statuses().join(" "), place.words("log").len()), ("undone failed".to_owned(), 2));
}

fn approval(place: &Place, expires: &str) -> (String, String) {
    place.book(&format!(
        "  - id: ok\n    uses: approval\n    with: {{ approvers: 2, expires: {expires} }}\n  - id: a\n    uses: exec.command\n    with: {{ argv: [touch, '@/a'] }}\n"
    ));
    let said = place.run_book().expect(3);
    assert_eq!(said.last()["status"], "waiting_approval");
    (said.run(), said.err)
}

#[test]
fn an_approval_takes_two_people() {
    let place = Place::new();
    let (run, told) = approval(&place, "10m");
    assert!(told.contains(&format!("muster approve {run} ok")) && told.contains(&format!("muster resume {run}")), "{told}");
    let said = place.plain(&["approve", &run, "ok", "--by", "ana"]).expect(0);
    assert_eq!(said.out, format!("on record, 1 of 2: it takes 1 more before `muster resume {run}` goes on\n"));
    let said = place.muster(&["approve", &run, "ok", "--by", "ana"]).expect(2);
    assert!(said.err.contains("ana has approved step `ok` already"), "{}", said.err);
    place.muster(&["resume", &run]).expect(3);
    assert!(!place.path("a").exists());
    let said = place.plain(&["approve", &run, "ok", "--by", "ben"]).expect(0);
    assert_eq!(said.out, format!("on record; go on with: muster resume {run}\n"));
    // It waits for nobody any more but for whoever goes on with it.
    let shown = place.plain(&["show", &run]).expect(0).out;
    assert!(shown.contains("step ok is approved (2 of 2, by ana, ben)") && shown.contains(&format!("muster resume {run}")), "{shown}");
    assert!(!shown.contains("muster approve "), "{shown}");
    place.muster(&["resume", &run]).expect(0);
    assert!(place.path("a").exists());
}

#[test]
fn an_approval_may_be_refused_and_may_come_too_late() {
    let place = Place::new();
    let (run, _) = approval(&place, "10m");
    place.muster(&["approve", &run, "ok", "--by", "ana"]).expect(0);
    place.muster(&["reject", &run, "ok", "--by", "ben", "--reason", "not today"]).expect(0);
    let said = place.muster(&["resume", &run]).expect(3);
    assert_eq!(said.step("ok")["failure"]["message"], "rejected by ben: not today");
    let (run, _) = approval(&place, "1s");
    std::thread::sleep(Duration::from_millis(1_100));
    let said = place.muster(&["approve", &run, "ok", "--by", "ana"]).expect(2);
    assert!(said.err.contains("the time to approve step `ok` ended"), "{}", said.err);
    let said = place.muster(&["resume", &run]).expect(3);
    assert_eq!((said.last()["status"].as_str(), said.step("ok")["failure"]["code"].as_str()), (Some("paused"), Some("approval_expired")));
    assert!(!place.path("a").exists());
}

#[test]
fn whoever_looks_afterwards_sees_who_did_what() {
    let place = Place::new();
    let (run, _) = approval(&place, "1s");
    std::thread::sleep(Duration::from_millis(1_100));
    place.muster(&["resume", &run]).expect(3);
    place.muster(&["retry", &run, "ok", "--by", "ana"]).expect(0);
    place.muster(&["resume", &run]).expect(3);
    for who in ["ana", "ben"] {
        place.muster(&["approve", &run, "ok", "--by", who]).expect(0);
    }
    place.muster(&["skip", &run, "a", "--by", "ben", "--reason", "done by hand"]).expect(0);
    let said = place.muster(&["resume", &run]).expect(0);
    assert_eq!(
        said.step("ok").get("failure").filter(|failure| !failure.is_null()),
        None,
        "what became of the first request is not its end"
    );
    let shown = place.plain(&["show", &run]).expect(0).out;
    for words in ["to be tried again, says ana", "skipped by ben: done by hand", "waits for 2 approvals", "the run is waiting approval"] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    // With nobody at it, an abort is its end, and nothing is left to go on with.
    let (run, _) = approval(&place, "10m");
    let said = place.plain(&["abort", &run]).expect(0);
    assert_eq!(said.out, format!("on record; run {run} has ended: aborted\n"));
    // A state directory of one's own stands in what is to be pasted.
    let state = place.path("elsewhere").to_str().unwrap().to_owned();
    let run = place.muster(&["run", "book.yaml", "--state", &state]).expect(3).run();
    place.muster(&["approve", &run, "ok", "--by", "ana", "--state", &state]).expect(0);
    let said = place.plain(&["approve", &run, "ok", "--by", "ben", "--state", &state]).expect(0);
    assert!(said.out.contains(&format!("muster --state {state} resume {run}")), "{}", said.out);
    let said = place.muster(&["show", "0"]).expect(2);
    assert!(said.err.contains("`0` is ambiguous") && !said.err.contains("it begins"), "{}", said.err);
    let said = place.muster(&["show", "nosuch"]).expect(2);
    assert!(said.err.contains("`muster runs`"), "{}", said.err);
    let said = place.muster(&["approve", &run, "nosuch", "--by", "ana", "--print", "--state", &state]).expect(2);
    assert!(said.err.contains("its steps are ok, a"), "{}", said.err);
}

/// `a` runs until the file `go` is there; `b` follows.
const WAITS: &str = "  - id: a\n    uses: exec.command\n    timeout: 50s\n    with: { argv: [sh, -c, 'echo a >> @/log; until [ -e @/go ]; do sleep 0.05; done; echo end >> @/log'], observe: [grep, -q, end, '@/log'] }
  - id: b\n    uses: exec.command\n    with: { argv: [sh, -c, 'echo b >> @/log'] }\n";

#[test]
fn a_running_run_is_paused_from_outside_and_watched() {
    let place = Place::new();
    place.book(WAITS);
    let running = place.start(&["run", "book.yaml", "--json"]);
    place.until_there("log");
    let run = place.newest();
    let watch = place.start(&["watch", &run, "--json"]);
    let said = place.muster(&["pause", &run, "--reason", "lunch"]).expect(0);
    assert_eq!(said.last()["owner"], true, "it was left for the process that owns the run");
    place.until("the pause is heard", || place.muster(&["show", &run]).out.contains("pause_requested"));
    place.file("go", "");
    let said = running.end().expect(3);
    assert_eq!(said.last()["status"], "paused");
    assert_eq!(said.statuses()[1], "pending");
    let said = place.muster(&["resume", &run]).expect(0);
    assert_eq!(said.statuses(), ["succeeded"; 2]);
    assert_eq!(place.words("log"), ["a", "end", "b"]);
    let watched = watch.end();
    if watched.code == Some(3) {
        // It looked while the run waited: a shared journal is not resumed within a blink.
        assert_eq!(watched.last()["status"], "paused");
        return;
    }
    let watched = watched.expect(0);
    let kinds: Vec<_> = watched.lines().iter().filter_map(|line| Some(line["event"]["body"]["kind"].as_str()?.to_owned())).collect();
    assert_eq!(watched.last()["status"], "succeeded", "the result comes last");
    assert_eq!(kinds.first().map(String::as_str), Some("run_created"));
    assert_eq!(kinds.last().map(String::as_str), Some("run_finished"));
    assert!(kinds.contains(&"resumed".to_owned()), "it was followed from one process to the next");
}

#[test]
fn a_running_run_is_aborted_from_outside_and_nothing_is_undone() {
    let place = Place::new();
    place.book(WAITS);
    let running = place.start(&["run", "book.yaml", "--json"]);
    place.until_there("log");
    let run = place.newest();
    place.muster(&["abort", &run, "--reason", "wrong region"]).expect(0);
    place.until("the abort is heard", || place.muster(&["show", &run]).out.contains("abort_requested"));
    place.file("go", "");
    let said = running.end().expect(1);
    assert_eq!((said.last()["status"].as_str(), said.statuses().join(" ")), (Some("aborted"), "succeeded cancelled".into()));
    assert!(said.last()["reason"].as_str().unwrap().starts_with("wrong region"));
    assert_eq!(place.words("log"), ["a", "end"]);
    place.muster(&["resume", &run]).expect(2);
}

#[test]
fn ctrl_c_settles_what_runs_and_resume_completes() {
    let place = Place::new();
    place.book(WAITS);
    let mut running = place.start(&["run", "book.yaml", "--json"]);
    place.until_there("log");
    running.signal("INT");
    std::thread::sleep(Duration::from_millis(500));
    assert!(running.ended().is_none(), "what is under way is settled first");
    place.file("go", "");
    let said = running.end().expect(3);
    assert_eq!(said.last()["status"], "paused");
    assert!(said.err.contains("interrupted") && said.err.contains(&format!("muster resume {}", said.run())), "{}", said.err);
    place.muster(&["resume"]).expect(0);
    assert_eq!(place.words("log"), ["a", "end", "b"]);
}

#[test]
fn ctrl_c_twice_leaves_at_once_and_what_runs_is_found_again() {
    let place = Place::new();
    place.book(WAITS);
    let running = place.start(&["run", "book.yaml", "--json"]);
    place.until_there("log");
    running.signal("INT");
    std::thread::sleep(Duration::from_millis(300));
    running.signal("INT");
    assert_eq!(running.end().code, Some(3));
    place.file("go", "");
    place.muster(&["resume"]).expect(0);
    assert_eq!(place.words("log"), ["a", "end", "b"]);
}

#[test]
fn a_child_that_outlives_muster_is_waited_for_and_not_repeated() {
    let place = Place::new();
    place.book(WAITS);
    let running = place.start(&["run", "book.yaml", "--json"]);
    place.until_there("log");
    running.signal("KILL");
    assert_eq!(running.end().code, None);
    let mut resumed = place.start(&["resume", "--json"]);
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(resumed.ended().is_none(), "the child still runs");
    assert_eq!(place.words("log"), ["a"]);
    place.file("go", "");
    let said = resumed.end().expect(0);
    assert_eq!(place.words("log"), ["a", "end", "b"]);
    assert_eq!(said.step("a")["attempts"], 1);
}

#[test]
fn kill_9_again_and_again_repeats_no_completed_effect() {
    let place = Place::new();
    let step = |n: usize| {
        format!(
            "  - id: s{n}\n    uses: exec.command\n    with: {{ argv: [sh, -c, 'sleep 0.1; echo s{n} >> @/log'], observe: [sh, -c, 'grep -qx s{n} @/log 2>/dev/null || exit 1'] }}\n"
        )
    };
    place.book(&(0..8).map(step).collect::<String>());
    let mut running = place.start(&["run", "book.yaml", "--json"]);
    place.until_there(".muster/runs");
    let mut kills = 0;
    // Moments spread over the run by themselves: each process gets a little further than the last.
    for extra in 0..12u64 {
        std::thread::sleep(Duration::from_millis(120 + 37 * extra));
        if running.ended().is_some() {
            break;
        }
        running.signal("KILL");
        running.end();
        kills += 1;
        running = place.start(&["resume", "--json"]);
    }
    let said = running.end();
    assert!(kills >= 3, "it was over too soon to be a test");
    let show = place.muster(&["show", &place.newest()]).expect(0);
    assert_eq!(show.last()["status"], "succeeded", "{} {}", said.out, said.err);
    assert_eq!(place.words("log"), (0..8).map(|n| format!("s{n}")).collect::<Vec<_>>());
    place.muster(&["evidence", "verify"]).expect(0);
}

#[test]
fn a_run_has_one_owner() {
    let place = Place::new();
    place.book(WAITS);
    let running = place.start(&["run", "book.yaml", "--json"]);
    place.until_there("log");
    let run = place.newest();
    let said = place.muster(&["resume", &run]).expect(2);
    assert!(said.err.contains("another process owns") && said.err.contains(&running.pid().to_string()), "{}", said.err);
    place.file("go", "");
    running.end().expect(0);
    assert_eq!(place.words("log"), ["a", "end", "b"]);
}

#[test]
fn a_run_keeps_the_plan_that_it_began_with() {
    let place = Place::new();
    place.book(WAITS);
    let running = place.start(&["run", "book.yaml", "--json"]);
    place.until_there("log");
    let run = place.newest();
    let told = |words: &str| ["runs", "status"].map(|view| place.plain(&[view]).expect(0).out.contains(words));
    assert_eq!(told("the process that had it is gone"), [false, false], "its owner lives");
    running.signal("KILL");
    running.end();
    // Nobody goes on with it, and whoever looks is told so, and what to do.
    place.until("the owner to be gone", || told("the process that had it is gone") == [true, true]);
    let shown = place.plain(&["show", &run]).expect(0).out;
    assert!(shown.contains("the process that had it has ended") && shown.contains(&format!("muster resume {run}")), "{shown}");
    assert_eq!(place.muster(&["show", &run]).expect(0).last()["next"], serde_json::json!([format!("muster resume {run}")]));
    place.book("  - id: other\n    uses: exec.command\n    with: { argv: [touch, '@/other'] }\n").file("go", "");
    let said = place.muster(&["resume"]);
    assert!(!place.path("other").exists(), "an edited runbook is for the next run");
    assert!(said.err.contains("book.yaml is not as it was when the run began"), "{}", said.err);
    assert_eq!(said.statuses().len(), 2, "{}", said.out);
}

#[test]
fn a_journal_that_cannot_be_written_is_a_clear_error() {
    let place = Place::new();
    if place.is_shared() {
        return;
    }
    place.book("  - id: a\n    uses: exec.command\n    with: { argv: [touch, '@/a'] }\n").file("file", "");
    let nowhere = place.path("file/state");
    let said = place.muster(&["run", "book.yaml", "--state", nowhere.to_str().unwrap()]).expect(2);
    assert!(said.err.contains("the journal in") && said.err.contains("file/state"), "{}", said.err);
    assert_eq!(said.last()["error"]["code"], "journal");
    // A full disk: no file may grow beyond a few kilobytes.
    let exe = env!("CARGO_BIN_EXE_muster");
    let mut full = std::process::Command::new("sh");
    full.args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" run book.yaml --json", exe]).current_dir(place.root());
    let said = place.spawn(full).end().expect(2);
    assert!(said.err.contains("the journal in"), "{}", said.err);
    assert!(!place.path("a").exists(), "nothing is done that cannot be written down first");
}

#[test]
fn what_cannot_be_run_is_said_before_anything_is_done() {
    let place = Place::new();
    let text = "runbook: book\ninputs:\n  region_name: { type: string }\n  count: { type: integer, default: '1' }\nsteps:\n  - id: a\n    uses: exec.command\n    with: { argv: [touch, '@/a'] }\n";
    place.file("book.yaml", text);
    let table: [(&[&str], &str); 8] = [
        (&["run", "nowhere.yaml"], "there is no runbook `nowhere.yaml`"),
        (&["run", "book.yaml"], "region_name"),
        (&["run", "book.yaml", "-i", "region_name"], "an input is written NAME=VALUE"),
        (&["run", "book.yaml", "-i", "=x"], "an input is written NAME=VALUE"),
        (&["run", "book.yaml", "-i", "region_nam=x"], "region_name"),
        (&["run", "book.yaml", "-i", "region_name=x", "-i", "region_name=y"], "given twice"),
        (&["run", "book.yaml", "-i", "region_name=x", "-i", "count=many"], "many"),
        (&["resume", "0198"], "there is no journal"),
    ];
    for (args, want) in table {
        let said = place.muster(args).expect(2);
        assert!(said.err.contains(want), "{args:?} says: {}", said.err);
        assert!(said.last()["error"]["message"].as_str().is_some_and(|text| !text.is_empty()), "{args:?}");
    }
    assert!(!place.path("a").exists() && !place.path(".muster").exists(), "nothing was made");
}

#[test]
fn a_flood_of_output_is_cut_and_fills_neither_memory_nor_disk() {
    let place = Place::new();
    // The last thing it says is how much memory Muster, its parent, ever had.
    place.book("  - id: a\n    uses: exec.command\n    with: { argv: [sh, -c, 'head -c 100000000 /dev/zero | tr \"\\0\" x; echo; grep VmHWM /proc/$PPID/status'] }\n");
    let said = place.run_book().expect(0);
    let output = said.step("a")["output"]["output"].as_str().unwrap().to_owned();
    assert!(output.len() <= 64 * 1024 && output.starts_with('x'), "{} bytes kept", output.len());
    let peak: u64 = output.split_whitespace().rev().nth(1).unwrap().parse().unwrap();
    assert!(peak < 100 * 1024, "{peak} KiB at its peak");
    println!("peak memory with 100 MB of output: {peak} KiB");
    // What it takes on the disk: its beginning is a hole.
    let taken = |e: std::io::Result<std::fs::DirEntry>| std::os::unix::fs::MetadataExt::blocks(&e.unwrap().metadata().unwrap()) * 512;
    let kept: u64 = std::fs::read_dir(place.path(".muster/runs").join(said.run())).unwrap().map(taken).sum();
    assert!(kept < 8_000_000, "{kept} bytes on disk");
}

#[test]
fn odd_programs_are_no_trouble() {
    let place = Place::new();
    place.book(
        "  - id: bytes\n    uses: exec.command\n    with: { argv: [printf, 'a\\377\\376b'] }
  - id: missing\n    uses: exec.command\n    with: { argv: [no-such-program-anywhere] }\n",
    );
    let said = place.run_book().expect(3);
    assert_eq!(said.step("bytes")["output"]["output"], "a\u{fffd}\u{fffd}b");
    let failure = said.step("missing")["failure"].clone();
    assert_eq!(said.step("missing")["status"], "failed", "that it never began is certain");
    assert!(failure["message"].as_str().unwrap().contains("`no-such-program-anywhere` was not found"), "{failure}");
}

#[test]
fn ten_steps_that_do_nothing_take_next_to_nothing() {
    let place = Place::new();
    place.book(&(0..10).map(|n| format!("  - id: s{n}\n    uses: exec.command\n    with: {{ argv: ['true'] }}\n")).collect::<String>());
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let began = Instant::now();
        place.run_book().expect(0);
        best = best.min(began.elapsed());
    }
    println!("a run of ten steps that do nothing: {best:?}");
    assert!(best < Duration::from_secs(10), "{best:?}");
}
