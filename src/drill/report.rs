//! The report of a drill: one HTML page that stands by itself and can be printed, mailed and filed.
//!
//! No script and no reference to anything outside it, so that it reads the same in ten years. It shows
//! what is in the journal and adds nothing; a figure that was not measured is called so.

use super::report_chart as chart;
use crate::model::{
    drill::DrillKind,
    event::{LedgerDigest, RunRole},
    objective::{Instants, Rpo, Rto, Verdict},
    status::{RunStatus, StepStatus},
    time::rfc3339_ms,
};
use crate::plan::measure::ProbeSample;
use jiff::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde::{Deserialize, Serialize};

/// All that a report shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReportData {
    pub drill: String,
    pub description: Option<String>,
    pub id: String,
    pub run: Option<String>,
    pub runbook: String,
    pub kind: DrillKind,
    /// `None` while the drill is not finished.
    pub verdict: Option<Verdict>,
    /// Why it is the verdict: one sentence each.
    pub reasons: Vec<String>,
    pub scheduled_for: Option<Timestamp>,
    pub started_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    /// The faults, in words.
    pub scenario: Vec<String>,
    pub fault_at: Option<Timestamp>,
    pub instants: Instants,
    pub rto: Rto,
    pub rpo: Rpo,
    /// In the order of the plan, the main run's first.
    pub steps: Vec<ReportStep>,
    pub samples: Vec<ProbeSample>,
    /// What an operator should know or do: warnings, waivers, overrides, holes.
    pub findings: Vec<String>,
    pub skipped: Vec<ReportSkip>,
    pub traffic: Option<ReportTraffic>,
    pub then: Option<ReportThen>,
    pub evidence: ReportEvidence,
    /// The version of Muster that drew it.
    pub version: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReportStep {
    pub id: String,
    pub uses: String,
    pub role: RunRole,
    pub status: StepStatus,
    pub attempts: u32,
    pub started_at: Option<Timestamp>,
    pub duration_ms: Option<u64>,
    /// A failure or a warning, in words.
    pub note: Option<String>,
}

impl ReportStep {
    pub(super) fn ended_at(&self) -> Option<Timestamp> {
        let length = jiff::SignedDuration::from_millis(i64::try_from(self.duration_ms?).ok()?);
        self.started_at?.checked_add(length).ok()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportSkip {
    pub what: String,
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportTraffic {
    pub path: String,
    pub control_plane_calls: u64,
}

/// What was done afterwards, to leave the estate as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportThen {
    pub run: Option<String>,
    pub runbook: String,
    pub status: RunStatus,
    pub acknowledged_writes: Option<u64>,
    pub lost_writes: Option<u64>,
    pub write_pause_ms: Option<u64>,
    pub as_found: Option<bool>,
    pub differences: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportEvidence {
    pub events: u64,
    /// `sha256:...` of the last record.
    pub head: String,
    /// Whether the chain was verified when the report was drawn.
    pub verified: Option<bool>,
    pub ledger: Option<LedgerDigest>,
}

const NOT_MEASURED: &str = "not measured";

/// A length of time for people.
pub(super) fn millis(ms: Option<i64>) -> String {
    let Some(ms) = ms else { return NOT_MEASURED.to_owned() };
    let sign = if ms < 0 { "−" } else { "" };
    let abs = ms.unsigned_abs();
    match abs {
        0 => "0 s".to_owned(),
        1..1_000 => format!("{sign}{abs} ms"),
        // Cut, not rounded: a figure never looks larger or smaller than the next one down.
        1_000..60_000 if abs.is_multiple_of(1_000) => format!("{sign}{} s", abs / 1_000),
        1_000..60_000 => format!("{sign}{}.{:02} s", abs / 1_000, abs % 1_000 / 10),
        _ if abs.is_multiple_of(60_000) => format!("{sign}{} min", abs / 60_000),
        _ => format!("{sign}{} min {:02} s", abs / 60_000, abs % 60_000 / 1_000),
    }
}

fn millis_u(ms: Option<u64>) -> String {
    millis(ms.and_then(|ms| i64::try_from(ms).ok()))
}

fn count(n: Option<u64>) -> String {
    n.map_or_else(|| NOT_MEASURED.to_owned(), |n| n.to_string())
}

fn instant(at: Option<Timestamp>) -> String {
    at.map_or_else(|| NOT_MEASURED.to_owned(), rfc3339_ms)
}

/// Draws the page.
#[must_use]
pub fn render(data: &ReportData) -> String {
    let (glyph, word, class, _) = verdict(data.verdict);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Drill " (data.drill) ": " (word) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    (header(data, glyph, word, class))
                    (figures(data))
                    (reasons(data))
                    (recovery(data))
                    (timeline(data))
                    (steps(data))
                    (skipped(data))
                    (afterwards(data))
                    (evidence(data))
                    footer { "Drawn by Muster " (data.version) " from the journal of drill " (data.id) ". All times are UTC." }
                }
            }
        }
    }
    .into_string()
}

