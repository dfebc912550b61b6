//! Drills of kind `restore` with the real binary: what came back is compared, how long it took and how old it was is
//! measured, and a repository that is damaged fails for that reason. Once on the lab with the shipped files, once on an
//! estate that is no lab.

use crate::drill_support::*;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Every pack below a repository's folder.
fn packs(vault: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(vault.join("packs")).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    folders.flat_map(|folder| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path())).collect()
}

/// Spoils one byte of the first chunk of every pack; gives what they were.
fn damage(vault: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let all: Vec<_> = packs(vault).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    assert!(!all.is_empty());
    for (path, bytes) in &all {
        let mut bytes = bytes.clone();
        bytes[60] ^= 1;
        fs::remove_file(path).unwrap();
        fs::write(path, bytes).unwrap();
    }
    all
}

/// What a restore drill must have measured, each figure against the others.
fn measured(view: &Value) {
    let (rto, rpo, restore) = (&view["rto"], &view["rpo"], &view["restore"]);
    let ms = |value: &Value| value.as_i64().unwrap_or_else(|| panic!("not measured: {view}"));
    assert_eq!(ms(&rto["parts_ms"]["act"]) + ms(&rto["parts_ms"]["verify"]), ms(&rto["actual_ms"]), "{view}");
    for part in ["detect", "decide", "propagate"] {
        assert!(rto["parts_ms"][part].is_null(), "{part} does not apply: {view}");
    }
    let age = instant(&view["started_at"]).duration_since(instant(&restore["recovered_point"])).as_millis() as i64;
    assert!((ms(&rpo["actual_ms"]) - age).abs() <= 1, "{} ms told, {age} ms between the instants", rpo["actual_ms"]);
    assert!(ms(&restore["files"]) > 0 && ms(&restore["bytes"]) > 0, "{view}");
    assert_eq!(restore["lost_at"], view["started_at"]);
    assert!(rpo["acknowledged_writes"].is_null() && rpo["lost_writes"].is_null(), "{view}");
    let order =
        [&restore["recovered_point"], &restore["lost_at"], &restore["restored_at"], &restore["first_file_at"], &restore["verified_at"]];
    let order: Vec<_> = order.into_iter().map(instant).collect();
    assert!(order.is_sorted(), "{restore}");
    println!("restored {} bytes in {} files: rto {rto}, rpo {rpo}", restore["bytes"], restore["files"]);
}

#[test]
fn drill_of_a_restore_on_the_lab_with_the_shipped_files() {
    let desk = Desk::with_lab();
    // A drill measures what there is, and there is nothing yet.
    let none = desk.muster(&["drill", "run", "artifact-restore"]);
    assert_eq!((none.code, &none.result()["verdict"]), (Some(1), &"fail".into()), "{none:?}");
    assert!(reasons(none.result()).contains("holds no repository"), "{none:?}");

    let protected = desk.muster(&["run", "protect"]);
    assert_eq!(protected.code, Some(0), "{protected:?}");
    let ran = desk.muster(&["drill", "run", "artifact-restore"]);
    let view = ran.result();
    assert_eq!((ran.code, &view["verdict"], &view["kind"]), (Some(0), &"pass".into(), &"restore".into()), "{view} {}", ran.story);
    measured(view);
    assert!(view["restore"]["files"].as_u64().unwrap() >= 2, "the model and its golden outputs: {view}");

    // The planted defect.
    damage(&desk.lab().plan().home.join("vault"));
    let spoiled = desk.muster(&["drill", "run", "artifact-restore"]);
    let view = spoiled.result();
    assert_eq!((spoiled.code, &view["verdict"]), (Some(1), &"fail".into()), "{view}");
    assert!(reasons(view).contains("step `prove`") && reasons(view).contains("does not restore"), "{view}");
    assert!(view["rto"]["actual_ms"].is_null() && view["rpo"]["actual_ms"].is_null(), "{view}");
    let history = desk.muster(&["drill", "history"]);
    let verdicts: Vec<&Value> = history.result()["drills"].as_array().unwrap().iter().map(|drill| &drill["verdict"]).collect();
    assert_eq!(verdicts, ["fail", "pass", "fail"]);
    desk.evidence_holds();
}

const ESTATE: &str = "regions: { east: {} }
services: { scoring: { uses: [vault] } }
repositories: { vault: { url: vault, password: { file: password } } }
";
const BACK: &str = "runbook: back
steps:
  - { id: backup, uses: backup.create, with: { repository: vault, path: artifacts } }
  - { id: verify, uses: backup.verify, with: { repository: vault, read_data: 100 } }
";
const READY: &str = "runbook: ready
steps:
  - { id: ready, uses: readiness.check, with: { region: east, services: [scoring], max_proof_age: 1d, max_backup_age: 1d } }
";

