//! People and their keys over the real program: approvals that are signed, bound and void, overrides that
//! stay visible, and what an auditor finds.

use crate::place::{Place, Said};
use serde_json::{Value, json};
use sqlx::Connection as _;
use std::process::Command;

/// A key of OpenSSH's own making.
fn keygen(place: &Place, name: &str, extra: &[&str]) -> String {
    let file = place.path(name);
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-C", name, "-f"]).arg(&file).args(extra).status();
    assert!(made.expect("ssh-keygen is installed (scripts/deps.sh)").success());
    place.read(&format!("{name}.pub")).trim().to_owned()
}

/// An estate of people: `ana`, `ben` and `dan` lead, `cid` does not.
fn people(place: &Place) {
    let line = |name: &str, role: &str| {
        let key = keygen(place, name, &["-N", ""]);
        format!("  {name}: {{ keys: [\"{key}\"], roles: [{role}], logins: [login-of-{name}] }}\n")
    };
    let people: String = [("ana", "dr-lead"), ("ben", "dr-lead"), ("cid", "guest"), ("dan", "dr-lead")].map(|(n, r)| line(n, r)).concat();
    place.file("muster.yaml", &format!("people:\n{people}"));
}

const ASKS: &str = "  - id: ok\n    uses: approval\n    with: { approvers: 2, roles: [dr-lead], expires: 10m, message: Move it }
  - id: a\n    uses: exec.command\n    with: { argv: [sh, -c, 'echo x >> @/a'] }\n";

fn started(place: &Place, by: &str) -> String {
    let said = place.muster(&["run", "book.yaml", "--by", by]).expect(3);
    assert_eq!(said.last()["status"], "waiting_approval");
    said.run()
}

fn approve(place: &Place, run: &str, step: &str, by: &str, key: &str) -> Said {
    place.muster(&["approve", run, step, "--by", by, "--key", place.path(key).to_str().unwrap()])
}

#[track_caller]
fn refused(said: Said, why: &str) {
    let said = said.expect(2);
    assert!(said.err.contains(why), "{why}: {}", said.err);
}

fn events<'v>(shown: &'v Value, kind: &str) -> Vec<&'v Value> {
    shown["events"].as_array().unwrap().iter().map(|event| &event["body"]).filter(|body| body["kind"] == kind).collect()
}

#[test]
fn two_of_the_leads_must_sign_and_the_initiator_is_not_one_of_them() {
    let place = Place::new();
    people(&place);
    place.book(ASKS);
    refused(place.muster(&["run", "book.yaml", "--by", "eve"]), "`eve` is not among the estate's people");
    assert!(!place.path(".muster/journal.db").exists(), "nothing is on record of what could never be approved");
    let run = started(&place, "login-of-dan");
    let shown = place.muster(&["show", &run]).expect(0).last();
    assert_eq!(shown["by"], "dan", "the login is the person's");
    refused(place.muster(&["approve", &run, "ok", "--by", "ana"]), "must be signed");
    refused(approve(&place, &run, "ok", "ana", "ben"), "none that the estate lists for `ana`");
    refused(approve(&place, &run, "ok", "eve", "ana"), "lists no person `eve`");
    refused(approve(&place, &run, "ok", "cid", "cid"), "takes dr-lead");
    refused(approve(&place, &run, "ok", "dan", "dan"), "`dan` started the run");
    refused(place.muster(&["skip", &run, "ok", "--reason", "no time"]), "not skipped");
    approve(&place, &run, "ok", "ana", "ana").expect(0);
    refused(approve(&place, &run, "ok", "ana", "ana"), "ana has approved step `ok` already");
    let waits = place.muster(&["resume", &run]).expect(3);
    assert!(waits.err.contains("1 of 2, given by ana") && waits.err.contains("; ben may approve it, signed"), "{}", waits.err);
    assert!(!place.path("a").exists());
    // By hand, as with an agent or a hardware key.
    let printed = place.plain(&["approve", &run, "ok", "--by", "ben", "--print"]).expect(0);
    std::fs::write(place.path("statement"), &printed.out).unwrap();
    let sign = |namespace: &str| {
        let _ = std::fs::remove_file(place.path("statement.sig"));
        let args = ["-q", "-Y", "sign", "-n", namespace, "-f", "ben", "statement"];
        assert!(Command::new("ssh-keygen").args(args).current_dir(place.root()).output().unwrap().status.success());
    };
    sign("file");
    refused(place.muster(&["approve", &run, "ok", "--by", "ben", "--signature", "statement.sig"]), "made for `file`");
    sign("muster");
    place.muster(&["approve", &run, "ok", "--by", "ben", "--signature", "statement.sig"]).expect(0);
    let said = place.muster(&["resume", &run]).expect(0);
    assert_eq!((said.statuses(), place.words("a").len()), (vec!["succeeded".to_owned(); 2], 1));
    let verified = place.muster(&["evidence", "verify"]).expect(0).last();
    assert_eq!((&verified["signed"], &verified["unsigned"]), (&json!(2), &json!(0)));
    // Whose keys they were, to be held against what one knows: they stand in the record itself.
    let signers = verified["signers"].as_array().unwrap();
    let of = |n: usize| (signers[n]["by"].as_str().unwrap(), signers[n]["signatures"].as_u64().unwrap());
    assert_eq!((signers.len(), of(0), of(1)), (2, ("ana", 1), ("ben", 1)));
    let listed = Command::new("ssh-keygen").args(["-l", "-f", "ben.pub"]).current_dir(place.root()).output().unwrap();
    let key = signers[1]["key"].as_str().unwrap();
    assert!(key.starts_with("SHA256:") && String::from_utf8_lossy(&listed.stdout).contains(key), "{key}");
}

