//! `muster serve` as it is run: the real program over a directory with an estate, drills and runbooks, its
//! calendar set back through the library, its notices taken by real receivers. The drills name no resource,
//! so that no lab is needed: what is tested is when they begin, what is on record, and who is told.

use crate::receiver::{Manner, Receiver};
use muster::journal::{Journal as _, sqlite::SqliteJournal};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(40);

struct Place {
    dir: tempfile::TempDir,
}

/// A `muster serve`, which ends with the test.
struct Serve {
    child: Child,
    log: PathBuf,
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Serve {
    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
    fn says(&self, word: &str) {
        until(word, || self.log().contains(word), || self.log());
    }
    /// Told to stop; gives its exit code and how long it took.
    fn stop(mut self) -> (Option<i32>, Duration) {
        let asked = Instant::now();
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        (status.code(), asked.elapsed())
    }
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn until(what: &str, done: impl Fn() -> bool, told: impl Fn() -> String) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < LIMIT, "not within {LIMIT:?}: {what}\n{}", told());
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        place.write("runbooks/quick.yaml", &runbook("quick", &["true"]));
        place
    }
    fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    fn drill(&self, name: &str, runbook: &str, schedule: &str) {
        self.write(&format!("drills/{name}.yaml"), &format!("drill: {name}\nkind: failover\nrunbook: {runbook}\nschedule: {schedule}\n"));
    }
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .env_remove("MUSTER_STATE")
            .env_remove("MUSTER_ESTATE")
            .env_remove("MUSTER_JOURNAL")
            .env_remove("MUSTER_LEASE");
        command
    }
    fn muster(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }
    fn json(&self, args: &[&str]) -> Value {
        let output = self.command(args).arg("--json").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let last = text.lines().last().unwrap_or_else(|| panic!("{args:?} says nothing: {}", String::from_utf8_lossy(&output.stderr)));
        serde_json::from_str(last).unwrap()
    }
    /// The drills on record, oldest first: status, identifier and the first reason.
    fn history(&self) -> Vec<(String, String, String)> {
        if !self.dir.path().join(".muster/journal.db").exists() {
            return Vec::new();
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let entry = |value: &Value| (text(&value["status"]), text(&value["id"]), text(&value["reasons"][0]));
        self.json(&["drill", "history"])["drills"].as_array().unwrap().iter().rev().map(entry).collect()
    }
    fn statuses(&self) -> Vec<String> {
        self.history().into_iter().map(|(status, ..)| status).collect()
    }
    fn serve(&self) -> Serve {
        let log = self.dir.path().join(format!("serve-{}.log", muster::providers::clock::SystemClock::new().new_id()));
        let file = std::fs::File::create(&log).unwrap();
        let child = self.command(&["serve"]).stderr(file).stdout(Stdio::null()).spawn().unwrap();
        Serve { child, log }
    }
    /// Sets the calendar of a drill: as if a scheduler had looked at it so long ago, and none since.
    fn considered(&self, drill: &str, ago: Duration) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let journal = SqliteJournal::open(&self.dir.path().join(".muster")).await.unwrap();
            journal.consider(drill, jiff::Timestamp::now() - ago).await.unwrap();
        });
    }
    fn settled(&self, what: &str, serve: &Serve, done: impl Fn(&[(String, String, String)]) -> bool) {
        until(what, || done(&self.history()), || format!("{:?}\n{}", self.history(), serve.log()));
    }
    /// What the runbook's steps have written, a word each.
    fn marks(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join("marks")).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    }
}

use muster::providers::clock::Clock as _;

/// A runbook of shell steps.
fn runbook(name: &str, steps: &[&str]) -> String {
    let step = |(n, script): (usize, &&str)| {
        format!("  - id: s{n}\n    uses: exec.command\n    with:\n      argv: [sh, -c, {}]\n", serde_json::to_string(script).unwrap())
    };
    format!("runbook: {name}\nsteps:\n{}", steps.iter().enumerate().map(step).collect::<String>())
}

/// A schedule with one fire, five minutes ago, and `more`.
fn five_minutes_ago(more: &str) -> String {
    let at = jiff::Timestamp::now() - Duration::from_mins(5);
    format!("{{ cron: \"{}\"{more} }}", at.strftime("%M %H * * *"))
}

const EVERY_MINUTE: &str = "{ cron: \"* * * * *\" }";
const EARLIER: Duration = Duration::from_mins(10);