fn verdict(verdict: Option<Verdict>) -> (&'static str, &'static str, &'static str, &'static str) {
    match verdict {
        Some(Verdict::Pass) => ("✓", "pass", "good", "The service recovered within its objectives."),
        Some(Verdict::Fail) => ("✗", "fail", "bad", "The drill failed."),
        Some(Verdict::Inconclusive) => ("?", "inconclusive", "warn", "Something that should have been measured was not."),
        None => ("…", "not finished", "warn", "The drill has not finished."),
    }
}

fn kind(kind: DrillKind) -> &'static str {
    match kind {
        DrillKind::Restore => "restore",
        DrillKind::Isolated => "isolated",
        DrillKind::Failover => "failover",
        DrillKind::Switchover => "switchover",
        DrillKind::Tabletop => "tabletop",
    }
}

fn header(data: &ReportData, glyph: &str, word: &str, class: &str) -> Markup {
    html! {
        header {
            div {
                p.eyebrow { "Disaster recovery drill · " (kind(data.kind)) }
                h1 { (data.drill) }
                @if let Some(text) = &data.description { p.lead { (text) } }
            }
            div class={ "verdict " (class) } { span.glyph { (glyph) } span { (word) } }
        }
        dl.facts {
            div { dt { "started" } dd { (rfc3339_ms(data.started_at)) } }
            div { dt { "finished" } dd { (data.finished_at.map_or_else(|| "not finished".to_owned(), rfc3339_ms)) } }
            @if let Some(at) = data.scheduled_for { div { dt { "scheduled for" } dd { (rfc3339_ms(at)) } } }
            div { dt { "runbook" } dd { (data.runbook) } }
            div { dt { "scenario" } dd {
                @if data.scenario.is_empty() { "no fault injected" } @else { (data.scenario.join(", then ")) }
            } }
        }
    }
}

/// How a figure stands to its objective, in words and with a class for its colour.
fn against(met: Option<bool>, objective: Option<u64>) -> Markup {
    let said = objective.map_or_else(|| "no objective".to_owned(), |o| format!("objective {}", millis_u(Some(o))));
    html! { p.against { (said) @match met {
        Some(true) => { " · " span.good { "✓ met" } }
        Some(false) => { " · " span.bad { "✗ missed" } }
        None => {}
    } } }
}

fn figures(data: &ReportData) -> Markup {
    let (rto, rpo) = (&data.rto, &data.rpo);
    html! {
        section.cards {
            div.card {
                h2 { "Recovery time " abbr title="recovery time actual" { "RTA" } }
                p.figure { (millis_u(rto.actual_ms)) }
                (chart::gauge(rto.actual_ms, rto.objective_ms, rto.met))
                (against(rto.met, rto.objective_ms))
            }
            div.card {
                h2 { "Data loss " abbr title="recovery point actual" { "RPA" } }
                p.figure { @if rpo.upper_bound == Some(true) { "≤ " } (millis_u(rpo.actual_ms)) }
                (chart::gauge(rpo.actual_ms, rpo.objective_ms, rpo.met))
                (against(rpo.met, rpo.objective_ms))
            }
            @if data.kind == DrillKind::Restore {
                div.card {
                    h2 { "Recovered point" }
                    p.figure { (data.instants.recovered_point.map_or_else(|| NOT_MEASURED.to_owned(), |at| at.strftime("%Y-%m-%d %H:%M:%S").to_string())) }
                    p.against { (point(rpo)) }
                }
            } @else {
                div.card {
                    h2 { "Writes lost" }
                    p.figure { (count(rpo.lost_writes)) }
                    p.against { "of " (count(rpo.acknowledged_writes)) " acknowledged, by a ledger kept outside both regions" }
                }
            }
            @if let Some(then) = &data.then {
                div.card {
                    h2 { "Estate afterwards" }
                    p.figure { (as_found(then.as_found)) }
                    p.against { (then.runbook) " " (then.status.word().replace('_', " ")) }
                }
            }
        }
    }
}

