//! The page for a drill that passed and for one in which little was measured.

use super::*;
use crate::model::objective::RtoParts;

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap()
}

fn step(id: &str, uses: &str, role: RunRole, status: StepStatus, from: i64, ms: u64) -> ReportStep {
    let ran = status != StepStatus::Skipped;
    ReportStep {
        id: id.to_owned(),
        uses: uses.to_owned(),
        role,
        status,
        attempts: u32::from(ran),
        started_at: ran.then(|| at(from)),
        duration_ms: ran.then_some(ms),
        note: None,
    }
}

fn samples() -> Vec<ProbeSample> {
    let one = |n: i64| {
        let (sent, good) = (n * 100, !(30..62).contains(&n));
        let why_bad = (!good).then(|| "unreachable: connection refused".to_owned());
        ProbeSample {
            seq: n.unsigned_abs(),
            sent: at(sent),
            done: at(sent + 12),
            good,
            address: "127.0.0.2".parse().ok(),
            why_bad,
            id: None,
        }
    };
    (0..140).map(one).collect()
}

fn some_steps() -> Vec<ReportStep> {
    use RunRole::{Main, Then};
    use StepStatus::{Skipped, Succeeded, SucceededWithWarning};
    let mut steps = vec![
        step("readiness", "readiness.check", Main, SucceededWithWarning, 3_230, 40),
        step("declare", "approval", Main, Skipped, 0, 0),
        step("fence", "database.fence", Main, Succeeded, 3_280, 1_310),
        step("promote", "database.promote", Main, Succeeded, 4_600, 620),
        step("traffic", "dns.shift", Main, Succeeded, 5_230, 450),
        step("prove", "model.golden", Main, Succeeded, 6_210, 130),
        step("rebuild-replica", "database.create_replica", Then, Succeeded, 8_000, 2_900),
        step("switch-back", "database.promote", Then, Succeeded, 11_000, 900),
        step("traffic-back", "dns.shift", Then, Succeeded, 11_950, 400),
    ];
    steps[0].note = Some("replica lag is judged as of the last contact with the primary: 0 B".to_owned());
    steps
}

fn passed() -> ReportData {
    ReportData {
        drill: "region-loss".to_owned(),
        description: Some("Lose the primary region for real, recover in the other, measure it.".to_owned()),
        id: "0198a3c1-5a1e-7c02-9d7a-000000000001".to_owned(),
        run: Some("0198a3c1-5a1e-7c02-9d7a-000000000002".to_owned()),
        runbook: "regional-failover".to_owned(),
        kind: DrillKind::Failover,
        verdict: Some(Verdict::Pass),
        reasons: vec!["RTA 3.29 s is within the objective of 60 s.".to_owned(), "0 of 412 acknowledged writes were lost.".to_owned()],
        scheduled_for: Some(at(-400)),
        started_at: at(0),
        finished_at: Some(at(13_900)),
        scenario: vec!["kill east".to_owned()],
        fault_at: Some(at(2_960)),
        instants: Instants {
            last_good: Some(at(2_912)),
            detected: Some(at(3_212)),
            first_applying: Some(at(3_285)),
            traffic_applied: Some(at(5_470)),
            resolver_moved: Some(at(5_490)),
            recovered: Some(at(6_202)),
            ..Instants::default()
        },
        rto: Rto {
            objective_ms: Some(60_000),
            actual_ms: Some(3_290),
            met: Some(true),
            parts_ms: RtoParts { detect: Some(300), decide: Some(73), act: Some(2_185), propagate: Some(20), verify: Some(712) },
        },
        rpo: Rpo {
            objective_ms: Some(5_000),
            actual_ms: Some(0),
            met: Some(true),
            acknowledged_writes: Some(412),
            lost_writes: Some(0),
            ..Rpo::default()
        },
        steps: some_steps(),
        samples: samples(),
        findings: vec!["Waived: global-control-plane, because the data-plane path is not prepared yet.".to_owned()],
        skipped: vec![ReportSkip {
            what: "declare (approval)".to_owned(),
            why: "approvals are guards of live runs; this is a drill".to_owned(),
        }],
        traffic: Some(ReportTraffic { path: "control-plane".to_owned(), control_plane_calls: 1 }),
        then: Some(ReportThen {
            run: Some("0198a3c1-5a1e-7c02-9d7a-000000000003".to_owned()),
            runbook: "failback".to_owned(),
            status: RunStatus::Succeeded,
            acknowledged_writes: Some(301),
            lost_writes: Some(0),
            write_pause_ms: Some(180),
            as_found: Some(true),
            differences: vec![],
        }),
        evidence: ReportEvidence {
            events: 57,
            head: format!("sha256:{}", "5f".repeat(32)),
            verified: Some(true),
            ledger: Some(LedgerDigest { file: "drills/ledger.jsonl".to_owned(), sha256: "ab".repeat(32), entries: 713 }),
        },
        version: "0.1.0".to_owned(),
    }
}

