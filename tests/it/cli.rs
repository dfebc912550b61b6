//! The command line as people and programs meet it: what it accepts, refuses, prints, and ends with.

use crate::place::{Place, Said};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A command given in the repository, with a state directory elsewhere.
fn here(place: &Place, args: &[&str]) -> Said {
    let mut command: Command = place.command(args);
    command.current_dir(root()).env("MUSTER_STATE", place.path("state")).env_remove("COLUMNS");
    place.spawn(command).end()
}

fn under(folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Does a line begin with `FILE:LINE:COLUMN`, or point there with an arrow?
fn names_a_place(text: &str, file: &str) -> bool {
    text.match_indices(&format!("{file}:")).any(|(at, found)| {
        let mut numbers = text[at + found.len()..].split(|c: char| !c.is_ascii_digit()).take(2);
        numbers.all(|number| number.parse::<u32>().is_ok_and(|n| n > 0))
    })
}

#[test]
fn what_the_repository_ships_is_valid() {
    let place = Place::new();
    let said = here(&place, &["validate", "runbooks", "drills", "muster.yaml", "--json"]).expect(0);
    assert_eq!((said.last()["valid"].as_bool(), said.last()["diagnostics"].as_array().unwrap().len()), (Some(true), 0), "{}", said.err);
    assert_eq!(said.last()["files"].as_u64().unwrap() as usize, under("runbooks").len() + under("drills").len() + 1);
    here(&place, &["validate"]).expect(0);
}

#[test]
fn each_bad_file_is_told_with_its_place_in_under_a_second() {
    let place = Place::new();
    let files = under("tests/fixtures/bad");
    assert!(files.len() >= 20);
    for file in files {
        let name = file.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        let began = Instant::now();
        let said = here(&place, &["validate", &name, "--json"]).expect(2);
        let took = began.elapsed();
        assert!(names_a_place(&said.err, &name), "no place in: {}", said.err);
        let found = said.last()["diagnostics"].as_array().unwrap().len();
        assert!(found > 0, "{name}");
        assert!(took < Duration::from_secs(5), "{name} took {took:?}");
    }
}

#[test]
fn ten_megabytes_are_refused_at_once() {
    let place = Place::new();
    std::fs::write(place.path("large.yaml"), "runbook: large\nsteps: []\n#".to_owned() + &"x".repeat(10 << 20)).unwrap();
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let began = Instant::now();
        let said = place.plain(&["validate", "large.yaml"]).expect(2);
        best = best.min(began.elapsed());
        assert!(said.err.contains("large.yaml"), "{}", said.err);
    }
    println!("10 MB refused in {best:?}");
    assert!(best < Duration::from_secs(1), "{best:?}");
}

#[test]
fn help_says_what_there_is() {
    let place = Place::new();
    let help = place.plain(&["--help"]).expect(0).out;
    insta::assert_snapshot!("help", help);
    for line in help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty()) {
        let command = line.split_whitespace().next().unwrap();
        if command == "help" {
            continue;
        }
        let said = here(&place, &[command, "--help"]).expect(0);
        assert!(said.out.contains("Usage: muster") && said.err.is_empty(), "{command}: {}", said.out);
    }
}

