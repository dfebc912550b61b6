//! Statements and signatures: what binds, what does not count, and that OpenSSH's own tool agrees.

use super::*;
use crate::model::{
    estate::Person,
    event::{Body, Event},
    node::{Node, Pos},
    runbook::*,
    time::Span,
};
use crate::plan::state::fold;
use serde_json::json;
use ssh_key::{
    HashAlg, LineEnding, PrivateKey,
    private::{Ed25519Keypair, KeypairData},
};

fn key(seed: u8) -> PrivateKey {
    PrivateKey::new(KeypairData::Ed25519(Ed25519Keypair::from_seed(&[seed; 32])), "test").unwrap()
}

fn estate() -> Estate {
    let person = |seed: u8, role: &str| Person {
        keys: vec![key(seed).public_key().to_openssh().unwrap()],
        roles: vec![role.to_owned()],
        logins: Vec::new(),
    };
    let people = [("ana", person(1, "dr-lead")), ("ben", person(2, "dr-lead")), ("cid", person(3, "guest")), ("dan", person(4, "dr-lead"))];
    Estate { people: people.into_iter().map(|(name, person)| (name.into(), person)).collect(), ..Estate::default() }
}

fn fact(value: &str, at_most: serde_json::Value) -> Fact {
    Fact { value: json!(value), at_most: Some(Bound(at_most)), at_least: None, equals: None }
}

fn plan(inputs: &str) -> Plan {
    let approval = Approval {
        approvers: 2,
        roles: vec!["dr-lead".into()],
        facts: BTreeMap::from([("lag".to_owned(), fact("{{ x }}", json!("30s")))]),
        ..Approval::default()
    };
    let step = PlanStep {
        id: "declare".into(),
        kind: StepKind::Approval(approval),
        needs: Vec::new(),
        with: Node::empty_map(),
        when: None,
        retry: Retry::default(),
        timeout: Span::from_secs(60),
        on_failure: OnFailure::Pause,
        undo: UndoPolicy::None,
        reach: Vec::new(),
        approve: None,
        pos: Pos::default(),
    };
    Plan {
        runbook: "book".into(),
        file: "book.yaml".into(),
        digest: String::new(),
        mode: None,
        scope: Scope::Live,
        live: true,
        inputs: BTreeMap::from([("to".to_owned(), json!(inputs))]),
        waive: Vec::new(),
        estate: estate().into(),
        locks: Vec::new(),
        steps: vec![step],
    }
}

fn now() -> jiff::Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn event(seq: u64, actor: &str, at: jiff::Timestamp, body: Body) -> Event {
    Event { run: "r-1".into(), seq, at, actor: actor.into(), epoch: 1, body, prev: String::new() }
}

/// A run that `dan` started, and that asks.
fn asked(plan: Plan) -> RunState {
    let over = plan_digest(&plan);
    let mut state = RunState::new(&event(1, "dan", now(), Body::RunCreated { plan: plan.into(), drill: None })).unwrap();
    let expires_at = now() + jiff::SignedDuration::from_secs(900);
    let facts = BTreeMap::from([("lag".to_owned(), json!(12_000))]);
    let body = Body::ApprovalAsked { step: "declare".into(), over, approvers: 2, expires_at, message: None, facts };
    fold(&mut state, &event(2, "muster", now(), body));
    state
}

fn signed(statement: &str, seed: u8, namespace: &str) -> Signed {
    let key = key(seed);
    let signature = key.sign(namespace, HashAlg::Sha512, statement.as_bytes()).unwrap().to_pem(LineEnding::LF).unwrap();
    Signed { statement: statement.to_owned(), key: fingerprint(key.public_key()), signature }
}

fn said(state: &RunState, by: &str) -> String {
    statement(state, &"r-1".into(), &"declare".into(), by, Act::Approve).unwrap()
}

fn checked(state: &RunState, run: &str, by: &str, signed: Option<&Signed>) -> Result<(), String> {
    check(state, &run.into(), &"declare".into(), by, signed, now())
}

