//! What people approved is held against what was to be done, in records of before and of now.

use super::*;
use crate::model::{estate::Estate, node::*, plan::*, runbook::*, time::Span};
use serde_json::json;
use std::collections::BTreeMap;

fn plan() -> Plan {
    let step = PlanStep {
        approve: Some(Approval::default()),
        id: "only".into(),
        kind: StepKind::Action { name: "database.restore".into(), version: 1, effect: crate::model::effect::Effect::Repeatable },
        needs: Vec::new(),
        with: Node::empty_map(),
        when: None,
        retry: Retry { attempts: 1, backoff: Span::from_secs(1), max_backoff: Span::from_secs(1) },
        timeout: Span::from_secs(60),
        on_failure: OnFailure::Pause,
        undo: UndoPolicy::Manual,
        reach: Vec::new(),
        pos: Pos::default(),
    };
    Plan {
        runbook: "book".into(),
        file: "book.yaml".into(),
        digest: String::new(),
        mode: None,
        scope: Scope::Live,
        live: true,
        inputs: BTreeMap::new(),
        waive: Vec::new(),
        estate: Estate::default().into(),
        locks: Vec::new(),
        steps: vec![step],
    }
}

/// What is wrong with a run of these records, as far as approvals go.
fn problems(bodies: &[String]) -> Vec<String> {
    let created = serde_json::to_string(&Body::RunCreated { plan: plan().into(), drill: None }).unwrap();
    let rows = [&created].into_iter().chain(bodies).zip(1..).map(|(body, seq)| EventRow {
        run: "r".into(),
        seq,
        at: String::new(),
        actor: String::new(),
        epoch: 1,
        kind: String::new(),
        prev: String::new(),
        hash: String::new(),
        record: format!(r#"{{"run":"r","seq":{seq},"at":"2026-01-01T00:00:0{seq}Z","actor":"ana","epoch":1,"body":{body},"prev":""}}"#)
            .into(),
    });
    let mut problems = Vec::new();
    vouched(&Dump { events: rows.collect(), ..Dump::default() }, &mut problems);
    problems
}

/// As a restore of before was written: how the primary stood is a part of what was approved. And a number whose digits are more than a
/// reader keeps.
const OLD: &str = r#"{"repository":"vault","share":0.12345678901234567891,"to":"/srv/restored","asked":{"database":"orders","lost_at":"2026-11-26T17:35:34Z"}}"#;
const NEW: &str = r#"{"repository":"vault","to":"/srv/restored","database":"orders","asked":{"database":"orders","timeline":2}}"#;

fn prepared(intent: &str, measured: &str) -> String {
    let hash = sha256_hex(intent.as_bytes());
    format!(r#"{{"kind":"prepared","step":"only","intent":{intent},"hash":"{hash}",{measured}"change":[],"notes":[]}}"#)
}

fn asked(over: &str) -> String {
    let asked = json!({ "kind": "approval_asked", "step": "only", "over": sha256_hex(over.as_bytes()), "approvers": 1,
        "expires_at": "2026-01-01T00:10:00Z", "message": null });
    asked.to_string()
}

const MEASURED: &str = r#""measured":{"asked":{"lost_at":"2026-11-26T17:35:34Z"}},"#;

#[test]
fn what_was_approved_is_held_against_what_was_to_be_done_in_records_old_and_new() {
    for (intent, measured) in [(OLD, ""), (NEW, MEASURED)] {
        assert_eq!(problems(&[prepared(intent, measured), asked(intent)]), Vec::<String>::new(), "{intent}");
        // Somebody writes another folder beneath what was approved, and leaves the hash.
        let changed = prepared(intent, measured).replace("/srv/restored", "/srv/orders");
        let found = problems(&[changed, asked(intent)]);
        assert!(found.len() == 1 && found[0].starts_with("r event 2: what step `only` was to do does not have the hash"), "{found:?}");
        // Or makes that right as well.
        let changed = intent.replace("/srv/restored", "/srv/orders");
        let found = problems(&[prepared(&changed, measured), asked(intent)]);
        assert!(found.len() == 1 && found[0].starts_with("r event 3: step `only` was approved for something else"), "{found:?}");
    }
}

/// What is measured is put back into what was approved: it must not be a way to change it.
#[test]
fn what_is_said_to_have_been_measured_is_what_the_action_measures() {
    for more in [r#","to":"/srv/orders""#, r#","asked2":3"#] {
        let forged = format!(r#""measured":{{"asked":{{"lost_at":"2026-11-26T17:35:34Z"}}{more}}},"#);
        let found = problems(&[prepared(NEW, &forged), asked(NEW)]);
        assert!(found.len() == 1 && found[0].contains("more than its action measures"), "{more}: {found:?}");
    }
}

#[test]
fn what_was_begun_had_the_approval_that_it_asks_for() {
    let approved = json!({ "kind": "approved", "step": "only", "by": "ben", "over": sha256_hex(NEW.as_bytes()) }).to_string();
    let applying = json!({ "kind": "applying", "step": "only", "attempt": 1, "epoch": 1, "key": "k" }).to_string();
    let all = [prepared(NEW, MEASURED), asked(NEW), approved, applying.clone()];
    assert_eq!(problems(&all), Vec::<String>::new());
    let found = problems(&[prepared(NEW, MEASURED), asked(NEW), applying.clone()]);
    assert!(found.len() == 1 && found[0].contains("begun without the approval"), "{found:?}");
    // Another intent after the approval, and its own hash with it.
    let other = NEW.replace("/srv/restored", "/srv/orders");
    let found = problems(&[all[0].clone(), all[1].clone(), all[2].clone(), prepared(&other, MEASURED), applying]);
    assert!(found.len() == 1 && found[0].contains("begun without the approval"), "{found:?}");
}