#[test]
fn every_action_is_documented_from_its_types() {
    let place = Place::new();
    insta::assert_snapshot!("actions", here(&place, &["actions"]).expect(0).out);
    let all = here(&place, &["actions", "--json"]).expect(0).last();
    let names: Vec<_> = all["actions"].as_array().unwrap().iter().map(|action| action["name"].as_str().unwrap().to_owned()).collect();
    assert!(names.len() >= 14);
    let mut pages = String::new();
    for name in &names {
        let page = here(&place, &["actions", name]).expect(0).out;
        assert!(
            ["effect ", "danger ", "undo ", "timeout ", "with:", "gives:", "example:"].iter().all(|part| page.contains(part)),
            "{page}"
        );
        let one = here(&place, &["actions", name, "--json"]).expect(0).last();
        assert_eq!(one["input"]["type"], "object", "{name}");
        // The example is one that validates, but for the resources it names.
        let example =
            one["example"].as_str().unwrap().lines().map(|line| format!("    {line}\n")).collect::<String>().replacen("    ", "  - ", 1);
        place.file("example.yaml", &format!("runbook: example\nsteps:\n{example}"));
        let said = place.plain(&["validate", "example.yaml", "--json"]);
        let errors: Vec<_> =
            said.last()["diagnostics"].as_array().unwrap().iter().filter(|one| one["severity"] == "error").cloned().collect();
        let dangling = |one: &serde_json::Value| ["dangling-reference", "undefined-expression"].contains(&one["code"].as_str().unwrap());
        assert!(errors.iter().all(dangling), "{name}: {errors:#?}");
        pages.push_str(&format!("=== {page}\n"));
    }
    insta::assert_snapshot!("action-pages", pages);
}

/// Rule 7: what compares with the region that is lost would fail in the failover, so its plan is refused.
#[test]
fn a_failover_that_compares_with_the_lost_region_is_refused() {
    let place = Place::new();
    place.file(
        "muster.yaml",
        "regions: { east: {}, west: {}, south: {} }\ndatabases:\n  predictions:\n    engine: postgres\n    instances: { east: { host: 127.0.0.2 }, west: { host: 127.0.0.3 }, south: { host: 127.0.0.4 } }\nbuckets:\n  models: { east: { bucket: models-east }, west: { bucket: models-west } }\n",
    );
    for (step, needs) in [
        ("uses: bucket.verify\n    with: { bucket: models, from: '{{ inputs.from }}', to: '{{ inputs.to }}' }", true),
        ("uses: bucket.verify\n    with: { bucket: models, from: '{{ inputs.from }}', to: '{{ inputs.to }}', against: source }", true),
        ("uses: bucket.verify\n    with: { bucket: models, from: '{{ inputs.from }}', to: '{{ inputs.to }}', against: manifest }", false),
        ("uses: database.verify_replica\n    with: { database: predictions, region: '{{ inputs.to }}' }", true),
        ("uses: database.verify_replica\n    with: { database: predictions, region: south, primary: '{{ inputs.to }}' }", false),
    ] {
        let inputs = "inputs: { from: { type: region }, to: { type: region } }";
        place.file("lost.yaml", &format!("runbook: lost\nmode: failover\n{inputs}\nsteps:\n  - id: verify\n    {step}\n"));
        let said = place.plain(&["plan", "lost.yaml", "-i", "from=east", "-i", "to=west"]);
        assert_eq!(said.err.contains("needs the data plane of `east`, the region that is lost"), needs, "{step}: {}", said.err);
        assert_eq!(said.code, Some(if needs { 2 } else { 0 }), "{step}: {}", said.err);
    }
}

/// The failovers that are shipped need nothing of the region that is lost.
#[test]
fn the_failovers_that_are_shipped_pass_the_lint() {
    let place = Place::new();
    let mut planned = 0;
    for file in under("runbooks") {
        let text = std::fs::read_to_string(&file).unwrap();
        if !text.contains("\nmode: failover\n") {
            continue;
        }
        planned += 1;
        let name = file.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        let said = here(&place, &["plan", &name, "-i", "from=east", "-i", "to=west"]);
        assert!(!said.err.contains("the region that is lost"), "{name}: {}", said.err);
    }
    assert!(planned >= 2, "{planned} failovers");
}

#[test]
fn a_wheel_lies_in_one_place() {
    let place = Place::new();
    for (with, found) in [
        ("{ bucket: models, region: west }", None),
        ("{ database: predictions, no_wheel: alone }", None),
        ("{}", Some("none of them")),
        ("{ bucket: models }", Some("`bucket`")),
        ("{ database: predictions, region: west }", Some("`database`, `region`")),
        ("{ bucket: models, region: west, database: predictions }", Some("`bucket`, `region`, `database`")),
    ] {
        place.file("wheel.yaml", &format!("runbook: wheel\nsteps:\n  - id: wheel\n    uses: wheel.take\n    with: {with}\n"));
        let said = place.plain(&["validate", "wheel.yaml"]);
        let told = found.map(|found| format!("expected either `bucket` and `region`, or `database`; found {found} (in `with`)"));
        assert_eq!(said.err.contains("found "), told.is_some(), "{with}: {}", said.err);
        assert!(told.is_none_or(|told| said.err.contains(&told)), "{with}: {}", said.err);
    }
}