#[test]
fn serve_fires_at_the_minute() {
    let place = Place::new();
    place.drill("often", "quick", EVERY_MINUTE);
    let begun = jiff::Timestamp::now();
    let serve = place.serve();
    serve.says("drill often: * * * * *");
    let wait = Instant::now();
    while place.statuses().first().map(String::as_str) != Some("pass") {
        assert!(wait.elapsed() < Duration::from_secs(60) + LIMIT, "{}", serve.log());
        std::thread::sleep(Duration::from_millis(200));
    }
    let drill = &place.json(&["drill", "history"])["drills"][0];
    let instant = |name: &str| drill[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert_eq!(instant("scheduled_for").as_second() % 60, 0);
    assert!(instant("scheduled_for") > begun, "the minute before it began is not its business");
    let late = instant("started_at").duration_since(instant("scheduled_for"));
    assert!((0..20_000).contains(&late.as_millis()), "began {late:?} after it was due");
    assert_eq!(serve.stop().0, Some(0));
}

#[test]
fn serve_puts_on_record_what_was_missed() {
    let place = Place::new();
    let hook = Receiver::start(Manner::Answers);
    place.write("muster.yaml", &format!("notify: [{{ webhook: \"{}\" }}]\n", hook.url("/hook")));
    place.drill("nightly", "quick", &five_minutes_ago(""));
    place.considered("nightly", EARLIER);
    let serve = place.serve();
    place.settled("missed", &serve, |history| history.len() == 1);
    let (status, id, reason) = place.history().remove(0);
    assert_eq!(status, "missed");
    assert!(id.starts_with("nightly-") && id.ends_with("-missed"), "{id}");
    assert!(reason.contains("no scheduler ran at that time"), "{reason}");
    let told = hook.wait(1);
    assert_eq!((&told[0]["notice"], &told[0]["about"]["drill"]), (&"missed".into(), &"nightly".into()));
    assert!(told[0]["next"].to_string().contains("drill run nightly"), "{}", told[0]);
    // Once on record, it is not told again.
    place.considered("nightly", EARLIER);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!((place.statuses(), hook.got().len()), (vec!["missed".to_owned()], 1));
}

#[test]
fn serve_makes_up_for_the_latest_missed_one() {
    let place = Place::new();
    place.drill("nightly", "quick", &five_minutes_ago(", missed: run-once"));
    place.considered("nightly", EARLIER);
    let serve = place.serve();
    place.settled("missed and passed", &serve, |history| history.iter().any(|(status, ..)| status == "pass"));
    let mut statuses = place.statuses();
    statuses.sort();
    assert_eq!(statuses, ["missed", "pass"]);
    // Killed between the beginning and moving the calendar on: it is not begun twice, and not missed either.
    serve.kill();
    place.considered("nightly", EARLIER);
    let serve = place.serve();
    serve.says("drill nightly: ");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(place.history().len(), 2, "{:?}\n{}", place.history(), serve.log());
}

#[test]
fn serve_keeps_a_blackout() {
    let place = Place::new();
    let hook = Receiver::start(Manner::Answers);
    place.write("muster.yaml", &format!("notify: [{{ webhook: \"{}\" }}]\n", hook.url("/hook")));
    let now = jiff::Timestamp::now();
    let (from, to) = (now - Duration::from_hours(1), now + Duration::from_hours(1));
    let blackout = format!(", missed: run-once, blackout: [{{ from: \"{from}\", until: \"{to}\", reason: the yearly close }}]");
    place.drill("nightly", "quick", &five_minutes_ago(&blackout));
    place.considered("nightly", EARLIER);
    let serve = place.serve();
    place.settled("on record", &serve, |history| history.len() == 1);
    let (status, _, reason) = place.history().remove(0);
    assert_eq!(status, "missed");
    assert!(reason.contains("blackout until") && reason.contains("the yearly close"), "{reason}");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(hook.got(), Vec::<Value>::new(), "a blackout wakes nobody");
}

#[test]
fn serve_starts_no_drill_during_an_incident() {
    let place = Place::new();
    place.write("runbooks/live.yaml", "runbook: live\nsteps:\n  - id: sure\n    uses: approval\n    with: { approvers: 1, expires: 1h }\n");
    let run = place.muster(&["run", "live"]);
    assert_eq!(run.status.code(), Some(3), "{}", String::from_utf8_lossy(&run.stderr));
    place.drill("nightly", "quick", &five_minutes_ago(", missed: run-once"));
    place.considered("nightly", EARLIER);
    let serve = place.serve();
    serve.says("no drill starts before it has ended");
    place.settled("on record", &serve, |history| !history.is_empty());
    std::thread::sleep(Duration::from_secs(1));
    let history = place.history();
    assert!(history.iter().all(|(status, ..)| status == "missed"), "{history:?}");
    assert!(serve.log().contains("due at") && !serve.log().contains("has begun"), "{}", serve.log());
}

#[test]
fn serve_does_not_start_a_drill_that_is_still_open() {
    let place = Place::new();
    place.write("runbooks/slow.yaml", &runbook("slow", &["echo begun >> marks; sleep 4"]));
    place.drill("often", "slow", &five_minutes_ago(", missed: run-once"));
    place.considered("often", EARLIER);
    let serve = place.serve();
    until("the step runs", || !place.marks().is_empty(), || serve.log());
    // Another fire of the same drill, while it runs: the calendar now has one a minute, the last just gone.
    place.drill("often", "slow", EVERY_MINUTE);
    serve.says("drill often: * * * * *");
    place.considered("often", Duration::from_secs(61));
    serve.says("is still open");
    place.settled("the first one ends", &serve, |history| history.iter().any(|(status, ..)| status == "pass"));
    assert!(
        place.history().iter().any(|(status, _, reason)| status == "missed" && reason.contains("is still open")),
        "{:?}",
        place.history()
    );
}

#[test]
fn serve_stops_when_told_and_the_next_one_goes_on() {
    let place = Place::new();
    place.write("runbooks/slow.yaml", &runbook("slow", &["echo one >> marks; sleep 2; echo end >> marks", "echo two >> marks"]));
    place.drill("nightly", "slow", &five_minutes_ago(", missed: run-once"));
    place.considered("nightly", EARLIER);
    let serve = place.serve();
    until("the first step runs", || !place.marks().is_empty(), || serve.log());
    let (code, took) = serve.stop();
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(15), "it took {took:?}");
    assert_eq!(place.marks(), ["one", "end"], "what was under way is settled, and nothing new begins");
    let serve = place.serve();
    serve.says("was left open; going on with it");
    place.settled("it passes", &serve, |history| history.iter().any(|(status, ..)| status == "pass"));
    assert_eq!(place.marks(), ["one", "end", "two"]);
    assert_eq!(place.json(&["evidence", "verify"])["verified"], true);
}