fn unmeasured() -> ReportData {
    let mut data = passed();
    data.drill = "region-loss <script>alert(1)</script>".to_owned();
    data.verdict = Some(Verdict::Inconclusive);
    data.reasons = vec!["The process was replaced while the service was down; what spans that hole was not measured.".to_owned()];
    data.instants = Instants { last_good: data.instants.last_good, ..Instants::default() };
    data.rto = Rto { objective_ms: Some(60_000), ..Rto::default() };
    data.rpo = Rpo { objective_ms: Some(5_000), acknowledged_writes: Some(412), ..Rpo::default() };
    data.samples.clear();
    data.then = None;
    data.evidence.ledger = None;
    data.steps.truncate(3);
    data.steps[2].status = StepStatus::Indeterminate;
    data
}

/// A restore of three files from a point two hours back.
fn restored() -> ReportData {
    let mut data = passed();
    data.drill = "artifact-restore".to_owned();
    data.kind = DrillKind::Restore;
    data.instants = Instants {
        lost: Some(at(0)),
        recovered_point: Some(at(-7_200_000)),
        first_applying: Some(at(1_000)),
        first_back: Some(at(1_200)),
        restored: Some(at(2_500)),
        recovered: Some(at(3_100)),
        ..Instants::default()
    };
    let parts_ms = RtoParts { act: Some(1_500), verify: Some(600), ..RtoParts::default() };
    data.rto = Rto { objective_ms: Some(60_000), actual_ms: Some(2_100), met: Some(true), parts_ms };
    data.rpo =
        Rpo { objective_ms: Some(86_400_000), actual_ms: Some(7_200_000), met: Some(true), upper_bound: Some(true), ..Rpo::default() };
    (data.samples, data.scenario, data.then, data.traffic) = (Vec::new(), Vec::new(), None, None);
    data.steps.truncate(1);
    data
}

#[test]
fn the_page_of_a_restore_says_what_came_back_and_from_when() {
    let page = render(&restored());
    for word in ["120 min", "2.10 s", "moment of loss", "recovered point", "all files back", "restore", "verify", "all of it verified"] {
        assert!(page.contains(word), "the page lacks {word:?}");
    }
    for word in ["acknowledged, by a ledger", "propagate", "resolver", "the recovery time was not measured"] {
        assert!(!page.to_lowercase().contains(word), "the page of a restore speaks of {word:?}");
    }
    assert!(render(&ReportData { rto: Rto::default(), ..restored() }).contains("The recovery time was not measured"));
    assert!(page.contains("≤ 120 min") && page.contains("at most its age"), "an age is no more than a bound");
    let mut asked = restored();
    (asked.rpo.upper_bound, asked.rpo.actual_ms) = (Some(false), Some(4_900));
    (asked.rpo.lost_bytes, asked.rpo.lost_commits) = (Some(1_100), Some(3));
    let page = render(&asked);
    assert!(page.contains("4.90 s") && page.contains("3 transactions in 1100 bytes of log") && !page.contains("≤"));
}

#[test]
fn the_page_of_a_drill_that_passed() {
    let page = render(&passed());
    // Line by element, so that a change shows where it is; the style sheet is a file of its own.
    insta::assert_snapshot!(page.replace(STYLE, "").replace("><", ">\n<"));
    if let Ok(path) = std::env::var("MUSTER_REPORT_SAMPLE") {
        std::fs::write(path, page).unwrap();
    }
}

#[test]
fn what_was_not_measured_is_called_so() {
    let page = render(&unmeasured());
    insta::assert_snapshot!(page.replace(STYLE, "").replace("><", ">\n<"));
    assert!(!page.contains("<script"), "what people write is text");
    if let Ok(path) = std::env::var("MUSTER_REPORT_SAMPLE") {
        std::fs::write(format!("{path}.unmeasured.html"), page).unwrap();
    }
}

#[test]
fn the_page_stands_by_itself() {
    for data in [passed(), unmeasured()] {
        let page = render(&data);
        for outside in ["<script", "<link", "src=", "href=", "url(", "@import", "http://", "https://"] {
            assert!(!page.contains(outside), "the page has {outside}");
        }
    }
}

#[test]
fn a_drill_of_hours_stays_small() {
    let mut data = passed();
    let one = |n: i64| ProbeSample {
        seq: n.unsigned_abs(),
        sent: at(n * 100),
        done: at(n * 100 + 9),
        good: n % 7 != 0,
        address: None,
        why_bad: Some(format!("{n}")),
        id: None,
    };
    data.samples = (0..100_000).map(one).collect();
    assert!(render(&data).len() < 250_000);
}

#[test]
fn the_data_reads_back() {
    let data = passed();
    let text = serde_json::to_string(&data).unwrap();
    assert_eq!(serde_json::from_str::<ReportData>(&text).unwrap(), data);
}

#[test]
fn lengths_are_written_for_people() {
    let said: Vec<_> = [0, 820, 1_000, 3_129, 59_999, 60_000, 125_400, -20].into_iter().map(|ms| millis(Some(ms))).collect();
    assert_eq!(said, ["0 s", "820 ms", "1 s", "3.12 s", "59.99 s", "1 min", "2 min 05 s", "−20 ms"]);
    assert_eq!(millis(None), "not measured");
}
