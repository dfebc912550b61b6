//! A live failover and whoever holds its resources, over the real program: a live owner, a dead one, a frozen
//! one, an outcome that nobody can tell, another failover, a drill.

use crate::place::{Place, Running, Said};
use serde_json::{Value, json};

/// An estate whose one database two runbooks lock. Nothing listens there, and nothing asks it.
fn estate(place: &Place) {
    place.file(
        "muster.yaml",
        "lab: true
regions:
  east: { aws: { region: us-east-1, endpoints: { rds: \"http://127.0.0.1:1\" } } }
  west: { aws: { region: us-west-2, endpoints: { rds: \"http://127.0.0.1:1\" } } }
databases:
  predictions: { engine: rds-postgres, instances: { east: { id: e }, west: { id: w } }, lease: { url: \"http://127.0.0.1:1\" } }\n",
    );
    std::fs::create_dir(place.path("runbooks")).unwrap();
    // Locked by a step that is never done.
    let lock = "  - id: lock\n    uses: database.fence\n    when: 'false'\n    with: { database: predictions, region: east }\n";
    let failover = format!(
        "runbook: failover\nmode: failover\ninputs:\n  from: {{ type: region, default: east }}\nsteps:\n  - id: move\n    uses: exec.command\n    with: {{ argv: [sh, -c, 'echo x >> @/moved'] }}\n{lock}"
    );
    place.file("runbooks/failover.yaml", &failover);
    // It works until it is let go, and would then go on to a second step.
    let holder = format!(
        "runbook: holder\nsteps:\n  - id: a\n    uses: exec.command\n    timeout: 120s\n    with: {{ argv: [sh, -c, 'echo x >> @/a; until [ -e @/go ]; do sleep 0.05; done'] }}\n  - id: b\n    uses: exec.command\n    with: {{ argv: [sh, -c, 'echo x >> @/b'] }}\n{lock}"
    );
    place.file("runbooks/holder.yaml", &holder);
    place.file("runbooks/other.yaml", &holder.replace("runbook: holder", "runbook: other\nmode: failover"));
}

/// The holder, in the middle of its first step.
fn held(place: &Place, args: &[&str]) -> (Running, String) {
    let owner = place.start(&[args, &["--json"]].concat());
    place.until_there("a");
    (owner, place.newest())
}

fn failover(place: &Place, more: &[&str]) -> Said {
    place.muster(&[&["run", "failover", "--live"], more].concat())
}

fn shown(place: &Place, run: &str) -> Value {
    place.muster(&["show", run]).last()
}

fn has(shown: &Value, kind: &str) -> bool {
    shown["events"].as_array().unwrap().iter().any(|event| event["body"]["kind"] == kind)
}

/// What both chains say of a run that made way.
#[track_caller]
fn made_way(place: &Place, holder: &str, said: &Said) {
    let (other, own) = (shown(place, holder), shown(place, &said.run()));
    assert_eq!(other["status"], "aborted", "{other}");
    assert!(other["reason"].as_str().unwrap().contains(&format!("pre-empted by run {}", said.run())), "{}", other["reason"]);
    assert!(has(&own, "preempted") && has(&other, "make_way"));
    assert_eq!((place.words("moved").len(), place.words("b").len()), (1, 0), "the one went on, the other did not");
    place.muster(&["evidence", "verify"]).expect(0);
}

#[test]
fn a_live_owner_settles_what_is_under_way_and_makes_way() {
    let place = Place::new();
    estate(&place);
    let (owner, holder) = held(&place, &["run", "holder"]);
    // Without --live it is no emergency, and the lock stands.
    let said = place.muster(&["run", "failover"]).expect(2);
    assert!(said.err.contains(&format!("is held by run {holder}")), "{}", said.err);
    let taker = place.start(&["run", "failover", "--live", "--json"]);
    place.until("it to be asked", || has(&shown(&place, &holder), "make_way"));
    assert!(!place.path("moved").exists(), "what is under way is settled first");
    place.file("go", "");
    let said = taker.end().expect(0);
    let ended = owner.end().expect(1);
    assert_eq!(ended.statuses(), ["succeeded", "cancelled", "cancelled"]);
    made_way(&place, &holder, &said);
}

#[test]
fn a_run_without_an_owner_is_settled_and_ended() {
    let place = Place::new();
    estate(&place);
    // It waits for a person, and its process has gone.
    place.file("runbooks/holder.yaml", &place.read("runbooks/holder.yaml").replace("until [ -e", "exit 1; until [ -e"));
    let holder = place.muster(&["run", "holder"]).expect(3).run();
    let said = failover(&place, &[]).expect(0);
    made_way(&place, &holder, &said);
}

#[test]
fn what_cannot_be_told_needs_a_person_who_says_so() {
    let place = Place::new();
    estate(&place);
    let (owner, holder) = held(&place, &["run", "holder"]);
    owner.signal("KILL");
    owner.end();
    place.file("go", "");
    let said = failover(&place, &[]).expect(2);
    assert!(said.err.contains("cannot be told") && said.err.contains("--take-over"), "{}", said.err);
    assert!(!place.path("moved").exists());
    let said = failover(&place, &["--take-over"]).expect(0);
    made_way(&place, &holder, &said);
    let other = place.muster(&["show", &holder]);
    assert_eq!((other.code, other.step("a")["status"].as_str()), (Some(3), Some("indeterminate")), "it stays not known");
    assert!(other.last()["reason"].as_str().unwrap().contains("whether step `a` happened is not known"), "{}", other.out);
}

#[test]
fn a_frozen_owner_is_taken_over_and_finds_itself_fenced() {
    let place = Place::new();
    estate(&place);
    let (owner, holder) = held(&place, &["run", "holder"]);
    owner.signal("STOP");
    let said = failover(&place, &["--take-over"]).expect(0);
    made_way(&place, &holder, &said);
    place.file("go", "");
    owner.signal("CONT");
    let ended = owner.end();
    assert_eq!(ended.code, Some(2), "it may append nothing more: {}", ended.err);
    assert!(ended.err.contains("no longer owns"), "{}", ended.err);
    made_way(&place, &holder, &said);
}

#[test]
fn another_live_failover_is_never_displaced_in_silence() {
    let place = Place::new();
    estate(&place);
    let (owner, holder) = held(&place, &["run", "other", "--live"]);
    let said = failover(&place, &[]).expect(2);
    assert!(said.err.contains("another live failover") && said.err.contains("--take-over"), "{}", said.err);
    assert!(!has(&shown(&place, &holder), "make_way"), "it was not even asked");
    let taker = place.start(&["run", "failover", "--live", "--take-over", "--json"]);
    place.until("it to be asked", || has(&shown(&place, &holder), "make_way"));
    place.file("go", "");
    let said = taker.end().expect(0);
    owner.end().expect(1);
    made_way(&place, &holder, &said);
    let refused = place.muster(&["run", "holder", "--live", "--take-over"]).expect(2);
    assert!(refused.err.contains("only a live failover"), "{}", refused.err);
}

#[test]
fn a_drill_makes_way_as_a_whole() {
    for dead in [false, true] {
        let place = Place::new();
        estate(&place);
        std::fs::create_dir(place.path("drills")).unwrap();
        place.file("drills/try.yaml", "drill: try\nkind: switchover\nrunbook: holder\nthen: { runbook: holder }\n");
        let owner = place.start(&["drill", "run", "try", "--json"]);
        place.until_there("a");
        let holder = place.newest();
        let said = if dead {
            owner.signal("KILL");
            owner.end();
            place.file("go", "");
            failover(&place, &["--take-over"]).expect(0)
        } else {
            let taker = place.start(&["run", "failover", "--live", "--json"]);
            place.until("it to be asked", || has(&shown(&place, &holder), "make_way"));
            place.file("go", "");
            let said = taker.end().expect(0);
            let drilled = owner.end().expect(1);
            assert_eq!(drilled.last()["verdict"], "inconclusive");
            said
        };
        made_way(&place, &holder, &said);
        let drill = place.muster(&["drill", "history"]).expect(0).last();
        let drill = drill["drills"].as_array().or(drill["history"].as_array()).map(|all| all[0].clone()).unwrap_or(drill);
        assert_eq!(drill["verdict"], json!("inconclusive"), "{drill}");
        assert!(drill["reasons"].to_string().contains("pre-empted by run"), "{drill}");
        assert_eq!(place.words("a").len(), 1, "nothing was led back");
    }
}