#[test]
fn serve_tells_of_a_drill_whose_step_was_cut_off() {
    let place = Place::new();
    let hook = Receiver::start(Manner::Answers);
    place.write("muster.yaml", &format!("notify: [{{ webhook: \"{}\", on: [indeterminate] }}]\n", hook.url("/hook")));
    place.write("runbooks/slow.yaml", &runbook("slow", &["echo one >> marks; sleep 2", "echo two >> marks"]));
    place.drill("nightly", "slow", &five_minutes_ago(", missed: run-once"));
    place.considered("nightly", EARLIER);
    let serve = place.serve();
    until("the first step runs", || !place.marks().is_empty(), || serve.log());
    serve.kill();
    // A one-shot step whose answer was lost: nobody can tell, so a person is asked, and nothing is done again.
    let serve = place.serve();
    let told = hook.wait(1).remove(0);
    assert_eq!(
        (&told["notice"], &told["about"]["drill"], &told["about"]["status"]),
        (&"indeterminate".into(), &"nightly".into(), &"indeterminate".into())
    );
    let run = told["about"]["run"].as_str().unwrap().to_owned();
    let next = told["next"].to_string();
    assert!(next.contains(&format!("resolve {run} s0 --as not-done")) && next.contains(&format!("resume {run}")), "{next}");
    let shown = String::from_utf8(place.muster(&["show", &run]).stdout).unwrap();
    assert!(shown.contains("not known") && shown.contains("attempt 1 begun") && shown.contains("looked: "), "{shown}");
    // It waits for that person: the next scheduler leaves it alone and tells nobody again.
    serve.kill();
    let serve = place.serve();
    serve.says("waits for a person");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!((place.marks(), hook.got().len()), (vec!["one".to_owned()], 1));
    let resolve = place.muster(&["resolve", &run, "s0", "--as", "done", "--reason", "seen in the marks"]);
    assert_eq!(resolve.status.code(), Some(0), "{}", String::from_utf8_lossy(&resolve.stderr));
    place.muster(&["resume"]);
    assert_eq!(place.marks(), ["one", "two"]);
}