#[test]
fn openssh_verifies_what_muster_signs() {
    let place = Place::new();
    people(&place);
    place.book(ASKS);
    let run = started(&place, "dan");
    approve(&place, &run, "ok", "ana", "ana").expect(0);
    let shown = place.muster(&["show", &run]).expect(0).last();
    let signed = events(&shown, "approved")[0]["signed"].clone();
    std::fs::write(place.path("sig"), signed["signature"].as_str().unwrap()).unwrap();
    std::fs::write(place.path("statement"), signed["statement"].as_str().unwrap()).unwrap();
    place.file("allowed", &format!("ana {}\n", place.read("ana.pub").trim()));
    let verify = Command::new("ssh-keygen")
        .args(["-Y", "verify", "-f", "allowed", "-I", "ana", "-n", "muster", "-s", "sig"])
        .current_dir(place.root())
        .stdin(std::fs::File::open(place.path("statement")).unwrap())
        .output()
        .unwrap();
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stderr));
    // A key with a passphrase is not asked for one here.
    keygen(&place, "locked", &["-N", "a passphrase"]);
    refused(approve(&place, &run, "ok", "ben", "locked"), "ssh-keygen -Y sign -n muster");
    refused(approve(&place, &run, "ok", "ben", "ben.pub"), "not a private key");
}

#[test]
fn an_approval_is_void_for_another_run_another_plan_and_after_its_time() {
    let place = Place::new();
    people(&place);
    place.book(ASKS);
    let (first, second) = (started(&place, "dan"), started(&place, "dan"));
    let printed = place.plain(&["approve", &first, "ok", "--by", "ana", "--print"]).expect(0);
    std::fs::write(place.path("statement"), &printed.out).unwrap();
    let args = ["-q", "-Y", "sign", "-n", "muster", "-f", "ana", "statement"];
    assert!(Command::new("ssh-keygen").args(args).current_dir(place.root()).output().unwrap().status.success());
    refused(place.muster(&["approve", &second, "ok", "--by", "ana", "--signature", "statement.sig"]), "not over this very statement");
    // Who was taken off the list may not approve any more.
    let estate = place.read("muster.yaml");
    std::fs::write(place.path("muster.yaml"), estate.replace("  ana:", "  ann:")).unwrap();
    refused(approve(&place, &second, "ok", "ana", "ana"), "no longer among the estate's people");
    std::fs::write(place.path("muster.yaml"), &estate).unwrap();
    // Too late: refused when it is given, and nothing has come of it.
    place.book(&ASKS.replace("10m", "1s"));
    let third = started(&place, "dan");
    place.until("the time to be over", || approve(&place, &third, "ok", "ana", "ana").err.contains("the time to approve step `ok` ended"));
    let said = place.muster(&["resume", &third]).expect(3);
    assert_eq!(said.step("ok")["failure"]["code"], "approval_expired");
    assert!(said.err.contains(&format!("muster override {third} ok --reason TEXT --by PERSON --key FILE")), "{}", said.err);
    place.muster(&["retry", &third, "ok"]).expect(0);
    assert_eq!(place.muster(&["resume", &third]).expect(3).last()["status"], "waiting_approval", "asked anew");
    assert!(!place.path("a").exists());
}

