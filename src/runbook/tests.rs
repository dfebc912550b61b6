//! The language as its users meet it: every kind of mistake with the diagnostic that it earns, and the
//! files that are shipped, which must be right. The catalogue here has the actions' forms and no actions.

use super::{
    compile::compile,
    diagnostic::Diagnostic,
    lint::{check_drill, check_runbook},
    load::{Loaded, LoadedDrill, LoadedEstate, LoadedRunbook, load, load_drill, load_estate, load_runbook},
    reach::{lint_reach, path, waive},
    schema,
};
use crate::model::{
    catalogue::{ActionInfo, Catalogue},
    effect::{Danger, Effect, Place, Plane, Reach, Resource, Site},
    estate::Estate,
    ids::{BucketName, DatabaseName, EndpointName, RegionName, RepositoryName, StepId},
    node::{Node, NodeValue},
    plan::{Plan, Scope},
    runbook::{Mode, OnFailure, UndoPolicy},
    time::Span,
};
use schemars::JsonSchema;
use std::{collections::BTreeMap, path::Path};

macro_rules! inputs {
    ($($name:ident { $($field:ident: $kind:ty),* $(,)? })+) => {$(
        #[derive(JsonSchema, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(dead_code)]
        struct $name { $($field: $kind),* }
    )+};
}

inputs! {
    Readiness { region: RegionName, max_replica_lag: Option<Span>, max_backup_age: Option<Span> }
    Back { repository: RepositoryName, bucket: Option<BucketName>, region: Option<RegionName>, tags: Vec<String> }
    Check { repository: RepositoryName, read_data: u8 }
    Prove { repository: RepositoryName, snapshot: String }
    Copy { bucket: BucketName, from: RegionName, to: RegionName }
    AtRegion { database: DatabaseName, region: RegionName }
    Replica { database: DatabaseName, region: RegionName, max_lag: Option<Span>, content: Option<bool> }
    Fence { database: DatabaseName, region: RegionName, planned: Option<bool> }
    Promote { database: DatabaseName, region: RegionName, proof: Proof }
    Switch { database: DatabaseName, to: RegionName, max_pause: Option<Span> }
    Rejoin { database: DatabaseName, region: RegionName, primary: RegionName }
    Shift { endpoint: EndpointName, to: RegionName }
    Golden { endpoint: EndpointName, tolerance: Option<f64> }
    Exec { argv: Vec<String>, env: Option<BTreeMap<String, String>> }
    Steer { bucket: BucketName, region: RegionName, take_over: Option<String>, no_wheel: Option<String> }
    Fenced { proof: Proof }
    Switched { from: RegionName }
    Proof { epoch: u64, region: RegionName }
    Nothing {}
}

struct Forms;

fn form<I: JsonSchema, O: JsonSchema>(name: &'static str, effect: Effect) -> ActionInfo {
    ActionInfo {
        name,
        version: 1,
        summary: "for tests",
        effect,
        danger: Danger::Reversible,
        undo: UndoPolicy::Manual,
        timeout: Span::from_secs(60),
        example: "",
        input: schemars::schema_for!(I).to_value(),
        output: schemars::schema_for!(O).to_value(),
    }
}

fn forms() -> Vec<ActionInfo> {
    vec![
        form::<Readiness, Nothing>("readiness.check", Effect::Read),
        form::<Back, Nothing>("backup.create", Effect::Observable),
        form::<Prove, Nothing>("backup.prove", Effect::Observable),
        form::<Check, Nothing>("backup.verify", Effect::Read),
        form::<Copy, Nothing>("bucket.backup", Effect::Repeatable),
        form::<Copy, Nothing>("bucket.verify", Effect::Read),
        form::<AtRegion, Nothing>("database.snapshot", Effect::Observable),
        form::<Replica, Nothing>("database.verify_replica", Effect::Read),
        form::<Fence, Fenced>("database.fence", Effect::Repeatable),
        form::<Promote, Nothing>("database.promote", Effect::Observable),
        form::<Promote, Nothing>("database.admit", Effect::Repeatable),
        form::<Rejoin, Nothing>("database.rejoin", Effect::Observable),
        form::<Switch, Switched>("database.switchover", Effect::Observable),
        form::<Shift, Nothing>("dns.shift", Effect::Repeatable),
        form::<Golden, Nothing>("model.golden", Effect::Read),
        form::<Steer, Nothing>("wheel.take", Effect::Repeatable),
        form::<Steer, Nothing>("wheel.release", Effect::Repeatable),
        form::<Exec, Nothing>("exec.command", Effect::OneShot),
    ]
}

fn word(with: &Node, key: &str) -> Option<String> {
    match &with.get(key)?.value {
        NodeValue::Text { text, .. } => Some(text.clone()),
        NodeValue::Typed(value) => value.as_str().map(ToOwned::to_owned),
        _ => None,
    }
}

