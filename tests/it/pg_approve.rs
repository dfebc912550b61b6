//! A restore that people approve first, of a database whose primary goes on meanwhile; and one that is killed while it counts what
//! was lost. On real servers, with the real program.

use crate::{
    pg::Cluster,
    pg_drill::muster,
    pg_loss::{STILL, begun},
    pg_vault::{Background, Vault, archive_all, give, wait},
    place::Said,
};
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

/// A runbook beside the vault; `@` stands for its directory.
fn book(vault: &Vault, name: &str, steps: &str) {
    let path = vault.dir().join(format!("runbooks/{name}.yaml"));
    fs::write(&path, format!("runbook: {name}\nsteps:\n{steps}").replace('@', vault.dir().to_str().unwrap())).unwrap();
    give(&path);
}

fn expect(vault: &Vault, args: &[&str], code: i32) -> Said {
    let said = muster(vault, args);
    assert_eq!(said.code, Some(code), "{args:?}: {} {}", said.out, said.err);
    said
}

fn events(vault: &Vault, run: &str, kind: &str, step: &str) -> Vec<Value> {
    let shown = muster(vault, &["show", run]).last();
    let all = shown["events"].as_array().unwrap_or_else(|| panic!("{shown}"));
    all.iter().map(|event| &event["body"]).filter(|body| body["kind"] == kind && body["step"] == step).cloned().collect()
}

/// The server that was started on a restored folder ends, and its folder for sockets is removed.
fn end(vault: &Vault, output: &Value) {
    let pid = fs::read_to_string(Path::new(output["to"].as_str().unwrap()).join("postmaster.pid")).unwrap();
    let pid = pid.lines().next().unwrap().to_owned();
    let _ = Command::new("kill").args(["-QUIT", &pid]).status().unwrap();
    wait("its end", || !Path::new("/proc").join(&pid).exists());
    let _ = fs::remove_dir_all(output["socket"].as_str().unwrap());
    assert_eq!(crate::pg_drill::left(vault), Vec::<String>::new());
}

const APPROVED: &str = "  - id: wheel
    uses: wheel.take
    approve: { expires: 10m }
    with: { database: predictions }
  - id: restore
    uses: database.restore
    approve: { expires: 10m }
    with: { repository: vault, database: predictions, to: @/restored }
";

#[test]
fn what_was_approved_is_done_though_the_primary_goes_on() {
    let vault = Vault::new();
    let cluster = begun(&vault, STILL);
    book(&vault, "approved", APPROVED);
    let run = expect(&vault, &["run", "approved", "--live"], 3).run();
    // The wheel names since when, and who sits there: neither is what is approved.
    expect(&vault, &["approve", &run, "wheel", "--by", "ana"], 0);
    let said = expect(&vault, &["resume", &run], 3);
    assert_eq!((&said.step("wheel")["status"], &said.step("restore")["status"]), (&json!("succeeded"), &json!("waiting_approval")));
    // What taking the wheel wrote is in the repository; the log goes further, too, than when the restore was prepared.
    archive_all(&cluster);
    for n in 4..=5 {
        cluster.sql(&format!("INSERT INTO ledger VALUES ({n})"));
    }
    expect(&vault, &["approve", &run, "restore", "--by", "ana"], 0);
    let said = expect(&vault, &["resume", &run], 0);
    let prepared = events(&vault, &run, "prepared", "restore");
    assert_eq!(prepared.len(), 2, "asked, and once more for whoever goes on: {prepared:?}");
    assert_eq!((&prepared[0]["hash"], &prepared[0]["intent"]), (&prepared[1]["hash"], &prepared[1]["intent"]));
    // Which database and which history is approved; where they stood is not.
    assert_eq!(prepared[0]["intent"]["asked"], json!({ "database": "predictions", "timeline": 1 }), "{}", prepared[0]);
    let at = |one: &Value| one["measured"]["asked"]["primary"]["position"].as_str().unwrap_or_else(|| panic!("{one}")).to_owned();
    assert_ne!(at(&prepared[0]), at(&prepared[1]), "it went on, and that is on record");
    let output = said.step("restore")["output"].clone();
    end(&vault, &output);
    assert_eq!(output["loss"]["primary_position"], json!(at(&prepared[1])), "held against how it stood just before: {output}");
    assert_eq!(output["loss"]["lost_commits"], 2, "{output}");
    for step in ["wheel", "restore"] {
        assert_eq!((events(&vault, &run, "approval_asked", step).len(), events(&vault, &run, "approval_void", step)), (1, Vec::new()));
    }
    expect(&vault, &["evidence", "verify"], 0);
}

