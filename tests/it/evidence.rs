//! `muster evidence verify` through the real program, over the journal of a real run that somebody changed.

use sqlx::Connection as _;
use std::{
    path::Path,
    process::{Command, Output},
};

fn muster(state: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command
        .args(args)
        .arg("--state")
        .arg(state)
        .current_dir(state.parent().unwrap())
        .env_remove("MUSTER_STATE")
        .env_remove("MUSTER_ESTATE");
    command.output().unwrap()
}

/// A state directory with a run that succeeded.
fn recorded(home: &Path) -> std::path::PathBuf {
    std::fs::create_dir_all(home.join("runbooks")).unwrap();
    let step = |id: &str| format!("  - id: {id}\n    uses: exec.command\n    with: {{ argv: [\"true\"] }}\n");
    std::fs::write(home.join("runbooks/quick.yaml"), format!("runbook: quick\nsteps:\n{}{}", step("first"), step("second"))).unwrap();
    let state = home.join("state");
    let run = muster(&state, &["run", "quick"]);
    assert_eq!(run.status.code(), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
    state
}

fn verify(state: &Path) -> (Option<i32>, String) {
    let output = muster(state, &["evidence", "verify"]);
    (output.status.code(), format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

/// Changes the database behind Muster's back, as somebody would who knows SQL.
async fn sql(state: &Path, statements: &[&str]) {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(state.join("journal.db"));
    let mut connection = sqlx::sqlite::SqliteConnection::connect_with(&options).await.unwrap();
    for statement in statements {
        sqlx::query(sqlx::AssertSqlSafe((*statement).to_owned())).execute(&mut connection).await.unwrap();
    }
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

const UNGUARD: &str = "DROP TRIGGER events_keep";
const UNGUARD_DELETE: &str = "DROP TRIGGER events_stay";

#[tokio::test]
async fn evidence_names_what_was_changed() {
    let cases: [(&[&str], &[&str]); 5] = [
        (
            &[UNGUARD, "UPDATE events SET record = CAST(replace(CAST(record AS TEXT), 'muster@', 'nobody@') AS BLOB) WHERE seq = 4"],
            &["event 4", "bytes do not have the hash"],
        ),
        (&[UNGUARD, "UPDATE events SET kind = 'nobody' WHERE seq = 3"], &["event 3", "columns beside it"]),
        (&[UNGUARD_DELETE, "DELETE FROM events WHERE seq = 3"], &["event 3 is missing"]),
        (&["UPDATE chains SET status = 'failed'"], &["the list says `failed`"]),
        (&[UNGUARD_DELETE, "DELETE FROM events", "DELETE FROM chains"], &["head 1", "quick", "is gone"]),
    ];
    for (changes, words) in cases {
        let home = tempfile::tempdir().unwrap();
        let state = recorded(home.path());
        let (code, text) = verify(&state);
        assert_eq!(code, Some(0), "before: {text}");
        assert!(text.starts_with("verified: ") && text.contains("head sha256:"), "{text}");
        sql(&state, changes).await;
        let (code, text) = verify(&state);
        assert_eq!(code, Some(1), "{changes:?}: {text}");
        assert!(text.contains("NOT verified"), "{changes:?}: {text}");
        for word in words {
            assert!(text.contains(word), "{changes:?} should be told with {word:?}: {text}");
        }
    }
}

#[tokio::test]
async fn evidence_that_cannot_be_read_is_no_answer() {
    let home = tempfile::tempdir().unwrap();
    let state = recorded(home.path());
    let (code, text) = verify(&home.path().join("elsewhere"));
    assert_eq!((code, text.contains("there is no journal")), (Some(2), true), "{text}");
    assert!(!home.path().join("elsewhere").exists(), "a reader makes nothing");

    sql(&state, &[]).await;
    let file = state.join("journal.db");
    let whole = std::fs::read(&file).unwrap();
    for (length, words) in [
        (0, "cut off"),
        (100, "damaged or was cut off"),
        (whole.len() / 2, "damaged or was cut off"),
        (whole.len() / 2 / 4096 * 4096, "damaged or was cut off"),
    ] {
        std::fs::write(&file, &whole[..length]).unwrap();
        for rest in ["journal.db-wal", "journal.db-shm"] {
            let _ = std::fs::remove_file(state.join(rest));
        }
        let (code, text) = verify(&state);
        assert_eq!(code, Some(2), "{length} of {} bytes: {text}", whole.len());
        assert!(text.contains(words), "{length} of {} bytes: {text}", whole.len());
    }
    std::fs::write(&file, b"this is not a database, whatever its name says, and never was one\n".repeat(100)).unwrap();
    let (code, text) = verify(&state);
    assert_eq!((code, text.contains("damaged")), (Some(2), true), "{text}");

    std::fs::write(&file, &whole).unwrap();
    sql(
        &state,
        &["INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (99, 'later', 1, x'00', 0)"],
    )
    .await;
    let (code, text) = verify(&state);
    assert_eq!((code, text.contains("a newer Muster wrote it: its schema is version 99")), (Some(2), true), "{text}");
}

#[tokio::test]
async fn evidence_looks_at_the_ledgers() {
    use muster::journal::{ChainKind, Draft, Journal as _, NewChain, chain::sha256_hex, sqlite::SqliteJournal};
    use muster::model::{event::*, ids::*, objective::*};
    let home = tempfile::tempdir().unwrap();
    let state = recorded(home.path());
    let id = RunId::from("drill-1");
    let folder = state.join("drills").join(id.as_str());
    std::fs::create_dir_all(&folder).unwrap();
    let ledger = folder.join("ledger-main.jsonl");
    std::fs::write(&ledger, "{\"id\":\"a\"}\n{\"id\":\"b\"}\n").unwrap();
    let digest = |name: &str| LedgerDigest {
        file: format!("/where/it/was/then/{name}"),
        sha256: sha256_hex(&std::fs::read(&ledger).unwrap()),
        entries: 2,
    };
    let measured = |phase, name: &str| Body::Measured {
        phase,
        instants: Instants::default(),
        rto: Rto::default(),
        rpo: Rpo::default(),
        ledger: Some(digest(name)),
        notes: std::collections::BTreeMap::new(),
    };
    let draft = |body| Draft { at: jiff::Timestamp::now(), actor: "test".to_owned(), body };
    let journal = SqliteJournal::open(&state).await.unwrap();
    let chain = NewChain { id, kind: ChainKind::Drill, name: "drill".to_owned(), parent: None, locks: Vec::new() };
    let (claim, _) = journal.create(chain, "test", draft(measured(RunRole::Main, "ledger-main.jsonl"))).await.unwrap();
    journal.append(&claim, 1, vec![draft(measured(RunRole::Then, "ledger-then.jsonl"))]).await.unwrap();

    let (code, text) = verify(&state);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("ledger-then.jsonl is not here") && text.contains("1 of 2 ledgers as measured"), "{text}");
    std::fs::write(&ledger, "{\"id\":\"a\"}\n").unwrap();
    let (code, text) = verify(&state);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("drill-1: its ledger") && text.contains("is not as it was measured"), "{text}");
    let json = muster(&state, &["evidence", "verify", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&json["verified"], &json["ledgers"][0]["state"]), (&false.into(), &"changed".into()));
}

/// What was done without the shared journal comes into it with every byte, once, and stands there as a record.
#[test]
fn a_record_is_carried_from_one_journal_to_another() {
    let home = tempfile::tempdir().unwrap();
    let state = recorded(home.path());
    let ok = |state: &Path, args: &[&str]| {
        let output = muster(state, &[args, &["--json"]].concat());
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let last = String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or("null").to_owned();
        (output.status.code(), serde_json::from_str::<serde_json::Value>(&last).unwrap(), text)
    };
    // A second run that waits for a person: it has not ended.
    let waits = "runbook: waits\nsteps:\n  - id: ok\n    uses: approval\n    with: { approvers: 1 }\n";
    std::fs::write(home.path().join("runbooks/waits.yaml"), waits).unwrap();
    assert_eq!(ok(&state, &["run", "waits"]).0, Some(3));
    let file = home.path().join("record.jsonl");
    let (code, done, text) = ok(&state, &["evidence", "export", "--out", file.to_str().unwrap()]);
    assert_eq!((code, done["chains"].as_u64()), (Some(0), Some(2)), "{text}");

    let shared = home.path().join("shared");
    let (code, done, text) = ok(&shared, &["evidence", "import", file.to_str().unwrap()]);
    assert_eq!((code, done["imported"].as_array().unwrap().len(), done["unfinished"].as_array().unwrap().len()), (Some(0), 2, 1), "{text}");
    let (code, done, _) = ok(&shared, &["evidence", "import", state.to_str().unwrap()]);
    assert_eq!((code, done["imported"].as_array().unwrap().len(), done["present"].as_array().unwrap().len()), (Some(0), 0, 2));
    assert_eq!(verify(&shared).0, Some(0));
    let runs = |state: &Path| {
        let (_, listed, _) = ok(state, &["runs"]);
        let ids: Vec<_> = listed["runs"].as_array().unwrap().iter().map(|run| run["id"].as_str().unwrap().to_owned()).collect();
        ids.into_iter().map(|id| ok(state, &["show", &id]).1["events"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(runs(&shared), runs(&state), "every event is as it was");
    // Nobody goes on with it here, whether by name or with everything that is open.
    assert_eq!(ok(&shared, &["resume"]).1["resumed"].as_array().map(Vec::len), Some(0));
    let open = ok(&shared, &["runs"]).1["runs"].as_array().unwrap().iter().find(|run| run["runbook"] == "waits").unwrap()["id"].clone();
    let (code, _, text) = ok(&shared, &["approve", open.as_str().unwrap(), "ok"]);
    assert!(code == Some(2) && text.contains("go on with it where it was begun"), "{text}");

    // One byte changed on the way, and nothing of it is taken in.
    let torn = std::fs::read_to_string(&file).unwrap().replacen("muster@", "nobody@", 3);
    std::fs::write(&file, torn).unwrap();
    let other = home.path().join("other");
    let (code, _, text) = ok(&other, &["evidence", "import", file.to_str().unwrap()]);
    assert!(code == Some(2) && text.contains("does not verify"), "{text}");
}

/// What is whole by its own hashes may still not be what it was: the end of a run that has not ended is cut off and
/// the list made to fit, or all of it is another journal. Whoever kept something finds out.
#[tokio::test]
async fn what_was_kept_is_held_against_the_journal() {
    let home = tempfile::tempdir().unwrap();
    let state = recorded(home.path());
    let fails = "runbook: fails\nsteps:\n  - id: no\n    uses: exec.command\n    with: { argv: [\"false\"] }\n";
    std::fs::write(home.path().join("runbooks/fails.yaml"), fails).unwrap();
    assert_eq!(muster(&state, &["run", "fails"]).status.code(), Some(3));
    let kept = muster(&state, &["evidence", "verify", "--json"]);
    let said: serde_json::Value = serde_json::from_slice(&kept.stdout).unwrap();
    assert_eq!(said["open"].as_array().map(Vec::len), Some(1), "{said}");
    let (file, export) = (home.path().join("kept.json"), home.path().join("record.jsonl"));
    std::fs::write(&file, &kept.stdout).unwrap();
    assert_eq!(muster(&state, &["evidence", "export", "--out", export.to_str().unwrap()]).status.code(), Some(0));
    let head = said["head"].as_str().unwrap();
    let against = |state: &Path, what: &str| {
        let output = muster(state, &["evidence", "verify", "--against", what]);
        (output.status.code(), format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
    };
    let all = [head, file.to_str().unwrap(), export.to_str().unwrap()];
    // The journal goes on, and still has what it had.
    assert_eq!(muster(&state, &["run", "quick"]).status.code(), Some(0));
    for what in all {
        let (code, text) = against(&state, what);
        assert!(code == Some(0) && text.contains("all that was kept in"), "{what}: {text}");
    }
    let wrong = [("nowhere.json", "a head (sha256:"), (home.path().join("runbooks/fails.yaml").to_str().unwrap(), "not an export")]
        .map(|(what, words)| (what.to_owned(), words));
    for (what, words) in wrong {
        let (code, text) = against(&state, &what);
        assert!(code == Some(2) && text.contains(words), "{what}: {text}");
    }

    // Cut to its first three events, and the list with it: whole by itself.
    let run = said["open"][0]["run"].as_str().unwrap();
    let cut = [
        UNGUARD_DELETE.to_owned(),
        format!("DELETE FROM events WHERE seq > 3 AND chain = (SELECT n FROM chains WHERE id = '{run}')"),
        format!(
            "UPDATE chains SET seq = 3, status = 'running', head = (SELECT lower(hex(hash)) FROM events WHERE chain = chains.n AND seq = 3) WHERE id = '{run}'"
        ),
    ];
    sql(&state, &cut.each_ref().map(String::as_str)).await;
    assert_eq!(verify(&state).0, Some(0), "{}", verify(&state).1);
    assert_eq!(against(&state, head).0, Some(0), "a head knows only its beginning");
    for what in &all[1..] {
        let (code, text) = against(&state, what);
        assert!(code == Some(1) && text.contains(run) && text.contains("it was kept, and is gone"), "{what}: {text}");
    }

    // Another journal, whole as well.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = recorded(elsewhere.path());
    assert_eq!(verify(&other).0, Some(0));
    for what in all {
        let (code, text) = against(&other, what);
        assert!(code == Some(1) && text.contains("cut off or replaced"), "{what}: {text}");
    }

    // An export is verified without a journal, and none is made.
    let empty = home.path().join("empty");
    for (args, code, words) in [
        (vec![export.to_str().unwrap()], 0, "verified: "),
        (vec![export.to_str().unwrap(), "--against", file.to_str().unwrap()], 0, "all that was kept"),
        (vec![state.to_str().unwrap()], 2, "--state"),
        (vec![file.to_str().unwrap()], 2, "not an export"),
    ] {
        let output = muster(&empty, &[&["evidence", "verify"], &args[..]].concat());
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.code() == Some(code) && text.contains(words), "{args:?}: {text}");
        assert!(!empty.exists(), "{args:?}");
    }
    let torn = std::fs::read_to_string(&export).unwrap().replacen("muster@", "nobody@", 3);
    std::fs::write(&export, torn).unwrap();
    let output = muster(&empty, &["evidence", "verify", export.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(against(&state, export.to_str().unwrap()).0, Some(2), "what does not verify holds nothing");
}