#[test]
fn an_unknown_action_has_a_suggestion() {
    let said = here(&Place::new(), &["actions", "exec.comand"]).expect(2);
    assert!(said.err.contains("there is no action `exec.comand`") && said.err.contains("exec.command"), "{}", said.err);
}

#[test]
fn schemas_are_json_and_know_every_key_that_is_shipped() {
    let place = Place::new();
    for (kind, folder) in [("runbook", "runbooks"), ("drill", "drills"), ("estate", "")] {
        let said = here(&place, &["schema", kind]).expect(0);
        let schema: serde_json::Value = serde_json::from_str(&said.out).unwrap();
        assert_eq!(here(&place, &["schema", kind, "--json"]).expect(0).last(), schema, "one line, the same");
        assert!(schema["$schema"].as_str().is_some_and(|dialect| dialect.contains("json-schema.org")), "{kind}");
        let known = schema["properties"].as_object().unwrap();
        let files = if folder.is_empty() { vec![root().join("muster.yaml")] } else { under(folder) };
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            let keys =
                text.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase())).filter_map(|line| line.split_once(':'));
            for (key, _) in keys {
                assert!(known.contains_key(key), "{kind} has no `{key}`, which {} uses", file.display());
            }
        }
    }
}

#[test]
fn drill_next_counts_from_an_instant() {
    let place = Place::new();
    place.file("muster.yaml", "regions: { east: {}, west: {} }\n");
    std::fs::create_dir(place.path("drills")).unwrap();
    std::fs::create_dir(place.path("runbooks")).unwrap();
    place.file("runbooks/nothing.yaml", "runbook: nothing\nsteps:\n  - id: a\n    uses: exec.command\n    with: { argv: ['true'] }\n");
    place.file(
        "drills/weekly.yaml",
        "drill: weekly\nkind: failover\nrunbook: nothing\nschedule: { cron: \"0 3 * * 1\", timezone: Europe/Berlin }\n",
    );
    // Over the end of daylight saving: the wall clock stays, the instant moves by an hour.
    let args = ["drill", "next", "weekly", "--from", "2026-10-19T01:00:00Z", "--count", "2", "--json"];
    let said = place.plain(&args).expect(0);
    let next: Vec<_> = said.last()["next"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["drill"].to_string(), one["at"].as_str().unwrap().to_owned()))
        .collect();
    let weekly = "\"weekly\"".to_owned();
    // Exactly at `--from` one was due; it is not among them.
    assert_eq!(next, [(weekly.clone(), "2026-10-26T02:00:00.000Z".to_owned()), (weekly, "2026-11-02T02:00:00.000Z".to_owned())]);
    let said = place.plain(&["drill", "next", "--from", "yesterday"]).expect(2);
    assert!(said.err.contains("--from yesterday"), "{}", said.err);
    let said = place.plain(&["drill", "next", "weakly"]).expect(2);
    assert!(said.err.contains("weekly"), "{}", said.err);
}