#[test]
fn another_backup_than_the_one_that_was_approved_is_asked_for_anew() {
    let vault = Vault::new();
    let cluster = begun(&vault, STILL);
    let (_, restore) = APPROVED.split_once("  - id: restore").unwrap();
    book(&vault, "approved", &format!("  - id: restore{restore}"));
    let run = expect(&vault, &["run", "approved", "--live"], 3).run();
    expect(&vault, &["approve", &run, "restore", "--by", "ana"], 0);
    vault.base_backup(&cluster);
    archive_all(&cluster);
    let said = expect(&vault, &["resume", &run], 3);
    assert_eq!(said.last()["status"], "waiting_approval", "{}", said.out);
    assert!(!vault.dir().join("restored").exists());
    let void = events(&vault, &run, "approval_void", "restore");
    let why = void.first().map(|void| void["why"].to_string()).unwrap_or_default();
    assert!(void.len() == 1 && why.contains("has changed since it was approved: ") && why.contains("`snapshot`"), "{void:?}");
    expect(&vault, &["approve", &run, "restore", "--by", "ana"], 0);
    let said = expect(&vault, &["resume", &run], 0);
    end(&vault, &said.step("restore")["output"]);
    expect(&vault, &["evidence", "verify"], 0);
}

/// PostgreSQL's programs, of which the one that reads the log waits the first time that it is asked, until `@/go` is there.
fn slow_to_read(vault: &Vault, cluster: &Cluster) {
    let folder = vault.dir().join("programs");
    fs::create_dir(&folder).unwrap();
    for entry in fs::read_dir(&cluster.bin).unwrap().filter_map(Result::ok) {
        std::os::unix::fs::symlink(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let slow = folder.join("pg_waldump");
    fs::remove_file(&slow).unwrap();
    let text = "#!/bin/sh\nif mkdir @/counting 2>/dev/null; then n=0; while [ ! -e @/go ] && [ $n -lt 600 ]; do sleep 0.1; n=$((n+1)); done; exit 1; fi\n\
                exec BIN/pg_waldump \"$@\"\n";
    fs::write(&slow, text.replace("@/", &format!("{}/", vault.dir().display())).replace("BIN", cluster.bin.to_str().unwrap())).unwrap();
    fs::set_permissions(&slow, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for path in [&slow, &folder] {
        give(path);
    }
}

/// The program in the background, as the server's user.
fn spawn(vault: &Vault, args: &[&str]) -> Background {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command.args(args).arg("--json").current_dir(vault.dir()).env("HOME", vault.dir()).env_remove("MUSTER_REPO_PASSWORD");
    if let Some((uid, gid)) = crate::pg::other_user() {
        std::os::unix::process::CommandExt::uid(&mut command, uid);
        std::os::unix::process::CommandExt::gid(&mut command, gid);
    }
    let (out, err) = (vault.dir().join("killed.out"), vault.dir().join("killed.err"));
    let file = |path: &Path| fs::File::create(path).unwrap();
    let child = command.stdin(Stdio::null()).stdout(file(&out)).stderr(file(&err)).spawn().unwrap();
    Background { child, out, err }
}

#[test]
fn a_restore_that_was_killed_while_it_counted_counts_all_the_same() {
    let vault = Vault::new();
    let cluster = begun(&vault, STILL);
    for n in 4..=6 {
        cluster.sql(&format!("INSERT INTO ledger VALUES ({n})"));
    }
    slow_to_read(&vault, &cluster);
    book(
        &vault,
        "counted",
        "  - id: restore\n    uses: database.restore\n    with: { repository: vault, database: predictions, to: @/restored, programs: @/programs }\n",
    );
    let mut killed = spawn(&vault, &["run", "counted", "--live"]);
    wait("the count", || vault.dir().join("counting").exists() || killed.child.try_wait().unwrap().is_some());
    let fetched = vault.dir().join("restored/muster.lost");
    assert!(fetched.is_dir(), "{}", killed.said());
    killed.kill();
    fs::write(vault.dir().join("go"), "").unwrap();
    let run = muster(&vault, &["runs"]).last()["runs"][0]["id"].as_str().unwrap().to_owned();
    let said = expect(&vault, &["resume", &run], 0);
    let output = said.step("restore")["output"].clone();
    end(&vault, &output);
    assert!(!fetched.exists(), "what was fetched to be counted is left in the data directory");
    let loss = &output["loss"];
    assert_eq!((&loss["lost_commits"], &loss["upper_bound"], &loss["why"]), (&json!(3), &json!(false), &Value::Null), "{output}");
    assert_eq!(loss["recovered_position"], output["position"], "{output}");
    assert!(loss["recovered_commit"].is_string() && loss["recovered_commit"] == output["recovered_point"], "{output}");
    assert_eq!(said.step("restore")["attempts"], 2, "the same intent, once more");
}
