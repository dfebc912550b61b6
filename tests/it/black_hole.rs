//! Rule 7 with what it is about: the lost region and the control plane of Route 53 accept every connection and never answer.
//! The runbook that the lint lets pass completes; the other is told of beforehand, and let through with a reason it hangs
//! until its step's deadline and no longer.

use crate::drill_support::*;
use std::{fs, net::TcpListener, time::Duration};

/// Accepts, and never answers.
fn black_hole() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            held.push(stream);
        }
    });
    at
}

const LINTED: &str = r#"runbook: linted
mode: failover
inputs: { from: { type: region }, to: { type: region } }
steps:
  - id: readiness
    uses: readiness.check
    with: { region: "{{ inputs.to }}", dns: answers }
    on_failure: continue
  - id: fence
    uses: database.fence
    with: { database: predictions, region: "{{ inputs.from }}" }
  - id: promote
    uses: database.promote
    with: { database: predictions, region: "{{ inputs.to }}", proof: "{{ steps.fence.proof }}" }
  - id: admit
    uses: database.admit
    with: { database: predictions, region: "{{ inputs.to }}", proof: "{{ steps.fence.proof }}" }
  - id: traffic
    uses: dns.standby_takes_over
    with: { endpoint: inference, to: "{{ inputs.to }}" }
    timeout: 40s
  - id: prove
    uses: model.golden
    with: { endpoint: inference }
    retry: { attempts: 10, backoff: 500ms }
"#;

const UNLINTED: &str = r#"runbook: unlinted
mode: failover
inputs: { from: { type: region }, to: { type: region } }
steps:
  - id: traffic
    uses: dns.shift
    with: { endpoint: inference, to: "{{ inputs.to }}" }
    timeout: 4s
    on_failure: stop
"#;

#[test]
fn what_the_lint_lets_pass_completes_when_lost_endpoints_swallow_everything() {
    let desk = Desk::with_lab();
    let estate = fs::read_to_string(desk.path("muster.yaml")).unwrap();
    fs::write(desk.path("muster.yaml"), estate.replace("    # standby:", "    standby:")).unwrap();
    let prepared = desk.muster(&["run", "data-plane-prepare"]);
    assert_eq!(prepared.code, Some(0), "{}", prepared.story);
    // East is frozen and its APIs swallow what they get; so does Route 53's.
    let lab = desk.lab();
    let (plan, text) = (lab.plan().clone(), fs::read_to_string(lab.estate_path()).unwrap());
    let text = text.replace("    scheme: http\n", "    scheme: http\n    standby: { region: west, bucket: models, looks: 1 }\n");
    let east = &plan.regions["east"];
    let lost = [east.at(east.s3), east.at(east.rds), plan.outside.at(plan.outside.route53)];
    let swallowed = lost.iter().fold(text, |text, at| text.replace(&format!("http://{at}"), &black_hole()));
    assert_eq!(swallowed.matches("http://127.0.0.1:").count(), 3, "{swallowed}");
    fs::write(desk.path("swallowed.yaml"), swallowed).unwrap();
    fs::write(desk.path("runbooks/linted.yaml"), LINTED).unwrap();
    fs::write(desk.path("runbooks/unlinted.yaml"), UNLINTED).unwrap();
    lab.freeze("east").unwrap();
    let with = |words: &[&str]| desk.muster(&[words, &["-i", "from=east", "-i", "to=west", "--estate", "swallowed.yaml"]].concat());

    // Flagged beforehand: step and reason; nothing ran.
    let refused = with(&["plan", "unlinted"]);
    assert_eq!(refused.code, Some(2), "{}", refused.story);
    assert!(refused.story.contains("`traffic` (`dns.shift`) needs a global control plane"), "{}", refused.story);
    assert_eq!(with(&["run", "unlinted"]).code, Some(2));
    assert!(desk.muster(&["runs"]).result()["runs"].as_array().unwrap().len() == 1, "only the preparation is on record");

    // Let through with a reason, which stands on the record, it hangs until the deadline of the step and no longer.
    let waived = with(&["run", "unlinted", "--waive", "to see it hang"]);
    assert_eq!(waived.code, Some(1), "{}", waived.story);
    let run = waived.result()["run"].as_str().unwrap().to_owned();
    let created = serde_json::to_value(&desk.events(&run)[0].event).unwrap();
    let waiver = &created["body"]["plan"]["waive"][0];
    assert_eq!(waiver["rule"], "global-control-plane");
    assert!(waiver["reason"].as_str().unwrap().starts_with("to see it hang (by "), "{waiver}");
    let steps = waived.result()["steps"].as_array().unwrap().clone();
    let traffic = steps.iter().find(|step| step["id"] == "traffic").unwrap();
    assert_eq!(traffic["status"], "timed_out", "{traffic}");
    println!("the run that needs what swallows it ended after {:?}; its step has 4 s", waived.took);
    assert!((4..12).contains(&waived.took.as_secs()), "four seconds and what it takes to say so: {:?}", waived.took);

    // The other completes, with nothing sent to a control plane of DNS.
    let said = with(&["plan", "linted"]);
    assert_eq!(said.code, Some(0), "{}", said.story);
    assert_eq!(said.result()["path"]["traffic"], "data-plane");
    assert_eq!(said.result()["path"]["global_control_plane"], serde_json::json!([]));
    let ran = with(&["run", "linted"]);
    assert_eq!(ran.code, Some(0), "{}", ran.story);
    println!("the linted run took {:?}, beside endpoints that swallow everything", ran.took);
    assert!(ran.took < Duration::from_secs(60));
}