#[test]
fn the_statement_is_one_text_that_says_all_of_it() {
    let state = asked(plan("west"));
    let digest = plan_digest(&state.plan);
    assert_eq!(
        said(&state, "ana"),
        format!(
            "muster statement 1\nact: approve\nrun: r-1\nrunbook: book\nstep: declare\nby: ana\nplan: sha256:{digest}\nrequest: 2\nover: sha256:{digest}\n\
             fact: lag = 12000; at most \"30s\"\nexpires: 2026-01-01T00:15:00.000Z\n"
        )
    );
    let odd = statement(&state, &"r-1".into(), &"declare".into(), "ana\nact: x", Act::Approve).unwrap();
    assert!(odd.contains(r#"by: "ana\nact: x""#), "no name can pretend to be a line: {odd}");
}

#[test]
fn a_signature_counts_for_one_person_one_request_one_plan() {
    let state = asked(plan("west"));
    let good = signed(&said(&state, "ana"), 1, NAMESPACE);
    assert_eq!(checked(&state, "r-1", "ana", Some(&good)), Ok(()));
    let cases: [(&str, Option<Signed>, &str); 9] = [
        ("ana", None, "must be signed"),
        ("ana", Some(signed(&said(&state, "ana"), 2, NAMESPACE)), "none that the estate lists for `ana`"),
        ("ana", Some(signed(&said(&state, "ana"), 1, "file")), "made for `file`"),
        ("ana", Some(Signed { signature: "-----".into(), ..good.clone() }), "not an SSH signature"),
        ("ana", Some(Signed { statement: good.statement.replace("12000", "1"), ..good.clone() }), "not what step `declare` asks"),
        ("ben", Some(good.clone()), "not what step `declare` asks"),
        ("eve", Some(signed(&said(&state, "eve"), 5, NAMESPACE)), "lists no person `eve`"),
        ("cid", Some(signed(&said(&state, "cid"), 3, NAMESPACE)), "takes dr-lead"),
        ("dan", Some(signed(&said(&state, "dan"), 4, NAMESPACE)), "started the run"),
    ];
    for (by, signed, why) in cases {
        let refused = checked(&state, "r-1", by, signed.as_ref()).unwrap_err();
        assert!(refused.contains(why), "{by}: {refused}");
    }
    assert!(checked(&state, "r-2", "ana", Some(&good)).is_err(), "another run");
    assert!(checked(&asked(plan("east")), "r-1", "ana", Some(&good)).is_err(), "another plan");
    let late = check(&state, &"r-1".into(), &"declare".into(), "ana", Some(&good), now() + jiff::SignedDuration::from_secs(900));
    assert!(late.unwrap_err().contains("ended at"));
}

#[test]
fn the_fold_counts_only_what_holds_and_a_new_request_begins_at_none() {
    let mut state = asked(plan("west"));
    let over = plan_digest(&state.plan);
    let approve = |state: &mut RunState, seq, by: &str, signed: Option<Signed>| {
        fold(state, &event(seq, by, now(), Body::Approved { step: "declare".into(), by: by.into(), over: over.clone(), signed }));
    };
    let good = signed(&said(&state, "ana"), 1, NAMESPACE);
    approve(&mut state, 3, "ben", None);
    approve(&mut state, 4, "ben", Some(good.clone()));
    assert!(state.steps["declare"].approvals.is_empty(), "neither unsigned nor in another's name");
    approve(&mut state, 5, "ana", Some(good.clone()));
    approve(&mut state, 6, "ana", Some(good.clone()));
    assert_eq!(state.steps["declare"].approvals.len(), 1);
    let expires_at = now() + jiff::SignedDuration::from_secs(900);
    let facts = state.steps["declare"].asked.as_ref().unwrap().facts.clone();
    let again = Body::ApprovalAsked { step: "declare".into(), over: over.clone(), approvers: 2, expires_at, message: None, facts };
    fold(&mut state, &event(7, "muster", now(), again));
    approve(&mut state, 8, "ana", Some(good));
    assert!(state.steps["declare"].approvals.is_empty(), "a replay to another request of the same run");
}

#[test]
fn bounds_hold_for_numbers_lengths_and_words() {
    let approval = |fact: Fact| Approval { facts: BTreeMap::from([("f".to_owned(), fact)]), ..Approval::default() };
    let beyond = |fact: Fact, value: Value| !outside(&approval(fact), &BTreeMap::from([("f".to_owned(), value)])).is_empty();
    let most = |bound: Value| fact("", bound);
    assert!(!beyond(most(json!("30s")), json!(30_000)) && beyond(most(json!("30s")), json!(30_001)));
    assert!(!beyond(most(json!("1m")), json!("30s")) && beyond(most(json!(5)), json!("6")));
    assert!(beyond(most(json!(5)), json!(null)) && beyond(most(json!(5)), json!("much")), "what cannot be compared is not within");
    let least = Fact { at_most: None, at_least: Some(Bound(json!(2))), ..most(json!(1)) };
    assert!(!beyond(least.clone(), json!(2)) && beyond(least, json!(1)));
    let equals = Fact { at_most: None, equals: Some(json!("streaming")), ..most(json!(1)) };
    assert!(!beyond(equals.clone(), json!("streaming")) && beyond(equals, json!("stalled")));
    assert_eq!(outside(&approval(most(json!(1))), &BTreeMap::new()), ["f is not known"]);
}

#[test]
fn an_override_is_over_this_very_failure_and_reason() {
    let mut state = asked(plan("west"));
    fold(
        &mut state,
        &event(
            3,
            "muster",
            now(),
            Body::StepEnded { step: "declare".into(), status: crate::model::status::StepStatus::Failed, failure: None },
        ),
    );
    let (run, step) = (RunId::from("r-1"), StepId::from("declare"));
    let text = statement(&state, &run, &step, "dan", Act::Override("no lead is awake")).unwrap();
    let good = signed(&text, 4, NAMESPACE);
    assert_eq!(
        check_override(&state, &run, &step, "dan", "no lead is awake", Some(&good)),
        Ok(()),
        "who started it may, and it is on record"
    );
    assert!(check_override(&state, &run, &step, "dan", "another reason", Some(&good)).is_err());
    assert!(check_override(&state, &run, &step, "dan", "no lead is awake", None).unwrap_err().contains("must be signed"));
    let guest = signed(&statement(&state, &run, &step, "cid", Act::Override("x")).unwrap(), 3, NAMESPACE);
    assert!(check_override(&state, &run, &step, "cid", "x", Some(&guest)).unwrap_err().contains("takes dr-lead"));
    // The same step failing again is another failure.
    fold(&mut state, &event(4, "dan", now(), Body::RetryRequested { step: step.clone(), by: "dan".into() }));
    fold(
        &mut state,
        &event(5, "muster", now(), Body::StepEnded { step: step.clone(), status: crate::model::status::StepStatus::Failed, failure: None }),
    );
    assert!(check_override(&state, &run, &step, "dan", "no lead is awake", Some(&good)).is_err());
}