impl Catalogue for Forms {
    fn names(&self) -> Vec<&'static str> {
        forms().iter().map(|form| form.name).collect()
    }
    fn info(&self, action: &str) -> Option<ActionInfo> {
        forms().into_iter().find(|form| form.name == action)
    }
    fn effect(&self, action: &str, _: &Node) -> Effect {
        self.info(action).map_or(Effect::OneShot, |form| form.effect)
    }
    fn reach(&self, action: &str, with: &Node, _: &Estate) -> Vec<Reach> {
        match (action, word(with, "region")) {
            ("dns.shift", _) => vec![Reach { place: Place::Global, plane: Plane::Control }],
            ("database.promote", Some(region)) => vec![Reach { place: Place::Region(region.into()), plane: Plane::Control }],
            _ => Vec::new(),
        }
    }
    fn locks(&self, _: &str, with: &Node) -> Vec<Resource> {
        word(with, "database").map(|name| Resource(format!("database/{name}"))).into_iter().collect()
    }
}

fn read(path: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

fn lab() -> LoadedEstate {
    load_estate("muster.yaml", &read("muster.yaml")).unwrap_or_else(|found| panic!("{}", text(&found)))
}
fn shipped(path: &str) -> LoadedRunbook {
    load_runbook(path, &read(path)).unwrap_or_else(|found| panic!("{}", text(&found)))
}
fn drill(text_of: &[u8]) -> LoadedDrill {
    load_drill("drill.yaml", text_of).unwrap_or_else(|found| panic!("{}", text(&found)))
}
fn runbook(yaml: &str) -> LoadedRunbook {
    load_runbook("test.yaml", yaml.as_bytes()).unwrap_or_else(|found| panic!("{}", text(&found)))
}
fn text(found: &[Diagnostic]) -> String {
    found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n")
}
fn given(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn check(file: &str, bytes: &[u8]) -> Vec<Diagnostic> {
    let estate = lab().estate;
    match load(file, bytes) {
        Err(found) => found,
        Ok(Loaded::Estate(_)) => Vec::new(),
        Ok(Loaded::Runbook(loaded)) => check_runbook(&loaded, Some(&estate), &Forms),
        Ok(Loaded::Drill(loaded)) => {
            let then = shipped("runbooks/failback.yaml");
            check_drill(&loaded, &estate, Some(&shipped("runbooks/regional-failover.yaml")), Some(&then))
        }
    }
}

#[test]
fn every_mistake_has_its_diagnostic() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bad");
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .expect("the fixtures")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .collect();
    names.sort();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        let file = format!("tests/fixtures/bad/{name}");
        let found = check(&file, &read(&file));
        assert!(found.iter().any(Diagnostic::is_error), "{file} must be refused");
        insta::assert_snapshot!(name.trim_end_matches(".yaml"), text(&found));
    }
}

#[test]
fn ten_megabytes_are_refused_at_once() {
    let found = check("big.yaml", &vec![b' '; 10 << 20]);
    insta::assert_snapshot!("ten-megabytes", text(&found));
}

#[test]
fn diagnostics_have_a_form_for_programs() {
    let found = check("test.yaml", b"runbook: x\nsteps: [{ id: a, uses: exec.command, with: { argv: [x] } }]\ninptus: {}\n");
    let json = serde_json::to_value(&found).expect("json");
    assert_eq!(json[0]["code"], "unknown-key");
    assert_eq!((&json[0]["line"], &json[0]["column"], &json[0]["severity"]), (&3.into(), &1.into(), &"error".into()));
    assert_eq!(json[0]["line_text"], "inptus: {}");
}

#[test]
fn the_shipped_files_are_right() {
    let estate = lab().estate;
    assert!(estate.lab);
    for path in ["runbooks/regional-failover.yaml", "runbooks/failback.yaml", "runbooks/protect.yaml", "runbooks/artifact-restore.yaml"] {
        let found = check_runbook(&shipped(path), Some(&estate), &Forms);
        assert!(found.is_empty(), "{}", text(&found));
    }
    let region_loss = drill(&read("drills/region-loss.yaml"));
    let (book, then) = (shipped("runbooks/regional-failover.yaml"), shipped("runbooks/failback.yaml"));
    let found = check_drill(&region_loss, &estate, Some(&book), Some(&then));
    assert!(found.is_empty(), "{}", text(&found));
    let restore = drill(&read("drills/artifact-restore.yaml"));
    let found = check_drill(&restore, &estate, Some(&shipped("runbooks/artifact-restore.yaml")), None);
    assert!(found.is_empty(), "{}", text(&found));
    let body = region_loss.drill.probes.http.and_then(|http| http.body).expect("a body");
    let sent: serde_json::Value = serde_json::from_str(&body).expect("the body is JSON");
    assert_eq!(sent["features"].as_array().map(Vec::len), Some(64));
    assert_eq!(sent["id"], "$ID");
}