#[test]
fn runs_are_listed_newest_first_up_to_a_limit() {
    let place = Place::new();
    for name in ["one", "two", "three"] {
        place.file("book.yaml", &format!("runbook: {name}\nsteps:\n  - id: a\n    uses: exec.command\n    with: {{ argv: ['true'] }}\n"));
        place.run_book().expect(0);
    }
    let said = place.muster(&["runs"]).expect(0);
    let runs = said.last()["runs"].as_array().unwrap().clone();
    let names: Vec<_> = runs.iter().map(|run| run["runbook"].as_str().unwrap()).collect();
    assert_eq!(names, ["three", "two", "one"]);
    for run in &runs {
        assert_eq!(run["status"], "succeeded");
        assert!(run["started_at"].as_str() <= run["finished_at"].as_str() && run["id"].is_string(), "{run}");
    }
    assert_eq!(place.muster(&["runs", "--limit", "1"]).expect(0).last()["runs"].as_array().unwrap().len(), 1);
    let show = place.muster(&["show", runs[1]["id"].as_str().unwrap()]).expect(0).last();
    assert_eq!((show["runbook"].as_str(), show["steps"].as_array().unwrap().len()), (Some("two"), 1));
    assert!(show["events"].as_array().unwrap().len() >= 6);
}

#[test]
fn exit_codes_of_usage() {
    let place = Place::new();
    let table: [(&[&str], i32); 10] = [
        (&["--version"], 0),
        (&["help"], 0),
        (&[], 2),
        (&["frobnicate"], 2),
        (&["run"], 2),
        (&["run", "a", "--frobnicate"], 2),
        (&["resolve", "r", "s", "--as", "maybe", "--reason", "x"], 2),
        (&["skip", "r", "s"], 2),
        (&["runs"], 2),
        (&["validate", "nowhere"], 2),
    ];
    for (args, code) in table {
        let said = place.plain(args).expect(code);
        assert_eq!(said.out.is_empty(), code == 2, "{args:?}: what went wrong goes to stderr: {}", said.out);
        assert_eq!(said.err.is_empty(), code == 0, "{args:?}: {}", said.err);
    }
    let said = place.plain(&["runz"]).expect(2);
    assert!(said.err.contains("runs"), "a near name is offered: {}", said.err);
}

#[test]
fn completions_know_the_commands() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        let said = place.plain(&["completions", shell]).expect(0);
        assert!(said.out.contains("muster") && said.out.contains("resolve"), "{shell}");
        assert!(!said.out.contains("lab-process"), "{shell} offers what is not for people");
    }
}

#[test]
fn readiness_says_what_is_not_there_and_which_names_there_are() {
    let place = Place::new();
    let estate = "regions: { east: {}, west: {} }\ndatabases:\n  app:\n    engine: postgres\n    instances: { east: { host: 127.0.0.1, port: 1 }, west: { host: 127.0.0.1, port: 1 } }\n";
    place.file("muster.yaml", estate);
    let told = place.muster(&["readiness"]).expect(1).last();
    assert_eq!((&told["ready"], &told["repositories"]), (&false.into(), &serde_json::json!([])));
    for region in ["east", "west"] {
        let findings = told["regions"][region].as_array().unwrap();
        let replica = findings.iter().find(|finding| finding["what"] == "database/app replica").unwrap();
        assert_eq!((&replica["state"], &replica["ok"]), (&"unknown".into(), &false.into()), "{replica}");
    }
    let west = place.muster(&["readiness", "west"]).expect(1).last();
    assert_eq!(west["regions"].as_object().unwrap().keys().collect::<Vec<_>>(), ["west"]);
    let plain = place.plain(&["readiness", "west"]).expect(1);
    assert!(plain.out.contains("database/app replica") && plain.out.contains("not ready: 2 of"), "{}", plain.out);
    for (args, words) in [
        (&["south"][..], "the estate has no region `south`; it has: east, west"),
        (&["west", "--service", "scoring"], "the estate has no service `scoring`; it has: none"),
        (&["west", "--repository", "vault"], "the estate has no repository `vault`; it has: none"),
        (&["west", "--max-replica-lag", "soon"], "--max-replica-lag"),
    ] {
        let said = place.plain(&[&["readiness"], args].concat()).expect(2);
        assert!(said.err.contains(words), "{}", said.err);
    }
    place.file("muster.yaml", "regions: { east: {} }\n");
    let said = place.plain(&["readiness"]).expect(2);
    assert!(said.err.contains("nothing there that could be looked at"), "{}", said.err);
}