/// A check whose answer stands in a file, and an approval with a bound on it.
const BOUND: &str = "  - id: look\n    uses: exec.command\n    with: { argv: [sh, -c, 'echo look >> @/log; cat @/lag'], read_only: true }
  - id: ok\n    uses: approval\n    with:\n      facts: { lag: { value: \"{{ steps.look.output | trim }}\", at_most: 30s } }
  - id: a\n    uses: exec.command\n    with: { argv: [sh, -c, 'echo x >> @/a'] }\n";

#[test]
fn a_fact_out_of_its_bound_voids_what_was_approved() {
    let place = Place::new();
    people(&place);
    place.file("lag", "12s\n").book(BOUND);
    let run = started(&place, "dan");
    let printed = place.plain(&["approve", &run, "ok", "--by", "ana", "--print"]).expect(0);
    assert!(printed.out.contains("fact: lag = \"12s\"; at most \"30s\"\n"), "{}", printed.out);
    approve(&place, &run, "ok", "ana", "ana").expect(0);
    // The replica falls behind between the signature and the deed.
    place.file("lag", "45s\n");
    let said = place.muster(&["resume", &run]).expect(3);
    assert_eq!((said.last()["status"].as_str(), said.step("ok")["failure"]["code"].as_str()), (Some("paused"), Some("out_of_bounds")));
    assert!(said.err.contains("lag is \"45s\", and must be at most 30s"), "{}", said.err);
    let shown = place.muster(&["show", &run]).expect(0).last();
    assert_eq!(events(&shown, "approval_void").len(), 1, "on record");
    assert!(!place.path("a").exists());
    // It catches up: asked anew, and the old signature is no answer to the new question.
    place.file("lag", "1s\n");
    place.muster(&["retry", &run, "ok"]).expect(0);
    assert_eq!(place.muster(&["resume", &run]).expect(3).last()["status"], "waiting_approval");
    approve(&place, &run, "ok", "ben", "ben").expect(0);
    assert_eq!(place.muster(&["resume", &run]).expect(0).statuses(), ["succeeded"; 3]);
    assert_eq!(place.words("a").len(), 1);
    place.muster(&["evidence", "verify"]).expect(0);
}

#[test]
fn what_a_step_is_about_to_do_is_approved_before_it_is_done() {
    let place = Place::new();
    people(&place);
    place.book("  - id: a\n    uses: exec.command\n    approve: { roles: [dr-lead], message: Really }\n    with: { argv: [sh, -c, 'echo x >> @/a'] }\n");
    let run = started(&place, "dan");
    assert!(!place.path("a").exists());
    let shown = place.muster(&["show", &run]).expect(0).last();
    let (prepared, asked) = (events(&shown, "prepared")[0], events(&shown, "approval_asked")[0]);
    assert_eq!(asked["over"], prepared["hash"], "the intent itself");
    approve(&place, &run, "a", "ana", "ana").expect(0);
    let said = place.muster(&["resume", &run]).expect(0);
    assert_eq!((said.statuses(), place.words("a").len()), (vec!["succeeded".to_owned()], 1));
    let shown = place.muster(&["show", &run]).expect(0).last();
    assert_eq!(events(&shown, "prepared").len(), 2, "prepared afresh, and the same: the approval stands");
    place.muster(&["evidence", "verify"]).expect(0);
}

#[test]
fn an_override_is_marked_in_every_view() {
    let place = Place::new();
    people(&place);
    place.book(
        "  - id: look\n    uses: exec.command\n    with: { argv: [sh, -c, 'exit 1'], read_only: true }
  - id: a\n    uses: exec.command\n    with: { argv: [sh, -c, 'echo x >> @/a; exit 1'] }\n    on_failure: continue\n",
    );
    let run = place.muster(&["run", "book.yaml", "--by", "dan"]).expect(3).run();
    let overrule = |by: &str, reason: &str| {
        place.muster(&["override", &run, "look", "--reason", reason, "--by", by, "--key", place.path(by).to_str().unwrap()])
    };
    refused(place.muster(&["override", &run, "look", "--reason", "seen", "--by", "ana"]), "must be signed");
    refused(overrule("ana", " "), "needs a reason");
    overrule("ana", "looked by hand").expect(0);
    refused(overrule("ben", "as well"), "only a guard is overridden");
    let said = place.muster(&["resume", &run]).expect(0);
    assert_eq!(said.statuses(), ["skipped", "failed_ignored"], "never a success");
    assert_eq!((&said.step("look")["overridden"]["by"], &said.step("look")["overridden"]["signed"]), (&json!("ana"), &json!(true)));
    assert_eq!((&said.last()["overridden"], &said.last()["reason"]), (&json!(["look"]), &json!("step `look` was overridden by ana")));
    refused(place.muster(&["override", &run, "a", "--reason", "x"]), "has ended");
    let row = place.muster(&["runs"]).expect(0).last()["runs"][0].clone();
    assert_eq!((&row["status"], &row["overridden"]), (&json!("succeeded"), &json!(true)));
    assert!(place.plain(&["runs"]).expect(0).out.contains("succeeded (overridden)"));
    let shown = place.plain(&["show", &run]).expect(0).out;
    for mark in ["status    succeeded (overridden)", "skipped (overridden)", "OVERRIDDEN by ana (signed)", "looked by hand"] {
        assert!(shown.contains(mark), "{mark}: {shown}");
    }
    place.muster(&["evidence", "verify"]).expect(0);
}

#[tokio::test]
async fn who_rewrites_the_record_cannot_make_the_signatures() {
    let place = Place::new();
    people(&place);
    place.book(&ASKS.replace("approvers: 2", "approvers: 1"));
    let run = started(&place, "dan");
    approve(&place, &run, "ok", "ana", "ana").expect(0);
    place.muster(&["resume", &run]).expect(0);
    place.muster(&["evidence", "verify"]).expect(0);
    rewrite(&place, "\"by\":\"ana\"", "\"by\":\"ben\"").await;
    let found = place.muster(&["evidence", "verify"]).expect(1).last();
    let problems = found["problems"].to_string();
    assert!(problems.contains("what `ben` is said to have signed does not hold"), "{problems}");
    assert!(!problems.contains("does not follow"), "the chain itself was forged well: {problems}");
}

/// Forges a chain as somebody would who owns the store: every record, hash, column and head is made to fit.
async fn rewrite(place: &Place, from: &str, to: &str) {
    use sha2::Digest as _;
    use sqlx::Row as _;
    let hash = |bytes: &[u8]| hex::encode(sha2::Sha256::digest(bytes));
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(place.path(".muster/journal.db"));
    let mut db = sqlx::sqlite::SqliteConnection::connect_with(&options).await.unwrap();
    for trigger in ["events_keep", "events_stay", "heads_keep", "heads_stay"] {
        sqlx::query(sqlx::AssertSqlSafe(format!("DROP TRIGGER IF EXISTS {trigger}"))).execute(&mut db).await.unwrap();
    }
    let (mut prev, mut hashes) = (String::new(), std::collections::BTreeMap::new());
    for row in sqlx::query("SELECT seq, record FROM events ORDER BY seq").fetch_all(&mut db).await.unwrap() {
        let record = String::from_utf8(row.get(1)).unwrap();
        let event: serde_json::Value = serde_json::from_str(&record).unwrap();
        let old = event["prev"].as_str().unwrap();
        let new = record.replace(from, to).replace(&format!("\"prev\":\"{old}\""), &format!("\"prev\":\"{prev}\""));
        let done = hash(new.as_bytes());
        sqlx::query("UPDATE events SET hash = ?, record = ? WHERE seq = ?")
            .bind(hex::decode(&done).unwrap())
            .bind(new.into_bytes())
            .bind(row.get::<i64, _>(0))
            .execute(&mut db)
            .await
            .unwrap();
        hashes.insert(hash(record.as_bytes()), done.clone());
        prev = done;
    }
    sqlx::query("UPDATE chains SET head = ?").bind(&prev).execute(&mut db).await.unwrap();
    let mut last = String::new();
    for row in sqlx::query("SELECT n, prev, record FROM heads ORDER BY n").fetch_all(&mut db).await.unwrap() {
        let mut record = String::from_utf8(row.get(2)).unwrap();
        let old: String = row.get(1);
        record = record.replace(&format!("\"prev\":\"{old}\""), &format!("\"prev\":\"{last}\""));
        for (was, is) in &hashes {
            record = record.replace(was, is);
        }
        let done = hash(record.as_bytes());
        sqlx::query("UPDATE heads SET prev = ?, hash = ?, record = ? WHERE n = ?")
            .bind(&last)
            .bind(&done)
            .bind(record.into_bytes())
            .bind(row.get::<i64, _>(0))
            .execute(&mut db)
            .await
            .unwrap();
        last = done;
    }
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut db).await.unwrap();
    db.close().await.unwrap();
}

#[test]
fn what_comes_too_late_is_answered_on_record() {
    let place = Place::new();
    // The owner is busy while two letters arrive; the second no longer applies when it is read.
    place.book("  - id: a\n    uses: exec.command\n    on_failure: pause\n    timeout: 60s\n    with: { argv: [sh, -c, 'touch @/begun; until [ -e @/go ]; do sleep 0.05; done'] }
  - id: b\n    needs: []\n    uses: exec.command\n    on_failure: pause\n    with: { argv: [sh, -c, 'touch @/b; test -e @/mended'] }\n");
    let owner = place.start(&["run", "book.yaml", "--json"]);
    place.until_there("begun");
    let run = place.newest();
    place.until("b to fail", || place.muster(&["show", &run]).step("b")["status"] == "failed");
    owner.signal("STOP");
    for _ in 0..2 {
        place.muster(&["retry", &run, "b"]).expect(0);
    }
    place.file("mended", "");
    owner.signal("CONT");
    place.until("the answer", || !events(&place.muster(&["show", &run]).last(), "command_refused").is_empty());
    place.file("go", "");
    owner.end();
    let shown = place.muster(&["show", &run]).last();
    let refusals = events(&shown, "command_refused");
    assert_eq!((refusals.len(), &refusals[0]["command"], &refusals[0]["step"]), (1, &json!("retry"), &json!("b")));
    assert!(place.plain(&["show", &run]).out.contains("refused: retry b by "));
}

#[test]
fn what_is_not_known_is_shown_with_all_that_was_seen() {
    let place = Place::new();
    place.book("  - id: a\n    uses: exec.command\n    timeout: 1s\n    with: { argv: [sh, -c, 'echo x >> @/tries; sleep 300'] }\n");
    let run = place.run_book().expect(3).run();
    let said = place.muster(&["show", &run]).expect(3);
    let unknown = said.last()["unknown"][0].clone();
    assert_eq!((&unknown["step"], &unknown["attempt"]["attempt"], &unknown["attempt"]["epoch"]), (&json!("a"), &json!(1), &json!(1)));
    assert!(unknown["attempt"]["owner"].as_str().unwrap().starts_with("muster@"));
    assert!(unknown["observed"].as_array().unwrap().len() >= 2, "{unknown}");
    assert_eq!(unknown["commands"][0], format!("muster resolve {run} a --as done --reason TEXT"));
    let text = place.plain(&["show", &run]).expect(3).out;
    for part in ["whether it happened is not known", "attempt 1 was begun at", "under epoch 1", "idempotency key", "resolve"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    place.muster(&["resolve", &run, "a", "--as", "done", "--reason", "saw it"]).expect(0);
    place.muster(&["resume", &run]).expect(0);
    let said = place.muster(&["show", &run]).expect(0);
    assert!(said.step("a")["resolved"].as_str().unwrap().starts_with("done, says "), "{}", said.out);
    assert!(place.plain(&["show", &run]).out.contains("what had happened was not known; done, says"));
}