/// What the data loss of a restore is.
fn point(rpo: &Rpo) -> String {
    if rpo.upper_bound != Some(false) && rpo.lost_bytes.is_none() {
        return "the data loss is at most its age at the moment of loss; the primary was not asked what it had, or could not tell"
            .to_owned();
    }
    let lost = match (rpo.lost_commits, rpo.lost_bytes) {
        (Some(commits), Some(bytes)) => format!("{commits} transactions in {bytes} bytes of log"),
        (None, Some(bytes)) => format!("{bytes} bytes of log, whose transactions were not counted"),
        _ => "its transactions were not counted".to_owned(),
    };
    let most = if rpo.upper_bound == Some(false) { "" } else { "at most " };
    format!("the data loss is {most}what lies between that and the primary's newest commit at the moment of loss: {lost}")
}

fn as_found(same: Option<bool>) -> &'static str {
    match same {
        Some(true) => "as found",
        Some(false) => "differs",
        None => NOT_MEASURED,
    }
}

fn reasons(data: &ReportData) -> Markup {
    let (_, _, class, sentence) = verdict(data.verdict);
    html! {
        section {
            h2 { "Verdict and findings" }
            div class={ "callout " (class) } {
                @if data.reasons.is_empty() { p { (sentence) } }
                @else { ul { @for reason in &data.reasons { li { (reason) } } } }
            }
            @if data.findings.is_empty() { p.quiet { "No further findings." } }
            @else { ul.findings { @for finding in &data.findings { li { (finding) } } } }
        }
    }
}

/// The instants: their name, what they are, and which part of the recovery time ends there.
fn rows(data: &ReportData) -> [(&'static str, &'static str, Option<Timestamp>, Option<usize>); 6] {
    let i = &data.instants;
    if data.kind == DrillKind::Restore {
        return [
            ("", "recovered point: how things stood then is what came back", i.recovered_point, None),
            ("", "moment of loss: the primary was asked, or else the drill began", i.lost, None),
            ("T0", "restore begun", i.first_applying, None),
            ("", "first file back and verified", i.first_back, None),
            ("T1", "all files back", i.restored, Some(0)),
            ("T2", "all of it verified", i.recovered, Some(1)),
        ];
    }
    [
        ("T0", "last good answer before the outage", i.last_good, None),
        ("T1", "loss detected by the probe", i.detected, Some(0)),
        ("T2", "first change begun", i.first_applying, Some(1)),
        ("T3", "last traffic change applied", i.traffic_applied, Some(2)),
        ("T4", "first resolver with the new answer", i.resolver_moved, Some(3)),
        ("T5", "first of the good answers that last", i.recovered, Some(4)),
    ]
}

fn recovery(data: &ReportData) -> Markup {
    let parts = chart::parts(data);
    html! {
        section {
            h2 { "Where the recovery time went" }
            @match chart::stacked(data) {
                Some(drawing) => { div.scroll { (drawing) } }
                None => { p.callout.warn { "The recovery time was not measured: an instant is missing, or the measurement has a hole in it." } }
            }
            div.scroll { table {
                thead { tr { th { "instant" } th { "what it is" } th { "at" } th { "part that ends here" } th.number { "length" } } }
                tbody { @for (name, what, at, part) in rows(data) { tr {
                    td.strong { (name) }
                    td { (what) }
                    td.mono { (instant(at)) }
                    @match part.and_then(|n: usize| parts.get(n)) {
                        Some((part, class, ms)) => {
                            td { span class={ "swatch " (class) } {} (part) }
                            td.number { (millis(*ms)) }
                        }
                        None => { td {} td {} }
                    }
                } } }
            } }
            @if let Some(traffic) = &data.traffic {
                p.quiet { "Traffic path: " (traffic.path) "; calls to a control plane: " (traffic.control_plane_calls) "." }
            }
        }
    }
}