/// A program that asked for JSON is answered in JSON, also when it asked for something that there is not.
#[test]
fn a_wrong_call_is_told_in_json_as_well() {
    let place = Place::new();
    for args in [&["run"][..], &["frobnicate"], &["runs", "--frobnicate"], &["resolve", "r", "s", "--as", "maybe"], &[]] {
        let said = place.plain(&[args, &["--json"]].concat()).expect(2);
        let last = said.last();
        assert_eq!(last["error"]["code"], "usage", "{args:?}: {last}");
        assert!(last["error"]["message"].as_str().unwrap().len() > 20 && !said.err.is_empty(), "{args:?}: {last}");
    }
    // What follows `--` is no flag, and help is no error.
    assert_eq!(place.plain(&["run", "--", "--json", "x"]).expect(2).out, "");
    assert!(place.plain(&["run", "--json", "--help"]).expect(0).out.contains("Usage: muster run"));
}

/// What could not be written is not said, so the program does not end as if it had been.
#[test]
fn a_full_disk_behind_stdout_is_no_success() {
    let place = Place::new();
    let to = |file: &str, args: &[&str]| {
        let file = std::fs::File::options().write(true).open(file).unwrap();
        std::process::Command::new(env!("CARGO_BIN_EXE_muster")).args(args).current_dir(place.path("")).stdout(file).output().unwrap()
    };
    for args in [&["schema", "estate"][..], &["actions", "--json"], &["completions", "bash"]] {
        let said = to("/dev/full", args);
        let err = String::from_utf8_lossy(&said.stderr).into_owned();
        assert_eq!(said.status.code(), Some(2), "{args:?}: {err}");
        assert!(err.contains("could not be written to stdout") && !err.contains("panicked"), "{args:?}: {err}");
        assert_eq!(to("/dev/null", args).status.code(), Some(0), "{args:?}");
    }
}

/// A reader that has seen enough is no error.
#[test]
fn a_reader_may_go_away() {
    let place = Place::new();
    for command in ["completions bash", "schema runbook", "actions --json"] {
        let script = format!("\"$0\" {command} | true; echo \"${{PIPESTATUS[0]}}\"");
        let mut bash = std::process::Command::new("bash");
        let said = bash.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_muster")).current_dir(place.path("")).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stdout), "0\n", "{command}: {}", String::from_utf8_lossy(&said.stderr));
    }
}

/// A device has no size and no end.
#[test]
fn what_has_no_end_is_not_read_to_it() {
    let place = Place::new();
    let said = place.plain(&["validate", "/dev/zero", "--json"]).expect(2);
    assert_eq!(said.last()["diagnostics"][0]["code"], "too-large", "{}", said.out);
    let said = place.plain(&["--estate", "/dev/zero", "plan", "x"]).expect(2);
    assert!(said.err.contains("1 MiB") || said.err.contains("no runbook"), "{}", said.err);
}

/// An empty file is no estate that happens to protect nothing.
#[test]
fn an_empty_file_is_not_valid() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("runbooks")).unwrap();
    std::fs::write(place.path("runbooks/cut-off.yaml"), "# only this was written\n").unwrap();
    let said = place.plain(&["validate", "--json"]).expect(2);
    assert_eq!((&said.last()["diagnostics"][0]["code"], &said.last()["valid"]), (&"empty".into(), &false.into()), "{}", said.out);
}