#[test]
fn serve_leaves_a_history_that_reads_well() {
    let place = Place::new();
    assert!(String::from_utf8(place.muster(&["drill", "list"]).stderr).unwrap().contains("no drill beside the estate"));
    assert!(String::from_utf8(place.muster(&["drill", "next"]).stderr).unwrap().contains("no drill has a schedule"));
    place.drill("nightly", "quick", &five_minutes_ago(", missed: run-once"));
    place.considered("nightly", EARLIER);
    assert!(String::from_utf8(place.muster(&["runs"]).stderr).unwrap().contains("no run is on record"));
    let serve = place.serve();
    place.settled("it passes", &serve, |history| history.iter().any(|(status, ..)| status == "pass"));
    let drills = place.json(&["drill", "history"])["drills"].clone();
    for drill in drills.as_array().unwrap() {
        for field in ["id", "drill", "kind", "status", "verdict", "started_at", "finished_at", "rto", "rpo", "reasons"] {
            assert!(drill.get(field).is_some(), "{field}: {drill}");
        }
        let id = drill["id"].as_str().unwrap();
        // A drill is shown and watched like a run; a missed one, too.
        let (shown, watched) = (place.muster(&["show", id]), place.muster(&["watch", id]));
        let (text, told) = (String::from_utf8(shown.stdout).unwrap(), String::from_utf8(watched.stderr).unwrap());
        let missed = drill["status"] == "missed";
        assert_eq!((shown.status.code(), watched.status.code()), (Some(0), Some(if missed { 2 } else { 0 })), "{text}{told}");
        let word = if missed { "missed: no scheduler ran" } else { "verdict pass" };
        assert!(text.contains(word) && text.lines().all(|line| line.chars().count() <= 120), "{text}");
        assert!(told.contains(if missed { "was missed" } else { "verdict pass" }), "{told}");
    }
    let unknown = place.muster(&["show", "nobody"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8(unknown.stderr).unwrap().contains("no run or drill `nobody`"));
    // A drill that cannot be read does not hide the others.
    place.write("drills/wrong.yaml", "drill: wrong\nkind: failover\nrunbok: quick\n");
    let list = place.muster(&["drill", "list"]);
    assert_eq!(list.status.code(), Some(2));
    assert!(String::from_utf8(list.stdout).unwrap().contains("nightly") && String::from_utf8(list.stderr).unwrap().contains("runbok"));
}

#[test]
fn serve_is_one_on_a_state_directory() {
    let place = Place::new();
    let serve = place.serve();
    serve.says("no drill has a schedule");
    let second = place.muster(&["serve"]);
    let text = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(2), "{text}");
    assert!(text.contains("is served already") && text.contains(&format!(":{} since", serve.child.id())), "{text}");
    // The lock ends with its holder, however that ended.
    serve.kill();
    let serve = place.serve();
    serve.says("no drill has a schedule");
    assert_eq!(serve.stop().0, Some(0));
}

#[test]
fn serve_leaves_out_a_file_that_is_wrong() {
    let place = Place::new();
    place.write("drills/a-wrong.yaml", "drill: wrong\nkind: failover\nrunbok: quick\n");
    place.write("drills/b-cron.yaml", "drill: cron\nkind: failover\nrunbook: quick\nschedule: { cron: \"61 * * * *\" }\n");
    place.drill("later", "not-there", "{ cron: \"0 0 1 1 *\" }");
    place.drill("nightly", "quick", &five_minutes_ago(", missed: run-once"));
    place.considered("nightly", EARLIER);
    let serve = place.serve();
    place.settled("the good one runs", &serve, |history| history.iter().any(|(status, ..)| status == "pass"));
    let log = serve.log();
    for told in
        ["a-wrong.yaml cannot be used, and is left out", "runbok", "b-cron.yaml cannot be used", "drill later could not run as it stands"]
    {
        assert!(log.contains(told), "{told}: {log}");
    }
    // Mended while it serves: taken in.
    place.write("drills/b-cron.yaml", "drill: cron\nkind: failover\nrunbook: quick\nschedule: { cron: \"0 0 1 1 *\" }\n");
    serve.says("drill cron: 0 0 1 1 *");
}

#[test]
fn serve_beats_and_its_silence_is_the_alarm() {
    let place = Place::new();
    let (hook, slow) = (Receiver::start(Manner::Answers), Receiver::start(Manner::Hangs));
    let channel = |url: String, every: &str| format!("  - {{ webhook: \"{url}\", on: [heartbeat], every: {every} }}\n");
    place.write("muster.yaml", &format!("notify:\n{}{}", channel(hook.url("/beat"), "300ms"), channel(slow.url("/slow"), "100ms")));
    let serve = place.serve();
    hook.wait(1);
    let begun = Instant::now();
    let beats = hook.wait(6);
    assert!(begun.elapsed() >= Duration::from_millis(1_000), "five beats later: {:?}", begun.elapsed());
    assert_eq!((&beats[0]["notice"], &beats[0]["about"]["every_ms"]), (&"heartbeat".into(), &300.into()));
    serve.kill();
    let left = hook.got().len();
    std::thread::sleep(Duration::from_secs(1));
    assert!(hook.got().len() <= left + 1, "a dead scheduler sends nothing");
}