#[test]
fn a_plan_has_everything_filled_in() {
    let book = shipped("runbooks/regional-failover.yaml");
    let inputs = given(&[("from", "east"), ("to", "west")]);
    let plan = compile(&book, &lab().estate, &inputs, Scope::Drill, false, &Forms).unwrap_or_else(|found| panic!("{}", text(&found)));
    assert_eq!(plan.locks, [Resource("database/predictions".into())]);
    let step = |id: &str| plan.step(&StepId::from(id)).expect("the step");
    assert_eq!(word(&step("fence").with, "region").as_deref(), Some("east"));
    assert_eq!(word(&step("promote").with, "proof").as_deref(), Some("{{ steps.fence.proof }}"));
    assert_eq!((step("promote").timeout, step("promote").retry.attempts), (Span::from_secs(300), 3));
    assert_eq!((step("fence").timeout, step("fence").on_failure), (Span::from_secs(60), OnFailure::Stop));
    assert_eq!(step("readiness").on_failure, OnFailure::Continue);
    assert_eq!(step("declare").needs, [StepId::from("readiness")]);
    assert_eq!(step("declare").timeout, Span::from_secs(900));
    assert_eq!(step("fence").undo, UndoPolicy::Manual);
    assert_eq!(step("promote").kind.uses(), "database.promote");
    assert!(lint_reach(&plan).is_empty(), "the waiver covers the global control plane");
    let live = compile(&book, &lab().estate, &inputs, Scope::Live, true, &Forms).expect("compiles");
    assert_eq!(live.step(&StepId::from("fence")).map(|step| step.on_failure), Some(OnFailure::Pause));
}

#[test]
fn what_a_failover_may_not_need_is_told() {
    let mut book = shipped("runbooks/regional-failover.yaml");
    book.runbook.waive.clear();
    let inputs = given(&[("from", "west"), ("to", "west")]);
    let plan = compile(&book, &lab().estate, &inputs, Scope::Live, true, &Forms).expect("compiles");
    let codes: Vec<&str> = lint_reach(&plan).iter().map(|found| found.code).collect();
    assert_eq!(codes, ["needs-failed-region", "needs-global-control-plane"]);
}

/// Several servers that take a zone's updates are there so that one may be lost.
#[test]
fn a_failover_may_leave_a_server_behind_as_long_as_there_is_another() {
    let mut book = shipped("runbooks/regional-failover.yaml");
    book.runbook.waive.clear();
    let inputs = given(&[("from", "east"), ("to", "west")]);
    let mut plan = compile(&book, &lab().estate, &inputs, Scope::Live, true, &Forms).expect("compiles");
    let told = |plan: &Plan| lint_reach(plan).into_iter().map(|found| (found.code, found.is_error(), found.message)).collect::<Vec<_>>();
    let mut among = |sites: &[(&str, Option<&str>)]| {
        let site = |(server, region): &(&str, Option<&str>)| Site { server: (*server).into(), region: region.map(Into::into) };
        let reach = Reach { place: Place::Each(sites.iter().map(site).collect()), plane: Plane::Data };
        plan.steps.retain(|step| step.id.as_str() == "traffic");
        plan.steps[0].reach = vec![reach];
        told(&plan)
    };
    let found = among(&[("ns1", Some("east")), ("ns2", Some("west")), ("ns3", None)]);
    assert!(
        matches!(found.as_slice(), [("left-behind", false, why)] if why.contains("leaves ns1 behind") && !why.contains("ns2")),
        "{found:?}"
    );
    assert_eq!(among(&[("ns2", Some("west")), ("ns3", None)]), []);
    let found = among(&[("ns1", Some("east")), ("ns2", Some("east"))]);
    assert!(matches!(found.as_slice(), [("needs-failed-region", true, _)]), "{found:?}");
    plan.mode = Some(Mode::Switchover);
    assert_eq!((told(&plan), plan.lost()), (Vec::new(), None), "a planned change leaves nobody out, and needs no lint");
}

#[test]
fn what_is_waived_stands_in_the_plan_and_the_path_is_told() {
    let mut book = shipped("runbooks/regional-failover.yaml");
    book.runbook.waive.clear();
    let inputs = given(&[("from", "west"), ("to", "west")]);
    let mut plan = compile(&book, &lab().estate, &inputs, Scope::Live, true, &Forms).expect("compiles");
    assert_eq!(path(&plan).traffic, "control-plane");
    assert!(path(&plan).told().contains("(`traffic`)"), "{}", path(&plan).told());
    assert_eq!(waive(&mut plan, "the API answers").len(), 2);
    assert!(lint_reach(&plan).is_empty() && plan.waive.iter().all(|waiver| waiver.reason == "the API answers"));
    assert!(waive(&mut plan, "again").is_empty(), "nothing is left to waive");
}