/// In the wrong directory nothing is open either; that is no news to rely on.
#[test]
fn status_says_what_it_has_not_looked_at() {
    let place = Place::new();
    if place.is_shared() {
        return;
    }
    let said = place.plain(&["status"]).expect(0);
    assert!(said.out.contains("no muster.yaml") && said.out.contains("there is no journal in"), "{}", said.out);
    assert!(!said.out.contains("nothing"), "{}", said.out);
    let last = place.plain(&["status", "--json"]).expect(0).last();
    assert_eq!((&last["estate_file"], &last["journal"], &last["open"]), (&serde_json::Value::Null, &false.into(), &serde_json::json!([])));
    std::fs::create_dir_all(place.path("drills")).unwrap();
    // Neither is ever due, and the third is all the same.
    let drill = |name: &str, kind: &str, zone: &str| {
        let text = format!("drill: {name}\nkind: {kind}\nrunbook: r\nschedule: {{ cron: \"0 3 * * 1\", timezone: {zone} }}\n");
        std::fs::write(place.path(&format!("drills/{name}.yaml")), text).unwrap();
    };
    drill("torn", "nonsense", "UTC");
    drill("nowhere", "restore", "Europe/Berln");
    let said = place.plain(&["drill", "list"]).expect(2);
    assert!(said.err.contains("nonsense") && said.err.contains("nowhere.yaml: timezone"), "{}", said.err);
    assert!(!said.err.contains("no drill beside the estate"), "{}", said.err);
    drill("good", "restore", "Europe/Berlin");
    let said = place.plain(&["status"]).expect(0);
    assert!(said.out.contains("next drill  good at") && said.out.contains("but 2 in drills/ cannot be used"), "{}", said.out);
    let said = place.plain(&["drill", "next", "--count", "1"]).expect(0);
    assert!(said.out.contains("good") && said.err.contains("nowhere.yaml"), "{}\n{}", said.out, said.err);
    drill("table", "tabletop", "UTC");
    std::fs::write(place.path("drills/r.yaml"), "runbook: r\nsteps:\n  - id: a\n    uses: exec.command\n    with: { argv: [\"true\"] }\n")
        .unwrap();
    let said = place.plain(&["validate", "drills/table.yaml", "--json"]).expect(2);
    assert_eq!(said.last()["diagnostics"][0]["code"], "kind-not-run", "{}", said.out);
}

/// A run says `running` until somebody writes something else; whoever looks is told that nobody will.
#[test]
fn a_run_whose_process_is_gone_is_said_to_be_left() {
    let place = Place::new();
    if place.is_shared() {
        // Another node takes it over.
        return;
    }
    place.book("  - id: wait\n    uses: exec.command\n    with: { argv: [sleep, \"5\"] }\n");
    let running = place.start(&["--state", "state", "run", "book.yaml"]);
    let open = || place.muster(&["--state", "state", "status"]).last()["open"].clone();
    place.until("the run begins", || open()[0]["status"] == "running");
    let run = open()[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(open()[0]["abandoned"], false, "its process lives");
    running.signal("KILL");
    running.end();
    assert_eq!(open()[0]["abandoned"], true);
    let said = place.plain(&["--state", "state", "show", &run]).expect(0);
    assert!(said.out.contains(&format!("muster --state state resume {run}")), "{}", said.out);
    assert!(place.plain(&["--state", "state", "status"]).out.contains("the process that had it is gone"));
}

/// Also of a repository that lies in a region of machines of one's own, which has no API.
#[test]
fn readiness_is_asked_by_itself() {
    let place = Place::new();
    let vault = "  vault: { url: \"@/vault\", region: west, password: { file: \"@/pw\" } }\n";
    place.file("muster.yaml", &format!("regions: {{ east: {{}}, west: {{}} }}\nrepositories:\n{vault}"));
    place.file("pw", "a password of some length").file("data.txt", "x");
    let data = place.path("data.txt");
    place.muster(&["backup", "create", data.to_str().unwrap(), "--repo", "vault"]).expect(0);
    let found = place.muster(&["readiness", "west"]).expect(0).last();
    assert_eq!((&found["ready"], found["repositories"].as_array().map(Vec::len)), (&true.into(), Some(2)), "{found}");
    let said = place.plain(&["readiness"]).expect(0);
    assert!(said.out.contains("repository/vault snapshot") && said.out.ends_with("ready\n"), "{}", said.out);
    // Nothing was ever restored from it.
    let found = place.muster(&["readiness", "west", "--max-proof-age", "7d"]).expect(1).last();
    assert_eq!(found["ready"], false, "{found}");
    assert!(place.muster(&["readiness", "wst"]).expect(2).err.contains("it has: east, west"));
    assert!(!place.path(".muster/journal.db").exists(), "it needs no journal");
}