#[test]
fn drill_of_a_restore_where_there_is_no_lab() {
    let desk = Desk::new();
    fs::create_dir_all(desk.path("artifacts/deep")).unwrap();
    for (name, bytes) in [("model.bin", vec![7; 300_000]), ("deep/labels.txt", b"cat\ndog\n".to_vec()), ("empty", Vec::new())] {
        fs::write(desk.path("artifacts").join(name), bytes).unwrap();
    }
    for (name, text) in [("muster.yaml", ESTATE), ("password", "tide\n"), ("runbooks/back.yaml", BACK), ("runbooks/ready.yaml", READY)] {
        fs::write(desk.path(name), text).unwrap();
    }
    let backed = desk.muster(&["run", "back"]);
    assert_eq!(backed.code, Some(0), "{backed:?}");
    let ready = |desk: &Desk| {
        let ran = desk.muster(&["run", "ready", "--live"]);
        (ran.code == Some(0), ran.result().to_string())
    };
    let (good, said) = ready(&desk);
    assert!(!good && said.contains("repository/vault proof: never"), "{said}");
    by_hand(&desk, 1, "never");

    let ran = desk.muster(&["drill", "run", "artifact-restore"]);
    assert_eq!((ran.code, &ran.result()["verdict"]), (Some(0), &"pass".into()), "{ran:?}");
    measured(ran.result());
    assert_eq!(ran.result()["restore"]["files"], 3);
    let (good, said) = ready(&desk);
    assert!(good, "{said}");
    by_hand(&desk, 0, "proven");
    let page = desk.muster(&["drill", "report", "--output", "report.html"]);
    assert_eq!(page.code, Some(0), "{page:?}");
    assert!(fs::read_to_string(desk.path("report.html")).unwrap().contains("Recovered point"));

    // Held to what it cannot meet, it says by how much.
    let shipped = fs::read_to_string(desk.path("drills/artifact-restore.yaml")).unwrap();
    let hasty = shipped.replace("drill: artifact-restore", "drill: hasty").replace("rpo: 24h", "rpo: 1ms");
    fs::write(desk.path("drills/hasty.yaml"), hasty).unwrap();
    let ran = desk.muster(&["drill", "run", "hasty"]);
    assert_eq!((ran.code, &ran.result()["verdict"]), (Some(1), &"fail".into()), "{ran:?}");
    assert!(reasons(ran.result()).contains("age of the recovered point"), "{ran:?}");

    nothing_that_serves_is_touched(&desk, &shipped);
    damaged_and_repaired(&desk, ready);
    desk.evidence_holds();
}

/// The same asked by a person, who needs no journal for it.
fn by_hand(desk: &Desk, code: i32, proof: &str) {
    let asked = desk.muster(&["readiness", "east", "--service", "scoring", "--max-proof-age", "1d", "--state", "elsewhere"]);
    let told = asked.result();
    assert_eq!((asked.code, &told["ready"]), (Some(code), &(code == 0).into()), "{asked:?}");
    let states: Vec<&Value> = told["repositories"].as_array().unwrap().iter().map(|finding| &finding["state"]).collect();
    assert_eq!(states, ["fresh", proof], "{told}");
    assert_eq!(told["regions"]["east"][0]["state"], "nothing_there", "{told}");
    assert!(!desk.path("elsewhere").exists(), "nothing is kept");
    let status = desk.muster(&["status"]);
    assert_eq!(
        (&status.result()["proofs"][0]["what"], &status.result()["proofs"][0]["state"]),
        (&"repository/vault proof".into(), &proof.into())
    );
}

/// Outside a lab a step that may change something is refused before the drill begins.
fn nothing_that_serves_is_touched(desk: &Desk, shipped: &str) {
    let acts = "runbook: acts\nsteps:\n  - { id: act, uses: exec.command, with: { argv: [touch, touched] } }\n";
    fs::write(desk.path("runbooks/acts.yaml"), acts).unwrap();
    let drill = shipped.replace("drill: artifact-restore", "drill: acting").replace("runbook: artifact-restore", "runbook: acts");
    fs::write(desk.path("drills/acting.yaml"), drill).unwrap();
    let ran = desk.muster(&["drill", "run", "acting"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(!desk.path("touched").exists() && format!("{ran:?}").contains("may change what serves"), "{ran:?}");
}

fn damaged_and_repaired(desk: &Desk, ready: impl Fn(&Desk) -> (bool, String)) {
    let before = damage(&desk.path("vault"));
    let ran = desk.muster(&["drill", "run", "artifact-restore"]);
    assert_eq!((ran.code, &ran.result()["verdict"]), (Some(1), &"fail".into()), "{ran:?}");
    assert!(reasons(ran.result()).contains("does not restore"), "{ran:?}");
    let (good, said) = ready(desk);
    assert!(!good && said.contains("repository/vault proof: failed"), "{said}");
    for (path, bytes) in before {
        fs::write(path, bytes).unwrap();
    }
    let ran = desk.muster(&["drill", "run", "artifact-restore"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ready(desk).0, "a proof after the failure makes good for it");
}