fn timeline(data: &ReportData) -> Markup {
    let bad: Vec<&ProbeSample> = data.samples.iter().filter(|s| !s.good).collect();
    let mut why: Vec<(String, usize)> = Vec::new();
    for reason in bad.iter().filter_map(|s| s.why_bad.as_ref()) {
        match why.iter_mut().find(|(known, _)| known == reason) {
            Some((_, times)) => *times += 1,
            None => why.push((reason.clone(), 1)),
        }
    }
    why.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    html! {
        section {
            h2 { "Timeline" }
            div.scroll { (chart::timeline(data)) }
            @if data.samples.is_empty() { p.quiet { "Probes: " (NOT_MEASURED) "." } }
            @else {
                p.quiet { (data.samples.len()) " probes, " (data.samples.len() - bad.len()) " good, " (bad.len()) " missed." }
                @if !why.is_empty() { ul.quiet { @for (reason, times) in why.iter().take(6) { li { (times) " × " (reason) } } } }
            }
        }
    }
}

fn steps(data: &ReportData) -> Markup {
    html! {
        section {
            h2 { "Steps" }
            div.scroll { table {
                thead { tr { th { "step" } th { "action" } th { "run" } th { "status" } th { "started" } th.number { "took" } th.number { "attempts" } } }
                tbody { @for step in &data.steps {
                    @let (glyph, word, class) = chart::looks(step.status);
                    tr {
                        td.strong { (step.id) }
                        td.mono { (step.uses) }
                        td { (match step.role { RunRole::Main => "drill", RunRole::Then => "afterwards" }) }
                        td class=(class.replace("fill", "ink")) { (glyph) " " (word) }
                        td.mono { (step.started_at.map_or_else(|| "not started".to_owned(), |at| at.strftime("%H:%M:%S.%3f").to_string())) }
                        td.number { @if let Some(ms) = step.duration_ms { (millis_u(Some(ms))) } @else { "–" } }
                        td.number { (step.attempts) }
                    }
                    @if let Some(note) = &step.note { tr.sub { td {} td colspan="6" { (note) } } }
                } }
            } }
        }
    }
}

fn skipped(data: &ReportData) -> Markup {
    html! {
        section {
            h2 { "Skipped, and why" }
            @if data.skipped.is_empty() { p.quiet { "Nothing was skipped." } }
            @else { dl.pairs { @for skip in &data.skipped { dt { (skip.what) } dd { (skip.why) } } } }
        }
    }
}

fn afterwards(data: &ReportData) -> Markup {
    let Some(then) = &data.then else {
        return html! { section { h2 { "Afterwards" } p.quiet { "Nothing was to be done afterwards; the estate stands as the drill left it." } } };
    };
    html! {
        section {
            h2 { "Afterwards: " (then.runbook) }
            dl.pairs {
                dt { "status" } dd { (then.status.word().replace('_', " ")) }
                @if let Some(run) = &then.run { dt { "run" } dd.mono { (run) } }
                dt { "writes lost" } dd { @match (then.lost_writes, then.acknowledged_writes) {
                    (Some(lost), Some(all)) => { (lost) " of " (all) " acknowledged" }
                    _ => (NOT_MEASURED),
                } }
                dt { "pause in writes" } dd { (millis_u(then.write_pause_ms)) }
                dt { "estate" } dd { (as_found(then.as_found)) }
            }
            @if !then.differences.is_empty() { ul.findings { @for difference in &then.differences { li { (difference) } } } }
        }
    }
}

fn evidence(data: &ReportData) -> Markup {
    let e = &data.evidence;
    html! {
        section {
            h2 { "Evidence" }
            dl.pairs {
                dt { "drill" } dd.mono { (data.id) }
                @if let Some(run) = &data.run { dt { "run" } dd.mono { (run) } }
                dt { "events" } dd { (e.events) ", hash-chained" }
                dt { "head" } dd.mono { (e.head) }
                dt { "chain" } dd { (match e.verified {
                    Some(true) => "✓ verified when this page was drawn",
                    Some(false) => "✗ verification failed when this page was drawn",
                    None => "not verified",
                }) }
                dt { "ledger" } dd { @match &e.ledger {
                    Some(l) => { (l.entries) " acknowledged writes in " span.mono { (l.file) } br; span.mono { "sha256:" (l.sha256) } }
                    None => (NOT_MEASURED),
                } }
            }
            p.quiet { "Check it: " code { "muster evidence verify" } " over the same state directory must give the same head; " code { "sha256sum" } " of the ledger's file the same digest." }
        }
    }
}

const STYLE: &str = include_str!("report.css");

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
