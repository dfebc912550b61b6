//! Break glass: operators with the binary, the files and the surviving region's keys, each in a directory of its
//! own, with no server and nothing shared but the region itself. Only one of them acts.

use crate::drill_support::{Desk, Ran};
use crate::place::{Place, Running, Said};
use serde_json::Value;

/// A directory with the runbooks and the lab's addresses, and a journal of its own. Instead of people who
/// approve, the declaration waits for a file.
fn laptop(desk: &Desk) -> Place {
    let place = Place::new();
    std::fs::copy(desk.lab().estate_path(), place.path("muster.yaml")).unwrap();
    std::fs::create_dir(place.path("runbooks")).unwrap();
    let text = std::fs::read_to_string(desk.path("runbooks/regional-failover.yaml")).unwrap();
    let (before, after) = text.split_once("  - id: declare\n").unwrap();
    let (_, after) = after.split_once("  # Silence is no proof").unwrap();
    let gate =
        "  - id: declare\n    uses: exec.command\n    with: { argv: [sh, -c, 'touch @/waits; until [ -e @/go ]; do sleep 0.1; done'] }\n\n";
    let whole = format!("{before}{}  # Silence is no proof{after}", gate.replace('@', place.root().to_str().unwrap()));
    std::fs::write(place.path("runbooks/regional-failover.yaml"), whole).unwrap();
    place
}

const RUN: [&str; 6] = ["run", "regional-failover", "-i", "from=east", "-i", "to=west"];

fn start(place: &Place, extra: &[&str]) -> Running {
    place.start(&[&RUN[..], extra, &["--json"]].concat())
}

fn wheel_of(said: &Said) -> Value {
    said.step("wheel")
}

#[test]
fn lab_two_operators_on_two_laptops_cannot_both_act() {
    let desk = Desk::with_lab();
    let lost: Ran = desk.muster(&["lab", "kill", "east"]);
    assert_eq!(lost.code, Some(0), "{lost:?}");
    let (ana, ben) = (laptop(&desk), laptop(&desk));

    // The first has the wheel; the second is refused before it does anything, and told whose it is.
    let first = start(&ana, &[]);
    ana.until_there("waits");
    let run = ana.newest();
    let said = start(&ben, &[]).end().expect(1);
    let failure = wheel_of(&said)["failure"].clone();
    assert_eq!((failure["code"].as_str(), said.last()["status"].as_str()), (Some("wheel_held"), Some("failed")), "{failure}");
    for part in [&run, "since", "epoch 1", "-i take_over="] {
        assert!(failure.to_string().contains(part), "no `{part}` in {failure}");
    }
    assert!(said.statuses()[1..].iter().all(|status| status == "cancelled"), "{:?}", said.statuses());
    let command = format!("run regional-failover -i from=east -i to=west -i take_over={run}");
    assert!(said.err.contains(&command), "no `{command}` in {}", said.err);
    assert!(!ben.path("waits").exists());

    // By name it is taken over, and who had it finds out before its next step.
    let take_over = format!("take_over={run}");
    let second = start(&ben, &["-i", &take_over]);
    ben.until_there("waits");
    ana.file("go", "");
    let deposed = first.end().expect(3);
    let failure = deposed.step("fence")["failure"].clone();
    assert_eq!(failure["code"], "wheel_lost", "{failure}");
    assert!(failure["message"].as_str().unwrap().contains("nothing was tried") && failure.to_string().contains(&ben.newest()), "{failure}");
    assert_eq!(desk.sql("west", "select pg_is_in_recovery()::text"), ["true"], "nobody has promoted anything yet");
    ben.file("go", "");
    let done = second.end().expect(0);
    assert_eq!((wheel_of(&done)["output"]["epoch"].as_u64(), done.step("let_go")["output"]["released"].as_bool()), (Some(2), Some(true)));
    assert_eq!(desk.sql("west", "select pg_is_in_recovery()::text"), ["false"]);

    // What was deposed ends without touching what is no longer its own.
    ana.muster(&["abort", &run, "--reason", "ben went on"]).expect(0);
    for place in [&ana, &ben] {
        place.muster(&["evidence", "verify"]).expect(0);
    }
    // Both records come into the shared journal; that both held the database at once is named.
    let shared = ana.path("shared").to_str().unwrap().to_owned();
    let (from_ana, from_ben) = (ana.path(".muster").to_str().unwrap().to_owned(), ben.path(".muster").to_str().unwrap().to_owned());
    ana.muster(&["evidence", "import", &from_ana, "--state", &shared]).expect(0);
    let said = ana.muster(&["evidence", "import", &from_ben, "--state", &shared]).expect(1);
    let overlaps = said.last()["overlaps"].to_string();
    assert!(overlaps.contains(&run) && overlaps.contains("database/predictions"), "{overlaps}");
    ana.muster(&["evidence", "verify", "--state", &shared]).expect(0);
}

#[test]
fn lab_a_failed_run_lets_go_and_a_place_that_is_down_is_said_and_waived() {
    let desk = Desk::with_lab();
    let place = laptop(&desk);
    let book = |step: &str| {
        let text = format!(
            "runbook: small\nmode: failover\ninputs:\n  no_wheel: {{ type: string, default: '' }}\nsteps:\n  - id: wheel\n    uses: wheel.take\n    with: {{ bucket: models, region: west, no_wheel: '{{{{ inputs.no_wheel }}}}' }}\n    on_failure: stop\n  - id: a\n    uses: exec.command\n    on_failure: stop\n    with: {{ argv: [sh, -c, '{step}'] }}\n"
        );
        std::fs::write(place.path("small.yaml"), text).unwrap();
    };
    let run = |extra: &[&str]| place.muster(&[&["run", "small.yaml"], extra].concat());
    book("exit 1");
    let failed = run(&[]).expect(1);
    assert_eq!(failed.statuses(), ["undone", "failed"], "what it held it let go");
    book("true");
    // Each run takes it anew, and lets go at its end although no step says so.
    assert_eq!(run(&[]).expect(0).step("wheel")["output"]["epoch"], 2);
    assert_eq!(run(&[]).expect(0).step("wheel")["output"]["epoch"], 3);
    assert_eq!(desk.muster(&["lab", "kill", "west"]).code, Some(0));
    let said = run(&[]).expect(1);
    let failure = said.step("wheel")["failure"].to_string();
    assert!(failure.contains("-i no_wheel=REASON"), "{failure}");
    let said = run(&["-i", "no_wheel=the store of west is down"]).expect(0);
    assert_eq!(said.step("wheel")["output"]["waived"], "the store of west is down");
}