#[test]
fn inputs_are_checked_before_anything_is_compiled() {
    let book = shipped("runbooks/regional-failover.yaml");
    let inputs = given(&[("from", "esat"), ("too", "west")]);
    let found = compile(&book, &lab().estate, &inputs, Scope::Live, true, &Forms).expect_err("refused");
    insta::assert_snapshot!("inputs", text(&found));
}

#[test]
fn inputs_keep_their_type_on_the_way_into_with() {
    let book = runbook(
        "runbook: t\ninputs:\n  tol: { type: number, default: 0.5 }\n  who: { type: string }\nsteps:\n  - id: prove\n    uses: model.golden\n    with: { endpoint: inference, tolerance: \"{{ inputs.tol }}\" }\n  - id: say\n    uses: exec.command\n    with: { argv: [echo, \"{{ inputs.who }}\"] }\n",
    );
    let inputs = given(&[("who", "{{ steps.prove.x }}")]);
    let plan = compile(&book, &lab().estate, &inputs, Scope::Live, true, &Forms).unwrap_or_else(|found| panic!("{}", text(&found)));
    assert_eq!(plan.steps[0].with.get("tolerance").map(|n| n.value.clone()), Some(NodeValue::Typed(serde_json::json!(0.5))));
    let argv: Vec<String> = crate::model::node::decode(plan.steps[1].with.get("argv").expect("argv")).expect("text");
    assert_eq!(argv, ["echo", "{{ steps.prove.x }}"]);
}

#[test]
fn groups_are_sugar_for_needs() {
    let step = |id: &str, more: &str| format!("{{ id: {id}, uses: exec.command, with: {{ argv: [x] }}{more} }}");
    let book = runbook(&format!(
        "runbook: t\nsteps:\n  - {}\n  - parallel: [ {}, {} ]\n  - {}\n  - {}\n  - needs: [a]\n    parallel: [ {} ]\n",
        step("a", ""),
        step("b", ""),
        step("c", ", needs: []"),
        step("d", ""),
        step("e", ", needs: []"),
        step("f", "")
    ));
    let needs: Vec<String> = book
        .runbook
        .steps
        .iter()
        .map(|s| format!("{}<{}", s.id, s.needs.iter().map(StepId::as_str).collect::<Vec<_>>().join("+")))
        .collect();
    assert_eq!(needs, ["a<", "b<a", "c<", "d<b+c", "e<", "f<a"]);
}

#[test]
fn the_schemas_know_the_actions_and_point_nowhere_else() {
    let runbook = schema::runbook(&Forms);
    assert!(runbook.pointer("/$defs/Step/properties/uses/enum").is_some_and(|names| names.to_string().contains("dns.shift")));
    assert!(runbook.pointer("/$defs/with.dns.shift/properties/endpoint").is_some());
    for schema in [runbook, schema::estate(), schema::drill()] {
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        let mut references = Vec::new();
        collect(&schema, &mut references);
        assert!(!references.is_empty());
        for reference in references {
            assert!(schema.pointer(reference.trim_start_matches('#')).is_some(), "{reference} leads nowhere");
        }
    }
}

fn collect(value: &serde_json::Value, out: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            out.extend(map.get("$ref").and_then(|r| r.as_str()).map(ToOwned::to_owned));
            map.values().for_each(|inner| collect(inner, out));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|inner| collect(inner, out)),
        _ => {}
    }
}

#[test]
fn a_restore_drill_loses_nothing_and_watches_for_no_loss() {
    let estate = lab().estate;
    let text =
        "drill: r\nkind: restore\nrunbook: artifact-restore\nscenario: [{ kill: { region: east } }]\ndetect: { good_probes_missed: 3 }\n";
    let found = check_drill(&drill(text.as_bytes()), &estate, Some(&shipped("runbooks/artifact-restore.yaml")), None);
    let codes: Vec<_> = found.iter().map(|one| (one.code, one.pos.line)).collect();
    assert_eq!(codes, [("not-in-restore", 4), ("not-in-restore", 5)]);
}

#[test]
fn a_drill_that_nothing_measures_is_told_so_and_may_be_run() {
    let (estate, book) = (lab().estate, shipped("runbooks/protect.yaml"));
    let found = |more: &str| {
        let text = format!("drill: d\nkind: failover\nrunbook: protect\n{more}");
        let found = check_drill(&drill(text.as_bytes()), &estate, Some(&book), None);
        found.iter().map(|one| (one.code, one.is_error(), one.pos.line)).collect::<Vec<_>>()
    };
    assert_eq!(found("objectives: { rto: 15m }\n"), [("not-measured", false, 2)]);
    assert_eq!(found("probes: { ledger: { database: predictions } }\n"), []);
}