#[test]
fn serve_notices_say_what_happened_and_what_to_do() {
    let place = Place::new();
    let hook = Receiver::start(Manner::Answers);
    let exec = place.dir.path().join("told");
    let channels = format!("notify:\n  - {{ webhook: \"{}\" }}\n  - {{ exec: [tee, -a, \"{}\"] }}\n", hook.url("/hook"), exec.display());
    place.write("muster.yaml", &channels);
    place.write("runbooks/bad.yaml", &runbook("bad", &["exit 4"]));
    place.write("runbooks/live.yaml", "runbook: live\nsteps:\n  - id: sure\n    uses: approval\n    with: { approvers: 1, expires: 1h }\n");
    place.write("drills/spoilt.yaml", "drill: spoilt\nkind: failover\nrunbook: bad\n");

    assert_eq!(place.muster(&["run", "live"]).status.code(), Some(3));
    let waiting = hook.wait(1).remove(0);
    let run = waiting["about"]["run"].as_str().unwrap();
    assert_eq!((&waiting["notice"], &waiting["about"]["status"]), (&"waiting".into(), &"waiting_approval".into()));
    assert!(waiting["next"].to_string().contains(&format!("approve {run} sure")), "{waiting}");
    assert_eq!(place.muster(&["abort", run]).status.code(), Some(0));
    assert_eq!(hook.wait(2)[1]["about"]["status"], "aborted");

    // A drill's run is part of the drill: told once, with the drill.
    assert_eq!(place.muster(&["drill", "run", "spoilt"]).status.code(), Some(1));
    let failed = hook.wait(3).remove(2);
    assert_eq!(
        (&failed["notice"], &failed["about"]["drill"], &failed["about"]["status"]),
        (&"failed".into(), &"spoilt".into(), &"fail".into())
    );
    let id = failed["about"]["id"].as_str().unwrap();
    assert!(failed["next"].to_string().contains(&format!("show {id}")) && failed["text"].to_string().contains("exit code 4"), "{failed}");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(hook.got().len(), 3);
    let told = std::fs::read_to_string(exec).unwrap();
    let told: Vec<Value> = serde_json::Deserializer::from_str(&told).into_iter().map(Result::unwrap).collect();
    assert_eq!(
        told.iter().map(|one| one["about"].clone()).collect::<Vec<_>>(),
        hook.got().iter().map(|one| one["about"].clone()).collect::<Vec<_>>()
    );
}

#[test]
fn serve_notices_delay_nothing_and_tell_no_secret() {
    let place = Place::new();
    let (hangs, refuses) = (Receiver::start(Manner::Hangs), Receiver::start(Manner::Refuses));
    let nobody = "http://127.0.0.1:1/SECRET-gone";
    let channels = format!(
        "notify:\n  - {{ webhook: \"{}\" }}\n  - {{ webhook: \"{}\" }}\n  - {{ webhook: \"{nobody}\" }}\n  - {{ exec: [sh, -c, \"sleep 60\", SECRET-word] }}\n",
        hangs.url("/SECRET-hangs"),
        refuses.url("/SECRET-refuses"),
    );
    place.write("muster.yaml", &channels);
    place.write("runbooks/bad.yaml", &runbook("bad", &["exit 4"]));
    let begun = Instant::now();
    let run = place.muster(&["run", "bad"]);
    let took = begun.elapsed();
    // It failed, and live that pauses the run.
    assert_eq!(run.status.code(), Some(3));
    // Together, not one after the other: five seconds, and what it takes to end a program.
    assert!(took < Duration::from_secs(20), "{took:?}");
    let log = String::from_utf8(run.stderr).unwrap();
    assert_eq!(log.matches("a notice could not be delivered").count(), 4, "{log}");
    assert!(log.contains("127.0.0.1") && log.contains("answered 500") && !log.contains("SECRET"), "{log}");
    // The run itself was settled before anybody was told.
    let id = place.json(&["runs"])["runs"][0]["id"].as_str().unwrap().to_owned();
    let events = place.json(&["show", &id])["events"].clone();
    let at = |event: &Value| event["at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let events = events.as_array().unwrap();
    assert_eq!(events.last().unwrap()["body"]["kind"], "parked");
    let length = at(events.last().unwrap()).duration_since(at(&events[0]));
    assert!(length.as_millis() < 4_500, "the channels delayed the run: {length:?}");
}
